"""One batched forward pass: shared-prefix cache, packed label tries, taps on every layer.

Enters: rows of tokens (a prompt and the trie of its possible answers). Leaves: for every row the logits at the few
positions that are asked for, and, with taps, hidden states of every layer.

The tokens that all rows share run once; their keys and values serve every batch. Behind them each row has its own
prompt and the nodes of its trie, packed as `glotlift.models.packing` says. So one pass scores every label word, of
whatever length, next to the state that the next token is chosen from. The language-model head sees the asked positions
only. Keys of the prefix are kept whole for every layer; sliding windows are part of the mask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from glotlift.errors import ModelError
from glotlift.models.anatomy import base_model, text_config
from glotlift.models.head import head_logits, head_scores
from glotlift.models.packing import (
    POSITIONS,
    TOKEN_BUDGET,
    Row,
    asked_positions,
    attention_masks,
    check_lengths,
    cut_into_parts,
    own_length,
    pack,
    plan_batches,
    put_in_lanes,
    shared_length,
    span_weights,
)
from glotlift.models.patch import patched
from glotlift.models.taps import block_outputs, ended_behind

log = logging.getLogger("glotlift")

_LOGITS_BUDGET = 32 * 2**20
"""Logits of a batch that asks for all of them: positions x vocabulary (128 MiB in fp32)."""


@dataclass(frozen=True)
class Batch:
    """What the pass gave for some rows.

    Attributes:
        rows: indexes of the rows.
        logits: of the model's own head. *Shape:* (positions, vocabulary), or (positions, tokens) where only some tokens
            are asked for.
        prompt_end: for every row, the position in `logits` of its last prompt token.
        nodes: for every row, the positions in `logits` of its trie nodes, root first.
        last_states: *Shape:* (rows, layers + 1, hidden), at the last prompt token; embedding output first, then the
            output of every block, before the final norm. None without the tap.
        pooled_states: *Shape:* as `last_states`; mean over the row's span. None without the tap.
        asked_states: *Shape:* (positions, layers + 1, hidden), as `last_states` at every position of `logits`. None
            without the tap.
        normalizer: natural log of the sum of exp(logits) over the vocabulary, fp32. *Shape:* (positions,). None where
            all logits are given.
    """

    rows: list[int]
    logits: Tensor
    prompt_end: list[int]
    nodes: list[list[int]]
    last_states: Tensor | None = None
    pooled_states: Tensor | None = None
    normalizer: Tensor | None = None
    asked_states: Tensor | None = None

    def of_first(self, n_rows: int) -> Batch:
        """Return the batch with those of its rows that are among the first `n_rows` of all; maybe with none."""
        places = [place for place, index in enumerate(self.rows) if index < n_rows]
        if len(places) == len(self.rows):
            return self
        rows, prompt_end, nodes = ([each[k] for k in places] for each in (self.rows, self.prompt_end, self.nodes))
        states = {name: getattr(self, name) for name in ("last_states", "pooled_states")}
        chosen = {name: None if each is None else each[places] for name, each in states.items()}
        return replace(self, rows=rows, prompt_end=prompt_end, nodes=nodes, **chosen)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens that all rows share.

    Attributes:
        length: number of tokens.
        layers: per layer, keys and values. *Shape:* (1, heads, length, head_dim).
        state_sums: cumulative sums of the hidden states, for pooling over the prefix.
            *Shape:* (layers + 1, length + 1, hidden). None without the tap.
    """

    length: int
    layers: list[tuple[Tensor, Tensor]]
    state_sums: Tensor | None = None


@dataclass(frozen=True)
class _Taps:
    """What of the states is kept, and the block that the pass ends behind, see `run`."""

    last: bool
    pooled: bool
    asked: bool
    between: bool
    until: int | None


def run(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    token_budget: int = TOKEN_BUDGET,
    batches: Sequence[Sequence[int]] | None = None,
    tokens: Sequence[int] | None = None,
    last_states: bool = False,
    pooled_states: bool = False,
    asked_states: bool = False,
    between: bool = False,
    until: int | None = None,
) -> Iterator[Batch]:
    """Yield the results of rows, batch by batch. A batch that does not fit in memory is halved, and so are later ones.

    Args:
        model: a causal language model of transformers, or a peft model around one.
        rows: all rows; what they share runs once.
        token_budget: tokens of a batch, at least one row.
        batches: indexes of rows that run together, as some or all of `plan_batches`; None for all of them.
        tokens: distinct tokens whose logits are needed; None for the whole vocabulary, which takes memory.
        last_states: tap the state of the last prompt token on every layer.
        pooled_states: tap the mean state over every row's span on every layer.
        until: end the pass behind this block, from 1: states up to there, no logits. What the blocks and the head
            behind it would take is saved.
        asked_states: tap the state of the last prompt token and of every trie node on every layer.
        between: let the taps at single tokens see every block's state between attention and MLP, too: `last_states` and
            `asked_states` then have the *shape* (..., 2 x layers + 1, hidden), in the order of the model.

    Raises:
        ModelError: a row does not fit the model's window or, alone, in memory; or the model has layers whose mask
            glotlift does not know.
    """
    check_lengths(model, rows)
    device = next(model.parameters()).device
    length = shared_length(rows)
    taps = _Taps(last_states, pooled_states, asked_states, between, until)
    if batches is None:
        has_table = tokens is None and until is None  # logits of the whole vocabulary
        n_positions = _LOGITS_BUDGET // text_config(model).vocab_size if has_table else POSITIONS
        batches = plan_batches(rows, token_budget=token_budget, n_positions=n_positions)
    with torch.inference_mode():
        try:
            prefix = _run_prefix(model, rows[0].prompt[:length], device, taps)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as fault:
            raise _too_long(length) if _is_out_of_memory(fault) else fault from None
        waiting = [list(batch) for batch in reversed(batches)]
        while waiting:
            indexes = waiting.pop()
            try:
                batch = _run_batch(model, prefix, indexes, rows, device, token_budget, tokens, taps)
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as fault:
                if not _is_out_of_memory(fault):
                    raise
                batch = None  # halved behind this block: here the traceback still holds the batch's tensors
            if batch is not None:
                yield batch
                continue
            if len(indexes) == 1:
                raise _too_long(len(rows[indexes[0]].prompt))
            if device.type == "cuda":
                torch.cuda.empty_cache()
            half = (len(indexes) + 1) // 2
            waiting = [part for each in waiting for part in (each[half:], each[:half]) if part]
            waiting += [indexes[half:], indexes[:half]]
            token_budget = max(token_budget // 2, 1)
            log.warning("out of memory with %d items a batch, going on with %d", len(indexes), half)


def _too_long(n_tokens: int) -> ModelError:
    return ModelError(
        f"a prompt of {n_tokens} tokens does not fit in memory alone, expected room for it; use fewer demonstrations, "
        "shorter texts or a smaller model"
    )


def _is_out_of_memory(fault: BaseException) -> bool:
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(fault)
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def _run_prefix(model: nn.Module, tokens: tuple[int, ...], device: torch.device, taps: _Taps) -> Prefix:
    if not tokens:
        return Prefix(0, [], None)
    states: list[Tensor] = []
    cache = DynamicCache()
    ids = torch.tensor([tokens], device=device)
    position_ids = torch.arange(len(tokens), device=device)[None]
    masks = attention_masks(
        model, torch.ones(len(tokens), len(tokens), device=device).tril()[None].bool(), position_ids
    )
    with ExitStack() as hooks:
        if taps.pooled:
            hooks.enter_context(block_outputs(model, states, _cumulative))
        if taps.until is not None:
            hooks.enter_context(ended_behind(model, taps.until))
        decoder = base_model(model).base_model  # without the head, which is large and not needed here
        decoder(input_ids=ids, attention_mask=masks, position_ids=position_ids, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    keys = [(layer.keys, layer.values) for layer in layers]
    return Prefix(len(tokens), keys, torch.cat(states) if taps.pooled else None)


def _cumulative(states: Tensor) -> Tensor:
    """*Shape:* (1, length, hidden) -> (1, length + 1, hidden), sums over the first 0, 1, ... tokens."""
    return nn.functional.pad(states.float().cumsum(1), (0, 0, 1, 0))


def _run_batch(
    model: nn.Module,
    prefix: Prefix,
    indexes: list[int],
    rows: Sequence[Row],
    device: torch.device,
    token_budget: int,
    tokens: Sequence[int] | None,
    taps: _Taps,
) -> Batch:
    """Run rows through the blocks in parts of `token_budget` tokens, and what is asked of all through the head."""
    asked: list[Tensor] = []
    tapped: list[dict[str, Tensor]] = []
    prompt_end: list[int] = []
    nodes: list[list[int]] = []
    for part in cut_into_parts([own_length(rows[index], prefix.length) for index in indexes], token_budget):
        part_rows = [rows[indexes[k]] for k in part]
        before = sum(len(each) for each in asked)
        states, ends, part_nodes, found = _run_part(model, prefix, part_rows, device, taps)
        asked.append(states)
        prompt_end += [before + position for position in ends]
        nodes += [[before + position for position in each] for each in part_nodes]
        tapped.append(found)
    of_rows = {name: torch.cat([found[name] for found in tapped]) for name in tapped[0]}
    final = torch.cat(asked)
    if taps.until is not None:
        normalizer, logits = None, final[:, :0]
    elif tokens is None:
        normalizer, logits = None, head_logits(model, final)
    else:
        normalizer, logits = head_scores(model, final, tokens)
    return Batch(
        indexes,
        logits,
        prompt_end,
        nodes,
        of_rows.get("last"),
        _pool(of_rows["pooled"], prefix, [rows[index] for index in indexes]) if taps.pooled else None,
        normalizer,
        of_rows.get("asked"),
    )


def _run_part(
    model: nn.Module, prefix: Prefix, rows: list[Row], device: torch.device, taps: _Taps
) -> tuple[Tensor, list[int], list[list[int]], dict[str, Tensor]]:
    """Run rows through the blocks.

    Returns:
        The final states that are asked for, *shape* (positions, hidden); where each row finds the end of its prompt and
        its trie nodes among them; and the name of each tap -> its states, *shape* (rows or positions, layers + 1,
        hidden).
    """
    lanes = put_in_lanes([own_length(row, prefix.length) for row in rows], prefix.length)
    ids, positions, allowed = pack(rows, prefix.length, lanes)
    asked_lanes, asked_columns, prompt_end, nodes = asked_positions(rows, prefix.length, lanes)
    keys = [(k.expand(lanes.count, -1, -1, -1), v.expand(lanes.count, -1, -1, -1)) for k, v in prefix.layers]
    columns = torch.tensor(asked_columns, device=device)
    own_lanes, last_columns = torch.tensor(lanes.lane, device=device), columns[prompt_end]
    weights = span_weights(rows, prefix.length, lanes).to(device)
    of_asked = torch.tensor(asked_lanes, device=device), columns
    points = {"last": (own_lanes, last_columns)} if taps.last else {}
    points |= {"asked": of_asked} if taps.asked else {}
    tapped: dict[str, list[Tensor]] = {name: [] for name in points}
    pooled: list[Tensor] = []

    def keep(hidden: Tensor) -> None:
        for name, (lane, column) in points.items():
            tapped[name].append(hidden[lane, column].float())

    def pool(hidden: Tensor) -> Tensor:
        return torch.einsum("rl,rlh->rh", weights, hidden[own_lanes].float())

    positions = positions.to(device)
    in_lanes = zip(rows, lanes.lane, lanes.start, strict=True)
    placed = [(lane, start - prefix.length, patch) for row, lane, start in in_lanes for patch in row.patches]
    final = torch.empty(*ids.shape, 0, device=device)  # where the pass ends before there is any
    with ExitStack() as hooks:
        if placed:
            hooks.enter_context(patched(model, placed))
        if points:  # behind the patches, to see what they leave
            hooks.enter_context(block_outputs(model, [], keep, between=taps.between))
        if taps.pooled:
            hooks.enter_context(block_outputs(model, pooled, pool))
        if taps.until is not None:
            hooks.enter_context(ended_behind(model, taps.until))
        final = base_model(model).base_model(
            input_ids=ids.to(device),
            attention_mask=attention_masks(model, allowed.to(device), positions),
            position_ids=positions,
            past_key_values=DynamicCache(keys) if keys else None,
            use_cache=bool(keys),
        )[0]
    asked = final[of_asked]
    found = tapped | ({"pooled": pooled} if taps.pooled else {})
    return asked, prompt_end, nodes, {name: torch.stack(states, 1).cpu() for name, states in found.items()}


def _pool(own: Tensor, prefix: Prefix, rows: list[Row]) -> Tensor:
    """Add to the pooled states the part of the span that lies in the prefix. *Shape:* (rows, layers + 1, hidden)."""
    if prefix.state_sums is None:
        return own
    sums = prefix.state_sums.cpu()
    pooled = own.clone()
    for r, row in enumerate(rows):
        start, end = (min(bound, prefix.length) for bound in row.span)
        if end > start:
            pooled[r] += (sums[:, end] - sums[:, start]) / (row.span[1] - row.span[0])
    return pooled
