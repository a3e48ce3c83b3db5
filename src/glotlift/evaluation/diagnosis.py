"""Diagnosis: is there room that alignment could fill in a language, and of what kind?

Enters: what a model says of the same questions in several languages, and the states in which it holds them. Leaves: a
`Diagnosis` a language. No right answer is needed. Against the pivot language, English where it is there:

    agreement           share of the questions with the same label as in the pivot
    agreement_centred   the same, each language's preference for a label taken off (batch calibration)
    correlation         Pearson's, of the label scores without their means over labels and over questions; 95 % interval
                        by Fisher's z
    token_ratio         tokens of a question, over those of the same question in the pivot
    mexa                a layer: share of the questions whose translation is nearer than every other question, both ways
                        (Kargaran et al. 2024, arXiv 2410.05873), by the cosine of states that are means over the
                        question's tokens, each language's mean taken off; `mexa_raw` with it left in

With right answers also accuracy (raw and batch-calibrated) and AUROC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, spearmanr

from glotlift.errors import DataError
from glotlift.measures import LEVEL, auroc, batch_calibrated

FEWEST_QUESTIONS = 6
"""With fewer no correlation is told."""

BIAS = 0.05
"""Agreement that centring adds, from which on a language is said to lose answers to a preference for a label."""

FAR = 0.8
"""Correlation below which, with its whole interval, a language is said to be answered otherwise than the pivot."""

READ = 0.5
"""MEXA of the best layer from which on the model is said to tell the translations apart."""

MANY_TOKENS = 1.5
"""Tokens a question, over the pivot's, from which on they are named."""

PREDICTORS = ("agreement", "agreement_centred", "correlation", "token_ratio", "mexa_best")
"""What may predict, without labels, how far a language is behind."""


@dataclass(frozen=True)
class Said:
    """What a model says of questions in one language.

    Attributes:
        scores: log-probabilities of the labels. *Shape:* (questions, labels).
        n_tokens: of every question. *Shape:* (questions,).
        states: means over the question's tokens. *Shape:* (questions, layers + 1, hidden).
        gold: right labels. *Shape:* (questions,), None where they are not known.
    """

    scores: np.ndarray
    n_tokens: np.ndarray
    states: np.ndarray
    gold: np.ndarray | None = None


@dataclass(frozen=True)
class Diagnosis:
    """How a language stands against the pivot; see the module's head. Shares are 0 to 1.

    Attributes:
        language: code.
        n: number of questions.
        agreement: raw.
        agreement_centred: see the module's head.
        correlation: -1 to 1; None with too few questions or where scores do not vary.
        low: lower end of its interval.
        high: upper end.
        token_ratio: see the module's head.
        mexa: a layer, the embedding output first.
        mexa_raw: likewise.
        accuracy: raw; None without right answers, as all that follow.
        accuracy_calibrated: under batch calibration.
        auroc: None also where a label is missing.
    """

    language: str
    n: int
    agreement: float
    agreement_centred: float
    correlation: float | None
    low: float | None
    high: float | None
    token_ratio: float
    mexa: tuple[float, ...]
    mexa_raw: tuple[float, ...]
    accuracy: float | None = None
    accuracy_calibrated: float | None = None
    auroc: float | None = None

    @property
    def mexa_best(self) -> float:
        """MEXA of the best layer."""
        return max(self.mexa)

    @property
    def room(self) -> list[str]:
        """What keeps the language from the pivot's answers.

        `bias`: a preference for a label, which calibration takes off and alignment is not needed for. `alignment`: the
        model tells the translations apart in its middle and answers otherwise all the same. `reading`: it does not tell
        them apart, so there is little to align. `tokenizer`: it needs many more tokens.
        """
        found = ["bias"] if self.agreement_centred - self.agreement >= BIAS else []
        if self.high is not None and self.high < FAR:
            found.append("alignment" if self.mexa_best >= READ else "reading")
            found += ["tokenizer"] if self.token_ratio >= MANY_TOKENS else []
        return found


def diagnose_language(code: str, said: Said, pivot: Said, labels: Sequence[str]) -> Diagnosis:
    """Return how a language stands against the pivot.

    Args:
        code: of the language.
        said: what the model says of it.
        pivot: what it says of the same questions, in the same order, in the pivot.
        labels: label ids, in the order of the scores.

    Raises:
        DataError: the two have not as many questions.
    """
    n = len(said.scores)
    if n != len(pivot.scores) or not n:
        raise DataError(f"{code}: got {n} questions against {len(pivot.scores)} of the pivot, expected the same ones")
    own, other = (batch_calibrated(_log_shares(each.scores)) for each in (said, pivot))
    raw, centred = _mexa(said.states, pivot.states)
    correlation, low, high = _correlation(own, other)
    accuracy = calibrated = area = None
    if said.gold is not None:
        right = np.array([list(labels).index(gold) for gold in said.gold])
        accuracy = float((said.scores.argmax(1) == right).mean())
        calibrated = float((own.argmax(1) == right).mean())
        area = auroc(_log_shares(said.scores), np.asarray(said.gold), labels)
    return Diagnosis(
        code, n, float((said.scores.argmax(1) == pivot.scores.argmax(1)).mean()),
        float((own.argmax(1) == other.argmax(1)).mean()), correlation, low, high,
        float(np.mean(said.n_tokens / pivot.n_tokens)), centred, raw, accuracy, calibrated, area,
    )  # fmt: skip


def _log_shares(scores: np.ndarray) -> np.ndarray:
    """Return log-probabilities renormalised over the labels."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def _correlation(own: np.ndarray, other: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Return Pearson's correlation of label scores without their means over labels and questions, and its interval."""
    a, b = (_without_means(each).ravel() for each in (own, other))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    if len(own) < FEWEST_QUESTIONS or norms <= 1e-12:
        return None, None, None
    r = float(np.clip(a @ b / norms, -1, 1))
    half = norm.ppf((1 + LEVEL) / 2) / np.sqrt(len(own) - 3)
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return r, float(np.tanh(z - half)), float(np.tanh(z + half))


def _without_means(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.mean(1, keepdims=True)
    return scores - scores.mean(0, keepdims=True)


def _mexa(own: np.ndarray, other: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return MEXA a layer, raw and with each language's mean taken off. *Shapes:* (questions, layers + 1, hidden)."""
    found: list[list[float]] = [[], []]
    for layer in range(own.shape[1]):
        a, b = (each[:, layer].astype(np.float64) for each in (own, other))
        for values, is_centred in zip(found, (False, True), strict=True):
            if is_centred:
                a, b = a - a.mean(0), b - b.mean(0)
            values.append(_nearest_both_ways(_of_length_one(a) @ _of_length_one(b).T))
    return tuple(found[0]), tuple(found[1])


def _of_length_one(states: np.ndarray) -> np.ndarray:
    return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)


def _nearest_both_ways(cosine: np.ndarray) -> float:
    """Return the share of the questions nearer to their own translation than to any other question, both ways."""
    paired = np.diag(cosine)
    others = cosine - np.diag(np.full(len(cosine), np.inf))
    return float(((paired > others.max(0)) & (paired > others.max(1))).mean()) if len(cosine) > 1 else 1.0


def predicts(found: Mapping[str, Diagnosis], pivot: str) -> dict[str, dict[str, float]]:
    """Return how well each of `PREDICTORS` goes with the accuracy and AUROC that a language lacks against the pivot.

    Args:
        found: code -> diagnosis, with right answers.
        pivot: left out, as it lacks nothing.

    Returns:
        Predictor -> `auroc` and `accuracy_calibrated` -> Spearman's rank correlation with the gap over languages, -1 to
        1; empty with fewer than five languages or without right answers.
    """
    others = [each for code, each in found.items() if code != pivot]
    if len(others) < 5 or pivot not in found:
        return {}
    table: dict[str, dict[str, float]] = {}
    for measure in ("auroc", "accuracy_calibrated"):
        best = getattr(found[pivot], measure)
        values = [getattr(each, measure) for each in others]
        if best is None or any(value is None for value in values):
            continue
        for name in PREDICTORS:
            predictor = [getattr(each, name) for each in others]
            if any(value is None for value in predictor) or np.ptp(predictor) == 0 or np.ptp(values) == 0:
                continue
            gap = best - np.array(values, float)
            table.setdefault(name, {})[measure] = float(spearmanr(predictor, gap).statistic)
    return table
