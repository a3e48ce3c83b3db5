"""What the next-token distribution of any layer's state is, without a table of all logits.

Enters: a model, states of any block. Leaves: entropy, divergence from the last layer, rank and log-probabilities of
some tokens, the most likely tokens. The vocabulary passes in tiles (`glotlift.models.head`), so memory holds a tile and
a few numbers a state.

All that comes behind the blocks is the model's own code: the final norm, once, the head, and soft-cap or scaling where
it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glotlift.models.anatomy import base_model, decoder_layers
from glotlift.models.head import logit_tiles, token_logits

N_TOP = 5
"""Tokens that are kept of every distribution."""

_BLOCK = 64
"""Tokens whose maximum is looked at first in the search for the most likely ones."""

_SMALLEST = -87.0
"""Logits below the largest where exp ends: what it makes of smaller ones is no normal fp32 number, and takes a CPU 40
times as long. Early layers have many of them."""


@dataclass(frozen=True)
class Distributions:
    """What is known of next-token distributions; the last state of an item is what the others are held against.

    Attributes:
        log_probabilities: of the asked tokens, natural log. *Shape:* (items, states, tokens).
        entropy: in nats, 0 to log(vocabulary). *Shape:* (items, states).
        divergence: Kullback-Leibler divergence of the last state's distribution from this one, KL(last || this), in
            nats, 0 or more. *Shape:* (items, states).
        rank: of the most likely of the ranked tokens, 1 for the most likely of all; among tokens that are not ranked.
            NaN where none is ranked. *Shape:* (items, states).
        top_tokens: the most likely, best first. *Shape:* (items, states, up to n_top).
        top_probabilities: theirs, 0 to 1. *Shape:* as `top_tokens`.
    """

    log_probabilities: Tensor
    entropy: Tensor
    divergence: Tensor
    rank: Tensor
    top_tokens: Tensor
    top_probabilities: Tensor


def normed(model: nn.Module, states: Tensor) -> Tensor:
    """Return the model's final states if its last block had put out these: behind the final norm.

    The states replace the last block's output in a pass over one token, as if they were a batch. Gradients run through.

    Args:
        model: a causal language model of transformers, or a peft model around one.
        states: output of any block. *Shape:* (states, hidden).

    Returns:
        *Shape:* (states, hidden), in the model's dtype.
    """

    def replace(_module: nn.Module, _args: tuple, output: Any) -> Any:
        block = output[0] if isinstance(output, tuple) else output
        given = states.to(block.device, block.dtype)[:, None]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = decoder_layers(model)[-1].register_forward_hook(replace)
    try:
        any_token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        return base_model(model).base_model(input_ids=any_token, use_cache=False)[0][:, 0]
    finally:
        handle.remove()


def distributions(
    model: nn.Module, states: Tensor, tokens: Sequence[int], *, ranked: int | None = None, n_top: int = N_TOP
) -> Distributions:
    """Return what the model would say next if its last block had put out these states.

    Sums run relative to each state's largest logit, so a probability that underflows adds 0, not NaN.

    Args:
        model: the model.
        states: *Shape:* (items, states, hidden); the last state of an item is its last layer's.
        tokens: whose log-probabilities are wanted, distinct.
        ranked: so many first ones of them are ranked; None for all.
        n_top: tokens that are kept of every distribution.
    """
    n_items, n_states, _ = states.shape
    with torch.inference_mode():
        final = normed(model, states.flatten(0, 1))
        chosen = token_logits(model, final, tokens)
        of_ranked = chosen[:, :ranked]
        best = of_ranked.amax(1, keepdim=True) if of_ranked.shape[1] else None
        wanted = torch.tensor(tokens[:ranked], dtype=torch.long, device=final.device)
        n_above = torch.zeros(len(final), device=final.device)
        parts, tops = [], []
        for start, tile in logit_tiles(model, final):
            values, found = _most_likely(tile, n_top)
            tops.append((values, found + start))
            if best is not None:
                inside = wanted[(wanted >= start) & (wanted < start + tile.shape[1])] - start
                is_above = torch.gt(tile, best, out=torch.empty_like(tile))  # sums of bools are slow
                n_above += is_above.sum(1) - is_above[:, inside].sum(1)  # `best` may be above itself by rounding
            parts.append(_sums(tile, values[:, :1], n_items))
        most, mass, moment, cross = (torch.stack(part) for part in zip(*parts, strict=True))
    likely = torch.cat([values for values, _ in tops], 1)
    top, found = likely.topk(min(n_top, likely.shape[1]))
    peak = most.amax(0)
    log_mass = (most - peak + mass.log()).logsumexp(0)  # log of the sum of exp(logit - peak)
    share = (most - peak - log_mass).exp()  # what a unit of a tile's mass is of the whole
    mean = (share * (moment + (most - peak) * mass)).sum(0)  # of logit - peak, under the distribution itself
    of_last, last_mass = (each.unflatten(1, (n_items, n_states))[..., -1:] for each in (share, mass))
    shift = (most - peak).unflatten(1, (n_items, n_states))
    under_last = (of_last * (cross.unflatten(1, (n_items, n_states)) + shift * last_mass)).sum(0)
    log_of_last = under_last - log_mass.unflatten(0, (n_items, n_states))  # mean log-probability under the last state's
    shape = (n_items, n_states)
    return Distributions(
        log_probabilities=(chosen - (peak + log_mass)[:, None]).unflatten(0, shape).cpu(),
        entropy=(log_mass - mean).clamp(min=0).unflatten(0, shape).cpu(),
        divergence=(log_of_last[:, -1:] - log_of_last).clamp(min=0).cpu(),
        rank=(n_above + 1 if best is not None else n_above * torch.nan).unflatten(0, shape).cpu(),
        top_tokens=torch.cat([ids for _, ids in tops], 1).gather(1, found).unflatten(0, shape).cpu(),
        top_probabilities=(top - (peak + log_mass)[:, None]).exp().unflatten(0, shape).cpu(),
    )


def _sums(tile: Tensor, most: Tensor, n_items: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of a tile, for every state, sums over its tokens; overwrites the tile.

    Args:
        tile: *Shape:* (items x states, tokens).
        most: its largest logit a state. *Shape:* (items x states, 1).
        n_items: how many items the states belong to.

    Returns:
        The largest logit m; the sum of e = exp(z - m); the sum of e (z - m); and the sum of (z - m) times e of the
        item's last state. *Shape:* (items x states,) each.
    """
    shifted = tile.sub_(most)
    weights = shifted.clamp(min=_SMALLEST).exp_()
    by_item = shifted.unflatten(0, (n_items, -1))
    of_last = weights.unflatten(0, (n_items, -1))[:, -1, :, None]
    cross = torch.bmm(by_item, of_last).flatten()
    return most[:, 0], weights.sum(1), torch.linalg.vecdot(weights, shifted), cross


def _most_likely(tile: Tensor, n_top: int) -> tuple[Tensor, Tensor]:
    """Return the largest logits of every state, and their places in the tile, best first.

    The n largest are in the n blocks with the largest maxima, or behind the last whole block.
    """
    n_blocks, n_tokens = tile.shape[1] // _BLOCK, tile.shape[1]
    if n_blocks <= 2 * n_top:
        return tuple(tile.topk(min(n_top, n_tokens)))  # pyright: ignore[reportReturnType]
    blocks = tile[:, : n_blocks * _BLOCK].unflatten(1, (n_blocks, _BLOCK)).amax(2).topk(n_top).indices
    inside = torch.arange(_BLOCK, device=tile.device)
    behind = torch.arange(n_blocks * _BLOCK, n_tokens, device=tile.device).expand(len(tile), -1)
    places = torch.cat([(blocks[:, :, None] * _BLOCK + inside).flatten(1), behind], 1)
    values, found = tile.gather(1, places).topk(n_top)
    return values, places.gather(1, found)
