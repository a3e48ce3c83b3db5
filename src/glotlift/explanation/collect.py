"""The one pass that feeds lens and geometry.

Enters: a loaded model and the prompts of a task in several languages. Leaves: `lens/` and `geometry/` of the run
folder, see `glotlift.explanation.lens` and `glotlift.explanation.geometry`. A language's files carry the fingerprint
of all their numbers depend on and are written as soon as they are computed, so a run that was killed goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from glotlift.errors import ModelError, RunError
from glotlift.explanation.geometry import N_PERMUTATIONS, PooledStates, write_geometry, write_states
from glotlift.explanation.lens import TokenSets, coverage_metadata, lens_frame, read_layers, token_sets
from glotlift.models.forward import run
from glotlift.models.load import LoadedModel, digest
from glotlift.models.packing import TOKEN_BUDGET, Row
from glotlift.runs import parquet_metadata, write_parquet
from glotlift.tasks.task import AnswerSet, Item


class Questions(Protocol):
    """Items of a task in one language, as tokens; `glotlift.evaluation.prompts.Prompts` is one."""

    @property
    def items(self) -> Sequence[Item]:
        """The items, with the same ids in every language."""
        ...

    @property
    def rows(self) -> Sequence[Row]:
        """Their prompts, in the same order; `span` marks the tokens of the question."""
        ...


@dataclass(frozen=True)
class Seen:
    """What the taps gave for a variant and a language, in the order of the items.

    Attributes:
        measures: of the lens, in the order of its `MEASURES`. *Shape:* (items, layers + 1, 5).
        top: most likely tokens. *Shape:* (items, layers + 1).
        pooled: mean states over the question. *Shape:* (layers + 1, items, hidden).
    """

    measures: np.ndarray
    top: np.ndarray
    pooled: torch.Tensor


def explain_languages(
    loaded: LoadedModel,
    prompts: Mapping[str, Questions],
    folder: Path,
    *,
    task_key: str,
    english_words: AnswerSet,
    own_words: Mapping[str, AnswerSet],
    seed: int = 0,
    token_budget: int = TOKEN_BUDGET,
    n_permutations: int = N_PERMUTATIONS,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Write lens and geometry of a task, for every variant of the model and every language.

    Args:
        loaded: the model.
        prompts: language -> its questions, parallel over languages by item id; at least one language.
        folder: the run folder.
        task_key: name of the task in paths.
        english_words: label id -> English answer word.
        own_words: language -> label id -> answer word of that language.
        seed: of the permutations.
        token_budget: tokens of a batch.
        n_permutations: draws of the null, see `glotlift.explanation.geometry`.
        progress: called with the number of items done; in all these are variants x items of all languages.

    Raises:
        ModelError: a prompt does not fit the model's window, or the model gives values that are not finite.
        RunError: the lens cannot read this model: its last layer is not the model's own distribution.
        OutputError: the folder cannot be written.
    """
    advance = progress or (lambda _n: None)
    target = folder / "geometry" / task_key
    states: dict[str, dict[str, PooledStates]] = {variant: {} for variant in loaded.variants}
    for variant, (language, questions) in product(loaded.variants, prompts.items()):
        sets = token_sets(loaded.tokenizer, english_words, own_words[language])
        lens_file = folder / "lens" / variant / task_key / f"{language}.parquet"
        states_file = target / "states" / variant / f"{language}.safetensors"
        fingerprint = _fingerprint(loaded, variant, questions, sets)
        states[variant][language] = PooledStates(states_file)
        if _is_current(lens_file, states_file, fingerprint):
            advance(len(questions.rows))
            continue
        seen = _run(loaded, variant, questions, sets, f"task {task_key!r}, {language}", token_budget, advance)
        about = {"fingerprint": fingerprint, "task": task_key, "language": language, "variant": variant}
        about |= {"english_words": english_words, "own_words": own_words[language], "model": loaded.name}
        about |= {"coverage": coverage_metadata(loaded.tokenizer, sets)}
        _write(seen, questions, loaded, lens_file, states_file, about)
    write_geometry(target, states, seed=seed, n_permutations=n_permutations)


def _fingerprint(loaded: LoadedModel, variant: str, questions: Questions, sets: TokenSets) -> str:
    rows = [(row.prompt, row.span) for row in questions.rows]
    ids = [item.id for item in questions.items]
    return digest(loaded.variant_fingerprint(variant), rows, ids, sets.by_name)


def _is_current(lens_file: Path, states_file: Path, fingerprint: str) -> bool:
    metadata = parquet_metadata(lens_file), PooledStates(states_file).metadata
    return all(found.get("fingerprint") == fingerprint for found in metadata)


def _run(
    loaded: LoadedModel,
    variant: str,
    questions: Questions,
    sets: TokenSets,
    where: str,
    token_budget: int,
    advance: Callable[[int], Any],
) -> Seen:
    """Run a language once, with both taps; `where` names it in errors."""
    rows = [replace(row, trie=None, root=0) for row in questions.rows]  # the answer words are not scored here
    indexes, measures, top, pooled = [], [], [], []
    with loaded.as_variant(variant) as model:
        try:
            for batch in run(model, rows, token_budget=token_budget, last_states=True, pooled_states=True):
                assert batch.last_states is not None and batch.pooled_states is not None
                values, tokens = read_layers(model, batch.last_states, batch.logits[batch.prompt_end], sets)
                indexes += batch.rows
                measures.append(values)
                top.append(tokens)
                pooled.append(batch.pooled_states)
                advance(len(batch.rows))
        except (ModelError, RunError) as fault:
            raise type(fault)(f"{where}: {fault}") from None
    order = np.argsort(indexes)
    in_order = torch.cat(pooled)[torch.from_numpy(order)]
    return Seen(np.concatenate(measures)[order], np.concatenate(top)[order], in_order.transpose(0, 1))


def _write(
    seen: Seen,
    questions: Questions,
    loaded: LoadedModel,
    lens_file: Path,
    states_file: Path,
    about: Mapping[str, Any],
) -> None:
    ids = [item.id for item in questions.items]
    lengths = [row.span[1] - row.span[0] for row in questions.rows]
    metadata = {"fingerprint": about["fingerprint"], "ids": ids, "lengths": lengths}
    write_states(states_file, seen.pooled, metadata)
    write_parquet(lens_file, lens_frame(ids, seen.measures, seen.top, loaded.tokenizer), about)
