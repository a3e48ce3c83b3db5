"""The charts of where an answer is lost and where a change comes from, in Altair.

Enters: summaries of patching and switch-off, see `glotlift.reporting.read`. Leaves: a chart over the layers, mean over
the languages beside English.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import altair as alt
import pandas as pd

from glotlift.reporting.theme import MUTED, VARIANTS, finished, panel_title

_SITES = {"last": "State at the answer", "question": "States of the question"}
_SOURCES = {"same": "its own item's English state", "other": "another item's (control)"}
_MODES = {"up_to": "on up to the layer", "from": "on from the layer", "without": "off in the layer only"}
_MEASURES = {"auroc": "AUROC", "accuracy_calibrated": "Accuracy, calibrated"}
_GROUPS = {"all": "all modules", "attention": "attention only", "mlp": "MLP only"}
_REPAIR = {"repaired": "Share repaired", "accuracy_change": "Change in accuracy"}
_LEGEND = alt.Legend(
    title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1, columnPadding=28
)


def patching_chart(frame: pd.DataFrame, task_key: str) -> Any:
    """Return what English states repair and what that does to accuracy, by layer: a row a variant and measure."""
    of_all = _of_all(frame)
    here = of_all.loc[
        of_all["measure"].isin(list(_REPAIR))
        & (of_all["calibration"] == "batch")
        & of_all["source"].isin(list(_SOURCES))
    ].replace({"source": _SOURCES})
    ends = {"repaired": [0.0, 1.0], "accuracy_change": _extent(here.loc[here["measure"] == "accuracy_change"])}
    scale = alt.Scale(domain=list(_SOURCES.values()), range=[VARIANTS["tuned"], MUTED])
    color = alt.Color("source:N", scale=scale, legend=_LEGEND)
    rows = []
    for variant, (measure, said) in product(
        [each for each in VARIANTS if each in set(here["variant"])], _REPAIR.items()
    ):
        panels = []
        for site, title in _SITES.items():
            part = here.loc[(here["variant"] == variant) & (here["site"] == site) & (here["measure"] == measure)]
            if len(part):
                panels.append(_over_layers(part, color, said, ends[measure], panel_title(title, variant)))
        if panels:
            rows.append(alt.hconcat(*panels, spacing=18))
    return finished(
        alt.vconcat(*rows, spacing=16),
        f"What an English state repairs on {task_key}",
        "By layer, mean over the languages beside English, preferences for a label taken off; bands: 95 % intervals",
    )


def switch_off_chart(frame: pd.DataFrame, task_key: str) -> Any:
    """Return what an adapter's layers bring: a column a measure, a row a group of modules."""
    of_all = _of_all(frame)
    here = of_all.loc[of_all["mode"].isin(list(_MODES))].replace({"mode": _MODES})
    moved = here["moved"] if "moved" in here else pd.Series(True, index=here.index)  # files of before 2026-11-28
    ends = {end: here[end].where(moved, here["change"]) for end in ("low", "high")}
    here = here.assign(value=here["change"], moved=moved, **ends)
    scale = alt.Scale(domain=list(_MODES.values()), range=[VARIANTS["tuned"], VARIANTS["base"], MUTED])
    color = alt.Color("mode:N", scale=scale, legend=_LEGEND)
    rows = []
    for group, modules in _GROUPS.items():
        panels = []
        for measure, title in _MEASURES.items():
            of_measure = here.loc[here["measure"] == measure]
            part = of_measure.loc[of_measure["group"] == group]
            if len(part):
                ends = _extent(of_measure)  # of all groups, so that rows can be held against each other
                panels.append(_over_layers(part, color, "Change", ends, panel_title(title, modules)))
        if panels:
            rows.append(alt.hconcat(*panels, spacing=18))
    return finished(
        alt.vconcat(*rows, spacing=16),
        f"Which layers of the adapter carry its change on {task_key}",
        "Blue, orange: against the base; grey: against the tuned; mean over languages beside English; 95 % intervals; "
        "hollow: no item moved",
    )


def _extent(frame: pd.DataFrame) -> list[float]:
    """Return the ends of an axis that holds all values, their intervals and zero, and a little more."""
    low, high = min([0.0, *frame["low"], *frame["value"]]), max([0.0, *frame["high"], *frame["value"]])
    margin = 0.05 * (high - low) or 0.05
    return [low - margin, high + margin]


def _of_all(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all languages together; of a single one, where there is no other."""
    together = frame.loc[frame["language"] == "all"]
    return together if len(together) else frame.loc[frame["language"] != "en"]


def _over_layers(frame: pd.DataFrame, color: alt.Color, title: str, domain: list[float] | None, head: Any) -> Any:
    scale = alt.Scale(domain=domain, nice=False) if domain else alt.Scale(zero=True)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, domain=False))

    x = alt.X("layer:Q", title="Layer", axis=alt.Axis(grid=False, tickMinStep=1))
    chart = alt.Chart(frame)
    band = chart.mark_area(opacity=0.15).encode(x=x, y=y("low"), y2="high:Q", color=color)
    line = chart.mark_line(strokeWidth=1.9).encode(x=x, y=y("value"), color=color)
    layers = [band, line]
    still = frame.loc[~frame["moved"]] if "moved" in frame else frame.iloc[:0]
    if len(still):
        hollow = alt.Chart(still).mark_point(size=26, fill="white", opacity=1)
        layers.append(hollow.encode(x=x, y=y("value"), color=color))
    return alt.layer(*layers).properties(title=head, width=380, height=150)
