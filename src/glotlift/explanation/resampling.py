"""Bootstrap and shuffles of parallel items: where the intervals and the nulls of the geometry come from.

Enters: a number of items and a seed. Leaves: how often each resample draws each item, permutations of the items, and
what 95 % of the draws of a measure lie between.

An item is drawn together with its translations, in every language and variant at once: items are what was sampled,
languages and variants were not. So the draws of base and tuned, and of two languages, are paired, and the difference of
two measures has an interval of its own.
"""

from __future__ import annotations

import numpy as np

from glotlift.intervals import NO_SPREAD, exact_bounds
from glotlift.measures import LEVEL

N_RESAMPLES = 1000
"""Of the bootstrap; the ends of a 95 % interval are then known to a tenth of its width."""

N_PERMUTATIONS = 1000
"""Draws of a null."""

MIN_ITEMS = 6
"""With fewer there is no measure: a correlation with two lengths held fixed had less than two degrees of freedom."""


def item_counts(n_items: int, n_resamples: int, seed: int) -> np.ndarray:
    """Return how often each bootstrap resample draws each item. *Shape:* (resamples, items), each row sums to items."""
    if n_items == 0:
        return np.zeros((n_resamples, 0))
    return np.random.default_rng(seed).multinomial(n_items, np.full(n_items, 1 / n_items), n_resamples).astype(float)


def item_orders(n_items: int, n_permutations: int, seed: int) -> np.ndarray:
    """Return permutations of the items. *Shape:* (permutations, items)."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n_items), (n_permutations, 1)), axis=1)


def interval(draws: np.ndarray, *, ends: tuple[float, float] | None = None, n_items: int = 0) -> np.ndarray:
    """Return the ends of the central 95 % of the draws.

    Args:
        draws: an undefined one (NaN) counts as beyond both ends. *Shape:* (draws, ...).
        ends: of a share, or of a difference of shares: the least and the most that the value of an item can be. Where
            no item varies, the bootstrap has no width and says nothing of the items that were not drawn; the exact
            bounds of `glotlift.intervals` take its place. None where a measure is no mean over items.
        n_items: that were drawn, with `ends`.

    Returns:
        Low and high, NaN where 2.5 % of the draws or more are undefined. *Shape:* (2, ...).
    """
    tail = (1 - LEVEL) / 2
    if (undefined := np.isnan(draws)).any():
        low = np.quantile(np.where(undefined, -np.inf, draws), tail, axis=0, method="lower")
        high = np.quantile(np.where(undefined, np.inf, draws), 1 - tail, axis=0, method="higher")
        found = np.where(np.isfinite(low) & np.isfinite(high), (low, high), np.nan)
    else:
        found = np.quantile(draws, (tail, 1 - tail), axis=0)
    if ends is None:
        return found
    exact = exact_bounds(found.mean(0), max(n_items, 1), ends)
    return np.where(found[1] - found[0] <= NO_SPREAD, exact, found)


def null_share(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return the two-sided p of values under draws of a null: the share at least as far from zero.

    One is added to hits and draws (Phipson and Smyth 2010). NaN where the value is undefined.

    Args:
        value: *Shape:* (...).
        null: *Shape:* (draws, ...); undefined draws do not count.
    """
    hits = (np.abs(null) >= np.abs(value) - 1e-12).sum(0)
    return np.where(np.isfinite(value), (hits + 1) / (np.isfinite(null).sum(0) + 1), np.nan)
