"""What a prediction file says of a model in one language: accuracy and what stands behind it.

Enters: the frame of a prediction file. Leaves: `LanguageScore`.

Raw accuracy mixes two things: whether the model tells the items apart, and where its preference for a label lies. So
beside it stand the number of predictions a label, AUROC (blind to a constant preference) and accuracy after batch
calibration: the mean log-probability of each label over the items is taken off. That is the idea of Zhou et al. 2024
(arXiv 2309.17249) with the geometric in place of the arithmetic mean, which makes it blind to a constant preference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

LEVEL = 0.95
"""Level of every interval."""


@dataclass(frozen=True)
class LanguageScore:
    """One language, one variant.

    Attributes:
        language: code.
        n: number of items.
        accuracy: share of items predicted right, 0 to 1.
        low: lower end of its Wilson interval.
        high: upper end.
        accuracy_calibrated: accuracy after batch calibration, 0 to 1.
        auroc: area under the ROC curve, one label against the rest, mean over labels; 0.5 is chance. None where the
            items have one label only.
        predicted: label id -> how often it was predicted.
        tied: number of items whose best score two labels share.
    """

    language: str
    n: int
    accuracy: float
    low: float
    high: float
    accuracy_calibrated: float
    auroc: float | None
    predicted: dict[str, int]
    tied: int

    @property
    def collapsed(self) -> str | None:
        """The label that all predictions fell on, None where they did not."""
        return next((label for label, count in self.predicted.items() if count == self.n), None)


def score_language(frame: pd.DataFrame, labels: Sequence[str], language: str, scoring: str) -> LanguageScore:
    """Return the score of one prediction file.

    Args:
        frame: see `glotlift.evaluation.predict.predict`.
        labels: label ids, in the task's order.
        language: code.
        scoring: which scores decide, `sequence` or `prefix-mass`.
    """
    gold = frame["gold"].to_numpy()
    n_right = int((frame["predicted"].to_numpy() == gold).sum())
    interval = binomtest(n_right, len(frame)).proportion_ci(LEVEL, method="wilson")
    log_probabilities = label_log_probabilities(frame, labels, scoring)
    calibrated = np.array(labels)[batch_calibrated(log_probabilities).argmax(1)]
    counts = Counter(frame["predicted"])
    return LanguageScore(
        language=language,
        n=len(frame),
        accuracy=n_right / len(frame),
        low=float(interval.low),
        high=float(interval.high),
        accuracy_calibrated=float((calibrated == gold).mean()),
        auroc=auroc(log_probabilities, gold, labels),
        predicted={label: counts[label] for label in labels},
        tied=int((frame["tied"].to_numpy() > 1).sum()),
    )


def label_log_probabilities(frame: pd.DataFrame, labels: Sequence[str], scoring: str) -> np.ndarray:
    """Return log-probabilities renormalised over the labels. *Shape:* (items, labels), natural log."""
    if scoring == "sequence":
        scores = frame[[f"sequence_{label}" for label in labels]].to_numpy(float)
    else:
        mass = frame[[f"prefix_mass_{label}" for label in labels]].to_numpy(float)
        scores = np.log(np.maximum(mass, np.finfo(float).tiny))
    return log_softmax(scores, axis=1)


def batch_calibrated(log_probabilities: np.ndarray) -> np.ndarray:
    """Return scores less each label's mean over the items. *Shape:* (items, labels) -> (items, labels)."""
    return log_probabilities - log_probabilities.mean(0)


def auroc(log_probabilities: np.ndarray, gold: np.ndarray, labels: Sequence[str]) -> float | None:
    """Return the one-against-the-rest AUROC, mean over the labels that occur; None where only one does.

    A label is ranked by its log-odds, which a constant preference for a label shifts but does not reorder when there
    are two labels.

    Args:
        log_probabilities: *Shape:* (items, labels).
        gold: *Shape:* (items,), label ids.
        labels: label ids in the order of the columns.
    """
    areas = []
    for column, label in enumerate(labels):
        is_label = gold == label
        if 0 < is_label.sum() < len(gold):
            others = np.delete(log_probabilities, column, axis=1)
            log_odds = log_probabilities[:, column] - np.logaddexp.reduce(others, axis=1)
            areas.append(roc_auc_score(is_label, log_odds))
    return float(np.mean(areas)) if areas else None
