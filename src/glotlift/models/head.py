"""The language-model head, on the positions that matter and without a table of all logits.

Enters: a model and final states. Leaves: logits, or of a large vocabulary only what scoring needs: the log of the sum
over it, and the logits of some tokens. The vocabulary then passes in tiles that stay in the processor's cache.

Whatever a model does behind its head (soft-cap, scaling) stays its own code: its forward runs with the blocks left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from glotlift.errors import ModelError
from glotlift.models.anatomy import base_model
from glotlift.models.linear import product

_TILE = {"cpu": 2**20}
"""Logits of a tile: on a CPU as many as its cache holds."""

_TILE_ELSEWHERE = 2**26
"""Logits of a tile on other devices, where few large products are better than many small ones."""


def language_model_head(model: nn.Module) -> nn.Module:
    """Return the module that turns final states into logits.

    Raises:
        ModelError: the model has none.
    """
    head = base_model(model).get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(base_model(model)).__name__}: got no language-model head, expected a causal language model"
        )
    return head


def head_logits(model: nn.Module, states: Tensor) -> Tensor:
    """Return the model's own logits of final states, whatever it does behind its head.

    Args:
        model: the model; its blocks do not run.
        states: after the final norm. *Shape:* (positions, hidden).

    Returns:
        *Shape:* (positions, vocabulary).
    """
    whole = base_model(model)
    output = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states[None])  # pyright: ignore
    with _replaced_forward(whole.base_model, lambda *_arguments, **_options: output):
        return whole(input_ids=torch.zeros(1, len(states), dtype=torch.long, device=states.device)).logits[0]


def head_scores(model: nn.Module, states: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return what scoring needs of the logits of final states.

    Args:
        model: see `head_logits`.
        states: see `head_logits`.
        tokens: distinct tokens whose logits are needed.

    Returns:
        The natural log of the sum of exp(logits) over the vocabulary, *shape* (positions,), and the logits of the
        tokens, *shape* (positions, tokens); both in fp32.
    """
    wanted = torch.tensor(tokens, dtype=torch.long, device=states.device)
    chosen = torch.empty(len(states), len(tokens), device=states.device)
    normalizers = []
    for start, tile in logit_tiles(model, states):
        inside = ((wanted >= start) & (wanted < start + tile.shape[1])).nonzero()[:, 0]
        chosen[:, inside] = tile[:, wanted[inside] - start]
        most = tile.amax(1, keepdim=True)
        normalizers.append(tile.sub_(most).exp_().sum(1).log_() + most[:, 0])
    return torch.stack(normalizers).logsumexp(0), chosen


def token_logits(model: nn.Module, states: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the logits of some tokens alone.

    Args:
        model: see `head_logits`.
        states: see `head_logits`; gradients run through.
        tokens: whose logits are needed.

    Returns:
        *Shape:* (positions, tokens), fp32.
    """
    head: Any = language_model_head(model)
    wanted = torch.tensor(tokens, dtype=torch.long, device=states.device)
    if not _is_plain(head):
        return head_logits(model, states)[:, wanted].float()
    bias = None if head.bias is None else head.bias[wanted]
    return behind_head(model, nn.functional.linear(_given_to_head(model, states), head.weight[wanted], bias)).float()


def logit_tiles(model: nn.Module, states: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the first token of every tile and its logits in fp32, which the caller may overwrite.

    Args:
        model: see `head_logits`.
        states: see `head_logits`.
    """
    head: Any = language_model_head(model)
    if not _is_plain(head):
        yield 0, head_logits(model, states).float().clone()
        return
    states, size = _given_to_head(model, states), tile_size(states)
    for start in range(0, len(head.weight), size):
        bias = None if head.bias is None else head.bias[start : start + size]
        tile = product(states, head.weight[start : start + size], bias)
        yield start, behind_head(model, tile).float()


def _given_to_head(model: nn.Module, states: Tensor) -> Tensor:
    """Return what the head is given of final states: the same, or scaled (MiniCPM). *Shape:* as `states`."""
    whole = base_model(model)
    output = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states[None])  # pyright: ignore
    with _replaced_forward(whole.base_model, lambda *_arguments, **_options: output), given_to_head(model) as seen:
        whole(input_ids=torch.zeros(1, len(states), dtype=torch.long, device=states.device))
    return seen[0][0]


def _is_plain(head: Any) -> bool:
    """Return whether a head is no more than its matrix; what peft or accelerate put there is called as a whole."""
    return type(head) is nn.Linear and not hasattr(head, "_hf_hook")


def tile_size(states: Tensor) -> int:
    """Return how many tokens of the vocabulary make a tile for some positions, at least one."""
    return max(1, _TILE.get(states.device.type, _TILE_ELSEWHERE) // max(1, len(states)))


def behind_head(model: nn.Module, logits: Tensor) -> Tensor:
    """Return what the model makes of its head's output: the same, or soft-capped or scaled, element by element.

    Args:
        model: neither its blocks nor its head run.
        logits: of any tokens. *Shape:* (positions, tokens).

    Returns:
        *Shape:* as `logits`.
    """
    with _replaced_forward(language_model_head(model), lambda _states: logits[None]):
        return head_logits(model, logits.new_zeros(len(logits), 1))


@contextmanager
def _replaced_forward(module: nn.Module, forward) -> Iterator[None]:
    """Give a module another forward for a while."""
    own = vars(module).get("forward")  # accelerate and `fast_linear` put one there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def head_positions(model: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let the language-model head see only some positions; logits then have the *shape* (1, positions, vocabulary).

    Args:
        model: the model; whatever it does to logits behind its head (soft-cap, scaling) stays its own.
        rows: *Shape:* (positions,), index into the batch.
        columns: *Shape:* (positions,), index into the sequence.
    """

    def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, columns].unsqueeze(0), *args[1:])

    handle = language_model_head(model).register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def given_to_head(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the states that the head is given in passes of the model, and let the head give almost nothing.

    The model is run as a whole, so that what wraps it (data-parallel training) sees the pass.

    Yields:
        A list that gets the states of every pass. *Shape:* (batch, length, hidden).
    """
    seen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        seen.append(states)
        return states[..., :1]

    with _replaced_forward(language_model_head(model), keep):
        yield seen


@contextmanager
def final_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the states behind the final norm in passes of the model: what `head_logits` and `token_logits` take.

    They are what the head is given, unless the model scales them first (MiniCPM). Yields as `given_to_head`.
    """
    seen: list[Tensor] = []
    handle = base_model(model).base_model.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
    try:
        with given_to_head(model):
            yield seen
    finally:
        handle.remove()
