"""Steering: what tells a language's states from the English ones, added in the middle of a model and taken off again.

Enters: a running model and the language of its prompts. Leaves: the same model with

    h += strength * offset[language]      behind block `low`
    h -= strength * offset[language]      behind block `high`

so that the blocks between work on states that stand where English ones do, and those behind see the language again. A
language without an offset is run as it is. No weight changes; the offsets are kept as `steering.safetensors`.

Sources: arXiv 2311.03788, 2505.13141 and 2601.16390, which steer by mean offsets of a middle band.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glotlift.errors import ModelError
from glotlift.models.anatomy import decoder_layers
from glotlift.names import STEERING
from glotlift.runs import write_atomic


@dataclass(frozen=True)
class Steering:
    """Offsets a language, and where they are put on and off.

    Attributes:
        low: block behind which they are added, from 1.
        high: block behind which they are taken off.
        strength: what they are multiplied by.
        offsets: language -> what English states have more, behind block `low`. *Shape:* (hidden,).
        base: digest of the weights that they were computed on.
    """

    low: int
    high: int
    strength: float
    offsets: Mapping[str, Tensor]
    base: str

    @contextmanager
    def steered(self, model: nn.Module, language: str) -> Iterator[None]:
        """Steer a model while inside, where the language has an offset."""
        offset = self.offsets.get(language)
        layers = decoder_layers(model)
        handles = []
        if offset is not None and self.strength:
            moves = ((self.low, self.strength * offset), (self.high, -self.strength * offset))
            handles = [layers[block - 1].register_forward_hook(_mover(move)) for block, move in moves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _mover(move: Tensor) -> Any:
    def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        moved = states + move.to(states)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook


def save_steering(steering: Steering, folder: Path) -> None:
    """Write offsets into a folder."""
    about = {"low": steering.low, "high": steering.high, "strength": steering.strength, "base": steering.base}
    tensors = {code: offset.contiguous() for code, offset in steering.offsets.items()}
    write_atomic(folder / STEERING, lambda file: save_file(tensors, file, {"steering": json.dumps(about)}))


def load_steering(folder: Path, hidden_size: int, n_layers: int, base: str) -> Steering:
    """Return the offsets of a folder.

    Args:
        folder: that holds `steering.safetensors`.
        hidden_size: of the model that is steered.
        n_layers: of that model.
        base: digest of its weights.

    Raises:
        ModelError: the file is damaged, or made for another model.
    """
    file = folder / STEERING
    try:
        with safe_open(file, "pt") as stored:
            about = json.loads((stored.metadata() or {})["steering"])
            offsets = {code: stored.get_tensor(code) for code in stored.keys()}  # noqa: SIM118
        found = Steering(int(about["low"]), int(about["high"]), float(about["strength"]), offsets, str(about["base"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as fault:
        raise ModelError(f"{file}: cannot be read as steering ({str(fault).splitlines()[0]})") from None
    fits = all(offset.shape == (hidden_size,) for offset in offsets.values()) and found.high <= n_layers
    if not fits or found.base != base:
        raise ModelError(f"{file}: got steering of another model, expected that of the model that is steered")
    return found
