"""Predictions: a model, a task and a language -> one row an item.

Enters: a loaded model, or a server, and items. Leaves: a frame with, per item and label, all scores of one pass:

    sequence_<label>      natural log of the probability of the whole label word behind the prompt
    prefix_mass_<label>   next-token probability of all tokens that are prefixes of the word (arXiv 2405.13816)
    first_token_<label>   natural log of the probability of the first token of the word
    prefix_mass_released_<label>   as prefix_mass, by the rule of the authors' released code; only where a label word
                          has other tokens under it (byte-level BPE), else `prefix_mass` is both

The same pass runs content-free inputs ("N/A" and so on, Zhao et al. 2021, arXiv 2102.09690).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from glotlift.errors import ModelError
from glotlift.evaluation.journal import LabelScores
from glotlift.evaluation.metrics import decide
from glotlift.evaluation.prompts import Prompts
from glotlift.models.forward import Batch, run
from glotlift.models.label_scores import label_tokens, token_scores
from glotlift.models.load import LoadedModel
from glotlift.models.packing import TOKEN_BUDGET, Row, plan_batches
from glotlift.models.readout import Readout
from glotlift.models.server import Server, score_words
from glotlift.models.watching import Taps, Watcher

Advance = Callable[[int], Any]
"""Called with the number of items done."""


def predict(
    loaded: LoadedModel,
    prompts: Prompts,
    variant: str,
    *,
    scoring: str = "sequence",
    calibration: str = "none",
    token_budget: int = TOKEN_BUDGET,
    batch_size: int | None = None,
    prefix_cache: bool = True,
    progress: Advance | None = None,
) -> pd.DataFrame:
    """Score every label of every item.

    Args:
        loaded: the model.
        prompts: from `prepare`.
        variant: `base` (adapter off) or `tuned` (adapter on).
        scoring: which scores decide: one of `glotlift.evaluation.metrics.SCORINGS`.
        calibration: what is taken off them first: one of `glotlift.evaluation.metrics.CALIBRATIONS`.
        token_budget: tokens of a batch.
        batch_size: items of a batch; None for as many as the budget allows.
        prefix_cache: False runs every prompt alone and whole, as a reference.
        progress: called with the number of items done, batch by batch.

    Returns:
        A frame in the order of the items: `id`, `gold`, `predicted`, `tied` (labels that share the best score, 1 where
        none does; the first label wins), `n_tokens`, `sequence_<label>` and `first_token_<label>` (natural log),
        `prefix_mass_<label>` (0 to 1), and where it is another `prefix_mass_released_<label>` (0 to 1).
    """
    scores: dict[int, LabelScores] = {}
    batches = score_batches(loaded, prompts, variant, token_budget=token_budget, batch_size=batch_size,
                            prefix_cache=prefix_cache)  # fmt: skip
    for found in batches:
        scores |= found
        advance(progress, found, prompts)
    return to_frame(prompts, scores, scoring, calibration)[0]


def score_batches(
    loaded: LoadedModel,
    prompts: Prompts,
    variant: str,
    *,
    token_budget: int = TOKEN_BUDGET,
    batch_size: int | None = None,
    prefix_cache: bool = True,
    done: Mapping[int, Any] | None = None,
    process: int = 0,
    n_processes: int = 1,
    watcher: Watcher | None = None,
    of_base: Mapping[int, LabelScores] | None = None,
) -> Iterator[dict[int, LabelScores]]:
    """Yield the scores of items and content-free inputs, batch by batch; index len(items) is the first of the latter.

    Args:
        loaded: the model.
        prompts: from `prepare`.
        variant: `base` or `tuned`.
        token_budget: tokens of a batch.
        batch_size: items of a batch.
        prefix_cache: see `predict`.
        done: indexes that are not needed any more; a batch runs unless all of its are done, so that it is the same
            batch as in a run that nothing stopped.
        process: of `n_processes`, which take the batches in turns; counted on from language to language, so that no
            process always begins.
        n_processes: see `process`.
        watcher: looks at every batch of the cached pass, too.
        of_base: what `base` says of all rows, where it is known: a readout is added to that, and no block behind its
            layer has to run, or none at all if it has no weight.
    """
    rows = [*prompts.rows, *prompts.content_free]
    if prefix_cache:
        planned = plan_batches(rows, token_budget=token_budget, batch_size=batch_size)
    else:
        planned = [[index] for index in range(len(rows))]
    share = [batch for batch in planned[process % n_processes :: n_processes] if not _has(done, batch)]
    if not share:
        return
    readout = loaded.readout if variant == "tuned" else None
    if readout is not None:
        readout.check(prompts.labels, f"task {prompts.task!r}")
        if not prefix_cache:
            raise ModelError("got --no-prefix-cache with a readout, expected the cached pass, which taps its states")
    with loaded.as_variant(variant, prompts.language) as model:
        if readout is not None and not readout.is_used and of_base is not None:
            yield from ({index: of_base[index] for index in batch} for batch in share)
            return
        if readout is not None and (of_base is not None or not readout.own):
            yield from _read_only(model, readout, rows, prompts, share, token_budget, of_base)
            return
        tokens = scored_tokens(prompts)
        if prefix_cache:
            taps: Taps = {"last_states": readout is not None}
            if watcher is not None:
                taps, rows = taps | watcher.taps, watcher.rows(rows)
            batches = run(model, rows, token_budget=token_budget, batches=share, tokens=tokens, **taps)
        else:
            batches = _plain(model, rows, share, tokens)
        for batch in batches:
            scores = _reduce(batch, rows, prompts, tokens)
            if readout is not None:
                scores = _with_readout(readout, batch, scores)
            _check_finite(scores, prompts)
            if watcher is not None and prefix_cache:
                watcher.see(model, batch, tokens)
            yield scores


def _read_only(
    model: Any,
    readout: Readout,
    rows: Sequence[Row],
    prompts: Prompts,
    batches: Sequence[list[int]],
    token_budget: int,
    of_base: Mapping[int, LabelScores] | None,
) -> Iterator[dict[int, LabelScores]]:
    """Yield the scores of a readout whose model's own are known or do not count: no block behind its layer runs."""
    n = len(prompts.labels)
    nothing = LabelScores(
        (0.0,) * n, (1.0,) * len(prompts.prefix_sets), (0.0,) * n, (1.0,) * len(prompts.released_sets)
    )
    bare = [replace(row, trie=None, root=0) for row in rows]
    for batch in run(model, bare, token_budget=token_budget, batches=batches, last_states=True, until=readout.layer):
        own = {index: nothing if of_base is None else of_base[index] for index in batch.rows}
        scores = _with_readout(readout, batch, own)
        _check_finite(scores, prompts)
        yield scores


def _with_readout(readout: Readout, batch: Batch, scores: Mapping[int, LabelScores]) -> dict[int, LabelScores]:
    assert batch.last_states is not None
    read = readout.scores(batch.last_states).double().tolist()
    return {index: _added(scores[index], each, readout.own) for index, each in zip(batch.rows, read, strict=True)}


def _has(done: Mapping[int, Any] | None, batch: Iterable[int]) -> bool:
    return all(index in (done or ()) for index in batch)


def server_batches(
    server: Server, prompts: Prompts, *, done: Mapping[int, Any] | None = None, process: int = 0, n_processes: int = 1
) -> Iterator[dict[int, LabelScores]]:
    """Yield what `score_batches` does, an item at a time, as a server answers; prefix mass is not known there.

    Raises:
        ModelError: the server cannot be reached, or gives no log-probabilities of the prompt.
    """
    share = [
        index for index in range(len(prompts.texts))[process % n_processes :: n_processes] if index not in (done or ())
    ]
    texts = [prompts.texts[index] for index in share]
    for position, sequence, first_token in score_words(server, texts, prompts.endings):
        scores = {share[position]: LabelScores(tuple(sequence), (), tuple(first_token))}
        _check_finite(scores, prompts)
        yield scores


def scored_tokens(prompts: Prompts) -> list[int]:
    """Return all tokens whose probabilities make a score."""
    rows = [*prompts.rows, *prompts.content_free]
    return sorted(set(label_tokens(rows)).union(*prompts.prefix_sets, *prompts.released_sets))


def _reduce(batch: Batch, rows: Sequence[Row], prompts: Prompts, tokens: Sequence[int]) -> dict[int, LabelScores]:
    """Return the scores of a batch's rows. Log-sum-exp runs in fp32, sums over tokens in fp64."""
    assert batch.normalizer is not None
    paths_of = token_scores(batch, rows, tokens)
    log_probabilities = (batch.logits - batch.normalizer[:, None]).double().cpu()[batch.prompt_end]
    column = {token: index for index, token in enumerate(tokens)}
    masses, released = (
        [log_probabilities[:, [column[token] for token in counted]].exp().sum(1).tolist() for counted in sets]
        for sets in (prompts.prefix_sets, prompts.released_sets)
    )
    scores = {}
    for k, index in enumerate(batch.rows):
        paths = paths_of[index]
        sequence, first = tuple(math.fsum(path) for path in paths), tuple(path[0] for path in paths)
        scores[index] = LabelScores(
            sequence, tuple(mass[k] for mass in masses), first, tuple(mass[k] for mass in released)
        )
    return scores


def score_and_pool(
    loaded: LoadedModel, prompts: Prompts, *, token_budget: int = TOKEN_BUDGET, progress: Advance | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the base model says of items, and where it holds their questions, both of one pass.

    Args:
        loaded: the model.
        prompts: from `prepare`.
        token_budget: tokens of a batch.
        progress: called with the number of items done, batch by batch.

    Returns:
        Log-probabilities of the label words, *shape* (items, labels), and the means of the states over every question's
        tokens, *shape* (items, layers + 1, hidden), fp32.
    """
    scores: dict[int, Sequence[float]] = {}
    states: dict[int, np.ndarray] = {}
    tokens = scored_tokens(prompts)
    with loaded.as_variant("base") as model:
        for batch in run(model, prompts.rows, token_budget=token_budget, tokens=tokens, pooled_states=True):
            assert batch.pooled_states is not None
            found = _reduce(batch, prompts.rows, prompts, tokens)
            scores |= {index: each.sequence for index, each in found.items()}
            states |= dict(zip(batch.rows, batch.pooled_states.numpy(), strict=True))
            if progress is not None:
                progress(len(batch.rows))
    order = range(len(prompts.rows))
    return np.array([scores[index] for index in order]), np.stack([states[index] for index in order])


def _added(scores: LabelScores, read: Sequence[float], own: float) -> LabelScores:
    """Return scores with those of a readout: added to logarithms, and as factors of probability mass."""

    def logs(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(own * value + more for value, more in zip(values, read, strict=True))

    def masses(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(value**own * math.exp(more) for value, more in zip(values, read, strict=True)) if values else ()

    return LabelScores(logs(scores.sequence), masses(scores.prefix_mass), logs(scores.first_token),
                       masses(scores.prefix_mass_released))  # fmt: skip


def _check_finite(scores: Mapping[int, LabelScores], prompts: Prompts) -> None:
    if not all(math.isfinite(value) for each in scores.values() for values in astuple(each) for value in values):
        raise ModelError(
            f"task {prompts.task!r}, {prompts.language}: the model gives scores that are not finite; "
            "expected numbers (try --dtype float32)"
        )


def _plain(model: Any, rows: Sequence[Row], batches: Sequence[Sequence[int]], tokens: Sequence[int]) -> Iterator[Batch]:
    """Yield what `run` yields, by plain forward passes over whole prompts, one a label, nothing shared."""
    device = next(model.parameters()).device
    for index in (index for batch in batches for index in batch):
        row = rows[index]
        assert row.trie is not None
        logits, nodes = [], [-1] * len(row.trie.tokens)
        for steps in row.trie.steps:
            ids = torch.tensor([[*row.prompt[: row.root], *(token for _, token in steps)]], device=device)
            with torch.inference_mode():
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            for depth, (node, _) in enumerate(steps):
                nodes[node] = len(logits)
                logits.append(out[row.root - 1 + depth])
        end = nodes[0]
        if row.root < len(row.prompt):
            with torch.inference_mode():
                ids = torch.tensor([row.prompt], device=device)
                logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1])
            end = len(logits) - 1
        whole = torch.stack(logits).float()
        yield Batch([index], whole[:, tokens], [end], [nodes], normalizer=whole.logsumexp(-1))


def to_frame(
    prompts: Prompts, scores: Mapping[int, LabelScores], scoring: str, calibration: str
) -> tuple[pd.DataFrame, list[dict[str, list[float]]]]:
    """Return the frame of `predict` and the scores of the content-free inputs, by what they are called in the frame."""
    labels, n_items = prompts.labels, len(prompts.items)
    columns: dict[str, list] = {
        "id": [item.id for item in prompts.items],
        "gold": [item.gold for item in prompts.items],
        "predicted": [],
        "tied": [],
    }
    if prompts.rows:
        columns["n_tokens"] = [len(row.prompt) for row in prompts.rows]
    names = [name for name in LabelScores.__dataclass_fields__ if getattr(scores[0], name)]
    for name in names:
        for position, label in enumerate(labels):
            columns[f"{name}_{label}"] = [getattr(scores[index], name)[position] for index in range(n_items)]
    free = [{name: list(getattr(scores[index], name)) for name in names}
            for index in range(n_items, len(prompts.texts))]  # fmt: skip
    frame = pd.DataFrame({name: values for name, values in columns.items() if values})
    predicted, tied = decide(frame, labels, scoring, calibration, free)
    frame.insert(2, "predicted", predicted)
    frame.insert(3, "tied", tied)
    return frame, free


def advance(progress: Advance | None, found: Iterable[int], prompts: Prompts) -> None:
    """Report the items among the rows that were done; content-free inputs are none."""
    if progress is not None:
        progress(sum(index < len(prompts.items) for index in found))
