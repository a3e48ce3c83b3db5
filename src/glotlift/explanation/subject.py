"""What is looked into: a model, prompts of a task in several languages, answer words, and where results go.

Enters: from a stage. Leaves: the one argument that every kind of explanation takes, see
`glotlift.explanation.settings.KINDS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glotlift.explanation.settings import Pooling, StatesType
from glotlift.models.load import LoadedModel
from glotlift.models.packing import TOKEN_BUDGET, Row
from glotlift.tasks.task import AnswerSet, Item

log = logging.getLogger("glotlift")


class Questions(Protocol):
    """Items of a task in one language, as tokens; `glotlift.evaluation.prompts.Prompts` is one."""

    @property
    def items(self) -> Sequence[Item]:
        """The items, with the same ids in every language."""
        ...

    @property
    def rows(self) -> Sequence[Row]:
        """Their prompts, in the same order; `span` marks the tokens of the question."""
        ...

    @property
    def texts(self) -> Sequence[str]:
        """The same prompts as text, and perhaps others behind them."""
        ...


@dataclass(frozen=True)
class LensOptions:
    """What the lens reads beside the plain reading of every layer.

    Attributes:
        sequences: whole answer words, too; every token of them but the last costs as much as a prompt's end.
        components: what attention and MLP of every block add, and the state between them; a pass of its own.
        paper: the quantities of arXiv 2405.13816.
        tuned_lens: folder of a tuned lens that reads beside the plain one; None for none.
    """

    sequences: bool = False
    components: bool = False
    paper: bool = False
    tuned_lens: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is looked into.

    Attributes:
        loaded: the model.
        prompts: language -> its questions, parallel over languages by item id; at least one language.
        folder: the run folder.
        task_key: name of the task in paths.
        english_words: label id -> English answer word.
        own_words: language -> label id -> answer word of that language.
        seed: of all draws.
        token_budget: tokens of a batch.
        progress: called with the number of items done; in all these are variants x items of all languages.
        lens: what the lens reads.
        pooling: tokens that the geometry's state of an item is the mean of.
        states_dtype: type in which these states are written.
    """

    loaded: LoadedModel
    prompts: Mapping[str, Questions]
    folder: Path
    task_key: str
    english_words: AnswerSet
    own_words: Mapping[str, AnswerSet]
    seed: int = 0
    token_budget: int = TOKEN_BUDGET
    progress: Callable[[int], Any] = lambda _n: None
    lens: LensOptions = field(default_factory=LensOptions)
    pooling: Pooling = "question"
    states_dtype: StatesType = "float32"


def looked_into(loaded: LoadedModel) -> tuple[str, ...]:
    """Return the variants that differ inside; a readout changes no state, so there the base is all there is to see."""
    return ("base",) if loaded.readout is not None else loaded.variants


def say_what_is_left_out(loaded: LoadedModel) -> None:
    """Log one line where a variant is not looked into."""
    if loaded.readout is not None:
        log.info("a readout changes no state: base and tuned look alike inside, so the base alone is looked into")
