"""Rows in one sequence, behind the prefix they share, for a pass that gradients run through.

Enters: rows (`glotlift.models.packing.Row`). Leaves: what the model is given, and where each row finds its states.

    [shared prefix][rest of prompt 1][nodes 1][rest of prompt 2][nodes 2] ...

The masks are those of the cached pass: a row sees the prefix and itself. Demonstrations so run once a batch, forward
and backward, where the plain way runs them once a row and label. The model is run as a whole, so that what wraps it
(data-parallel training) sees the pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glotlift.models.head import final_states
from glotlift.models.packing import Lanes, Row, asked_positions, attention_masks, own_length, pack, shared_length


@dataclass(frozen=True)
class Places:
    """Where rows stand in the sequence.

    Attributes:
        ends: for every row, the column of its last prompt token.
        nodes: for every row, the columns of its trie nodes, root first.
        spans: for every row, the columns of the tokens of its span.
    """

    ends: list[int]
    nodes: list[list[int]]
    spans: list[list[int]]


def lay_together(model: nn.Module, rows: Sequence[Row]) -> tuple[dict[str, Any], Places]:
    """Return the model's inputs for rows that stand in one sequence, and their places in it.

    Args:
        model: whose layer types and dtype the masks are for.
        rows: at least one.

    Returns:
        `input_ids`, `position_ids`, *shape* (1, length), and `attention_mask`, see `packing.attention_masks`.
    """
    prefix = shared_length(rows)
    lengths = [own_length(row, prefix) for row in rows]
    starts = [sum(lengths[:index]) for index in range(len(rows))]
    lanes = Lanes(1, sum(lengths), [0] * len(rows), starts)
    ids, positions, allowed = pack(list(rows), prefix, lanes)
    total = prefix + lanes.length
    seen = torch.zeros(1, total, total, dtype=torch.bool)
    seen[0, :prefix, :prefix] = torch.ones(prefix, prefix).tril().bool()
    seen[:, prefix:] = allowed
    ids = torch.cat([torch.tensor([rows[0].prompt[:prefix]], dtype=ids.dtype), ids], 1)
    positions = torch.cat([torch.arange(prefix)[None], positions], 1)
    _, asked, ends, nodes = asked_positions(list(rows), prefix, lanes)
    columns = [prefix + column for column in asked]

    def spanned(row: Row, start: int) -> list[int]:
        return [token if token < prefix else start + token for token in range(*row.span)]

    places = Places(
        [columns[end] for end in ends],
        [[columns[node] for node in each] for each in nodes],
        [spanned(row, start) for row, start in zip(rows, starts, strict=True)],
    )
    given = {"input_ids": ids, "position_ids": positions, "attention_mask": attention_masks(model, seen, positions)}
    return given, places


def states_together(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """Return the final states of a sequence, behind the final norm. *Shape:* (length, hidden)."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    with final_states(inner) as seen:
        model(**given, use_cache=False)
    return seen[0][0]


def to_device(given: Any, device: torch.device) -> Any:
    """Return inputs with their tensors on a device; mappings inside are gone through too."""
    if isinstance(given, Mapping):
        return {key: to_device(value, device) for key, value in given.items()}
    return given.to(device) if isinstance(given, Tensor) else given
