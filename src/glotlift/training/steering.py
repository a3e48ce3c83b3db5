"""Steering without labels: offsets between languages from mean states, band and strength by agreement with the teacher.

Enters: the states of the same questions in several languages, and what the teacher says of them. Leaves: a
`glotlift.models.steering.Steering`, and what chose it. A band and a strength are tried by running the questions with
them; the one whose scores agree best with the teacher is taken, or none, where the model alone agrees better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from glotlift.errors import DataError
from glotlift.models.steering import Steering
from glotlift.training.agreement import agreement, without_means

BANDS = ((0.3, 0.7), (0.4, 0.9), (0.2, 0.6))
"""Where offsets are added and taken off, as shares of the depth."""

STRENGTHS = (0.5, 1.0)
"""What is tried beside 0, which is the model alone."""

Score = Callable[[Steering, str], np.ndarray]
"""Steering and a language -> label scores of its questions. *Shape:* (questions, labels)."""


def fit_steering(
    states: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    taught: Mapping[str, np.ndarray],
    score: Score,
    base: str,
) -> tuple[Steering, dict[str, Any]]:
    """Return the steering, and `chosen`, `tried` and `without` (the model's own agreement) for the history.

    Args:
        states: language -> means over the question's tokens, English among them. *Shape:* (questions, layers + 1,
            hidden).
        own: language -> the model's own label scores. *Shape:* (questions, labels).
        taught: language -> the teacher's, of all languages that are steered.
        score: runs the questions of a language with a steering.
        base: digest of the model's weights.

    Raises:
        DataError: there is no language beside English.
    """
    codes = [code for code in taught if code != "en"]
    if not codes:
        raise DataError("got no language beside English to steer, expected at least one")
    n_layers = states["en"].shape[1] - 1

    def made(band: tuple[float, float], strength: float) -> Steering:
        low, high = (min(n_layers, max(1, round(share * n_layers))) for share in band)
        moves = {code: states["en"][:, low].mean(0) - states[code][:, low].mean(0) for code in codes}
        offsets = {code: torch.tensor(move, dtype=torch.float32) for code, move in moves.items()}
        return Steering(low, max(high, low), strength, offsets, base)

    def agrees(scores: Mapping[str, np.ndarray]) -> float:
        return float(np.mean([agreement(without_means(scores[code]), without_means(taught[code])) for code in codes]))

    best, without = made(BANDS[0], 0.0), agrees(own)
    chosen = _told(best, without)
    tried = [chosen]
    for band in BANDS:
        for strength in STRENGTHS:
            each = made(band, strength)
            tried.append(_told(each, agrees({code: score(each, code) for code in codes})))
            if tried[-1]["agreement"] > chosen["agreement"]:
                best, chosen = each, tried[-1]
    return best, {"chosen": chosen, "without": without, "tried": tried}


def _told(steering: Steering, agrees: float) -> dict[str, Any]:
    return {"low": steering.low, "high": steering.high, "strength": steering.strength, "agreement": agrees}
