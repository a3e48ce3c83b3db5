"""What a prediction file says of a model in one language: accuracy and what stands behind it.

Enters: the frame of a prediction file. Leaves: `LanguageScore`.

Raw accuracy mixes two things: whether the model tells the items apart, and where its preference for a label lies. So
beside it stand the number of predictions a label, AUROC (blind to a constant preference) and accuracy after two
calibrations, which take the preference off:

    batch        each label's mean log-probability over the items. The idea of Zhou et al. 2024 (arXiv 2309.17249) with
                 the geometric in place of the arithmetic mean, which makes it blind to a constant preference. It sees
                 the test items, never their gold labels.
    contextual   the log of each label's probability for content-free inputs, mean over these (Zhao et al. 2021, arXiv
                 2102.09690). It sees no test item.

The expected calibration error says whether the probabilities mean what they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp
from scipy.stats import binomtest

from glotlift.measures import LEVEL, auroc, batch_calibrated

SCORINGS = ("sequence", "prefix-mass", "prefix-mass-released", "first-token")
"""What of a label word is scored; see `glotlift.evaluation.predict`."""

CALIBRATIONS = ("none", "contextual", "batch")
"""What is taken off the scores before the best label is chosen."""

ECE_BINS = 15
"""Bins of equal width over the confidence (Guo et al. 2017)."""


@dataclass(frozen=True)
class LanguageScore:
    """One language, one variant.

    Attributes:
        language: code.
        n: number of items.
        accuracy: share of items predicted right, 0 to 1, as the file's scoring and calibration decide.
        low: lower end of its Wilson interval.
        high: upper end.
        accuracy_raw: accuracy without calibration, 0 to 1.
        accuracy_calibrated: accuracy after batch calibration, 0 to 1.
        accuracy_contextual: accuracy after contextual calibration, 0 to 1; None where no content-free input was run.
        auroc: area under the ROC curve, one label against the rest, mean over labels; 0.5 is chance. None where the
            items have one label only.
        ece: expected calibration error of the probabilities renormalised over the labels, without calibration: mean
            distance between confidence and accuracy over `ECE_BINS` bins, weighted by their items, 0 to 1.
        predicted: label id -> how often it was predicted.
        tied: number of items whose best score two labels share.
    """

    language: str
    n: int
    accuracy: float
    low: float
    high: float
    accuracy_raw: float
    accuracy_calibrated: float
    accuracy_contextual: float | None
    auroc: float | None
    ece: float
    predicted: dict[str, int]
    tied: int

    @property
    def collapsed(self) -> str | None:
        """The label that all predictions fell on, None where they did not."""
        return next((label for label, count in self.predicted.items() if count == self.n), None)


def score_language(
    frame: pd.DataFrame,
    labels: Sequence[str],
    language: str,
    scoring: str,
    content_free: Sequence[Mapping[str, Sequence[float]]] = (),
) -> LanguageScore:
    """Return the score of one prediction file.

    Args:
        frame: see `glotlift.evaluation.predict.predict`.
        labels: label ids, in the task's order.
        language: code.
        scoring: one of `SCORINGS`.
        content_free: see `decide`; empty where no content-free input was run.
    """
    gold = frame["gold"].to_numpy()
    n_right = int((frame["predicted"].to_numpy() == gold).sum())
    interval = binomtest(n_right, len(frame)).proportion_ci(LEVEL, method="wilson")
    counts = Counter(frame["predicted"])
    log_probabilities = label_log_probabilities(frame, labels, scoring)

    def accuracy(calibration: str) -> float:
        return float((np.array(decide(frame, labels, scoring, calibration, content_free)[0]) == gold).mean())

    return LanguageScore(
        language=language,
        n=len(frame),
        accuracy=n_right / len(frame),
        low=float(interval.low),
        high=float(interval.high),
        accuracy_raw=accuracy("none"),
        accuracy_calibrated=accuracy("batch"),
        accuracy_contextual=accuracy("contextual") if content_free else None,
        auroc=auroc(log_probabilities, gold, labels),
        ece=expected_calibration_error(calibration_gaps(log_probabilities, gold, labels)),
        predicted={label: counts[label] for label in labels},
        tied=int((frame["tied"].to_numpy() > 1).sum()),
    )


def decide(
    frame: pd.DataFrame,
    labels: Sequence[str],
    scoring: str,
    calibration: str,
    content_free: Sequence[Mapping[str, Sequence[float]]] = (),
) -> tuple[list[str], list[int]]:
    """Return for every item the label with the highest score, the first of several, and how many share it.

    Args:
        frame: with the columns of the scoring.
        labels: label ids, in the task's order.
        scoring: one of `SCORINGS`.
        calibration: one of `CALIBRATIONS`.
        content_free: scores of content-free inputs, for `contextual`: column name without label -> one number a label.
    """
    if calibration == "none":
        scores = _columns(frame, labels, scoring)
    elif calibration == "batch":
        scores = batch_calibrated(label_log_probabilities(frame, labels, scoring))
    else:
        scores = label_log_probabilities(frame, labels, scoring) - content_free_prior(content_free, scoring)
    best = scores.max(1, keepdims=True)
    return [labels[int(index)] for index in scores.argmax(1)], (scores == best).sum(1).tolist()


def _columns(frame: pd.DataFrame, labels: Sequence[str], scoring: str) -> np.ndarray:
    """*Shape:* (items, labels)."""
    names = [stored_name(scoring, frame.columns, f"_{label}") for label in labels]
    return frame[names].to_numpy(float)


def stored_name(scoring: str, stored: Iterable[str], ending: str = "") -> str:
    """Return the name under which a scoring's scores are stored.

    That of `prefix-mass-released` is `prefix_mass` where both count the same tokens.

    Args:
        scoring: one of `SCORINGS`.
        stored: the names that are there.
        ending: of the name: `_<label>` for the columns of a frame.
    """
    name = scoring.replace("-", "_") + ending
    is_same = scoring == "prefix-mass-released" and name not in set(stored)
    return f"prefix_mass{ending}" if is_same else name


def label_log_probabilities(frame: pd.DataFrame, labels: Sequence[str], scoring: str) -> np.ndarray:
    """Return log-probabilities renormalised over the labels. *Shape:* (items, labels), natural log."""
    return _renormalised(_columns(frame, labels, scoring), scoring)


def _renormalised(scores: np.ndarray, scoring: str) -> np.ndarray:
    if scoring.startswith("prefix-mass"):
        scores = np.log(np.maximum(scores, np.finfo(float).tiny))
    return log_softmax(scores, axis=1)


def content_free_prior(content_free: Sequence[Mapping[str, Sequence[float]]], scoring: str) -> np.ndarray:
    """Return the log of each label's probability for content-free inputs, mean over these. *Shape:* (labels,)."""
    scores = np.array([each[stored_name(scoring, each)] for each in content_free], float)
    return logsumexp(_renormalised(scores, scoring), axis=0) - np.log(len(scores))


def calibration_gaps(log_probabilities: np.ndarray, gold: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return confidence less correctness of every item, in the column of its confidence's bin.

    Args:
        log_probabilities: *Shape:* (items, labels).
        gold: *Shape:* (items,), label ids.
        labels: label ids in the order of the columns.

    Returns:
        *Shape:* (items, `ECE_BINS`).
    """
    confidence = np.exp(log_probabilities.max(1))
    right = np.array(labels)[log_probabilities.argmax(1)] == gold
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.zeros((len(gold), ECE_BINS))
    gaps[np.arange(len(gold)), bins] = confidence - right
    return gaps


def expected_calibration_error(gaps: np.ndarray) -> float:
    """Return the expected calibration error, 0 to 1, of the gaps of `calibration_gaps`. *Shape:* (items, bins)."""
    return float(np.abs(gaps.sum(0)).sum() / len(gaps))
