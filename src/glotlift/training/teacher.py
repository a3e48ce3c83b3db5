"""What a student should answer: the teacher's label scores, each language's preference taken off.

Enters: the base model's label scores of the same questions in several languages. Leaves: for every language and
question the label scores that the tuned model is drawn to. With `s` the scores less their mean over the labels, `t` the
teacher's and a bar the mean over a language's questions,

    target_X(question) = t(question) - t_bar + m_X

A constant preference for a label is so no part of what the teacher says; `m_X`, what a language's mean is held to, is a
setting of its own: with `language` it stays where the base has it, and no gain can come from a shifted preference.

A `control` puts something in the teacher's place that cannot teach what the teacher does; what it gains, the recipe
gains without its teacher. `gold` is no control but the ceiling: it reads the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from glotlift.errors import DataError


def centred(scores: np.ndarray) -> np.ndarray:
    """Return label scores less their mean over the labels. *Shape:* (questions, labels), in nats."""
    return scores - scores.mean(1, keepdims=True)


def teacher_targets(
    scores: Mapping[str, np.ndarray],
    languages: Sequence[str],
    *,
    teacher: str = "english",
    center: str = "language",
    control: str = "none",
    gold: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the targets of every language.

    Args:
        scores: language -> log-probabilities of the labels. *Shape:* (questions, labels), the same questions in all.
        languages: those that are taught.
        teacher: `english`; or `ensemble`, the product of experts over English and all languages (a mean of scores).
        center: what a language's mean score is held to: `language`, what it is in the base; `zero`, no preference;
            `prior`, the teacher's own.
        control: `none`, `shuffled-teacher` (another question's scores), `own-language-teacher` (the language's own
            scores), `constant-teacher` (the teacher's mean for every question), or `gold` (the right label, as far
            apart as the teacher's scores are).
        gold: number of the right label of every question, for the control `gold` only.
        seed: of the shuffle.

    Raises:
        DataError: there is one question only, so nothing can be told from a preference.
    """
    own = {code: centred(np.asarray(each, dtype=float)) for code, each in scores.items()}
    n_questions = len(own["en"])
    if n_questions < 2:
        raise DataError(f"got {n_questions} question to teach consistency with, expected at least 2")
    taught = _without_mean(own["en"])
    if teacher == "ensemble":
        taught = np.mean([_without_mean(own[code]) for code in ("en", *languages)], 0)
    prior = own["en"].mean(0)
    if control == "shuffled-teacher":
        taught = taught[np.random.default_rng(seed).permutation(n_questions)]
    elif control == "constant-teacher":
        taught = np.zeros_like(taught)
    elif control == "gold":
        if gold is None:
            raise DataError("got no right answers for train.consistency.control gold, expected one a question")
        right = np.eye(taught.shape[1])[np.asarray(gold)]
        taught = _without_mean(centred(right) * (taught.std() / centred(right).std()))
    targets = {}
    for code in languages:
        said = _without_mean(own[code]) if control == "own-language-teacher" else taught
        mean = {"language": own[code].mean(0), "zero": np.zeros_like(prior), "prior": prior}[center]
        targets[code] = said + mean
    return targets


def _without_mean(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(0, keepdims=True)
