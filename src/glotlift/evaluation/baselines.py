"""Baselines: what a model does without tuning where it is asked in other ways, beside the same items.

Enters: test sets, and what the base model says of them. Leaves: predictions of every baseline, in
`predictions/<baseline>/`, and what each changes against the base model asked directly.

    english-demos   the English prompt, demonstrations and all, around the question in its own language
    translated      the English prompt around what a translation engine made of the item (`translated` of a test set)
    oracle          the same around the item's own English version: what a perfect translation would give
    ensemble        the sum of direct and translated (or oracle) scores, each without its preference for a label

Calibration of the direct answers is in every table already. All are paired with the direct answers item by item, as a
tuned model is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from glotlift.errors import DataError, LanguageError
from glotlift.evaluation.metrics import label_log_probabilities
from glotlift.evaluation.predictions import Predictions
from glotlift.evaluation.test_sets import TestSet
from glotlift.measures import batch_calibrated
from glotlift.tasks.task import Item

ENGLISH = "en"


@dataclass(frozen=True)
class Baseline:
    """A way to ask a test set.

    Attributes:
        name: see the module's head.
        items: language -> items that the English prompt is put around.
    """

    name: str
    items: dict[str, list[Item]]


def baselines_of(test_set: TestSet, asked: Sequence[str]) -> list[Baseline]:
    """Return the baselines of a test set that need the model, beside the languages' own prompts.

    Args:
        test_set: the test set; where it has translations, `translated` is among them.
        asked: `english-demos` and `oracle`, both, or none.

    Raises:
        LanguageError: the task has no English prompts.
        DataError: the oracle is asked for and an item has no English version.
    """
    others = {code: items for code, items in test_set.items.items() if code != ENGLISH}
    found = []
    if (asked or test_set.translated) and ENGLISH not in test_set.task.languages:
        raise LanguageError(f"task {test_set.task.name!r} has no prompts in English, expected them for baselines")
    if "english-demos" in asked:
        found.append(Baseline("english-demos", others))
    if test_set.translated:
        found.append(Baseline("translated", _in_english(others, test_set.translated, "translation")))
    if "oracle" in asked:
        english = {item.id: item.fields for item in test_set.items.get(ENGLISH, ())}
        found.append(Baseline("oracle", _in_english(others, dict.fromkeys(others, english), "English version")))
    return found


def _in_english(
    items: Mapping[str, Sequence[Item]], texts: Mapping[str, Mapping[str, Mapping[str, str]]], what: str
) -> dict[str, list[Item]]:
    found = {}
    for code, own in items.items():
        if missing := [item.id for item in own if item.id not in texts.get(code, {})]:
            raise DataError(f"{code}: got no {what} of item {missing[0]!r}, expected one of every item")
        found[code] = [replace(item, fields=texts[code][item.id]) for item in own]
    return found


def ensemble(direct: Predictions, other: Predictions) -> Predictions:
    """Return what direct answers and those of a baseline say together.

    Args:
        direct: predictions of `base`.
        other: of the baseline, in some of the languages.
    """
    labels, scoring = direct.metadata["labels"], direct.metadata["scoring"]
    frames = {}
    for code in other.languages:
        one, two = (next(iter(each.frames.values()))[code].set_index("id") for each in (direct, other))
        parts = [batch_calibrated(label_log_probabilities(each, labels, scoring)) for each in (one, two.loc[one.index])]
        both = pd.DataFrame(sum(parts), columns=[f"sequence_{label}" for label in labels], index=one.index)
        chosen = [labels[column] for column in both.to_numpy().argmax(1)]
        frames[code] = one[["gold"]].assign(predicted=chosen).join(both).reset_index()
    return replace(other, frames={"ensemble": frames}, metadata={**direct.metadata, "scoring": "sequence"})


def beside_base(direct: Predictions, other: Predictions) -> Predictions:
    """Return direct answers and a baseline's as a base and a tuned model's, to compare them as those are compared."""
    (frames,) = other.frames.values()
    sides = {"base": (direct, direct.frames["base"]), "tuned": (other, frames)}
    named = {
        variant: {code: _scored(found[code], side.metadata) for code in frames}
        for variant, (side, found) in sides.items()
    }
    return Predictions(direct.key, named, {**direct.metadata, "scoring": "sequence"})


def _scored(frame: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """Return a frame with log-probabilities over the labels under one name, whatever they were scored by, and without
    the texts, which differ between the ways to ask."""
    scores = label_log_probabilities(frame, about["labels"], about["scoring"])
    return frame[["id", "gold", "predicted"]].assign(
        **{f"sequence_{label}": scores[:, column] for column, label in enumerate(about["labels"])}
    )
