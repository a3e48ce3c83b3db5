"""Gains over items and seeds, against the formulas written out and against a simulation."""

import numpy as np
import pandas as pd
import pytest

from glotlift.evaluation.predictions import Predictions
from glotlift.evaluation.seeds import seeds_gain

LABELS = ["negative", "positive"]


def predictions(odds, gold, languages=("de", "fr")):
    """Predictions of base and tuned; odds: variant -> language -> log odds of the second label."""
    frames = {}
    for variant, by_language in odds.items():
        frames[variant] = {}
        for code, values in zip(languages, by_language, strict=True):
            frame = pd.DataFrame({"id": [f"q{n}" for n in range(len(gold))], "gold": [LABELS[each] for each in gold]})
            frame["sequence_negative"], frame["sequence_positive"] = -np.asarray(values) / 2, np.asarray(values) / 2
            frame["predicted"] = [LABELS[int(value > 0)] for value in values]
            frames[variant][code] = frame
    return Predictions("sentiment", frames, {"labels": LABELS, "scoring": "sequence"})


def drawn(rng, n, n_seeds, lift=0.0, noise=0.0):
    gold = rng.integers(2, size=n)
    base = [gold * 1.5 + rng.normal(size=n) - 0.75 for _ in range(2)]
    by_seed = []
    for _ in range(n_seeds):
        of_seed = lift + noise * rng.normal()
        tuned = [each + of_seed * (gold - 0.5) + 0.2 * rng.normal(size=n) for each in base]
        by_seed.append(predictions({"base": base, "tuned": tuned}, gold))
    return by_seed


def test_one_seed_has_the_interval_over_items():
    (only,) = drawn(np.random.default_rng(0), 60, 1, lift=1.0)
    gain = seeds_gain("raw", [only], ["de", "fr"])
    right = only.paired("none")
    moved = sum(each["b"].astype(float) - each["a"] for each in right.values()) / 2
    error = moved.std(ddof=1) / np.sqrt(60)
    assert gain.change == pytest.approx(moved.mean())
    assert (gain.high - gain.low) / 2 == pytest.approx(2.0009958 * error)  # Student's, 59 degrees of freedom
    assert (gain.n, gain.languages, gain.seeds) == (60, 2, 1)


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    rng = np.random.default_rng(1)
    one = drawn(rng, 60, 1, lift=1.0)
    same = seeds_gain("auroc", one * 3, ["de", "fr"])
    alone = seeds_gain("auroc", one, ["de", "fr"])
    assert (same.change, same.low, same.high) == pytest.approx((alone.change, alone.low, alone.high))
    apart = drawn(np.random.default_rng(2), 60, 3, lift=0.5, noise=2.0)
    wide = seeds_gain("auroc", apart, ["de", "fr"])
    gains = [seeds_gain("auroc", [each], ["de", "fr"]).change for each in apart]
    assert wide.change == pytest.approx(np.mean(gains))
    assert (wide.high - wide.low) / 2 > 2 * np.std(gains, ddof=1) / np.sqrt(3)


@pytest.mark.parametrize("measure", ["raw", "calibrated", "auroc"])
def test_where_nothing_is_gained_the_test_seldom_says_so(measure):
    """300 simulated sweeps of three seeds that differ and gain nothing: about 5 % at p < 0.05, never above 10 %."""
    rng = np.random.default_rng(3)
    found = [seeds_gain(measure, drawn(rng, 40, 3, noise=0.3), ["de", "fr"]) for _ in range(300)]
    false = np.mean([gain.p < 0.05 for gain in found])
    assert false < 0.1
    covered = np.mean([gain.low <= 0 <= gain.high for gain in found])
    assert covered == pytest.approx(1 - false)


def test_a_measure_that_moves_nowhere_has_an_exact_interval():
    gold = np.array([0, 1] * 10)
    base = [gold - 0.5, gold - 0.5]
    for measure in ("raw", "auroc"):
        gain = seeds_gain(measure, [predictions({"base": base, "tuned": base}, gold)], ["de", "fr"])
        assert (gain.change, gain.p, gain.moved) == (0, 1.0, False)
        assert gain.low < -0.1 < 0.1 < gain.high
    reversed_ = [1 - gold - 0.5] * 2
    gain = seeds_gain("raw", [predictions({"base": reversed_, "tuned": base}, gold)], ["de", "fr"])
    assert (gain.change, gain.moved) == (1, True)
    for measure in ("raw", "auroc"):  # what one language gains the other loses
        both = {"base": [base[0], reversed_[0]], "tuned": [reversed_[0], base[0]]}
        gain = seeds_gain(measure, [predictions(both, gold)], ["de", "fr"])
        assert (gain.change, gain.moved) == (0, True)
    assert seeds_gain("auroc", [predictions({"base": base, "tuned": base}, gold * 0)], ["de", "fr"]) is None
