"""The readout in closed form: ridge regression from a middle layer's state to what the teacher says.

Enters: states of the same questions in several languages, and the teacher's label scores. Leaves: a `Readout`, and what
chose it. No gradient, no label: seconds.

For two thirds of its depth a model may hold the answer in more languages than its output says. With `h` the state at
the last prompt token of a layer, less its mean over the language's questions, and `t` the teacher's scores (see
`glotlift.training.teacher`; their mean taken off, so a preference for a label is no part of it), over all languages at
once

    W = argmin  sum |W h - t|^2 + strength |W|^2

with features of one scale. Layer and strength are those whose scores, added to the model's own, agree best with the
teacher on questions and a language that were left out of the fit: no right answer is looked at. The readout then has
the scale that the model's own scores have over the languages fitted on, so that both count the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from glotlift.errors import DataError
from glotlift.models.readout import Readout

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridge strengths that are tried, in units of the mean eigenvalue of the kernel."""

FEWEST_QUESTIONS = 10
"""With fewer, a readout fits what is peculiar to them."""

_FOLDS = 5


@dataclass(frozen=True)
class Tried:
    """A layer and strength, and how the combined scores agree with the teacher where they were not fitted.

    Attributes:
        layer: of the state, from 1.
        strength: of the ridge.
        agreement: Pearson correlation with the teacher, a mean over left-out languages, -1 to 1.
    """

    layer: int
    strength: float
    agreement: float


def fit_readout(
    states: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    taught: Mapping[str, np.ndarray],
    labels: Sequence[str],
    layers: Sequence[int] | None = None,
) -> tuple[Readout, dict[str, Any]]:
    """Return the readout, and `chosen`, `tried` and `without` (the model's own agreement) for the history.

    Args:
        states: language -> states at the last prompt token. *Shape:* (questions, layers + 1, hidden).
        own: language -> the model's own label scores, in nats. *Shape:* (questions, labels).
        taught: language -> the teacher's label scores. *Shape:* (questions, labels).
        labels: ids of the labels.
        layers: that are tried; None for the upper two thirds.

    Raises:
        DataError: there are fewer than `FEWEST_QUESTIONS` questions.
    """
    codes = list(states)
    n_questions, n_states, _ = states[codes[0]].shape
    if n_questions < FEWEST_QUESTIONS:
        raise DataError(f"got {n_questions} questions for a readout, expected at least {FEWEST_QUESTIONS}")
    layers = layers or range(max(1, round((n_states - 1) / 3)), n_states)
    said = {code: _without_mean(_centred(each)) for code, each in own.items()}
    goal = {code: _without_mean(_centred(each)) for code, each in taught.items()}
    left_out = [code for code in codes if code != "en"]
    if len(codes) < 3:  # one language beside English: only questions can be left out
        left_out = left_out or codes
    tried = []
    for layer in layers:
        features = {code: each[:, layer].astype(np.float64) for code, each in states.items()}
        tried += _tried(layer, features, said, goal, left_out)
    best = max(tried, key=lambda each: each.agreement)
    features = {code: each[:, best.layer].astype(np.float64) for code, each in states.items()}
    weights = _fit(features, goal, best.strength)
    readout = _scaled(weights, features, said)
    mean = np.mean([each.mean(0) for each in features.values()], 0)
    without = float(np.mean([_agreement(said[code], goal[code]) for code in left_out]))
    found = Readout(
        best.layer,
        tuple(labels),
        torch.tensor(mean, dtype=torch.float32),
        torch.tensor(readout, dtype=torch.float32),
    )
    return found, {"chosen": asdict(best), "without": without, "tried": [asdict(each) for each in tried]}


def _tried(
    layer: int,
    features: Mapping[str, np.ndarray],
    said: Mapping[str, np.ndarray],
    goal: Mapping[str, np.ndarray],
    left_out: Sequence[str],
) -> list[Tried]:
    """Return how a layer does at every strength, on languages and questions that are left out together."""
    n_questions = len(next(iter(features.values())))
    folds = np.arange(n_questions) % _FOLDS
    agreements: dict[float, list[float]] = {strength: [] for strength in STRENGTHS}
    for code in left_out:
        others = [each for each in features if each != code] or [code]
        combined = {strength: np.zeros_like(goal[code]) for strength in STRENGTHS}
        for fold in range(_FOLDS):
            kept, asked = folds != fold, folds == fold
            fitted = {each: features[each][kept] for each in others}
            solved = _fits(fitted, {each: goal[each][kept] for each in others}, STRENGTHS)
            centre = features[code].mean(0)
            for strength, weights in solved.items():
                scaled = _scaled(weights, fitted, {each: said[each][kept] for each in others})
                combined[strength][asked] = said[code][asked] + (features[code][asked] - centre) @ scaled
        for strength in STRENGTHS:
            agreements[strength].append(_agreement(combined[strength], goal[code]))
    return [Tried(layer, strength, float(np.mean(found))) for strength, found in agreements.items()]


def _fit(features: Mapping[str, np.ndarray], goal: Mapping[str, np.ndarray], strength: float) -> np.ndarray:
    return _fits(features, goal, [strength])[strength]


def _fits(
    features: Mapping[str, np.ndarray], goal: Mapping[str, np.ndarray], strengths: Sequence[float]
) -> dict[float, np.ndarray]:
    """Return strength -> weights, by the eigenvectors of the kernel. *Shape:* (hidden, labels) each."""
    rows = np.concatenate([each - each.mean(0) for each in features.values()])
    wanted = np.concatenate([_without_mean(goal[code]) for code in features])
    scale = rows.std(0) + 1e-3 * rows.std()
    rows = rows / scale
    values, vectors = np.linalg.eigh(rows @ rows.T)
    turned = vectors.T @ wanted
    found = {}
    for strength in strengths:
        shrunk = turned / (values + strength * values.mean())[:, None]
        found[strength] = (rows.T @ (vectors @ shrunk)) / scale[:, None]
    return found


def _scaled(weights: np.ndarray, features: Mapping[str, np.ndarray], said: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return weights whose scores vary as much as the model's own do."""
    read = np.concatenate([(each - each.mean(0)) @ weights for each in features.values()])
    own = np.concatenate([_without_mean(said[code]) for code in features])
    return weights * (own.std() / max(read.std(), 1e-12))


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Pearson correlation of scores over questions and labels; 0 where one does not vary."""
    a, b = (a - a.mean(0)).ravel(), (b - b.mean(0)).ravel()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 0 else 0.0


def _centred(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(1, keepdims=True)


def _without_mean(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(0, keepdims=True)
