"""The results table of a task: one source for the terminal, the HTML page and the model card.

Enters: scores. Leaves: a `ResultTable` of finished text, also for roll-ups over families, scripts and resource classes;
and its Markdown form. The terminal form is in `glotlift.reporting.terminal`; the HTML page renders the same cells from
its template. A measure that no language has gets no column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glotlift.errors import TaskError, one_of
from glotlift.languages import Language
from glotlift.reporting.names import SEEN, UNSEEN, grouped, language

NEARLY_ALL = 0.95
"""From this share of the predictions on, one label is said to have nearly all of them."""

FEWEST_ITEMS = 6
"""With fewer items no change is called one, as in `glotlift.evaluation.compare`."""

SIGNIFICANT = 0.05
"""Below this p-value, corrected by Holm's method, a change of one language is marked."""

SCORE_KEYS = {
    "raw": "accuracy_raw",
    "calibrated": "accuracy_calibrated",
    "contextual": "accuracy_contextual",
    "auroc": "auroc",
    "ece": "ece",
}
"""Measure -> its key in the scores of a language and in the means."""

_DECIDED = {"none": "raw", "batch": "calibrated", "contextual": "contextual"}
_TITLES = {"raw": "raw", "calibrated": "calibrated", "contextual": "contextual", "auroc": "AUROC", "ece": "ECE"}
_ACCURACIES = ("raw", "calibrated", "contextual")
_INTERVAL_OF = {unit: f"{unit}, 95\u00a0% interval" for unit in ("%", "points")}
_ROLLUPS = {"family": "Family", "script": "Script", "resource": "Resource class"}


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
    measures = beside(task, variants)
    groups = {
        title: [_row(code, task, variants, measures) for code in codes]
        for title, codes in grouped(extras, languages).items()
    }
    calibration = task.get("calibration", "none")
    how = "" if calibration == "none" else f", {calibration} calibration"
    chance = f"chance {percent(task['chance'])}%"
    title = f"{task_key}: {' / '.join(task['labels'])}, {task['answers']} answers{how}, {chance}"
    columns = _columns(variants, task["labels"], measures, extras.get("names", {}))
    return ResultTable(title, columns, groups, _summary(task, variants, measures, SEEN in groups))


def decided(task: Mapping[str, Any]) -> str:
    """Return which of `raw`, `calibrated` and `contextual` the accuracies of a test set are, as its file decides."""
    return _DECIDED[task.get("calibration", "none")]


def language_change(entry: Mapping[str, Any], measure: str) -> Mapping[str, Any] | None:
    """Return the change of a measure in one language, None where it is not known."""
    if "changes" not in entry:  # scores of glotlift 0.1
        return entry.get("change") if measure == "raw" else None
    return entry["changes"].get(measure)


def group_changes(task: Mapping[str, Any], measure: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the changes of a measure over groups of languages: `all`, `seen`, `unseen`."""
    key = f"{measure}_groups"
    if measure == "raw" and key not in task:  # scores of glotlift 0.1, where `groups` are always of raw accuracy
        key = "groups"
    return task.get(key) or {}


def beside(task: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    """Return the measures that stand beside the accuracy that the file decides: those that any language has."""
    scores = [entry[variant] for entry in task["languages"].values() for variant in variants]
    return [
        measure
        for measure, key in SCORE_KEYS.items()
        if measure != decided(task) and any(score.get(key) is not None for score in scores)
    ]


def rollup_table(
    task: Mapping[str, Any], variants: Sequence[str], names: Mapping[str, str] | None = None
) -> ResultTable | None:
    """Return accuracy by family, script and resource class, a group each; None where no two groups can be compared.

    Args:
        task: the task's entry in the scores.
        variants: `base`, and `tuned` where there is one.
        names: what a variant is called where it is not by its own name.
    """
    groups = {
        title: [_rollup_row(name, entry, variants) for name, entry in rollups.items()]
        for kind, title in _ROLLUPS.items()
        if len(rollups := task.get("rollups", {}).get(kind, {})) > 1
    }
    if not groups:
        return None
    change = [Column("change", "change", _INTERVAL_OF["points"])] if "tuned" in variants else []
    shown = {variant: (names or {}).get(variant, variant) for variant in variants}
    accuracies = [Column(variant, f"{name} accuracy", _INTERVAL_OF["%"]) for variant, name in shown.items()]
    columns = (
        Column("group", "group", "its languages", is_number=False), Column("n", "n", "languages"), *accuracies, *change,
    )  # fmt: skip
    return ResultTable("By family, script and resource class", columns, groups, [])


def _rollup_row(name: str, entry: Mapping[str, Any], variants: Sequence[str]) -> Row:
    names = ", ".join(language(code).name for code in entry["languages"])
    cells = {"group": Cell("not known" if name == "unknown" else name, names), "n": Cell(str(len(entry["languages"])))}
    for variant in variants:
        cells[variant] = _accuracy_cell(entry[variant])
    if change := entry.get("change"):
        cells["change"] = change_cell(change)
    return Row(cells)


def markdown_rows(table: ResultTable) -> list[list[str]]:
    """Return the table as rows of plain text, the titles first; nothing is escaped yet."""
    body = [[_plain(row, column) for column in table.columns] for row in all_rows(table)]
    return [[column.title for column in table.columns], *body]


def _plain(row: Row, column: Column) -> str:
    cell = row.cells.get(column.key, Cell(""))
    if column.key == "language" or not cell.detail or (row.language and column.key in SCORE_KEYS):
        return cell.text
    if column.key == "script":
        return f"{cell.text}, {cell.detail}"
    return f"{cell.text} {'⚠ ' if cell.tone == 'warning' else ''}{cell.detail}"


def all_rows(table: ResultTable) -> list[Row]:
    """Return the rows of all groups and the summary, in order."""
    return [row for group in table.groups.values() for row in group] + table.summary


def _columns(
    variants: Sequence[str], labels: Sequence[str], measures: Sequence[str], names: Mapping[str, str]
) -> tuple[Column, ...]:
    shown = {variant: names.get(variant, variant) for variant in variants}
    accuracy = [Column(variant, f"{name} accuracy", _INTERVAL_OF["%"]) for variant, name in shown.items()]
    both = arrow(*shown.values()) if len(variants) > 1 else ""
    change = [Column("change", "change", _INTERVAL_OF["points"]), Column("p", "Holm p", "exact McNemar")]
    details = {measure: ", ".join(filter(None, ["%" if measure in _ACCURACIES else "", both])) for measure in measures}
    return (
        Column("language", "language", is_number=False),
        Column("script", "script, family", is_number=False),
        Column("n", "n", "items"),
        *accuracy,
        *(change if "tuned" in variants else []),
        *(Column(measure, _TITLES[measure], details[measure]) for measure in measures),
        Column("predicted", "predicted", " / ".join(labels), is_number=False),
    )


def _row(code: str, task: Mapping[str, Any], variants: Sequence[str], measures: Sequence[str]) -> Row:
    about, entry, labels = language(code), task["languages"][code], task["labels"]
    scores = [entry[variant] for variant in variants]
    counts = [[score["predicted"].get(label, 0) for label in labels] for score in scores]
    collapsed = {
        variant: warning
        for variant, score in zip(variants, scores, strict=True)
        if (warning := collapse(score, labels))
    }
    cells = {
        "language": Cell(about.name, about.endonym if about.endonym != about.name else ""),
        "script": Cell(about.script, about.family),
        "n": Cell(str(scores[0]["n"])),
        "predicted": Cell(
            arrow(*("/".join(map(str, count)) for count in counts)),
            f"{'; '.join(f'{variant}: {warning}' for variant, warning in collapsed.items())}" if collapsed else "",
            "warning" if collapsed else "",
        ),
    }
    for variant, score in zip(variants, scores, strict=True):
        cells[variant] = _accuracy_cell(score)
    for measure in measures:
        values = [score.get(SCORE_KEYS[measure]) for score in scores]
        cells[measure] = _measure_cell(measure, values, language_change(entry, measure))
    if change := language_change(entry, decided(task)):
        cells |= {"change": change_cell(change), "p": Cell(p_value(change.get("p_holm")))}
    balance = {
        variant: {label: number / score["n"] for label, number in zip(labels, count, strict=True)}
        for variant, count, score in zip(variants, counts, scores, strict=True)
    }
    return Row(cells, about, balance, collapsed)


def collapse(score: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Return `all positive` or `97.5 % positive` where one label has (nearly) all predictions, else an empty string.

    Args:
        score: of a language and a variant.
        labels: in the task's order.
    """
    label = max(labels, key=lambda each: score["predicted"].get(each, 0))
    most, n = score["predicted"].get(label, 0), score["n"]
    if most == n:
        return f"all {label}"
    return f"{percent(most / n)} % {label}" if most >= NEARLY_ALL * n else ""


def _summary(task: Mapping[str, Any], variants: Sequence[str], measures: Sequence[str], has_seen: bool) -> list[Row]:
    means, groups = task.get("means", {}), group_changes(task, decided(task))
    present = [means[variant] for variant in variants if variant in means]
    over_all = {variant: _accuracy_cell(means[variant]) for variant in variants if variant in means}
    for measure in measures if present else ():
        over_all[measure] = _measure_cell(measure, [mean.get(SCORE_KEYS[measure]) for mean in present], None)
    if not groups:
        return [Row({"language": Cell("Mean over languages"), **over_all})] if over_all else []
    rows = []
    titles = {"all": "All", "seen": SEEN, "unseen": UNSEEN} if has_seen else {"all": "All"}
    for name, title in titles.items():
        if (change := groups.get(name)) is None:
            continue
        cells = {"base": Cell(percent(change["a"])), "tuned": Cell(percent(change["b"]))}
        if name == "all":
            cells |= over_all
        for measure in measures:
            if moved := group_changes(task, measure).get(name):
                cells[measure] = _measure_cell(measure, [moved["a"], moved["b"]], moved)
        cells |= {
            "language": Cell(f"{title} ({change['languages']})"),
            "n": Cell(str(change["n"])),
            "change": change_cell(change),
        }
        rows.append(Row(cells))
    return rows


def _accuracy_cell(score: Mapping[str, Any]) -> Cell:
    has_interval = score.get("low") is not None
    interval = f"[{percent(score['low'])}, {percent(score['high'])}]" if has_interval else ""
    return Cell(percent(score["accuracy"]), interval)


def _measure_cell(measure: str, values: Sequence[float | None], change: Mapping[str, Any] | None) -> Cell:
    """Return the cell of a measure: `before → after`, and the change's interval, with a star where Holm's p is low."""
    shown = percent if measure in _ACCURACIES else area
    text = arrow(*("–" if value is None else shown(value) for value in values))
    if change is None:
        return Cell(text)
    of_change = points if measure in _ACCURACIES else signed
    p = change.get("p_holm")
    star = " *" if p is not None and p < SIGNIFICANT else ""
    return Cell(text, f"{change_interval(change, of_change)}{star}")


def is_clear(change: Mapping[str, Any]) -> bool:
    """Return whether a change may be called one: its interval leaves out zero and stands on `FEWEST_ITEMS` at least."""
    return change["n"] >= FEWEST_ITEMS and (change["low"] > 0 or change["high"] < 0)


def change_cell(change: Mapping[str, Any]) -> Cell:
    """Return the cell of a change: its tone says up or down only where it is clear."""
    tone = ("up" if change["low"] > 0 else "down") if is_clear(change) else ""
    return Cell(points(change["change"]), change_interval(change), tone)


def change_interval(change: Mapping[str, Any], shown: Callable[[float], str] | None = None) -> str:
    """Return `[+1.2, +5.0]`; where no item moved, that is what it says.

    What is known of the items that were not drawn is then an exact bound, which says more of their number than of the
    change, and beside the intervals of others, which stand on items that moved, looks wider than it is.

    Args:
        change: with `low` and `high`, -1 to 1.
        shown: how an end is written; in points by default.
    """
    if not change.get("moved", True):
        return "[no item moved]"
    shown = shown or points
    return f"[{shown(change['low'])}, {shown(change['high'])}]"


def percent(share: float) -> str:
    """Return a share (0 to 1) in percent, without the sign: `61.2`."""
    return f"{share * 100:.1f}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with a true minus sign: `+3.1`, `−0.4`, `0.0`."""
    text = f"{difference * 100:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def signed(difference: float) -> str:
    """Return a difference of measures from 0 to 1, with a true minus sign: `+0.03`, `−0.12`, `0.00`."""
    text = f"{difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


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
