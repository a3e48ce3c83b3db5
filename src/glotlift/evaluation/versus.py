"""Any two evaluations of the same items, compared as base and tuned are.

Enters: two prediction folders. Leaves: what scores.json holds of a test set, with A in the place of the base and B in
that of the tuned model. Both are decided in one way: other scorings or calibrations are refused, or decided anew, since
a prediction file holds all scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from glotlift.errors import DataError
from glotlift.evaluation.metrics import decide, stored_name
from glotlift.evaluation.predictions import Predictions
from glotlift.languages import in_order
from glotlift.runs import read_parquet

NAMES = {"base": "A", "tuned": "B"}
"""What the two evaluations are called where base and tuned stand in scores.json."""

_HOW = ("model", "answers", "num_fewshot", "demo_seed", "closing_quote", "apply_chat_template")
"""What may differ between two evaluations of the same items, and is told."""


@dataclass(frozen=True)
class Versus:
    """Two evaluations of a test set.

    Attributes:
        predictions: A under `base`, B under `tuned`.
        differences: how they were made in different ways, a phrase each: `model demo / tuned`.
    """

    predictions: Predictions
    differences: tuple[str, ...]


def read_versus(
    key: str,
    a: Mapping[str, Path],
    b: Mapping[str, Path],
    *,
    scoring: str | None = None,
    calibration: str | None = None,
) -> Versus:
    """Return two evaluations of the same items, in the languages that both have.

    Args:
        key: what the test set is called.
        a: language -> prediction file.
        b: likewise.
        scoring: by which both are decided; None for that of the files.
        calibration: likewise.

    Raises:
        DataError: there is no common language; a file is damaged or holds no predictions; the labels differ, or the
            scorings or calibrations where none is asked for.
    """
    common = in_order(code for code in a if code in b)
    if not common:
        raise DataError(f"{key}: A and B have no language in common: {' '.join(a)} and {' '.join(b)}")
    files = {"base": {code: a[code] for code in common}, "tuned": {code: b[code] for code in common}}
    read = {variant: {code: _read(path) for code, path in paths.items()} for variant, paths in files.items()}
    about = [each[common[0]][1] for each in read.values()]
    where = f"{a[common[0]].parent} and {b[common[0]].parent}"
    if about[0]["labels"] != about[1]["labels"]:
        raise DataError(f"{where}: got the labels {about[0]['labels']} and {about[1]['labels']}, expected one task")
    chosen = {
        name: _one(where, name, [each[1].get(name) for side in read.values() for each in side.values()], asked)
        for name, asked in (("scoring", scoring), ("calibration", calibration))
    }
    frames = {
        variant: {code: _decided(*each, **chosen, where=files[variant][code]) for code, each in side.items()}
        for variant, side in read.items()
    }
    predictions = Predictions(
        key,
        frames,
        {**about[1], "task": key, **chosen},
        {code: each[1].get("num_fewshot") for code, each in read["tuned"].items()},
        {
            variant: {code: each[1].get("content_free") or [] for code, each in side.items()}
            for variant, side in read.items()
        },
        {code: each[1]["label_words"] for code, each in read["tuned"].items()},
        (NAMES["base"], NAMES["tuned"]),
    )
    told = [(name, *(str(each.get(name)) for each in about)) for name in _HOW]
    return Versus(predictions, tuple(f"{name} {one} / {other}" for name, one, other in told if one != other))


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    frame, about = read_parquet(path)
    if lacking := [name for name in ("labels", "scoring", "label_words") if name not in about]:
        raise DataError(f"{path}: got no {lacking[0]} in its metadata, expected a prediction file of glotlift")
    return frame, about


def _one(where: str, name: str, found: list[Any], asked: str | None) -> str:
    if asked is not None:
        return asked
    if len(several := list(dict.fromkeys(found))) > 1:
        got = f"got predictions by {name} {' and '.join(map(str, several))}"
        raise DataError(f"{where}: {got}, expected one; say by which both are decided with --{name}")
    return found[0]


def _decided(
    frame: pd.DataFrame, about: Mapping[str, Any], scoring: str, calibration: str, where: Path
) -> pd.DataFrame:
    """Return the frame with `predicted` as its scores decide."""
    if scoring == "prefix-mass-released" and about.get("texts") is None:
        got = "got a file of glotlift 0.1, which does not tell whether prefix-mass-released counts other tokens"
        raise DataError(f"{where}: {got}, expected one of a later version: evaluate again")
    columns = [stored_name(scoring, frame.columns, f"_{label}") for label in about["labels"]]
    if missing := [column for column in columns if column not in frame]:
        raise DataError(f"{where}: got no scores {missing[0]!r}, expected those of scoring {scoring}")
    if calibration == "contextual" and not about.get("content_free"):
        raise DataError(f"{where}: got no scores of content-free inputs, expected them for contextual calibration")
    predicted, tied = decide(frame, about["labels"], scoring, calibration, about.get("content_free") or ())
    return frame.assign(predicted=predicted, tied=tied)
