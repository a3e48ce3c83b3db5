"""What is wrong with the test rows of a task: in one language, across languages, and against the prompts.

Enters: a task, where its rows are. Leaves: `Rows` a language and findings. Rows are read as evaluation reads them; one
that cannot be read, or means no label, does not keep the others from being checked.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glotlift.data.layout import layout_of
from glotlift.data.read import Table, gold_column, lone_surrogate, read_items, read_tables
from glotlift.errors import DataError, nearest, one_of
from glotlift.evaluation.findings import count, finding, reference, row_numbers, some
from glotlift.evaluation.repeats import repeated_rows, shown_rows
from glotlift.models.labels import Finding
from glotlift.tasks.load import sample_pattern
from glotlift.tasks.task import Task


@dataclass(frozen=True)
class Rows:
    """The test rows of a language.

    Attributes:
        ids: which rows are the same item in several languages.
        texts: field -> text of every row, empty where there is none that can be used.
        golds: gold as it is written; empty without a gold column.
        labels: the label id it means, None where it means none.
    """

    ids: list[str]
    texts: list[dict[str, str]]
    golds: list[Any]
    labels: list[str | None]


def check_rows(
    task: Task, source: str | None, languages: tuple[str, ...]
) -> tuple[str | None, dict[str, Rows], list[Finding]]:
    """Return where the test rows of a task are, the rows of every language that can be read, and what is wrong.

    Args:
        task: the task.
        source: see `glotlift.data.read`; None for what the task file says under `data`, else the bundled sample, if
            there is one.
        languages: codes of the task.
    """
    source, tables, findings = _tables(task, source, languages)
    rows: dict[str, Rows] = {}
    for code, table in tables.items():
        rows[code], at_fault = _rows(task, code, table)
        findings += at_fault
    return source, rows, [*findings, *_gold(task, rows), *_within(task, rows), *_across(rows), *_leakage(task, rows)]


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
        return where, read_tables(task, where, codes, is_by_language=layout_of(task).is_by_language), []
    except DataError as fault:
        first = fault
    for code in codes:
        try:
            tables |= read_tables(task, where, (code,))  # one file for all languages has been read, or failed, above
        except DataError as fault:
            findings.append(finding(code, "test rows", str(fault)))
    if findings:
        return where, tables, findings
    return where, {}, [finding("", "test rows", str(first))]  # one file for several languages


def _paper_tables(task: Task, folder: str, codes: Iterable[str]) -> tuple[dict[str, Table], list[Finding]]:
    """Return the rows of the paper's layout, whose reader takes gold from the English file and refuses what differs."""
    tables, findings = {}, []
    for code in codes:
        try:
            items = read_items(task, folder, (code,))[code]
        except DataError as fault:
            findings.append(finding(code, "test rows", str(fault)))
            continue
        layout = layout_of(task)
        rows = [
            {"id": item.id, "label": item.gold, **{layout.column(key, code): text for key, text in item.fields.items()}}
            for item in items
        ]
        tables[code] = Table(f"{folder} ({code})", rows)
    return tables, findings


def _rows(task: Task, code: str, table: Table) -> tuple[Rows, list[Finding]]:
    """Return the rows of a language, and what they lack; what gold means is looked at by `_gold`."""
    texts, findings = _texts(task, code, table)
    golds = []
    try:
        ids = table.ids()
    except DataError as fault:
        findings.append(finding(code, "test rows", str(fault)))
        ids = _distinct(str(row.get("id", index)) for index, row in enumerate(table.rows))
    try:
        column = gold_column(table, layout_of(task).gold_in(code))
        golds = [row.get(column) for row in table.rows]
    except DataError as fault:
        findings.append(finding(code, "test rows", str(fault)))
    labels = [_label(task, code, value) for value in golds or [None] * len(ids)]
    return Rows(ids, texts, golds, labels), findings


def _texts(task: Task, code: str, table: Table) -> tuple[list[dict[str, str]], list[Finding]]:
    """Return the fields of every row, and in which rows there is no text in them that can be used."""
    findings = []
    texts: list[dict[str, str]] = [{} for _ in table.rows]
    for name in task.fields:
        column = layout_of(task).column(name, code)
        lacking: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(table.rows):
            fault = _text_fault(row, column)
            texts[index][name] = "" if fault else row[column]
            if fault:
                lacking[fault].append(index)
        if len(lacking[_MISSING]) == len(table.rows):
            has = list(table.rows[0])
            lacking = {f"is no column{nearest(column, has)}; they are {', '.join(has)},": lacking[_MISSING]}
        for fault, at in lacking.items():
            if at:
                text = f"{column!r} {fault} in {row_numbers(at)} of {len(table.rows)}"
                findings.append(finding(code, "fields", text))
    return texts, findings


def _text_fault(row: Mapping[str, Any], column: str) -> str:
    """Return why a cell has no text that evaluation takes, an empty string where it has."""
    value = row.get(column)
    if column not in row:
        return _MISSING
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if not isinstance(value, str):
        return f"is {value!r}, not text,"
    half = lone_surrogate(value)
    return f"holds {half!r}, half of a surrogate pair," if half else ""


_MISSING = "is missing"


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
    try:
        return layout_of(task).label(task, code, value)
    except DataError:
        return None


def _gold(task: Task, rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """Yield gold values that mean no label: how often, what they resemble, what other languages have in their place."""
    for code, here in rows.items():
        unknown: dict[Any, list[int]] = {}
        for index, (value, label) in enumerate(zip(here.golds, here.labels, strict=False)):
            if label is None:
                unknown.setdefault(value if isinstance(value, str) else repr(value), []).append(index)
        commonest = sorted(unknown.items(), key=lambda entry: -len(entry[1]))
        for value, indexes in commonest[:5]:
            share = f"{len(indexes)} of {count(len(here.ids), 'row')} ({len(indexes) / len(here.ids):.0%})"
            if not isinstance(here.golds[indexes[0]], str) or not value.strip():
                text = f"got {value or repr('')}, expected text, in {share}: {row_numbers(indexes)}"
                yield finding(code, "gold", text)
            else:
                yield finding(code, "gold", f"{value!r} in {share}{_meaning(task, code, value, indexes, rows)}")
        if rest := commonest[5:]:
            n_rows = sum(len(indexes) for _, indexes in rest)
            yield finding(code, "gold", f"{count(len(rest), 'other value')} in {count(n_rows, 'row')}")


def _meaning(task: Task, code: str, value: str, indexes: Sequence[int], rows: Mapping[str, Rows]) -> str:
    """Return what an unknown gold value probably means, for a message."""
    sets = task.sets(code)
    known = dict.fromkeys([*task.labels, *(word for words in sets.values() for word in words.values())])
    if value in known:
        return ", a word that stands for different labels in different answer sets: write label ids"
    hints = [f"{word!r} but for case, blanks or Unicode form" for word in known if _folded(word) == _folded(value)]
    hints += [
        f"the word for {label!r} in {other}"
        for other in task.languages
        for label, word in task.sets(other).get("own", {}).items()
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


def _within(task: Task, rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """Yield what is odd in the rows of one language: labels without rows, items that stand twice, equal fields."""
    for code, here in rows.items():
        lacking = [label for label in task.labels if label not in here.labels]
        if lacking and None not in here.labels:  # else `gold` says more
            yield finding(code, "empty label", f"no row has {one_of(map(repr, lacking))}")
        repeated = repeated_rows(here.texts)
        if repeated:
            torn = sum(len({here.labels[index] for index in indexes}) > 1 for indexes in repeated)
            contrary = f", {torn} of them with different labels" if torn else ""
            n = count(len(repeated), "item")
            yield finding(code, "duplicates", f"{n} more than once{contrary}, the first in {row_numbers(repeated[0])}")
        if len(task.fields) > 1:
            same = [i for i, texts in enumerate(here.texts) if all(texts.values()) and len(set(texts.values())) == 1]
            if same:
                yield finding(code, "same fields", f"{' and '.join(task.fields)} are the same in {row_numbers(same)}")


def _across(rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """Yield where the rows of a language are others than those of the first, or the same texts as in another."""
    if not rows:
        return
    first = reference(rows)
    there = dict(zip(rows[first].ids, rows[first].labels, strict=True))
    seen: dict[tuple[str, str, str], str] = {}  # the text of a field of an item -> the first language that has it
    for code in sorted(rows, key=lambda code: code != first):
        here = rows[code]
        if set(here.ids) != set(there):
            yield finding(code, "not parallel", _difference(here.ids, list(there), first))
        if differing := _differing(dict(zip(here.ids, here.labels, strict=True)), there, first):
            yield finding(code, "gold differs", differing)
        copied: dict[str, list[int]] = defaultdict(list)
        for index, (name, texts) in enumerate(zip(here.ids, here.texts, strict=True)):
            places = [(name, key, text) for key, text in texts.items() if any(map(str.isalpha, text))]
            if others := [seen[place] for place in places if place in seen]:
                copied[others[0]].append(index)
            seen |= {place: code for place in places if place not in seen}
        for other, indexes in copied.items():
            text = f"the same text as in {other} in {row_numbers(indexes)} of {len(here.ids)}"
            yield finding(code, "untranslated", text)


def _differing(here: Mapping[str, str | None], there: Mapping[str, str | None], first: str) -> str:
    """Return how the labels of the same rows differ from those of another language, an empty string where none does.

    Where all rows of two labels have the other one, the words of the two are taken to be exchanged.
    """
    both = Counter((str(there[name]), label) for name, label in here.items() if label and there.get(name))
    differing = Counter({pair: number for pair, number in both.items() if pair[0] != pair[1]})
    if not differing:
        return ""
    pairs = [f"{b} for {a} {count(number, 'time')}" for (a, b), number in differing.most_common(3)]
    n = differing.total()
    text = f"other labels than in {first} in {n} of {count(len(here), 'row')}: {', '.join(pairs)}"
    of_label = Counter(a for a, _ in both.elements())
    for (a, b), number in differing.items():
        if a < b and (number, differing[b, a]) == (of_label[a], of_label[b]):
            text += f", all there are, as if the words of {a!r} and {b!r} were exchanged"
    return f"{text} (a model that answers as {first} has it in every row scores {1 - n / len(here):.0%} at most)"


def _difference(here: Sequence[str], there: Sequence[str], first: str) -> str:
    if len(here) != len(there):
        text = f"{count(len(here), 'row')}, where {first} has {len(there)}"
    else:
        text = f"other ids than in {first}"
    more = [name for name in here if name not in set(there)]
    less = [name for name in there if name not in set(here)]
    only = {"only here": more, "only there": less}
    return f"{text}: {', '.join(f'{some(map(repr, names))} {where}' for where, names in only.items() if names)}"


def _leakage(task: Task, rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """Yield the examples of a language that are test rows too."""
    for code, here in rows.items():
        preamble = task.pack(code).preamble
        verbatim = [preamble] if isinstance(preamble, str) else list((preamble or {}).values())
        examples = {place: shown.fields for place, shown in task.pack(code).examples.items()}
        if found := shown_rows(examples, verbatim, here.texts):
            yield finding(code, "leakage", some(_place(place, index) for place, index in found))


def _place(place: str, index: int) -> str:
    return f"row {index + 1} stands in the preamble" if place == "preamble" else f"{place} is row {index + 1}"


def _folded(word: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())
