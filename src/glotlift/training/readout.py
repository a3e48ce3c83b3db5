"""The readout in closed form: ridge regression from a middle layer's state to what the teacher says.

Enters: states of the same questions in several languages, and the teacher's label scores. Leaves: a `Readout`, and what
chose it. No gradient, no label: seconds.

For two thirds of its depth a model may hold the answer in more languages than its output says. With `h` the state at
the last prompt token of a layer, less its mean over the language's questions, and `t` the teacher's scores (see
`glotlift.training.teacher`; their mean taken off, so a preference for a label is no part of it), over all languages at
once

    W = argmin  sum |W h - t|^2 + strength |W|^2

with features of one scale. Layer, strength, and whether the model's own scores are added are those whose scores agree
best with the teacher on whole questions, in a language and on questions that were both left out of the fit: no right
answer is looked at. Where they agree no better than the model's own, by a 95 % interval over the questions, the readout
gets no weight and the model stays as it is. The best of many agrees well by chance, too: so for that judgement the
questions of a fold are read by what is best on the other folds. The readout has the scale that the model's own scores
have over the languages fitted on, so that both count the same where they are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from glotlift.errors import DataError
from glotlift.models.readout import Readout
from glotlift.training.agreement import agreement, agrees_better, without_means

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge strengths that are tried, in units of the mean eigenvalue of the kernel."""

FEWEST_QUESTIONS = 10
"""With fewer, a readout fits what is peculiar to them."""

_FOLDS = 5


@dataclass(frozen=True)
class Stated:
    """Questions in a language, or sentences of them, as the model holds them and as the teacher answers them.

    Attributes:
        language: code.
        questions: for every row, the name of the question that it is, or is a sentence of.
        states: at the last prompt token. *Shape:* (rows, layers + 1, hidden).
        own: the model's own label scores, in nats. *Shape:* (rows, labels). None where rows are not whole questions and
            the model was not asked.
        taught: the teacher's. *Shape:* (rows, labels).
        is_whole: whether the rows are whole questions, on which agreement is measured.
    """

    language: str
    questions: Sequence[str]
    states: np.ndarray
    own: np.ndarray | None
    taught: np.ndarray
    is_whole: bool = True


@dataclass(frozen=True)
class Tried:
    """A readout that was tried, and how it agrees with the teacher where it was not fitted.

    Attributes:
        layer: of the state, from 1.
        strength: of the ridge.
        own: what the model's own scores are multiplied by before the readout's are added: 1 or 0.
        agreement: Pearson correlation with the teacher, a mean over left-out languages, -1 to 1.
        scores: of the questions of every left-out language, where they were not fitted. *Shape:* (questions, labels)
            each.
    """

    layer: int
    strength: float
    own: float
    agreement: float
    scores: Sequence[np.ndarray] = field(repr=False)

    def about(self) -> dict[str, float]:
        """Return what it is and how it does."""
        return {"layer": self.layer, "strength": self.strength, "own": self.own, "agreement": self.agreement}


@dataclass(frozen=True)
class _Block:
    """The rows of a language at one layer, each without its mean; `fold` says when a row is left out.

    `products`: fold -> features by features, and features by what is taught, of the rows of that fold: sums of these
    make every fit.
    """

    language: str
    features: np.ndarray
    own: np.ndarray
    taught: np.ndarray
    fold: np.ndarray
    is_whole: bool
    products: Mapping[int, tuple[np.ndarray, np.ndarray]]


@threadpool_limits.wrap(limits=1, user_api="blas")  # matrices are small, and waiting threads cost more than they bring
def fit_readout(
    stated: Sequence[Stated], labels: Sequence[str], layers: Sequence[int] | None = None
) -> tuple[Readout, dict[str, Any]]:
    """Return the readout, and what chose it.

    That is `chosen` and `tried`; `agreement` of what choosing so gives on questions that choose nothing; `without`, the
    model's own; `better`, the 95 % interval of the difference; `is_used`, whether that is above 0. If not, all weights
    are 0.

    Args:
        stated: questions of every language, the same in each, and sentences of them where there are any.
        labels: ids of the labels.
        layers: that are tried; None for the upper two thirds.

    Raises:
        DataError: there are fewer than `FEWEST_QUESTIONS` questions.
    """
    whole = [each for each in stated if each.is_whole]
    names = list(dict.fromkeys(name for each in whole for name in each.questions))
    if len(names) < FEWEST_QUESTIONS:
        raise DataError(f"got {len(names)} questions for a readout, expected at least {FEWEST_QUESTIONS}")
    fold = {name: index % _FOLDS for index, name in enumerate(names)}
    n_states = stated[0].states.shape[1]
    tried: list[Tried] = []
    for layer in layers or range(max(1, round((n_states - 1) / 3)), n_states):
        tried += _tried(layer, _blocks(stated, layer, fold)[0])
    best = max(tried, key=lambda each: each.agreement)
    blocks, back = _blocks(stated, best.layer, fold)
    left_out = _left_out(blocks)
    own, taught = [each.own for each in left_out], [each.taught for each in left_out]
    read = _read_by_the_others_choice(tried, left_out)
    better = agrees_better(read, own, taught)
    is_used = better[0] > 0
    weights = back @ _scaled(_fit(_products(blocks, range(_FOLDS)), best.strength), blocks) * is_used
    mean = np.mean([each.states[:, best.layer].astype(np.float64).mean(0) for each in whole], 0)
    found = Readout(
        best.layer,
        tuple(labels),
        torch.tensor(mean, dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
        best.own if is_used else 1.0,
    )
    return found, {
        "chosen": best.about(), "agreement": _mean_agreement(read, taught), "without": _mean_agreement(own, taught),
        "better": better, "is_used": is_used, "tried": [each.about() for each in tried],
    }  # fmt: skip


def _mean_agreement(scores: Sequence[np.ndarray], taught: Sequence[np.ndarray]) -> float:
    return float(np.mean([agreement(*each) for each in zip(scores, taught, strict=True)]))


def _read_by_the_others_choice(tried: Sequence[Tried], left_out: Sequence[_Block]) -> list[np.ndarray]:
    """Return scores in which the questions of every fold are read by what agrees best on those of the other folds."""
    read = [np.zeros_like(each.taught) for each in left_out]
    for fold in range(_FOLDS):
        others = [each.fold != fold for each in left_out]
        taught = [each.taught[rows] for each, rows in zip(left_out, others, strict=True)]

        def on_others(
            one: Tried, others: Sequence[np.ndarray] = others, taught: Sequence[np.ndarray] = taught
        ) -> float:
            return _mean_agreement([scores[rows] for scores, rows in zip(one.scores, others, strict=True)], taught)

        best = max(tried, key=on_others)
        for scores, chosen, rows in zip(read, best.scores, others, strict=True):
            scores[~rows] = chosen[~rows]
    return read


def _blocks(stated: Sequence[Stated], layer: int, fold: Mapping[str, int]) -> tuple[list[_Block], np.ndarray]:
    """Return the rows of every language in features of one scale, and what turns weights back to those of the states.

    Where there are fewer rows than features, the features are the rows' own directions; ridge regression is the same in
    these. *Shape* of the second: (hidden, features).
    """
    states = [_without_mean(each.states[:, layer].astype(np.float64)) for each in stated]
    everything = np.concatenate(states)
    scale = everything.std(0) + (1e-3 * everything.std() or 1.0)  # 1 where no state differs
    back = np.diag(1 / scale)
    if len(everything) < everything.shape[1]:
        directions = np.linalg.svd(everything / scale, full_matrices=False)[2].T
        back = directions / scale[:, None]
    blocks = []
    for each, rows in zip(stated, states, strict=True):
        features, taught = rows @ back, without_means(each.taught)
        folds = np.array([fold[name] for name in each.questions])
        products = {}
        for number in range(_FOLDS):
            part = features[folds == number]
            products[number] = part.T @ part, part.T @ taught[folds == number]
        own = np.zeros_like(taught) if each.own is None else without_means(each.own)
        blocks.append(_Block(each.language, features, own, taught, folds, each.is_whole, products))
    return blocks, back


def _left_out(blocks: Sequence[_Block]) -> list[_Block]:
    """Return the whole questions of the languages left out in turn: all but English, where there are others."""
    whole = [each for each in blocks if each.is_whole]
    return [each for each in whole if each.language != "en"] or whole


def _tried(layer: int, blocks: Sequence[_Block]) -> list[Tried]:
    """Return how a layer does at every strength, on languages and questions that are left out together."""
    left_out = _left_out(blocks)
    read = [_read(asked, blocks, STRENGTHS) for asked in left_out]
    found = []
    for strength in STRENGTHS:
        for own in (1.0, 0.0):
            scores = [own * asked.own + each[strength] for asked, each in zip(left_out, read, strict=True)]
            found.append(
                Tried(layer, strength, own, _mean_agreement(scores, [each.taught for each in left_out]), scores)
            )
    return found


def _read(asked: _Block, blocks: Sequence[_Block], strengths: Sequence[float]) -> dict[float, np.ndarray]:
    """Return what is read of a language's questions by fits without its rows and without those of the same fold."""
    others = [each for each in blocks if each.language != asked.language] or list(blocks)
    read = {strength: np.zeros_like(asked.taught) for strength in strengths}
    for fold in range(_FOLDS):
        products = _products(others, [each for each in range(_FOLDS) if each != fold])
        rows = asked.features[asked.fold == fold]
        for strength in strengths:
            read[strength][asked.fold == fold] = rows @ _scaled(_fit(products, strength), others)
    return read


def _products(blocks: Sequence[_Block], folds: Iterable[int]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return features by features and features by what is taught, of all rows of some folds, and their number."""
    kept = list(folds)
    features, taught = (sum(each.products[fold][side] for each in blocks for fold in kept) for side in (0, 1))
    return np.asarray(features), np.asarray(taught), sum(int(np.isin(each.fold, kept).sum()) for each in blocks)


def _fit(products: tuple[np.ndarray, np.ndarray, int], strength: float) -> np.ndarray:
    """Return the ridge regression's weights. *Shape:* (features, labels)."""
    features, taught, n_rows = products
    ridge = strength * np.trace(features) / n_rows or 1.0
    return cho_solve(cho_factor(features + ridge * np.eye(len(features)), check_finite=False), taught)


def _scaled(weights: np.ndarray, blocks: Sequence[_Block]) -> np.ndarray:
    """Return weights whose scores of whole questions vary as much as the model's own do."""
    whole = [each for each in blocks if each.is_whole]
    read = np.concatenate([each.features @ weights for each in whole])
    own = np.concatenate([each.own for each in whole])
    return weights * (own.std() / max(read.std(), 1e-12))


def _without_mean(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(0, keepdims=True)
