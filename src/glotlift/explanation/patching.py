"""Activation patching: what an item's answer becomes when the model holds its English state at some layer.

Enters: a loaded model and the prompts of a task in English and in other languages, parallel by item id. Leaves: one row
an item, layer, site and source (`patch_language`):

    variant        `base` or `tuned`
    language       code of the prompt that is patched
    site           what is patched: `last` or `question`
    source         whose English state it gets: `same`, its own item's, or `other`, another item's (the control)
    source_id      id of that item
    layer          behind which block, from 1; 0 is the embedding output
    id, gold       of the item
    sequence_<label>    natural log of the probability of the label word with the patch
    unpatched_<label>   the same without it

`last`: the state of the token that the answer is chosen from (the last prompt token; where answer words take the end of
the prompt into a token of their own, the one before it) is replaced by that of the English prompt. `question`: the mean
state over the question's tokens becomes that of the English question. Questions have as many tokens as their language
needs, so each of them is moved by the difference of the two means. The span is that of the prompts but without the
token of `last`, so that the two sites have no token in common; on the last layer it reaches no answer and is left out.

The answer words scored are those of the prompts. A state that holds the answer and its language, as late ones do,
speaks for the English words: asked for words of the prompt's own language, it repairs less than it knows.

Where a language has wrong answers that its own English state repairs and another item's does not, the model knows
the answer and loses it before that layer: there is headroom before any tuning. What both sources repair alike is no
knowledge of the item, but a preference for a label or the form of an English prompt.

All layers and sources of `last` run in one pass: behind the tokens of an item, which run once, its last token and
answer words stand once for every patch, and none sees another. A pass of `question` runs the blocks behind its layer
only. Source: activation patching, arXiv 2202.05262; across
languages, arXiv 2411.08745.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from glotlift.errors import DataError, ModelError
from glotlift.explanation.answers import Asked
from glotlift.models.forward import run
from glotlift.models.label_scores import label_scores, label_tokens, word_scores
from glotlift.models.labels import LabelTrie
from glotlift.models.load import LoadedModel
from glotlift.models.packing import TOKEN_BUDGET, Row
from glotlift.models.patch import Patch
from glotlift.models.recording import Recording, recordable

SITES = ("last", "question")

SOURCES = ("same", "other")

Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Held:
    """What a variant says of items in a language, and the states in which it holds them.

    Attributes:
        ids: of the items.
        scores: log-probabilities of the label words. *Shape:* (items, labels).
        last: states of the token that the answer is chosen from. *Shape:* (items, layers + 1, hidden).
        question: means over the question's tokens. *Shape:* as `last`.
    """

    ids: Sequence[str]
    scores: np.ndarray
    last: Tensor
    question: Tensor


def hold(
    loaded: LoadedModel,
    prompts: Asked,
    variant: str = "base",
    *,
    token_budget: int = TOKEN_BUDGET,
    progress: Advance | None = None,
) -> Held:
    """Run prompts once and keep what patching needs of them.

    Args:
        loaded: the model.
        prompts: of one language.
        variant: `base` or `tuned`.
        token_budget: tokens of a batch.
        progress: called with the number of items done.

    Raises:
        ModelError: a prompt does not fit the model's window, a score is not finite, or the variant is a readout.
    """
    _check_variant(loaded, variant)
    rows = [_cut(row) for row in prompts.rows]
    tokens = label_tokens(rows)
    scores: dict[int, list[float]] = {}
    last: dict[int, Tensor] = {}
    question: dict[int, Tensor] = {}
    with loaded.as_variant(variant, prompts.language) as model:
        batches = run(model, rows, token_budget=token_budget, tokens=tokens, last_states=True, pooled_states=True)
        for batch in batches:
            assert batch.last_states is not None and batch.pooled_states is not None
            scores |= word_scores(batch, rows, tokens)
            last |= dict(zip(batch.rows, batch.last_states, strict=True))
            question |= dict(zip(batch.rows, batch.pooled_states, strict=True))
            if progress is not None:
                progress(len(batch.rows))
    order = range(len(rows))
    return Held(
        [item.id for item in prompts.items],
        np.array([scores[index] for index in order]),
        torch.stack([last[index] for index in order]),
        torch.stack([question[index] for index in order]),
    )


def n_passes(english: Held, sites: Sequence[str] = SITES, layers: Sequence[int] | None = None) -> int:
    """Return how often `patch_language` reports the progress of an item."""
    chosen = _layers(english, layers)
    return 1 + ("last" in sites) + len(_inner(chosen, english)) * ("question" in sites)


def patch_language(
    loaded: LoadedModel,
    prompts: Asked,
    english: Held,
    variant: str = "base",
    *,
    sites: Sequence[str] = SITES,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    token_budget: int = TOKEN_BUDGET,
    progress: Advance | None = None,
) -> pd.DataFrame:
    """Return what the items of a language become with English states, see the module's head.

    Args:
        loaded: the model.
        prompts: of the language.
        english: what `hold` gave for the English prompts of the same variant; all items of `prompts` among them.
        variant: `base` or `tuned`.
        sites: some of `SITES`.
        layers: that are patched, from 0 to the number of blocks; None for all.
        seed: of the draw of other items, which are the same in every language that has the same items.
        token_budget: tokens of a batch.
        progress: called with the number of items done, `n_passes` times an item in all.

    Raises:
        DataError: an item is not among the English ones, or there are fewer than two items.
        ModelError: see `hold`; or the model has no such layer.
    """
    chosen = _layers(english, layers)
    own = hold(loaded, prompts, variant, token_budget=token_budget, progress=progress)
    sources = {source: _numbers(ids, english, prompts.language) for source, ids in _sources(own.ids, seed).items()}
    rows = [_cut(row) for row in prompts.rows]
    found: dict[tuple[str, str, int], np.ndarray] = {}
    with loaded.as_variant(variant, prompts.language) as model:
        if "last" in sites:
            cells = [(source, layer) for source in SOURCES for layer in chosen]
            states = [
                [(layer, english.last[sources[source][k], layer]) for source, layer in cells] for k in range(len(rows))
            ]
            copies = [_with_last(row, each) for row, each in zip(rows, states, strict=True)]
            scores = label_scores(model, copies, token_budget=token_budget, progress=progress)
            of_cell = scores.reshape(len(rows), len(cells), -1).swapaxes(0, 1)
            found |= {("last", *cell): each for cell, each in zip(cells, of_cell, strict=True)}
        if "question" in sites:
            moves = {source: english.question[numbers] - own.question for source, numbers in sources.items()}
            scores = _moved_scores(model, rows, moves, _inner(chosen, english), token_budget, progress)
            found |= {("question", *cell): each for cell, each in scores.items()}
    source_ids = {source: [english.ids[k] for k in numbers] for source, numbers in sources.items()}
    return _frame(found, prompts, own, source_ids, variant)


def _check_variant(loaded: LoadedModel, variant: str) -> None:
    if variant == "tuned" and loaded.readout is not None:
        raise ModelError("got the tuned variant of a readout, which stands behind the model, expected variant `base`")


def _layers(english: Held, layers: Sequence[int] | None) -> list[int]:
    n_layers = english.last.shape[1] - 1
    chosen = list(range(n_layers + 1)) if layers is None else list(dict.fromkeys(layers))
    if not chosen or not set(chosen) <= set(range(n_layers + 1)):
        raise ModelError(f"got the layers {chosen} to patch, expected some from 0 to {n_layers}")
    return chosen


def _inner(layers: Sequence[int], english: Held) -> list[int]:
    """Return the layers but the last one of the model, behind which no token sees another."""
    return [layer for layer in layers if layer < english.last.shape[1] - 1]


def _sources(ids: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Return for every item the one whose English state it gets: a source -> ids."""
    if len(ids) < 2:
        raise DataError(f"got {len(ids)} item to patch, expected at least 2: the control is another item's state")
    order = np.random.default_rng(seed).permutation(sorted(ids)).tolist()  # a circle: none is its own other
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return {"same": list(ids), "other": [following[name] for name in ids]}


def _numbers(ids: Sequence[str], english: Held, language: str) -> list[int]:
    number = {name: k for k, name in enumerate(english.ids)}
    if missing := [name for name in ids if name not in number]:
        raise DataError(f"{language}: got item {missing[0]!r} without an English version, expected one of every item")
    return [number[name] for name in ids]


def _cut(row: Row) -> Row:
    """Return a prompt that ends in the token that the answer is chosen from, which its span leaves out."""
    end = row.root - 1
    return replace(row, prompt=row.prompt[: row.root], span=(max(min(row.span[0], end - 1), 0), end))


def _with_last(row: Row, states: Sequence[tuple[int, Tensor]]) -> Row:
    """Return a row in which the last token of a prompt stands once for every state that it is given, as (layer, state).

    Its trie's root is the token before; below it are the copies, each with the answer words. The words of the first
    copy come first, then those of the second.
    """
    assert row.trie is not None
    before = len(row.prompt) - 1
    tokens, parents, steps, patches = [-1], [-1], [], []
    for layer, state in states:
        top = len(tokens)
        tokens += [row.prompt[-1], *row.trie.tokens[1:]]
        parents += [0, *(top + parent for parent in row.trie.parents[1:])]
        steps += [tuple((top + node, token) for node, token in path) for path in row.trie.steps]
        patches.append(Patch(layer, (before + top - 1, before + top), state))
    trie = LabelTrie(tuple(tokens), tuple(parents), tuple(steps))
    return Row(row.prompt[:-1], trie, before, row.span, patches=tuple(patches))


def _moved_scores(
    model: Any,
    rows: Sequence[Row],
    moves: Mapping[str, Tensor],
    layers: Sequence[int],
    token_budget: int,
    progress: Advance | None,
) -> dict[tuple[str, int], np.ndarray]:
    """Return the scores of rows whose questions are moved, a source and layer. *Shape:* (items, labels) each.

    Args:
        model: the model.
        rows: see `_cut`.
        moves: source -> what is added to every token of an item's question. *Shape:* (items, layers + 1, hidden).
        layers: that are patched.
        token_budget: tokens of a batch.
        progress: called with the number of items done, once a layer.
    """
    found: dict[tuple[str, int], np.ndarray] = {}
    for chunk in recordable(rows, token_budget):
        recording = Recording(model)
        with recording.recorded():  # moved by nothing, so that the batches are cut as those to come
            still = [_moved(rows[k], 0, torch.zeros_like(moves["same"][k, 0])) for k in chunk]
            label_scores(model, still, token_budget=token_budget)
        for layer, (source, move) in product(layers, moves.items()):
            moved = [_moved(rows[k], layer, move[k, layer]) for k in chunk]
            with recording.resumed(layer):
                scores = label_scores(model, moved, token_budget=token_budget)
            found.setdefault((source, layer), np.empty((len(rows), scores.shape[1])))[chunk] = scores
            if progress is not None and source == "other":
                progress(len(chunk))
    return found


def _moved(row: Row, layer: int, move: Tensor) -> Row:
    return replace(row, patches=(Patch(layer, row.span, move, is_added=True),))


def _frame(
    found: Mapping[tuple[str, str, int], np.ndarray],
    prompts: Asked,
    own: Held,
    source_ids: Mapping[str, Sequence[str]],
    variant: str,
) -> pd.DataFrame:
    """Return the rows of the module's head. The scores of a site, source and layer are of *shape* (items, labels)."""
    parts = []
    for (site, source, layer), scores in found.items():
        about = {"variant": variant, "language": prompts.language, "site": site, "source": source}
        columns: dict[str, Any] = {"source_id": source_ids[source], "layer": layer, "id": own.ids}
        columns["gold"] = [item.gold for item in prompts.items]
        for name, table in (("sequence", scores), ("unpatched", own.scores)):
            columns |= {f"{name}_{label}": table[:, k] for k, label in enumerate(prompts.labels)}
        parts.append(pd.DataFrame({**about, **columns}))
    return pd.concat(parts, ignore_index=True)
