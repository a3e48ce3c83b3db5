"""One prompt under the lens: what every layer would say next, at its last tokens.

Enters: a loaded model, a text. Leaves: a data frame of one row a (layer, token).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from glotlift.errors import ModelError
from glotlift.explanation.self_test import self_test
from glotlift.explanation.subject import looked_into, say_what_is_left_out
from glotlift.explanation.tuned_lens import TunedLens
from glotlift.explanation.unembedding import Distributions, distributions
from glotlift.models.control import encode
from glotlift.models.load import LoadedModel
from glotlift.models.packing import Row, check_lengths
from glotlift.models.taps import block_outputs
from glotlift.models.token_bytes import readable

COLUMNS = ("layer", "position", "token", "base_token", "base_probability")

TUNED_COLUMNS = ("tuned_token", "tuned_probability", "change")


def lens_of_text(
    loaded: LoadedModel,
    text: str,
    *,
    n_tokens: int = 5,
    language: str | None = None,
    tuned_lens: TunedLens | None = None,
) -> pd.DataFrame:
    """Return what every layer would say behind the last tokens of a text.

    Args:
        loaded: the model.
        text: the prompt; control tokens may be written in it.
        n_tokens: last tokens that are read.
        language: see `LoadedModel.as_variant`.
        tuned_lens: reads instead of the plain lens.

    Returns:
        One row a layer and token, columns as `COLUMNS`: `token` of the text at `position`, from 0; the most likely next
        token and its probability, 0 to 1. With an adapter that changes what is inside also `TUNED_COLUMNS`: `change` is
        what the adapter adds to the probability of the tuned model's token, -1 to 1.

    Raises:
        ModelError: the text has no token, or too many for the model.
        RunError: the lens cannot read the model.
    """
    say_what_is_left_out(loaded)
    (tokens,) = encode(loaded.tokenizer, [text])
    if not tokens:
        raise ModelError("got a text without tokens, expected some")
    check_lengths(loaded.model, [Row(tuple(tokens))])
    asked = list(range(max(0, len(tokens) - n_tokens), len(tokens)))
    states, read = {}, {}
    for variant in looked_into(loaded):
        self_test(loaded, variant, language)
        with loaded.as_variant(variant, language) as model:
            states[variant] = _states(model, tokens, len(asked))
            if tuned_lens is not None:
                states[variant] = tuned_lens.translate(states[variant])
            read[variant] = distributions(model, states[variant], ())
    n_states = states["base"].shape[1]
    frame = pd.DataFrame(
        {
            "layer": list(range(n_states)) * len(asked),
            "position": [position for position in asked for _ in range(n_states)],
            "token": [readable(loaded.tokenizer, tokens[position]) for position in asked for _ in range(n_states)],
        }
    )
    for variant, found in read.items():
        frame[f"{variant}_token"] = [readable(loaded.tokenizer, token) for token in _best(found).flatten().tolist()]
        frame[f"{variant}_probability"] = found.top_probabilities[..., 0].flatten().numpy()
    if "tuned" in read:
        said = _best(read["tuned"])
        with loaded.as_variant("base", language) as model:
            before = _probabilities(model, states["base"], said)
        frame["change"] = (read["tuned"].top_probabilities[..., 0] - before).flatten().numpy()
    return frame


def _states(model: Any, tokens: list[int], n_tokens: int) -> Tensor:
    """Return the states of the last tokens. *Shape:* (tokens, layers + 1, hidden)."""
    found: list[Tensor] = []
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    with torch.inference_mode(), block_outputs(model, found, lambda hidden: hidden[0, -n_tokens:].float().cpu()):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return torch.stack(found, 1)


def _best(found: Distributions) -> Tensor:
    return found.top_tokens[..., 0]


def _probabilities(model: Any, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the probability of one token a state. *Shape:* as `tokens`, (items, states)."""
    distinct, places = torch.unique(tokens, return_inverse=True)
    found = distributions(model, states, distinct.tolist()).log_probabilities
    return found.gather(-1, places[..., None])[..., 0].exp()
