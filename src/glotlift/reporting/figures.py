"""Which figures a run has, and what their captions say.

Enters: the files of a run. Leaves: `Figure`s, in reading order. A caption says what to read and what not to conclude.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from glotlift.names import safe_name
from glotlift.reporting.across import grids, members, spreads
from glotlift.reporting.cause_charts import patching_chart, switch_off_chart
from glotlift.reporting.charts import accuracy_chart, balance_chart, loss_chart, parts_chart, spread_chart
from glotlift.reporting.heatmaps import consistency_chart, grid_chart
from glotlift.reporting.inside import correlation_chart, entropy_chart, lens_chart, pca_chart
from glotlift.reporting.language_curves import SIMILARITIES, component_chart, probe_chart, similarity_chart
from glotlift.reporting.names import grouped, language
from glotlift.reporting.read import RANDOM, RunFiles, read_run
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
_LENS = (
    "What each layer would say if the model stopped there: its state at the last position of the prompt, read with the "
    "model's own final norm and output matrix, and the probability of the tokens that begin the label words in English "
    "and in the language of the prompt. Tokens that begin a word in both have a line of their own, tokens that several "
    "labels share are left out; where a language's own words are the English ones, they count as English. English mass "
    "in middle layers shows that English words can be read there, not that the model thinks in English, and early "
    "layers can hardly be read by this lens at all."
)
_ENTROPY = (
    "How undecided the reading of each layer is, over the whole vocabulary; 0 bits is certainty. A lower curve is a "
    "more peaked reading, right or wrong."
)
_PCA = (
    "Each point is an item, as the mean state over its question's tokens; at a layer, the same axes serve base and "
    "tuned. Languages that lie together are alike in these two directions only: two components leave variance out, "
    "scales differ between layers, and nearness here is not evidence of better answers. Of many items an even "
    "selection is drawn, the same in every panel; the letters stand at the mean of all."
)
_CORRELATION = (
    "Parallel items: does an item that lies far out along the first component in {pivot} lie far out in the other "
    "language too? The raw value (dashed) is confounded by length, since a long text stays long in translation; the "
    "solid line has length taken out. Inside the grey band, pairing the items at random does as well, so nothing is "
    "to be concluded. The sign of a principal component carries no meaning."
)
_ALIKE = {
    "cka": (
        "Do the same questions lie close to each other in both languages? 1 is the same space up to rotation, offset "
        "and scale, about 0 no common structure; debiased, so few items do not raise it."
    ),
    "mexa": (
        "Share of the questions whose translation is nearer than any other question, looked for from both sides. Read "
        "the lower row: raw cosines are dominated by what all questions of a language have in common."
    ),
    "retrieval": (
        "Share of the questions whose translation is the nearest one, mean of the two directions. Read the lower row: "
        "raw cosines are dominated by what all questions of a language have in common."
    ),
}
_ALIKE_HOW = (
    " The codes stand at the last layer, in the order of {variant}. Between the dashed lines, pairing the items at "
    "random does as well. Bands that overlap are no test of a change: the items are the same, and geometry/ holds the "
    "paired difference. When tuning raises all pairs alike, languages have come together, not to {pivot}."
)
_RANDOM = (
    " The random adapter moves every weight matrix as far as the tuned one, in random directions: what it changes, "
    "too, comes of moving the weights at all."
)
_PROBE = (
    "A linear probe, trained on other questions, is asked for the language of a state. Where it is right on all "
    "languages, that layer keeps them apart; where it falls towards chance, the layer is shared. That a language can "
    "be read off does not show that the model uses it."
)
_COMPONENTS = (
    "What each block's attention and MLP add to the state at the last position, read like a state: through the final "
    "norm, so that the direction counts and not how much is added. Layers are not added up here, and a component "
    "that writes against another shows in neither. Where no token begins a word of one language alone, as where both "
    "spell it alike, that language is left out."
)
_PATCHING = (
    "The English state of a layer is put into the same question in another language. What its own item's state repairs "
    "and another item's does not, the model knows in English and loses before that layer: room that tuning could fill. "
    "Where both repair alike, the form of an English prompt does it, and nothing is known of the item."
)
_SWITCH_OFF = (
    "The adapter is on or off a layer at a time. Where the blue curve rises, that layer brings the change given "
    "those before it; where the orange one falls, given those behind it. A grey curve near zero means that the other "
    "layers make up for a missing one, not that it does nothing."
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
    for key, frame in run.lens.items():
        alt = f"Probability mass of label words over the layers on {key}, a panel a language"
        yield _figure("lens", "inside", key, alt, _LENS, lens_chart(frame, key))
        alt = f"Entropy over the layers on {key}, a panel a language"
        yield _figure("entropy", "inside", key, alt, _ENTROPY, entropy_chart(frame, key))
    for key, frame in run.pca.items():
        alt = f"Items of {key} on two principal components at some layers, coloured by language"
        yield _figure("pca", "inside", key, alt, _PCA, pca_chart(frame, key, run.explained.get(key)))
    for key, frame in run.correlation.items():
        pivot = language(frame["pivot"].iloc[0]).name
        alt = f"Correlation of the first principal component with {pivot} over the layers, a panel a language"
        caption = _CORRELATION.format(pivot=pivot)
        yield _figure("pc1", "inside", key, alt, caption, correlation_chart(frame, key))
    yield from _of_languages(run)
    for key, frame in run.patching.items():
        alt = f"Share of wrong answers on {key} that English states repair, by layer"
        yield _figure("patching", "inside", key, alt, _PATCHING, patching_chart(frame, key))
    for key, frame in run.switch_off.items():
        alt = f"Change on {key} with the adapter on or off in some layers, by layer"
        yield _figure("switch-off", "inside", key, alt, _SWITCH_OFF, switch_off_chart(frame, key))
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


def _of_languages(run: RunFiles) -> Iterator[Figure]:
    """Yield the figures in which every language is a line over the layers."""

    def groups(frame: pd.DataFrame) -> dict[str, list[str]]:
        codes = set(frame["language"]) - {"all"}
        return grouped({"seen": run.seen, "pivot": run.pivot}, codes)

    for key, frame in run.similarity.items():
        pivot = language(frame["pivot"].iloc[0]).name
        control = _RANDOM if RANDOM in set(frame["variant"]) else ""
        variant = "tuned" if "tuned" in set(frame["variant"]) else "base"
        for name, (title, measures) in SIMILARITIES.items():
            if measures.keys().isdisjoint(frame["measure"]):
                continue
            alt = f"{title} between {pivot} and every language over the layers on {key}, by group of languages"
            caption = _ALIKE[name] + _ALIKE_HOW.format(variant=variant, pivot=pivot) + control
            yield _figure(name, "inside", key, alt, caption, similarity_chart(frame, key, name, groups(frame)))
    for key, frame in run.probe.items():
        control = _RANDOM if RANDOM in set(frame["variant"]) else ""
        alt = f"Accuracy of a language probe over the layers on {key}, by group of languages"
        yield _figure("probe", "inside", key, alt, _PROBE + control, probe_chart(frame, key, groups(frame)))
    for key, frame in run.components.items():
        alt = f"Mass of label words in what attention and MLP of every layer add on {key}"
        yield _figure("components", "inside", key, alt, _COMPONENTS, component_chart(frame, key, groups(frame)))


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
