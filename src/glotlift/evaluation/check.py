"""Everything that is wrong with a task, at once: its file, its prompts, its answer words, its test rows.

Enters: the name of a bundled task or the path of a YAML file; a model's name, for its tokenizer; where test rows are.
Leaves: a `TaskCheck`. No model is run, and nothing stops at the first fault: one language at fault does not keep the
others from being checked. Here are the checks of the file itself; those of the rows are in `check_rows`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from glotlift.errors import ModelError, TaskError, one_of
from glotlift.evaluation.check_rows import Rows, check_rows
from glotlift.evaluation.findings import FAULTS, WARNINGS, TaskCheck, finding, reference, row_numbers, some
from glotlift.languages import is_code
from glotlift.models.control import encode, quoted_task, quoter, read_as_control
from glotlift.models.labels import Finding, audit_labels, audit_words, continuations, prefix_tokens, released_tokens
from glotlift.schema import read_yaml, validate
from glotlift.tasks.load import beside, load_task
from glotlift.tasks.task import ANSWERS_IN, AnswerSet, Task

_OPENING = "“„”«»‹›‘‚’「『《〈＂'"


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
        findings.append(finding("", "language", f"the task has no prompts in {some(others)}; it has: {has}"))
    source, rows, of_rows = check_rows(task, source, codes)
    findings += [*of_rows, *_answer_sets(task, codes), *_packs(task, codes), *_demonstrations(task, codes)]
    tokenizer, at_fault = _tokenizer(model)
    findings += [*at_fault, *_words(task, codes, tokenizer)]
    if tokenizer is not None:
        findings += [*_boundaries(task, codes, tokenizer), *_control(task, codes, rows, tokenizer)]
        findings += _released(task, codes, tokenizer)
    faults = tuple(each for each in findings if each.kind in FAULTS)
    warnings = tuple(each for each in findings if each.kind in WARNINGS)
    return TaskCheck(
        name_or_path, task, codes, source, model, faults, warnings, _prompts(task, codes, rows),
        rows={code: len(each.ids) for code, each in rows.items()},
        labels={code: {label: each.labels.count(label) for label in task.labels} for code, each in rows.items()},
    )  # fmt: skip


def _load(name_or_path: str) -> tuple[Task | None, list[Finding]]:
    """Return a task and the faults of its file; with faults, only the languages without any."""
    try:
        return load_task(name_or_path), []
    except TaskError as fault:
        faults = _sentences(fault, name_or_path)
    path = Path(name_or_path)
    try:
        content = read_yaml(path, TaskError)
        packs = content["languages"]
        codes = set(packs.keys())
    except (TaskError, TypeError, KeyError, AttributeError):
        return None, [finding("", "task file", text) for text in faults]
    sound = {}
    for code, pack in packs.items():
        if isinstance(code, str) and is_code(code):
            try:  # alone, so that no other language hides its faults
                alone = {code: _without_others(pack, codes - {code})}
                validate(Task, {**content, "languages": alone}, name_or_path, TaskError)
                sound[code] = pack
            except TaskError as fault:
                faults += _sentences(fault, name_or_path)
    sound = {code: _without_others(pack, codes - set(sound)) for code, pack in sound.items()}
    task = validate(Task, {**content, "languages": sound}, name_or_path, TaskError) if sound else None
    return None if task is None else beside(task, path), [
        finding("", "task file", text) for text in dict.fromkeys(faults)
    ]


def _without_others(pack: Any, others: Collection[Any]) -> Any:
    """Return a language as the file has it, without preambles for the words of languages that are not there."""
    if not isinstance(pack, dict) or not isinstance(pack.get("preamble"), dict):
        return pack
    gone = {f"{ANSWERS_IN}{code}" for code in others}
    return {**pack, "preamble": {name: text for name, text in pack["preamble"].items() if name not in gone}}


def _sentences(fault: TaskError, path: str) -> list[str]:
    """Return the faults that the message of a task file's error holds."""
    body = re.sub(r"^\d+ faults:\n", "", str(fault).removeprefix(f"{path}: "))
    lines = (line.strip() for line in body.split("\n  "))
    return [part for line in lines for part in re.split(r"; (?=languages\.|answer_sets\.|labels:)", line)]


def _prompts(task: Task, codes: Iterable[str], rows: Mapping[str, Rows]) -> dict[str, str]:
    """Return a prompt of every language, in its own words where it has a prompt in them."""
    prompts = {}
    blank = {field: f"<{field}>" for field in task.fields}
    for code in codes:
        for name in sorted(task.sets(code), key=lambda name: name != "own"):
            with suppress(TaskError):  # no preamble for this set, as `_packs` says
                prompts[code] = task.prompt(code, name, rows[code].texts[0] if code in rows else blank)
                break
    return prompts


def _answer_sets(task: Task, codes: Sequence[str]) -> Iterator[Finding]:
    """Yield languages without answer words, or without a set that others have."""
    having: dict[str, list[str]] = defaultdict(list)
    for code in codes:
        for name in task.sets(code):
            having[name].append(code)
    for code in codes:
        if not task.sets(code):
            yield finding(code, "answer words", "no answer set")
        for name, others in having.items():
            if code not in others:
                verb = "has" if len(others) == 1 else "have"
                yield finding(code, "answer sets", f"no `{name}`, which {some(others)} {verb}")


def _packs(task: Task, codes: Iterable[str]) -> Iterator[Finding]:
    """Yield what is odd about the texts of a language: ends of cue and preamble, a preamble that lacks words."""
    for code in codes:
        pack = task.pack(code)
        if pack.layout != pack.layout.rstrip():
            last = "a line break" if pack.layout.endswith("\n") else "a blank"
            yield finding(code, "cue end", f"the cue ends in {last}")
        elif pack.layout[-1] in _OPENING and task.pack(code).examples:
            yield finding(code, "open quote", f"the cue ends in {pack.layout[-1]}")
        if pack.preamble is None:
            continue
        for name, words in _preamble_sets(task, code).items():
            if isinstance(pack.preamble, dict) and name not in pack.preamble:
                yield finding(code, "preamble", f"no preamble for `{name}`")
                continue
            text = pack.preamble if isinstance(pack.preamble, str) else pack.preamble[name]
            if lacking := [word for word in words.values() if word not in text]:
                yield finding(code, "uncovered label", f"the preamble has no {one_of(map(repr, lacking))} (`{name}`)")
        for text in dict.fromkeys([pack.preamble] if isinstance(pack.preamble, str) else pack.preamble.values()):
            lines = [line.strip() for line in text.split("\n")]
            if "" in lines[:-2] and lines[-2:] != ["", ""]:
                yield finding(code, "preamble end", "the preamble has blank lines inside and none at its end")
            elif lines[-1]:
                yield finding(code, "preamble end", "the preamble does not end in a line break")


def _preamble_sets(task: Task, code: str) -> dict[str, AnswerSet]:
    """Return the answer sets of a language, and those in other languages' words that its preamble has a text for."""
    preamble, sets = task.pack(code).preamble, task.sets(code)
    for name in preamble if isinstance(preamble, dict) else ():
        with suppress(TaskError):  # the other language has no words of its own
            sets.setdefault(name, task.answers(code, name))
    return sets


def _demonstrations(task: Task, codes: Sequence[str]) -> Iterator[Finding]:
    """Yield labels without an example, and languages whose examples are not those of the first one, or in its words."""
    structured = [code for code in codes if task.pack(code).preamble is None]
    first = reference(structured)
    for code in structured:
        labels = [shown.label for shown in task.pack(code).demonstrations]
        if labels and (lacking := [label for label in task.labels if label not in labels]):
            yield finding(code, "uncovered label", f"no demonstration of {one_of(map(repr, lacking))}")
        here, there = task.pack(code).examples, task.pack(first).examples
        if list(here) != list(there):
            packs = (task.pack(each) for each in (code, first))
            sizes = [f"{len(pack.demonstrations)} and {len(pack.pool)} in the pool" for pack in packs]
            yield finding(code, "demonstrations", f"{sizes[0]}, where {first} has {sizes[1]}")
        elif any(shown.label != there[place].label for place, shown in here.items()):
            yield finding(code, "demonstrations", f"other labels, or another order of them, than in {first}")
        same = [place for place, shown in here.items() if place in there and shown.fields == there[place].fields]
        if same and code != first:
            yield finding(code, "untranslated", f"the same text as in {first} in {some(same)}")


def _tokenizer(model: str | None) -> tuple[Any, list[Finding]]:
    """Return the tokenizer of a model, None without one, and why it cannot be loaded."""
    if model is None:
        return None, []
    from glotlift.models.load import load_tokenizer

    try:
        return load_tokenizer(model), []
    except ModelError as fault:
        return None, [finding("", "model", str(fault))]


def _words(task: Task, codes: Iterable[str], tokenizer: Any) -> list[Finding]:
    """Return what the label audit finds in every answer set of every language, without a tokenizer in the words."""
    findings = []
    for code in codes:
        for name in task.sets(code):
            audited = audit_words(task, code, name)
            with suppress(TaskError):  # no preamble for this set, as `_packs` says
                audited = audited if tokenizer is None else audit_labels(tokenizer, task, code, name)
            findings += [Finding(each.language, each.kind, f"`{name}`: {each.message}") for each in audited]
    return findings


def _boundaries(task: Task, codes: Iterable[str], tokenizer: Any) -> Iterator[Finding]:
    """Yield answer sets whose words nothing scores behind an input that says nothing; evaluation runs these too."""
    from glotlift.evaluation.prompts import CONTENT_FREE

    asked = quoted_task(task, quoter(tokenizer))
    for code in codes:
        for name in task.sets(code):
            with suppress(TaskError):  # no preamble for this set, as `_packs` says
                words = asked.answers(code, name).values()
                prompts = [asked.prompt(code, name, dict.fromkeys(task.fields, text)) for text in CONTENT_FREE]
                found = encode(tokenizer, [prompt + word for prompt in prompts for word in ("", *words)])
                for index, text in enumerate(CONTENT_FREE):
                    prompt, *whole = found[index * (len(words) + 1) : (index + 1) * (len(words) + 1)]
                    try:
                        continuations(prompt, whole)
                    except ModelError as fault:
                        yield finding(code, "no boundary", f"`{name}`: input {text!r}: {fault}")


def _control(task: Task, codes: Iterable[str], rows: Mapping[str, Rows], tokenizer: Any) -> Iterator[Finding]:
    """Yield the words, examples and test rows in which a tokenizer finds control tokens, though their text is data."""
    for code in codes:
        texts = {f"the words of `{name}`": words for name, words in task.sets(code).items()}
        texts |= {place: shown.fields for place, shown in task.pack(code).examples.items()}
        places = [*texts, *range(len(rows[code].texts) if code in rows else 0)]
        parts = [*texts.values(), *(rows[code].texts if code in rows else ())]
        where: dict[str, list[str | int]] = defaultdict(list)
        for place, strings in zip(
            places, read_as_control(tokenizer, ["\n".join(each.values()) for each in parts]), strict=True
        ):
            for string in strings:
                where[string].append(place)
        for string, found in where.items():
            indexes = [place for place in found if isinstance(place, int)]
            named = [place for place in found if isinstance(place, str)] + [row_numbers(indexes)] * bool(indexes)
            yield finding(code, "control", f"{string!r} in {' and '.join(named)}")


def _released(task: Task, codes: Iterable[str], tokenizer: Any) -> Iterator[Finding]:
    """Yield how many answer words have other tokens in the code that the paper's authors released."""
    sets = [words for code in codes for words in task.sets(code).values()]
    words = {word for each in sets for word in each.values()}
    n_other = sum(prefix_tokens(tokenizer, word) != released_tokens(tokenizer, word) for word in words)
    if n_other:
        yield finding("", "released rule", f"other tokens for {n_other} of {len(words)} answer words")
