"""The charts of language by language, in Altair: who is right on the same items, and which answer words serve whom.

Enters: scores, or a `Grid`. Leaves: a chart with a panel a variant on one scale; every cell carries its number, so that
nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from glotlift.reporting.across import Grid
from glotlift.reporting.names import grouped, language
from glotlift.reporting.theme import INK, MUTED, SHADE, finished, panel_title

HEAT = ("#eaf1fa", "#9cc0e3", "#3f7fc1", "#0b3c78")
"""From low to high."""

_ON_LIGHT, _ON_DARK = "#1c2127", "#fdfdfd"
"""Text on a cell; not the colours of text elsewhere, which the page exchanges in dark mode."""

_DARK_FROM = 0.66
"""Share of the scale from which light text has more contrast."""

_WIDTH = 400


def consistency_chart(scores: Mapping[str, Any], task_key: str) -> Any:
    """Return, for each pair of languages, items right in both over items right in either, a panel a variant."""
    task = scores["tasks"][task_key]
    codes = [code for members in grouped(scores, task["languages"]).values() for code in members]
    found = {variant: task["consistency"].get(variant) for variant in scores["variants"]}
    rows = [
        {"variant": variant, "row": first, "column": second, "value": value}
        for variant, entry in found.items()
        if entry
        for position, first in enumerate(codes)
        for second in codes[:position]
        if (value := entry["pairs"].get(first, {}).get(second, _LACKING)) is not _LACKING
    ]
    titles = {
        variant: f"mean {entry['mean'] * 100:.1f}, 95 % interval {entry['low'] * 100:.1f} to {entry['high'] * 100:.1f}"
        for variant, entry in found.items()
        if entry
    }
    axes = (codes[1:], codes[:-1])
    return finished(
        _panels(pd.DataFrame(rows), axes, titles),
        f"Cross-language consistency on {task_key}",
        "Items right in both languages, % of the items right in either",
    )


_LACKING = object()


def grid_chart(grid: Grid) -> Any:
    """Return accuracy by language of the prompt (rows) and of the answer words (columns), a panel a variant."""
    rows = [
        {"variant": variant, "row": prompt, "column": answer, "value": cells.get(prompt, {}).get(answer)}
        for variant, cells in grid.cells.items()
        for prompt in grid.prompts
        for answer in grid.answers
    ]
    return finished(
        _panels(pd.DataFrame(rows), (grid.prompts, grid.answers), dict.fromkeys(grid.cells, "")),
        f"Accuracy on {grid.name} by language of prompt and answer words",
        "% of items right; rows: prompts; columns: answer words; framed: the same language",
    )


def _panels(frame: pd.DataFrame, axes: tuple[Sequence[str], Sequence[str]], titles: Mapping[str, str]) -> Any:
    """Return a panel a variant.

    Args:
        frame: `variant`, `row`, `column` (codes) and `value` (0 to 1, None unknown), a row a cell.
        axes: codes of the rows and of the columns.
        titles: variant -> what stands below its name.
    """
    frame = frame.assign(value=frame["value"].astype(float) * 100)
    known = [float(value) for value in frame["value"].dropna()] or [0.0, 100.0]
    low, high = 10 * (min(known) // 10), 10 * -(-max(known) // 10)
    if low == high:  # one value
        low, high = 0.0, 100.0
    frame["text"] = ["–" if pd.isna(value) else f"{value:.0f}" for value in frame["value"]]
    frame["ink"] = [_ON_DARK if value > low + _DARK_FROM * (high - low) else _ON_LIGHT for value in frame["value"]]
    frame["column_name"] = frame["column"]
    frame["row_name"] = [_label(code) for code in frame["row"]]
    panels = [
        _cells(frame.loc[frame["variant"] == variant], axes, (low, high), is_labelled=not position).properties(
            title=panel_title(variant, subtitle)
        )
        for position, (variant, subtitle) in enumerate(titles.items())
    ]
    return alt.hconcat(*panels, spacing=24)


def _label(code: str) -> str:
    """Return name and code: the columns have room for the code only."""
    return f"{language(code).name}  {code}"


def _cells(
    frame: pd.DataFrame, axes: tuple[Sequence[str], Sequence[str]], domain: tuple[float, float], *, is_labelled: bool
) -> Any:
    rows, columns = axes
    width = max(19.0, min(52.0, _WIDTH / len(columns)))
    height = min(28.0, width)
    across = alt.Axis(orient="bottom", labelAngle=0, labelColor=INK, ticks=False, domain=False, grid=False,
                      labelPadding=6, labelOverlap=False)  # fmt: skip
    down = alt.Axis(labels=is_labelled, labelColor=INK, ticks=False, domain=False, grid=False, labelPadding=6,
                    labelLimit=200)  # fmt: skip
    x = alt.X("column_name:N", sort=list(columns), scale=alt.Scale(domain=list(columns)), title=None, axis=across)
    names = [_label(code) for code in rows]
    y = alt.Y("row_name:N", sort=names, scale=alt.Scale(domain=names), title=None, axis=down)
    legend = alt.Legend(title="%", gradientLength=160, gradientThickness=8, labelColor=MUTED, labelFontSize=11,
                        values=[domain[0], sum(domain) / 2, domain[1]])  # fmt: skip
    color = alt.Color("value:Q", scale=alt.Scale(domain=list(domain), range=list(HEAT)), legend=legend)
    chart = alt.Chart(frame)
    known = chart.transform_filter("isValid(datum.value)")
    layers = [
        chart.mark_rect(fill="transparent", stroke=SHADE, strokeWidth=0.5).encode(x=x, y=y),
        known.mark_rect().encode(x=x, y=y, color=color),
    ]
    for ink in (_ON_LIGHT, _ON_DARK):
        text = chart.transform_filter(alt.datum.ink == ink).mark_text(fontSize=8 if width < 24 else 11, color=ink)
        layers.append(text.encode(x=x, y=y, text="text:N"))
    same = frame.loc[frame["row"] == frame["column"]]
    if len(same):
        layers.append(alt.Chart(same).mark_rect(fill="transparent", stroke=_ON_LIGHT, strokeWidth=1.6).encode(x=x, y=y))
    return alt.layer(*layers).properties(width=width * len(columns), height=height * len(rows))
