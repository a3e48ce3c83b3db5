"""The report of a run: figures, one HTML page that opens offline, and the model card.

Enters: a run folder, only its files. Leaves in it: `figures/` (SVG, PNG, PDF), `tables/`, `report.html`, `README.md`,
and a card of their own in `adapter/` and `merged/`. The page has no scripts and names no address; every text from a
file is escaped. A stage that did not run has no section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from glotlift.reporting.across import grids, members, spreads
from glotlift.reporting.baselines import baseline_table, strength_table
from glotlift.reporting.card import model_card
from glotlift.reporting.charts import second_accuracy
from glotlift.reporting.figures import Figure, figures, slug, write_figures
from glotlift.reporting.names import SEEN, UNSEEN, guarantee, language, listing
from glotlift.reporting.opening import opening
from glotlift.reporting.read import RunFiles, read_run
from glotlift.reporting.table import (
    NEARLY_ALL,
    SIGNIFICANT,
    Row,
    arrow,
    build_table,
    change_cell,
    decided,
    group_changes,
    language_change,
    percent,
    points,
    rollup_table,
)
from glotlift.reporting.tables import write_tables
from glotlift.reporting.theme import LABELS, inline
from glotlift.runs import write_text

TEMPLATES = Path(__file__).parent / "templates"

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
    """Write the figures, the page and the model cards of a run; return the page.

    Args:
        run: the run folder.

    Raises:
        OutputError: there is no such folder, a file in it cannot be read, or it cannot be written.
    """
    files = read_run(run)
    drawn = list(figures(files))
    write_figures(run, drawn)
    page = run / "report.html"
    write_text(page, render_page(files, drawn))
    if files.scores.get("tasks"):
        write_tables(run / "tables", {"glotlift": files.scores})
    write_text(run / "README.md", model_card(files, drawn))
    for folder in ("adapter", "merged"):
        if (run / folder).is_dir() and not (files.is_full and folder == "merged"):  # there it is an earlier run's
            write_text(run / folder / "README.md", model_card(files, (), folder))
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
    tasks = [_entry(run.scores, key, shown) for key in run.scores.get("tasks", {})]
    drawn_across = members(run.scores)
    return environment.get_template("report.html.jinja").render(
        run=run,
        headline=headline(run),
        opening=opening(run),
        tasks=[entry for entry in tasks if entry["key"] not in drawn_across],
        members=[entry for entry in tasks if entry["key"] in drawn_across],
        across=_across(run.scores, shown),
        inside=[e for e in shown if e["figure"].section == "inside"],
        training=[e for e in shown if e["figure"].section == "training"],
        training_facts=training_facts(run),
        audit_facts=facts(run.audit),
        guarantee=guarantee(run.audit),
        stages=stage_rows(run),
    )


def _entry(scores: Mapping[str, Any], key: str, shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the page shows of a test set.

    Args:
        scores: what scores.json holds under `glotlift`.
        key: of the test set.
        shown: all figures, with number and drawing.
    """
    task = scores["tasks"][key]
    table = build_table({"glotlift": scores}, key)

    def drawings(section: str) -> list[Mapping[str, Any]]:
        return [e for e in shown if e["figure"].section == section and e["figure"].task == key]

    return {
        "key": key,
        "task": task,
        "table": table,
        "measures": [column.key for column in table.columns],
        "has_changes": any("changes" in entry for entry in task["languages"].values()),
        "key_numbers": key_numbers(task, table.groups),
        "colors": dict(zip(task["labels"], LABELS * len(task["labels"]), strict=False)),
        "figures": drawings("results"),
        "parts": drawings("parts"),
        "beside": [each for each in (strength_table(task, key), baseline_table(task, key)) if each],
        "rollups": rollup_table(task, scores["variants"]),
        "consistency": consistency_sentence(task),
        "consistency_figures": drawings("consistency"),
    }


def _across(scores: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page shows of each grid and each spread."""

    def drawings(kind: str, name: str) -> list[Mapping[str, Any]]:
        return [e for e in shown if e["figure"].name == f"{kind}-{slug(name)}" and e["figure"].section == "across"]

    of_grids = [
        {"title": f"{grid.name}: languages of prompt and answer", "sentence": grid.sentence,
         "figures": drawings("grid", grid.name)}
        for grid in grids(scores)
    ]  # fmt: skip
    return of_grids + [
        {"title": f"{spread.name}: draws of demonstrations", "sentence": spread.sentence,
         "figures": drawings("spread", spread.name)}
        for spread in spreads(scores)
    ]  # fmt: skip


def consistency_sentence(task: Mapping[str, Any]) -> str:
    """Return how often items are right in two languages at once, and how to read it; empty where it is not known."""
    found = {variant: entry for variant, entry in (task.get("consistency") or {}).items() if entry}
    if not found:
        return ""
    parts = [
        f"{percent(entry['mean'])} % ({variant}, 95 % interval {percent(entry['low'])} to {percent(entry['high'])})"
        for variant, entry in found.items()
    ]
    text = (
        "Of the items that are right in at least one of two languages, the share that is right in both, mean over "
        f"pairs of languages: {', '.join(parts)}. 100 % would be the same items right in every language."
    )
    return text.replace(" %", "\u00a0%")


def headline(run: RunFiles) -> str:
    """Return what the run is, without a claim: `demo, tuned on Chinese and German questions`."""
    model = run.model or run.name
    if not run.is_tuned:
        return f"{model}, not tuned"
    done = "fitted" if run.is_closed_form else "tuned"
    return f"{model}, {done} on {listing(run.seen)} questions" if run.seen else f"{model}, before and after tuning"


def key_numbers(task: Mapping[str, Any], groups: Mapping[str, list[Row]]) -> list[KeyNumber]:
    """Return the numbers of a task to be seen first.

    Args:
        task: the task's entry in the scores.
        groups: the rows of its results table.
    """
    means, measure = task.get("means", {}), decided(task)
    changes = group_changes(task, measure)
    titles = {"all": "All languages", "seen": SEEN, "unseen": UNSEEN}
    if SEEN not in groups:
        titles = {"all": "All languages"}
    numbers = [_change_number(title, changes[name]) for name, title in titles.items() if name in changes]
    other, title = ("raw", "All, raw") if measure == "calibrated" else ("calibrated", "All, calibrated")
    if beside := group_changes(task, other).get("all"):
        numbers.append(_change_number(title, beside))
    if not changes and "base" in means:
        numbers.append(KeyNumber("Accuracy", percent(means["base"]["accuracy"]), "%", "mean over languages"))
        key, title = second_accuracy(task)
        numbers.append(KeyNumber(title, percent(means["base"][key]), "%", "mean over languages"))
    if entries := list(filter(None, (language_change(entry, measure) for entry in task["languages"].values()))):
        clear = [entry for entry in entries if entry["p_holm"] is not None and entry["p_holm"] < SIGNIFICANT]
        up = sum(entry["change"] > 0 for entry in clear)
        detail = f"languages up and down on their own, of {len(entries)}: Holm p < {SIGNIFICANT}"
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
    interval = f"95 % interval {cell.detail}{verdict}" if change.get("moved", True) else "no item moved"
    detail = f"{arrow(percent(change['a']), percent(change['b']))} %, {interval}"
    return KeyNumber(f"{title} ({change['languages']})", points(change["change"]), "points", detail, cell.tone)


def training_facts(run: RunFiles) -> dict[str, str]:
    """Return what is known of training and merging, as text."""
    history, certificate = run.history, run.certificate
    found: dict[str, str] = {}
    for key, title in (("trainable_parameters", "trainable parameters"), ("tokens", "tokens run"),
                       ("target_tokens", "target tokens learned")):  # fmt: skip
        if key in history:
            found[title] = f"{history[key]:,}"
    if held := history.get("validation_loss"):
        found["validation loss, nats a target token"] = ", ".join(
            f"{language(code).name} {nats:.3f}" for code, nats in held.items()
        )
    if certificate:
        found["merging"] = (
            f"largest logit difference to the adapter {certificate['max_logit_difference']:.2g} "
            f"({certificate['dtype']}, tolerance {certificate['tolerance']:g}); same most likely token at "
            f"{percent(certificate['argmax_agreement'])} % of {certificate.get('n_targets', certificate['n_prompts'])} "
            "places"
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
