"""What a recipe gains over its base, where it was run with several seeds.

Enters: predictions of base and tuned, a test set of every seed. Leaves: the gain of a measure as a mean over languages
and seeds, with an interval over items *and* seeds, and a test.

Items are those that the seeds share, each with all its translations; what an item adds to the gain is its mean over
languages and seeds. With `s_i` the standard error over items and `s_s` that over seeds (none from one seed alone),

    s^2 = s_i^2 + s_s^2

and the interval is Student's, with the degrees of freedom of Satterthwaite 1946 (n - 1 items, k - 1 seeds): few seeds
that differ make a wide interval. An item's own noise between seeds is in both terms, so it is counted on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from glotlift.evaluation.compare import areas_of
from glotlift.evaluation.predictions import Predictions
from glotlift.intervals import DIFFERENCE, NO_SPREAD, bounds
from glotlift.measures import LEVEL

MEASURES = ("auroc", "calibrated", "raw")
"""What a gain is told in: the area under the ROC curve, and accuracy under batch calibration and under none."""


@dataclass(frozen=True)
class SeedsGain:
    """The gain of a measure, a mean over languages and seeds.

    Attributes:
        measure: one of `MEASURES`.
        base: the measure of the base, 0 to 1.
        tuned: of the tuned models, a mean over seeds.
        change: tuned - base.
        low: lower end of its 95 % interval over items and seeds.
        high: upper end.
        p: two-sided.
        n: source items.
        languages: number of languages.
        seeds: number of seeds.
        moved: whether any item changed what it adds; where none did, the ends are exact bounds, see
            `glotlift.intervals`.
    """

    measure: str
    base: float
    tuned: float
    change: float
    low: float
    high: float
    p: float
    n: int
    languages: int
    seeds: int
    moved: bool = True


def seeds_gain(measure: str, by_seed: Sequence[Predictions], languages: Sequence[str]) -> SeedsGain | None:
    """Return the gain of a measure; None where it is defined in none of the languages.

    Args:
        measure: one of `MEASURES`.
        by_seed: the same test set of every seed, with base and tuned.
        languages: over which the mean is taken; at least one.
    """
    found = [_of_seed(measure, each, languages) for each in by_seed]
    if any(each is None for each in found):
        return None
    seeds = [each for each in found if each is not None]
    base, tuned = (float(np.mean([getattr(each, side) for each in seeds])) for side in ("base", "tuned"))
    parts = pd.concat([each.parts for each in seeds], axis=1).fillna(0.0).mean(axis=1).to_numpy()
    n_items, n_seeds = len(parts), len(seeds)
    of_items = float((parts**2).sum())
    gains = np.array([each.tuned - each.base for each in seeds])
    of_seeds = float(gains.var(ddof=1) / n_seeds) if n_seeds > 1 else 0.0
    change, error = tuned - base, float(np.sqrt(of_items + of_seeds))
    fewest = min(each.fewest for each in seeds)
    if error <= NO_SPREAD:
        low, high = bounds(change, change, fewest, DIFFERENCE)
        moved = any(each.moved for each in seeds)  # with one seed; what two add may cancel out
        p = 1.0 if abs(change) <= NO_SPREAD else 2.0 ** (1 - n_items)
        return SeedsGain(measure, base, tuned, change, low, high, p, n_items, len(languages), n_seeds, moved)
    weighed = of_items**2 / max(n_items - 1, 1) + (of_seeds**2 / (n_seeds - 1) if n_seeds > 1 else 0.0)
    freedom = (of_items + of_seeds) ** 2 / weighed
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * student.sf(abs(change) / error, freedom))
    return SeedsGain(measure, base, tuned, change, change - half, change + half, p, n_items, len(languages), n_seeds)


@dataclass(frozen=True)
class _OfSeed:
    """A measure of base and tuned with one seed, and what every item adds to their difference, less its mean.

    The squares of the parts add up to the variance of the difference. `fewest`: items of the language, and for AUROC of
    the label, that has the fewest. `moved`: whether any item changed what it adds in any language.
    """

    base: float
    tuned: float
    parts: pd.Series
    fewest: int
    moved: bool


def _of_seed(measure: str, predictions: Predictions, languages: Sequence[str]) -> _OfSeed | None:
    if measure == "auroc":
        paired = predictions.paired_scores()
        areas = [found for code in languages if (found := areas_of(paired[code])) is not None]
        if not areas:
            return None
        parts = pd.concat([each.influence for each in areas], axis=1).fillna(0.0).mean(axis=1)
        a, b = (float(np.mean([getattr(each, side) for each in areas])) for side in ("a", "b"))
        return _OfSeed(a, b, parts, min(each.fewest for each in areas), any(each.moved for each in areas))
    right = predictions.paired("batch" if measure == "calibrated" else "none")
    frames = [right[code].astype(float) for code in languages]
    gains = [each["b"] - each["a"] for each in frames]
    scaled = [(each - each.mean()) / np.sqrt(len(each) * max(len(each) - 1, 1)) for each in gains]
    parts = pd.concat(scaled, axis=1).fillna(0.0).mean(axis=1)
    a, b = (float(np.mean([each[side].mean() for each in frames])) for side in ("a", "b"))
    return _OfSeed(a, b, parts, min(map(len, frames)), any(bool(each.any()) for each in gains))
