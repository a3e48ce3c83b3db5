"""The charts of what happens inside the model, layer by layer, in Altair.

Enters: tidy frames of `glotlift.reporting.read`. Leaves: a chart, in the colours and order of languages of
`glotlift.reporting.charts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from glotlift.reporting.names import language, ordered
from glotlift.reporting.theme import (
    DRAWN,
    GRID,
    MUTED,
    PAPER,
    SHADE,
    VARIANTS,
    control_beneath,
    finished,
    language_colors,
    panel_title,
)

MAX_POINTS = 4_000
"""So many points a scatter chart draws at most; beyond it, the same evenly spaced items are kept in every panel."""

N_LAYERS = 5
"""Layers that the scatter chart shows, first and last among them."""

_MASSES = {"english_mass": "English words", "own_mass": "the language's own words", "shared_mass": "in both"}
_PAPER_MASSES = {"latent": "in English", "out": "in the prompt's language"}
_DASHES = [[1, 0], [5, 3], [2, 2]]

Panel = Callable[[pd.DataFrame, alt.X, alt.Axis], Any]
"""Makes the panel of a language from its rows, the axis of layers and the upright axis."""


def lens_chart(frame: pd.DataFrame, task_key: str, name: str = "Logit lens") -> Any:
    """Return the probability mass of English and of own label words over the layers, a panel a language.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.lens`.
        task_key: name of the test set.
        name: of the lens.
    """
    most = np.asarray(frame.groupby(["language", "measure"])["mean"].transform("max"))
    masses = frame.loc[(most > 1e-4) | (frame["measure"] == "english_mass")]
    return finished(
        _masses_over_layers(masses, _MASSES, "Label words:"),
        f"{name} on {task_key}: mass of label words over the layers",
        "At the last position of the prompt; mean over items, with a 95 % band",
    )


def paper_lens_chart(frame: pd.DataFrame, task_key: str) -> Any:
    """Return the original's probabilities of the right label over the layers, a panel a language.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.paper_lens`.
        task_key: name of the test set.
    """
    return finished(
        _masses_over_layers(frame, _PAPER_MASSES, "Word of the right label:"),
        f"Logit lens on {task_key} as in arXiv 2405.13816",
        "Mean over the items that the original keeps, with its band of 1.96 standard errors",
    )


def _masses_over_layers(frame: pd.DataFrame, masses: Mapping[str, str], title: str) -> Any:
    """Return small multiples in which masses, by their names, are told apart by dashes."""
    names = {measure: name for measure, name in masses.items() if measure in set(frame["measure"])}
    shown = frame.loc[frame["measure"].isin(list(names))].replace({"measure": names})
    scale = alt.Scale(domain=list(names.values()), range=_DASHES[: len(names)])
    return _over_layers(shown, "Probability mass", alt.StrokeDash("measure:N", title=title, scale=scale))


def entropy_chart(frame: pd.DataFrame, task_key: str, name: str = "Logit lens") -> Any:
    """Return the entropy of the lens's next-token distribution over the layers, a panel a language."""
    return finished(
        _over_layers(frame.loc[frame["measure"] == "entropy_bits"], "Entropy (bits)"),
        f"{name} on {task_key}: entropy over the layers",
        "Of the next-token distribution read off each layer; mean over items, with a 95 % band",
    )


def _over_layers(frame: pd.DataFrame, title: str, dash: alt.StrokeDash | None = None) -> Any:
    """Return small multiples of line and band, coloured by variant."""
    color = variant_color(frame, alt.Legend(symbolType="square", symbolOpacity=1, symbolStrokeWidth=0, title=None))
    top = 1.1 * frame[["mean", "high"]].max(axis=None) or 1.0  # so that no tick stands at the top, beside the title

    def panel(here: pd.DataFrame, x: alt.X, axis: alt.Axis) -> Any:
        def y(field: str) -> alt.Y:
            return alt.Y(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(domain=[0, top], nice=False))

        chart = alt.Chart(here)
        band = chart.mark_area(opacity=0.16).encode(x=x, y=y("low"), y2="high:Q", color=color, detail="measure:N")
        line = chart.mark_line(strokeWidth=1.6).encode(x=x, y=y("mean"), color=color)
        return alt.layer(band, line if dash is None else line.encode(strokeDash=dash))

    return small_multiples(frame, panel)


def variant_color(frame: pd.DataFrame, legend: alt.Legend) -> alt.Color:
    """Return the colours of the variants that a frame has."""
    colors = {variant: color for variant, color in DRAWN.items() if variant in set(frame["variant"])}
    return alt.Color("variant:N", scale=alt.Scale(domain=list(colors), range=list(colors.values())), legend=legend)


def small_multiples(frame: pd.DataFrame, panel: Panel, height: int = 96) -> Any:
    """Return one panel a language over the layers, `all` first; only the outer panels carry axis labels.

    Args:
        frame: with `language` and `layer`.
        panel: makes a panel.
        height: of a panel, pixels.
    """
    frame = control_beneath(frame)
    codes = ordered(frame["language"])
    codes.sort(key=lambda code: code != "all")
    n_columns = min(5, len(codes))
    last_row = (len(codes) - 1) // n_columns
    layers = np.asarray(frame["layer"])
    scale = alt.Scale(domain=[int(layers.min()), int(layers.max())], nice=False)
    width = max(150, min(400, 830 // n_columns - 12))
    panels = []
    for position, code in enumerate(codes):
        is_left, is_bottom = position % n_columns == 0, position // n_columns == last_row
        across = alt.Axis(grid=False, tickMinStep=1, tickCount=5, labels=is_bottom, ticks=is_bottom)
        x = alt.X("layer:Q", title="Layer" if is_bottom else None, axis=across, scale=scale)
        up = {"tickCount": 4, "labels": is_left, "ticks": is_left, "domain": False}
        axis = alt.Axis(**up) if is_left else alt.Axis(**up, title=None)
        chart = panel(frame.loc[frame["language"] == code], x, axis)
        title = "All languages" if code == "all" else language(code).name
        panels.append(chart.properties(title=panel_title(title), width=width, height=height))
    return alt.concat(*panels, columns=n_columns, spacing=14)


def pca_chart(frame: pd.DataFrame, task_key: str, explained: pd.DataFrame | None = None) -> Any:
    """Return the items on two principal components, a column a layer, a row a variant, coloured by language.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.pca`.
        task_key: name of the test set.
        explained: shares of the variance, for the titles of the panels.
    """
    layers = sorted(set(frame["layer"]))
    chosen = [layers[i] for i in sorted({round(i) for i in np.linspace(0, len(layers) - 1, N_LAYERS)})]
    variants = [variant for variant in VARIANTS if variant in set(frame["variant"])]
    codes = ordered(frame["language"])
    n_items = MAX_POINTS // (len(chosen) * len(variants) * len(codes))
    frame = frame.loc[frame["layer"].isin(chosen)].assign(name=frame["language"].map(lambda code: language(code).name))
    color = _color_by_language(codes)
    columns = []
    for layer in chosen:
        here = frame.loc[frame["layer"] == layer]
        x, y = _bare_axis(alt.X, "pc1", here), _bare_axis(alt.Y, "pc2", here)
        panels = [
            _scatter(here.loc[here["variant"] == variant], x, y, color, max(1, n_items)).properties(
                title=panel_title(f"Layer {layer}, {variant}", _share(explained, variant, layer)), width=158, height=158
            )
            for variant in variants
        ]
        columns.append(alt.vconcat(*panels, spacing=14))
    return finished(
        alt.hconcat(*columns, spacing=14),
        f"Items of {task_key} on two principal components, by layer",
        "Fitted on the base model, a layer at a time; letters stand at the mean of a language",
    )


def _share(explained: pd.DataFrame | None, variant: str, layer: int) -> str:
    """Return `41 % of the variance`, an empty string where it is not known."""
    if explained is None:
        return ""
    here = explained.loc[(explained["variant"] == variant) & (explained["layer"] == layer)]
    return f"{100 * sum(here['pc1'] + here['pc2']):.0f} % of the variance" if len(here) else ""


def _color_by_language(codes: list[str]) -> alt.Color:
    colors = language_colors({code: language(code).family for code in codes})
    scale = alt.Scale(domain=[language(code).name for code in codes], range=list(colors.values()))
    legend = alt.Legend(title=None, columns=10, symbolSize=70, symbolOpacity=1, orient="bottom", offset=12)
    return alt.Color("name:N", scale=scale, legend=legend)


def _bare_axis(channel: Any, field: str, frame: pd.DataFrame) -> Any:
    """Return an axis without numbers, whose unit would say nothing, over the extent of both variants."""
    low, high = min(frame[field]), max(frame[field])
    margin = 0.05 * (high - low) or 1.0
    axis = alt.Axis(labels=False, ticks=False, grid=False, domain=False, titlePadding=2, titleColor=MUTED)
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    return channel(f"{field}:Q", title=field.upper(), scale=scale, axis=axis)


def _scatter(frame: pd.DataFrame, x: alt.X, y: alt.Y, color: alt.Color, n_items: int) -> Any:
    means = frame.groupby(["language", "name"], as_index=False)[["pc1", "pc2"]].mean()
    items = sorted(set(frame["id"]))
    kept = [items[round(i)] for i in np.linspace(0, len(items) - 1, min(n_items, len(items)))]
    dots = alt.Chart(frame.loc[frame["id"].isin(kept)])
    size = 9 if len(kept) * len(set(frame["language"])) > 200 else 20
    dots = dots.mark_point(filled=True, size=size, opacity=0.55, strokeWidth=0, shape="square")
    letters = alt.Chart(means).encode(x=x, y=y, text="language:N")
    halo = letters.mark_text(fontSize=10, fontWeight="bold", stroke=PAPER, strokeWidth=3, color=PAPER)
    names = letters.mark_text(fontSize=10, fontWeight="bold").encode(color=color)
    return alt.layer(dots.encode(x=x, y=y, color=color), halo, names, view=alt.ViewBackground(stroke=GRID))


def correlation_chart(frame: pd.DataFrame, task_key: str) -> Any:
    """Return the correlation of PC1 with the pivot's over the layers: raw, length-partialled, and the null band."""
    pivot = language(frame["pivot"].iloc[0]).name
    frame = frame.loc[frame["language"] != frame["pivot"]]
    color = variant_color(frame, alt.Legend(symbolType="stroke", symbolStrokeWidth=3, title=None))

    def panel(here: pd.DataFrame, x: alt.X, axis: alt.Axis) -> Any:
        def y(field: str) -> alt.Y:
            return alt.Y(f"{field}:Q", title="Pearson r", axis=axis, scale=alt.Scale(domain=[-1.15, 1.15], nice=False))

        chart = alt.Chart(here)
        null = chart.mark_area(color=SHADE, opacity=0.45)
        raw = chart.mark_line(strokeWidth=1, strokeDash=[4, 3], opacity=0.8)
        partial = chart.mark_line(strokeWidth=1.9)
        return alt.layer(
            null.encode(x=x, y=y("null_low"), y2="null_high:Q", detail="variant:N"),
            raw.encode(x=x, y=y("r"), color=color),
            partial.encode(x=x, y=y("r_partial"), color=color),
        )

    return finished(
        small_multiples(frame, panel),
        f"First principal component on {task_key}: correlation with {pivot} over parallel items",
        "Solid: length taken out; dashed: raw; grey: 95 % of the values when items are paired at random",
    )
