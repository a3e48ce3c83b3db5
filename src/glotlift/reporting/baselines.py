"""The tables of baselines, and of an adapter at several strengths, the tuned model beside them.

Enters: scores of a test set. Leaves: a table, a row a way to ask, and what each is in a few words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glotlift.reporting.names import counted
from glotlift.reporting.table import Cell, Column, ResultTable, Row, change_interval, group_changes, percent, points

TITLES = {
    "english-demos": "English prompt around the question",
    "translated": "translated into English, then asked",
    "oracle": "its English version asked (oracle)",
    "ensemble": "direct and English answers together",
}
_MEASURES = {"raw": "raw", "calibrated": "calibrated", "auroc": "AUROC"}


def baseline_table(task: Mapping[str, Any], key: str) -> ResultTable | None:
    """Return the table of a test set's baselines; None where it has none.

    Means are over the languages never tuned on, over all where it is not known which these are; changes against asking
    the base model directly, 95 % intervals clustered by source item.
    """
    rows = {TITLES[name]: each for name, each in task.get("baselines", {}).items()}
    return _table(task, rows, f"{key}: baselines") if rows else None


def strength_table(task: Mapping[str, Any], key: str) -> ResultTable | None:
    """Return the table of an adapter at several strengths, as `baseline_table`; None where there is one strength."""
    rows = {f"adapter x {name.removeprefix('tuned-')}": each for name, each in task.get("strengths", {}).items()}
    return _table(task, rows, f"{key}: strengths of the adapter") if rows else None


def _table(task: Mapping[str, Any], others: Mapping[str, Any], title: str) -> ResultTable:
    group = "unseen" if all("unseen" in each["raw"] for each in others.values()) else "all"
    rows = {name: {measure: each[measure].get(group) for measure in _MEASURES} for name, each in others.items()}
    tuned = {measure: group_changes(task, measure).get(group) for measure in _MEASURES}
    if any(tuned.values()):
        rows["tuned"] = tuned
    direct = {measure: next((c for each in rows.values() if (c := each[measure])), None) for measure in _MEASURES}
    first = {"way": Cell("asked directly")} | {
        measure: Cell(percent(change["a"]) if change else "–") for measure, change in direct.items()
    }
    body = [Row({"way": Cell(name)} | {m: _cell(c) for m, c in row.items()}) for name, row in rows.items()]
    columns = (
        Column("way", "model", is_number=False),
        *(Column(measure, name, "points, 95\u00a0% interval") for measure, name in _MEASURES.items()),
    )
    n_languages = max(change["languages"] for change in direct.values() if change)
    which = " never tuned on" if group == "unseen" else ""
    title = f"{title}, mean over {counted(n_languages, 'language')}{which}"
    return ResultTable(title, columns, {"": [Row(first), *body]}, [])


def _cell(change: Mapping[str, Any] | None) -> Cell:
    if change is None:
        return Cell("–")
    return Cell(f"{percent(change['b'])} ({points(change['change'])} {change_interval(change)})")
