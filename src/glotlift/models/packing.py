"""How rows share a batch: which run together, in which lanes they stand, and what each token sees.

Enters: rows, each a prompt and the trie of its possible answers. Leaves: token ids, position ids and masks. No model
runs here. A row is

    [rest of the prompt][trie nodes]

behind the prefix that all rows share, and several rows stand one behind the other in a lane, so that hardly a token of
a batch is padding:

    [rest of prompt 1][nodes 1][rest of prompt 2][nodes 2] ...     lanes of equal length, padded on the right

A mask lets every token see the shared prefix and its own row only, and every trie node its own ancestors of that, at
the position it would have if it stood alone. Sliding windows are part of the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from glotlift.errors import ModelError
from glotlift.models.anatomy import base_model, text_config
from glotlift.models.labels import LabelTrie
from glotlift.models.patch import Patch

TOKEN_BUDGET = 1024
"""Tokens that run through the blocks together, trie nodes included; see benchmarks/evaluate.py for others."""

POSITIONS = 1024
"""Positions whose scores a batch may ask for."""

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
        by_position: average with the weights 1, 2, ... over the span, so that later tokens, which have seen more, count
            more (SGPT, arXiv 2202.08904); else all count alike.
        patches: states that are put into it while it runs.
    """

    prompt: tuple[int, ...]
    trie: LabelTrie | None = None
    root: int = 0
    span: tuple[int, int] = (0, 0)
    by_position: bool = False
    patches: tuple[Patch, ...] = field(default=(), compare=False)

    @property
    def n_nodes(self) -> int:
        """Trie nodes that run through the model: all but the root."""
        return 0 if self.trie is None else len(self.trie.tokens) - 1

    @property
    def reach(self) -> int:
        """Positions the row needs: its prompt, or its deepest trie node."""
        return max(len(self.prompt), self.root + max(self.trie.depths) if self.trie else 0)


def plan_batches(
    rows: Sequence[Row],
    *,
    token_budget: int = TOKEN_BUDGET,
    batch_size: int | None = None,
    n_positions: int = POSITIONS,
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


def shared_length(rows: Sequence[Row]) -> int:
    """Return how many first tokens all rows share.

    Every row is left its trie's root, one token of its own, a span averaged by position, and all that is patched.
    """
    first = rows[0].prompt
    length = len(first)
    for row in rows:
        limit = min(length, len(row.prompt) - 1, row.root - 1 if row.trie else len(row.prompt) - 1)
        limit = min(limit, row.span[0]) if row.by_position else limit
        limit = min([limit, *(patch.span[0] for patch in row.patches)])
        length = next((i for i in range(limit) if row.prompt[i] != first[i]), max(limit, 0))
    return length


def check_lengths(model: nn.Module, rows: Sequence[Row]) -> None:
    """Check that all rows fit the model's window.

    Raises:
        ModelError: one does not.
    """
    window = getattr(text_config(model), "max_position_embeddings", None)
    if window is None:
        return
    for index, row in enumerate(rows):
        if row.reach > window:
            raise ModelError(
                f"prompt {index + 1} has {row.reach} tokens, the model's window {window}; "
                "use fewer demonstrations, shorter texts or a model with a longer window"
            )


def _batches(
    rows: Sequence[Row], prefix: int, token_budget: int, position_budget: int, batch_size: int | None
) -> Iterator[list[int]]:
    """Yield indexes of rows of like length that together keep within the budgets."""
    lengths = [own_length(row, prefix) for row in rows]
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


def own_length(row: Row, prefix: int) -> int:
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


def put_in_lanes(lengths: Sequence[int], prefix: int) -> Lanes:
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


def cut_into_parts(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield the positions of rows that go through the blocks together, in order, at least one at a time."""
    part: list[int] = []
    tokens = 0
    for k, length in enumerate(lengths):
        if part and tokens + length > token_budget:
            yield part
            part, tokens = [], 0
        part.append(k)
        tokens += length
    yield part


def pack(rows: list[Row], prefix: int, lanes: Lanes) -> tuple[Tensor, Tensor, Tensor]:
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


def asked_positions(
    rows: list[Row], prefix: int, lanes: Lanes
) -> tuple[list[int], list[int], list[int], list[list[int]]]:
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


def attention_masks(model: nn.Module, allowed: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
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
    config = text_config(model)
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


def span_weights(rows: list[Row], prefix: int, lanes: Lanes) -> Tensor:
    """Return what each token of a lane counts in the average over a row's span; the prefix's part is left out.

    *Shape:* (rows, length). The weights of a whole span add up to 1.
    """
    weights = torch.zeros(len(rows), lanes.length)
    for r, row in enumerate(rows):
        start, end = row.span
        if end > start:
            own = lanes.start[r] - prefix
            weigh = torch.arange(1.0, end - start + 1) if row.by_position else torch.ones(end - start)
            behind = weigh[max(prefix - start, 0) :] / weigh.sum()
            weights[r, own + max(start, prefix) : own + max(end, prefix)] = behind
    return weights
