"""The report of a run: figures, one HTML page that opens offline, and the model card.

Enters: a run folder, only its files. Leaves in it: `figures/*.svg`, `figures/*.png`, `report.html`, `README.md`. The
page has no scripts and names no address; every text from a file is escaped. A stage that did not run has no section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from glotlift.reporting.card import model_card
from glotlift.reporting.figures import Figure, figures
from glotlift.reporting.names import SEEN, UNSEEN, language, listing
from glotlift.reporting.read import RunFiles, read_run
from glotlift.reporting.table import NEARLY_ALL, Row, arrow, build_table, change_cell, percent, points
from glotlift.reporting.theme import LABELS, inline, save
from glotlift.runs import write_text

TEMPLATES = Path(__file__).parent / "templates"

_SIGNIFICANT = 0.05
_MANY = 12
"""So many entries of a list or mapping are shown in full."""


@dataclass(frozen=True)
class KeyNumber:
    """A number to be seen first: what it is, value and unit, what stands behind it, tone (`up`, `down` or none)."""

    title: str
    value: str
    unit: str = ""
    detail: str = ""
    tone: str = ""


def write_report(run: Path) -> Path:
    """Write the figures, the page and the model card of a run; return the page.

    Args:
        run: the run folder.

    Raises:
        OutputError: there is no such folder, a file in it cannot be read, or it cannot be written.
    """
    files = read_run(run)
    drawn = list(figures(files))
    for figure in drawn:
        for suffix in (".svg", ".png"):
            save(figure.svg, run / "figures" / f"{figure.name}{suffix}")
    page = run / "report.html"
    write_text(page, render_page(files, drawn))
    write_text(run / "README.md", model_card(files, drawn))
    return page


def render_page(run: RunFiles, drawn: Sequence[Figure]) -> str:
    """Return the HTML page.

    Args:
        run: the files of a run.
        drawn: its figures, in reading order.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [
        {"number": number, "figure": figure, "svg": Markup(inline(figure.svg))}
        for number, figure in enumerate(drawn, 1)
    ]
    tasks = []
    for key, task in run.scores.get("tasks", {}).items():
        table = build_table({"glotlift": run.scores}, key)
        tasks.append(
            {
                "key": key,
                "task": task,
                "table": table,
                "key_numbers": key_numbers(task, table.groups),
                "colors": dict(zip(task["labels"], LABELS * len(task["labels"]), strict=False)),
                "figures": [e for e in shown if e["figure"].section == "results" and e["figure"].task == key],
            }
        )
    return environment.get_template("report.html.jinja").render(
        run=run,
        headline=headline(run),
        tasks=tasks,
        inside=[e for e in shown if e["figure"].section == "inside"],
        training=[e for e in shown if e["figure"].section == "training"],
        training_facts=training_facts(run),
        audit_facts=facts(run.audit),
        stages=stage_rows(run),
    )


def headline(run: RunFiles) -> str:
    """Return what the run is, without a claim: `demo, tuned on Chinese and German questions`."""
    model = run.model or run.name
    if not run.is_tuned:
        return f"{model}, not tuned"
    seen = run.scores.get("seen") or run.history.get("seen") or []
    return f"{model}, tuned on {listing(seen)} questions" if seen else f"{model}, before and after tuning"


def key_numbers(task: Mapping[str, Any], groups: Mapping[str, list[Row]]) -> list[KeyNumber]:
    """Return the numbers of a task to be seen first.

    Args:
        task: the task's entry in the scores.
        groups: the rows of its results table.
    """
    means, changes = task.get("means", {}), task.get("groups", {})
    titles = {"all": "All languages", "seen": SEEN, "unseen": UNSEEN}
    if SEEN not in groups:
        titles = {"all": "All languages"}
    numbers = [_change_number(title, changes[name]) for name, title in titles.items() if name in changes]
    if fair := task.get("calibrated_groups", {}).get("all"):
        numbers.append(_change_number("All, calibrated", fair))
    if not changes and "base" in means:
        numbers.append(KeyNumber("Accuracy", percent(means["base"]["accuracy"]), "%", "mean over languages"))
        calibrated = percent(means["base"]["accuracy_calibrated"])
        numbers.append(KeyNumber("Calibrated", calibrated, "%", "after batch calibration, mean over languages"))
    if entries := [entry["change"] for entry in task["languages"].values() if "change" in entry]:
        clear = [entry for entry in entries if entry["p_holm"] is not None and entry["p_holm"] < _SIGNIFICANT]
        up = sum(entry["change"] > 0 for entry in clear)
        detail = f"languages up and down on their own, of {len(entries)}: Holm p < {_SIGNIFICANT}"
        numbers.append(KeyNumber("One by one", f"{up} ↑ {len(clear) - up} ↓", "", detail))
    rows = [row for group in groups.values() for row in group]
    collapsed = [sum(variant in row.collapsed for row in rows) for variant in rows[0].balance] if rows else []
    if any(collapsed):
        detail = f"languages in which one label has {NEARLY_ALL * 100:.0f} % or more of the predictions"
        numbers.append(KeyNumber("Collapse", arrow(*map(str, collapsed)), "", detail))
    return numbers


def _change_number(title: str, change: Mapping[str, Any]) -> KeyNumber:
    cell = change_cell(change)
    verdict = "" if cell.tone else ": no clear change"
    before_after = arrow(percent(change["a"]), percent(change["b"]))
    detail = f"{before_after} %, 95 % interval {cell.detail}{verdict}"
    return KeyNumber(f"{title} ({change['languages']})", points(change["change"]), "points", detail, cell.tone)


def training_facts(run: RunFiles) -> dict[str, str]:
    """Return what is known of training and merging, as text."""
    history, certificate = run.history, run.certificate
    found: dict[str, str] = {}
    for key, title in (("trainable_parameters", "trainable parameters"), ("tokens", "tokens an epoch"),
                       ("target_tokens", "target tokens an epoch")):  # fmt: skip
        if key in history:
            found[title] = f"{history[key]:,}"
    if held := history.get("validation_loss"):
        found["validation loss, nats a target token"] = ", ".join(
            f"{language(code).name} {nats:.3f}" for code, nats in held.items()
        )
    if certificate:
        found["merging"] = (
            f"largest logit difference to the adapter {certificate['max_logit_difference']:.2g} "
            f"({certificate['dtype']}, tolerance {certificate['tolerance']:g}); same next token on "
            f"{percent(certificate['argmax_agreement'])} % of {certificate['n_prompts']} prompts"
        )
    return found


def facts(content: Mapping[str, Any]) -> dict[str, str]:
    """Return any mapping as text to show: nested ones on a line, long ones cut off with their length."""
    return {str(key).replace("_", " "): _fact(value) for key, value in content.items()}


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{key}: {_fact(inner)}" for key, inner in value.items()]
    elif isinstance(value, list):
        parts = [_fact(inner) for inner in value]
    else:
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    more = f" … ({len(parts)} in all)" if len(parts) > _MANY else ""
    return ", ".join(parts[:_MANY]) + more or "none"


def stage_rows(run: RunFiles) -> list[tuple[str, str, str, str]]:
    """Return name, status, duration and end of every stage, in the order they ended."""
    rows = []
    for name, entry in sorted(run.stages.items(), key=lambda item: item[1].get("finished", "~")):
        seconds = entry.get("seconds")
        took = "–" if seconds is None else duration(seconds)
        rows.append((name, str(entry.get("status", "–")), took, str(entry.get("finished", "–"))))
    return rows


def duration(seconds: float) -> str:
    """Return `4.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
