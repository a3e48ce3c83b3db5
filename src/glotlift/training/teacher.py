"""What a student should answer: the teacher's label scores, each language's preference taken off.

Enters: the base model's label scores of the same questions in several languages. Leaves: for every language and
question the label scores that the tuned model is drawn to. With `s` the scores less their mean over the labels, `t` the
teacher's and a bar the mean over a language's questions,

    target_X(question) = t(question) - t_bar + m_X

A constant preference for a label is so no part of what the teacher says; `m_X`, what a language's mean is held to, is a
setting of its own: with `language` it stays where the base has it, and no gain can come from a shifted preference.

The teacher `sentences` judges a question by its English sentences, where it has several: with `s_k` the scores of each
and a bar the mean over all sentences,

    t(question) = sum_k (s_k - s_bar) / sqrt(number of sentences)

brought to the spread that the scores of whole questions have. What the sentences say adds up, and the root keeps long
questions from counting for more than short ones. A model that is not sure of a long text is often sure of its parts.

A `control` puts something in the teacher's place that cannot teach what the teacher does; what it gains, the recipe
gains without its teacher. `gold` is no control but the ceiling: it reads the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from glotlift.errors import DataError


@dataclass(frozen=True)
class Answers:
    """What the base model says of questions, or of sentences of questions, in one language.

    Attributes:
        names: one a row, the same in every language for the same text.
        questions: name of the question that a row is, or is a sentence of.
        scores: log-probabilities of the labels. *Shape:* (rows, labels). None where the model is not asked, since only
            what the teacher says counts.
    """

    names: Sequence[str]
    questions: Sequence[str]
    scores: np.ndarray | None


def centred(scores: np.ndarray) -> np.ndarray:
    """Return label scores less their mean over the labels. *Shape:* (questions, labels), in nats."""
    return scores - scores.mean(1, keepdims=True)


def teacher_targets(
    answers: Mapping[str, Answers],
    languages: Sequence[str],
    *,
    teacher: str = "english",
    center: str = "language",
    control: str = "none",
    english_sentences: Answers | None = None,
    gold: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the targets of every language, in the order of its names.

    Args:
        answers: language -> what the base model says. English has every name that another language has.
        languages: those that are taught.
        teacher: `english`; `ensemble`, the product of experts over English and all languages (a mean of scores); or
            `sentences`, see the module's head.
        center: what a language's mean score is held to: `language`, what it is in the base, none where that is not
            asked; `zero`, no preference; `prior`, the teacher's own.
        control: `none`, `shuffled-teacher` (another question's scores), `own-language-teacher` (the language's own
            scores), `constant-teacher` (the teacher's mean for every question), or `gold` (the right label, as far
            apart as the teacher's scores are).
        english_sentences: what the teacher `sentences` goes by.
        gold: question -> number of its right label, for the control `gold` only.
        seed: of the shuffle.

    Raises:
        DataError: there is one question only, so nothing can be told from a preference.
    """
    english = answers["en"]
    own = {
        code: centred(np.asarray(each.scores, dtype=float)) for code, each in answers.items() if each.scores is not None
    }
    if (n := len(set(english.questions))) < 2:
        raise DataError(f"got {n} question to teach consistency with, expected at least 2")
    taught = _without_mean(own["en"])
    if teacher == "ensemble":
        taught = _ensemble(answers, own, ("en", *languages))
    elif teacher == "sentences" and english_sentences is not None:
        taught = _from_sentences(english, taught, english_sentences)
    if control in ("shuffled-teacher", "shuffled-pairs"):  # the teacher goes by the English version
        taught = taught[np.random.default_rng(seed).permutation(len(taught))]
    elif control == "constant-teacher":
        taught = np.zeros_like(taught)
    elif control == "gold":
        taught = _from_gold(english, taught, gold)
    by_name = dict(zip(english.names, taught, strict=True))
    prior = own["en"].mean(0)
    none = np.zeros_like(prior)
    targets = {}
    for code in languages:
        learned = np.stack([by_name[name] for name in answers[code].names])
        said = own[code] if control == "own-language-teacher" else learned
        mean = {"language": own[code].mean(0) if code in own else none, "zero": none, "prior": prior}[center]
        targets[code] = _without_mean(said) + mean
    return targets


def _ensemble(answers: Mapping[str, Answers], own: Mapping[str, np.ndarray], languages: Sequence[str]) -> np.ndarray:
    """Return the mean over the languages that have a text, in the order of English."""
    said: dict[str, list[np.ndarray]] = {}
    for code in languages:
        for name, scores in zip(answers[code].names, _without_mean(own[code]), strict=True):
            said.setdefault(name, []).append(scores)
    return np.stack([np.mean(said[name], 0) for name in answers["en"].names])


def _from_sentences(english: Answers, whole: np.ndarray, sentences: Answers) -> np.ndarray:
    """Return what the sentences of every question say; of one that has none, what it says as a whole."""
    if not len(sentences.names):
        return whole
    by_question: dict[str, list[np.ndarray]] = {}
    for question, scores in zip(sentences.questions, _without_mean(centred(np.asarray(sentences.scores))), strict=True):
        by_question.setdefault(question, []).append(scores)
    is_split = np.array([name in by_question for name in english.names])
    added = np.stack([
        np.sum(by_question[name], 0) / np.sqrt(len(by_question[name])) if name in by_question else scores
        for name, scores in zip(english.names, whole, strict=True)
    ])  # fmt: skip
    spread = added[is_split].std()
    return np.where(is_split[:, None], added * (whole.std() / spread if spread > 0 else 1.0), added)


def _from_gold(english: Answers, taught: np.ndarray, gold: Mapping[str, int] | None) -> np.ndarray:
    if gold is None:
        raise DataError("got no right answers for train.control gold, expected one a question")
    right = centred(np.eye(taught.shape[1])[[gold[question] for question in english.questions]])
    return right * (taught.std() / right.std())


def _without_mean(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(0, keepdims=True)
