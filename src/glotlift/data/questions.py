"""Question pairs: what the model is tuned on (arXiv 2405.13816, section 3).

Enters: a task's questions in English and their translations, without answers. Leaves: pairs in the shape

    <question in the source language, in the task's own format, with the answer cue>
    Translate the input from <Language> to English:
    -> <the same question in English, in the English format, with the answer cue>

One language is common to all pairs (the pivot); a `direction` says which, and on which side it stands:

    to-english      each language -> English
    from-english    English -> each language
    via:zh          each language, English too, -> Chinese; any other language in place of Chinese
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from glotlift.data.parallel import QuestionFile, check_pairable, read_questions
from glotlift.data.read import Table, paper_file, read_table
from glotlift.errors import DataError, LanguageError, nearest, one_of
from glotlift.languages import language
from glotlift.tasks.task import Task

DIRECTIONS = ("to-english", "from-english", "via:<lang>")
"""What a direction may be; `<lang>` is the code of a language."""

BALANCES = ("none", "pairs", "tokens")
"""What languages may be made equal in."""


@dataclass(frozen=True)
class QuestionPair:
    """A question in a source language (`input`) and in the target language (`target`), both as prompts.

    Attributes:
        id: `<code>:<name>`, the code of `language` and the name of the question.
        source: code of the language that is translated from.
        target_language: code of the language that is translated into.
        input: the question in the source language, and the instruction behind it.
        target: the question in the target language.
    """

    id: str
    source: str
    target_language: str
    input: str
    target: str

    @property
    def language(self) -> str:
        """Code of the language that is not the common one; what is counted a language goes by it."""
        return self.id.split(":", 1)[0]


def instruction(source: str, target: str) -> str:
    """Return the line that asks for the translation.

    Raises:
        LanguageError: a code is unknown.
    """
    return f"Translate the input from {language(source).name} to {language(target).name}:"


def pivot(direction: str) -> str:
    """Return the code of the language that all pairs of a direction have in common.

    Raises:
        DataError: there is no such direction, or it names an unknown language.
    """
    if direction in DIRECTIONS[:2]:
        return "en"
    code = direction.removeprefix("via:")
    if code == direction:
        hint = nearest(direction, DIRECTIONS[:2])
        raise DataError(f"got the direction {direction!r}{hint}, expected {one_of(DIRECTIONS)}")
    try:
        return language(code).code
    except LanguageError:
        raise DataError(f"got the direction {direction!r}, expected the code of a language behind `via:`") from None


def read_pairs(
    task: Task,
    source: str,
    languages: tuple[str, ...],
    *,
    direction: str = "to-english",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[QuestionPair]:
    """Return the question pairs of several languages, languages in the order given.

    Args:
        task: whose question templates and cues are used.
        source: `sample`; a folder in the paper's layout, whose files hold finished pairs into English (those of other
            directions are made from them: row i must be the same question in every file); or a path with `{lang}` to
            files of questions with the task's fields, rows matched by `id`, else by position (as many in every file).
        languages: the languages beside the common one.
        direction: see the module's head.
        limit: only the first so many pairs a language; None for all.
        columns: the column of a field, where it is not named like the field.

    Raises:
        DataError: a file is missing or malformed, a text is empty, a question is missing in the common language, files
            of the paper's layout are not parallel, or there is no such direction.
        LanguageError: the task has no prompts in a language.
    """
    common = pivot(direction)
    if not languages:
        raise DataError("got no languages, expected at least one beside the common one")
    if common in languages:
        raise DataError(f"got {common!r} as source and as target language, expected different ones")
    if source != "sample" and Path(source).is_dir():
        tables = _paper_tables(task, Path(source), languages, common, limit)
        if direction == "to-english":
            return [pair for code in languages for pair in _finished(tables[code], code)]
        questions = _paper_questions(tables)
    else:
        questions = _own_questions(task, source, (*languages, common), columns or {})
    is_reversed = direction == "from-english"
    return [pair for code in languages for pair in _pairs(questions, code, common, is_reversed)[:limit]]


@dataclass(frozen=True)
class _Questions:
    """A language's questions: where they are, name -> row, and how a row is written as a prompt."""

    source: str
    rows: dict[str, int]
    prompt: Callable[[int], str]


def _pairs(questions: Mapping[str, _Questions], code: str, common: str, is_reversed: bool) -> list[QuestionPair]:
    """Return the pairs of a language; reversed ones have the common language as their source."""
    own, other = questions[code], questions[common]
    ends = (common, code) if is_reversed else (code, common)
    asks = f"\n{instruction(*ends)}\n"
    pairs = []
    for name, row in own.rows.items():
        if name not in other.rows:
            raise DataError(f"{own.source}, row {row + 1}: no question {name!r} in {other.source}, expected one")
        texts = own.prompt(row), other.prompt(other.rows[name])
        there, here = reversed(texts) if is_reversed else texts
        pairs.append(QuestionPair(f"{code}:{name}", *ends, there + asks, here))
    return pairs


def _own_questions(
    task: Task, source: str, codes: tuple[str, ...], columns: Mapping[str, str]
) -> dict[str, _Questions]:
    """Return the questions of files that hold the task's fields."""

    def questions(code: str, file: QuestionFile) -> _Questions:
        fields = list(file.rows.values())
        names = {name: row for row, name in enumerate(file.rows)}
        return _Questions(file.source, names, lambda row: task.question(code, fields[row]))

    files = read_questions(task, source, codes, columns)
    check_pairable(files)
    return {code: questions(code, file) for code, file in files.items()}


# --- the paper's layout: rows `input` (question, instruction, both with a newline behind) and `answer` (in English)


def _paper_tables(
    task: Task, folder: Path, languages: tuple[str, ...], common: str, limit: int | None
) -> dict[str, Table]:
    """Return the files of all languages but English, which stands in each of them, cut to the limit."""
    tables: dict[str, Table] = {}
    for code in (*languages, common):
        if code != "en":
            table = read_table(paper_file(folder, task.name, code, "train_question"))
            tables[code] = Table(table.source, table.rows[:limit])
    _check_parallel(list(tables.values()))
    return tables


def _check_parallel(tables: Sequence[Table]) -> None:
    """Raise where a row that two files have is not the same question; what only the longer one has is not compared."""
    longest = max(tables, key=lambda table: len(table.rows))
    for table in tables:
        for row in range(len(table.rows)):
            if table.text(row, "answer") != longest.text(row, "answer"):
                raise DataError(
                    f"{table.source}, row {row + 1}: got another `answer` than in {longest.source}, "
                    "expected files with the same question in the same row"
                )


def _finished(table: Table, code: str) -> list[QuestionPair]:
    return [
        QuestionPair(f"{code}:{row}", code, "en", table.text(row, "input"), table.text(row, "answer"))
        for row in range(len(table.rows))
    ]


def _paper_questions(tables: Mapping[str, Table]) -> dict[str, _Questions]:
    """Return the questions of the files' languages, and the English ones of the longest file."""

    def questions(code: str, table: Table) -> _Questions:
        def prompt(row: int) -> str:
            return table.text(row, "answer") if code == "en" else _question_of(table, row, code)

        return _Questions(table.source, {str(row): row for row in range(len(table.rows))}, prompt)

    longest = max(tables.values(), key=lambda table: len(table.rows))
    return {code: questions(code, table) for code, table in {**tables, "en": longest}.items()}


def _question_of(table: Table, row: int, code: str) -> str:
    text, asks = table.text(row, "input"), f"\n{instruction(code, 'en')}\n"
    if not text.endswith(asks):
        raise DataError(f"{table.source}, row {row + 1}: got an `input` that ends in {text[-60:]!r}, expected {asks!r}")
    return text.removesuffix(asks)


# --- balance and validation


def balance_pairs(
    pairs: Sequence[QuestionPair], by: str, lengths: Mapping[str, int] | None = None
) -> list[QuestionPair]:
    """Return pairs of which every language (`QuestionPair.language`) has equally many, in the order given.

    A language keeps its first pairs, whole; those behind them are dropped. So the languages keep the same questions
    by `pairs` where their files are parallel, but not by `tokens`, where their ends differ.

    Args:
        pairs: all pairs.
        by: `none` drops nothing; `pairs` keeps as many a language as the smallest has; `tokens` keeps as many leading
            pairs as do not exceed the smallest language's tokens.
        lengths: pair id -> tokens, of input and target together or as they should count; only for `tokens`.

    Raises:
        DataError: `by` is none of these, a pair has no length, or no pair of a language fits.
    """
    if by not in BALANCES:
        raise DataError(f"got the balance {by!r}{nearest(by, BALANCES)}, expected {one_of(BALANCES)}")
    if by == "none" or not pairs:
        return list(pairs)
    size = _sizes(pairs, by, lengths)
    totals: Counter[str] = Counter()
    for pair, tokens in zip(pairs, size, strict=True):
        totals[pair.language] += tokens
    smallest = min(totals, key=lambda code: totals[code])
    taken: Counter[str] = Counter()
    kept = []
    for pair, tokens in zip(pairs, size, strict=True):
        taken[pair.language] += tokens
        if taken[pair.language] <= totals[smallest]:
            kept.append(pair)
    if lost := [code for code in totals if code not in {pair.language for pair in kept}]:
        raise DataError(
            f"balance by tokens: got a first pair of {', '.join(lost)} longer than all pairs of {smallest} "
            f"({totals[smallest]} tokens), expected at least one pair a language to fit"
        )
    return kept


def _sizes(pairs: Sequence[QuestionPair], by: str, lengths: Mapping[str, int] | None) -> list[int]:
    """Return what each pair counts: 1, or its tokens."""
    if by == "pairs":
        return [1] * len(pairs)
    known = lengths or {}
    if missing := [pair.id for pair in pairs if pair.id not in known]:
        raise DataError(
            f"balance by tokens: got no length of {missing[0]!r} ({len(missing)} in all), expected one a pair"
        )
    return [known[pair.id] for pair in pairs]


def split_validation(
    pairs: list[QuestionPair], fraction: float, seed: int
) -> tuple[list[QuestionPair], list[QuestionPair]]:
    """Return training and validation pairs; a question goes to one side with all its translations.

    Args:
        pairs: all pairs.
        fraction: share of the questions that validate, 0 to below 1; at least one question when above 0.
        seed: of the draw.

    Raises:
        DataError: no question is left to train on.
    """
    questions = sorted({_question(pair) for pair in pairs})
    random.Random(seed).shuffle(questions)
    n_held = 0 if fraction == 0 else max(1, round(fraction * len(questions)))
    if n_held == len(questions):
        got = f"data.validation_fraction: {fraction:g} of {len(questions)} questions holds all of them out"
        raise DataError(f"{got}, expected some to train on; lower it, or give more questions")
    held = set(questions[:n_held])
    return (
        [pair for pair in pairs if _question(pair) not in held],
        [pair for pair in pairs if _question(pair) in held],
    )


def _question(pair: QuestionPair) -> str:
    return pair.id.split(":", 1)[1]


def dump_pairs(pairs: Sequence[QuestionPair]) -> str:
    """Return pairs as JSONL text, one object a line with the fields of `QuestionPair`."""
    return "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)


def load_pairs(path: Path) -> list[QuestionPair]:
    """Return the pairs of a `pairs.jsonl`.

    Raises:
        DataError: it is missing or malformed, or an id does not begin with one of the pair's languages.
    """
    table = read_table(path)
    names = list(QuestionPair.__dataclass_fields__)
    pairs = [QuestionPair(*(table.text(index, name) for name in names)) for index in range(len(table.rows))]
    for row, pair in enumerate(pairs, 1):
        ends = pair.source, pair.target_language
        if ":" not in pair.id or pair.language not in ends:
            expected = one_of(f"{code}:<question>" for code in ends)
            raise DataError(f"{table.source}, row {row}: got the id {pair.id!r}, expected {expected}")
    return pairs
