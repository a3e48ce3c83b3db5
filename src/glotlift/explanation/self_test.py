"""Whether taps and lens read a model rightly, tried on two short texts before anything is computed.

Enters: a loaded model. Leaves: nothing, or an error of one sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glotlift.errors import GlotliftError, ModelError, RunError
from glotlift.explanation.lens import check_last_layer
from glotlift.explanation.unembedding import normed
from glotlift.models.anatomy import base_model
from glotlift.models.control import encode
from glotlift.models.forward import run
from glotlift.models.head import head_logits
from glotlift.models.load import LoadedModel
from glotlift.models.packing import Row
from glotlift.models.taps import block_outputs

_TEXTS = ("A fine day.", "It was the first rain of the year, and nobody in the village had thought of a coat.")


def self_test(loaded: LoadedModel, variant: str, language: str | None = None) -> None:
    """Check that a variant of a model can be looked into.

    Tried are: that the state behind the last block, through norm and head, is the model's own distribution; that a
    text's states are the same alone, as transformers runs it, and beside a longer text in a batch; that all are finite.

    Args:
        loaded: the model.
        variant: `base` or `tuned`.
        language: see `LoadedModel.as_variant`.

    Raises:
        RunError: a state or distribution is not what it should be.
        ModelError: the model is not built as the taps expect, or gives numbers that are not finite.
    """
    tokens = [tuple(row) for row in encode(loaded.tokenizer, list(_TEXTS))]
    with loaded.as_variant(variant, language) as model, torch.inference_mode():
        try:
            _test(model, tokens)
        except GlotliftError:
            raise
        except (RuntimeError, AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
            text = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise ModelError(
                f"{type(base_model(model)).__name__}: cannot be looked into ({text}), expected a decoder whose blocks "
                "hand on one state a token"
            ) from None


def _test(model: nn.Module, tokens: list[tuple[int, ...]]) -> None:
    alone: list[Tensor] = []
    with block_outputs(model, alone, lambda hidden: hidden[0, -1].float().cpu()):
        own = model(input_ids=torch.tensor(tokens[:1], device=next(model.parameters()).device)).logits[0, -1].float()
    states = torch.stack(alone)
    if not (torch.isfinite(states).all() and torch.isfinite(own).all()):
        raise ModelError("the model gives values that are not finite; expected numbers (try --dtype float32)")
    read = head_logits(model, normed(model, states[-1:]))[0].float()
    check_last_layer(model, read.cpu().numpy(), own.cpu().numpy())
    (batch,) = run(model, [Row(row) for row in tokens], batches=[[0, 1]], tokens=(), last_states=True)
    assert batch.last_states is not None
    beside = batch.last_states[batch.rows.index(0)].cpu()
    deviation = ((beside - states).norm(dim=1) / states.norm(dim=1).clamp(min=1e-12)).max().item()
    allowed = 1e-3 + 16 * torch.finfo(base_model(model).dtype).eps
    if not deviation <= allowed:
        raise RunError(
            f"{type(base_model(model)).__name__}: got states that change by a share of {deviation:.2g} when a longer "
            f"text is in the batch, expected at most {allowed:.2g}; the taps cannot read this model"
        )
