"""Which figures a run has, and what their captions say.

Enters: the files of a run. Leaves: `Figure`s, in reading order. A caption says what to read and what not to conclude.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glotlift.reporting.charts import accuracy_chart, balance_chart, loss_chart
from glotlift.reporting.inside import correlation_chart, entropy_chart, lens_chart, pca_chart
from glotlift.reporting.names import language
from glotlift.reporting.read import RunFiles
from glotlift.reporting.theme import to_svg

_ACCURACY = (
    "Left: accuracy with its 95 % Wilson interval. Right: the same after batch calibration, which takes out a constant "
    "preference for a label; it assumes that the labels are about equally frequent among the items. A language that "
    "gains much from left to right was held back by such a preference."
)
_ACCURACY_PAIRED = (
    " A distance between base and tuned that is wide on the left and narrow on the right comes from a shift of "
    "preference, not from telling the items apart. Do not read overlapping intervals as a test: base and tuned answer "
    "the same items, and the paired interval of the change stands in the table."
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
_LOSS = (
    "Loss on the target tokens of the question pairs. It shows that the model learns to translate questions. It does "
    "not show that it answers them better: no answer is in the training data, and only results on the task test that."
)


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: stem of its files.
        section: of the page: `results`, `inside` or `training`.
        task: key of the test set it shows, empty in `training`.
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
    is_paired = "tuned" in run.scores.get("variants", ())
    accuracy = _ACCURACY + _ACCURACY_PAIRED * is_paired
    balance = _BALANCE + _BALANCE_PAIRED * is_paired
    for key, task in run.scores.get("tasks", {}).items():
        shown = f"{key} in {len(task['languages'])} languages"
        yield _figure("accuracy", "results", key, f"Accuracy on {shown}", accuracy, accuracy_chart(run.scores, key))
        alt = f"Share of each label among the predictions on {shown}"
        yield _figure("balance", "results", key, alt, balance, balance_chart(run.scores, key))
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
    if any("loss" in entry and "step" in entry for entry in run.history.get("log", ())):
        svg = to_svg(loss_chart(run.history), "Loss over the optimizer steps")
        yield Figure("loss", "training", "", "Loss over the optimizer steps", _LOSS, svg)


def _figure(kind: str, section: str, key: str, alt: str, caption: str, chart: Any) -> Figure:
    return Figure(f"{kind}-{slug(key)}", section, key, alt, caption, to_svg(chart, alt))


def slug(key: str) -> str:
    """Return the name of a test set as part of a file name; one that has to be changed gets a checksum of the whole."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", key)
    return safe if safe == key else f"{safe}-{zlib.crc32(key.encode()):08x}"
