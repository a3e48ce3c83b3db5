"""Prediction files: `predictions/<variant>/<task>/<language>.parquet`.

Enters: what a pass says of items, batch by batch (see `glotlift.evaluation.predict`). Leaves: a file with their scores,
beside an item's `id`, `gold` and `predicted` its `text` and `text_digest`, and those of the content-free inputs in its
metadata. It carries the fingerprint of all its numbers depend on: weights, adapter, dtype, prompt tokens, label tokens.
It is used again only when that is the same; until it is whole, batches are kept in a journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from glotlift.evaluation.journal import Journal, LabelScores
from glotlift.evaluation.metrics import decide
from glotlift.evaluation.pairing import text_digest, text_of
from glotlift.evaluation.predict import Advance, advance, to_frame
from glotlift.evaluation.prompts import Prompts
from glotlift.models.fingerprints import digest
from glotlift.runs import parquet_metadata, read_parquet, write_parquet


def prediction_fingerprint(model_fingerprint: str, prompts: Prompts, *, prefix_cache: bool = True) -> str:
    """Return the digest of all that the scores of a prediction file depend on.

    Args:
        model_fingerprint: of the variant that scores, see `LoadedModel.variant_fingerprint`.
        prompts: what is scored.
        prefix_cache: see `predict`.
    """
    rows = [(row.prompt, row.root, row.trie.steps if row.trie else None) for row in prompts.rows + prompts.content_free]
    asked = rows or (prompts.texts, prompts.endings)
    gold = [(item.id, item.gold) for item in prompts.items]
    released = [prompts.released_sets] if prompts.released_sets else []
    return digest(model_fingerprint, asked, gold, prompts.labels, prompts.prefix_sets, prefix_cache, *released)


class PredictionFile:
    """A prediction file that grows batch by batch.

    Every batch goes to a journal first, so a run that is killed goes on behind its last one. With several processes
    each does its share of the batches, and the first one writes the file when all have.

    Args:
        path: the file.
        prompts: what is scored.
        fingerprint: see `prediction_fingerprint`; a file or journal with another one is not used.
        scoring: see `predict`.
        calibration: see `predict`.
        metadata: what else is kept with the file.
        process: number of this process.
    """

    def __init__(
        self,
        path: Path,
        prompts: Prompts,
        fingerprint: str,
        *,
        scoring: str,
        calibration: str,
        metadata: Mapping[str, Any],
        process: int = 0,
    ) -> None:
        self._path, self._prompts, self._scoring, self._calibration = path, prompts, scoring, calibration
        self._journal = Journal(path, fingerprint, process)
        self._about = {
            **metadata,
            "fingerprint": fingerprint,
            "task_name": prompts.task,
            "version": prompts.version,
            "language": prompts.language,
            "scoring": scoring,
            "calibration": calibration,
            "labels": prompts.labels,
            "label_words": dict(prompts.words),
            "num_fewshot": prompts.num_fewshot,
            "texts": digest([text_digest(item) for item in prompts.items]),  # none in files of glotlift 0.1
        }
        self._kept = parquet_metadata(path)

    @property
    def is_scored(self) -> bool:
        """Whether the file has all scores, however it decides between them."""
        return self._kept.get("fingerprint") == self._about["fingerprint"]

    def score(
        self,
        batches: Callable[..., Iterator[dict[int, LabelScores]]],
        progress: Advance | None = None,
        *,
        again: int = 0,
    ) -> None:
        """Compute the scores that are missing, or this process's share of them, into the journal.

        Args:
            batches: called with `done`, the scores that are known already, yields the others, see `score_batches`.
            progress: called with the number of items done.
            again: scores of so many first rows are computed again while the file is not whole, since somebody else has
                to see them.
        """
        if self.is_scored:
            advance(progress, range(len(self._prompts.items)), self._prompts)
            return
        done = {index: each for index, each in self._journal.read().items() if index >= again}
        advance(progress, done, self._prompts)
        for found in batches(done=done):
            self._journal.append(found)
            advance(progress, found.keys() - done.keys(), self._prompts)

    def finish(self) -> None:
        """Write the file from the journals of all processes; or decide anew where its scores were kept."""
        if not self.is_scored:
            frame, free = to_frame(self._prompts, self._journal.read(), self._scoring, self._calibration)
            self._write(frame, free)
            self._journal.remove()
        elif {key: self._kept.get(key) for key in self._about} != self._about:
            frame, kept = read_parquet(self._path)
            free = kept["content_free"]
            decided = decide(frame, self._prompts.labels, self._scoring, self._calibration, free)
            frame["predicted"], frame["tied"] = decided
            self._write(frame, free)

    def _write(self, frame: pd.DataFrame, content_free: Any) -> None:
        items = self._prompts.items
        frame["text"], frame["text_digest"] = [text_of(item) for item in items], [text_digest(item) for item in items]
        write_parquet(self._path, frame, {**self._about, "content_free": content_free})


def read_scores(path: Path, prompts: Prompts, fingerprint: str) -> dict[int, LabelScores] | None:
    """Return all scores of a prediction file as `score_batches` numbers them; None if it is not there or of others.

    Args:
        path: the file.
        prompts: what was scored.
        fingerprint: see `prediction_fingerprint`.

    Raises:
        DataError: the file is damaged.
    """
    if parquet_metadata(path).get("fingerprint") != fingerprint:
        return None
    frame, about = read_parquet(path)
    columns = {name: [f"{name}_{label}" for label in prompts.labels] for name in LabelScores.__dataclass_fields__}
    found = {name: frame[each].to_numpy().tolist() for name, each in columns.items() if set(each) <= set(frame)}
    rows = [{name: tuple(values[row]) for name, values in found.items()} for row in range(len(frame))]
    rows += [{name: tuple(values) for name, values in each.items()} for each in about["content_free"]]
    return {index: LabelScores(**{"prefix_mass": (), **row}) for index, row in enumerate(rows)}
