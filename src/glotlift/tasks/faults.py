"""What is wrong with a task beyond the types of its keys.

Enters: a task as its file says it. Leaves: a sentence for every fault, with its place in the file.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING

from glotlift.errors import one_of

if TYPE_CHECKING:
    from glotlift.tasks.task import LanguagePack, Task

ANSWERS_IN = "in:"
"""Begins the name of an answer set that is another language's own words, as in `in:de`."""


def task_faults(task: Task) -> list[str]:
    """Return what is wrong with a task beyond the types of its keys."""
    faults = []
    if len(set(task.fields)) < len(task.fields):
        faults.append(f"fields: got {list(task.fields)}, expected distinct names")
    if len(set(task.labels)) < len(task.labels):
        faults.append(f"labels: got {list(task.labels)}, expected distinct ids")
    faults += _set_faults(task, "answer_sets", task.answer_sets)
    for code, pack in task.languages.items():
        where = f"languages.{code}"
        faults += _set_faults(task, f"{where}.answer_sets", pack.answer_sets)
        faults += _layout_faults(task, where, pack)
        for key in ("demonstrations", "pool"):
            for number, shown in enumerate(getattr(pack, key), 1):
                place = f"{where}.{key}[{number}]"
                if shown.label not in task.labels:
                    faults.append(f"{place}: got label {shown.label!r}, expected {one_of(task.labels)}")
                if set(shown.fields) != set(task.fields):
                    faults.append(f"{place}: got the fields {sorted(shown.fields)}, expected {sorted(task.fields)}")
        if pack.preamble is not None and (pack.demonstrations or pack.pool):
            faults.append(f"{where}: got a preamble and demonstrations, expected one of them")
        faults += _preamble_faults(task, where, pack)
    return faults


def _preamble_faults(task: Task, where: str, pack: LanguagePack) -> list[str]:
    """Return which preambles are for no answer set of a language."""
    if not isinstance(pack.preamble, dict):
        return []
    named = {*task.answer_sets, *pack.answer_sets}
    unknown = sorted(set(pack.preamble) - named - {f"{ANSWERS_IN}{code}" for code in task.languages})
    expected = one_of([*sorted(named), f"{ANSWERS_IN}<language of the task>"])
    return [f"{where}.preamble: got {one_of(unknown)}, expected answer sets: {expected}"] if unknown else []


def _layout_faults(task: Task, where: str, pack: LanguagePack) -> list[str]:
    has = pack.question is not None, pack.cue is not None, pack.template is not None
    if has not in ((True, True, False), (False, False, True)):
        got = [name for name, there in zip(("question", "cue", "template"), has, strict=True) if there]
        return [f"{where}: got {' and '.join(got) or 'no question'}, expected question and cue, or template"]
    if pack.template is None and (named := _fields_named(task, pack.cue or "")):
        return [f"{where}.cue: got the field {named}, expected it in the question; a cue is written as it is"]
    place = f"{where}.question" if pack.template is None else f"{where}.template"
    try:
        parsed = string.Formatter().parse(pack.template or pack.question or "")
        used = {field for _, field, _, _ in parsed if field is not None}
    except ValueError as error:
        return [f"{place}: {error}; write {{{{ and }}}} for literal braces"]
    if used != set(task.fields):
        return [f"{place}: got the fields {sorted(used)}, expected {sorted(task.fields)}"]
    try:
        pack.layout.format_map(dict.fromkeys(task.fields, "x"))  # a format such as {text:d} fails only here
    except (ValueError, LookupError) as error:
        return [f"{place}: {error}; write fields as {{{task.fields[0]}}}"]
    return []


def _fields_named(task: Task, text: str) -> str:
    """Return the fields that a text names where none is put in, as `{text}`; "" for none."""
    return one_of(f"{{{field}}}" for field in task.fields if f"{{{field}}}" in text)


def _set_faults(task: Task, where: str, sets: Mapping[str, Mapping[str, str]]) -> list[str]:
    faults = []
    for name, words in sets.items():
        if name.startswith(ANSWERS_IN):  # `Task.answers` would never look here
            expected = f"another name, since `{ANSWERS_IN}<code>` is the own words of a language"
            faults.append(f"{where}.{name}: got a name that begins with {ANSWERS_IN!r}, expected {expected}")
        faults += _answer_faults(task, f"{where}.{name}", words)
    return faults


def _answer_faults(task: Task, where: str, words: Mapping[str, str]) -> list[str]:
    if set(words) != set(task.labels):
        return [f"{where}: got words for {sorted(words)}, expected {sorted(task.labels)}"]
    faults = [f"{where}: the word of {label!r} is empty" for label, word in words.items() if not word.strip()]
    for label, word in words.items():
        if named := _fields_named(task, word):
            faults.append(f"{where}: the word of {label!r} is {word!r}, expected a word without the field {named}")
    first_with: dict[str, str] = {}
    for label, word in words.items():
        if word in first_with:
            faults.append(
                f"{where}: {first_with[word]!r} and {label!r} have the same word {word!r}, expected two words"
            )
        first_with.setdefault(word, label)
    return faults
