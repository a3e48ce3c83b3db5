"""A task: what is asked, in every language, and how it is written down as a prompt.

Enters: a task definition (YAML, see `glotlift.tasks.load`) and an `Item`. Leaves: text. No model is known here.

A prompt is the demonstrations, a blank line behind each, then the item, then the answer cue. The cue ends directly
before the answer word, usually in an opening double quote:

    Review: Works well and looks lovely in our kitchen.
    Sentiment: "positive"

    Review: Stopped working after a day.
    Sentiment: "negative"

    Review: {text}
    Sentiment: "

In place of demonstrations a language may have a verbatim `preamble`, which is used byte for byte.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from glotlift.errors import DataError, LanguageError, TaskError, one_of
from glotlift.fields import Columns, GoldMap, Name
from glotlift.schema import Frozen
from glotlift.tasks.faults import ANSWERS_IN, task_faults

AnswerSet = dict[str, str]
"""Label id -> the word that stands for it in an answer, e.g. `{"positive": "gut", "negative": "schlecht"}`."""


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"got the YAML boolean {value}; put the word in quotes")
    return value


Text = Annotated[str, BeforeValidator(_text)]


@dataclass(frozen=True)
class Item:
    """One test row: the task's fields, and the label id that is right."""

    id: str
    fields: Mapping[str, str]
    gold: str


class Demonstration(Frozen):
    """A worked example: `label`, and beside it one key a field of the task."""

    label: Text
    fields: dict[str, Text]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, dict) and "fields" not in value:
            return {"label": value.get("label"), "fields": {k: v for k, v in value.items() if k != "label"}}
        return value


class LanguagePack(Frozen):
    """A task in one language.

    Attributes:
        question: one item, with the task's fields as `{field}`.
        cue: the line behind it, up to the answer word.
        template: question and cue in one text, in place of the two.
        answer_sets: name -> answer words.
        demonstrations: worked examples, shown in this order.
        pool: more of them, from which `demo_seed` draws and which serve a `num_fewshot` beyond the demonstrations.
        preamble: text before the item, byte for byte, in place of demonstrations: one for all answer sets, or one each,
            those in other languages' words (`in:<code>`) among them.
    """

    question: str | None = Field(None, min_length=1)
    cue: str | None = Field(None, min_length=1)
    template: str | None = Field(None, min_length=1)
    answer_sets: dict[str, dict[Text, Text]] = {}
    demonstrations: tuple[Demonstration, ...] = ()
    pool: tuple[Demonstration, ...] = ()
    preamble: str | dict[str, str] | None = None

    @property
    def layout(self) -> str:
        """How one item is written, up to the answer word, as a format string; braces of the cue are literal."""
        return "".join(self.question_and_cue)

    @property
    def question_and_cue(self) -> tuple[str, str]:
        """The layout, cut before the line break that begins the cue; see `Task.question_and_cue`."""
        if self.template is None:
            return self.question or "", "\n" + (self.cue or "").replace("{", "{{").replace("}", "}}")
        behind = ""  # the last field, as the file has it
        for literal, field, _, _ in string.Formatter().parse(self.template):
            behind = "" if field is not None else behind + literal.replace("{", "{{").replace("}", "}}")
        line_break, cue = behind.rpartition("\n")[1:]
        cue = line_break + cue if line_break else ""
        return self.template.removesuffix(cue), cue

    @property
    def examples(self) -> dict[str, Demonstration]:
        """Demonstrations and pool, each under its place in the file, such as `pool[1]`."""
        both = {"demonstrations": self.demonstrations, "pool": self.pool}
        return {f"{key}[{number}]": shown for key, listed in both.items() for number, shown in enumerate(listed, 1)}

    @property
    def closing(self) -> str:
        """What closes an answer word: a double quote where the cue opens one."""
        return '"' if self.layout.endswith('"') else ""


class TaskData(Frozen):
    """Where a task's test rows are. See `glotlift.data.read` for `source`; a relative path counts from the task file.

    Attributes:
        source: a path with `{lang}` in it, a file with a `language_column`, a folder in the paper's layout, `hub:NAME`;
            None where a flag or a recipe says it.
        gold: the column with the right label; looked for when not named.
        columns: the column of a field, where it is not named like the field; with `{lang}` in it, one a language.
        gold_map: what a gold value means, such as `{0: negative, 1: positive}`; without it, an id or a word.
        language_column: the column that says a row's language, where one file or data set holds them all.
    """

    source: str | None = None
    gold: str | None = None
    columns: Columns = {}
    gold_map: GoldMap = {}
    language_column: str | None = None


class Task(Frozen):
    """A classification task in several languages. See docs/tasks.md for the file format."""

    name: Name
    version: int = 1
    description: str = ""
    fields: tuple[str, ...] = Field(min_length=1)
    labels: tuple[Text, ...] = Field(min_length=2, max_length=20)
    answer_sets: dict[str, dict[Text, Text]] = {}
    data: TaskData | None = None
    languages: dict[Annotated[str, BeforeValidator(_text)], LanguagePack] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> Task:
        faults = task_faults(self)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def pack(self, language: str) -> LanguagePack:
        """Return the task's texts in a language.

        Raises:
            LanguageError: the task has no prompts in it.
        """
        if language not in self.languages:
            has = " ".join(self.languages)
            raise LanguageError(f"task {self.name!r} has no prompts in {language!r}; it has: {has}")
        return self.languages[language]

    def sets(self, language: str) -> dict[str, AnswerSet]:
        """Return the answer sets of a language by name, without those in other languages' words.

        Raises:
            LanguageError: the task has no prompts in it.
        """
        return {**self.answer_sets, **self.pack(language).answer_sets}

    def answers(self, language: str, answer_set: str) -> AnswerSet:
        """Return the answer words of a language, in label order.

        Args:
            language: code of the prompt language.
            answer_set: `own` (words of the prompt language), a set of the task file such as `english` or `arbitrary`,
                or `in:<code>`, the own words of another language of the task.

        Raises:
            TaskError: there is no such answer set for this language.
            LanguageError: the task has no prompts in the language, or in that of `in:<code>`.
        """
        if answer_set.startswith(ANSWERS_IN):
            return self.answers(answer_set.removeprefix(ANSWERS_IN), "own")
        known = self.sets(language)
        if answer_set not in known:
            expected = one_of(known) or "(the task defines none)"
            raise TaskError(f"task {self.name!r}, {language}: no answer set {answer_set!r}; expected {expected}")
        return {label: known[answer_set][label] for label in self.labels}

    def question(self, language: str, fields: Mapping[str, str]) -> str:
        """Return one question up to and including the cue, without demonstrations."""
        return "".join(self.question_and_cue(language, fields))

    def question_and_cue(self, language: str, fields: Mapping[str, str]) -> tuple[str, str]:
        """Return a question and the cue behind it, line break and all, which an instruct model's answer begins with.

        The cut is the layout's own, whatever the fields hold: before `cue`, or in a `template` at the last line break
        behind the last field; without one there is no cue.
        """
        question, cue = self.pack(language).question_and_cue
        return question.format_map(fields), cue.format_map({})

    def shown(
        self, language: str, num_fewshot: int | None = None, demo_seed: int | None = None
    ) -> tuple[Demonstration, ...]:
        """Return the demonstrations of a prompt, in order.

        Args:
            language: code of the prompt language.
            num_fewshot: how many; None for as many as `demonstrations` has. More than that come from the pool.
            demo_seed: draws them from demonstrations and pool, as evenly over the labels as can be, and shuffles them.
                The same ones in all languages whose examples have the same labels in the same order. None for the
                first of the file, in its order.

        Raises:
            TaskError: the task has fewer in this language, or a verbatim preamble, which cannot be cut.
        """
        pack = self.pack(language)
        if pack.preamble is not None:
            if num_fewshot or demo_seed is not None:
                got = f"num_fewshot {num_fewshot}" if num_fewshot else f"demo_seed {demo_seed}"
                raise TaskError(f"task {self.name!r}, {language}: got {got}, expected none for a verbatim preamble")
            return ()
        examples = (*pack.demonstrations, *pack.pool)
        count = len(pack.demonstrations) if num_fewshot is None else num_fewshot
        if count > len(examples):
            got = f"got num_fewshot {count}, expected at most {len(examples)}"
            raise TaskError(f"task {self.name!r}, {language}: {got}")
        if demo_seed is None:
            return examples[:count]
        labels = [example.label for example in examples]
        return tuple(examples[index] for index in _drawn(labels, count, demo_seed))

    def preamble(
        self, language: str, answer_set: str, num_fewshot: int | None = None, demo_seed: int | None = None
    ) -> str:
        """Return what stands before the question: the demonstrations with a blank line behind each, or verbatim text.

        Args:
            language: code of the prompt language.
            answer_set: see `answers`.
            num_fewshot: see `shown`; 0 also leaves out a verbatim preamble.
            demo_seed: see `shown`.

        Raises:
            TaskError: as `shown`; or there is no such answer set, or no verbatim preamble for it.
        """
        words, pack = self.answers(language, answer_set), self.pack(language)
        shown = self.shown(language, num_fewshot, demo_seed)
        if pack.preamble is not None and num_fewshot != 0:
            if isinstance(pack.preamble, str):
                return pack.preamble
            own_words = answer_set == f"{ANSWERS_IN}{language}" and answer_set not in pack.preamble
            name = "own" if own_words else answer_set
            if name not in pack.preamble:
                has = one_of(pack.preamble)
                raise TaskError(
                    f"task {self.name!r}, {language}: no preamble for answer set {answer_set!r}; it has {has}"
                )
            return pack.preamble[name]
        return "".join(f"{self.question(language, each.fields)}{words[each.label]}{pack.closing}\n\n" for each in shown)

    def prompt(
        self,
        language: str,
        answer_set: str,
        fields: Mapping[str, str],
        num_fewshot: int | None = None,
        demo_seed: int | None = None,
    ) -> str:
        """Return the whole prompt: demonstrations, question, cue."""
        return self.preamble(language, answer_set, num_fewshot, demo_seed) + self.question(language, fields)

    def label_of(self, language: str, word: str) -> str:
        """Return the label id that a gold value means: an id, or a word of any answer set.

        Raises:
            DataError: it is neither, or it stands for one label in one set and for another in another set.
        """
        if word in self.labels:
            return word
        sets = self.sets(language)
        found = {label for answers in sets.values() for label, answer in answers.items() if answer == word}
        if len(found) > 1:
            raise DataError(
                f"label {word!r} stands for {' and '.join(sorted(found))} in different answer sets, expected ids"
            )
        if found:
            return found.pop()
        known = [*self.labels, *(answer for answers in sets.values() for answer in answers.values())]
        raise DataError(f"unknown label {word!r}; expected one of: {', '.join(dict.fromkeys(known))}")


def _drawn(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """Return `count` indexes, as even over the labels as can be, in random order."""
    generator = random.Random(seed)
    order = list(range(len(labels)))
    generator.shuffle(order)
    rank: dict[str, int] = {}
    rounds = []
    for index in order:  # the first of every label, then the second of every label, ...
        rounds.append((rank.setdefault(labels[index], 0), index))
        rank[labels[index]] += 1
    chosen = [index for _, index in sorted(rounds, key=lambda pair: pair[0])[:count]]
    generator.shuffle(chosen)
    return chosen
