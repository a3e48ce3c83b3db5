"""Paired statistics between two evaluations of the same items.

Enters: two prediction folders (base and tuned, or any two). Leaves: per language the change of a measure with its
interval and p-value, and roll-ups over groups of languages.

    accuracy            exact McNemar test, paired bootstrap interval
    AUROC               the paired test and interval of DeLong et al. 1988
    calibration error   paired bootstrap, test and interval

A measured calibration error holds the noise of its items, the more of it the better calibrated the model is, and a
resample holds that twice. So its intervals are of the error measured on this many items, and cautious.

Per language p-values are corrected over the languages by Holm's method. Over languages, *source items* are drawn, each
with all its translations, since items are parallel across languages and errors on one item go together. What batch
calibration takes off is held fixed while items are drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from glotlift.errors import DataError, one_of
from glotlift.evaluation.metrics import LEVEL, auroc_influence, calibration_gaps, expected_calibration_error

N_RESAMPLES = 10_000

FEWEST_ITEMS = 6
"""With fewer items no exact paired test reaches 5 %: its smallest p-value is 2^(1 - n)."""


@dataclass(frozen=True)
class Change:
    """The paired change of a measure from A to B, in one language or over a group.

    Attributes:
        name: language code, or the group's name.
        n: number of items (paired); over a group, of source items.
        a: the measure of A, 0 to 1.
        b: the measure of B, 0 to 1.
        change: b - a.
        low: lower end of its 95 % interval.
        high: upper end.
        p: p-value of the measure's test; None over a group.
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
        """Whether the interval leaves out zero, and stands on `FEWEST_ITEMS` at least."""
        return self.n >= FEWEST_ITEMS and (self.low > 0 or self.high < 0)


def correctness(a: pd.DataFrame, b: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return which items A and B have right, paired by id.

    Args:
        a: `id`, `gold` and `predicted` of every item.
        b: the same of the other evaluation.
        where: language and source, for messages.

    Returns:
        A frame indexed by id with boolean columns `a` and `b`.

    Raises:
        DataError: a column is missing, or the two do not hold the same items with the same gold labels.
    """
    for name, frame in (("A", a), ("B", b)):
        if lacking := [column for column in ("id", "gold", "predicted") if column not in frame]:
            has = ", ".join(map(str, frame.columns))
            raise DataError(f"{where}: got no {one_of(lacking)} in {name}, which has {has}, expected predictions")
    left, right = a.set_index("id"), b.set_index("id")
    only = {"A": left.index.difference(right.index, sort=False), "B": right.index.difference(left.index, sort=False)}
    if any(map(len, only.values())):
        got = " and ".join(f"{_ids(list(names))} in {name} only" for name, names in only.items() if len(names))
        raise DataError(f"{where}: got {got}, expected the same items in both")
    right = right.loc[left.index]
    if (differs := left["gold"] != right["gold"]).any():
        raise DataError(f"{where}: item {left.index[differs][0]!r} has two gold labels, expected the same data in both")
    return pd.DataFrame({"a": left["predicted"] == left["gold"], "b": right["predicted"] == right["gold"]})


def _ids(names: Sequence[str]) -> str:
    """Return `1 item ('s04')`, or how many there are with the first three."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} item{'s' * (len(names) > 1)} ({', '.join(map(repr, names[:3]))}{more})"


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


def group_mean(right: Mapping[str, pd.Series]) -> tuple[float, float, float]:
    """Return the mean over languages of an accuracy, and its interval clustered by source item.

    Args:
        right: language -> whether each item is right, indexed by id.
    """
    change = compare_group(
        "", {code: pd.DataFrame({"a": 0.0, "b": each.astype(float)}) for code, each in right.items()}
    )
    return change.b, change.low, change.high


@dataclass(frozen=True)
class Paired:
    """The scores of one language in A and B, item by item.

    Attributes:
        ids: of the items.
        gold: their labels. *Shape:* (items,).
        labels: label ids, in the order of the columns.
        a: log-probabilities of A, renormalised over the labels. *Shape:* (items, labels).
        b: those of B.
    """

    ids: Sequence[str]
    gold: np.ndarray
    labels: Sequence[str]
    a: np.ndarray
    b: np.ndarray


def compare_auroc(paired: Mapping[str, Paired]) -> list[Change]:
    """Return the change of AUROC in every language where it and its variance are defined."""
    found = {code: areas for code, pair in paired.items() if (areas := _areas(pair)) is not None}
    tested = [_area_change(code, [areas]) for code, areas in found.items()]
    p_values = [_two_sided(change) for change in tested]
    return [replace(change, p=p, p_holm=p_holm)
            for change, p, p_holm in zip(tested, p_values, holm(p_values), strict=True)]  # fmt: skip


def group_auroc(name: str, paired: Mapping[str, Paired]) -> Change | None:
    """Return the change of the mean AUROC over those of several languages where it and its variance are defined.

    None where that is in none.
    """
    found = [areas for pair in paired.values() if (areas := _areas(pair)) is not None]
    return _area_change(name, found) if found else None


Areas = tuple[float, float, pd.Series]
"""AUROC of A, of B, and how much each item moves their difference."""


def _areas(pair: Paired) -> Areas | None:
    a, b = (auroc_influence(scores, pair.gold, pair.labels) for scores in (pair.a, pair.b))
    if a is None or b is None or np.isnan(b[1]).any():
        return None
    return a[0], b[0], pd.Series(b[1] - a[1], index=list(pair.ids))


def _area_change(name: str, areas: Sequence[Areas]) -> Change:
    influence = pd.concat([moved for _, _, moved in areas], axis=1).fillna(0).mean(axis=1).to_numpy()
    a, b = float(np.mean([each[0] for each in areas])), float(np.mean([each[1] for each in areas]))
    half = float(norm.ppf((1 + LEVEL) / 2) * np.sqrt((influence**2).sum()))
    return Change(name, len(influence), a, b, b - a, b - a - half, b - a + half, languages=len(areas))


def _two_sided(change: Change) -> float:
    half = (change.high - change.low) / 2
    z = abs(change.change) / half * norm.ppf((1 + LEVEL) / 2) if half > 0 else float("inf") * bool(change.change)
    return max(float(2 * norm.sf(0 if np.isnan(z) else z)), _smallest_p(change.n))


def _smallest_p(n_items: int) -> float:
    """Return the smallest p-value of an exact test that exchanges A and B item by item, as McNemar's does."""
    return 2.0 ** (1 - n_items)


def compare_ece(paired: Mapping[str, Paired], *, seed: int = 0) -> list[Change]:
    """Return the change of the expected calibration error in every language."""
    drawn = [_ece_change(code, {code: pair}, seed) for code, pair in paired.items()]
    p_values = [p for _, p in drawn]
    return [replace(change, p=p, p_holm=p_holm)
            for (change, p), p_holm in zip(drawn, holm(p_values), strict=True)]  # fmt: skip


def group_ece(name: str, paired: Mapping[str, Paired], *, seed: int = 0) -> Change:
    """Return the change of the mean expected calibration error over several languages."""
    return _ece_change(name, paired, seed)[0]


def _ece_change(name: str, paired: Mapping[str, Paired], seed: int) -> tuple[Change, float]:
    ids = list(dict.fromkeys(name for pair in paired.values() for name in pair.ids))
    position = {name: index for index, name in enumerate(ids)}
    drawn = _resamples(len(ids), seed)
    measured, resampled = [], []
    for pair in paired.values():
        rows = [position[name] for name in pair.ids]
        gaps = [calibration_gaps(scores, pair.gold, pair.labels) for scores in (pair.a, pair.b)]
        measured.append([expected_calibration_error(each) for each in gaps])
        counts = np.maximum(drawn @ _at(rows, np.ones((len(rows), 1)), len(ids)), 1)[:, 0]
        errors = [np.abs(drawn @ _at(rows, each, len(ids))).sum(1) / counts for each in gaps]
        resampled.append(errors[1] - errors[0])
    changes = np.mean(resampled, axis=0)
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    a, b = np.mean(measured, axis=0)
    tail = min((changes <= 0).mean(), (changes >= 0).mean())
    p = float(min(1.0, max(2 * tail, 2 / len(changes), _smallest_p(len(ids)))))
    return Change(name, len(ids), float(a), float(b), float(b - a), float(low), float(high), languages=len(paired)), p


def _at(rows: Sequence[int], values: np.ndarray, n_items: int) -> np.ndarray:
    """Return values at the rows of their items, zeros elsewhere, in fp32. *Shape:* (items, columns)."""
    table = np.zeros((n_items, values.shape[1]), np.float32)
    table[rows] = values
    return table


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
    drawn = _resamples(len(values), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample, or all items, may have none right
        means = np.nanmean(_ratio(drawn @ both.astype(np.float32), drawn @ either.astype(np.float32)), axis=1)
        low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        mean = np.nanmean(share)
    if np.isnan(mean):
        return None
    pairs: dict[str, dict[str, float | None]] = {code: {} for code in table}
    for i, j, value in zip(first, second, share, strict=True):
        known = None if np.isnan(value) else float(value)
        pairs[table.columns[i]][table.columns[j]] = pairs[table.columns[j]][table.columns[i]] = known
    return Consistency(float(mean), float(low), float(high), pairs)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


@lru_cache(maxsize=1)
def _resamples(n_items: int, seed: int) -> np.ndarray:
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


def _mean_accuracies(right: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """*Shapes:* (languages, 2) and (languages,) -> mean over languages of A and of B."""
    accuracies = right / there[:, None]
    return float(accuracies[:, 0].mean()), float(accuracies[:, 1].mean())
