"""Contrastive alignment of the middle layers: a question's states drawn to those of its English version.

Enters: the same questions in several languages. Leaves: the loss of a batch. At a layer, the mean state over the
question's tokens is compared with those of all English questions by cosine similarity; InfoNCE asks that its own
English version is the nearest. The English states are the base model's, computed once: alignment is one-sided, English
is not drawn anywhere, and all questions are negatives, not only those of the batch.

Sources: arXiv 2502.14830 (layer, pooling, temperature), which draws both sides and alternates with task training.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from glotlift.models.anatomy import decoder_layers
from glotlift.models.forward import run
from glotlift.models.linear import fast_linear
from glotlift.models.packing import Row
from glotlift.models.together import lay_together, states_together
from glotlift.training.objective import Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glotlift.models.load import LoadedModel
    from glotlift.training.consistency import Questions
    from glotlift.training.settings import TrainSettings

TEMPERATURE = 0.1
"""What similarities are divided by (arXiv 2502.14830)."""


@dataclass(frozen=True)
class StateRow:
    """A question in a language, and the number of its English version.

    Attributes:
        id: `<code>:<name>`.
        language: code of the language it is asked in.
        row: the prompt; its span is the question.
        english: number of the state it is drawn to.
    """

    id: str
    language: str
    row: Row
    english: int

    @property
    def length(self) -> int:
        """Tokens that run, demonstrations that are shared included."""
        return len(self.row.prompt)

    @property
    def weight(self) -> int:
        """Every question counts the same."""
        return 1


@dataclass(frozen=True)
class Contrastive:
    """Middle-layer states drawn to English ones.

    Attributes:
        model: whose masks the batches are made for.
        layer: the block behind which states are compared, from 1.
        english: states of the English questions, normalised. *Shape:* (questions, hidden).
    """

    model: nn.Module
    layer: int
    english: Tensor

    def collate(self, rows: Sequence[StateRow]) -> dict[str, Any]:
        """Return rows in one sequence: inputs of the model, tokens of the questions, numbers of the English states."""
        given, places = lay_together(self.model, [row.row for row in rows])
        return {
            "given": given,
            "spans": places.spans,
            "english": torch.tensor([row.english for row in rows]),
            "ids": [row.id for row in rows],
        }

    def loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the summed InfoNCE loss, in nats."""
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with _output(inner, self.layer) as seen:
            states_together(model, inputs["given"])
        pooled = torch.stack([seen[0][0, span].float().mean(0) for span in inputs["spans"]])
        similarity = nn.functional.normalize(pooled, dim=1) @ self.english.to(pooled).t() / TEMPERATURE
        return nn.functional.cross_entropy(similarity, inputs["english"], reduction="sum")


@contextmanager
def _output(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """Keep what a block gives, with its gradient. *Shape:* (batch, length, hidden)."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_layers(model)[layer - 1].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def contrastive_part(
    loaded: LoadedModel,
    prompts: Mapping[str, Questions],
    names: Sequence[str],
    held_out: Collection[str],
    settings: TrainSettings,
    seed: int,
) -> tuple[Part, list[StateRow]]:
    """Return the part of a training that aligns states, and the rows that validate it.

    Args:
        loaded: the base model.
        prompts: language -> its questions as tokens, in the order of `names`; English among them.
        names: of the questions.
        held_out: names that validate.
        settings: `layer`, as a share of the depth; `control`; `batch_size`.
        seed: of the control's shuffle.
    """
    n_layers = len(decoder_layers(loaded.model))
    layer = min(n_layers, max(1, round(settings.layer * n_layers)))
    bare = [Row(row.prompt, None, 0, row.span) for row in prompts["en"].rows]
    states = torch.zeros(len(names), 0)
    with fast_linear(loaded.model):
        for batch in run(loaded.model, bare, pooled_states=True, tokens=[0]):
            assert batch.pooled_states is not None
            if not states.shape[1]:
                states = torch.zeros(len(names), batch.pooled_states.shape[2])
            states[batch.rows] = batch.pooled_states[:, layer].float()
    order = np.arange(len(names))
    if settings.control == "shuffled-pairs":
        order = np.random.default_rng(seed).permutation(len(names))
    rows = [
        StateRow(f"{code}:{name}", code, Row(row.prompt, None, 0, row.span), int(order[number]))
        for code, each in prompts.items()
        if code != "en"
        for number, (name, row) in enumerate(zip(names, each.rows, strict=True))
    ]
    learned, validating = [], []
    for row in rows:
        (validating if row.id.split(":", 1)[1] in held_out else learned).append(row)
    objective = Contrastive(loaded.model, layer, nn.functional.normalize(states, dim=1))
    return Part("contrastive", objective, learned, 1.0, settings.batch_size, by_language=True), validating
