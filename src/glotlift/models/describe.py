"""What a model name stands for.

Enters: a name, as `glotlift.models.load` reads it. Leaves: the facts that `glotlift models` prints.
"""

from __future__ import annotations

from typing import Any

from glotlift.models.anatomy import decoder_layers, text_config
from glotlift.models.load import load_model


def describe_model(name: str = "demo") -> dict[str, Any]:
    """Return what a model name stands for; a GGUF file is converted when first asked.

    Args:
        name: see `glotlift.models.load.load_model`.

    Returns:
        `architecture`, `parameters` (number), `dtype`, `layers`, `width`, `tokens` (of the vocabulary), `window`
        (tokens), `fingerprint` (of the weights).

    Raises:
        ModelError: there is no such model.
    """
    loaded = load_model(name)
    config = text_config(loaded.model)
    return {
        "architecture": type(loaded.model).__name__,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "layers": len(decoder_layers(loaded.model)),
        "width": config.hidden_size,
        "tokens": config.vocab_size,
        "window": config.max_position_embeddings,
        "fingerprint": loaded.fingerprint,
    }
