"""Paired statistics between two evaluations of the same items.

Enters: two prediction folders (base and tuned, or any two). Leaves: per language the change in accuracy with its
interval and p-value, and roll-ups over groups of languages.

Per language: exact McNemar test, paired bootstrap interval, Holm's correction over the languages. Over languages: a
bootstrap that draws *source items* and takes each with all its translations, since items are parallel across languages
and errors on one item go together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from glotlift.errors import DataError
from glotlift.evaluation.metrics import LEVEL

N_RESAMPLES = 10_000


@dataclass(frozen=True)
class Change:
    """The paired change of accuracy from A to B, in one language or over a group.

    Attributes:
        name: language code, or the group's name.
        n: number of items (paired); over a group, of source items.
        a: accuracy of A, 0 to 1.
        b: accuracy of B, 0 to 1.
        change: b - a.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        p: exact McNemar p-value; None over a group.
        p_holm: the same, corrected over all languages by Holm's method; None over a group.
        languages: number of languages.
    """

    name: str
    n: int
    a: float
    b: float
    change: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None
    languages: int = 1

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def correctness(a: pd.DataFrame, b: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return which items A and B have right, paired by id.

    Returns:
        A frame indexed by id with boolean columns `a` and `b`.

    Raises:
        DataError: the two do not hold the same items with the same gold labels.
    """
    left, right = a.set_index("id"), b.set_index("id")
    if set(left.index) != set(right.index):
        only = sorted(set(left.index) ^ set(right.index))
        raise DataError(
            f"{where}: {len(only)} items are in one evaluation only (such as {only[0]!r}), expected the same items"
        )
    right = right.loc[left.index]
    if (differs := left["gold"] != right["gold"]).any():
        raise DataError(f"{where}: item {left.index[differs][0]!r} has two gold labels, expected the same data in both")
    return pd.DataFrame({"a": left["predicted"] == left["gold"], "b": right["predicted"] == right["gold"]})


def mcnemar(pairs: pd.DataFrame) -> float:
    """Return the exact two-sided McNemar p-value of columns `a` and `b` (booleans)."""
    a, b = pairs["a"].to_numpy(bool), pairs["b"].to_numpy(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_b, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down method (Holm 1979)."""
    order = np.argsort(p_values)
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def compare_languages(paired: Mapping[str, pd.DataFrame], *, seed: int = 0) -> list[Change]:
    """Return the change of every language.

    Args:
        paired: language -> frame of `correctness`.
        seed: of the bootstrap.
    """
    p_values = [mcnemar(pairs) for pairs in paired.values()]
    changes = []
    for (code, pairs), p, p_holm in zip(paired.items(), p_values, holm(p_values), strict=True):
        table = np.stack([pairs["a"], pairs["b"]], 1)[:, None].astype(float)
        changes.append(_change(code, table, seed, p=p, p_holm=p_holm))
    return changes


def compare_group(name: str, paired: Mapping[str, pd.DataFrame], *, seed: int = 0) -> Change:
    """Return the change of the mean accuracy over several languages, clustered by source item.

    Args:
        name: of the group.
        paired: language -> frame of `correctness`.
        seed: of the bootstrap.
    """
    ids = list(dict.fromkeys(name for pairs in paired.values() for name in pairs.index))
    table = np.stack([pairs.reindex(ids)[["a", "b"]].to_numpy(float) for pairs in paired.values()], 1)
    return _change(name, table, seed)


def _change(name: str, table: np.ndarray, seed: int, p: float | None = None, p_holm: float | None = None) -> Change:
    """Return a change with its interval.

    Args:
        name: of the language or group.
        table: *Shape:* (source items, languages, 2); 1 right, 0 wrong, NaN where a language lacks the item.
        seed: of the bootstrap.
        p: see `Change`.
        p_holm: see `Change`.
    """
    n_items, n_languages, _ = table.shape
    there = (~np.isnan(table[..., 0])).astype(float)
    right = np.nan_to_num(table)
    a, b = _mean_accuracies(right.sum(0), there.sum(0))
    drawn = _resamples(n_items, seed)
    counts = (drawn @ there.astype(np.float32)).astype(float)  # (resamples, languages)
    gains = (drawn @ (right[..., 1] - right[..., 0]).astype(np.float32)).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        changes = np.nanmean(np.where(counts > 0, gains / counts, np.nan), axis=1)
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Change(name, n_items, a, b, b - a, float(low), float(high), p, p_holm, n_languages)


@lru_cache(maxsize=1)
def _resamples(n_items: int, seed: int) -> np.ndarray:
    """Return how often each bootstrap resample draws each item; languages with as many items share the draws.

    Fp32 holds these counts and their sums exactly. *Shape:* (resamples, items).
    """
    generator, uniform = np.random.default_rng(seed), np.full(n_items, 1 / n_items)
    drawn = np.empty((N_RESAMPLES, n_items), np.float32)
    for row in drawn:
        row[:] = generator.multinomial(n_items, uniform)
    return drawn


def _mean_accuracies(right: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """*Shapes:* (languages, 2) and (languages,) -> mean over languages of A and of B."""
    accuracies = right / there[:, None]
    return float(accuracies[:, 0].mean()), float(accuracies[:, 1].mean())
