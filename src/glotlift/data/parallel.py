"""Parallel questions: a task's fields, without answers, under one name in several languages.

Enters: files of questions, a language each. Leaves: `Question`s; and `questions.jsonl`, an object a line with `id`
(`<code>:<name>`), `language` and `fields`. Objectives that ask the questions as evaluation does are made of these; the
pairs of `glotlift.data.questions` are text for translation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glotlift.data.read import path_of, read_table
from glotlift.errors import DataError
from glotlift.tasks.load import sample_pattern
from glotlift.tasks.task import Task


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a language.

    Attributes:
        source: where they are from, for messages.
        rows: name -> field -> text, in the order of the file.
        is_named: whether every row has an `id`; else the names of some are their positions.
    """

    source: str
    rows: dict[str, dict[str, str]]
    is_named: bool


def read_questions(
    task: Task, source: str, codes: Sequence[str], columns: Mapping[str, str] | None = None
) -> dict[str, QuestionFile]:
    """Return the questions of several languages; rows are named by `id`, else by position, see `check_pairable`.

    Args:
        task: whose fields they have.
        source: `sample`, or a path with `{lang}`; or one file for all where `columns` has `{lang}`.
        codes: the languages.
        columns: the column of a field, where it is not named like the field.

    Raises:
        DataError: a file is missing or malformed, or a text is empty.
    """
    known = columns or {}
    pattern = _sample(task, tuple(codes)) if source == "sample" else source
    is_one_file = any("{lang}" in column for column in known.values()) and "{lang}" not in pattern
    files = {}
    for code in codes:
        table = read_table(Path(pattern) if is_one_file else path_of(pattern, code, tuple(codes)))
        files[code] = QuestionFile(
            table.source,
            {
                name: {field: table.text(row, known.get(field, field).replace("{lang}", code)) for field in task.fields}
                for row, name in enumerate(table.ids())
            },
            all("id" in row for row in table.rows),
        )
    return files


def check_pairable(files: Mapping[str, QuestionFile]) -> None:
    """Check that rows without ids can be paired by position.

    Args:
        files: language -> questions.

    Raises:
        DataError: rows have no ids, and a file has more of them than another.
    """
    nameless = next((each for each in files.values() if not each.is_named), None)
    if nameless is None:
        return
    n = len(nameless.rows)
    if other := next((each for each in files.values() if len(each.rows) != n), None):
        got = f"{nameless.source}: got {n} rows, not all with an `id`, and {len(other.rows)} in {other.source}"
        raise DataError(f"{got}, expected ids, or as many rows: without ids the same row is the same question")


def in_common(files: Mapping[str, QuestionFile], names: Sequence[str] | None = None) -> list[str]:
    """Return the names of the questions that all languages have, in the order of the first one.

    Args:
        files: language -> questions.
        names: only these; None for all.

    Raises:
        DataError: there are fewer than two: nothing tells what a question says from a preference for a label; or as
            `check_pairable`.
    """
    check_pairable(files)
    first = next(iter(files.values()))
    asked = None if names is None else set(names)
    common = [
        name
        for name in first.rows
        if all(name in each.rows for each in files.values()) and (asked is None or name in asked)
    ]
    if len(common) < 2:
        got = f"{len(common)} questions with the same id in all of {', '.join(files)}"
        raise DataError(f"{first.source}: got {got}, expected at least 2; this objective compares translations")
    return common


def dump_questions(files: Mapping[str, QuestionFile], names: Sequence[str]) -> str:
    """Return questions as JSONL text, language by language."""
    return "".join(
        json.dumps({"id": f"{code}:{name}", "language": code, "fields": each.rows[name]}, ensure_ascii=False) + "\n"
        for code, each in files.items()
        for name in names
    )


def load_questions(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return language -> name -> fields of a `questions.jsonl`.

    Raises:
        DataError: it is missing or malformed.
    """
    table = read_table(path)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for index, row in enumerate(table.rows):
        code, name = table.text(index, "language"), table.text(index, "id").partition(":")[2]
        if not isinstance(row.get("fields"), dict) or not name:
            raise DataError(f"{table.source}, row {index + 1}: got no `fields` of a question, expected a mapping")
        found.setdefault(code, {})[name] = row["fields"]
    return found


def _sample(task: Task, codes: tuple[str, ...]) -> str:
    """Return the path pattern of the bundled questions."""
    pattern = sample_pattern(task.name, "questions")
    if pattern is None:
        raise DataError(f"task {task.name!r} has no bundled questions; name a folder or a file pattern")
    if missing := [code for code in codes if not path_of(pattern, code, (code,)).exists()]:
        has = sorted(p.stem.removeprefix("questions_") for p in Path(pattern).parent.glob("questions_*.jsonl"))
        raise DataError(f"no bundled questions of {task.name!r} in {', '.join(missing)}; there are: {' '.join(has)}")
    return pattern
