"""One batched forward pass: shared-prefix cache, packed label tries, taps on every layer.

Enters: rows of tokens (a prompt and the trie of its possible answers). Leaves: for every row the logits at the few
positions that are asked for, and, with taps, hidden states of every layer.

The tokens that all rows share run once; their keys and values serve every batch. A row is then

    [rest of the prompt][trie nodes]

and several rows stand one behind the other in a lane, so that hardly a token of a batch is padding:

    [rest of prompt 1][nodes 1][rest of prompt 2][nodes 2] ...     lanes of equal length, padded on the right

A mask lets every token see the shared prefix and its own row only, and every trie node its own ancestors of that, at
the position it would have if it stood alone. So one pass scores every label word, of whatever length, next to the state
that the next token is chosen from. The language-model head sees the asked positions only. Keys of the prefix are kept
whole for every layer; sliding windows are part of the mask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from glotlift.errors import ModelError
from glotlift.models.head import base_model, head_logits, head_scores
from glotlift.models.labels import LabelTrie

log = logging.getLogger("glotlift")

TOKEN_BUDGET = 1024
"""Tokens that run through the blocks together, trie nodes included; see benchmarks/evaluate.py for others."""

_POSITIONS = 1024
"""Positions whose scores a batch may ask for."""

_LOGITS_BUDGET = 32 * 2**20
"""Logits of a batch that asks for all of them: positions x vocabulary (128 MiB in fp32)."""

_PARTS = 8
"""Parts of `token_budget` tokens that a batch may have; more would lose too much when a run is killed."""


@dataclass(frozen=True)
class Row:
    """A prompt to run.

    Attributes:
        prompt: its tokens.
        trie: label words to score behind it; None for none.
        root: number of prompt tokens the trie continues; less than all where a token spans prompt and label.
        span: tokens of the prompt whose hidden states the pooling tap averages, as (start, end).
    """

    prompt: tuple[int, ...]
    trie: LabelTrie | None = None
    root: int = 0
    span: tuple[int, int] = (0, 0)

    @property
    def n_nodes(self) -> int:
        """Trie nodes that run through the model: all but the root."""
        return 0 if self.trie is None else len(self.trie.tokens) - 1

    @property
    def reach(self) -> int:
        """Positions the row needs: its prompt, or its deepest trie node."""
        return max(len(self.prompt), self.root + max(self.trie.depths) if self.trie else 0)


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


def run(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    token_budget: int = TOKEN_BUDGET,
    batches: Sequence[Sequence[int]] | None = None,
    tokens: Sequence[int] | None = None,
    last_states: bool = False,
    pooled_states: bool = False,
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

    Raises:
        ModelError: a row does not fit the model's window or, alone, in memory; or the model has layers whose mask
            glotlift does not know.
    """
    check_lengths(model, rows)
    device = next(model.parameters()).device
    length = shared_length(rows)
    if batches is None:
        n_positions = _POSITIONS if tokens is not None else _LOGITS_BUDGET // _config(model).vocab_size
        batches = plan_batches(rows, token_budget=token_budget, n_positions=n_positions)
    with torch.inference_mode():
        try:
            prefix = _run_prefix(model, rows[0].prompt[:length], device, pooled_states)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as fault:
            raise _too_long(length) if _is_out_of_memory(fault) else fault from None
        waiting = [list(batch) for batch in reversed(batches)]
        while waiting:
            indexes = waiting.pop()
            try:
                batch = _run_batch(
                    model, prefix, indexes, rows, device, token_budget, tokens, last_states, pooled_states
                )
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


def plan_batches(
    rows: Sequence[Row],
    *,
    token_budget: int = TOKEN_BUDGET,
    batch_size: int | None = None,
    n_positions: int = _POSITIONS,
) -> list[list[int]]:
    """Return which rows run together: rows of like length, the shortest first, within the budgets.

    Through the blocks a batch runs in parts of `token_budget` tokens, through the head at once. The plan depends on the
    rows' tokens, not on their order, so each row meets the same others however a run is ordered, split over processes
    or continued.

    Args:
        rows: see `run`.
        token_budget: tokens of a part.
        batch_size: rows of a batch; None for as many as the budgets allow.
        n_positions: positions of a batch whose scores are asked for.
    """
    return list(_batches(rows, shared_length(rows), token_budget, n_positions, batch_size))


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


def shared_length(rows: Sequence[Row]) -> int:
    """Return how many first tokens all rows share, leaving every row its trie's root and one token of its own."""
    first = rows[0].prompt
    length = len(first)
    for row in rows:
        limit = min(length, len(row.prompt) - 1, row.root - 1 if row.trie else len(row.prompt) - 1)
        length = next((i for i in range(limit) if row.prompt[i] != first[i]), max(limit, 0))
    return length


def check_lengths(model: nn.Module, rows: Sequence[Row]) -> None:
    """Check that all rows fit the model's window.

    Raises:
        ModelError: one does not.
    """
    window = getattr(_config(model), "max_position_embeddings", None)
    if window is None:
        return
    for index, row in enumerate(rows):
        if row.reach > window:
            raise ModelError(
                f"prompt {index + 1} has {row.reach} tokens, the model's window {window}; "
                "use fewer demonstrations, shorter texts or a model with a longer window"
            )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of the decoder.

    Raises:
        ModelError: the model has no list of `num_hidden_layers` blocks.
    """
    count = _config(model).num_hidden_layers
    for module in base_model(model).base_model.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(base_model(model)).__name__}: got no list of {count} decoder blocks, expected one")


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm between the last block and the language-model head.

    Raises:
        ModelError: it has none under a name that is known.
    """
    decoder = base_model(model).base_model
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if hasattr(decoder, name):
            return getattr(decoder, name)
    raise ModelError(f"{type(base_model(model)).__name__}: got no final norm, expected one")


@contextmanager
def block_outputs(model: nn.Module, collect: list[Tensor], reduce) -> Iterator[None]:
    """Append `reduce(states)` of the embedding output and of every block's output to `collect`.

    Args:
        model: the model.
        collect: gets layers + 1 tensors.
        reduce: function of the states. *Shape:* (batch, length, hidden) -> anything.
    """

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        collect.append(reduce(args[0] if args else kwargs["hidden_states"]))

    def after(_module: nn.Module, _args: tuple, output) -> None:
        collect.append(reduce(output[0] if isinstance(output, tuple) else output))

    layers = decoder_layers(model)
    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _config(model: nn.Module):
    return base_model(model).config.get_text_config()


def _run_prefix(model: nn.Module, tokens: tuple[int, ...], device: torch.device, pooled: bool) -> Prefix:
    if not tokens:
        return Prefix(0, [], None)
    states: list[Tensor] = []
    cache = DynamicCache()
    ids = torch.tensor([tokens], device=device)
    position_ids = torch.arange(len(tokens), device=device)[None]
    masks = _masks(model, torch.ones(len(tokens), len(tokens), device=device).tril()[None].bool(), position_ids)
    with block_outputs(model, states, _cumulative if pooled else _nothing):
        decoder = base_model(model).base_model  # without the head, which is large and not needed here
        decoder(input_ids=ids, attention_mask=masks, position_ids=position_ids, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    keys = [(layer.keys, layer.values) for layer in layers]
    return Prefix(len(tokens), keys, torch.cat(states) if pooled else None)


def _cumulative(states: Tensor) -> Tensor:
    """*Shape:* (1, length, hidden) -> (1, length + 1, hidden), sums over the first 0, 1, ... tokens."""
    return nn.functional.pad(states.float().cumsum(1), (0, 0, 1, 0))


def _nothing(states: Tensor) -> Tensor:
    return states.new_empty(0)


def _batches(
    rows: Sequence[Row], prefix: int, token_budget: int, position_budget: int, batch_size: int | None
) -> Iterator[list[int]]:
    """Yield indexes of rows of like length that together keep within the budgets."""
    lengths = [_length(row, prefix) for row in rows]
    batch: list[int] = []
    tokens = positions = 0
    for index in sorted(range(len(rows)), key=lambda i: (lengths[i], rows[i].prompt)):
        asked = 2 + rows[index].n_nodes
        full = tokens + lengths[index] > _PARTS * token_budget or positions + asked > position_budget
        if batch and (full or len(batch) == batch_size):
            yield batch
            batch, tokens, positions = [], 0, 0
        batch.append(index)
        tokens += lengths[index]
        positions += asked
    if batch:
        yield batch


def _length(row: Row, prefix: int) -> int:
    """Return how many tokens of a row run behind the prefix."""
    return len(row.prompt) - prefix + row.n_nodes


@dataclass(frozen=True)
class Lanes:
    """Where the rows of a batch stand.

    Attributes:
        count: number of lanes.
        length: tokens of each.
        lane: of every row.
        start: position of its first token in the lane.
    """

    count: int
    length: int
    lane: list[int]
    start: list[int]


def _lanes(lengths: Sequence[int], prefix: int) -> Lanes:
    """Return the cheapest of several ways to put rows into lanes: little padding, and lanes not long for attention."""
    longest = max(lengths)
    tried = [_fill(lengths, length) for length in sorted({longest * k // 4 for k in (4, 5, 6, 7, 8, 10, 12, 16)})]
    return min(tried, key=lambda lanes: lanes.count * lanes.length * (_ATTENTION_SHARE + prefix + lanes.length))


_ATTENTION_SHARE = 2048
"""Keys at which attention costs about as much as all else of a block."""


def _fill(lengths: Sequence[int], length: int) -> Lanes:
    """Return the rows in lanes of a length, the longest row first, each in the first lane with room for it."""
    used: list[int] = []
    lane, start = [0] * len(lengths), [0] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        found = next((k for k, end in enumerate(used) if end + lengths[row] <= length), len(used))
        if found == len(used):
            used.append(0)
        lane[row], start[row] = found, used[found]
        used[found] += lengths[row]
    return Lanes(len(used), max(used), lane, start)


def _run_batch(
    model: nn.Module,
    prefix: Prefix,
    indexes: list[int],
    rows: Sequence[Row],
    device: torch.device,
    token_budget: int,
    tokens: Sequence[int] | None,
    want_last: bool,
    want_pooled: bool,
) -> Batch:
    """Run rows through the blocks in parts of `token_budget` tokens, and what is asked of all through the head."""
    asked: list[Tensor] = []
    tapped: list[Tensor] = []
    prompt_end: list[int] = []
    nodes: list[list[int]] = []
    for part in _parts([_length(rows[index], prefix.length) for index in indexes], token_budget):
        part_rows = [rows[indexes[k]] for k in part]
        before = sum(len(each) for each in asked)
        states, ends, part_nodes, taps = _run_part(model, prefix, part_rows, device, want_last, want_pooled)
        asked.append(states)
        prompt_end += [before + position for position in ends]
        nodes += [[before + position for position in each] for each in part_nodes]
        if taps is not None:
            tapped.append(taps)
    taps = torch.cat(tapped) if tapped else None
    final = torch.cat(asked)
    normalizer, logits = (None, head_logits(model, final)) if tokens is None else head_scores(model, final, tokens)
    return Batch(
        indexes,
        logits,
        prompt_end,
        nodes,
        taps[:, 0] if taps is not None and want_last else None,
        _pool(taps[:, -1], prefix, [rows[index] for index in indexes]) if taps is not None and want_pooled else None,
        normalizer,
    )


def _parts(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    part: list[int] = []
    tokens = 0
    for k, length in enumerate(lengths):
        if part and tokens + length > token_budget:
            yield part
            part, tokens = [], 0
        part.append(k)
        tokens += length
    yield part


def _run_part(
    model: nn.Module, prefix: Prefix, rows: list[Row], device: torch.device, want_last: bool, want_pooled: bool
) -> tuple[Tensor, list[int], list[list[int]], Tensor | None]:
    """Run rows through the blocks.

    Returns:
        The final states that are asked for, *shape* (positions, hidden); where each row finds the end of its prompt and
        its trie nodes among them; and, with taps, *shape* (rows, 1 or 2, layers + 1, hidden).
    """
    lanes = _lanes([_length(row, prefix.length) for row in rows], prefix.length)
    ids, positions, allowed = _pack(rows, prefix.length, lanes)
    asked_lanes, asked_columns, prompt_end, nodes = _asked(rows, prefix.length, lanes)
    keys = [(k.expand(lanes.count, -1, -1, -1), v.expand(lanes.count, -1, -1, -1)) for k, v in prefix.layers]
    columns = torch.tensor(asked_columns, device=device)
    own_lanes, last_columns = torch.tensor(lanes.lane, device=device), columns[prompt_end]
    weights = _span_weights(rows, prefix.length, lanes).to(device)
    states: list[Tensor] = []

    def reduce(hidden: Tensor) -> Tensor:
        """*Shape:* (lanes, length, hidden) -> (rows, 1 or 2, hidden)."""
        parts = []
        if want_last:
            parts.append(hidden[own_lanes, last_columns].float())
        if want_pooled:
            parts.append(torch.einsum("rl,rlh->rh", weights, hidden[own_lanes].float()))
        return torch.stack(parts, 1)

    positions = positions.to(device)
    is_tapped = want_last or want_pooled
    with block_outputs(model, states, reduce) if is_tapped else nullcontext():
        final = base_model(model).base_model(
            input_ids=ids.to(device),
            attention_mask=_masks(model, allowed.to(device), positions),
            position_ids=positions,
            past_key_values=DynamicCache(keys) if keys else None,
            use_cache=bool(keys),
        )[0]
    asked = final[torch.tensor(asked_lanes, device=device), columns]
    return asked, prompt_end, nodes, torch.stack(states, 2).cpu() if is_tapped else None


def _pack(rows: list[Row], prefix: int, lanes: Lanes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows as one batch of lanes.

    Returns:
        Token ids and position ids, *shape* (lanes, length); which positions each sees, *shape* (lanes, length,
        prefix + length). Padding sees itself and the prefix, and no real token sees it.
    """
    ids = torch.zeros(lanes.count, lanes.length, dtype=torch.long)
    positions = torch.full((lanes.count, lanes.length), prefix)
    allowed = torch.zeros(lanes.count, lanes.length, prefix + lanes.length, dtype=torch.bool)
    allowed[:, :, :prefix] = True
    allowed[:, :, prefix:] = torch.eye(lanes.length, dtype=torch.bool)
    for row, lane, start in zip(rows, lanes.lane, lanes.start, strict=True):
        own = row.prompt[prefix:]
        end = start + len(own)
        ids[lane, start:end] = torch.tensor(own)
        positions[lane, start:end] = prefix + torch.arange(len(own))
        allowed[lane, start:end, prefix + start : prefix + end] = torch.ones(len(own), len(own)).tril().bool()
        if row.trie is None:
            continue
        for node in range(1, len(row.trie.tokens)):
            column = end + node - 1
            ids[lane, column] = row.trie.tokens[node]
            positions[lane, column] = row.root + row.trie.depths[node] - 1
            allowed[lane, column, prefix + start : start + row.root] = True
            parent = row.trie.parents[node]
            if parent > 0:  # what the parent sees of the trie, the child sees
                seen = slice(prefix + end, prefix + column)
                allowed[lane, column, seen] = allowed[lane, end + parent - 1, seen]
    return ids, positions, allowed


def _asked(rows: list[Row], prefix: int, lanes: Lanes) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Return (lane, column) of the positions whose logits are needed, and where each row finds its own among them."""
    asked_lanes: list[int] = []
    asked_columns: list[int] = []

    def ask(lane: int, column: int) -> int:
        asked_lanes.append(lane)
        asked_columns.append(column)
        return len(asked_lanes) - 1

    prompt_end, nodes = [], []
    for row, lane, start in zip(rows, lanes.lane, lanes.start, strict=True):
        end = start + len(row.prompt) - prefix
        prompt_end.append(ask(lane, end - 1))
        if row.trie is None:
            nodes.append([])
            continue
        root = prompt_end[-1] if row.root == len(row.prompt) else ask(lane, start + row.root - prefix - 1)
        nodes.append([root, *(ask(lane, end + node) for node in range(row.n_nodes))])
    return asked_lanes, asked_columns, prompt_end, nodes


def _masks(model: nn.Module, allowed: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
    """Return the additive attention mask(s) the model expects.

    Args:
        model: the model; its config says which layers have a sliding window.
        allowed: *Shape:* (lanes, length, keys), keys being prefix and lane.
        positions: *Shape:* (lanes, length), position ids.

    Returns:
        *Shape:* (lanes, 1, length, keys): one mask, or one a layer type where the model has several.

    Raises:
        ModelError: the model has a layer type whose mask is not known.
    """
    config = _config(model)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:
        kinds = {"sliding_attention"} if window else {"full_attention"}
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{type(base_model(model)).__name__} has {', '.join(sorted(unknown))} layers, expected full or sliding "
            "attention; evaluate it with --no-prefix-cache"
        )
    dtype = next(model.parameters()).dtype
    masks = {}
    for kind in kinds:
        seen = allowed
        if kind == "sliding_attention" and window is not None:
            n_prefix = allowed.shape[2] - allowed.shape[1]
            before = torch.arange(n_prefix, device=positions.device).expand(len(positions), -1)
            key_positions = torch.cat([before, positions], 1)
            seen = allowed & (positions[:, :, None] - key_positions[:, None, :] < window)
        additive = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        masks[kind] = additive.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _span_weights(rows: list[Row], prefix: int, lanes: Lanes) -> Tensor:
    """Return 1 / span length for tokens of the span that lie behind the prefix. *Shape:* (rows, length)."""
    weights = torch.zeros(len(rows), lanes.length)
    for r, row in enumerate(rows):
        start, end = row.span
        if end > start:
            own = lanes.start[r] - prefix
            weights[r, own + max(start, prefix) : own + max(end, prefix)] = 1 / (end - start)
    return weights


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
