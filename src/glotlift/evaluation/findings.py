"""What a check of a task found: kinds of findings with their advice, and how a check is written out.

Enters: findings. Leaves: a `TaskCheck`, whose `lines` are what `glotlift tasks check` prints. A *fault* is what
evaluation refuses. A *warning* is what it accepts, though the numbers then mean something else than they seem to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glotlift.models.labels import ADVICE as LABEL_ADVICE
from glotlift.models.labels import Finding
from glotlift.tasks.task import Task

FAULTS = {
    "task file": "",
    "language": "",
    "model": "",
    "test rows": "",
    "answer words": "evaluation has no words to choose between: add `answer_sets`",
    "fields": "evaluation refuses a row without text in every field: fill it in, or take it out in every language",
    "gold": "evaluation refuses such a row; compared as text, as in the paper's own code, it could never be right: add "
    "the word to an answer set of the language, or write label ids",
    **{kind: LABEL_ADVICE[kind] for kind in ("no boundary", "same tokens")},
}
"""Kinds of faults -> what follows and what to do, where the finding itself does not say so."""

WARNINGS = {
    "answer sets": "`--answers` with such a set stops at the language: add its words",
    "preamble": "`--answers` with such a set stops at the language: add a preamble for it",
    "preamble end": "the first item is not set off as the examples are: in YAML `|+` keeps blank lines at the end, `|` "
    "one line break, `|-` none",
    "cue end": "most tokenizers put it into the token of a word, so the model reads what it rarely saw: end the cue "
    "before it (in YAML `|-` keeps no last line break)",
    "open quote": "only the double quote is closed behind an example's answer: end the cue in one, or write a preamble",
    "uncovered label": "the model is shown no example of such an answer, which it then gives too rarely: add one",
    "demonstrations": "languages are compared on unequal prompts, and `num_fewshot` and `demo_seed` choose different "
    "examples: give all languages the same ones in the same order",
    "leakage": "the model is shown the answer of a test row: take the example or the row out",
    "empty label": "its recall is unknown, and a bias against it raises accuracy: add rows, or drop the label",
    "duplicates": "such an item counts more than once, and intervals come out too narrow: take the repeats out",
    "same fields": "translation may have made one text of two, and the label wrong: translate anew, or take them out",
    "untranslated": "what was left in another language is not scored in its own: look at it, and translate it",
    "not parallel": "differences between languages are then differences between items too: keep the same rows",
    "control": "the tokenizer cannot read such a string as text, and the model sees a token that opens or ends a turn: "
    "write it in another way, or take the row out",
    "gold differs": "in one of the two, right answers to such rows are scored as wrong: compare the rows of both files "
    "and correct the labels (for the paper's own files, `--data` with their folder takes gold from the English one)",
    "released rule": "the code that the paper's authors released leaves out tokens with a leading space, which "
    "`prefix-mass` counts: score by `prefix-mass-released` to compare with its numbers",
    **{kind: advice for kind, advice in LABEL_ADVICE.items() if kind not in ("no boundary", "same tokens")},
}
"""Kinds of warnings, likewise."""


@dataclass(frozen=True)
class TaskCheck:
    """What a check found.

    Attributes:
        name: the task as it was asked for.
        task: the task; without the languages that are at fault, and None where nothing can be read.
        languages: codes that were checked.
        source: where the test rows are, None without any.
        model: the model whose tokenizer was used, None without one.
        faults: what evaluation refuses.
        warnings: what it accepts, though it makes the numbers misleading.
        prompts: language -> a whole prompt: of the first test row, else with `<field>` in place of the fields.
        rows: language -> number of test rows.
        labels: language -> label id -> number of test rows.
    """

    name: str
    task: Task | None = None
    languages: tuple[str, ...] = ()
    source: str | None = None
    model: str | None = None
    faults: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Yield the check as text: a summary, the test rows, the prompts, then the findings, a block a kind."""
        n_faults, n_warnings = count(len(self.faults), "fault"), count(len(self.warnings), "warning")
        size = ""
        if self.task is not None:
            languages = count(len(self.languages), "language")
            size = f"task {self.task.name!r}, {languages}, {len(self.task.labels)} labels: "
        yield f"{self.name}: {size}{n_faults}, {n_warnings}"
        if self.rows:
            yield f"test rows of {'the bundled sample' if self.source == 'sample' else self.source}:"
            counts = {code: self._row_line(code) for code in self.rows}
            yield from (f"  {self._listed(codes)}: {line}" for line, codes in _inverted(counts).items())
        for code, prompt in self.prompts.items():
            yield f"\n--- prompt, {code}{', row 1' if code in self.rows else ''}"
            yield prompt
        for title, kinds, findings in (
            ("faults, which evaluation refuses", FAULTS, self.faults),
            ("warnings", WARNINGS, self.warnings),
        ):
            if findings:
                yield f"\n{title}:"
                yield from self._blocks(kinds, findings)
        if self.task is not None:
            yield ""
            yield from self._extent()

    def _row_line(self, code: str) -> str:
        counts = self.labels[code]
        unknown = self.rows[code] - sum(counts.values())
        shown = [f"{label} {number}" for label, number in counts.items()] + [f"without a label {unknown}"] * bool(
            unknown
        )
        return f"{count(self.rows[code], 'row')} ({', '.join(shown)})"

    def _blocks(self, kinds: Mapping[str, str], findings: Sequence[Finding]) -> Iterator[str]:
        for kind, advice in kinds.items():
            texts: dict[str, list[str]] = {}
            for each in findings:
                if each.kind == kind:
                    texts.setdefault(each.message.removesuffix(f"; {advice}"), []).append(each.language)
            if texts:
                yield f"  {kind}{f': {advice}' if advice else ''}"
            for text, codes in texts.items():
                named = self._listed([code for code in dict.fromkeys(codes) if code])
                yield f"    {named + ': ' if named else ''}{text}"

    def _listed(self, codes: Sequence[str]) -> str:
        return f"all {len(codes)} languages" if 3 < len(codes) == len(self.languages) else " ".join(codes)

    def _extent(self) -> Iterator[str]:
        """Yield what was checked and what was not."""
        if any(each.kind == "task file" for each in self.faults):
            yield "languages at fault in the task file: not checked further"
        if self.source is None:
            yield "test rows: not checked; the task file has no `data`, and no --data was given"
        words = "tokens of the answer words"
        if self.model is None:
            yield f"{words}: not checked; name a model with --model"
        else:
            done = "not checked" if any(each.kind == "model" for each in self.faults) else "checked"
            yield f"{words} under the tokenizer of {self.model!r}: {done}"


def _inverted(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return text -> the languages that have it."""
    languages: dict[str, list[str]] = {}
    for code, text in texts.items():
        languages.setdefault(text, []).append(code)
    return languages


# --- words for messages


def finding(language: str, kind: str, text: str) -> Finding:
    """Return a finding of a kind, its advice behind the text."""
    advice = {**FAULTS, **WARNINGS}[kind]
    return Finding(language, kind, f"{text}; {advice}" if advice else text)


def reference(codes: Iterable[str]) -> str:
    """Return the language that others are compared with: English, else the first."""
    listed = list(codes)
    return "en" if "en" in listed else next(iter(listed), "")


def count(number: int, what: str) -> str:
    """Return `no rows`, `1 row`, `2 rows` and so on."""
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def some(names: Iterable[Any]) -> str:
    """Return names for a message, the first three of many."""
    listed = [str(name) for name in names]
    if len(listed) > 4:
        return f"{', '.join(listed[:3])} and {len(listed) - 3} more"
    return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed)


def row_numbers(indexes: Sequence[int]) -> str:
    """Return `row 1`, `rows 1 and 2` and so on, of indexes that count from 0."""
    return f"row{'s' * (len(indexes) > 1)} {some(index + 1 for index in indexes)}"
