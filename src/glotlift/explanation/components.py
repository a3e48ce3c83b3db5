"""Component lens: what attention and MLP of every block add, and the state between them, read as the lens reads.

Enters: states before, inside and behind every block. Leaves: `components/<variant>/<task>/<language>.parquet`, one row
an (item, layer, component), layers from 1, with the masses, entropy, divergence, rank and top tokens of
`glotlift.explanation.lens`:

    attention    what the block's attention adds to its state
    before_mlp   the state with it, before the MLP
    mlp          what the block's MLP adds

Whatever stands between a module's output and the state (a norm behind it, a scale) is counted with it. What is added is
read through the model's final norm, which sets its length: its direction is what counts, not how much it moves the
state. Source: direct logit attribution (Elhage et al. 2021, "A mathematical framework for transformer circuits").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from glotlift.errors import ModelError
from glotlift.explanation.lens import Readings, lens_frame, read_layers
from glotlift.explanation.token_sets import TokenSets
from glotlift.models.anatomy import base_model

COMPONENTS = ("attention", "before_mlp", "mlp")


def read_components(model: nn.Module, states: Tensor, sets: TokenSets) -> Readings:
    """Return what the lens sees of every component.

    Args:
        model: the model.
        states: at the last prompt token: embedding output, then of every block the state before its MLP and its
            output. *Shape:* (items, 2 x layers + 1, hidden).
        sets: the token sets.

    Returns:
        Readings of attention, state before the MLP, and MLP, of the first block, the second, and so on: 3 x layers
        states.

    Raises:
        ModelError: attention adds nothing, so the state before the MLP is not what it was taken for.
    """
    before, middle, behind = states[:, :-1:2], states[:, 1::2], states[:, 2::2]
    if torch.equal(before, middle):
        name = type(base_model(model)).__name__
        raise ModelError(f"{name}: got attention and MLP side by side, expected one behind the other to read between")
    parts = torch.stack([middle - before, middle, behind - middle], 2).flatten(1, 2)
    readings = read_layers(model, torch.cat([parts, states[:, -1:]], 1), sets)  # the last one is what KL refers to
    return Readings(**{name: values[:, :-1] for name, values in vars(readings).items()})


def components_frame(ids: Sequence[str], readings: Readings, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Return the rows of a file, see the module's head; arguments as `glotlift.explanation.lens.lens_frame`."""
    frame = lens_frame(ids, readings, tokenizer)
    frame.insert(2, "component", np.array(COMPONENTS, dtype=object)[frame["layer"] % 3])
    return frame.assign(layer=frame["layer"] // 3 + 1)
