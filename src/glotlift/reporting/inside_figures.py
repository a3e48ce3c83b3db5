"""Which figures there are of what happens inside a model, and what their captions say.

Enters: the files of a run. Leaves: charts with alternative text and caption, in reading order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from glotlift.reporting.cause_charts import patching_chart, switch_off_chart
from glotlift.reporting.inside import correlation_chart, entropy_chart, lens_chart, paper_lens_chart, pca_chart
from glotlift.reporting.language_curves import (
    SIMILARITIES,
    SPECIFIC,
    component_chart,
    probe_chart,
    similarity_chart,
    specificity_chart,
)
from glotlift.reporting.names import grouped, language
from glotlift.reporting.pivot_charts import item_link_chart, pivot_chart
from glotlift.reporting.read import RunFiles
from glotlift.reporting.read_frames import RANDOM

_POOLED = {
    "question": "the tokens of its question and the answer cue",
    "position-weighted": "the tokens of its question and the answer cue, later ones counting more",
    "whole": "its whole prompt, demonstrations included",
}
"""Pooling, as the geometry's files name it -> what a state is the mean of."""

_LENS = (
    "What each layer would say if the model stopped there: its state at the last position of the prompt, read with the "
    "model's own final norm and output matrix, and the probability of the tokens that begin the label words in English "
    "and in the language of the prompt. Tokens that begin a word in both have a line of their own, tokens that several "
    "labels share are left out; where a language's own words are the English ones, they count as English. English mass "
    "in middle layers shows that English words can be read there, not that the model thinks in English, and early "
    "layers can hardly be read by this lens at all."
)
_TUNED_LENS = (
    "The same through a tuned lens: before norm and matrix, an affine map a layer, trained on unlabelled text of the "
    "base model to say what its last layer says. It reads early layers that the plain lens cannot; what it reads there "
    "may be what the map has learned to expect."
)
_PIVOT = (
    "A layer answers an item in English when English label words have more mass than the language's own, and at least "
    "1 %. Above the curves stands the crossover layer, from which on own words lead in the mean over the items; "
    "without a dot they never take over from English for good, and a dot without a line is there in fewer than half "
    "of the resamples. Languages whose own words begin like the English ones cannot be read and are left out. Bands of "
    "base and tuned that overlap are no test: pivot.parquet has the paired difference."
)
_PAPER_LENS = (
    "The quantities of the original, by the rule of its released code: the mass of the tokens that count for the word "
    "of an item's right label, in English and in the prompt's language. As there, items whose two sets share a token "
    "are left out, and languages that keep none have no panel. The band is cut at no bound of the quantity."
)
_ENTROPY = (
    "How undecided the reading of each layer is, over the whole vocabulary; 0 bits is certainty. A lower curve is a "
    "more peaked reading, right or wrong."
)
_PCA = (
    "Each point is an item, as the mean state over {pooled}; at a layer, the same axes serve base and tuned. Languages "
    "that lie together are alike in these two directions only: two components leave variance out, scales differ "
    "between layers, and nearness here is not evidence of better answers. Of many items an even selection is drawn, "
    "the same in every panel; the letters stand at the mean of all."
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
_SPECIFICITY = (
    "Likeness with {pivot} less the mean likeness with all other languages, for the same questions. Where tuning "
    "raises it, languages have come to {pivot}; where likeness rises and this does not, languages have come together, "
    "wherever that is. Bands that overlap are no test of a change; geometry/ holds the paired difference."
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
    "Where both repair alike, the form of an English prompt does it, and nothing is known of the item. Another item's "
    "state repairs some wrong answers by chance and spoils right ones; the change in accuracy counts both."
)
_SWITCH_OFF = (
    "The adapter is on or off a layer at a time. Where the blue curve rises, that layer brings the change given "
    "those before it; where the orange one falls, given those behind it. A grey curve near zero means that the other "
    "layers make up for a missing one, not that it does nothing. In the lower rows only the modules of attention, or "
    "of MLP, are switched; the others are off with the blue and orange curves, and on with the grey one."
)
_ITEM_LINK = (
    "Does what moves inside go with what comes right? Above zero, items that flip to right come nearer to their "
    "English translation than those that stay wrong. The mean over layers is the one that is tested, by flipping the "
    "signs of what items add; of many layers one in twenty stands out by chance. Languages with fewer than three items "
    "of a kind have no interval. A link is no cause."
)


class Drawn(NamedTuple):
    """A chart with its words; attributes as `glotlift.reporting.figures.Figure`, whose name begins with `kind`."""

    kind: str
    key: str
    alt: str
    caption: str
    chart: Any


def drawn_inside(run: RunFiles) -> Iterator[Drawn]:
    """Yield the charts that the files of a run allow."""
    yield from _of_lens(run)
    yield from _of_geometry(run)
    for key, frame in run.components.items():
        alt = f"Mass of label words in what attention and MLP of every layer add on {key}"
        if (chart := component_chart(frame, key, _groups(run, frame))) is not None:
            yield Drawn("components", key, alt, _COMPONENTS, chart)
    for key, frame in run.patching.items():
        alt = f"Share of wrong answers on {key} that English states repair, and change in accuracy, by layer"
        yield Drawn("patching", key, alt, _PATCHING, patching_chart(frame, key))
    for key, frame in run.switch_off.items():
        alt = f"Change on {key} with the adapter on or off in some layers, by layer and group of modules"
        yield Drawn("switch-off", key, alt, _SWITCH_OFF, switch_off_chart(frame, key))
    for key, frame in run.item_link.items():
        alt = f"How much nearer to English items of {key} come that tuning puts right, by layer and by language"
        yield Drawn("item-link", key, alt, _ITEM_LINK, item_link_chart(frame, key))


def _of_lens(run: RunFiles) -> Iterator[Drawn]:
    lenses = (
        ("", "Logit lens", "", run.lens, run.english_first),
        ("tuned-", "Tuned lens", _TUNED_LENS + " ", run.tuned_lens, run.tuned_english_first),
    )
    for prefix, name, how, masses, english_first in lenses:
        for key, frame in masses.items():
            alt = f"{name}: probability mass of label words over the layers on {key}, a panel a language"
            caption = (how.strip() or _LENS) + _control(frame)
            yield Drawn(f"{prefix}lens", key, alt, caption, lens_chart(frame, key, name))
            alt = f"{name}: entropy over the layers on {key}, a panel a language"
            yield Drawn(f"{prefix}entropy", key, alt, how + _ENTROPY, entropy_chart(frame, key, name))
        for key, frame in english_first.items():
            alt = f"{name}: share of items that a layer answers in English on {key}, with the crossover layer"
            caption = how + _PIVOT + _control(frame)
            yield Drawn(f"{prefix}pivot", key, alt, caption, pivot_chart(frame, key, name))
    for key, frame in run.paper_lens.items():
        alt = f"Probability of the right label's word over the layers on {key}, as in arXiv 2405.13816"
        yield Drawn("paper-lens", key, alt, _PAPER_LENS, paper_lens_chart(frame, key))


def _of_geometry(run: RunFiles) -> Iterator[Drawn]:
    for key, frame in run.pca.items():
        alt = f"Items of {key} on two principal components at some layers, coloured by language"
        pooling = frame["pooling"].iloc[0]
        caption = _PCA.format(pooled=_POOLED.get(pooling, f"tokens (pooling {pooling})"))
        yield Drawn("pca", key, alt, caption, pca_chart(frame, key, run.explained.get(key)))
    for key, frame in run.correlation.items():
        pivot = _pivot(frame)
        alt = f"Correlation of the first principal component with {pivot} over the layers, a panel a language"
        yield Drawn("pc1", key, alt, _CORRELATION.format(pivot=pivot), correlation_chart(frame, key))
    for key, frame in run.similarity.items():
        variant = "tuned" if "tuned" in set(frame["variant"]) else "base"
        how = _ALIKE_HOW.format(variant=variant, pivot=_pivot(frame)) + _control(frame)
        for name, (title, measures) in SIMILARITIES.items():
            if measures.keys().isdisjoint(frame["measure"]):
                continue
            alt = f"{title} between {_pivot(frame)} and every language over the layers on {key}, by group of languages"
            yield Drawn(name, key, alt, _ALIKE[name] + how, similarity_chart(frame, key, name, _groups(run, frame)))
    for key, frame in run.specificity.items():
        if SPECIFIC.keys().isdisjoint(frame["measure"]):
            continue
        alt = f"Likeness with {_pivot(frame)} less that with other languages over the layers on {key}"
        caption = _SPECIFICITY.format(pivot=_pivot(frame)) + _control(frame)
        yield Drawn("specificity", key, alt, caption, specificity_chart(frame, key, _groups(run, frame)))
    for key, frame in run.probe.items():
        alt = f"Accuracy of a language probe over the layers on {key}, by group of languages"
        yield Drawn("probe", key, alt, _PROBE + _control(frame), probe_chart(frame, key, _groups(run, frame)))


def _groups(run: RunFiles, frame: pd.DataFrame) -> dict[str, list[str]]:
    return grouped({"seen": run.seen, "pivot": run.pivot}, set(frame["language"]) - {"all"})


def _control(frame: pd.DataFrame) -> str:
    """Return how to read the random adapter, empty where there is none."""
    return _RANDOM if RANDOM in set(frame["variant"]) else ""


def _pivot(frame: pd.DataFrame) -> str:
    return language(frame["pivot"].iloc[0]).name
