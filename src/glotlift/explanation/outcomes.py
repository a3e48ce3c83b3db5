"""Which items base and tuned have right, from the prediction files of evaluation.

Enters: `predictions/<base|tuned>/<task>/<language>.parquet`, and the prompts that are looked into. Leaves a frame:

    calibration, language, id, base, tuned

One row an item and calibration: whether base and tuned have it right without calibration (`none`), and after batch
calibration (`batch`), under which a shift of the preference for a label, which flips items without telling them apart,
flips none. The labels are decided from the scores of a file, as evaluation does it, over all items of the file.

Predictions of another model, of other items under the same ids or of other prompts would make a link out of nothing, so
they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glotlift.errors import DataError
from glotlift.explanation.answers import CALIBRATIONS, Asked, right_answers
from glotlift.runs import read_parquet

OUTCOME_COLUMNS = ["calibration", "language", "id", "base", "tuned"]


def read_outcomes(
    predictions: Path, key: str, prompts: Mapping[str, Asked], model_fingerprints: Mapping[str, str]
) -> pd.DataFrame:
    """Return which of the items that are looked into base and tuned have right.

    Args:
        predictions: of a run folder; the files are `<variant>/<key>/<language>.parquet`.
        key: name of the test set in paths.
        prompts: language -> the prompts that are looked into.
        model_fingerprints: `base` and `tuned` -> see `LoadedModel.variant_fingerprint`.

    Returns:
        The frame of the module's head, of the items that have predictions of both variants.

    Raises:
        DataError: a file is missing, damaged, or of another model, other items or other prompts; or no item that is
            looked into has predictions.
    """
    parts = []
    for code, asked in prompts.items():
        right: dict[str, dict[str, pd.Series]] = {calibration: {} for calibration in CALIBRATIONS}
        for variant, fingerprint in model_fingerprints.items():
            file = predictions / variant / key / f"{code}.parquet"
            frame, about = read_parquet(file)
            _check(file, frame, about, asked, fingerprint)
            for calibration, found in _right(frame, about).items():
                right[calibration][variant] = found
        ids = pd.Index([item.id for item in asked.items], name="id")
        for calibration, of in right.items():
            rows = pd.concat(of, axis=1, join="inner")
            rows = rows.loc[ids[ids.isin(rows.index)]].rename_axis("id").reset_index()
            parts.append(rows.assign(calibration=calibration, language=code))
    whole = pd.concat(parts, ignore_index=True)
    if whole.empty:
        raise DataError(
            f"{predictions}: got predictions of none of the items of {key!r} that are looked into, expected them of "
            "the same items"
        )
    return whole.loc[:, OUTCOME_COLUMNS]


def _check(file: Path, frame: pd.DataFrame, about: Mapping[str, Any], asked: Asked, fingerprint: str) -> None:
    """Refuse predictions of anything but what is looked into; files of glotlift 0.1 say less of themselves."""
    if lacking := [name for name in ("labels", "scoring") if name not in about]:
        raise DataError(f"{file}: got no {lacking[0]} in its metadata, expected a prediction file of glotlift")
    if about.get("model_fingerprint", fingerprint) != fingerprint:
        raise DataError(
            f"{file}: got predictions of {about.get('model')} with other weights or another adapter, expected those of "
            "the model that is looked into"
        )
    if dict(about.get("label_words", asked.words)) != dict(asked.words):
        got, expected = (" ".join(words.values()) for words in (about["label_words"], asked.words))
        raise DataError(f"{file}: got predictions of the answer words {got}, expected {expected}")
    known = {row["id"]: row for row in frame.to_dict("records")}
    for item, row in zip(asked.items, asked.rows, strict=True):
        expected = {"gold": item.gold, "text": "\n".join(item.fields.values()), "n_tokens": len(row.prompt)}
        kept = known.get(item.id, {})
        if differing := [name for name, value in expected.items() if kept.get(name, value) != value]:
            what = {"gold": "right answer", "text": "text", "n_tokens": "prompt"}[differing[0]]
            raise DataError(f"{file}: got another {what} of item {item.id!r}, expected that which is looked into")


def _right(frame: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, pd.Series]:
    """Return calibration -> which items are right, by id."""
    labels, scoring = list(about["labels"]), str(about["scoring"])
    name = scoring.replace("-", "_")
    if scoring == "prefix-mass-released" and f"{name}_{labels[0]}" not in frame:
        name = "prefix_mass"  # where both count the same tokens, a file has one
    scores = frame[[f"{name}_{label}" for label in labels]].to_numpy(float)
    if scoring.startswith("prefix-mass"):
        scores = np.log(np.maximum(scores, np.finfo(float).tiny))
    gold = np.array([labels.index(label) for label in frame["gold"]])
    return {each: pd.Series(right_answers(scores, gold, each), frame["id"]) for each in CALIBRATIONS}
