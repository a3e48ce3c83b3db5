"""Patches: states that are put into a model while it runs.

Enters: states, and where they belong: behind which block, on which tokens of a row. Leaves: the same model, which goes
on from there with them. Every row of a batch may have patches of its own, at blocks of its own, so that all layers are
patched in one pass. The hooks are taken off in `finally`.

Source: activation patching, arXiv 2004.12265 and 2202.05262.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glotlift.models.anatomy import decoder_layers


@dataclass(frozen=True)
class Patch:
    """What is put into a row.

    Attributes:
        layer: number of the block behind which it is put in, from 1; 0 for the embedding output.
        span: tokens that get it, as (start, end), counted over the prompt and then the trie's nodes but the root.
        state: *Shape:* (hidden,).
        is_added: whether it is added to the states that are there, else it takes their place.
    """

    layer: int
    span: tuple[int, int]
    state: Tensor
    is_added: bool = False


@contextmanager
def patched(model: nn.Module, placed: Sequence[tuple[int, int, Patch]]) -> Iterator[None]:
    """Put states into a batch while inside.

    Args:
        model: the model.
        placed: lane, the column that the row's first token has or would have in it, and the patch.
    """
    of_layer: dict[int, list[tuple[int, int, Patch]]] = defaultdict(list)
    for lane, column, patch in placed:
        of_layer[patch.layer].append((lane, column, patch))
    layers = decoder_layers(model)
    handles: list[Any] = []
    try:
        for layer, patches in of_layer.items():
            put_in = _PutIn(patches, next(model.parameters()))
            if layer == 0:
                handles.append(layers[0].register_forward_pre_hook(put_in.before, with_kwargs=True))
            else:
                handles.append(layers[layer - 1].register_forward_hook(put_in.after))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _PutIn:
    """The hooks of a layer, before its block (`before`) or behind it (`after`)."""

    def __init__(self, patches: Sequence[tuple[int, int, Patch]], like: Tensor) -> None:
        places = [
            (lane, column + position, number)
            for number, (lane, column, patch) in enumerate(patches)
            for position in range(*patch.span)
        ]
        self._lanes, self._columns, numbers = torch.tensor(places, device=like.device).view(-1, 3).T.long()
        self._states = torch.stack([patch.state for _, _, patch in patches]).to(like)[numbers]
        kept = torch.tensor([float(patch.is_added) for _, _, patch in patches]).to(like)
        self._kept = kept[numbers][:, None]

    def before(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (self._changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._changed(kwargs["hidden_states"])}

    def after(self, _module: nn.Module, _args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._changed(output[0]), *output[1:])
        return self._changed(output)

    def _changed(self, states: Tensor) -> Tensor:
        """*Shape:* (lanes, length, hidden)."""
        changed = states.clone()
        changed[self._lanes, self._columns] = self._kept * states[self._lanes, self._columns] + self._states
        return changed
