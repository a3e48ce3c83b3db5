"""The results table of a task: one source for the terminal, the HTML page and the model card.

Enters: scores. Leaves: a `ResultTable` of finished text, and its rich and Markdown forms. The HTML page renders the
same cells from its template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from glotlift.errors import TaskError, one_of
from glotlift.languages import Language
from glotlift.reporting.names import SEEN, UNSEEN, grouped, language

NEARLY_ALL = 0.95
"""From this share of the predictions on, one label is said to have nearly all of them."""

_STYLES = {"up": "bold blue", "down": "bold dark_orange", "warning": "yellow"}


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: its text, a lesser detail such as an interval, a tone (`up`, `down`, `warning`)."""

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its key, its title, what its detail is, and whether it holds numbers."""

    key: str
    title: str
    detail: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        cells: column key -> cell; a column may be missing.
        language: whose row it is; None in the summary.
        balance: variant -> label -> share of the predictions, 0 to 1.
        collapsed: variant -> warning, where one label has (nearly) all predictions.
    """

    cells: Mapping[str, Cell]
    language: Language | None = None
    balance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    collapsed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultTable:
    """A table: columns, rows a group (title -> rows), and the rows that sum up over languages."""

    title: str
    columns: tuple[Column, ...]
    groups: Mapping[str, list[Row]]
    summary: list[Row]


def build_table(scores: Mapping[str, Any], task_key: str) -> ResultTable:
    """Return the results table of a task.

    Args:
        scores: the content of scores.json.
        task_key: name of the test set.

    Raises:
        TaskError: there is no such test set.
    """
    extras = scores.get("glotlift", {})
    tasks = extras.get("tasks", {})
    if task_key not in tasks:
        raise TaskError(f"scores hold no test set {task_key!r}, expected {one_of(map(repr, tasks)) or 'at least one'}")
    task = tasks[task_key]
    languages, variants = task["languages"], extras["variants"]
    groups = {
        title: [_row(code, languages[code], variants, task["labels"]) for code in codes]
        for title, codes in grouped(extras, languages).items()
    }
    title = f"{task_key}: {' / '.join(task['labels'])}, {task['answers']} answers, chance {percent(task['chance'])} %"
    has_seen = SEEN in groups
    return ResultTable(title, _columns(variants, task["labels"]), groups, _summary(task, variants, has_seen))


def result_table(scores: dict[str, Any], task_key: str) -> Table:
    """Return the results table of a task for the terminal.

    Raises:
        TaskError: there is no such test set.
    """
    source = build_table(scores, task_key)
    # Text, not str: rich would read markup such as [bold] in the names of tasks and labels
    out = Table(
        title=Text(source.title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    columns = [column for column in source.columns if column.key != "script"]
    for column in columns:
        texts = [column.title, *(str(_text(row, column)) for row in _all_rows(source))]
        # a narrow terminal breaks cells between words, so that no number is cut; only the last column gives way
        width = None if column is columns[-1] else max(len(word) for text in texts for word in text.split())
        justify = "right" if column.is_number else "left"
        out.add_column(Text(column.title), justify=justify, overflow="fold", min_width=width)
    for title, rows in source.groups.items():
        if title:
            out.add_row(Text(title, style="dim italic"))
        for row in rows:
            out.add_row(*(_text(row, column) for column in columns))
        out.add_section()
    for row in source.summary:
        out.add_row(*(_text(row, column) for column in columns))
    return out


def markdown_rows(table: ResultTable) -> list[list[str]]:
    """Return the table as rows of plain text, the titles first; nothing is escaped yet."""
    body = [[_plain(row, column) for column in table.columns] for row in _all_rows(table)]
    return [[column.title for column in table.columns], *body]


def _plain(row: Row, column: Column) -> str:
    cell = row.cells.get(column.key, Cell(""))
    if column.key == "language" or not cell.detail:
        return cell.text
    if column.key == "script":
        return f"{cell.text}, {cell.detail}"
    return f"{cell.text} {'⚠ ' if cell.tone == 'warning' else ''}{cell.detail}"


def _all_rows(table: ResultTable) -> list[Row]:
    return [row for group in table.groups.values() for row in group] + table.summary


def _text(row: Row, column: Column) -> Text:
    cell = row.cells.get(column.key, Cell(""))
    text = Text(cell.text, style=_STYLES.get(cell.tone, ""))
    if cell.tone == "warning":
        text.append(" ⚠")
    elif cell.detail and column.key in ("base", "tuned", "change"):
        text.append(f" {cell.detail}", style="not bold dim")
    return text


def _columns(variants: list[str], labels: list[str]) -> tuple[Column, ...]:
    accuracy = [Column(variant, f"{variant} accuracy", "%, 95 % interval") for variant in variants]
    arrow = " → ".join(variants) if len(variants) > 1 else ""
    change = [Column("change", "change", "points, 95 % interval"), Column("p", "Holm p", "exact McNemar")]
    return (
        Column("language", "language", is_number=False),
        Column("script", "script, family", is_number=False),
        Column("n", "n", "items"),
        *accuracy,
        *(change if "tuned" in variants else []),
        Column("calibrated", "calibrated", f"%, {arrow}".removesuffix(", ")),
        Column("auroc", "AUROC", arrow),
        Column("predicted", "predicted", " / ".join(labels), is_number=False),
    )


def _row(code: str, entry: Mapping[str, Any], variants: list[str], labels: list[str]) -> Row:
    about = language(code)
    scores = [entry[variant] for variant in variants]
    counts = [[score["predicted"].get(label, 0) for label in labels] for score in scores]
    collapsed = {
        variant: warning
        for variant, count, score in zip(variants, counts, scores, strict=True)
        if (warning := _collapse(count, score["n"], labels))
    }
    cells = {
        "language": Cell(about.name, about.endonym if about.endonym != about.name else ""),
        "script": Cell(about.script, about.family),
        "n": Cell(str(scores[0]["n"])),
        "calibrated": Cell(arrow(*(percent(score["accuracy_calibrated"]) for score in scores))),
        "auroc": Cell(arrow(*(area(score["auroc"]) for score in scores))),
        "predicted": Cell(
            arrow(*("/".join(map(str, count)) for count in counts)),
            f"{'; '.join(f'{variant}: {warning}' for variant, warning in collapsed.items())}" if collapsed else "",
            "warning" if collapsed else "",
        ),
    }
    for variant, score in zip(variants, scores, strict=True):
        cells[variant] = Cell(percent(score["accuracy"]), f"[{percent(score['low'])}, {percent(score['high'])}]")
    if change := entry.get("change"):
        cells |= {"change": change_cell(change), "p": Cell(p_value(change.get("p_holm")))}
    balance = {
        variant: {label: number / score["n"] for label, number in zip(labels, count, strict=True)}
        for variant, count, score in zip(variants, counts, scores, strict=True)
    }
    return Row(cells, about, balance, collapsed)


def _collapse(counts: list[int], n: int, labels: list[str]) -> str:
    most = max(counts)
    label = labels[counts.index(most)]
    if most == n:
        return f"all {label}"
    return f"{percent(most / n)} % {label}" if most >= NEARLY_ALL * n else ""


def _summary(task: Mapping[str, Any], variants: list[str], has_seen: bool) -> list[Row]:
    means, groups = task.get("means", {}), task.get("groups", {})
    if not groups:
        cells = {variant: Cell(percent(means[variant]["accuracy"])) for variant in variants if variant in means}
        return (
            [Row({"language": Cell("Mean over languages"), **cells, **_mean_cells(means, variants)})] if means else []
        )
    rows = []
    titles = {"all": "All", "seen": SEEN, "unseen": UNSEEN} if has_seen else {"all": "All"}
    for name, title in titles.items():
        if (change := groups.get(name)) is None:
            continue
        cells = {
            "language": Cell(f"{title} ({change['languages']})"),
            "n": Cell(str(change["n"])),
            "base": Cell(percent(change["a"])),
            "tuned": Cell(percent(change["b"])),
            "change": change_cell(change),
        }
        if name == "all":
            cells |= _mean_cells(means, variants)
        if fair := task.get("calibrated_groups", {}).get(name):
            cells["calibrated"] = Cell(arrow(percent(fair["a"]), percent(fair["b"])), change_interval(fair))
        rows.append(Row(cells))
    return rows


def _mean_cells(means: Mapping[str, Any], variants: list[str]) -> dict[str, Cell]:
    present = [means[variant] for variant in variants if variant in means]
    return {
        "calibrated": Cell(arrow(*(percent(mean["accuracy_calibrated"]) for mean in present))),
        "auroc": Cell(arrow(*(area(mean["auroc"]) for mean in present))),
    }


def change_cell(change: Mapping[str, Any]) -> Cell:
    """Return the cell of a change: its tone says up or down only where the interval leaves out zero."""
    tone = "up" if change["low"] > 0 else "down" if change["high"] < 0 else ""
    return Cell(points(change["change"]), change_interval(change), tone)


def change_interval(change: Mapping[str, Any]) -> str:
    """Return `[+1.2, +5.0]`, in points."""
    return f"[{points(change['low'])}, {points(change['high'])}]"


def percent(share: float) -> str:
    """Return a share (0 to 1) in percent, without the sign: `61.2`."""
    return f"{share * 100:.1f}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with a true minus sign: `+3.1`, `−0.4`, `0.0`."""
    text = f"{difference * 100:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def p_value(p: float | None) -> str:
    """Return a p-value: `0.031`, `<0.001`."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def area(auroc: float | None) -> str:
    """Return an AUROC, `–` where it is not defined."""
    return "–" if auroc is None else f"{auroc:.2f}"


def arrow(*texts: str) -> str:
    """Return `before → after`, or the one text there is."""
    return " → ".join(texts)
