"""The table of baselines: ways to ask the base model, and the tuned one beside them.

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
    baselines = task.get("baselines")
    if not baselines:
        return None
    group = "unseen" if all("unseen" in each["raw"] for each in baselines.values()) else "all"
    tuned = {measure: group_changes(task, measure).get(group) for measure in _MEASURES}
    rows = {TITLES.get(name, name): {measure: each[measure].get(group) for measure in _MEASURES}
            for name, each in baselines.items()}  # fmt: skip
    if any(tuned.values()):
        rows["tuned"] = tuned
    any_change = next(change for each in rows.values() for change in each.values() if change)
    direct = {measure: next((c for each in rows.values() if (c := each[measure])), None) for measure in _MEASURES}
    cells = {"way": Cell("asked directly")} | {
        measure: Cell(percent(change["a"]) if change else "–") for measure, change in direct.items()
    }
    others = [Row({"way": Cell(name)} | {m: _cell(c) for m, c in row.items()}) for name, row in rows.items()]
    columns = (
        Column("way", "base model", is_number=False),
        *(Column(measure, title, "points, 95\u00a0% interval") for measure, title in _MEASURES.items()),
    )
    which = "never tuned on" if group == "unseen" else "beside English"
    title = f"{key}: baselines, mean over {counted(any_change['languages'], 'language')} {which}"
    return ResultTable(title, columns, {"": [Row(cells), *others]}, [])


def _cell(change: Mapping[str, Any] | None) -> Cell:
    if change is None:
        return Cell("–")
    return Cell(f"{percent(change['b'])} ({points(change['change'])} {change_interval(change)})")
