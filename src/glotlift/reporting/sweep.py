"""The table of a sweep: a row a baseline and a run, for the terminal, as CSV, Markdown and LaTeX.

Enters: the content of sweep.json. Leaves: tables and files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glotlift.reporting.names import counted
from glotlift.reporting.table import SIGNIFICANT, Cell, Column, ResultTable, Row, change_interval, points
from glotlift.reporting.tables import latex_text, markdown_text
from glotlift.runs import write_json, write_text

TITLES = {"auroc": "AUROC", "calibrated": "calibrated", "raw": "raw"}


def write_sweep(folder: Path, scores: Mapping[str, Any]) -> None:
    """Write `sweep.json`, `sweep.csv`, `sweep.md` and `sweep.tex` into a folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    tables = [sweep_table(scores, key) for key in scores["tasks"]]
    write_text(folder / "sweep.csv", sweep_csv(scores))
    write_text(folder / "sweep.md", "\n".join(map(markdown_text, tables)))
    write_text(folder / "sweep.tex", "\n".join(map(latex_text, tables)))
    write_json(folder / "sweep.json", scores)


def sweep_table(scores: Mapping[str, Any], key: str) -> ResultTable:
    """Return the table of a test set: gains in points over the languages no run was tuned on (over all, where there are
    none), what the pivot language loses, and what a run cost. Baselines, which tune nothing, stand above the runs; what
    runs gain over the run `against` stands below."""
    task, runs = scores["tasks"][key], scores["runs"]
    group = "unseen" if "unseen" in task["groups"] else "all"
    has_pivot = "pivot" in task["groups"]
    columns = (
        Column("run", "run", is_number=False),
        Column("seeds", "seeds"),
        *(Column(measure, title, "points, 95\u00a0% interval") for measure, title in TITLES.items()),
        *([Column("pivot", f"{scores['pivot']}, AUROC")] if has_pivot else []),
        Column("seconds", "seconds"),
        Column("tokens", "tokens"),
    )
    rows = [_row(f"{name} (baseline)", gains, group) for name, gains in task["baselines"].items()]
    told = {
        name: name if run["control"] == "none" else f"{name} (control: {run['control']})" for name, run in runs.items()
    }
    for name, gains in task["gains"].items():
        run = runs[name]
        cost = {each: Cell(_mean(run[each])) for each in ("seconds", "tokens")}
        rows.append(_row(told[name], gains, group, seeds=Cell(str(len(run["seeds"]))), **cost))
    against = [
        _row(f"{told[name]} over {scores['against']}", gains, group) for name, gains in task["gains_against"].items()
    ]
    n_languages = counted(len(task["groups"][group]), "language")
    which = "that no run was tuned on" if group == "unseen" else "in all"
    any_gain = next(iter(task["gains"].values()))[group]
    base = ", ".join(f"{TITLES[measure]} {gain['base'] * 100:.1f}" for measure, gain in any_gain.items())
    over = f"the base ({base})" + (f", and beneath over {scores['against']}" if against else "")
    title = f"{key}: gain over {over}, mean over {n_languages} {which}; * Holm's p over the runs below 0.05"
    return ResultTable(title, columns, {"": rows}, against)


def _row(name: str, gains: Mapping[str, Any], group: str, **further: Cell) -> Row:
    none = {each: Cell("–") for each in ("seeds", "seconds", "tokens")}
    measured = {measure: _gain_cell(gains.get(group, {}).get(measure)) for measure in TITLES}
    pivot = _gain_cell(gains.get("pivot", {}).get("auroc"))
    return Row({"run": Cell(name)} | none | measured | {"pivot": pivot} | further)


def _gain_cell(gain: Mapping[str, Any] | None) -> Cell:
    if gain is None:
        return Cell("–")
    star = " *" if gain.get("p_holm", 1.0) < SIGNIFICANT else ""
    return Cell(f"{points(gain['change'])} {change_interval(gain)}{star}")


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):,.0f}" if known else "–"


def sweep_csv(scores: Mapping[str, Any]) -> str:
    """Return all numbers of a sweep as CSV, a row a test set, baseline or run (`kind`), group of languages and measure.

    Rows of the kind `against` hold what a run gains over another one, named in the column `over`, whose measure stands
    as `base`; in those of other kinds `over` is the base.
    Shares and their differences are 0 to 1; `seconds` and `tokens` are means over seeds, empty where not counted.
    """
    out = io.StringIO(newline="")
    rows = list(_numbers(scores))
    of_a_run = max(rows, key=len)  # a baseline has no control, cost or p over runs
    writer = csv.DictWriter(out, list(of_a_run), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, task in scores["tasks"].items():
        kinds = {"baseline": task["baselines"], "run": task["gains"], "against": task["gains_against"]}
        for kind, found in kinds.items():
            for name, groups in found.items():
                about = {"test_set": key, "kind": kind, "run": name}
                if kind != "baseline":
                    about["control"] = scores["runs"][name]["control"]
                about["over"] = scores["against"] if kind == "against" else "base"
                for group, measures in groups.items():
                    for gain in measures.values():
                        yield about | {"group": group} | gain | (_cost(scores["runs"][name]) if kind == "run" else {})


def _cost(run: Mapping[str, Any]) -> dict[str, str]:
    return {each: _mean(run[each]).replace(",", "").replace("–", "") for each in ("seconds", "tokens")}
