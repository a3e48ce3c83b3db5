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

from glotlift.reporting.across import Spread
from glotlift.reporting.names import grouped, language
from glotlift.reporting.table import change_interval, decided, is_clear, percent, points
from glotlift.reporting.theme import INK, LABELS, MUTED, PAPER, SHADE, TUNED, VARIANTS, finished, panel_title

ROW = 19
"""Height of a language's row, pixels."""


def accuracy_chart(scores: Mapping[str, Any], task_key: str) -> Any:
    """Return accuracy before and after, a language a row: raw with 95 % intervals, and batch-calibrated beside it."""
    task = scores["tasks"][task_key]
    other, title = second_accuracy(task)

    def accuracies(score: Mapping[str, Any]) -> Iterable[dict[str, float]]:
        measures = {"accuracy": "accuracy", "low": "low", "high": "high", "beside": other}
        yield {name: score[key] * 100 for name, key in measures.items()}

    frame = _per_language(scores, task_key, accuracies)
    ends = [*frame["low"], *frame["high"], *frame["beside"], task["chance"] * 100]
    domain = [max(0, math.floor(min(ends) / 5) * 5), min(100, math.ceil(max(ends) / 5) * 5)]
    frame["chance"] = task["chance"] * 100
    raw = _dumbbells(frame, "accuracy", domain, has_intervals=True)
    beside = _dumbbells(frame, "beside", domain, has_intervals=False)
    panels = [
        _by_group(raw, frame, width=420).properties(title=panel_title(_ACCURACY_TITLES[decided(task)])),
        _by_group(beside, frame, width=330).properties(title=panel_title(title)),
    ]
    return finished(
        alt.hconcat(*panels, spacing=28),
        f"Accuracy on {task_key} per language, {' and '.join(scores['variants'])}",
        "Points: share of items right; thin lines: 95 % Wilson intervals; dashed: chance",
    )


_ACCURACY_TITLES = {
    "raw": "Accuracy",
    "calibrated": "Accuracy, batch calibration",
    "contextual": "Accuracy, contextual calibration",
}


def second_accuracy(task: Mapping[str, Any]) -> tuple[str, str]:
    """Return key and title of the accuracy that stands beside the one that the file decides."""
    if decided(task) == "calibrated":
        return "accuracy_raw", "Without calibration"
    return "accuracy_calibrated", "After batch calibration"


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


def _by_group(layers: Any, frame: pd.DataFrame, *, width: int, step: int = ROW) -> Any:
    """Return layers with a language a row as one block a group of languages."""
    groups = list(dict.fromkeys(frame["group"]))
    header = alt.Header(
        labelOrient="top", labelAnchor="start", labelFontSize=11, labelColor=MUTED, labels=len(groups) > 1
    )
    row = alt.Row("group:N", sort=groups, title=None, header=header)
    blocks = layers.properties(width=width, height=alt.Step(step)).facet(row=row, spacing=14)
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


_PARTS = {
    "gain": "Change in raw accuracy",
    "bias": "= bias (which label it prefers)",
    "format": "+ format (also with arbitrary words)",
    "understanding": "+ understanding (the rest)",
}


def parts_chart(parts: Mapping[str, Mapping[str, Any]], task_key: str) -> Any:
    """Return the parts of a gain with their intervals: filled where clear of zero, else hollow.

    Args:
        parts: `gain` and its parts, each the content of a `Change`.
        task_key: name of the test set.
    """
    rows = [
        {
            "part": title,
            "change": parts[name]["change"] * 100,
            "low": parts[name]["low"] * 100,
            "high": parts[name]["high"] * 100,
            "is_clear": is_clear(parts[name]),
            "text": points(parts[name]["change"]),
            "interval": change_interval(parts[name]),
            "color": INK if name == "gain" else TUNED,
        }
        for name, title in _PARTS.items()
        if name in parts
    ]
    frame = pd.DataFrame(rows).assign(zero=0.0)
    low, high = min(0.0, *frame["low"]), max(0.0, *frame["high"])
    margin = 0.04 * (high - low) or 1.0
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    color = alt.Color("color:N", scale=None)
    weight = alt.condition("datum.index == 0", alt.value(600), alt.value(400))
    axis = alt.Axis(
        grid=False, ticks=False, domain=False, labelColor=INK, labelPadding=12, labelFontSize=12, labelLimit=300,
        labelFontWeight=weight,
    )  # fmt: skip
    y = alt.Y("part:N", sort=list(frame["part"]), title=None, axis=axis)

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="Points of accuracy, tuned less base", scale=scale)

    chart = alt.Chart(frame)
    layers = [
        chart.mark_bar(height=12, opacity=0.22).encode(x=x("zero"), x2="change:Q", y=y, color=color),
        chart.mark_rule(color=MUTED).encode(x=x("zero")),
        chart.mark_rule(strokeWidth=1.8).encode(x=x("low"), x2="high:Q", y=y, color=color),
    ]
    for clear in (True, False):
        mine = chart.transform_filter(alt.datum.is_clear == clear)
        dot = mine.mark_point(size=70, strokeWidth=1.8, opacity=1, fill=alt.Undefined if clear else PAPER,
                              filled=clear)  # fmt: skip
        layers.append(dot.encode(x=x("change"), y=y, color=color))
    value = chart.mark_text(align=alt.Align("right"), fontSize=12, fontWeight="bold", color=INK)
    interval = chart.mark_text(align=alt.Align("left"), fontSize=12, color=MUTED)
    layers.append(value.encode(x=alt.value(_PARTS_WIDTH + 52), y=y, text="text:N"))
    layers.append(interval.encode(x=alt.value(_PARTS_WIDTH + 62), y=y, text="interval:N"))
    return finished(
        alt.layer(*layers).properties(width=_PARTS_WIDTH, height=alt.Step(30)),
        f"What the change on {task_key} is made of",
        "Mean over languages, with 95 % intervals; hollow: not clear of zero",
    )


_PARTS_WIDTH = 430


def spread_chart(scores: Mapping[str, Any], spread: Spread) -> Any:
    """Return accuracy over draws of demonstrations, a language a row: each draw, mean, and standard deviation.

    Args:
        scores: what scores.json holds under `glotlift`.
        spread: see `glotlift.reporting.across.Spread`.
    """
    order = {"Mean over languages": [""], **grouped(scores, spread.languages)}
    rows = []
    for group, codes in order.items():
        for code in codes:
            for variant in spread.summaries:
                name = language(code).name if code else "All"
                row = {"group": group or "Languages", "language": name, "variant": variant}
                rows += [row | entry for entry in _draw_rows(spread, variant, code)]
    frame = pd.DataFrame(rows)
    ends = [value for name in ("low", "high", "accuracy") for value in frame[name].dropna()]
    domain = [max(0, math.ceil(min(ends) / 5) * 5 - 5), min(100, math.floor(max(ends) / 5) * 5 + 5)]
    strips = _strips(frame, domain, list(spread.summaries))
    step = ROW if len(spread.summaries) == 1 else 28
    hollow = " (base hollow, tuned filled)" if len(spread.summaries) > 1 else ""
    return finished(
        _by_group(strips, frame, width=_SPREAD_WIDTH, step=step),
        f"Accuracy on {spread.name} over {len(spread.test_sets)} draws of demonstrations",
        f"Points: a draw each{hollow}; upright line: mean; bar: mean ± standard deviation",
    )


def _draw_rows(spread: Spread, variant: str, code: str) -> Iterable[dict[str, Any]]:
    """Yield a row for the summary of a language or of their mean (`""`), and one for each draw."""
    summary = spread.summaries[variant][code]
    name = f"{variant}  " if not code and len(spread.summaries) > 1 else ""
    yield {
        "kind": "summary",
        "mean": summary["mean"] * 100,
        "low": max(0, summary["mean"] - summary["sd"]) * 100,
        "high": min(1, summary["mean"] + summary["sd"]) * 100,
        "text": f"{name}{percent(summary['mean'])} ± {percent(summary['sd'])}",
    }
    for accuracy in spread.draws.get(variant, {}).get(code) or (summary["min"], summary["max"]):
        yield {"kind": "draw", "accuracy": accuracy * 100}


_SPREAD_WIDTH = 560


def _strips(frame: pd.DataFrame, domain: Sequence[float], variants: Sequence[str]) -> Any:
    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="% of items right", scale=alt.Scale(domain=domain, nice=False))

    y = _language_axis(frame, is_labelled=True)
    chart, layers = alt.Chart(), []
    for position, variant in enumerate(variants):
        color = VARIANTS[variant]
        offset = 0 if len(variants) == 1 else (-6, 6)[position]
        mine = chart.transform_filter((alt.datum.variant == variant) & (alt.datum.kind == "summary"))
        draws = chart.transform_filter((alt.datum.variant == variant) & (alt.datum.kind == "draw"))
        bar = mine.mark_bar(color=color, opacity=0.25, height=7, yOffset=offset)
        layers.append(bar.encode(x=x("low"), x2="high:Q", y=y))
        fill = PAPER if variant == "base" else color
        dot = draws.mark_point(filled=False, fill=fill, stroke=color, size=26, strokeWidth=1.4, opacity=0.9,
                               yOffset=offset)  # fmt: skip
        layers.append(dot.encode(x=x("accuracy"), y=y))
        tick = mine.mark_tick(color=color, thickness=2.4, height=10, yOffset=offset)
        layers.append(tick.encode(x=x("mean"), y=y))
        text = mine.mark_text(align=alt.Align("right"), color=INK, fontSize=10, yOffset=offset)
        layers.append(text.encode(x=alt.value(_SPREAD_WIDTH + 100), y=y, text="text:N"))
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
