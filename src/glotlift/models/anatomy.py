"""Where a model of transformers keeps its parts: decoder, blocks, final norm, settings.

Enters: a model, possibly inside a peft model. Leaves: its parts, or an error that says which one it lacks.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from glotlift.errors import ModelError


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore


def text_config(model: nn.Module) -> Any:
    """Return the config of the decoder, which models of several modalities keep inside another."""
    return base_model(model).config.get_text_config()


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of the decoder.

    Raises:
        ModelError: the model has no list of `num_hidden_layers` blocks.
    """
    count = text_config(model).num_hidden_layers
    for module in base_model(model).base_model.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(base_model(model)).__name__}: got no list of {count} decoder blocks, expected one")


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm between the last block and the language-model head.

    Raises:
        ModelError: it has none under a name that is known.
    """
    decoder = base_model(model).base_model
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if hasattr(decoder, name):
            return getattr(decoder, name)
    raise ModelError(f"{type(base_model(model)).__name__}: got no final norm, expected one")


def before_mlp(model: nn.Module, block: nn.Module) -> nn.Module:
    """Return the module of a block that is given its state between attention and MLP: the norm before the MLP.

    Raises:
        ModelError: it has no such norm under a name that is known, or runs attention and MLP side by side.
    """
    name = type(base_model(model)).__name__
    if getattr(text_config(model), "use_parallel_residual", False) or getattr(block, "parallel_attn", False):
        raise ModelError(f"{name}: got attention and MLP side by side, expected one behind the other to read between")
    has_norm_behind = hasattr(block, "post_feedforward_layernorm")  # then the norm behind attention is no MLP's
    for known in ("pre_feedforward_layernorm", "ln_2", *(() if has_norm_behind else ("post_attention_layernorm",))):
        if hasattr(block, known):
            return getattr(block, known)
    raise ModelError(f"{name}: got no norm between attention and MLP, expected one to read the state before it")
