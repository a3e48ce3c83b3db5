"""How every chart looks, and how a chart becomes SVG, PNG or PDF.

Enters: an Altair chart. Leaves: the chart with fonts and titles set; or one SVG text, from which all files are made, so
that the page, the PNG and the PDF show the same. Nothing is fetched: no chart names an address.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from glotlift.errors import OutputError, one_of
from glotlift.reporting.read_frames import RANDOM
from glotlift.runs import write_atomic

BASE, TUNED = "#d9822b", "#1f5fa8"
"""Orange and blue, told apart by every kind of colour vision and by their lightness."""

VARIANTS = {"base": BASE, "tuned": TUNED}

DRAWN = {**VARIANTS, RANDOM: "#8a8f98"}
"""Everything that may stand beside a base model: the tuned one, and a random adapter as control."""

INK, MUTED, GRID, PAPER, SHADE = "#24292f", "#646c76", "#e4e7eb", "#ffffff", "#c9ced6"
"""Text, lesser text, grid lines, ground, null bands. The page's style sheet maps these in dark mode."""

LABELS = ("#57a699", "#b57fa9", "#d6bf6a", "#8394cf", "#a3795c")
"""Colours of the label ids, in the task's order."""

FAMILIES = {
    "Germanic": ("#08306b", "#2171b5", "#4292c6", "#6baed6", "#2f4b9b", "#9ecae1"),
    "Romance": ("#a63603", "#e6550d", "#fd8d3c"),
    "Slavic": ("#00441b", "#238b45", "#66c2a4", "#99a800"),
    "Indo-Aryan": ("#b8860b", "#e0b000"),
    "Sinitic": ("#54278f",),
    "Japonic": ("#9e6ad6",),
    "Austronesian": ("#17becf",),
    "Kra-Dai": ("#e7298a",),
    "Bantu": ("#525252",),
}
"""Shades of one hue a family, handed out in the order of the languages."""

_FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"
_TAG = re.compile(r"<[^>]+>")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_GRADIENT = re.compile(r"\bgradient_\d+\b")
_PNG_SCALE = 2.0


def finished(chart: Any, title: str, subtitle: str = "") -> Any:
    """Return a chart with its title, fonts and lines set; it must be the outermost one."""
    heading = alt.TitleParams(
        title, subtitle=subtitle or alt.Undefined, anchor="start", fontSize=15, fontWeight=600, color=INK,
        subtitleFontSize=12, subtitleColor=MUTED, subtitlePadding=4, offset=14,
    )  # fmt: skip
    axis = {
        "labelColor": MUTED, "titleColor": INK, "titleFontWeight": "normal", "titlePadding": 6, "titleFontSize": 11,
        "labelFontSize": 11, "gridColor": GRID, "domainColor": SHADE, "tickColor": SHADE,
    }  # fmt: skip
    header = {"labelColor": INK, "labelFontSize": 12, "titleColor": INK, "labelPadding": 4}
    legend = {
        "orient": "top", "direction": "horizontal", "labelColor": INK, "titleColor": MUTED, "titleFontSize": 11,
        "labelFontSize": 12, "titleFontWeight": "normal", "titleOrient": "left", "symbolStrokeWidth": 2, "offset": 8,
    }  # fmt: skip
    return chart.properties(title=heading).configure(
        font=_FONT,
        background=PAPER,
        aria=False,
        padding=8,
        axis=alt.AxisConfig(**axis),
        header=alt.HeaderConfig(**header),
        legend=alt.LegendConfig(**legend),
        view=alt.ViewConfig(stroke=None),
    )


def control_beneath(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with those of the random adapter first: what comes first is drawn beneath."""
    return frame.sort_values("variant", key=lambda names: names != RANDOM, kind="stable")


def panel_title(text: str, subtitle: str = "") -> alt.TitleParams:
    """Return the title of a panel, flush with its frame."""
    return alt.TitleParams(
        text, subtitle=subtitle or alt.Undefined, anchor="start", frame="group", offset=8,
        fontSize=12, fontWeight="bold", color=INK, subtitleFontSize=11, subtitleColor=MUTED,
    )  # fmt: skip


def language_colors(families: dict[str, str]) -> dict[str, str]:
    """Return code -> colour, a hue a family; families that have no hue of their own are grey.

    Args:
        families: code -> family.
    """
    used: dict[str, int] = {}
    colors = {}
    for code, family in families.items():
        shades = FAMILIES.get(family, ("#8c8c8c",))
        colors[code] = shades[used.setdefault(family, 0) % len(shades)]
        used[family] += 1
    return colors


def to_svg(chart: Any, description: str = "") -> str:
    """Return a chart as SVG: the same text for the same chart, numbers rounded to a hundredth of a pixel.

    Args:
        chart: a chart of `glotlift.reporting.charts`.
        description: what the chart shows, for readers who cannot see it.
    """
    stream = io.StringIO()
    with alt.data_transformers.enable("default", max_rows=None):
        chart.save(stream, format="svg")
    svg = _TAG.sub(lambda tag: _LONG_NUMBER.sub(_rounded, tag[0]), stream.getvalue())
    svg = _with_own_ids(svg)
    label = f' role="img" aria-label="{html.escape(description)}"' if description else ' role="img"'
    return svg.replace("<svg ", f"<svg{label} ", 1)


def _with_own_ids(svg: str) -> str:
    """Return a drawing whose gradients are named after its content: Vega counts them from the start of the process."""
    counted = {name: f"gradient-{position}" for position, name in enumerate(dict.fromkeys(_GRADIENT.findall(svg)))}
    plain = _GRADIENT.sub(lambda found: counted[found[0]], svg)
    return _GRADIENT.sub(lambda found: f"{counted[found[0]]}-{zlib.crc32(plain.encode()):08x}", svg)


def _rounded(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def inline(svg: str) -> str:
    """Return an SVG of `to_svg` to stand inside a page: no namespace declarations, and a width that the page sets."""
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    return re.sub(r' width="([\d.]+)" height="[\d.]+"', r' style="--width:\1px"', svg, count=1)


def save(svg: str, path: Path) -> None:
    """Write an SVG as `.svg`, `.png` or `.pdf`, whichever the path's suffix says.

    Args:
        svg: from `to_svg`.
        path: the file.

    Raises:
        OutputError: it has another suffix, or cannot be written.
    """
    import vl_convert

    convert = {
        ".svg": lambda: svg.encode(),
        ".png": lambda: vl_convert.svg_to_png(svg, scale=_PNG_SCALE),
        ".pdf": lambda: vl_convert.svg_to_pdf(svg),
    }
    if path.suffix not in convert:
        raise OutputError(f"{path}: got the suffix {path.suffix!r}, expected {one_of(convert)}")
    content = convert[path.suffix]()

    def fill(file: Path) -> None:
        file.write_bytes(content)

    write_atomic(path, fill)
