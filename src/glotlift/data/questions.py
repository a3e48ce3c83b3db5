"""Question pairs: what the model is tuned on (arXiv 2405.13816, section 3).

Enters: a task's questions in English and their translations, without answers. Leaves: pairs in the shape

    <question in the source language, in the task's own format, with the answer cue>
    Translate the input from <Language> to English:
    -> <the same question in English, in the English format, with the answer cue>
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from glotlift.data.read import Table, paper_file, path_of, read_table
from glotlift.errors import DataError
from glotlift.languages import language
from glotlift.tasks.load import sample_pattern
from glotlift.tasks.task import Task


@dataclass(frozen=True)
class QuestionPair:
    """A question in a source language (`input`) and in the target language (`target`), both as prompts."""

    id: str
    source: str
    target_language: str
    input: str
    target: str


def instruction(source: str, target: str) -> str:
    """Return the line that asks for the translation."""
    return f"Translate the input from {language(source).name} to {language(target).name}:"


def read_pairs(
    task: Task,
    source: str,
    languages: tuple[str, ...],
    *,
    target: str = "en",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[QuestionPair]:
    """Return the question pairs of several source languages, languages in the order given.

    Args:
        task: whose question templates and cues are used.
        source: `sample`; a folder in the paper's layout (its files hold finished pairs); or a path with `{lang}` to
            files of questions with the task's fields, rows matched by `id`, else by position.
        languages: the source languages.
        target: the language that is translated into.
        limit: only the first so many pairs a language; None for all.
        columns: the column of a field, where it is not named like the field.

    Raises:
        DataError: a file is missing or malformed, a text is empty, or a translation has no original.
    """
    if target in languages:
        raise DataError(f"got {target!r} as source and as target language, expected different ones")
    if source == "sample":
        pattern = sample_pattern(task.name, "questions")
        if pattern is None:
            raise DataError(f"task {task.name!r} has no bundled questions; name a folder or a file pattern")
        missing = [code for code in languages if not path_of(pattern, code, (code,)).exists()]
        if missing:
            has = sorted(p.stem.removeprefix("questions_") for p in Path(pattern).parent.glob("questions_*.jsonl"))
            raise DataError(
                f"no bundled questions of {task.name!r} in {', '.join(missing)}; there are: {' '.join(has)}"
            )
    elif Path(source).is_dir():
        if target != "en":
            raise DataError(f"{source}: the paper's files translate into English, got target {target!r}")
        return [pair for code in languages for pair in _paper_pairs(task, Path(source), code, limit)]
    else:
        pattern = source
    originals = read_table(path_of(pattern, target, (*languages, target)))
    pairs = []
    for code in languages:
        translations = read_table(path_of(pattern, code, (*languages, target)))
        pairs += _pairs(task, code, target, translations, originals, columns or {})[:limit]
    return pairs


def _pairs(
    task: Task, source: str, target: str, translations: Table, originals: Table, columns: Mapping[str, str]
) -> list[QuestionPair]:
    position = {name: index for index, name in enumerate(originals.ids())}
    pairs = []
    for index, name in enumerate(translations.ids()):
        if name not in position:
            raise DataError(f"{translations.source}, row {index + 1}: no question {name!r} in {originals.source}")
        there = {field: translations.text(index, columns.get(field, field)) for field in task.fields}
        here = {field: originals.text(position[name], columns.get(field, field)) for field in task.fields}
        asked = f"{task.question(source, there)}\n{instruction(source, target)}\n"
        pairs.append(QuestionPair(f"{source}:{name}", source, target, asked, task.question(target, here)))
    return pairs


def _paper_pairs(task: Task, folder: Path, source: str, limit: int | None) -> list[QuestionPair]:
    table = read_table(paper_file(folder, task.name, source, "train_question"))
    return [
        QuestionPair(f"{source}:{index}", source, "en", table.text(index, "input"), table.text(index, "answer"))
        for index in range(len(table.rows[:limit]))
    ]


def split_validation(
    pairs: list[QuestionPair], fraction: float, seed: int
) -> tuple[list[QuestionPair], list[QuestionPair]]:
    """Return training and validation pairs; a question goes to one side with all its translations.

    Args:
        pairs: all pairs.
        fraction: share of the questions that validate, 0 to below 1; at least one question when above 0.
        seed: of the draw.
    """
    questions = sorted({_question(pair) for pair in pairs})
    random.Random(seed).shuffle(questions)
    n_held = 0 if fraction == 0 else max(1, round(fraction * len(questions)))
    held = set(questions[:n_held])
    return (
        [pair for pair in pairs if _question(pair) not in held],
        [pair for pair in pairs if _question(pair) in held],
    )


def _question(pair: QuestionPair) -> str:
    return pair.id.split(":", 1)[1]


def dump_pairs(pairs: list[QuestionPair]) -> str:
    """Return pairs as JSONL text."""
    return "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)


def load_pairs(path: Path) -> list[QuestionPair]:
    """Return the pairs of a `pairs.jsonl`.

    Raises:
        DataError: it is missing or malformed.
    """
    table = read_table(path)
    names = list(QuestionPair.__dataclass_fields__)
    return [QuestionPair(*(table.text(index, name) for name in names)) for index in range(len(table.rows))]
