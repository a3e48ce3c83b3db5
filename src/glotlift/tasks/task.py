"""A task: what is asked, in every language, and how it is written down as a prompt.

Enters: a task definition (YAML, see `glotlift.tasks.load`) and an `Item`. Leaves: text. No model is known here.

A prompt is the demonstrations, a blank line between two of them, then the item, then the answer cue. The cue ends
directly before the answer word, usually in an opening double quote:

    Review: Works well and looks lovely in our kitchen.
    Sentiment: "positive"

    Review: Stopped working after a day.
    Sentiment: "negative"

    Review: {text}
    Sentiment: "
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from glotlift.errors import DataError, LanguageError, TaskError, one_of
from glotlift.schema import Frozen

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
    """A task in one language."""

    question: str = Field(min_length=1)
    cue: str = Field(min_length=1)
    answer_sets: dict[str, dict[Text, Text]] = {}
    demonstrations: tuple[Demonstration, ...] = ()


class Task(Frozen):
    """A classification task in several languages. See docs/tasks.md for the file format."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    version: int = 1
    description: str = ""
    fields: tuple[str, ...] = Field(min_length=1)
    labels: tuple[Text, ...] = Field(min_length=2, max_length=20)
    answer_sets: dict[str, dict[Text, Text]] = {}
    languages: dict[Annotated[str, BeforeValidator(_text)], LanguagePack] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> Task:
        faults = list(_faults(self))
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

    def answers(self, language: str, answer_set: str) -> AnswerSet:
        """Return the answer words of a language, in label order.

        Args:
            language: code of the prompt language.
            answer_set: `own` (words of the prompt language), or a set of the task file such as `english`, `arbitrary`.

        Raises:
            TaskError: there is no such answer set for this language.
        """
        known = {**self.answer_sets, **self.pack(language).answer_sets}
        if answer_set not in known:
            expected = one_of(known) or "(the task defines none)"
            raise TaskError(f"task {self.name!r}, {language}: no answer set {answer_set!r}; expected {expected}")
        return {label: known[answer_set][label] for label in self.labels}

    def question(self, language: str, fields: Mapping[str, str]) -> str:
        """Return one question up to and including the cue, without demonstrations."""
        pack = self.pack(language)
        return f"{pack.question.format_map(fields)}\n{pack.cue}"

    def preamble(self, language: str, answer_set: str, num_fewshot: int | None = None) -> str:
        """Return the demonstrations with the blank line that parts them from the question.

        Args:
            language: code of the prompt language.
            answer_set: see `answers`.
            num_fewshot: use only the first so many demonstrations; None for all.

        Raises:
            TaskError: the task has fewer demonstrations in this language, or no such answer set.
        """
        words = self.answers(language, answer_set)
        if (has := len(self.pack(language).demonstrations)) < (num_fewshot or 0):
            raise TaskError(f"task {self.name!r}, {language}: got num_fewshot {num_fewshot}, expected at most {has}")
        closing = '"' if self.pack(language).cue.endswith('"') else ""
        return "".join(
            f"{self.question(language, shown.fields)}{words[shown.label]}{closing}\n\n"
            for shown in self.pack(language).demonstrations[:num_fewshot]
        )

    def prompt(self, language: str, answer_set: str, fields: Mapping[str, str], num_fewshot: int | None = None) -> str:
        """Return the whole prompt: demonstrations, question, cue."""
        return self.preamble(language, answer_set, num_fewshot) + self.question(language, fields)

    def label_of(self, language: str, word: str) -> str:
        """Return the label id that a gold value means: an id, or a word of any answer set.

        Raises:
            DataError: it is neither, or it stands for one label in one set and for another in another set.
        """
        if word in self.labels:
            return word
        sets = {**self.answer_sets, **self.pack(language).answer_sets}
        found = {label for answers in sets.values() for label, answer in answers.items() if answer == word}
        if len(found) > 1:
            raise DataError(
                f"label {word!r} stands for {' and '.join(sorted(found))} in different answer sets, expected ids"
            )
        if found:
            return found.pop()
        known = [*self.labels, *(answer for answers in sets.values() for answer in answers.values())]
        raise DataError(f"unknown label {word!r}; expected one of: {', '.join(dict.fromkeys(known))}")


def _faults(task: Task) -> list[str]:
    """Return what is wrong with a task beyond the types of its keys."""
    faults = []
    if len(set(task.labels)) < len(task.labels):
        faults.append(f"labels: got {list(task.labels)}, expected distinct ids")
    for name, words in task.answer_sets.items():
        faults += _answer_faults(task, f"answer_sets.{name}", words)
    for code, pack in task.languages.items():
        where = f"languages.{code}"
        for name, words in pack.answer_sets.items():
            faults += _answer_faults(task, f"{where}.answer_sets.{name}", words)
        try:
            used = {field for _, field, _, _ in string.Formatter().parse(pack.question) if field is not None}
        except ValueError as error:
            faults.append(f"{where}.question: {error}; write {{{{ and }}}} for literal braces")
            continue
        if used != set(task.fields):
            faults.append(f"{where}.question: got the fields {sorted(used)}, expected {sorted(task.fields)}")
        for number, shown in enumerate(pack.demonstrations, 1):
            place = f"{where}.demonstrations[{number}]"
            if shown.label not in task.labels:
                faults.append(f"{place}: got label {shown.label!r}, expected {one_of(task.labels)}")
            if set(shown.fields) != set(task.fields):
                faults.append(f"{place}: got the fields {sorted(shown.fields)}, expected {sorted(task.fields)}")
    return faults


def _answer_faults(task: Task, where: str, words: Mapping[str, str]) -> list[str]:
    if set(words) != set(task.labels):
        return [f"{where}: got words for {sorted(words)}, expected {sorted(task.labels)}"]
    faults = [f"{where}: the word of {label!r} is empty" for label, word in words.items() if not word.strip()]
    first_with: dict[str, str] = {}
    for label, word in words.items():
        if word in first_with:
            faults.append(
                f"{where}: {first_with[word]!r} and {label!r} have the same word {word!r}, expected two words"
            )
        first_with.setdefault(word, label)
    return faults
