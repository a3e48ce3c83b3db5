"""Replay: what the model said before, it goes on saying (KL to the base model on unlabelled prompts).

Enters: prompts, and the base model's final states at some of their positions. Leaves: the loss of a batch: the KL
divergence of the tuned model's next-token distribution from the base's, over the whole vocabulary, at the end of the
prompt, where labels are scored, and at tokens of the question, where text is free.

The base's states are computed once and kept; its distributions come from them through the head, which stays frozen, so
no table of logits is kept and the base does not run again. Forgetting tracks this divergence (arXiv 2509.04259).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glotlift.models.head import head_logits
from glotlift.models.linear import fast_linear
from glotlift.models.packing import Row
from glotlift.models.together import Places, lay_together, states_together, to_device
from glotlift.training.objective import Part
from glotlift.training.settings import TrainSettings

N_FREE = 4
"""Positions of the question that are held, beside the end of the prompt."""


@dataclass(frozen=True)
class ReplayRow:
    """A prompt whose distributions are held.

    Attributes:
        id: `<code>:<name>`.
        language: code of the language it is asked in.
        row: the prompt, without answers.
        states: of the base model. *Shape:* (positions, hidden).
    """

    id: str
    language: str
    row: Row
    states: Tensor

    @property
    def length(self) -> int:
        """Tokens that run, demonstrations that are shared included."""
        return len(self.row.prompt)

    @property
    def weight(self) -> int:
        """Positions that are held."""
        return len(self.states)


@dataclass(frozen=True)
class Replay:
    """Next-token distributions held to those of the base model.

    Attributes:
        model: whose masks the batches are made for.
    """

    model: nn.Module

    def collate(self, rows: Sequence[ReplayRow]) -> dict[str, Any]:
        """Return rows in one sequence: inputs of the model, held positions and the base's states there."""
        given, places = lay_together(self.model, [row.row for row in rows])
        return {
            "given": given,
            "columns": torch.tensor([column for own in held_columns(places) for column in own]),
            "states": torch.cat([row.states for row in rows]),
            "ids": [row.id for row in rows],
        }

    def loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the KL divergence in nats, summed over positions."""
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        states = states_together(model, inputs["given"])[inputs["columns"]]
        with torch.no_grad():
            before = head_logits(inner, inputs["states"].to(states)).float().log_softmax(-1)
        now = head_logits(inner, states).float().log_softmax(-1)
        return nn.functional.kl_div(now, before, reduction="sum", log_target=True)


def held_columns(places: Places) -> list[list[int]]:
    """Return for every row the columns that are held: some tokens of the question, evenly, and the prompt's end."""
    columns = []
    for end, span in zip(places.ends, places.spans, strict=True):
        free = [column for column in span if column != end]
        columns.append([*free[:: max(1, len(free) // N_FREE)][:N_FREE], end])
    return columns


def replay_rows(
    model: Any, ids: Sequence[str], languages: Sequence[str], rows: Sequence[Row], batch_size: int
) -> list[ReplayRow]:
    """Return prompts with the states that the base model has at their held positions.

    Args:
        model: the base model, before it is tuned.
        ids: of the rows.
        languages: of the rows.
        rows: the prompts; label tries are left out.
        batch_size: prompts of a forward pass.
    """
    made = []
    bare = [Row(row.prompt, None, 0, row.span) for row in rows]
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(bare), batch_size):
            batch = bare[start : start + batch_size]
            given, places = lay_together(model, batch)
            states = states_together(model, to_device(given, device)).float().cpu()
            for index, columns in enumerate(held_columns(places), start):
                made.append(ReplayRow(ids[index], languages[index], bare[index], states[columns].clone()))
    return made


def replay_part(model: Any, rows: Sequence[Row], names: Sequence[str], settings: TrainSettings) -> Part:
    """Return the part of a training that holds English prompts to what the base model says.

    Args:
        model: the base model, before it is tuned.
        rows: English prompts.
        names: of the questions.
        settings: `replay`, its weight; `batch_size`, a quarter of which it adds to a step; `micro_batch_size`.
    """
    size = settings.micro_batch_size
    share = max(size, settings.batch_size // 4 // size * size)
    with fast_linear(model):
        made = replay_rows(model, [f"en:{name}" for name in names], ["en"] * len(names), rows, size)
    return Part("replay", Replay(model), made, settings.replay, share, by_language=True)
