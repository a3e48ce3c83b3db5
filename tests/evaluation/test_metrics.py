"""Accuracy, its interval, AUROC, calibration and its error against formulas, scikit-learn and brute force."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from glotlift.evaluation.metrics import (
    ECE_BINS,
    calibration_gaps,
    content_free_prior,
    decide,
    expected_calibration_error,
    label_log_probabilities,
    score_language,
)
from glotlift.measures import auroc, auroc_influence, batch_calibrated

LABELS = ["yes", "no"]
THREE = ["yes", "no", "maybe"]


def frame(scores: np.ndarray, gold: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """Return the frame of a prediction file for `sequence` scores. *Shapes:* (items, labels), (items,)."""
    columns = {f"sequence_{label}": scores[:, k] for k, label in enumerate(labels)}
    columns |= {f"prefix_mass_{label}": np.exp(scores[:, k]) for k, label in enumerate(labels)}
    columns |= {f"first_token_{label}": scores[:, k] / 2 for k, label in enumerate(labels)}
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


# --- AUROC: ties, many labels, extremes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_labels", [2, 3, 5])
def test_auroc_with_ties_is_scikit_learns(seed, n_labels):
    """Scores on a coarse grid: most pairs of items tie, and a tie counts half."""
    labels = [f"l{k}" for k in range(n_labels)]
    random = np.random.default_rng(seed)
    gold = np.concatenate([np.arange(n_labels), random.integers(0, n_labels, 50)])
    margin = random.integers(0, 3, len(gold)) + (gold == 0)
    scores = np.zeros((len(gold), n_labels))
    scores[:, 0] = margin  # the others share the rest, so that equal margins are equal to the last bit
    log_probability = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
    named = np.array(labels)[gold]
    areas = [roc_auc_score(named == label, margin if k == 0 else -margin) for k, label in enumerate(labels)]
    assert len(set(margin)) < len(margin) / 5
    assert auroc(log_probability, named, labels) == pytest.approx(np.mean(areas), abs=1e-12)


def test_auroc_of_a_model_that_is_sure_still_tells_its_items_apart():
    """Probabilities that are 0 or 1 in floating point have log-odds that differ."""
    scores = np.array([[900.0, 0], [800, 0], [-800, 0], [-900, 0]])
    log_probability = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
    assert np.exp(log_probability[:2, 0]).tolist() == [1.0, 1.0]
    assert auroc(log_probability, np.array(["yes", "no", "yes", "no"]), LABELS) == pytest.approx(0.75)
    assert auroc(log_probability, np.array(["yes", "yes", "no", "no"]), LABELS) == 1.0
    assert auroc(log_probability, np.array(["no", "no", "yes", "yes"]), LABELS) == 0.0


def test_a_constant_model_has_an_auroc_of_a_half():
    scores = np.tile(np.log([0.7, 0.2, 0.1]), (9, 1))
    assert auroc(scores, np.array(THREE * 3), THREE) == 0.5


def test_influences_sum_to_zero_and_one_item_of_a_label_has_none():
    scores, gold = random_scores(2, 30, THREE)
    _, influence = auroc_influence(scores, gold, THREE)
    assert influence.shape == (30,)
    assert abs(influence.sum()) < 1e-9
    gold = np.array(["yes"] + ["no"] * 29)
    area, influence = auroc_influence(scores[:, :2], gold, LABELS)
    assert 0 <= area <= 1
    assert np.isnan(influence).tolist() == [True] + [False] * 29  # one item tells no variance
    _, influence = auroc_influence(scores, np.array(["maybe"] + ["no", "yes"] * 14 + ["yes"]), THREE)
    assert np.isnan(influence).tolist() == [True] + [False] * 29


# --- expected calibration error


def ece_by_loop(probability: np.ndarray, gold: list[str], labels: list[str]) -> float:
    """Guo et al. 2017: bins ((m - 1) / 15, m / 15]; sum over bins of |B| / n * |accuracy - confidence|."""
    total = 0.0
    for m in range(1, ECE_BINS + 1):
        inside = [
            (max(row), labels[int(np.argmax(row))] == label)
            for row, label in zip(probability.tolist(), gold, strict=True)
            if (m - 1) / ECE_BINS < max(row) <= m / ECE_BINS
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(gold) * abs(accuracy - confidence)
    return total


def ece(probability: np.ndarray, gold: np.ndarray, labels: list[str]) -> float:
    with np.errstate(divide="ignore"):
        return expected_calibration_error(calibration_gaps(np.log(probability), gold, labels))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labels", [LABELS, THREE, [f"l{k}" for k in range(20)]])
def test_ece_is_a_loop_over_bins(seed, labels):
    scores, gold = random_scores(seed, 70, labels, signal=2)
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = ece_by_loop(probability, list(gold), labels)
    assert 0.01 < expected < 1
    assert ece(probability, gold, labels) == pytest.approx(expected)
    assert score_language(frame(scores, gold, labels), labels, "de", "sequence").ece == pytest.approx(expected)


def test_a_confidence_on_an_edge_is_of_the_bin_below_and_certainty_of_the_last():
    edges = np.exp(np.log(np.arange(8, ECE_BINS + 1) / ECE_BINS))  # 8/15 is the lowest of two labels
    probability = np.stack([edges, 1 - edges], 1)
    gaps = calibration_gaps(np.log(np.maximum(probability, 1e-300)), np.array(["yes"] * len(edges)), LABELS)
    bins = [int(np.flatnonzero(row)[0]) for row in gaps[:-1]]
    assert bins == [7, 8, 9, 10, 11, 12, 13]  # ((m - 1) / 15, m / 15] is bin m - 1
    assert not gaps[-1].any()  # sure and right: no gap
    wrong = calibration_gaps(np.array([[0.0, -800.0]]), np.array(["no"]), LABELS)
    assert wrong.tolist() == [[0.0] * (ECE_BINS - 1) + [1.0]]


def test_ece_by_hand():
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    gold = np.array(["yes", "no", "yes", "no"])  # the even split counts as the first label, which is right
    assert ece(probability, gold, LABELS) == pytest.approx((abs(1.8 - 1) + abs(0.5 - 1) + abs(0.8 - 1)) / 4)


def test_gaps_of_one_bin_cancel_and_those_of_different_bins_do_not():
    same = np.array([[0.75, 0.25]] * 4)
    gold = np.array(["yes", "yes", "yes", "no"])
    assert ece(same, gold, LABELS) == pytest.approx(0)
    assert ece(np.array([[0.99, 0.01], [0.51, 0.49]]), np.array(["no", "yes"]), LABELS) == pytest.approx(0.74)


def test_ece_is_of_the_uncalibrated_probabilities():
    scores, gold = random_scores(4, 60, LABELS)
    shifted = score_language(frame(scores + [6, 0], gold, LABELS), LABELS, "de", "sequence")
    assert shifted.ece > 0.3
    assert shifted.ece > score_language(frame(scores, gold, LABELS), LABELS, "de", "sequence").ece


# --- contextual calibration


FREE = {"sequence": (-7.0, -3.0, -4.0), "prefix_mass": (0.02, 0.5, 0.1), "first_token": (-5.0, -1.0, -3.5)}


@pytest.mark.parametrize("scoring", ["sequence", "prefix-mass", "first-token"])
def test_contextual_calibration_is_zhaos(scoring):
    """Zhao et al. 2021, section 5: q = W p with W = diag(p_cf)^-1, both renormalised over the labels."""
    scores, gold = random_scores(6, 40, THREE)
    found = frame(scores + [-1, 2, 0], gold, THREE)
    name = scoring.replace("-", "_")
    free = [FREE, {key: tuple(reversed(value)) for key, value in FREE.items()}, FREE]

    def probability(rows) -> np.ndarray:
        mass = np.array(rows, float) if scoring == "prefix-mass" else np.exp(np.array(rows, float))
        return mass / mass.sum(-1, keepdims=True)

    p = probability(found[[f"{name}_{label}" for label in THREE]])
    p_cf = probability([each[name] for each in free]).mean(0)
    expected = [THREE[k] for k in (p / p_cf).argmax(1)]
    chosen, tied = decide(found, THREE, scoring, "contextual", free)
    assert chosen == expected
    assert chosen != decide(found, THREE, scoring, "none")[0]
    assert tied == [1] * 40
    np.testing.assert_allclose(content_free_prior(free, scoring), np.log(p_cf))
    score = score_language(found, THREE, "de", scoring, free)
    assert score.accuracy_contextual == pytest.approx(np.mean(np.array(expected) == gold))
    assert score_language(found, THREE, "de", scoring).accuracy_contextual is None


def test_a_label_without_any_probability_for_content_free_inputs_stays_finite():
    prior = content_free_prior([{"sequence": (0.0, -2000.0)}, {"sequence": (0.0, -1800.0)}], "sequence")
    assert prior == pytest.approx([0, -1800 - np.log(2)])
    found = frame(np.array([[0.0, -1500.0], [0.0, -1900.0]]), np.array(["no", "yes"]), LABELS)
    assert decide(found, LABELS, "sequence", "contextual", [{"sequence": (0.0, -1800.0)}])[0] == ["no", "yes"]


def test_content_free_inputs_take_off_just_what_the_model_prefers():
    scores, gold = random_scores(8, 60, LABELS, signal=2)
    bias = np.array([5.0, 0.0])
    fair = decide(frame(scores, gold, LABELS), LABELS, "sequence", "none")[0]
    biased = frame(scores + bias, gold, LABELS)
    assert decide(biased, LABELS, "sequence", "contextual", [{"sequence": tuple(bias - 9)}])[0] == fair


# --- the decision


@pytest.mark.parametrize("scoring", ["sequence", "prefix-mass", "first-token"])
@pytest.mark.parametrize("labels", [LABELS, THREE])
def test_batch_calibration_is_blind_to_a_constant_preference(scoring, labels):
    scores, gold = random_scores(9, 50, labels)
    bias = np.arange(len(labels)) * 3.0
    fair, biased = frame(scores, gold, labels), frame(scores + bias, gold, labels)
    assert decide(biased, labels, scoring, "batch")[0] == decide(fair, labels, scoring, "batch")[0]
    assert decide(biased, labels, scoring, "none")[0] != decide(fair, labels, scoring, "none")[0]


def test_batch_calibration_by_hand():
    """Log-probabilities less their mean over the items; gold labels are not looked at."""
    scores = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    found = frame(scores, np.array(["no", "no", "no"]), LABELS)
    assert decide(found, LABELS, "sequence", "batch")[0] == ["yes", "yes", "no"]
    assert decide(found.assign(gold="yes"), LABELS, "sequence", "batch")[0] == ["yes", "yes", "no"]


@pytest.mark.parametrize("calibration", ["none", "contextual"])
def test_ties_go_to_the_first_label_of_the_task_and_are_counted(calibration):
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0], [0.0, 0.0, 1.0]])
    found = frame(scores, np.array(["yes"] * 4), THREE)
    free = [{"sequence": (-1.0, -1.0, -1.0)}]
    assert decide(found, THREE, "sequence", calibration, free) == (["yes", "no", "yes", "maybe"], [2, 2, 3, 1])
    order = ["maybe", "no", "yes"]  # another order of the labels, whatever the order of the columns
    assert decide(found, order, "sequence", calibration, free) == (["no", "maybe", "maybe", "maybe"], [2, 2, 3, 1])


def test_one_item_is_nothing_to_calibrate_on():
    found = frame(np.array([[0.0, 3.0]]), np.array(["no"]), LABELS)
    assert decide(found, LABELS, "sequence", "batch") == (["yes"], [2])
    score = score_language(found, LABELS, "de", "sequence")
    assert (score.accuracy, score.accuracy_calibrated, score.auroc) == (1.0, 0.0, None)


def test_accuracy_is_as_the_file_decides_and_raw_is_without_calibration():
    scores, gold = random_scores(3, 60, LABELS, signal=2)
    found = frame(scores + [4, 0], gold, LABELS)
    free = [{"sequence": (0.0, -4.0)}]
    raw = score_language(found, LABELS, "de", "sequence", free)
    chosen, tied = decide(found, LABELS, "sequence", "contextual", free)
    decided = score_language(found.assign(predicted=chosen, tied=tied), LABELS, "de", "sequence", free)
    assert raw.accuracy == raw.accuracy_raw == decided.accuracy_raw
    assert decided.accuracy == decided.accuracy_contextual == raw.accuracy_contextual
    assert decided.accuracy > raw.accuracy
    assert decided.predicted["no"] > raw.predicted["no"]
    assert (decided.ece, decided.auroc, decided.accuracy_calibrated) == (raw.ece, raw.auroc, raw.accuracy_calibrated)
