"""A readout: label scores read from the state of a middle layer, added to what the model says itself.

Enters: the state at the last prompt token. Leaves: a score a label. What is tuned is no weight of the model but one
matrix of hidden size x labels (see `glotlift.training.readout`), kept as `readout.safetensors`; evaluation takes the
model with it for the tuned variant.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glotlift.errors import ModelError
from glotlift.names import READOUT
from glotlift.runs import write_atomic


@dataclass(frozen=True)
class Readout:
    """Label scores as a linear function of a state.

    Attributes:
        layer: behind which block the state is taken, from 1.
        labels: ids of the labels, in order.
        mean: what is taken off the state. *Shape:* (hidden,).
        direction: what the rest is multiplied by. *Shape:* (hidden, labels).
        own: what the model's own label scores are multiplied by before the readout's are added: 1, or 0 for the readout
            alone.
    """

    layer: int
    labels: tuple[str, ...]
    mean: Tensor
    direction: Tensor
    own: float = 1.0

    @property
    def is_used(self) -> bool:
        """Whether it says anything; else the model answers as without it."""
        return bool(self.direction.any())

    def scores(self, last_states: Tensor) -> Tensor:
        """Return label scores in nats, summing to 0 over the labels.

        Args:
            last_states: of all layers at the last prompt token. *Shape:* (rows, layers + 1, hidden).

        Returns:
            *Shape:* (rows, labels), fp32.
        """
        states = last_states[:, self.layer].float().cpu()
        return (states - self.mean) @ self.direction

    def check(self, labels: Sequence[str], where: str) -> None:
        """Check that a task has the labels that are read.

        Raises:
            ModelError: it has others.
        """
        if tuple(labels) != self.labels:
            got = f"{where}: got a readout of the labels {', '.join(self.labels)}"
            raise ModelError(f"{got}, expected one of {', '.join(labels)}: a readout belongs to one task")


def save_readout(readout: Readout, folder: Path) -> None:
    """Write a readout into a folder."""
    about = {"layer": readout.layer, "labels": readout.labels, "own": readout.own}
    tensors = {"mean": readout.mean.contiguous(), "direction": readout.direction.contiguous()}
    write_atomic(folder / READOUT, lambda file: save_file(tensors, file, {"readout": json.dumps(about)}))


def load_readout(folder: Path, hidden_size: int, n_layers: int) -> Readout:
    """Return the readout of a folder.

    Args:
        folder: that holds `readout.safetensors`.
        hidden_size: of the model that it is used on.
        n_layers: of that model.

    Raises:
        ModelError: the file is damaged, or made for a model of another shape.
    """
    file = folder / READOUT
    try:
        with safe_open(file, "pt") as stored:
            about = json.loads((stored.metadata() or {})["readout"])
            mean, direction = stored.get_tensor("mean"), stored.get_tensor("direction")
        readout = Readout(int(about["layer"]), tuple(about["labels"]), mean, direction, float(about["own"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as fault:
        raise ModelError(f"{file}: cannot be read as a readout ({str(fault).splitlines()[0]})") from None
    if (
        mean.shape != (hidden_size,)
        or direction.shape != (hidden_size, len(readout.labels))
        or readout.layer > n_layers
    ):
        got = f"got a readout of hidden size {len(mean)}, layer {readout.layer}"
        raise ModelError(f"{file}: {got}, expected hidden size {hidden_size} and at most layer {n_layers}: it is of "
                         "another model")  # fmt: skip
    return readout
