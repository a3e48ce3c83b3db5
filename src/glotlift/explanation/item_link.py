"""Do the items that tuning puts right move differently inside from those that it does not?

Enters: which items base and tuned have right in every language (`glotlift.explanation.outcomes`), and a quantity of
every item: how much nearer its state comes to its English translation (`movement`), how many layers earlier it crosses
over, or any other. Leaves a frame:

    quantity, layer, language, calibration, n_flipped, n_stayed, mean_flipped, mean_stayed, value, low, high, p

`calibration` is that by which items are right: without any (`none`), a shift of the preference for a label flips items
as well as what tells them apart; after `batch` calibration only the latter does.

Only items that base has wrong are looked at: `flipped` are right when tuned, `stayed` are still wrong, and `value` is
the difference of their means. Items that base has right would compare easy items with hard ones. The language `all`
puts the languages together: differences within each language, weighted by n_flipped n_stayed / (n_flipped + n_stayed),
so that a language in which all items move and many flip makes no link by itself.

An item and its translations may flip together and move together, so they count as one: the interval is a bootstrap over
items with all their languages, and `p` flips the signs of what each item with all its translations adds to the
difference (two-sided; Hemerik et al. 2020, arXiv 1909.03796). Over many layers one p in twenty is below 0.05 by chance;
`movement` has a mean over layers, which is the one to test. A link is no cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from glotlift.explanation.lens_summary import crossover, read_lens
from glotlift.explanation.resampling import N_RESAMPLES, item_counts
from glotlift.explanation.similarity import unit
from glotlift.explanation.states import States, parallel, pivot_of
from glotlift.measures import LEVEL

N_SIGN_FLIPS = 10_000

LINK_COLUMNS = [
    *("quantity", "layer", "language", "calibration", "n_flipped", "n_stayed"),
    *("mean_flipped", "mean_stayed", "value", "low", "high", "p"),
]

_MASSES = ["english_mass", "own_mass"]
"""Columns of a lens file between which an item crosses over."""

_MIN_GROUP = 3
"""Items of each kind; with fewer there is neither interval nor p."""


def movement(states: States) -> pd.DataFrame:
    """Return how much nearer every item comes to its translation in the pivot language by tuning.

    That is the cosine with its translation, when tuned less in base, after the mean of each language was taken out: a
    step that all items of a language make together counts for nothing.

    Args:
        states: of `base` and `tuned`.

    Returns:
        `quantity`, `layer`, `language`, `id`, `value` (-2 to 2) of every language but the pivot: `towards_pivot` of
        each layer, and `towards_pivot_mean`, the mean over layers, which has no layer (NA).
    """
    items = parallel(states)
    pivot = items.languages.index(pivot_of(items.languages))
    near = {variant: np.empty((items.n_states, len(items.languages), len(items.ids))) for variant in ("base", "tuned")}
    for variant, table in near.items():
        for layer in range(items.n_states):
            of_layer = items.layer(variant, layer)
            units = unit(of_layer - of_layer.mean(1, keepdims=True))
            table[layer] = (units * units[pivot]).sum(-1)
    change = near["tuned"] - near["base"]
    parts = []
    for place, code in enumerate(items.languages):
        if place == pivot:
            continue
        of_layers = [("towards_pivot", layer, change[layer, place]) for layer in range(items.n_states)]
        for quantity, layer, values in (*of_layers, ("towards_pivot_mean", pd.NA, change[:, place].mean(0))):
            rows = pd.DataFrame({"id": items.ids, "value": values})
            parts.append(rows.assign(quantity=quantity, layer=pd.array([layer] * len(rows), "Int64"), language=code))
    return pd.concat(parts, ignore_index=True).loc[:, ["quantity", "layer", "language", "id", "value"]]


def earlier_crossover(folder: Path, key: str, languages: Sequence[str]) -> pd.DataFrame:
    """Return how many layers earlier own words take over from English ones by tuning, an item.

    Args:
        folder: of a run, with the lens files of `base` and `tuned`.
        key: name of the test set in paths.
        languages: codes.

    Returns:
        `quantity` (`earlier_crossover`), `layer` (NA), `language`, `id`, `value` in layers, NaN for an item that does
        not cross over in both (see `glotlift.explanation.lens_summary.crossover`).
    """
    frame = read_lens(folder)
    parts = []
    frame = frame.loc[(frame["task"] == key) & frame["language"].isin(list(languages))]
    for code, of_language in frame.groupby("language", sort=False):
        at = {}
        for variant, part in of_language.groupby("variant"):
            wide = part.pivot(index="id", columns="layer", values=_MASSES)
            at[variant] = pd.Series(crossover(*(wide[mass].to_numpy(float) for mass in _MASSES)), wide.index)
        rows = (at["base"] - at["tuned"]).rename("value").rename_axis("id").reset_index()
        rows = rows.assign(quantity="earlier_crossover", layer=pd.array([pd.NA] * len(rows), "Int64"), language=code)
        parts.append(rows.loc[:, ["quantity", "layer", "language", "id", "value"]])
    return pd.concat(parts, ignore_index=True)


def item_link(
    outcomes: pd.DataFrame, quantities: pd.DataFrame, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Return how a quantity differs between items that flip from wrong to right and items that stay wrong.

    Args:
        outcomes: `calibration`, `language`, `id`, `base`, `tuned`: whether each variant has the item right.
        quantities: `quantity`, `layer` (NA where it belongs to none), `language`, `id`, `value`; an item without a
            value (NaN) is left out, and the n say so.
        seed: of resamples and signs.
        n_resamples: of the bootstrap over items.

    Returns:
        The frame of the module's head, one row a calibration, quantity, layer and language, and `all`. Interval and p
        are NaN with fewer than 3 items of a kind.
    """
    rows: list[dict[str, Any]] = []
    wrong = outcomes.loc[~outcomes["base"].astype(bool), ["calibration", "language", "id", "tuned"]]
    of_quantities = list(quantities.groupby(["quantity", "layer"], sort=False, dropna=False))
    for calibration, (key, part) in product(outcomes["calibration"].unique(), of_quantities):
        quantity, layer = cast(tuple[str, Any], key)
        codes = list(part["language"].unique())
        joined = part.dropna(subset="value").merge(wrong[wrong["calibration"] == calibration], on=["language", "id"])
        groups = _groups(joined, codes, seed, n_resamples)
        for name, chosen in [*((code, [place]) for place, code in enumerate(codes)), ("all", [*range(len(codes))])]:
            about = {"quantity": quantity, "layer": layer, "language": name, "calibration": calibration}
            rows.append(about | _row(groups, chosen, seed))
    return pd.DataFrame(rows, columns=LINK_COLUMNS).astype({"layer": "Int64"})


@dataclass(frozen=True)
class _Groups:
    """The two kinds of items of every language: first of all items, then of every resample.

    Attributes:
        n: items that flipped, and that stayed. *Shape:* (2, 1 + resamples, languages).
        means: of their values, NaN without items. *Shape:* same.
        scores: what each item adds to the difference of the means, times the language's weight.
            *Shape:* (items, languages).
    """

    n: np.ndarray
    means: np.ndarray
    scores: np.ndarray


def _groups(joined: pd.DataFrame, codes: list[str], seed: int, n_resamples: int) -> _Groups:
    """Sort the items that base has wrong; `joined` has `language`, `id`, `value` and `tuned`."""
    ids = sorted(joined["id"].unique())
    values, flips = (
        joined.pivot(index="id", columns="language", values=name).reindex(ids, columns=codes).to_numpy(float)
        for name in ("value", "tuned")
    )
    is_wrong = np.isfinite(values)
    values, kinds = np.where(is_wrong, values, 0.0), np.stack([flips == 1, flips == 0]).astype(float)
    counts = np.vstack([np.ones(len(ids)), item_counts(len(ids), n_resamples, seed)])
    n = counts @ kinds
    means = counts @ (kinds * values) / np.where(n > 0, n, np.nan)
    n_wrong = np.maximum(is_wrong.sum(0), 1)
    away, share = values - values.sum(0) / n_wrong, kinds[0].sum(0) / n_wrong
    return _Groups(n, means, is_wrong * away * (kinds[0] - share))


def _row(groups: _Groups, chosen: list[int], seed: int) -> dict[str, Any]:
    """Return the n, means, difference, interval and p of some languages together."""
    n_flipped, n_stayed = groups.n[..., chosen]
    weights = n_flipped * n_stayed / np.maximum(n_flipped + n_stayed, 1)
    total = np.where(weights.sum(1) > 0, weights.sum(1), np.nan)
    flipped, stayed = np.where(weights > 0, weights * groups.means[..., chosen], 0.0).sum(2) / total
    low = high = p = float("nan")
    if min(n_flipped[0].sum(), n_stayed[0].sum()) >= _MIN_GROUP and np.isfinite(total[0]):
        # a resample without items of both kinds says nothing of their difference
        tail = (1 - LEVEL) / 2
        low, high = np.nanquantile((flipped - stayed)[1:], (tail, 1 - tail)).tolist()
        p = _sign_flip_share(groups.scores[:, chosen].sum(1), seed)
    return {
        "n_flipped": int(n_flipped[0].sum()),
        "n_stayed": int(n_stayed[0].sum()),
        "mean_flipped": flipped[0],
        "mean_stayed": stayed[0],
        "value": flipped[0] - stayed[0],
        "low": low,
        "high": high,
        "p": p,
    }


def _sign_flip_share(scores: np.ndarray, seed: int) -> float:
    """Return how often the sum of the scores is as far from zero when their signs are drawn. *Shape:* (items,)."""
    signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), (N_SIGN_FLIPS, len(scores)))
    reached = np.abs(signs @ scores) >= abs(scores.sum()) - 1e-12
    return float((reached.sum() + 1) / (N_SIGN_FLIPS + 1))
