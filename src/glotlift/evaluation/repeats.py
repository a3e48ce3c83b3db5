"""Test rows that stand twice, and rows that the model is shown: the same to a reader, whatever their case or blanks.

Enters: the texts of test rows, and a task with its examples. Leaves: indexes of rows; for an evaluation, warnings as
scores.json holds them, since what is known of a task file must not be lost on the way to a report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from glotlift.evaluation.test_sets import TestSet
from glotlift.tasks.task import Task
from glotlift.text import folded

_LONG = 10
"""Characters from which a text that stands in a preamble is taken for the same text, not for a common word."""


def repeated_rows(texts: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Return the groups of rows with the same texts, their indexes in order; rows without text are none.

    Args:
        texts: field -> text of every row.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for index, fields in enumerate(texts):
        if any(fields.values()):
            places.setdefault(tuple(folded(text) for text in fields.values()), []).append(index)
    return [indexes for indexes in places.values() if len(indexes) > 1]


def shown_rows(
    examples: Mapping[str, Mapping[str, str]], preambles: Collection[str], texts: Sequence[Mapping[str, str]]
) -> list[tuple[str, int]]:
    """Return which rows a model is shown with their answers: the place where, and the index of the row.

    Args:
        examples: place -> field -> text.
        preambles: verbatim text before the item; its place is `preamble`.
        texts: field -> text of every row.
    """
    rows: dict[frozenset[tuple[str, str]], list[int]] = {}
    for index, fields in enumerate(texts):
        rows.setdefault(_key(fields), []).append(index)
    found = [(place, index) for place, fields in examples.items() for index in rows.get(_key(fields), ())]
    verbatim = [folded(text) for text in preambles]
    for index, fields in enumerate(texts if verbatim else ()):
        parts = [folded(text) for text in fields.values()]
        if all(len(part) >= _LONG for part in parts) and any(all(part in text for part in parts) for text in verbatim):
            found.append(("preamble", index))
    return found


def _key(fields: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, folded(text)) for name, text in fields.items())


def repeat_warnings(test_set: TestSet) -> Iterator[dict[str, Any]]:
    """Yield what is to be said of the rows of a test set: `kind`, `test_set`, `languages`, `text`.

    `leakage`: rows among the demonstrations that these prompts show; `duplicates`: rows that stand more than once;
    `contradictions`: such rows with different labels, of which one answer is always wrong.
    """
    leaking, repeated, torn = {}, {}, {}
    for code, items in test_set.items.items():
        texts = [item.fields for item in items]
        shown = shown_rows(*_shown(test_set.task, code, test_set), texts)
        leaking[code] = len({index for _, index in shown})
        groups = repeated_rows(texts)
        repeated[code] = len(groups)
        torn[code] = sum(len({items[index].gold for index in group}) > 1 for group in groups)
    yield from _warning("leakage", test_set, leaking, "the demonstrations show the model {} with the answer")
    yield from _warning("duplicates", test_set, repeated, "{} more than once, so that intervals come out too narrow")
    yield from _warning("contradictions", test_set, torn, "{} more than once with different labels")


def _shown(task: Task, code: str, test_set: TestSet) -> tuple[dict[str, Mapping[str, str]], list[str]]:
    """Return the examples of a test set's prompts, and its verbatim preamble where there is one."""
    entry = test_set.settings
    shown = task.shown(code, entry.num_fewshot, entry.demo_seed)
    examples: dict[str, Mapping[str, str]] = {str(number): each.fields for number, each in enumerate(shown)}
    has_preamble = task.pack(code).preamble is not None and entry.num_fewshot != 0
    return examples, [task.preamble(code, entry.answers)] if has_preamble else []


def _warning(kind: str, test_set: TestSet, counts: Mapping[str, int], text: str) -> Iterator[dict[str, Any]]:
    having = {code: number for code, number in counts.items() if number}
    if having:
        few, many = min(having.values()), max(having.values())
        number = str(many) if few == many else f"{few} to {many}"
        items = f"{number} test item{'' if many == 1 else 's'}"
        each = f"{items} a language" if len(having) > 1 else items
        yield {"kind": kind, "test_set": test_set.key, "languages": list(having), "text": text.format(each)}
