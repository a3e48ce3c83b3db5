"""Accuracy, its interval, AUROC and batch calibration against formulas, scikit-learn and brute force."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from glotlift.evaluation.metrics import auroc, batch_calibrated, label_log_probabilities, score_language

LABELS = ["yes", "no"]
THREE = ["yes", "no", "maybe"]


def frame(scores: np.ndarray, gold: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """Return the frame of a prediction file for `sequence` scores. *Shapes:* (items, labels), (items,)."""
    columns = {f"sequence_{label}": scores[:, k] for k, label in enumerate(labels)}
    columns |= {f"prefix_mass_{label}": np.exp(scores[:, k]) for k, label in enumerate(labels)}
    return pd.DataFrame(
        {
            "id": [str(i) for i in range(len(gold))],
            "gold": gold,
            "predicted": np.array(labels)[scores.argmax(1)],
            "tied": (scores == scores.max(1, keepdims=True)).sum(1),
            **columns,
        }
    )


def random_scores(seed: int, n: int, labels: list[str], signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores that tell gold labels apart as well as `signal` says, and the gold labels."""
    random = np.random.default_rng(seed)
    gold = random.integers(0, len(labels), n)
    scores = random.normal(size=(n, len(labels))) - 4
    scores[np.arange(n), gold] += signal
    return scores, np.array(labels)[gold]


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 2), (30, 48), (311, 600)])
def test_the_interval_is_wilsons(right, n):
    """Wilson 1927: the proportions p with |p^ - p| <= z sqrt(p (1 - p) / n), in closed form."""
    gold = np.array(["yes"] * n)
    scores = np.zeros((n, 2))
    scores[:right, 0] = 1
    scores[right:, 1] = 1
    score = score_language(frame(scores, gold, LABELS), LABELS, "de", "sequence")
    z, share = norm.ppf(0.975), right / n
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert score.n == n
    assert score.accuracy == pytest.approx(share)
    assert score.low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-9)
    assert score.high == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-9)


def test_counts_of_predictions_collapse_and_ties():
    scores = np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 1.0]])
    found = frame(scores, np.array(["yes", "no", "no"]), LABELS)
    score = score_language(found, LABELS, "de", "sequence")
    assert score.predicted == {"yes": 1, "no": 2}
    assert (score.collapsed, score.tied) == (None, 1)
    score = score_language(found.iloc[:2], LABELS, "de", "sequence")
    assert score.predicted == {"yes": 0, "no": 2}
    assert score.collapsed == "no"


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_two_labels_is_scikit_learns(seed):
    scores, gold = random_scores(seed, 60, LABELS)
    expected = roc_auc_score(gold == "yes", scores[:, 0] - scores[:, 1])
    assert auroc(scores, gold, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_three_labels_is_the_mean_of_one_against_the_rest(seed):
    """By probability, which orders the items as log-odds do."""
    scores, gold = random_scores(seed, 60, THREE)
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = roc_auc_score(gold, probability[:, [2, 1, 0]], multi_class="ovr", labels=["maybe", "no", "yes"])
    log_probability = np.log(probability)
    assert auroc(log_probability, gold, THREE) == pytest.approx(expected)


def test_auroc_where_a_label_never_occurs():
    scores, _ = random_scores(0, 10, LABELS)
    assert auroc(scores, np.array(["yes"] * 10), LABELS) is None
    scores, gold = random_scores(1, 40, THREE)
    gold[gold == "maybe"] = "no"
    areas = [
        roc_auc_score(gold == label, scores[:, k] - np.logaddexp.reduce(np.delete(scores, k, 1), axis=1))
        for k, label in enumerate(THREE[:2])
    ]
    assert auroc(scores, gold, THREE) == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("bias", [-30.0, -2.0, 0.5, 200.0])
def test_a_constant_preference_moves_accuracy_but_neither_auroc_nor_calibrated_accuracy(bias):
    scores, gold = random_scores(3, 80, LABELS, signal=2)
    fair = score_language(frame(scores, gold, LABELS), LABELS, "de", "sequence")
    biased = score_language(frame(scores + [bias, 0], gold, LABELS), LABELS, "de", "sequence")
    assert biased.accuracy != fair.accuracy
    assert biased.auroc == pytest.approx(fair.auroc, abs=1e-12)
    assert biased.accuracy_calibrated == fair.accuracy_calibrated


def test_calibration_repairs_a_collapse():
    """All on one label, and yet the model tells the balanced items apart: the issue's fine print."""
    random = np.random.default_rng(0)
    gold = np.array(["yes", "no"] * 50)
    margin = np.where(gold == "yes", 1.0, -1.0) + random.normal(0, 0.2, 100)
    scores = np.stack([margin / 2 - 5, -margin / 2], 1)
    score = score_language(frame(scores, gold, LABELS), LABELS, "is", "sequence")
    assert score.collapsed == "no"
    assert score.accuracy == 0.5
    assert score.accuracy_calibrated > 0.95
    assert score.auroc > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_scores_prefer_no_label(seed):
    scores, _ = random_scores(seed, 50, THREE)
    assert batch_calibrated(scores + [5, 0, -3]).mean(0) == pytest.approx(np.zeros(3), abs=1e-9)
    np.testing.assert_allclose(batch_calibrated(scores + [5, 0, -3]), batch_calibrated(scores))


def test_the_scoring_chooses_the_columns():
    scores, gold = random_scores(5, 30, LABELS)
    found = frame(scores, gold, LABELS)
    found["prefix_mass_yes"] = np.exp(-scores[:, 0])
    by_sequence = label_log_probabilities(found, LABELS, "sequence")
    by_mass = label_log_probabilities(found, LABELS, "prefix-mass")
    for log_probability in (by_sequence, by_mass):
        assert np.exp(log_probability).sum(1) == pytest.approx(np.ones(30))
    difference = scores[:, 0] - scores[:, 1]
    np.testing.assert_allclose(by_sequence[:, 0] - by_sequence[:, 1], difference)
    np.testing.assert_allclose(by_mass[:, 0] - by_mass[:, 1], -scores[:, 0] - scores[:, 1])


def test_no_mass_at_all_stays_finite():
    scores, gold = random_scores(5, 10, LABELS)
    found = frame(scores, gold, LABELS)
    found.loc[0, ["prefix_mass_yes", "prefix_mass_no"]] = 0.0
    found.loc[1, "prefix_mass_yes"] = 0.0
    log_probability = label_log_probabilities(found, LABELS, "prefix-mass")
    assert np.isfinite(log_probability).all()
    assert np.exp(log_probability[0]) == pytest.approx([0.5, 0.5])
    assert score_language(found, LABELS, "de", "prefix-mass").n == 10
