"""Where the bounds of an interval come from: bootstrap resamples of source items, exact bounds where nothing varies.

Enters: numbers of items, and what was found on them. Leaves: how often each resample draws each item, and bounds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from glotlift.measures import LEVEL

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
    share, value = ((1 - LEVEL) / 2) ** (1 / n_items), (low + high) / 2
    first, last = (share * value + (1 - share) * end for end in ends)
    return first, last


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
