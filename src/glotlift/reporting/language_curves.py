"""The charts in which every language is a thin line over the layers and a group's mean a thick one, in Altair.

Enters: tidy frames of `glotlift.reporting.read`, and the languages in groups. Leaves: a chart: how near languages are
to the pivot, whether a language can be read off a state, and what attention and MLP of every block would answer.

The band around a mean is the mean of its languages' 95 % intervals: the files hold no interval of the mean itself,
which is as a rule narrower, since what languages do not share averages out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from glotlift.reporting.names import UNSEEN, counted, language
from glotlift.reporting.theme import DRAWN, INK, MUTED, SHADE, VARIANTS, control_beneath, finished, panel_title

Groups = Mapping[str, Sequence[str]]
"""Title -> codes, as `glotlift.reporting.names.grouped` has them."""

SIMILARITIES = {
    "cka": ("Debiased linear CKA", {"cka": ""}),
    "mexa": ("MEXA", {"mexa": "raw", "mexa_centred": "each language's mean taken out"}),
    "retrieval": ("Retrieval at 1", {"retrieval": "raw", "retrieval_centred": "each language's mean taken out"}),
}
"""Name of a figure -> its title, and its measures with the titles of their rows."""

SPECIFIC = {"cka": "debiased linear CKA", "mexa_centred": "MEXA", "retrieval_centred": "retrieval at 1"}
"""Measures whose excess over other languages is drawn, with the titles of their rows."""

_COMPONENTS = {"attention": "Added by attention", "before_mlp": "State between (residual)", "mlp": "Added by MLP"}
_MASSES = {"english_mass": "English words", "own_mass": "the language's own words"}

_ALL = "All languages"
"""Title of the one group where nothing is known of what a model was tuned on."""

_LINE = 9.5
"""Height that the code of a language takes at the end of its line, pixels."""

_ROOM = 34
"""Width of the codes behind the last layer and the lines that lead to them, pixels."""

_BAND = "mean of their 95 % intervals"


@dataclass(frozen=True)
class _Panel:
    """What a panel shows: `lines`, a row a variant, layer and language, and the languages whose mean is thick."""

    title: str
    subtitle: str
    lines: pd.DataFrame
    averaged: Sequence[str]

    @property
    def mean(self) -> pd.DataFrame:
        """Of the averaged languages, a row a variant and layer."""
        return group_mean(self.lines, self.averaged)


@dataclass(frozen=True)
class _Axes:
    """What the panels of a chart share.

    Attributes:
        title: of the upright axis.
        layers: first and last.
        values: ends of the upright axis.
        size: width and height of a panel, pixels.
        color: of the variants.
    """

    title: str
    layers: tuple[int, int]
    values: tuple[float, float]
    size: tuple[int, int]
    color: alt.Color

    @property
    def room(self) -> float:
        """Layers that `_ROOM` pixels stand for."""
        return max(1, self.layers[1] - self.layers[0]) * _ROOM / (self.size[0] - _ROOM)

    def x(self, field: str, *, is_labelled: bool) -> alt.X:
        """Return the axis of layers, with room for codes behind the last one."""
        first, last = self.layers
        step = max(1, -(-(last - first) // 6))
        axis = alt.Axis(
            values=list(range(first, last + 1, step)), format="d", grid=False, domain=False, labelFlush=False,
            labels=is_labelled, ticks=is_labelled,
        )  # fmt: skip
        scale = alt.Scale(domain=[first, last + self.room], nice=False)
        return alt.X(f"{field}:Q", title="Layer" if is_labelled else None, axis=axis, scale=scale)

    def y(self, field: str, *, is_labelled: bool) -> alt.Y:
        """Return the upright axis."""
        axis = alt.Axis(tickCount=5, domain=False, labels=is_labelled, ticks=is_labelled)
        scale = alt.Scale(domain=list(self.values), nice=False)
        return alt.Y(f"{field}:Q", title=self.title if is_labelled else None, axis=axis, scale=scale)

    def codes(self, ends: pd.DataFrame) -> pd.DataFrame:
        """Return where the codes stand, from `language` and `value` at the last layer."""
        low, high = self.values
        ends = ends.sort_values(["value", "language"]).reset_index(drop=True)
        gap = (high - low) * _LINE / self.size[1]
        ends["at"] = spaced(ends["value"].to_numpy(float), gap, (low + gap / 2, high - gap / 2))
        return ends.assign(near=self.layers[1], far=self.layers[1] + 0.5 * self.room)


def spaced(ascending: np.ndarray, gap: float, ends: tuple[float, float]) -> np.ndarray:
    """Return the places nearest to ascending values that are at least `gap` apart and between the ends.

    Where the ends leave less than that, the places stand closer, evenly.
    """
    steps = min(gap, (ends[1] - ends[0]) / max(1, len(ascending) - 1)) * np.arange(len(ascending))
    if not len(ascending):
        return steps
    return isotonic_regression(ascending - steps).x.clip(ends[0], ends[1] - steps[-1]) + steps


def group_mean(frame: pd.DataFrame, codes: Sequence[str]) -> pd.DataFrame:
    """Return the mean of languages and of the ends of their intervals, a row a variant and layer.

    NaN on a layer where one of the languages has no value, so that a mean is of the same languages on every layer.

    Args:
        frame: `variant`, `layer`, `language` and what is averaged: `value`, `low`, `high`, ends of a null, `chance`.
        codes: languages; those that the frame does not have at all do not count.
    """
    here = frame.loc[frame["language"].isin(list(codes))]
    names = [name for name in ("value", "low", "high", "null_low", "null_high", "chance") if name in here]
    groups = here.groupby(["variant", "layer"], sort=False)[names]
    return groups.mean().where(groups.count() == here["language"].nunique()).reset_index()


def similarity_chart(frame: pd.DataFrame, task_key: str, name: str, groups: Groups) -> Any:
    """Return a measure of how alike each language and the pivot are: a column a group, raw and centred as rows.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.similarity`; only pairs with the pivot are drawn.
        task_key: name of the test set.
        name: of `SIMILARITIES`.
        groups: of all languages.
    """
    title, measures = SIMILARITIES[name]
    pivot = frame["pivot"].iloc[0]
    frame = frame.loc[frame["other"] == pivot]
    parts = {text: frame.loc[frame["measure"] == measure] for measure, text in measures.items()}
    return finished(
        _grouped({text: part for text, part in parts.items() if len(part)}, title, groups),
        f"{title} between {language(pivot).name} and each language on {task_key}",
        f"Thin: a language; thick: mean of the group; band: {_BAND}; dashed: 95 % when items are paired at random",
    )


def specificity_chart(frame: pd.DataFrame, task_key: str, groups: Groups) -> Any:
    """Return how much nearer each language is to the pivot than to other languages: a column a group, a row a measure.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.specificity`.
        task_key: name of the test set.
        groups: of all languages.
    """
    pivot = language(frame["pivot"].iloc[0]).name
    frame = frame.assign(chance=0.0)  # as near to the pivot as to others
    parts = {text: frame.loc[frame["measure"] == measure] for measure, text in SPECIFIC.items()}
    return finished(
        _grouped({text: part for text, part in parts.items() if len(part)}, f"With {pivot} less with others", groups),
        f"Nearer to {pivot} than to other languages? Wrong-language control on {task_key}",
        f"Each language's mean taken out. Thin: a language; thick: mean of the group; band: {_BAND}",
    )


def probe_chart(frame: pd.DataFrame, task_key: str, groups: Groups) -> Any:
    """Return how well a linear probe tells the language of a held-out question, a column a group.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.probe`.
        task_key: name of the test set.
        groups: of all languages.
    """
    return finished(
        _grouped({"": frame.loc[frame["language"] != "all"]}, "Accuracy of the probe", groups),
        f"Language-identification probe on {task_key}: can the language be read off a state?",
        f"Held-out items. Thin: a language; thick: mean of the group; band: {_BAND}; dashed: chance",
    )


def component_chart(frame: pd.DataFrame, task_key: str, groups: Groups) -> Any:
    """Return what attention, MLP and the state between them would answer, a row each: English and own words.

    The thick line is the mean over languages never tuned on; over all where nothing is known of that. None where no
    word of any language but English can be read.

    Args:
        frame: see `glotlift.reporting.read.RunFiles.components`.
        task_key: name of the test set.
        groups: of all languages.
    """
    frame = frame.rename(columns={"mean": "value"})
    frame = frame.loc[(frame["language"] != "en") & frame["measure"].isin(list(_MASSES))]
    # where no token begins a word of one language alone there is nothing to read, which is not the same as no mass
    most = np.asarray(frame.groupby(["language", "measure"])["value"].transform("max"))
    frame = frame.loc[most > 0]
    if frame.empty:
        return None
    averaged = groups.get(UNSEEN) or sorted(set(frame["language"]))
    of_mass = {text: frame.loc[frame["measure"] == mass] for mass, text in _MASSES.items()}
    panels = [
        [
            _Panel(text, _with_count(words, set(part["language"])), part.loc[part["component"] == component], averaged)
            for words, part in of_mass.items()
            if len(part)
        ]
        for component, text in _COMPONENTS.items()
    ]
    whose = "the languages never tuned on" if UNSEEN in groups else "these languages"
    return finished(
        _matrix(panels, "Probability mass", (400, 165)),
        f"Component lens on {task_key}: mass of label words in what each block adds",
        f"Thin: a language; thick: mean of {whose}; band: {_BAND}",
    )


def _grouped(parts: Mapping[str, pd.DataFrame], title: str, groups: Groups) -> Any:
    """Return panels: a row a part, a column a group of which there are languages."""
    found = {code for part in parts.values() for code in part["language"]}
    shown = {name: here for name, codes in groups.items() if (here := [code for code in codes if code in found])}
    panels = [
        [
            _Panel(
                name or _ALL,
                _with_count(text, codes),
                part.loc[part["language"].isin(codes)],
                codes,
            )
            for name, codes in shown.items()
        ]
        for text, part in parts.items()
    ]
    return _matrix(panels, title, ({1: 620, 2: 390}.get(len(shown), 265), 190))


def _with_count(text: str, codes: Collection[str]) -> str:
    return ", ".join(filter(None, (text, counted(len(codes), "language"))))


def _matrix(panels: Sequence[Sequence[_Panel]], title: str, size: tuple[int, int]) -> Any:
    """Return panels in rows, on one scale that holds all lines and means."""
    every = [panel for row in panels for panel in row]
    lines = pd.concat([panel.lines for panel in every])
    means = pd.concat([panel.mean for panel in every])
    values = np.concatenate([lines["value"], means["low"], means["high"]])
    low, high = float(np.nanmin([0.0, *values])), float(np.nanmax([0.0, *values]))
    step = 10.0 ** math.floor(math.log10(high - low or 1.0)) / 2
    step /= 1 + (high - low < 3 * step)
    bottom, top = step * math.floor(low / step), step * math.ceil(high / step)
    ends = bottom, top + 0.06 * (top - bottom)  # so that no number stands at the top, beside the title
    colors = {variant: color for variant, color in DRAWN.items() if variant in set(lines["variant"])}
    legend = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
    color = alt.Color("variant:N", scale=alt.Scale(domain=list(colors), range=list(colors.values())), legend=legend)
    axes = _Axes(title, (min(lines["layer"]), max(lines["layer"])), ends, size, color)
    rows = [
        alt.hconcat(*(_drawn(panel, axes, column == 0, row is panels[-1]) for column, panel in enumerate(row)),
                    spacing=16)
        for row in panels
    ]  # fmt: skip
    return alt.vconcat(*rows, spacing=14)


def _drawn(panel: _Panel, axes: _Axes, is_left: bool, is_bottom: bool) -> Any:
    """Return a panel; only outer ones carry the numbers of an axis."""

    def x(field: str = "layer") -> alt.X:
        return axes.x(field, is_labelled=is_bottom)

    def y(field: str) -> alt.Y:
        return axes.y(field, is_labelled=is_left)

    means, lines, color = control_beneath(panel.mean), control_beneath(panel.lines), axes.color
    last = [variant for variant in VARIANTS if variant in set(panel.lines["variant"])][-1:]
    of_last = panel.lines.loc[panel.lines["variant"].isin(last)]
    codes = axes.codes(of_last.loc[of_last["layer"] == axes.layers[1], ["language", "value"]])
    line, mean, name = alt.Chart(lines), alt.Chart(means), alt.Chart(codes)
    control = alt.Chart(means.loc[means["variant"].isin(last)]).mark_line(color=MUTED, strokeDash=[3, 3], strokeWidth=1)
    layers = [
        mean.mark_area(opacity=0.15).encode(x=x(), y=y("low"), y2="high:Q", color=color),
        line.mark_line(strokeWidth=0.8, opacity=0.4).encode(x=x(), y=y("value"), color=color, detail="language:N"),
        *(control.encode(x=x(), y=y(each)) for each in ("null_low", "null_high", "chance") if each in means),
        mean.mark_line(strokeWidth=2.8).encode(x=x(), y=y("value"), color=color),
        name.mark_rule(color=SHADE, strokeWidth=0.7).encode(x=x("near"), x2="far:Q", y=y("value"), y2="at:Q"),
        name.mark_text(align="left", dx=2, fontSize=9, color=INK).encode(x=x("far"), y=y("at"), text="language:N"),
    ]
    width, height = axes.size
    head = panel_title(panel.title, panel.subtitle)
    return alt.layer(*layers).properties(width=width, height=height, title=head)
