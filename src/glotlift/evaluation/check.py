"""Everything that is wrong with a task, at once: its file, its prompts, its answer words, its test rows.

Enters: the name of a bundled task or the path of a YAML file; a model's name, for its tokenizer; where test rows are.
Leaves: a `TaskCheck`. A *fault* is what evaluation refuses. A *warning* is what it accepts, though the numbers then
mean something else than they seem to. No model is run, and nothing stops at the first fault: one language at fault does
not keep the others from being checked.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glotlift.data.read import Table, gold_column, read_items, read_tables
from glotlift.errors import DataError, ModelError, TaskError, nearest, one_of
from glotlift.languages import is_code
from glotlift.models.labels import ADVICE as LABEL_ADVICE
from glotlift.models.labels import Finding, audit_labels, audit_words
from glotlift.schema import read_yaml, validate
from glotlift.tasks.load import load_task, sample_pattern
from glotlift.tasks.task import Demonstration, Task

_FAULTS = {
    "task file": "",
    "language": "",
    "model": "",
    "test rows": "",
    "answer words": "evaluation has no words to choose between: add `answer_sets`",
    "fields": "evaluation refuses a row without text in every field: fill it in, or take it out in every language",
    "gold": "evaluation refuses such a row; compared as text, as in the paper's own code, it could never be right: add "
    "the word to an answer set of the language, or write label ids",
    "same tokens": LABEL_ADVICE["same tokens"],
}
"""Kinds of faults -> what follows and what to do, where the finding itself does not say so."""

_WARNINGS = {
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
    "gold differs": "one of the two is wrong, and the score of its language with it: compare the rows of both files",
    **{kind: advice for kind, advice in LABEL_ADVICE.items() if kind != "same tokens"},
}
"""Kinds of warnings, likewise."""

_OPENING = "“„”«»‹›‘‚’「『《〈＂'"


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
        n_faults, n_warnings = _count(len(self.faults), "fault"), _count(len(self.warnings), "warning")
        size = ""
        if self.task is not None:
            languages = _count(len(self.languages), "language")
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
            ("faults, which evaluation refuses", _FAULTS, self.faults),
            ("warnings", _WARNINGS, self.warnings),
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
        shown = [f"{label} {count}" for label, count in counts.items()] + [f"without a label {unknown}"] * bool(unknown)
        return f"{_count(self.rows[code], 'row')} ({', '.join(shown)})"

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


def check_task(
    name_or_path: str, model: str | None = None, *, source: str | None = None, languages: Sequence[str] | None = None
) -> TaskCheck:
    """Check a task in every respect that needs no model to run; a fault is returned, not raised.

    Args:
        name_or_path: a bundled task, or the path of a YAML file.
        model: for the tokens of the answer words: hub id, folder, `.gguf` file or `demo`; only its tokenizer is loaded.
            None checks the words as text.
        source: where the test rows are, see `glotlift.data.read`; None for what the task file says under `data`, else
            the bundled sample, if there is one.
        languages: codes; None for all of the task.
    """
    task, findings = _load(name_or_path)
    if task is None:
        return TaskCheck(name_or_path, faults=tuple(findings))
    codes = tuple(code for code in languages or task.languages if code in task.languages)
    if others := [repr(code) for code in languages or () if code not in task.languages]:
        has = " ".join(task.languages)
        findings.append(_found("", "language", f"the task has no prompts in {_some(others)}; it has: {has}"))
    source, tables, unreadable = _tables(task, source, codes)
    findings += unreadable
    rows: dict[str, _Rows] = {}
    for code, table in tables.items():
        rows[code], at_fault = _rows(task, code, table)
        findings += at_fault
    findings += _gold(task, rows)
    findings += [*_answer_sets(task, codes), *_packs(task, codes), *_demonstrations(task, codes)]
    findings += [*_within(task, rows), *_across(task, rows), *_leakage(task, rows), *_words(task, codes, model)]
    faults = tuple(each for each in findings if each.kind in _FAULTS)
    warnings = tuple(each for each in findings if each.kind in _WARNINGS)
    return TaskCheck(
        name_or_path, task, codes, source, model, faults, warnings, _prompts(task, codes, rows),
        rows={code: len(each.ids) for code, each in rows.items()},
        labels={code: {label: each.labels.count(label) for label in task.labels} for code, each in rows.items()},
    )  # fmt: skip


# --- the task file


def _load(name_or_path: str) -> tuple[Task | None, list[Finding]]:
    """Return a task and the faults of its file; with faults, only the languages without any."""
    try:
        return load_task(name_or_path), []
    except TaskError as fault:
        faults = _sentences(fault, name_or_path)
    path = Path(name_or_path)
    try:
        content = read_yaml(path, TaskError)
        packs = content["languages"].items()
    except (TaskError, TypeError, KeyError, AttributeError):
        return None, [_found("", "task file", text) for text in faults]
    sound = {}
    for code, pack in packs:
        if isinstance(code, str) and is_code(code):
            try:  # alone, so that no other language hides its faults
                validate(Task, {**content, "languages": {code: pack}}, name_or_path, TaskError)
                sound[code] = pack
            except TaskError as fault:
                faults += _sentences(fault, name_or_path)
    task = validate(Task, {**content, "languages": sound}, name_or_path, TaskError) if sound else None
    if task is not None and task.data is not None and not task.data.source.startswith("hub:"):
        data = task.data.model_copy(update={"source": str(path.parent / task.data.source)})
        task = task.model_copy(update={"data": data})
    return task, [_found("", "task file", text) for text in dict.fromkeys(faults)]


def _sentences(fault: TaskError, path: str) -> list[str]:
    """Return the faults that the message of a task file's error holds."""
    body = re.sub(r"^\d+ faults:\n", "", str(fault).removeprefix(f"{path}: "))
    lines = (line.strip() for line in body.split("\n  "))
    return [part for line in lines for part in re.split(r"; (?=languages\.|answer_sets\.|labels:)", line)]


def _prompts(task: Task, codes: Iterable[str], rows: Mapping[str, _Rows]) -> dict[str, str]:
    """Return a prompt of every language, in its own words where it has a prompt in them."""
    prompts = {}
    blank = {field: f"<{field}>" for field in task.fields}
    for code in codes:
        for name in sorted(_named(task, code), key=lambda name: name != "own"):
            with suppress(TaskError):  # no preamble for this set, as `_packs` says
                prompts[code] = task.prompt(code, name, rows[code].texts[0] if code in rows else blank)
                break
    return prompts


def _named(task: Task, code: str) -> dict[str, dict[str, str]]:
    """Return the answer sets of a language by name."""
    return {**task.answer_sets, **task.pack(code).answer_sets}


def _answer_sets(task: Task, codes: Sequence[str]) -> Iterator[Finding]:
    """Yield languages without answer words, or without a set that others have."""
    having: dict[str, list[str]] = defaultdict(list)
    for code in codes:
        for name in _named(task, code):
            having[name].append(code)
    for code in codes:
        if not _named(task, code):
            yield _found(code, "answer words", "no answer set")
        for name, others in having.items():
            if code not in others:
                verb = "has" if len(others) == 1 else "have"
                yield _found(code, "answer sets", f"no `{name}`, which {_some(others)} {verb}")


def _packs(task: Task, codes: Iterable[str]) -> Iterator[Finding]:
    """Yield what is odd about the texts of a language: ends of cue and preamble, a preamble that lacks words."""
    for code in codes:
        pack = task.pack(code)
        if pack.layout != pack.layout.rstrip():
            last = "a line break" if pack.layout.endswith("\n") else "a blank"
            yield _found(code, "cue end", f"the cue ends in {last}")
        elif pack.layout[-1] in _OPENING and _examples(task, code):
            yield _found(code, "open quote", f"the cue ends in {pack.layout[-1]}")
        if pack.preamble is None:
            continue
        for name, words in _named(task, code).items():
            if isinstance(pack.preamble, dict) and name not in pack.preamble:
                yield _found(code, "preamble", f"no preamble for `{name}`")
                continue
            text = pack.preamble if isinstance(pack.preamble, str) else pack.preamble[name]
            if lacking := [word for word in words.values() if word not in text]:
                yield _found(code, "uncovered label", f"the preamble has no {one_of(map(repr, lacking))} (`{name}`)")
        for text in dict.fromkeys([pack.preamble] if isinstance(pack.preamble, str) else pack.preamble.values()):
            lines = [line.strip() for line in text.split("\n")]
            if "" in lines[:-2] and lines[-2:] != ["", ""]:
                yield _found(code, "preamble end", "the preamble has blank lines inside and none at its end")
            elif lines[-1]:
                yield _found(code, "preamble end", "the preamble does not end in a line break")


def _demonstrations(task: Task, codes: Sequence[str]) -> Iterator[Finding]:
    """Yield labels without an example, and languages whose examples are not those of the first one, or in its words."""
    structured = [code for code in codes if task.pack(code).preamble is None]
    first = _reference(structured)
    for code in structured:
        labels = [shown.label for shown in task.pack(code).demonstrations]
        if labels and (lacking := [label for label in task.labels if label not in labels]):
            yield _found(code, "uncovered label", f"no demonstration of {one_of(map(repr, lacking))}")
        here, there = _examples(task, code), _examples(task, first)
        if list(here) != list(there):
            packs = (task.pack(each) for each in (code, first))
            sizes = [f"{len(pack.demonstrations)} and {len(pack.pool)} in the pool" for pack in packs]
            yield _found(code, "demonstrations", f"{sizes[0]}, where {first} has {sizes[1]}")
        elif any(shown.label != there[place].label for place, shown in here.items()):
            yield _found(code, "demonstrations", f"other labels, or another order of them, than in {first}")
        same = [place for place, shown in here.items() if place in there and shown.fields == there[place].fields]
        if same and code != first:
            yield _found(code, "untranslated", f"the same text as in {first} in {_some(same)}")


def _examples(task: Task, code: str) -> dict[str, Demonstration]:
    """Return the examples of a language, each under what to call it in a message."""
    pack = task.pack(code)
    both = {"demonstrations": pack.demonstrations, "pool": pack.pool}
    return {f"{key}[{number}]": shown for key, listed in both.items() for number, shown in enumerate(listed, 1)}


def _words(task: Task, codes: Iterable[str], model: str | None) -> list[Finding]:
    """Return what the label audit finds in every answer set of every language."""
    tokenizer = None
    findings = []
    if model is not None:
        from glotlift.models.load import load_tokenizer

        try:
            tokenizer = load_tokenizer(model)
        except ModelError as fault:
            findings.append(_found("", "model", str(fault)))
    for code in codes:
        for name in _named(task, code):
            audited = audit_words(task, code, name)
            with suppress(TaskError):  # no preamble for this set, as `_packs` says
                audited = audited if tokenizer is None else audit_labels(tokenizer, task, code, name)
            findings += [Finding(each.language, each.kind, f"`{name}`: {each.message}") for each in audited]
    return findings


# --- the test rows


@dataclass(frozen=True)
class _Rows:
    """The test rows of a language: ids, texts (empty where there is none), gold as written, gold as label id."""

    ids: list[str]
    texts: list[dict[str, str]]
    golds: list[Any]
    labels: list[str | None]


def _tables(
    task: Task, source: str | None, codes: tuple[str, ...]
) -> tuple[str | None, dict[str, Table], list[Finding]]:
    """Return where the rows are, the rows of every language that can be read, and why others cannot."""
    where = source or (task.data.source if task.data else None)
    if where is None:
        pattern = sample_pattern(task.name, "items")
        if pattern is None:
            return None, {}, []
        where, codes = "sample", tuple(code for code in codes if Path(pattern.replace("{lang}", code)).exists())
    elif not where.startswith("hub:") and Path(where).is_dir():
        return where, *_paper_tables(task, where, codes)
    tables, findings = {}, []
    try:
        return where, read_tables(task, where, codes), []
    except DataError as fault:
        first = fault
    for code in codes:
        try:
            tables |= read_tables(task, where, (code,))
        except DataError as fault:
            findings.append(_found(code, "test rows", str(fault)))
    if findings:
        return where, tables, findings
    return where, {}, [_found("", "test rows", str(first))]  # one file for several languages


def _paper_tables(task: Task, folder: str, codes: Iterable[str]) -> tuple[dict[str, Table], list[Finding]]:
    """Return the rows of the paper's layout, whose reader takes gold from the English file and refuses what differs."""
    tables, findings = {}, []
    for code in codes:
        try:
            items = read_items(task, folder, (code,))[code]
        except DataError as fault:
            findings.append(_found(code, "test rows", str(fault)))
            continue
        columns = task.data.columns if task.data else {}
        rows = [
            {"id": item.id, "label": item.gold, **{columns.get(key, key): text for key, text in item.fields.items()}}
            for item in items
        ]
        tables[code] = Table(f"{folder} ({code})", rows)
    return tables, findings


def _rows(task: Task, code: str, table: Table) -> tuple[_Rows, list[Finding]]:
    """Return the rows of a language, and what they lack; what gold means is looked at by `_gold`."""
    findings = []
    texts: list[dict[str, str]] = [{} for _ in table.rows]
    for name in task.fields:
        column = (task.data.columns if task.data else {}).get(name, name)
        lacking: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(table.rows):
            value = row.get(column, "")
            texts[index][name] = value if isinstance(value, str) and value.strip() else ""
            if not texts[index][name]:
                fault = "is empty" if isinstance(value, str) or value is None else f"is {value!r}, not text,"
                lacking[fault if column in row else "is missing"].append(index)
        if len(lacking["is missing"]) == len(table.rows):
            has = list(table.rows[0])
            lacking = {f"is no column{nearest(column, has)}; they are {', '.join(has)},": lacking["is missing"]}
        for fault, at in lacking.items():
            if at:
                findings.append(_found(code, "fields", f"{column!r} {fault} in {_numbers(at)} of {len(table.rows)}"))
    golds = []
    try:
        ids = table.ids()
    except DataError as fault:
        findings.append(_found(code, "test rows", str(fault)))
        ids = _distinct(str(row.get("id", index)) for index, row in enumerate(table.rows))
    try:
        column = gold_column(table, task.data.gold if task.data else None)
        golds = [row.get(column) for row in table.rows]
    except DataError as fault:
        findings.append(_found(code, "test rows", str(fault)))
    labels = [_label(task, code, value) for value in golds or [None] * len(ids)]
    return _Rows(ids, texts, golds, labels), findings


def _distinct(names: Iterable[str]) -> list[str]:
    """Return names, a repeated one with its number, so that the other rows can still be compared across languages."""
    times: Counter[str] = Counter()
    distinct = []
    for name in names:
        times[name] += 1
        distinct.append(name if times[name] == 1 else f"{name} (again, {times[name]})")
    return distinct


def _label(task: Task, code: str, value: Any) -> str | None:
    """Return the label id of a gold value as the reader of test rows takes it, None where it refuses it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    try:
        return task.label_of(code, value) if isinstance(value, str) and value.strip() else None
    except DataError:
        return None


def _gold(task: Task, rows: Mapping[str, _Rows]) -> Iterator[Finding]:
    """Yield gold values that mean no label: how often, what they resemble, what other languages have in their place."""
    for code, here in rows.items():
        unknown: dict[Any, list[int]] = {}
        for index, (value, label) in enumerate(zip(here.golds, here.labels, strict=False)):
            if label is None:
                unknown.setdefault(value if isinstance(value, str) else repr(value), []).append(index)
        commonest = sorted(unknown.items(), key=lambda entry: -len(entry[1]))
        for value, indexes in commonest[:5]:
            share = f"{len(indexes)} of {_count(len(here.ids), 'row')} ({len(indexes) / len(here.ids):.0%})"
            if not isinstance(here.golds[indexes[0]], str) or not value.strip():
                yield _found(code, "gold", f"got {value or repr('')}, expected text, in {share}: {_numbers(indexes)}")
            else:
                yield _found(code, "gold", f"{value!r} in {share}{_meaning(task, code, value, indexes, rows)}")
        if rest := commonest[5:]:
            n_rows = sum(len(indexes) for _, indexes in rest)
            yield _found(code, "gold", f"{_count(len(rest), 'other value')} in {_count(n_rows, 'row')}")


def _meaning(task: Task, code: str, value: str, indexes: Sequence[int], rows: Mapping[str, _Rows]) -> str:
    """Return what an unknown gold value probably means, for a message."""
    sets = _named(task, code)
    known = dict.fromkeys([*task.labels, *(word for words in sets.values() for word in words.values())])
    if value in known:
        return ", a word that stands for different labels in different answer sets: write label ids"
    hints = [f"{word!r} but for case, blanks or Unicode form" for word in known if _folded(word) == _folded(value)]
    hints += [
        f"the word for {label!r} in {other}"
        for other in task.languages
        for label, word in _named(task, other).get("own", {}).items()
        if word == value and other != code
    ][:1]
    for other, there in rows.items():
        at = dict(zip(there.ids, there.labels, strict=True))
        labels = {at.get(rows[code].ids[index]) for index in indexes}
        if other != code and len(labels) == 1 and (label := labels.pop()) is not None:
            own = sets.get("own", {}).get(label)
            hints.append(f"where {other} has {label!r}{f', whose word here is {own!r}' if own else ''}")
            break
    return f", {', '.join(hints)}" if hints else nearest(value, known)


def _within(task: Task, rows: Mapping[str, _Rows]) -> Iterator[Finding]:
    """Yield what is odd in the rows of one language: labels without rows, items that stand twice, equal fields."""
    for code, here in rows.items():
        lacking = [label for label in task.labels if label not in here.labels]
        if lacking and None not in here.labels:  # else `gold` says more
            yield _found(code, "empty label", f"no row has {one_of(map(repr, lacking))}")
        places: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, texts in enumerate(here.texts):
            if any(texts.values()):
                places[tuple(texts.values())].append(index)
        repeated = [indexes for indexes in places.values() if len(indexes) > 1]
        if repeated:
            torn = sum(len({here.labels[index] for index in indexes}) > 1 for indexes in repeated)
            contrary = f", {torn} of them with different labels" if torn else ""
            n = _count(len(repeated), "item")
            yield _found(code, "duplicates", f"{n} more than once{contrary}, the first in {_numbers(repeated[0])}")
        if len(task.fields) > 1:
            same = [i for i, texts in enumerate(here.texts) if all(texts.values()) and len(set(texts.values())) == 1]
            if same:
                yield _found(code, "same fields", f"{' and '.join(task.fields)} are the same in {_numbers(same)}")


def _across(task: Task, rows: Mapping[str, _Rows]) -> Iterator[Finding]:
    """Yield where the rows of a language are others than those of the first, or the same texts as in another."""
    if not rows:
        return
    first = _reference(rows)
    there = dict(zip(rows[first].ids, rows[first].labels, strict=True))
    seen: dict[tuple[str, str, str], str] = {}  # the text of a field of an item -> the first language that has it
    for code in sorted(rows, key=lambda code: code != first):
        here = rows[code]
        if set(here.ids) != set(there):
            yield _found(code, "not parallel", _difference(here.ids, list(there), first))
        turned = Counter(
            (there[name], label)
            for name, label in zip(here.ids, here.labels, strict=True)
            if label and there.get(name) and label != there[name]
        )
        if turned:
            pairs = [f"{b} for {a} {n} times" for (a, b), n in turned.most_common(3)]
            n = f"{sum(turned.values())} of {_count(len(here.ids), 'row')}"
            yield _found(code, "gold differs", f"other labels than in {first} in {n}: {', '.join(pairs)}")
        copied: dict[str, list[int]] = defaultdict(list)
        for index, (name, texts) in enumerate(zip(here.ids, here.texts, strict=True)):
            places = [(name, key, text) for key, text in texts.items() if any(map(str.isalpha, text))]
            if others := [seen[place] for place in places if place in seen]:
                copied[others[0]].append(index)
            seen |= {place: code for place in places if place not in seen}
        for other, indexes in copied.items():
            yield _found(code, "untranslated", f"the same text as in {other} in {_numbers(indexes)} of {len(here.ids)}")


def _difference(here: Sequence[str], there: Sequence[str], first: str) -> str:
    if len(here) != len(there):
        text = f"{_count(len(here), 'row')}, where {first} has {len(there)}"
    else:
        text = f"other ids than in {first}"
    more = [name for name in here if name not in set(there)]
    less = [name for name in there if name not in set(here)]
    only = {"only here": more, "only there": less}
    return f"{text}: {', '.join(f'{_some(map(repr, names))} {where}' for where, names in only.items() if names)}"


def _leakage(task: Task, rows: Mapping[str, _Rows]) -> Iterator[Finding]:
    """Yield the examples of a language that are test rows too."""
    for code, here in rows.items():
        preamble = task.pack(code).preamble
        verbatim = [preamble] if isinstance(preamble, str) else list((preamble or {}).values())
        found = [
            f"{place} is row {index + 1}"
            for place, shown in _examples(task, code).items()
            for index, texts in enumerate(here.texts)
            if {key: text.strip() for key, text in shown.fields.items()}
            == {key: text.strip() for key, text in texts.items()}
        ]
        found += [
            f"row {index + 1} stands in the preamble"
            for index, texts in enumerate(here.texts)
            for text in verbatim
            if all(len(part.strip()) >= _LONG and part.strip() in text for part in texts.values())
        ]
        if found:
            yield _found(code, "leakage", _some(dict.fromkeys(found)))


_LONG = 10
"""Characters from which a text that stands in a preamble is taken for the same text, not for a common word."""


# --- words for messages


def _found(language: str, kind: str, text: str) -> Finding:
    advice = {**_FAULTS, **_WARNINGS}[kind]
    return Finding(language, kind, f"{text}; {advice}" if advice else text)


def _reference(codes: Iterable[str]) -> str:
    """Return the language that others are compared with: English, else the first."""
    listed = list(codes)
    return "en" if "en" in listed else next(iter(listed), "")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _some(names: Iterable[Any]) -> str:
    """Return names for a message, the first three of many."""
    listed = [str(name) for name in names]
    if len(listed) > 4:
        return f"{', '.join(listed[:3])} and {len(listed) - 3} more"
    return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed)


def _numbers(indexes: Sequence[int]) -> str:
    return f"row{'s' * (len(indexes) > 1)} {_some(index + 1 for index in indexes)}"


def _inverted(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return text -> the languages that have it."""
    languages: dict[str, list[str]] = {}
    for code, text in texts.items():
        languages.setdefault(text, []).append(code)
    return languages


def _folded(word: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())
