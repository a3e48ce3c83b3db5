"""Measures of label scores that more than one wing takes.

Enters: log-probabilities of labels, and the right ones. Leaves: scores without a preference for a label (batch
calibration), and AUROC with how much each item moves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

LEVEL = 0.95
"""Level of every interval."""


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
    found = auroc_influence(log_probabilities, gold, labels)
    return None if found is None else found[0]


def auroc_influence(
    log_probabilities: np.ndarray, gold: np.ndarray, labels: Sequence[str]
) -> tuple[float, np.ndarray] | None:
    """Return the AUROC of `auroc` and how much each item moves it (DeLong et al. 1988, by midranks: Sun and Xu 2014).

    The influences sum to zero, and their squares to the variance of the area (times n / (n - 1) within each class).
    They add up over labels and over languages, which gives intervals for means of areas over parallel items.

    Returns:
        The area, and *shape* (items,); NaN for the only item of a label, since one tells no variance.
    """
    areas, influences = [], []
    for column, label in enumerate(labels):
        is_label = gold == label
        n_in, n_out = int(is_label.sum()), int((~is_label).sum())
        if not n_in or not n_out:
            continue
        others = np.delete(log_probabilities, column, axis=1)
        log_odds = log_probabilities[:, column] - np.logaddexp.reduce(others, axis=1)
        ranks = rankdata(log_odds)
        placement = np.empty(len(gold))  # share of the other side that an item stands on the right side of
        placement[is_label] = (ranks[is_label] - rankdata(log_odds[is_label])) / n_out
        placement[~is_label] = 1 - (ranks[~is_label] - rankdata(log_odds[~is_label])) / n_in
        area = float(placement[is_label].mean())
        influence = np.empty(len(gold))
        for side, n_side in ((is_label, n_in), (~is_label, n_out)):
            influence[side] = (placement[side] - area) / np.sqrt(n_side * (n_side - 1)) if n_side > 1 else np.nan
        areas.append(area)
        influences.append(influence)
    if not areas:
        return None
    return float(np.mean(areas)), np.mean(influences, axis=0)
