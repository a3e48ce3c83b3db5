"""The charts of English as a pivot: does it come first, and do items that near it come right? In Altair.

Enters: summaries of the lens and of the item link, see `glotlift.reporting.read`. Leaves: a chart.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from glotlift.reporting.inside import small_multiples, variant_color
from glotlift.reporting.names import language, ordered
from glotlift.reporting.theme import DRAWN, MUTED, TUNED, finished, panel_title

_MEANS = {
    "towards_pivot_mean": ("Nearer to English, mean over layers", "Cosine, flipped less stayed"),
    "earlier_crossover": ("Earlier crossover", "Layers, flipped less stayed"),
}
"""Quantity without a layer -> title of its panel, and of its axis."""

_LANE = 0.09
"""Height between the crossover layers of two variants, in units of the upright axis, where shares end at 1."""


def pivot_chart(frame: pd.DataFrame, task_key: str, name: str = "Logit lens") -> Any:
    """Return the share of items that a layer answers in English, and above it the crossover layer: a panel a language.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.english_first`.
        task_key: name of the test set.
        name: of the lens.
    """
    shares = frame.loc[frame["measure"] == "english_share"]
    crossed = frame.loc[frame["measure"] == "crossover_layer"]
    variants = [variant for variant in DRAWN if variant in set(shares["variant"])]
    lanes = {variant: 1 + _LANE * (place + 1) for place, variant in enumerate(variants)}
    crossed = crossed.assign(lane=crossed["variant"].map(lanes))
    color = variant_color(shares, alt.Legend(symbolType="square", symbolOpacity=1, symbolStrokeWidth=0, title=None))
    domain = [0, 1 + _LANE * (len(variants) + 1)]

    def panel(here: pd.DataFrame, x: alt.X, axis: alt.Axis) -> Any:
        axis = alt.Axis.from_dict(axis.to_dict() | {"values": [0, 0.5, 1]})

        def y(field: str) -> alt.Y:
            return alt.Y(f"{field}:Q", title="Share of items", axis=axis, scale=alt.Scale(domain=domain, nice=False))

        chart, at = alt.Chart(here), crossed.loc[crossed["language"] == here["language"].iloc[0]]
        ends = alt.Chart(at.assign(layer=at["low"]).dropna(subset=["low", "high"]))
        dots = alt.Chart(at.assign(layer=at["value"]))
        return alt.layer(
            chart.mark_area(opacity=0.16).encode(x=x, y=y("low"), y2="high:Q", color=color),
            chart.mark_line(strokeWidth=1.6).encode(x=x, y=y("value"), color=color),
            ends.mark_rule(strokeWidth=1.6).encode(x=x, x2="high:Q", y=y("lane"), color=color),
            dots.mark_point(filled=True, size=26, opacity=1).encode(x=x, y=y("lane"), color=color),
        )

    return finished(
        small_multiples(shares, panel, 120),
        f"{name} on {task_key}: share of items that a layer answers in English",
        "With a 95 % band; above: crossover layer, from which on own words lead in the mean, with its 95 % interval",
    )


def item_link_chart(frame: pd.DataFrame, task_key: str) -> Any:
    """Return how much nearer to English the items come that tuning puts right, less those that it does not.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.item_link`.
        task_key: name of the test set.
    """
    frame = frame.loc[frame["calibration"] == "batch"]  # a shifted preference flips items as well
    of_layers = frame.loc[(frame["quantity"] == "towards_pivot") & (frame["language"] == "all")]
    panels = [_of_layers(of_layers.dropna(subset=["layer"]), _tested(frame))]
    for quantity, (title, unit) in _MEANS.items():
        part = frame.loc[frame["quantity"] == quantity]
        if len(part):
            panels.append(_of_languages(part, title, unit))
    return finished(
        alt.hconcat(*panels, spacing=24),
        f"Do the items of {task_key} that tuning puts right come nearer to English?",
        "Items that the base has wrong, batch-calibrated: those that flip to right less the others; 95 % intervals",
    )


def _tested(frame: pd.DataFrame) -> str:
    """Return what the mean over layers says of all languages, the one difference that is tested."""
    rows = frame.loc[(frame["quantity"] == "towards_pivot_mean") & (frame["language"] == "all")]
    if rows.empty:
        return ""
    row = rows.iloc[0]
    p = "too few items for a test" if pd.isna(row["p"]) else f"p = {row['p']:.3f}"
    counts = f"{int(row['n_flipped']):,} flipped, {int(row['n_stayed']):,} stayed"
    return f"mean over layers {row['value']:+.4f}, {p}; {counts}".replace("-", "\u2212")


def _of_layers(frame: pd.DataFrame, subtitle: str) -> Any:
    def y(field: str) -> alt.Y:
        axis = alt.Axis(tickCount=5, domain=False)
        return alt.Y(f"{field}:Q", title="Cosine, flipped less stayed", axis=axis, scale=alt.Scale(zero=True))

    x = alt.X("layer:Q", title="Layer", axis=alt.Axis(grid=False, tickMinStep=1, format="d"))
    chart = alt.Chart(frame)
    layers = alt.layer(
        alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(y=y("zero")),
        alt.Chart(frame.dropna(subset=["low", "high"])).mark_area(opacity=0.16, color=TUNED).encode(
            x=x, y=y("low"), y2="high:Q"),
        chart.mark_line(strokeWidth=1.9, color=TUNED).encode(x=x, y=y("value")),
    )  # fmt: skip
    head = panel_title("Nearer to English by layer, all languages", subtitle)
    return layers.properties(title=head, width=380, height=190)


def _of_languages(frame: pd.DataFrame, title: str, unit: str) -> Any:
    codes = ["all", *(code for code in ordered(frame["language"]) if code != "all")]
    rows = frame.assign(
        name=[
            f"{'All' if code == 'all' else language(code).name} ({flipped:.0f}, {stayed:.0f})"
            for code, flipped, stayed in zip(frame["language"], frame["n_flipped"], frame["n_stayed"], strict=True)
        ]
    )
    names = [name for code in codes for name in rows.loc[rows["language"] == code, "name"]]
    y = alt.Y("name:N", title=None, sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(grid=False, domain=False))

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title=unit, axis=alt.Axis(tickCount=4), scale=alt.Scale(zero=True))

    is_all = alt.condition(alt.datum["language"] == "all", alt.value(2.6), alt.value(1.4))
    layers = alt.layer(
        alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x=x("zero")),
        alt.Chart(rows.dropna(subset=["low", "high"])).mark_rule(color=TUNED).encode(
            x=x("low"), x2="high:Q", y=y, strokeWidth=is_all),
        alt.Chart(rows).mark_point(filled=True, size=34, opacity=1, color=TUNED).encode(x=x("value"), y=y),
    )  # fmt: skip
    head = panel_title(title, "language (flipped, stayed)")
    return layers.properties(title=head, width=230, height=max(60, 19 * len(names)))
