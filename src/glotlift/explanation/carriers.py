"""Which layers of an adapter carry the change: scores of its configurations, against base and tuned model.

Enters: the frame of `glotlift.explanation.switch_off.switch_off_language`, of one or several languages. Leaves: one row
a language, group, mode, layer and measure:

    language      code; `all` for the mean over the languages beside English
    group, mode, layer   of the configuration
    measure       accuracy, accuracy_calibrated (after batch calibration), or auroc; 0 to 1
    value         of the configuration
    reference     what it is held against: `tuned` for `without` and `base`, `base` for the others
    change        value less that of the reference, -1 to 1: what `without` a layer is lost (negative), what layers
                  `up_to` or `from` one bring. `tuned` against `base` is the whole change.
    low, high     ends of the 95 % interval of the change, paired on items (a translation goes with its source): a
                  bootstrap for accuracies, DeLong's for AUROC. NaN where it is not defined
    n             items; over languages, source items
    moved         whether any item changed what it adds in any language; where none did, low and high are the exact
                  ones of `glotlift.intervals`, or NaN

AUROC is not defined for items of one label; `all` means over the languages where it is.

Source of the AUROC interval: DeLong et al. 1988.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import norm

from glotlift.explanation.answers import right_answers, scores_in
from glotlift.intervals import DIFFERENCE, NO_SPREAD, bounds, mean_shares
from glotlift.measures import LEVEL, auroc_influence

SUMMARY_COLUMNS = (
    "language", "group", "mode", "layer", "measure", "value", "reference", "change", "low", "high", "n", "moved"
)  # fmt: skip

ACCURACIES = {"accuracy": "none", "accuracy_calibrated": "batch"}
"""Measure -> calibration."""

Configuration = tuple[str, str, int]
"""Group, mode, layer."""

_BASE, _TUNED = ("all", "base", 0), ("all", "tuned", 0)


@dataclass(frozen=True)
class _Scored:
    """The answers of a language under every configuration.

    Attributes:
        ids: of the items.
        right: measure -> which items are right. *Shape:* (items, configurations).
        areas: AUROC of every configuration, NaN where not defined. *Shape:* (configurations,).
        influence: how much each item moves it. *Shape:* (items, configurations).
        fewest: items of the label that has the fewest.
    """

    ids: list[str]
    right: dict[str, np.ndarray]
    areas: np.ndarray
    influence: np.ndarray
    fewest: int


def summarise_switch_off(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of the module's head, columns as `SUMMARY_COLUMNS`.

    Args:
        frame: rows of `switch_off_language`, of any number of languages, which have the same configurations.
        seed: of the bootstrap.
    """
    if frame.empty:
        return pd.DataFrame(columns=list(SUMMARY_COLUMNS))
    found: list[Configuration] = [
        (str(group), str(mode), int(layer))
        for group, mode, layer in frame[["group", "mode", "layer"]].drop_duplicates().to_numpy().tolist()
    ]
    scored = {str(code): _scored(rows, found) for code, rows in frame.groupby("language", sort=False)}
    foreign = {code: each for code, each in scored.items() if code != "en"}
    groups = {code: {code: each} for code, each in scored.items()} | ({"all": foreign} if len(foreign) > 1 else {})
    references = [_TUNED if mode in ("without", "base") else _BASE for _, mode, _ in found]
    against = [found.index(reference) for reference in references]
    parts = []
    for name, group in groups.items():
        for measure, columns in _measures(group, against, seed).items():
            about = pd.DataFrame.from_records(found, columns=["group", "mode", "layer"])
            about["reference"] = [mode for _, mode, _ in references]
            parts.append(about.assign(language=name, measure=measure, **columns))
    return pd.concat(parts, ignore_index=True).loc[:, list(SUMMARY_COLUMNS)]


def _scored(rows: pd.DataFrame, found: list[Configuration]) -> _Scored:
    ids = list(dict.fromkeys(rows["id"]))
    of_configuration = rows.set_index(["group", "mode", "layer", "id"]).sort_index()
    right: dict[str, list[np.ndarray]] = {name: [] for name in ACCURACIES}
    areas, influences, fewest = [], [], 0
    for key in found:
        each = of_configuration.loc[key].loc[ids]
        labels, scores = scores_in(each, "sequence")
        gold = np.array([labels.index(name) for name in each["gold"]])
        for measure, calibration in ACCURACIES.items():
            right[measure].append(right_answers(scores, gold, calibration))
        area = auroc_influence(log_softmax(scores, axis=1), each["gold"].to_numpy(), labels)
        areas.append(np.nan if area is None else area[0])
        influences.append(np.full(len(ids), np.nan) if area is None else area[1])
        fewest = int(np.unique(gold, return_counts=True)[1].min())
    stacked = {name: np.stack(each, 1).astype(float) for name, each in right.items()}
    return _Scored(ids, stacked, np.array(areas), np.stack(influences, 1), fewest)


def _measures(group: Mapping[str, _Scored], against: list[int], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Return measure -> columns, of one or several languages; `against` is every configuration's reference."""
    ids = list(dict.fromkeys(name for each in group.values() for name in each.ids))
    place = {name: k for k, name in enumerate(ids)}
    found = {}
    for measure in ACCURACIES:
        parts = np.zeros((len(ids), len(group), len(against)))
        wholes = np.zeros_like(parts)
        for k, each in enumerate(group.values()):
            rows = [place[name] for name in each.ids]
            parts[rows, k] = each.right[measure] - each.right[measure][:, against]
            wholes[rows, k] = 1
        change, low, high = mean_shares(parts, wholes, DIFFERENCE, seed=seed)
        value = np.mean([each.right[measure].mean(0) for each in group.values()], axis=0)
        found[measure] = _columns(value, change, low, high, len(ids), (parts != 0).any((0, 1)))
    found["auroc"] = _areas(group, against, place)
    return found


def _areas(group: Mapping[str, _Scored], against: list[int], place: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the columns of AUROC, a mean over the languages where it is defined."""
    defined = [each for each in group.values() if not np.isnan(each.areas).any()]
    if not defined:
        nothing = np.full(len(against), np.nan)
        return _columns(nothing, nothing, nothing, nothing, len(place), np.zeros(len(against), bool))
    value = np.mean([each.areas for each in defined], axis=0)
    influence, moved = np.zeros((len(place), len(against))), np.zeros(len(against), bool)
    for each in defined:
        added = each.influence - each.influence[:, against]
        influence[[place[name] for name in each.ids]] += added / len(defined)
        moved |= (np.abs(added) > NO_SPREAD).any(0) | (np.abs(each.areas - each.areas[against]) > NO_SPREAD)
    change = value - value[against]
    half = float(norm.ppf((1 + LEVEL) / 2)) * np.sqrt((influence**2).sum(0))
    fewest = min(each.fewest for each in defined)
    ends = np.array([bounds(c - h, c + h, fewest, DIFFERENCE) for c, h in zip(change, half, strict=True)])
    ends[np.isnan(half)] = np.nan
    return _columns(value, change, ends[:, 0], ends[:, 1], len(place), moved)


def _columns(
    value: np.ndarray, change: np.ndarray, low: np.ndarray, high: np.ndarray, n: int, moved: np.ndarray
) -> dict[str, np.ndarray]:
    return {"value": value, "change": change, "low": low, "high": high, "n": np.full(len(value), n), "moved": moved}
