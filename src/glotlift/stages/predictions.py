"""`read_predictions`: what a run or an evaluation predicted, as one frame. No stage of a run.

Reads: `<language>.parquet` prediction files. Writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glotlift.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def read_predictions(folder: str | Path) -> pd.DataFrame:
    """Return the predictions of a run or an evaluation, a row an item, language and variant.

    Args:
        folder: a run or evaluation folder, its `predictions/`, a variant in that, or a test set in a variant.

    Returns:
        `test_set`, `id`, `text` (the item's fields, joined by line breaks), `language` and `variant` (`base` or
        `tuned`; empty where the folder does not say), `gold` and `predicted` (label ids), `scores` (a mapping of label
        id -> what decided, before calibration: the natural log of the word's probability, or under `prefix-mass` the
        probability mass).

    Raises:
        DataError: there are no prediction files, or one is damaged or of another tool.
    """
    import pandas as pd

    from glotlift.evaluation.metrics import stored_name
    from glotlift.runs import read_parquet

    root = Path(folder)
    files = (
        [*(root / "predictions").rglob("*.parquet")] if (root / "predictions").is_dir() else [*root.rglob("*.parquet")]
    )
    if not files:
        expected = "expected a run or evaluation folder, or one of its prediction folders"
        raise DataError(f"{root}: got no prediction files, {expected}")
    frames = []
    for file in sorted(files):
        frame, about = read_parquet(file)
        if lacking := [name for name in ("labels", "scoring", "language", "task") if name not in about]:
            raise DataError(f"{file}: got no {lacking[0]} in its metadata, expected a prediction file of glotlift")
        labels = about["labels"]
        scores = frame[[stored_name(about["scoring"], frame.columns, f"_{label}") for label in labels]].to_numpy()
        frames.append(
            pd.DataFrame(
                {
                    "test_set": about["task"],
                    "id": frame["id"],
                    "text": frame.get("text", ""),  # not kept by glotlift 0.1
                    "language": about["language"],
                    "variant": about.get("variant", ""),
                    "gold": frame["gold"],
                    "predicted": frame["predicted"],
                    "scores": [dict(zip(labels, row, strict=True)) for row in scores.tolist()],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
