"""Agreement with a teacher: the only measure that anything without labels is chosen by.

Enters: label scores of the same questions, by the model and by its teacher. Leaves: how they go together, and whether
one way to score agrees clearly better than another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

N_RESAMPLES = 2_000

LEVEL = 0.95


def without_means(scores: np.ndarray) -> np.ndarray:
    """Return label scores less their mean over the labels, and then over the questions. *Shape:* as given."""
    scores = scores - scores.mean(1, keepdims=True)
    return scores - scores.mean(0, keepdims=True)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Pearson correlation of scores over questions and labels; 0 where one does not vary.

    Each label's mean over the questions is taken off. *Shapes:* (questions, labels).
    """
    return float(_weighted(a, b, np.ones((1, len(a))))[0])


def agrees_better(
    found: Sequence[np.ndarray], plain: Sequence[np.ndarray], taught: Sequence[np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """Return the bounds of a 95 % interval of how much better scores agree with the teacher than the plain ones.

    Agreement is a mean over languages. The interval is a percentile bootstrap over the questions, which are drawn
    together with their translations, since these say much the same.

    Args:
        found: label scores a language, all of the same questions in the same order. *Shape:* (questions, labels) each.
        plain: the scores they are held against, likewise.
        taught: the teacher's, likewise.
        seed: of the draws.
    """
    n = len(taught[0])
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), N_RESAMPLES).astype(float)
    gains = [
        _weighted(new, own, counts) - _weighted(old, own, counts)
        for new, old, own in zip(found, plain, taught, strict=True)
    ]
    low, high = np.quantile(np.mean(gains, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _weighted(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the agreement of questions that stand as often as `counts` says. *Shapes:* counts (draws, questions)."""
    a, b = a - a.mean(0), b - b.mean(0)

    def together(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total = counts.sum(1)
        return counts @ (x * y).sum(1) / total - ((counts @ x) * (counts @ y)).sum(1) / total**2

    norm = np.sqrt(np.maximum(together(a, a), 0) * np.maximum(together(b, b), 0))
    return np.divide(together(a, b), norm, out=np.zeros(len(counts)), where=norm > 1e-12)
