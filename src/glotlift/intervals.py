"""Where the bounds of an interval come from: bootstrap resamples of source items, exact bounds where nothing varies.

Enters: numbers of items, and what was found on them. Leaves: how often each resample draws each item, bounds, and
shares with theirs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np

from glotlift.measures import LEVEL

T = TypeVar("T", float, np.ndarray)

N_RESAMPLES = 10_000

NO_SPREAD = 1e-9
"""A width that is none but for rounding."""

SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""The least and the most that a share, and a difference of two, can be."""


def bounds(low: float, high: float, n_items: int, ends: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds of an interval, exact ones in place of those that a bootstrap has where no item varies.

    When all of n items have the same value, at least a share 0.025^(1/n) of all items has it, at the level of a
    two-sided 95 % interval (Clopper and Pearson 1934, n of n); the others may have any value there is. So an accuracy
    of 100 % on one item is known to be 2.5 % at least, and one on a hundred items 96.4 %; a change from all wrong to
    all right is clear of zero from six items on, as it is under McNemar's exact test.

    Args:
        low: as the bootstrap has it.
        high: likewise.
        n_items: that were drawn; of several languages, the fewest that one of them has, since an item and its
            translations count once.
        ends: the least and the most that an item's value can be.
    """
    if high - low > NO_SPREAD:
        return low, high
    first, last = exact_bounds((low + high) / 2, n_items, ends)
    return first, last


def exact_bounds(value: T, n_items: int, ends: tuple[float, float]) -> tuple[T, T]:
    """Return the bounds of what all items have alike, see `bounds`.

    Args:
        value: that each item has, a number or an array of several measures' values.
        n_items: that were drawn, at least one.
        ends: the least and the most that an item's value can be.
    """
    share = ((1 - LEVEL) / 2) ** (1 / n_items)
    low, high = (share * value + (1 - share) * end for end in ends)
    return low, high


@lru_cache(maxsize=1)
def resamples(n_items: int, seed: int) -> np.ndarray:
    """Return how often each bootstrap resample draws each item; languages with as many items share the draws.

    Fp32 holds these counts and their sums exactly. *Shape:* (resamples, items).
    """
    generator = np.random.default_rng(seed)
    drawn = np.empty((N_RESAMPLES, n_items), np.float32)
    for rows in np.array_split(
        drawn, max(1, N_RESAMPLES // 100)
    ):  # some at a time: a loop over all takes longer than the rest
        items = generator.integers(n_items, size=rows.shape) + np.arange(len(rows))[:, None] * n_items
        rows[:] = np.bincount(items.ravel(), minlength=rows.size).reshape(rows.shape)
    return drawn


def mean_shares(
    parts: np.ndarray, wholes: np.ndarray, ends: tuple[float, float], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shares, means over languages, and the bounds of their intervals by a bootstrap over source items.

    A language's share is the sum of the parts over the sum of the wholes of the items that were drawn; a language in
    which no whole was drawn is no part of the mean.

    Args:
        parts: what each item adds. *Shape:* (items, languages, cells), each cell a share of its own.
        wholes: what it is a share of: 1 for an item that counts, else 0. *Shape:* as `parts`.
        ends: the least and the most that an item's part can be.
        seed: of the bootstrap.

    Returns:
        Three arrays, *shape* (cells,); NaN where no item counts.
    """
    n_items, n_languages, n_cells = parts.shape
    drawn = np.concatenate([np.ones((1, n_items), np.float32), resamples(n_items, seed)])  # all items first
    total, present = np.zeros((len(drawn), n_cells)), np.zeros((len(drawn), n_cells))
    for language in range(n_languages):
        counts = drawn @ wholes[:, language].astype(np.float32)
        sums = drawn @ parts[:, language].astype(np.float32)
        total += np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        present += counts > 0
    means = np.divide(total, present, out=np.full_like(total, np.nan), where=present > 0)
    found = np.full((3, n_cells), np.nan)
    of_language = wholes.sum(0)
    for cell in np.flatnonzero(present[0]):
        kept = means[1:, cell][present[1:, cell] > 0]
        low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        counted = of_language[:, cell]
        found[:, cell] = means[0, cell], *bounds(float(low), float(high), int(counted[counted > 0].min()), ends)
    return found[0], found[1], found[2]
