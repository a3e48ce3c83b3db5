"""What an objective is, and how several share the optimizer steps.

Enters: parts of a training, each an objective with its rows and a weight. Leaves: rows in the order in which they are
learned. Every optimizer step has `batch_size` rows of each part, and the loss of a step is the weighted sum of what the
parts mean over theirs, so it depends neither on how the step is cut into micro-batches nor on processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from glotlift.training.order import language_order, step_order


class LearnedRow(Protocol):
    """What every objective's rows have."""

    @property
    def id(self) -> str:
        """Name of the row in messages."""
        ...

    @property
    def language(self) -> str:
        """Code of the language it counts for."""
        ...

    @property
    def length(self) -> int:
        """Tokens that run."""
        ...

    @property
    def weight(self) -> int:
        """What the row counts in the mean: its learned tokens, or 1."""
        ...


class Objective(Protocol):
    """Something to learn from rows."""

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return rows as what `loss` takes."""
        ...

    def loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the sum of the rows' losses in nats, each times its weight."""
        ...


@dataclass(frozen=True)
class Part:
    """An objective in a training.

    Attributes:
        name: in the history.
        objective: what is learned.
        rows: from what.
        weight: of its mean loss in the loss of a step.
        batch_size: its rows in an optimizer step.
        by_language: whether the rows of a micro-batch are of one language; else they are of like length.
    """

    name: str
    objective: Objective
    rows: Sequence[LearnedRow]
    weight: float
    batch_size: int
    by_language: bool = False


@dataclass(frozen=True)
class Placed:
    """A row at its place in a training.

    Attributes:
        row: the row.
        part: number of its part.
        weight: of the part's mean loss.
        of: what the mean is over: the weights of the part's rows in this step, summed.
    """

    row: Any
    part: int
    weight: float
    of: int

    @property
    def id(self) -> str:
        """Name of the row in messages."""
        return self.row.id

    @property
    def length(self) -> int:
        """Tokens that run."""
        return self.row.length


def in_order(parts: Sequence[Part], *, epochs: float, micro_batch_size: int, seed: int) -> list[Placed]:
    """Return the rows of all optimizer steps, one behind the other; in a step, part by part.

    Args:
        parts: the first one says how many steps `epochs` passes over its rows are; the others begin anew as often as
            that takes.
        epochs: see there.
        micro_batch_size: rows of a forward pass.
        seed: of the shuffles.
    """
    n_steps = math.ceil(len(parts[0].rows) * epochs / parts[0].batch_size)
    orders = [_order(part, n_steps, micro_batch_size, seed + number) for number, part in enumerate(parts)]
    placed = []
    for step in range(n_steps):
        for number, (part, order) in enumerate(zip(parts, orders, strict=True)):
            rows = [part.rows[index] for index in order[step * part.batch_size : (step + 1) * part.batch_size]]
            of = sum(row.weight for row in rows)
            placed += [Placed(row, number, part.weight, of) for row in rows]
    return placed


def _order(part: Part, n_steps: int, micro_batch_size: int, seed: int) -> list[int]:
    lengths = [row.length for row in part.rows]
    passes = n_steps * part.batch_size / len(part.rows)
    if not part.by_language:
        return step_order(lengths, epochs=passes, batch_size=part.batch_size, seed=seed)
    languages = [row.language for row in part.rows]
    return language_order(languages, passes, part.batch_size, micro_batch_size, seed)
