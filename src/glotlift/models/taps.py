"""Taps: what passes between the blocks of a model while it runs.

Enters: a model. Leaves: the states behind its embedding and behind every block, reduced as they come, so that memory
holds what is kept of them only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from glotlift.models.anatomy import before_mlp, decoder_layers


@contextmanager
def block_outputs(model: nn.Module, collect: list[Any], reduce, *, between: bool = False) -> Iterator[None]:
    """Append `reduce(states)` of the embedding output and of every block's output to `collect`.

    Args:
        model: the model.
        collect: gets layers + 1 tensors.
        reduce: function of the states. *Shape:* (batch, length, hidden) -> anything.
        between: also of the state inside every block that its attention has been added to and its MLP has not, see
            `glotlift.models.anatomy.before_mlp`.

    Raises:
        ModelError: there is no such state.
    """

    def inside(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        collect.append(reduce(args[0] if args else kwargs["hidden_states"]))

    def after(_module: nn.Module, _args: tuple, output) -> None:
        collect.append(reduce(output[0] if isinstance(output, tuple) else output))

    layers = decoder_layers(model)
    middles = [before_mlp(model, layer) for layer in layers] if between else []
    handles = [middle.register_forward_pre_hook(inside, with_kwargs=True) for middle in middles]
    handles += [layers[0].register_forward_pre_hook(inside, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):
    """The last block that is needed has run."""


@contextmanager
def ended_behind(model: nn.Module, layer: int) -> Iterator[None]:
    """End a pass behind a block, and with it the `with` block; to be entered behind all taps, so that they see it.

    Args:
        model: the model.
        layer: number of the block, from 1.
    """

    def stop(*_: object) -> None:
        raise _Enough

    handle = decoder_layers(model)[layer - 1].register_forward_hook(stop)
    try:
        yield
    except _Enough:
        pass
    finally:
        handle.remove()
