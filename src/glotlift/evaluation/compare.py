"""Paired statistics between two evaluations of the same items.

Enters: what two evaluations (base and tuned, or any two) say of the same items. Leaves: per language the change of a
measure with its interval and p-value, and roll-ups over groups of languages.

    accuracy            exact McNemar test, paired bootstrap interval
    AUROC               the paired test and interval of DeLong et al. 1988
    calibration error   paired bootstrap, test and interval

A measured calibration error holds the noise of its items, the more of it the better calibrated the model is, and a
resample holds that twice. So its intervals are of the error measured on this many items, and cautious.

Per language p-values are corrected over the languages by Holm's method. Over languages, *source items* are drawn, each
with all its translations, since items are parallel across languages and errors on one item go together. What batch
calibration takes off is held fixed while items are drawn. Where no item moves the measure, resamples and variances say
nothing, and the interval is `intervals.bounds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from glotlift.evaluation.metrics import calibration_gaps, expected_calibration_error
from glotlift.evaluation.pairing import Paired
from glotlift.intervals import DIFFERENCE, NO_SPREAD, SHARE, bounds, resamples
from glotlift.measures import LEVEL, auroc_influence

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
        moved: whether any item changed what it adds; where none did, the ends are exact bounds, see
            `glotlift.intervals`.
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
    moved: bool = True

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero, and stands on `FEWEST_ITEMS` at least."""
        return self.n >= FEWEST_ITEMS and (self.low > 0 or self.high < 0)


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


def compare_group(
    name: str, paired: Mapping[str, pd.DataFrame], *, seed: int = 0, ends: tuple[float, float] = DIFFERENCE
) -> Change:
    """Return the change of the mean accuracy over several languages, clustered by source item.

    Args:
        name: of the group.
        paired: language -> frame of `correctness`.
        seed: of the bootstrap.
        ends: the least and the most that an item's change can be.
    """
    ids = list(dict.fromkeys(name for pairs in paired.values() for name in pairs.index))
    table = np.stack([pairs.reindex(ids)[["a", "b"]].to_numpy(float) for pairs in paired.values()], 1)
    return _change(name, table, seed, ends=ends)


def _change(
    name: str,
    table: np.ndarray,
    seed: int,
    p: float | None = None,
    p_holm: float | None = None,
    ends: tuple[float, float] = DIFFERENCE,
) -> Change:
    """Return a change with its interval.

    Args:
        name: of the language or group.
        table: *Shape:* (source items, languages, 2); 1 right, 0 wrong, NaN where a language lacks the item.
        seed: of the bootstrap.
        p: see `Change`.
        p_holm: see `Change`.
        ends: see `compare_group`.
    """
    n_items, n_languages, _ = table.shape
    there = (~np.isnan(table[..., 0])).astype(float)
    right = np.nan_to_num(table)
    a, b = _mean_accuracies(right.sum(0), there.sum(0))
    drawn = resamples(n_items, seed)
    counts = (drawn @ there.astype(np.float32)).astype(float)  # (resamples, languages)
    gains = (drawn @ (right[..., 1] - right[..., 0]).astype(np.float32)).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        changes = np.nanmean(np.where(counts > 0, gains / counts, np.nan), axis=1)
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = bounds(float(low), float(high), int(there.sum(0).min()), ends)
    moved = bool((right[..., 0] != right[..., 1]).any())
    return Change(name, n_items, a, b, b - a, low, high, p, p_holm, n_languages, moved)


def group_mean(right: Mapping[str, pd.Series]) -> tuple[float, float, float]:
    """Return the mean over languages of an accuracy, and its interval clustered by source item.

    Args:
        right: language -> whether each item is right, indexed by id.
    """
    tables = {code: pd.DataFrame({"a": 0.0, "b": each.astype(float)}) for code, each in right.items()}
    change = compare_group("", tables, ends=SHARE)
    return change.b, change.low, change.high


def compare_auroc(paired: Mapping[str, Paired]) -> list[Change]:
    """Return the change of AUROC in every language where it and its variance are defined."""
    found = {code: areas for code, pair in paired.items() if (areas := areas_of(pair)) is not None}
    tested = [_area_change(code, [areas]) for code, areas in found.items()]
    p_values = [_two_sided(change, error) for change, error in tested]
    return [replace(change, p=p, p_holm=p_holm)
            for (change, _), p, p_holm in zip(tested, p_values, holm(p_values), strict=True)]  # fmt: skip


def group_auroc(name: str, paired: Mapping[str, Paired]) -> Change | None:
    """Return the change of the mean AUROC over those of several languages where it and its variance are defined.

    None where that is in none.
    """
    found = [areas for pair in paired.values() if (areas := areas_of(pair)) is not None]
    return _area_change(name, found)[0] if found else None


@dataclass(frozen=True)
class Areas:
    """AUROC of A and B.

    Attributes:
        a: of A.
        b: of B.
        influence: how much each item moves their difference, indexed by id; the squares add up to its variance.
        fewest: items of the label that has the fewest.
    """

    a: float
    b: float
    influence: pd.Series
    fewest: int

    @property
    def moved(self) -> bool:
        """Whether any item changed what it adds."""
        return abs(self.b - self.a) > NO_SPREAD or bool((self.influence.abs() > NO_SPREAD).any())


def areas_of(pair: Paired) -> Areas | None:
    """Return AUROC of A and B, None where one or its variance is not defined."""
    a, b = (auroc_influence(scores, pair.gold, pair.labels) for scores in (pair.a, pair.b))
    if a is None or b is None or np.isnan(b[1]).any():
        return None
    fewest = int(np.unique(pair.gold, return_counts=True)[1].min())
    return Areas(a[0], b[0], pd.Series(b[1] - a[1], index=list(pair.ids)), fewest)


def _area_change(name: str, areas: Sequence[Areas]) -> tuple[Change, float]:
    """Return the change of the mean area, and its standard error.

    Without variance its bounds are those of as many pairs of a label's item and another as no item is in twice.
    """
    influence = pd.concat([each.influence for each in areas], axis=1).fillna(0).mean(axis=1).to_numpy()
    a, b = float(np.mean([each.a for each in areas])), float(np.mean([each.b for each in areas]))
    error = float(np.sqrt((influence**2).sum()))
    half = float(norm.ppf((1 + LEVEL) / 2)) * error
    low, high = bounds(b - a - half, b - a + half, min(each.fewest for each in areas), DIFFERENCE)
    moved = any(each.moved for each in areas)  # in one language; what two add may cancel out
    return Change(name, len(influence), a, b, b - a, low, high, languages=len(areas), moved=moved), error


def _two_sided(change: Change, error: float) -> float:
    moved = abs(change.change)
    z = moved / error if error > NO_SPREAD else float("inf") * bool(moved > NO_SPREAD)
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
    drawn = resamples(len(ids), seed)
    measured, resampled, moved = [], [], False
    for pair in paired.values():
        rows = [position[name] for name in pair.ids]
        gaps = [calibration_gaps(scores, pair.gold, pair.labels) for scores in (pair.a, pair.b)]
        measured.append([expected_calibration_error(each) for each in gaps])
        moved |= bool((np.abs(gaps[1] - gaps[0]) > NO_SPREAD).any())
        counts = np.maximum(drawn @ _at(rows, np.ones((len(rows), 1)), len(ids)), 1)[:, 0]
        errors = [np.abs(drawn @ _at(rows, each, len(ids))).sum(1) / counts for each in gaps]
        resampled.append(errors[1] - errors[0])
    changes = np.mean(resampled, axis=0)
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = bounds(float(low), float(high), min(len(pair.ids) for pair in paired.values()), DIFFERENCE)
    a, b = np.mean(measured, axis=0)
    tail = min((changes <= 0).mean(), (changes >= 0).mean())
    p = float(min(1.0, max(2 * tail, 2 / len(changes), _smallest_p(len(ids)))))
    return Change(name, len(ids), float(a), float(b), float(b - a), low, high, languages=len(paired), moved=moved), p


def _at(rows: Sequence[int], values: np.ndarray, n_items: int) -> np.ndarray:
    """Return values at the rows of their items, zeros elsewhere, in fp32. *Shape:* (items, columns)."""
    table = np.zeros((n_items, values.shape[1]), np.float32)
    table[rows] = values
    return table


def _mean_accuracies(right: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """*Shapes:* (languages, 2) and (languages,) -> mean over languages of A and of B."""
    accuracies = right / there[:, None]
    return float(accuracies[:, 0].mean()), float(accuracies[:, 1].mean())
