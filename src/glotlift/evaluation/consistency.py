"""Cross-language consistency: whether the same items are right in several languages.

Enters: which items are right, by language. Leaves: for every pair of languages the items right in both, as a share of
those right in either (Jaccard), and the mean over the pairs with its interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from glotlift.intervals import SHARE, bounds, resamples
from glotlift.measures import LEVEL


@dataclass(frozen=True)
class Consistency:
    """Whether the same items are right in several languages.

    Attributes:
        mean: mean over pairs of languages, 0 to 1; 1 where all languages have the same items right.
        low: lower end of its interval, clustered by source item.
        high: upper end.
        pairs: language -> language -> items right in both / items right in either, of those that both have; None where
            none is.
    """

    mean: float
    low: float
    high: float
    pairs: dict[str, dict[str, float | None]]


def consistency(right: Mapping[str, pd.Series], *, seed: int = 0) -> Consistency | None:
    """Return the cross-language consistency of an evaluation; None with fewer than two languages that share items.

    Args:
        right: language -> whether each item is right, indexed by id.
        seed: of the bootstrap.
    """
    if len(right) < 2:
        return None
    table = pd.concat({code: each.astype(float) for code, each in right.items()}, axis=1)
    values = table.to_numpy()  # NaN where a language lacks the item
    first, second = np.triu_indices(values.shape[1], k=1)
    both = np.nan_to_num(values[:, first] * values[:, second])
    either = np.nan_to_num(np.maximum(values[:, first], values[:, second]))
    share = _ratio(both.sum(0), either.sum(0))
    drawn = resamples(len(values), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample, or all items, may have none right
        means = np.nanmean(_ratio(drawn @ both.astype(np.float32), drawn @ either.astype(np.float32)), axis=1)
        low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        mean = np.nanmean(share)
    if np.isnan(mean):
        return None
    whole = either.sum(0)
    low, high = bounds(float(low), float(high), int(whole[whole > 0].min()), SHARE)
    pairs: dict[str, dict[str, float | None]] = {code: {} for code in table}
    for i, j, value in zip(first, second, share, strict=True):
        known = None if np.isnan(value) else float(value)
        pairs[table.columns[i]][table.columns[j]] = pairs[table.columns[j]][table.columns[i]] = known
    return Consistency(float(mean), low, high, pairs)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
