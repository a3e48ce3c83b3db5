"""Logit lens: what every layer would answer if it were the last one.

Enters: the state of the last prompt token on every layer, and the answer words in English and in the prompt's
language. Leaves: one row an (item, layer) of `lens/<variant>/<task>/<language>.parquet`:

    english_mass, own_mass, shared_mass, ambiguous_mass, partial_mass
                    next-token probability of the tokens of each set, see `glotlift.explanation.token_sets`
    entropy_bits    entropy of the next token, 0 to log2(vocabulary)
    kl_bits         Kullback-Leibler divergence of the last layer's distribution from this one, 0 or more
    label_rank      rank of the most likely token that begins an answer word with a whole character, 1 for the most
                    likely of all; NaN where no such token is
    top_token       the most likely token; bytes that are no whole character stand as `⟨E0 B8⟩`
    top_tokens, top_probabilities
                    the five most likely, best first
    english_sequence_<label>, own_sequence_<label>
                    natural log of the probability of the whole word, on request (`sequences`)

Where the mass moves from English to the prompt's language tells in which language a layer answers. Layer 0 is the
embedding output; the last layer's row is the model's own next-token distribution, which is checked on every batch.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; arXiv 2405.13816, section on the logit lens (their own
quantities: `glotlift.explanation.paper_lens`). A tuned lens (arXiv 2303.08112) gives the same columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from glotlift.errors import ModelError, RunError
from glotlift.explanation.token_sets import SETS, TokenSets
from glotlift.explanation.unembedding import distributions
from glotlift.models.anatomy import base_model
from glotlift.models.token_bytes import readable

MASSES = tuple(f"{name}_mass" for name in SETS)

MEASURES = (*MASSES, "entropy_bits", "kl_bits", "label_rank")

STATES = 512
"""States whose vocabularies are read together."""

_TOLERANCE = 1e-3
"""How far the last layer may be from the model's own logits, beside two rounding steps of the model's dtype."""


@dataclass(frozen=True)
class Readings:
    """What the lens sees.

    Attributes:
        measures: in the order of `MEASURES`. *Shape:* (items, layers + 1, 8).
        top_tokens: the most likely, best first. *Shape:* (items, layers + 1, up to 5).
        top_probabilities: theirs. *Shape:* as `top_tokens`.
        log_probabilities: of the token sets' tokens and the further ones that were asked for, natural log.
            *Shape:* (items, layers + 1, tokens).
    """

    measures: np.ndarray
    top_tokens: np.ndarray
    top_probabilities: np.ndarray
    log_probabilities: np.ndarray

    def rows(self, order: Any) -> Readings:
        """Return the readings of some items, in an order."""
        return Readings(**{name: values[order] for name, values in vars(self).items()})


def joined(readings: Sequence[Readings]) -> Readings:
    """Return readings of several batches as one."""
    return Readings(**{name: np.concatenate([vars(each)[name] for each in readings]) for name in vars(readings[0])})


def read_layers(
    model: nn.Module, states: Tensor, sets: TokenSets, *, further: Sequence[int] = (), n_states: int = STATES
) -> Readings:
    """Return what the lens sees on every layer, a few items at a time.

    Args:
        model: the model.
        states: of the last prompt token. *Shape:* (items, layers + 1, hidden).
        sets: the token sets.
        further: tokens whose log-probabilities are wanted too.
        n_states: states that are read together, at least those of one item.

    Raises:
        ModelError: a number is not finite.
    """
    tokens = [*sets.tokens, *further]
    n_ranked = len(sets.tokens) - len(sets.partial)
    sizes = [len(found) for found in sets.by_name.values()]
    step = max(1, n_states // states.shape[1])
    readings = []
    for part in states.split(step):
        found = distributions(model, part, _distinct(tokens), ranked=n_ranked)
        of_tokens = found.log_probabilities[..., _places(tokens)]
        masses = [each.exp().sum(-1).clamp(max=1) for each in of_tokens[..., : sum(sizes)].split(sizes, -1)]
        bits = [found.entropy / np.log(2), found.divergence / np.log(2)]
        measures = torch.stack([*masses, *bits, found.rank], -1)
        if not torch.isfinite(measures[..., :-1]).all():
            raise ModelError("the logit lens gives values that are not finite; expected numbers (try --dtype float32)")
        parts = (measures, found.top_tokens, found.top_probabilities, of_tokens)
        readings.append(Readings(*(each.numpy() for each in parts)))
    return joined(readings)


def _distinct(tokens: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(tokens))


def _places(tokens: Sequence[int]) -> list[int]:
    place = {token: index for index, token in enumerate(_distinct(tokens))}
    return [place[token] for token in tokens]


def check_last_layer(model: nn.Module, read: np.ndarray, own: np.ndarray) -> None:
    """Check that the lens reads the model's own distribution off the last layer.

    Args:
        model: the model.
        read: logits or log-probabilities, as the lens gives them.
        own: the same, as the model gives them. *Shape:* as `read`.

    Raises:
        RunError: they differ by more than rounding.
    """
    deviation = float(np.abs(read - own).max(initial=0.0))
    allowed = _TOLERANCE + 2 * torch.finfo(base_model(model).dtype).eps * float(np.abs(own).max(initial=0.0))
    if not deviation <= allowed:  # true of NaN, too
        raise RunError(
            f"logit lens of {type(base_model(model)).__name__}: got a last layer that deviates from the model's own "
            f"logits by {deviation:.2g}, expected at most {allowed:.2g}; the lens cannot read this model"
        )


def lens_frame(
    ids: Sequence[str],
    readings: Readings,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Return the rows of a lens file, see the module's head.

    Args:
        ids: of the items.
        readings: of the items.
        tokenizer: spells the tokens.
        sequences: column -> log-probability of a whole word. *Shape:* (items, layers + 1).
    """
    n_items, n_states, _ = readings.measures.shape
    spelled = _spelling(tokenizer)
    texts = [[spelled(token) for token in tokens] for tokens in readings.top_tokens.reshape(n_items * n_states, -1)]
    flat = readings.measures.reshape(n_items * n_states, -1)
    return pd.DataFrame(
        {
            "id": np.repeat(np.array(ids, dtype=object), n_states),
            "layer": np.tile(np.arange(n_states), n_items),
            **{name: flat[:, column] for column, name in enumerate(MEASURES)},
            **{name: values.ravel() for name, values in (sequences or {}).items()},
            "top_token": [tokens[0] for tokens in texts],
            "top_tokens": texts,
            "top_probabilities": list(readings.top_probabilities.reshape(n_items * n_states, -1)),
        }
    )


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], str]:
    """Return a function: token -> its text, which spells each token once."""
    seen: dict[int, str] = {}

    def spelled(token: Any) -> str:
        number = int(token)
        if number not in seen:
            seen[number] = readable(tokenizer, number)
        return seen[number]

    return spelled
