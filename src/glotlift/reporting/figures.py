"""Which figures a run has, and what their captions say.

Enters: the files of a run. Leaves: `Figure`s, in reading order. A caption says what to read and what not to conclude.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glotlift.names import safe_name
from glotlift.reporting.across import grids, members, spreads
from glotlift.reporting.charts import accuracy_chart, balance_chart, loss_chart, parts_chart, spread_chart
from glotlift.reporting.heatmaps import consistency_chart, grid_chart
from glotlift.reporting.inside_figures import drawn_inside
from glotlift.reporting.read import RunFiles, read_run
from glotlift.reporting.table import decided
from glotlift.reporting.theme import save, to_svg

_ACCURACY = (
    "Left: accuracy with its 95 % Wilson interval. Right: the same after batch calibration, which takes out a constant "
    "preference for a label; it assumes that the labels are about equally frequent among the items. A language that "
    "gains much from left to right was held back by such a preference."
)
_ACCURACY_CALIBRATED = (
    "Left: accuracy after batch calibration, which takes out a constant preference for a label, with its 95 % Wilson "
    "interval; it assumes that the labels are about equally frequent among the items. Right: the same without "
    "calibration. A language that loses much from left to right is held back by such a preference."
)
_ACCURACY_CONTEXTUAL = (
    "Left: accuracy after contextual calibration, which takes off what the model answers to content-free inputs, with "
    "its 95 % Wilson interval. Right: after batch calibration, which takes off each label's mean over the items. Where "
    "the two differ much, content-free inputs do not show the preference that the items meet."
)
_ACCURACY_BY = {"raw": _ACCURACY, "calibrated": _ACCURACY_CALIBRATED, "contextual": _ACCURACY_CONTEXTUAL}
_ACCURACY_PAIRED = (
    " Do not read overlapping intervals as a test: base and tuned answer "
    "the same items, and the paired interval of the change stands in the table."
)
_PREFERENCE = (
    " A distance between base and tuned that is wide on the left and narrow on the right comes from a shift of "
    "preference, not from telling the items apart."
)
_PARTS = (
    "The parts add up to the change in raw accuracy. Bias: what batch calibration takes off the gain. Format: the "
    "calibrated gain with arbitrary answer words, which their meaning cannot explain. Understanding: the rest of the "
    "calibrated gain. Intervals are clustered by source item. A hollow part is not clear of zero: not shown to be "
    "there, nor to be absent; the split rests on one set of arbitrary words."
)
_CONSISTENCY = (
    "A cell near 100 says that two languages succeed on the same items. It is no measure of quality: two languages in "
    "which the same label has all predictions agree on every item, and high accuracy alone makes for high values. Read "
    "it beside accuracy and the labels predicted."
)
_CONSISTENCY_PAIRED = " Base and tuned are on one scale; no interval of the difference is given, so none is claimed."
_GRID = (
    "Each cell is one prompt language with the answer words of one language; on the frame they are the same. Columns "
    "that are dark all over are answer words that serve every prompt, often those of the model's main language. Single "
    "cells have no interval here: read rows and columns, and the tables below for intervals."
)
_SPREAD = (
    "Only the demonstrations differ between draws; the items are the same. A difference between models or languages "
    "that is smaller than this spread may be one of the demonstrations. The standard deviation is one over few draws, "
    "not a confidence interval, and says nothing of other items."
)
_BALANCE = (
    "How often each label is predicted. A bar of one colour is a model that always says the same word; its accuracy is "
    "then the share of that label among the items and says nothing of understanding."
)
_BALANCE_PAIRED = (
    " More even bars after tuning are not in themselves better answers: compare calibrated accuracy and AUROC."
)
_LOSS = (
    "Loss on the target tokens of the question pairs. It shows that the model learns to translate questions. It does "
    "not show that it answers them better: no answer is in the training data, and only results on the task test that."
)


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: stem of its files.
        section: of the page: `results`, `parts`, `consistency`, `across`, `inside` or `training`.
        task: key of the test set it shows, in `across` name of the grid or spread, empty in `training`.
        alt: what it shows, in a few words.
        caption: a paragraph.
        svg: the drawing.
    """

    name: str
    section: str
    task: str
    alt: str
    caption: str
    svg: str


def figures(run: RunFiles) -> Iterator[Figure]:
    """Yield the figures that the files of a run allow."""
    shown_across = members(run.scores)
    for key in run.scores.get("tasks", {}):
        if key not in shown_across:
            yield from _of_test_set(run.scores, key)
    for grid in grids(run.scores):
        alt = f"Accuracy on {grid.name} by language of prompt and answer words"
        yield _figure("grid", "across", grid.name, alt, _GRID, grid_chart(grid))
    for spread in spreads(run.scores):
        alt = f"Accuracy on {spread.name} over {len(spread.test_sets)} draws of demonstrations, by language"
        yield _figure("spread", "across", spread.name, alt, _SPREAD, spread_chart(run.scores, spread))
    for drawn in drawn_inside(run):
        yield _figure(drawn.kind, "inside", drawn.key, drawn.alt, drawn.caption, drawn.chart)
    if any("loss" in entry and "step" in entry for entry in run.history.get("log", ())):
        svg = to_svg(loss_chart(run.history), "Loss over the optimizer steps")
        yield Figure("loss", "training", "", "Loss over the optimizer steps", _LOSS, svg)


def write_figures(folder: Path, drawn: Iterable[Figure]) -> None:
    """Write figures into `figures/` of a folder, as SVG, PNG and PDF.

    Raises:
        OutputError: a file cannot be written.
    """
    for figure in drawn:
        for suffix in (".svg", ".png", ".pdf"):
            save(figure.svg, folder / "figures" / f"{figure.name}{suffix}")


def write_explanation(folder: Path, adapter: Path | None = None) -> None:
    """Write the figures of what happens inside a model, from the files of an explanation.

    Args:
        folder: with a folder a kind of explanation; gets `figures/`.
        adapter: whose history says which languages the model was tuned on; None for no adapter.

    Raises:
        OutputError: a file cannot be read or written.
    """
    run = read_run(folder, adapter=adapter)
    write_figures(folder, (figure for figure in figures(run) if figure.section == "inside"))


def _of_test_set(scores: dict[str, Any], key: str) -> Iterator[Figure]:
    task, is_paired = scores["tasks"][key], "tuned" in scores["variants"]
    shown = f"{key} in {len(task['languages'])} languages"
    preference = _PREFERENCE if decided(task) == "raw" else ""
    caption = _ACCURACY_BY[decided(task)] + (preference + _ACCURACY_PAIRED) * is_paired
    yield _figure("accuracy", "results", key, f"Accuracy on {shown}", caption, accuracy_chart(scores, key))
    alt = f"Share of each label among the predictions on {shown}"
    yield _figure("balance", "results", key, alt, _BALANCE + _BALANCE_PAIRED * is_paired, balance_chart(scores, key))
    if parts := task.get("parts"):
        alt = f"Bias, format and understanding in the change of accuracy on {key}"
        yield _figure("parts", "parts", key, alt, _PARTS, parts_chart(parts, key))
    if len(task["languages"]) > 2 and any((task.get("consistency") or {}).values()):
        alt = f"Share of items right in both of two languages on {key}, each pair of languages"
        caption = _CONSISTENCY + _CONSISTENCY_PAIRED * is_paired
        yield _figure("consistency", "consistency", key, alt, caption, consistency_chart(scores, key))


def _figure(kind: str, section: str, key: str, alt: str, caption: str, chart: Any) -> Figure:
    return Figure(f"{kind}-{slug(key)}", section, key, alt, caption, to_svg(chart, alt))


def slug(key: str) -> str:
    """Return the name of a test set as part of a file name; one that has to be changed gets a checksum of the whole."""
    safe = safe_name(key)
    return safe if safe == key else f"{safe}-{zlib.crc32(key.encode()):08x}"
