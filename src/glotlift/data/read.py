"""Rows from files and the hub, as the items of a task.

Enters: where rows are. One of
    `sample`, `sample:reviews`        the bundled sample of the task, where it has one; its longer reviews
    a folder                          the paper's layout, `<folder>/**/<set>_<lang><n>_test.json`
    a path with `{lang}` in it        one JSON, JSONL, CSV, TSV (also .gz) or Parquet file a language
    `hub:owner/name:config:split`     a data set of the Hugging Face hub; `{lang}` may stand in the config
    a file or hub data set for all languages, with a column that says which row is in which
Leaves: `Item`s, gold as label id. A fault names the file and the row.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glotlift.data.class_labels import class_names, named
from glotlift.data.delimited import read_delimited
from glotlift.data.layout import Layout, layout_of
from glotlift.errors import DataError, one_of
from glotlift.strict_json import parse_json
from glotlift.tasks.load import sample_kind, sample_pattern
from glotlift.tasks.task import Item, Task


class NoGoldError(DataError):
    """Rows have no right labels."""


GOLD_COLUMNS = ("label", "answer", "gold")
"""Columns that are looked for, in this order, when the gold column is not named."""

# The paper's released files: file stem, the column of each field where it is not the field's own name, and what English
# gold words mean where they are none of the task's.
_PAPER = {
    "sentiment": ("emotion", {"text": "input"}, {}),
    "nli": ("snli", {}, {}),
    "paraphrase": ("paws", {}, {"same": "yes", "different": "no"}),
}


@dataclass(frozen=True)
class Table:
    """Rows and where they came from; row numbers in messages count from 1."""

    source: str
    rows: list[dict[str, Any]]

    def text(self, index: int, column: str) -> str:
        """Return a cell that must hold text.

        Raises:
            DataError: the row has no such column, or the cell is empty, not text, or text that no tokenizer takes.
        """
        row = self.rows[index]
        if column not in row:
            raise DataError(f"{self.source}, row {index + 1}: no column {column!r}; it has: {', '.join(map(str, row))}")
        value = row[column]
        if not isinstance(value, str):
            raise DataError(f"{self.source}, row {index + 1}: {column!r} is {value!r}, expected text")
        if not value.strip():
            raise DataError(f"{self.source}, row {index + 1}: {column!r} is empty, expected text")
        self._must_be_whole(value, index, column)
        return value

    def _must_be_whole(self, value: str, index: int, column: str) -> None:
        if (half := lone_surrogate(value)) is not None:
            got = f"{column!r} holds {half!r}, half of a surrogate pair"
            raise DataError(f"{self.source}, row {index + 1}: {got}, expected whole characters")

    def ids(self) -> list[str]:
        """Return the `id` of every row, its position where it has none.

        Raises:
            DataError: two rows have the same, or one cannot be written to a file.
        """
        names = [str(row.get("id", index)) for index, row in enumerate(self.rows)]
        for index, row in enumerate(self.rows):
            if (value := row.get("id", index)) is None or value != value or (isinstance(value, str) and not value):
                got = f"{self.source}, row {index + 1}: the id is {value!r}"
                raise DataError(f"{got}, expected one in every row, or no column of that name")
        rows: dict[str, int] = {}
        for index, name in enumerate(names):
            self._must_be_whole(name, index, "id")
            if (first := rows.setdefault(name, index)) != index:
                raise DataError(
                    f"{self.source}: rows {first + 1} and {index + 1} have the id {name!r}, expected distinct ids"
                )
        return names


def read_items(
    task: Task,
    source: str | None,
    languages: tuple[str, ...],
    *,
    limit: int | None = None,
    gold: str | None = None,
    columns: Mapping[str, str] | None = None,
    gold_map: Mapping[str, str] | None = None,
) -> dict[str, list[Item]]:
    """Return the items of a task, a list a language.

    Args:
        task: the task whose fields and labels the rows must have.
        source: see the module's head; None for what the task file says under `data`, else `sample`.
        languages: codes.
        limit: only the first so many rows a language; None for all.
        gold: the column with the right label (an id or a word of any answer set); None to look for `GOLD_COLUMNS`.
        columns: the column of a field, where it is not named like the field; with `{lang}`, one a language.
        gold_map: what gold values mean, see `glotlift.data.layout`.

    Raises:
        DataError: a file is missing or malformed, or a row lacks a field or a known label.
    """
    where = _where(task, source)
    if sample_kind(where) is None and not where.startswith("hub:") and Path(where).is_dir():
        return _paper_items(task, Path(where), languages, limit)
    layout = layout_of(task, gold=gold, columns=columns, gold_map=gold_map)
    tables = read_tables(task, source, languages, is_by_language=layout.is_by_language)
    return {code: _items(task, table, code, limit, layout) for code, table in tables.items()}


def _where(task: Task, source: str | None) -> str:
    return source or (task.data.source if task.data else None) or "sample"


def read_tables(
    task: Task, source: str | None, languages: tuple[str, ...], *, is_by_language: bool = False
) -> dict[str, Table]:
    """Return the rows of every language as they are, without looking at fields and gold; arguments as `read_items`.

    Args:
        task: see `read_items`.
        source: likewise.
        languages: likewise.
        is_by_language: whether one file may serve several languages, since they have columns of their own in it.

    Raises:
        DataError: a file is missing or malformed, has no rows in a language, or is one for several languages.
    """
    where = _where(task, source)
    column = task.data.language_column if task.data and where == task.data.source else None
    if where.startswith("hub:"):
        if column is not None:
            return _by_language(_hub(where, ""), column, languages)
        if "{lang}" in where:
            return {code: _hub(where, code) for code in languages}
        if len(languages) > 1 and not is_by_language:
            got = f"got one data set for {len(languages)} languages"
            raise DataError(f"{where}: {got}, expected `{{lang}}` in its name, in `columns`, or a `language_column`")
        return dict.fromkeys(languages, _hub(where, ""))
    kind = sample_kind(where)
    if kind is not None:
        pattern = sample_pattern(task.name, kind)
        if pattern is None:
            missing = "bundled sample" if kind == "items" else f"bundled sample {kind!r}"
            raise DataError(f"task {task.name!r} has no {missing}; name a folder, a file pattern or a hub data set")
        where = pattern
    if column is not None:
        return _by_language(read_table(Path(where)), column, languages)
    if is_by_language and "{lang}" not in where:
        return dict.fromkeys(languages, read_table(Path(where)))
    return {code: read_table(path_of(where, code, languages)) for code in languages}


def _by_language(table: Table, column: str, languages: tuple[str, ...]) -> dict[str, Table]:
    """Return the rows of each language; their numbers in messages then count within the language."""
    rows: dict[str, list[dict[str, Any]]] = {code: [] for code in languages}
    for index, row in enumerate(table.rows):
        code = table.text(index, column)
        if code in rows:
            rows[code].append(row)
    if empty := [code for code, found in rows.items() if not found]:
        has = sorted({str(row[column]) for row in table.rows})
        raise DataError(f"{table.source}: no rows in {', '.join(empty)}; column {column!r} has: {' '.join(has)}")
    return {code: Table(f"{table.source} ({column} {code})", found) for code, found in rows.items()}


def path_of(pattern: str, language: str, languages: tuple[str, ...]) -> Path:
    """Return the file of a language.

    Raises:
        DataError: the pattern names one file for several languages.
    """
    if "{lang}" not in pattern and len(languages) > 1:
        got = f"one file for {len(languages)} languages" if Path(pattern).exists() else "no such file or folder"
        raise DataError(f"{pattern}: {got}, expected `{{lang}}` in the path, or a folder")
    return Path(pattern.replace("{lang}", language))


def read_table(path: Path) -> Table:
    """Return the rows of a JSON, JSONL, CSV, TSV or Parquet file; all but Parquet also compressed, as `.jsonl.gz`.

    Raises:
        DataError: it is missing, malformed (with the line), empty, or of another kind.
    """
    kinds = (*_KINDS, ".parquet")
    if not path.exists():
        raise DataError(f"{path}: no such file, expected {one_of(kinds)}")
    ending = path.suffix.lower()
    kind = Path(path.stem).suffix.lower() if ending == ".gz" else ending
    if kind not in (_KINDS if ending == ".gz" else kinds):
        got = f"{kind}.gz" if ending == ".gz" else kind or "(none)"
        raise DataError(f"{path}: got a file of kind {got!r}, expected {one_of(kinds)}")
    try:
        rows = _parquet(path) if kind == ".parquet" else _KINDS[kind](_text(path, ending == ".gz"), str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: cannot be read ({fault})") from None
    if not rows:
        raise DataError(f"{path}: got no rows, expected at least one")
    return Table(str(path), rows)


def _text(path: Path, is_compressed: bool) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if is_compressed else content).decode("utf-8-sig")


def _json(text: str, where: str) -> list[dict[str, Any]]:
    rows = parse_json(text, where, DataError)
    if not isinstance(rows, list):
        raise DataError(f"{where}: got a JSON {type(rows).__name__}, expected a list of objects")
    return [_object(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]


def _jsonl(text: str, where: str) -> list[dict[str, Any]]:
    return [
        _object(parse_json(line, where, DataError, line=number), f"{where}, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: got {row!r}, expected an object with named columns")
    return row


_KINDS: dict[str, Callable[[str, str], list[dict[str, Any]]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": partial(read_delimited, delimiter=","),
    ".tsv": partial(read_delimited, delimiter="\t"),
}
"""Ending -> function of text and what it is from -> rows."""


def _parquet(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file; class labels of `datasets` become their names, as those of the hub do."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except pyarrow.ArrowInvalid as fault:
        raise DataError(f"{path}: not valid Parquet: {str(fault).splitlines()[0]}") from None
    return named(table.to_pylist(), class_names((table.schema.metadata or {}).get(b"huggingface")))


def _hub(source: str, language: str) -> Table:
    """Return the rows of `hub:owner/name[:config[:split]]`; class labels become their names."""
    from datasets import ClassLabel, Dataset, load_dataset

    name, config, split = ([*source.removeprefix("hub:").replace("{lang}", language).split(":"), "", ""])[:3]
    try:
        rows = load_dataset(name, config or None, split=split or "test")
    except Exception as fault:  # the hub client raises many kinds; all mean that this data set is not to be had
        problem = next(iter(str(fault).splitlines()), type(fault).__name__)
        raise DataError(f"hub data set {name!r} (config {config or 'default'}): {problem}") from fault
    assert isinstance(rows, Dataset)
    classes = {column: kind.names for column, kind in rows.features.items() if isinstance(kind, ClassLabel)}
    table = named([dict(row) for row in rows], classes)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return Table(":".join(part for part in ("hub", name, config, split or "test") if part), table)


def lone_surrogate(text: str) -> str | None:
    """Return the first half of a surrogate pair that a text holds, None where it holds whole characters only.

    JSON may hold one, as `\\ud800`, where a text was cut inside a character; no tokenizer and no file takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        return text[fault.start]
    return None


def gold_column(table: Table, named: str | None) -> str:
    """Return the column with the right labels: the one named, else the first of `GOLD_COLUMNS`.

    Raises:
        NoGoldError: the table has none.
    """
    has = list(table.rows[0])
    wanted = (named,) if named else GOLD_COLUMNS
    found = next((column for column in wanted if column in has), None)
    if found is None:
        raise NoGoldError(f"{table.source}, row 1: no gold column; it has {', '.join(has)}, expected {one_of(wanted)}")
    return found


def _items(task: Task, table: Table, language: str, limit: int | None, layout: Layout) -> list[Item]:
    column = gold_column(table, layout.gold_in(language))
    labels = [_label(task, table, index, column, language, layout) for index in range(len(table.rows[:limit]))]
    return _with_labels(task, table, language, labels, layout)


def _label(task: Task, table: Table, index: int, column: str, language: str, layout: Layout) -> str:
    value = table.rows[index].get(column)
    if isinstance(value, str) or column not in table.rows[index]:
        table.text(index, column)  # which says what keeps it from being text
    try:
        return layout.label(task, language, value)
    except DataError as fault:
        raise DataError(f"{table.source}, row {index + 1}: {fault}") from None


def _with_labels(task: Task, table: Table, language: str, labels: list[str], layout: Layout) -> list[Item]:
    """Return the first rows as items, as many as there are labels."""
    return [
        Item(name, {field: table.text(index, layout.column(field, language)) for field in task.fields}, label)
        for index, (name, label) in enumerate(zip(table.ids(), labels, strict=False))
    ]


def _paper_items(task: Task, folder: Path, languages: tuple[str, ...], limit: int | None) -> dict[str, list[Item]]:
    """Return items of the paper's layout.

    Row i is the same item in every language, so gold comes from the English file: the words of the other files are
    machine-translated labels (the original scores two of them wrong for that). Their words must still tell the same
    labels apart row by row, which shows that the rows are parallel.
    """
    english = read_table(paper_file(folder, task.name, "en", "test"))
    _, columns, gold_map = _PAPER[task.name]
    column = gold_column(english, None)
    words = {str(row.get(column)) for row in english.rows}
    layout = Layout(None, columns, gold_map if words <= set(gold_map) else {})
    gold = [_label(task, english, index, column, "en", layout) for index in range(len(english.rows))]
    items = {}
    for code in languages:
        table = read_table(paper_file(folder, task.name, code, "test"))
        if len(table.rows) != len(gold):
            raise DataError(f"{table.source}: got {len(table.rows)} rows, expected {len(gold)} as in English")
        _check_parallel(table, gold, gold_column(table, None))
        items[code] = _with_labels(task, table, code, gold[:limit], layout)
    return items


def _check_parallel(table: Table, gold: list[str], column: str) -> None:
    meaning: dict[str, tuple[str, int]] = {}
    for index, label in enumerate(gold):
        word = table.text(index, column)
        first, row = meaning.setdefault(word, (label, index))
        if first != label:
            raise DataError(
                f"{table.source}, row {index + 1}: {word!r} means {label!r} here and {first!r} in row {row + 1} "
                "by the English file; expected rows parallel to the English ones"
            )


def paper_file(folder: Path, task: str, language: str, kind: str) -> Path:
    """Return the file of the paper's layout for a language; `kind` is `test` or `train_question`.

    Raises:
        DataError: the layout has no such task, or there is not exactly one such file.
    """
    if task not in _PAPER:
        raise DataError(
            f"{folder}: the paper's layout has no task {task!r}, expected {one_of(_PAPER)}, or give a pattern"
        )
    stem = _PAPER[task][0]
    name = f"{stem}_{language}[0-9]*_{kind}.json"
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        got = f"{len(found)} files" if found else "no file"
        raise DataError(
            f"{folder}: got {got} named {name}, expected one (the paper's layout), or give a pattern with {{lang}}"
        )
    return found[0]
