"""The prediction files of a test set, read.

Enters: `predictions/<variant>/<test set>/<language>.parquet`. Leaves: `Predictions`: frames by variant and language,
what their metadata says, and base and tuned paired item by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from glotlift.evaluation.metrics import decide, label_log_probabilities
from glotlift.evaluation.pairing import Paired, correctness
from glotlift.runs import read_parquet


@dataclass(frozen=True)
class Predictions:
    """The prediction files of one test set.

    Attributes:
        key: what the test set is called.
        frames: variant -> language -> frame.
        metadata: of any one of the files: `labels`, `answers`, `scoring` and more.
        num_fewshot: language -> demonstrations of a prompt, None where a file does not say.
        content_free: variant -> language -> scores of content-free inputs, see `metrics.decide`.
        label_words: language -> label id -> the answer word that was scored.
        names: of base and tuned in messages.
    """

    key: str
    frames: Mapping[str, Mapping[str, pd.DataFrame]]
    metadata: Mapping[str, Any]
    num_fewshot: Mapping[str, int | None] = field(default_factory=dict)
    content_free: Mapping[str, Mapping[str, Sequence[Mapping[str, Sequence[float]]]]] = field(default_factory=dict)
    label_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: tuple[str, str] = ("base", "tuned")

    @property
    def languages(self) -> list[str]:
        """Codes."""
        return list(next(iter(self.frames.values())))

    def ids(self, code: str) -> set[str]:
        """Return the ids of a language's items."""
        return set(next(iter(self.frames.values()))[code]["id"])

    def free(self, variant: str, code: str) -> Sequence[Mapping[str, Sequence[float]]]:
        """Return the scores of the content-free inputs of a file, empty where none were run."""
        return self.content_free.get(variant, {}).get(code) or ()

    def decided(self, variant: str, code: str, calibration: str) -> pd.DataFrame:
        """Return a frame with `predicted` as a calibration decides."""
        frame, about = self.frames[variant][code], self.metadata
        chosen, _ = decide(frame, about["labels"], about["scoring"], calibration, self.free(variant, code))
        return frame.assign(predicted=chosen)

    def paired(self, calibration: str) -> dict[str, pd.DataFrame]:
        """Return language -> which items base (`a`) and tuned (`b`) have right under a calibration."""
        return {
            code: correctness(*(self.decided(variant, code, calibration) for variant in ("base", "tuned")),
                              where=f"{self.key}, {code}", names=self.names)
            for code in self.languages
        }  # fmt: skip

    def paired_scores(self) -> dict[str, Paired]:
        """Return language -> log-probabilities of base and tuned, item by item."""
        labels, scoring = self.metadata["labels"], self.metadata["scoring"]
        found = {}
        for code in self.languages:
            base, tuned = (self.frames[variant][code].set_index("id") for variant in ("base", "tuned"))
            both = [label_log_probabilities(each, labels, scoring) for each in (base, tuned.loc[base.index])]
            found[code] = Paired(list(base.index), base["gold"].to_numpy(), labels, *both)
        return found

    def right(self, variant: str) -> dict[str, pd.Series]:
        """Return language -> whether each item is right, indexed by id."""
        return {
            code: pd.Series((frame["predicted"] == frame["gold"]).to_numpy(), index=frame["id"])
            for code, frame in self.frames[variant].items()
        }


def read_predictions(folder: Path, key: str, variants: Sequence[str], languages: Sequence[str]) -> Predictions:
    """Return the prediction files of a test set from `<folder>/predictions`."""
    frames: dict[str, dict[str, pd.DataFrame]] = {}
    metadata: dict[str, Any] = {}
    num_fewshot: dict[str, int | None] = {}
    content_free: dict[str, dict[str, Any]] = {}
    label_words: dict[str, dict[str, str]] = {}
    for variant in variants:
        frames[variant], content_free[variant] = {}, {}
        for code in languages:
            path = folder / "predictions" / variant / key / f"{code}.parquet"
            frames[variant][code], metadata = read_parquet(path)
            num_fewshot[code] = metadata.get("num_fewshot")
            content_free[variant][code] = metadata.get("content_free")
            label_words[code] = metadata["label_words"]
    return Predictions(key, frames, metadata, num_fewshot, content_free, label_words)
