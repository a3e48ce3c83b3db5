"""What patches repair and what they break, a layer and language.

Enters: the frame of `glotlift.explanation.patching.patch_language`, of one or several languages. Leaves: one row a
variant, language, site, source, layer, calibration and measure:

    language      code; `all` for the mean over the languages beside English
    source        `same`, `other`, or `difference`: same less other, which is what is known of the item itself
    calibration   `none`, or `batch`: each label's mean over the items is taken off before the best is chosen, of the
                  patched scores as of those without the patch, so that a preference for a label repairs nothing
    measure       repaired          share of the items answered wrong without the patch that are right with it, 0 to 1
                  broken            share of those answered right that are wrong with it, 0 to 1
                  accuracy          with the patch, 0 to 1 (of `same` and `other`)
                  accuracy_change   less that without, -1 to 1
    value, low, high    with the ends of its 95 % interval, a bootstrap over source items (a translation is drawn with
                  its source) in which what calibration takes off is held fixed; NaN where no item counts
    n             items that count, over all languages: those that were wrong, that were right, or all

Which items were wrong depends on the calibration. Repair by chance is what `other` shows; so `difference` is the one to
read, and `repaired` alone is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from glotlift.explanation.answers import CALIBRATIONS, right_answers, scores_in
from glotlift.intervals import DIFFERENCE, SHARE, mean_shares

SUMMARY_COLUMNS = (
    "variant", "language", "site", "source", "layer", "calibration", "measure", "value", "low", "high", "n"
)  # fmt: skip

Cell = tuple[str, str, int, str, str]
"""Site, source, layer, calibration, measure."""


@dataclass(frozen=True)
class _Counts:
    """What each item adds to the shares of a language.

    Attributes:
        ids: of the items.
        cells: cell -> part and whole of every item, see `glotlift.intervals.mean_shares`. *Shape:* (items,) each.
    """

    ids: list[str]
    cells: dict[Cell, tuple[np.ndarray, np.ndarray]]


def summarise_patching(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of the module's head, columns as `SUMMARY_COLUMNS`.

    Args:
        frame: rows of `patch_language`, of any number of variants and languages.
        seed: of the bootstrap.
    """
    parts = [pd.DataFrame(columns=list(SUMMARY_COLUMNS))][: len(frame) == 0]
    for variant, of_variant in frame.groupby("variant", sort=False):
        counts = {str(code): _counts(rows) for code, rows in of_variant.groupby("language", sort=False)}
        foreign = {code: each for code, each in counts.items() if code != "en"}
        groups = {code: {code: each} for code, each in counts.items()} | ({"all": foreign} if len(foreign) > 1 else {})
        parts += [_shares(group, seed).assign(variant=variant, language=name) for name, group in groups.items()]
    return pd.concat(parts, ignore_index=True).loc[:, list(SUMMARY_COLUMNS)]


def _counts(rows: pd.DataFrame) -> _Counts:
    """Return the counts of the rows of a language."""
    ids = list(dict.fromkeys(rows["id"]))
    cells: dict[Cell, tuple[np.ndarray, np.ndarray]] = {}
    for site, source, layer in rows[["site", "source", "layer"]].drop_duplicates().to_numpy().tolist():
        is_patch = (rows["site"] == site) & (rows["source"] == source) & (rows["layer"] == layer)
        patch = rows[is_patch].set_index("id").loc[ids]
        labels, scores = scores_in(patch, "sequence")
        _, unpatched = scores_in(patch, "unpatched")
        gold = np.array([labels.index(name) for name in patch["gold"]])
        for calibration in CALIBRATIONS:
            before, after = (right_answers(each, gold, calibration).astype(float) for each in (unpatched, scores))
            found = {
                "repaired": ((1 - before) * after, 1 - before),
                "broken": (before * (1 - after), before),
                "accuracy": (after, np.ones_like(after)),
                "accuracy_change": (after - before, np.ones_like(after)),
            }
            cells |= {(site, source, layer, calibration, measure): each for measure, each in found.items()}
    for (site, source, layer, calibration, measure), (part, whole) in list(cells.items()):
        control = (site, "other", layer, calibration, measure)
        if source == "same" and measure != "accuracy" and control in cells:
            cells[site, "difference", layer, calibration, measure] = (part - cells[control][0], whole)
    return _Counts(ids, cells)


def _shares(group: Mapping[str, _Counts], seed: int) -> pd.DataFrame:
    """Return the shares of one or several languages, and their intervals."""
    ids = list(dict.fromkeys(name for each in group.values() for name in each.ids))
    place = {name: k for k, name in enumerate(ids)}
    cells = list(dict.fromkeys(cell for each in group.values() for cell in each.cells))
    tables = np.zeros((2, len(ids), len(group), len(cells)), np.float32)  # parts, wholes
    for (language, counts), (k, cell) in product(enumerate(group.values()), enumerate(cells)):
        if cell in counts.cells:
            tables[:, [place[name] for name in counts.ids], language, k] = counts.cells[cell]
    is_signed = np.array([source == "difference" or measure == "accuracy_change" for _, source, _, _, measure in cells])
    found = np.empty((3, len(cells)))
    for chosen, ends in ((is_signed, DIFFERENCE), (~is_signed, SHARE)):
        if chosen.any():
            parts, wholes = tables[..., chosen]
            found[:, chosen] = mean_shares(parts, wholes, ends, seed=seed)
    frame = pd.DataFrame.from_records(cells, columns=["site", "source", "layer", "calibration", "measure"])
    counted = tables[1].sum((0, 1)).astype(int)
    return frame.assign(value=found[0], low=found[1], high=found[2], n=counted)
