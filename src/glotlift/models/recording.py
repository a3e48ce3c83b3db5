"""Passes that begin in the middle: what comes before the first difference from another pass is taken from that one.

Enters: a model. Leaves: the same model, which for batches that it has seen under `recorded` does not run its first
blocks again under `resumed`, but takes what they put out. Batches are known by their tokens and positions; one that was
not recorded (because memory ran out and it was halved) is run whole, and so is a pass that fills an empty cache, whose
keys are needed. Memory: layers x tokens x hidden of all that is recorded, so record a batch or two at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from glotlift.models.anatomy import base_model, decoder_layers
from glotlift.models.packing import TOKEN_BUDGET, Row, plan_batches


def recordable(rows: Sequence[Row], token_budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Return indexes of rows that are worth recording together: about twice `token_budget` tokens."""
    return plan_batches(rows, token_budget=max(token_budget // 4, 1))


class Recording:
    """What the blocks of a model put out, batch by batch.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._decoder, self._layers = base_model(model).base_model, decoder_layers(model)
        self._kept: dict[Any, list[Any]] = {}
        self._batch: Any = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep what the blocks put out while inside."""

        def begin(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
            self._batch = _batch(kwargs)
            if self._batch is not None:
                self._kept[self._batch] = []

        def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
            if self._batch is not None:
                self._kept[self._batch].append(output)

        handles = [self._decoder.register_forward_pre_hook(begin, with_kwargs=True)]
        try:
            handles += [layer.register_forward_hook(keep) for layer in self._layers]
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def resumed(self, layer: int) -> Iterator[None]:
        """Run only what comes behind a block while inside, for batches that were recorded.

        Args:
            layer: number of the last block that is not run, from 1; 0 runs all.
        """

        def begin(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
            kept = self._kept.get(_batch(kwargs), [])
            self._batch = kept if len(kept) == len(self._layers) else None

        def stand_in(number: int, forward: Any) -> Any:
            def recorded_or_run(*args: Any, **kwargs: Any) -> Any:
                return forward(*args, **kwargs) if self._batch is None else self._batch[number]

            return recorded_or_run

        skipped: list[Any] = list(self._layers)[:layer]
        kept = [vars(block).get("forward") for block in skipped]
        handle = self._decoder.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            for number, block in enumerate(skipped):
                block.forward = stand_in(number, block.forward)
            yield
        finally:
            handle.remove()
            for block, forward in zip(skipped, kept, strict=True):
                vars(block).pop("forward", None)
                if forward is not None:
                    block.forward = forward


def _batch(kwargs: dict) -> Any:
    """Return what a batch is known by, None for a pass that fills an empty cache, and for one of the head alone."""
    cache, positions = kwargs.get("past_key_values"), kwargs.get("position_ids")
    if positions is None or (cache is not None and cache.get_seq_length() == 0):
        return None
    ids: Tensor = kwargs["input_ids"]
    return ids.shape, ids.cpu().numpy().tobytes(), positions.cpu().numpy().tobytes()
