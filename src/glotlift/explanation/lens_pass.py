"""The lens of one variant and language: what it asks of the pass, what it keeps of every batch, which files it writes.

Enters: batches of the pass. Leaves: `lens/`, and on request `tuned_lens/`, `paper_lens/` and `components/` of the run
folder, a file a variant, task and language each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from glotlift.errors import RunError
from glotlift.explanation.components import components_frame, read_components
from glotlift.explanation.lens import MEASURES, Readings, check_last_layer, joined, lens_frame, read_layers
from glotlift.explanation.paper_lens import paper_frame, paper_sets
from glotlift.explanation.sequences import word_columns, word_rows, word_scores, word_tokens
from glotlift.explanation.subject import Questions, Subject
from glotlift.explanation.token_sets import TokenSets, coverage_metadata
from glotlift.explanation.tuned_lens import TunedLens
from glotlift.models.forward import Batch, run
from glotlift.models.load import digest
from glotlift.models.packing import Row
from glotlift.models.watching import Taps
from glotlift.runs import parquet_metadata, write_parquet

log = logging.getLogger("glotlift")


class LensPass:
    """The lens of a variant and language.

    Args:
        subject: what is looked into.
        variant: `base` or `tuned`.
        language: of the prompts.
        questions: the prompts.
        sets: token sets of the language.
        translators: a tuned lens that reads beside the plain one; None for none.
    """

    def __init__(
        self,
        subject: Subject,
        variant: str,
        language: str,
        questions: Questions,
        sets: TokenSets,
        translators: TunedLens | None,
    ) -> None:
        self._subject, self._variant, self._language = subject, variant, language
        self._questions, self._sets, self._translators = questions, sets, translators
        self._own_words = subject.own_words[language]
        self._words = word_columns(subject.english_words, self._own_words) if subject.lens.sequences else {}
        self._paper = (
            paper_sets(subject.loaded.tokenizer, subject.english_words, self._own_words) if subject.lens.paper else None
        )
        self._indexes: list[int] = []
        self._plain: list[Readings] = []
        self._tuned: list[Readings] = []
        self._of_words: list[np.ndarray] = []
        self._components: Readings | None = None

    @staticmethod
    def bare(row: Row) -> Row:
        """Return a row without answer words."""
        return replace(row, trie=None, root=0)

    @cached_property
    def rows(self) -> list[Row]:
        """What is run for the items."""
        if not self._words:
            return [self.bare(row) for row in self._questions.rows]
        return word_rows(self._subject.loaded.tokenizer, self._questions, list(self._words.values()))

    @property
    def _further(self) -> list[int]:
        return [*(word_tokens(self.rows) if self._words else ()), *(self._paper.tokens if self._paper else ())]

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens whose logits the pass is asked for: those of the sets, by which the last layer is checked."""
        return list(self._sets.tokens)

    @cached_property
    def _files(self) -> dict[str, tuple[Path, str]]:
        """Kind of file -> path, and the fingerprint of all that its numbers depend on."""
        subject, loaded = self._subject, self._subject.loaded
        asked = [(row.prompt, item.id) for row, item in zip(self._questions.rows, self._questions.items, strict=True)]
        by_language = [self._language] if loaded.steering is not None and self._variant == "tuned" else []
        common = [loaded.variant_fingerprint(self._variant), asked, self._sets.by_name, *by_language]
        depends: dict[str, Any] = {"lens": self._words}
        if self._translators is not None:
            depends["tuned_lens"] = [self._words, self._translators.fingerprint]
        if self._paper is not None:
            depends["paper_lens"] = [subject.english_words, self._own_words, [i.gold for i in self._questions.items]]
        if subject.lens.components:
            depends["components"] = None
        place = f"{self._variant}/{subject.task_key}/{self._language}.parquet"
        return {kind: (subject.folder / kind / place, digest(kind, common, of)) for kind, of in depends.items()}

    @property
    def is_written(self) -> bool:
        """Whether all its files are there, for the same numbers."""
        return all(parquet_metadata(path).get("fingerprint") == print_ for path, print_ in self._files.values())

    @property
    def taps(self) -> Taps:
        """Taps that the pass needs; where whole words are read, also of the states behind each of their tokens."""
        return {"asked_states": True} if self._words else {"last_states": True}

    def see(self, model: nn.Module, batch: Batch, tokens: Sequence[int]) -> None:
        """Keep what the lens sees of a batch.

        Args:
            model: the model.
            batch: of a pass with `taps`.
            tokens: columns of its logits. The last layer is checked by those of them that this lens reads.

        Raises:
            RunError: the last layer is not the model's own distribution, or nothing tells whether it is.
            ModelError: a number is not finite.
        """
        states = batch.asked_states if self._words else batch.last_states
        assert states is not None and batch.normalizer is not None
        read = list(range(len(states))) if self._words else batch.prompt_end  # positions in the logits
        ends = batch.prompt_end if self._words else list(range(len(batch.rows)))
        found = read_layers(model, states, self._sets, further=self._further)
        column = {token: place for place, token in enumerate(tokens)}
        checked = [(place, column[token]) for place, token in enumerate(self.tokens) if token in column]
        if self.tokens and not checked:
            raise RunError("got a pass that gives no logit of a token of the lens, expected one to check the lens by")
        of_lens, of_pass = (list(places) for places in zip(*checked, strict=True)) if checked else ([], [])
        own = (batch.logits[read][:, of_pass] - batch.normalizer[read, None]).cpu().numpy()
        check_last_layer(model, found.log_probabilities[:, -1, of_lens], own)
        self._indexes += batch.rows
        self._plain.append(found.rows(ends))
        if self._translators is not None:
            translated = self._translators.translate(states[ends])
            self._tuned.append(read_layers(model, translated, self._sets))
        if self._words:
            n_sets, of_words = len(self.tokens), word_tokens(self.rows)
            columns = found.log_probabilities[..., n_sets : n_sets + len(of_words)]
            for index, nodes in zip(batch.rows, batch.nodes, strict=True):
                self._of_words.append(word_scores(columns, of_words, self.rows[index], nodes, len(self._words)))

    def see_components(self, model: nn.Module) -> None:
        """Run the items once more for what the blocks' parts add, where it is asked for."""
        if not self._subject.lens.components:
            return
        rows = [self.bare(row) for row in self._questions.rows]
        indexes, readings = [], []
        for batch in run(
            model, rows, token_budget=self._subject.token_budget, tokens=(), last_states=True, between=True
        ):
            assert batch.last_states is not None
            readings.append(read_components(model, batch.last_states, self._sets))
            indexes += batch.rows
        self._components = joined(readings).rows(np.argsort(indexes))

    def write(self) -> None:
        """Write the files; nothing where they are there already."""
        if not self._plain:
            return
        order, tokenizer = np.argsort(self._indexes), self._subject.loaded.tokenizer
        ids = [item.id for item in self._questions.items]
        plain = joined(self._plain).rows(order)
        of_words = np.stack(self._of_words)[order] if self._words else np.empty(0)
        sequences = {name: of_words[:, place] for place, name in enumerate(self._words)}
        frames = {"lens": lens_frame(ids, plain, tokenizer, sequences)}
        about = {"lens": {"sequences": self._words}}
        if self._translators is not None:
            frames["tuned_lens"] = lens_frame(ids, joined(self._tuned).rows(order), tokenizer)
        if self._components is not None:
            frames["components"] = components_frame(ids, self._components, tokenizer)
        if self._paper is not None:
            frames["paper_lens"], about["paper_lens"] = self._of_paper(ids, plain)
        for kind, frame in frames.items():
            self._write(kind, frame, about.get(kind, {}))

    def _of_paper(self, ids: list[str], plain: Readings) -> tuple[pd.DataFrame, dict[str, Any]]:
        assert self._paper is not None
        golds = [item.gold for item in self._questions.items]
        of_paper = plain.log_probabilities[..., plain.log_probabilities.shape[-1] - len(self._paper.tokens) :]
        entropy = plain.measures[..., MEASURES.index("entropy_bits")]
        frame = paper_frame(ids, golds, of_paper, self._paper.tokens, entropy, self._paper, self._language)
        n_kept = len(set(frame["id"]))
        if n_kept < len(ids):
            said = "paper lens, %s: %d of %d items kept; the original leaves out items whose word sets share a token"
            log.info(said, self._language, n_kept, len(ids))
        return frame, {"n_items": len(ids), "n_kept": n_kept}

    def _write(self, kind: str, frame: pd.DataFrame, further: Mapping[str, Any]) -> None:
        subject = self._subject
        path, fingerprint = self._files[kind]
        about = {"fingerprint": fingerprint, "task": subject.task_key, "language": self._language}
        about |= {"variant": self._variant, "english_words": subject.english_words, "own_words": self._own_words}
        about |= {"model": subject.loaded.name, "coverage": coverage_metadata(subject.loaded.tokenizer, self._sets)}
        write_parquet(path, frame, about | dict(further))
