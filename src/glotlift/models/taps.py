"""Taps: what passes between the blocks of a model while it runs.

Enters: a model. Leaves: the states behind its embedding and behind every block, reduced as they come, so that memory
holds what is kept of them only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from glotlift.models.anatomy import decoder_layers


class _Enough(Exception):
    """The last block that is needed has run."""


@contextmanager
def block_outputs(model: nn.Module, collect: list[Tensor], reduce, until: int | None = None) -> Iterator[None]:
    """Append `reduce(states)` of the embedding output and of every block's output to `collect`.

    Args:
        model: the model.
        collect: gets layers + 1 tensors, or `until` + 1.
        reduce: function of the states. *Shape:* (batch, length, hidden) -> anything.
        until: number of the block, from 1, behind which the pass ends, and with it the `with` block.
    """

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        collect.append(reduce(args[0] if args else kwargs["hidden_states"]))

    def after(_module: nn.Module, _args: tuple, output) -> None:
        collect.append(reduce(output[0] if isinstance(output, tuple) else output))

    def stop(*_: object) -> None:
        raise _Enough

    layers = decoder_layers(model)[:until]
    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    if until is not None:
        handles.append(layers[-1].register_forward_hook(stop))
    try:
        yield
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
