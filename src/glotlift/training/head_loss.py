"""Cross entropy behind a frozen language-model head, in one pass over the vocabulary and without a table of logits.

Seen from the states, the head is an attention over the rows of its weight: with `p` the softmax over the vocabulary,

    loss = log sum_v exp(state · w_v) - state · w_target        d loss / d state = sum_v p_v w_v - w_target

So loss and gradient come out together as in online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867): a tile of
the vocabulary at a time, a running maximum, a running sum. Two matrix products a tile, as many as logits and their
backward pass take; no softmax is kept, the frozen weight gets no gradient, and memory does not grow with the
vocabulary. What a model does behind its head (soft-cap, scaling) is its own code, whose slope is taken by autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glotlift.models.head import behind_head, language_model_head, tile_size
from glotlift.models.linear import product


def head_loss(model: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross entropy of some positions, in nats; the gradient runs to the states only.

    Args:
        model: a causal language model whose head is `can_stream`.
        states: what the head is given. *Shape:* (positions, hidden).
        targets: the token that is right at each. *Shape:* (positions,).
    """
    return _HeadLoss.apply(states, targets, model)  # pyright: ignore[reportReturnType]


def can_stream(model: nn.Module) -> bool:
    """Return whether a model's head is a plain, whole and frozen linear layer, as `head_loss` needs it."""
    head = language_model_head(model)
    is_plain = type(head) is nn.Linear and not hasattr(head, "_hf_hook") and type(head.weight) is nn.Parameter
    return is_plain and not any(parameter.requires_grad for parameter in head.parameters())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, model: nn.Module) -> Tensor:
        loss, gradient = _loss_and_gradient(model, states, targets)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None


def _loss_and_gradient(model: nn.Module, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its gradient. *Shape:* (positions, hidden) -> (), (positions, hidden)."""
    head: Any = language_model_head(model)
    weight, bias = head.weight, head.bias
    plain = _is_identity(model, states)
    kind = torch.float64 if states.dtype == torch.float64 else torch.float32
    most = states.new_full((len(states), 1), -torch.inf, dtype=kind)
    total = states.new_zeros((len(states), 1), dtype=kind)
    pulled = torch.zeros_like(states, dtype=kind)
    right = states.new_zeros(len(states), dtype=kind)
    slope_of_right = states.new_ones(len(states), dtype=kind)
    size = tile_size(states)
    for start in range(0, len(weight), size):
        rows = weight[start : start + size]
        tile = product(states, rows, None if bias is None else bias[start : start + size])
        logits, slope = (tile, None) if plain else _with_slope(model, tile)
        logits = logits.to(kind)
        inside = ((targets >= start) & (targets < start + len(rows))).nonzero()[:, 0]
        right[inside] = logits[inside, targets[inside] - start]
        if slope is not None:
            slope_of_right[inside] = slope[inside, targets[inside] - start].to(kind)
        higher = torch.maximum(most, logits.amax(1, keepdim=True))
        weights = logits.sub_(higher).exp_()
        shrunk = (most - higher).exp_()
        total.mul_(shrunk).add_(weights.sum(1, keepdim=True))
        if slope is not None:
            weights.mul_(slope)
        pulled.mul_(shrunk).add_(product(weights.to(rows.dtype), rows.t()))
        most = higher
    loss = (total.log_() + most).sum() - right.sum()
    gradient = pulled.div_(total.exp_()).sub_(weight[targets].to(kind) * slope_of_right[:, None])
    return loss, gradient.to(states.dtype)


def _is_identity(model: nn.Module, states: Tensor) -> bool:
    """Return whether the model leaves logits as the head gives them."""
    probe = torch.linspace(-50, 50, 64, device=states.device, dtype=states.dtype)[None]
    return torch.equal(behind_head(model, probe).to(probe.dtype), probe)


def _with_slope(model: nn.Module, tile: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the model makes of logits, and its derivative, element by element."""
    with torch.enable_grad():
        given = tile.detach().requires_grad_()
        made = behind_head(model, given)
        (slope,) = torch.autograd.grad(made.sum(), given)
    return made.detach(), slope
