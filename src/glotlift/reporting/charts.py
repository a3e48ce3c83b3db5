"""The charts of what a model answers and of its training, in Altair.

Enters: scores (what scores.json holds under `glotlift`) or the history of training. Leaves: a chart, which goes
unchanged to the page, to SVG, PNG and PDF (`glotlift.reporting.theme`). Base and tuned have the same two colours
everywhere; languages stand in the order of `glotlift.reporting.names`. See `glotlift.reporting.inside` for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from glotlift.reporting.names import grouped, language
from glotlift.reporting.theme import INK, LABELS, MUTED, PAPER, SHADE, TUNED, VARIANTS, finished, panel_title

ROW = 19
"""Height of a language's row, pixels."""


def accuracy_chart(scores: Mapping[str, Any], task_key: str) -> Any:
    """Return accuracy before and after, a language a row: raw with 95 % intervals, and batch-calibrated beside it."""
    task = scores["tasks"][task_key]
    frame = _per_language(scores, task_key, _accuracies)
    ends = [*frame["low"], *frame["high"], *frame["calibrated"], task["chance"] * 100]
    domain = [max(0, math.floor(min(ends) / 5) * 5), min(100, math.ceil(max(ends) / 5) * 5)]
    frame["chance"] = task["chance"] * 100
    raw = _dumbbells(frame, "accuracy", domain, has_intervals=True)
    calibrated = _dumbbells(frame, "calibrated", domain, has_intervals=False)
    panels = [
        _by_group(raw, frame, width=420).properties(title=panel_title("Accuracy")),
        _by_group(calibrated, frame, width=330).properties(title=panel_title("After batch calibration")),
    ]
    return finished(
        alt.hconcat(*panels, spacing=28),
        f"Accuracy on {task_key} per language, {' and '.join(scores['variants'])}",
        "Points: share of items right; thin lines: 95 % Wilson intervals; dashed: chance",
    )


def _accuracies(score: Mapping[str, Any]) -> Iterable[dict[str, float]]:
    measures = {"accuracy": "accuracy", "low": "low", "high": "high", "calibrated": "accuracy_calibrated"}
    yield {name: score[key] * 100 for name, key in measures.items()}


def _per_language(scores: Mapping[str, Any], task_key: str, measure: Any) -> pd.DataFrame:
    """Return `group`, `language`, `variant` and what `measure` yields of each score, a row each."""
    languages = scores["tasks"][task_key]["languages"]
    rows = [
        {"group": title, "language": language(code).name, "variant": variant, **values}
        for title, codes in grouped(scores, languages).items()
        for code in codes
        for variant in scores["variants"]
        for values in measure(languages[code][variant])
    ]
    return pd.DataFrame(rows)


def _dumbbells(frame: pd.DataFrame, measure: str, domain: Sequence[float], *, has_intervals: bool) -> Any:
    """Return one row a language: base hollow, tuned filled, a line between; the first row names the two."""

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="% of items", scale=alt.Scale(domain=domain, nice=False))

    y = _language_axis(frame, is_labelled=has_intervals)
    frame = frame.assign(side=_sides(frame, measure))
    chart = alt.Chart()
    layers = [
        chart.mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x=x("chance")),
        chart.mark_line(color=SHADE, strokeWidth=2.5).encode(x=x(measure), y=y, detail="language:N"),
    ]
    for variant, color in VARIANTS.items():
        mine = chart.transform_filter(alt.datum.variant == variant)
        if has_intervals:
            offset = -4.5 if variant == "base" else 4.5
            interval = mine.mark_rule(color=color, strokeWidth=1.2, opacity=0.75, yOffset=offset)
            layers.append(interval.encode(x=x("low"), x2="high:Q", y=y))
        fill = PAPER if variant == "base" else color
        dot = mine.mark_point(filled=False, fill=fill, stroke=color, strokeWidth=1.8, size=46, opacity=1)
        layers.append(dot.encode(x=x(measure), y=y))
        for side, dx in ((alt.Align("right"), -1), (alt.Align("left"), 1)):
            named = mine.transform_filter(alt.datum.side == side.to_dict())
            name = named.mark_text(align=side, dx=dx, dy=-13, color=color, fontWeight="bold", fontSize=11)
            layers.append(name.encode(x=x(measure), y=y, text="variant:N"))
    return alt.layer(*layers, data=frame)


def _sides(frame: pd.DataFrame, measure: str) -> list[str]:
    """Return how the names in the first row are aligned: away from each other, so that they never overlap."""
    first = frame.loc[frame["language"] == frame["language"].iloc[0]]
    lowest = first[measure].idxmin()
    return [("right" if index == lowest else "left") if index in first.index else "" for index in frame.index]


def _language_axis(frame: pd.DataFrame, *, is_labelled: bool) -> alt.Y:
    axis = alt.Axis(grid=True, ticks=False, domain=False, labels=is_labelled, labelColor=INK, labelPadding=8)
    return alt.Y("language:N", sort=list(dict.fromkeys(frame["language"])), title=None, axis=axis)


def _by_group(layers: Any, frame: pd.DataFrame, *, width: int) -> Any:
    """Return layers with a language a row as one block a group of languages."""
    groups = list(dict.fromkeys(frame["group"]))
    header = alt.Header(
        labelOrient="top", labelAnchor="start", labelFontSize=11, labelColor=MUTED, labels=len(groups) > 1
    )
    row = alt.Row("group:N", sort=groups, title=None, header=header)
    blocks = layers.properties(width=width, height=alt.Step(ROW)).facet(row=row, spacing=14)
    return blocks.resolve_scale(y="independent")


def balance_chart(scores: Mapping[str, Any], task_key: str) -> Any:
    """Return the share of the predictions that each label gets, a language a row, base beside tuned."""
    labels = scores["tasks"][task_key]["labels"]

    def shares(score: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        for position, label in enumerate(labels):
            count = score["predicted"].get(label, 0)
            yield {"label": label, "order": position, "share": count / score["n"] * 100}

    frame = _per_language(scores, task_key, shares)
    panels = []
    for variant in scores["variants"]:
        here = frame.loc[frame["variant"] == variant]
        bars = _bars(here, labels, is_labelled=not panels)
        panels.append(_by_group(bars, here, width=375).properties(title=panel_title(variant)))
    return finished(
        alt.hconcat(*panels, spacing=28),
        f"Labels predicted on {task_key}, {' and '.join(scores['variants'])}",
        "Share of the predictions; dashed: equal shares",
    )


def _bars(frame: pd.DataFrame, labels: Sequence[str], *, is_labelled: bool) -> Any:
    colors = [LABELS[position % len(LABELS)] for position in range(len(labels))]
    color = alt.Color("label:N", title=None, sort=list(labels), scale=alt.Scale(domain=list(labels), range=colors))
    scale = alt.Scale(domain=[0, 100])
    x = alt.X("share:Q", title="% of predictions", stack="zero", scale=scale)
    y = _language_axis(frame, is_labelled=is_labelled)
    layers = [alt.Chart().mark_bar(height=ROW - 6).encode(x=x, y=y, color=color, order="order:Q")]
    for part in range(1, len(labels)):
        frame = frame.assign(**{f"equal{part}": 100 * part / len(labels)})
        rule = alt.Chart().mark_rule(color=PAPER, strokeDash=[3, 3])
        layers.append(rule.encode(x=alt.X(f"equal{part}:Q", scale=scale)))
    return alt.layer(*layers, data=frame)


def loss_chart(history: Mapping[str, Any]) -> Any:
    """Return the training loss over the optimizer steps, and the validation loss a language at the end."""
    log = pd.DataFrame([entry for entry in history["log"] if "loss" in entry and "step" in entry])
    held = history.get("validation_loss") or {}
    x = alt.X("step:Q", title="Optimizer step", axis=alt.Axis(grid=False, tickMinStep=1, tickCount=10))

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title="Loss (nats per target token)", scale=alt.Scale(zero=False))

    point = alt.OverlayMarkDef(color=TUNED, size=20) if len(log) < 30 else False
    line = alt.Chart(log).mark_line(color=TUNED, strokeWidth=1.6, point=point)
    layers = [line.encode(x=x, y=y("loss"))]
    if held:
        gap = 0.07 * (log["loss"].max() - min(log["loss"].min(), *held.values()))
        ends = pd.DataFrame({"code": held.keys(), "loss": held.values()}).sort_values("loss")
        ends["step"] = log["step"].max()
        ends["name"] = [language(code).name for code in ends["code"]]
        ends["name_at"] = _apart(ends["loss"], gap)
        chart = alt.Chart(ends)
        end = chart.mark_point(filled=True, size=50, color=INK, shape="diamond", opacity=1)
        name = chart.mark_text(align="left", dx=9, color=INK, fontSize=11)
        layers += [end.encode(x=x, y=y("loss")), name.encode(x=x, y=y("name_at"), text="name:N")]
    subtitle = "Line: training, a step each" + ("; diamonds: held-out questions, at the end" if held else "")
    return finished(alt.layer(*layers).properties(width=760, height=230), "Loss while tuning", subtitle)


def _apart(ascending: Iterable[float], gap: float) -> list[float]:
    """Return where labels go, each at least `gap` above the one before."""
    placed: list[float] = []
    for value in ascending:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    return placed
