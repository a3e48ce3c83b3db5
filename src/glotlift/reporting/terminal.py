"""The tables of the terminal, in rich.

Enters: scores. Leaves: renderables. A narrow terminal first loses the least important
columns, which a line then names, and then breaks cells between words, so that no number is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from glotlift.reporting.across import Grid, Spread
from glotlift.reporting.names import guarantee, language
from glotlift.reporting.table import (
    Cell,
    Column,
    ResultTable,
    Row,
    all_rows,
    arrow,
    build_table,
    percent,
    rollup_table,
)

_FIRST_TO_GO = ("ece", "contextual", "auroc", "p", "raw")
_STYLES = {"up": "bold blue", "down": "bold dark_orange", "warning": "yellow"}
_UNBOUND = 100_000
"""A width no table reaches."""

_GAP = 2
"""What rich puts between two columns."""


def result_table(scores: Mapping[str, Any], task_key: str) -> RenderableType:
    """Return the results table of a task.

    Raises:
        TaskError: there is no such test set.
    """
    return _Fitted(build_table(scores, task_key))


def rollups(scores: Mapping[str, Any], task_key: str) -> RenderableType | None:
    """Return a test set's accuracy by family, script and resource class; None where no two groups can be compared."""
    extras = scores["glotlift"]
    table = rollup_table(extras["tasks"][task_key], extras["variants"], extras.get("names"))
    return None if table is None else _Fitted(table)


def fitted(table: ResultTable) -> RenderableType:
    """Return any table, made to fit the terminal."""
    return _Fitted(table)


@dataclass(frozen=True)
class _Fitted:
    """A results table with as many columns as the terminal has room for."""

    source: ResultTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns = [column for column in self.source.columns if column.key != "script"]
        left_out = []
        for key in _FIRST_TO_GO:
            if _width(console, options, _filled(self.source, columns)) <= options.max_width:
                break
            left_out += [column.title for column in columns if column.key == key]
            columns = [column for column in columns if column.key != key]
        table = _filled(self.source, columns)
        if _width(console, options, table) > options.max_width:
            table = _filled(self.source, columns, is_stacked=True)
        yield Text(self.source.title, style="table.title")
        yield table
        if left_out:
            yield Text(f"left out at this width: {', '.join(left_out)}", style="dim")


def _width(console: Console, options: ConsoleOptions, table: Table) -> int:
    return Measurement.get(console, options.update(max_width=_UNBOUND), table).maximum


def _filled(source: ResultTable, columns: Sequence[Column], *, is_stacked: bool = False) -> Table:
    """Return the table; stacked, intervals stand below their numbers."""
    out = _plain_table()
    for column in columns:
        texts = [column.title, *(str(_text(row, column, is_stacked=is_stacked)) for row in all_rows(source))]
        width = max(len(word) for text in texts for word in text.split())  # cells break between words
        justify = "right" if column.is_number else "left"
        out.add_column(Text(column.title), justify=justify, overflow="fold", min_width=width)
    for title, rows in source.groups.items():
        if title:
            out.add_row(Text(title, style="dim italic"))
        for row in rows:
            out.add_row(*(_text(row, column, is_stacked=is_stacked) for column in columns))
        out.add_section()
    for row in source.summary:
        out.add_row(*(_text(row, column, is_stacked=is_stacked) for column in columns))
    return out


def _plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def _text(row: Row, column: Column, *, is_stacked: bool = False) -> Text:
    """Return a cell as Text, not str: rich would read markup such as [bold] in the names of tasks and labels."""
    cell = row.cells.get(column.key, Cell(""))
    shown = cell.text if is_stacked else cell.text.replace(arrow("", ""), arrow("", "").strip())  # columns count
    if column.key == "language" and row.language is None:
        shown = shown.partition(" (")[0]  # the sentence below says how many languages
    text = Text(shown, style=_STYLES.get(cell.tone, ""))
    if cell.tone == "warning":
        text.append(" ⚠")
    elif cell.detail and column.key in ("base", "tuned", "change"):
        text.append(f"{chr(10) if is_stacked else ' '}{cell.detail}", style="not bold dim")
    return text


@dataclass(frozen=True)
class _GridView:
    """A grid as a table a variant, in blocks of columns where the terminal is narrow."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        names = {code: f"{language(code).name} ({code})" for code in self.grid.prompts}
        first = max(map(len, [_CORNER, *names.values()]))
        each = max(5, *(len(code) for code in self.grid.answers))
        n_columns = max(1, (options.max_width - first - _GAP) // (each + _GAP))
        columns = [*self.grid.answers, _MEAN]
        for variant, rows in self.grid.cells.items():
            yield Text(f"{self.grid.name}, {variant}: accuracy in %, by language of the answer words", "table.title")
            for start in range(0, len(columns), n_columns):
                table = _plain_table()
                table.add_column(_CORNER, min_width=first)
                for code in columns[start : start + n_columns]:
                    table.add_column(Text(code), justify="right", min_width=each, no_wrap=True)
                for prompt, name in names.items():
                    row = rows.get(prompt, {})
                    cells = [_grid_cell(row, prompt, code) for code in columns[start : start + n_columns]]
                    table.add_row(Text(name), *cells)
                yield table


_CORNER = "prompt"
_MEAN = "mean"


def _grid_cell(row: Mapping[str, float], prompt: str, answer: str) -> Text:
    if answer == _MEAN:
        return Text(percent(sum(row.values()) / len(row)) if row else "–", style="dim")
    text = percent(row[answer]) if answer in row else "–"
    return Text(text, style="bold" if answer == prompt else "")


def grid_table(grid: Grid) -> RenderableType:
    """Return a grid: a row a language of the prompt, a column a language of the answer words."""
    return _GridView(grid)


def spread_table(spread: Spread) -> RenderableType:
    """Return the spread over draws of demonstrations: mean, standard deviation and range, a row a language."""
    title = f"{spread.name}: accuracy in % over {len(spread.test_sets)} draws of demonstrations"
    table = _plain_table()
    table.add_column("language")
    for variant in spread.summaries:
        table.add_column(f"{variant}, mean ± sd", justify="right")
        table.add_column("min to max", justify="right")
    for code in (*spread.languages, ""):
        if not code:
            table.add_section()
        cells = []
        for rows in spread.summaries.values():
            row = rows[code]
            cells += [
                f"{percent(row['mean'])} ± {percent(row['sd'])}",
                f"{percent(row['min'])} to {percent(row['max'])}",
            ]
        table.add_row(Text(language(code).name if code else "Mean over languages"), *cells)
    return Group(Text(title, style="table.title"), table)


def inspection(languages: Mapping[str, Any], audit: Mapping[str, Any]) -> list[RenderableType]:
    """Return what `glotlift train --inspect` prints: counts a language, rows as the model sees them, the audit.

    Args:
        languages: from `glotlift.training.rows.inspect_rows`.
        audit: from `glotlift.data.audit.audit_pairs`.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("language", "rows", "tokens a row", "learned of them", "truncated", "with control tokens", "ends in"):
        table.add_column(name, justify="left" if name == "language" else "right")
    for code, found in languages.items():
        spans = [f"{mean:g} ({least}–{most})" for least, mean, most in (found["tokens"], found["targets"])]
        counts = (f"{found[key]:,}" for key in ("truncated", "control"))
        ends = Text(" ".join(map(repr, found["ends"])))
        table.add_row(language(code).name, f"{found['rows']:,}", *spans, *counts, ends)
    shown: list[RenderableType] = [table]
    for code, found in languages.items():
        for row in found["shown"]:
            text = Text(f"{language(code).name}, {row['id']}, read:\n", style="bold")
            text.append(row["prompt"], style="not bold").append("\nlearned:\n").append(
                row["target"], style="not bold blue"
            )
            shown.append(text)
    flags = ", ".join(f"{count} {flag}" for flag, count in audit["flags"].items()) or "none flagged"
    shown.append(f"{audit['pairs']:,} pairs, {flags}. {guarantee(audit)}")
    return shown
