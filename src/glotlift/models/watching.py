"""Watchers: who else looks at a pass that is made to score answers, so that no second one is needed.

Enters: batches of a pass with taps. Leaves: what the watcher keeps of them. A watcher changes nothing of what is
scored: taps only read, and the scores are the same bytes with it and without (unless memory runs out, since what it
keeps takes some, and a batch that does not fit is halved).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

from glotlift.models.forward import Batch
from glotlift.models.packing import Row


class Taps(TypedDict, total=False):
    """Taps of a pass: arguments of `glotlift.models.forward.run`."""

    last_states: bool
    pooled_states: bool
    asked_states: bool


class Watcher(Protocol):
    """What a pass asks of a watcher."""

    @property
    def taps(self) -> Taps:
        """Taps that the pass needs for it."""
        ...

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows of the pass, with the spans that states are to be pooled over."""
        ...

    def see(self, model: Any, batch: Batch, tokens: Sequence[int]) -> None:
        """Look at a batch; `tokens` are the columns of its logits."""
        ...


class Witness(Watcher, Protocol):
    """A watcher of an evaluation's pass over a language, that writes what it saw.

    Attributes:
        n_rows: so many first rows of the pass it has to see.
    """

    n_rows: int

    def write(self) -> None:
        """Write what was seen; the pass is over."""
        ...

    def give_up(self, fault: Exception) -> None:
        """Let go of what was seen: the pass did not end, maybe for what was tapped."""
        ...


class Witnesses(Protocol):
    """Who watches the passes of an evaluation."""

    def of(
        self, *, variant: str, task_key: str, language: str, rows: Sequence[Row], tokens: Sequence[int]
    ) -> Witness | None:
        """Return who watches a pass, or None.

        Args:
            variant: `base` or `tuned`.
            task_key: name of the test set.
            language: of the prompts.
            rows: of the pass, in order.
            tokens: whose probabilities it gives.
        """
        ...


class LastStates:
    """Keeps the states at the last prompt token: `found`, index of a row -> *shape* (layers + 1, hidden), fp32."""

    taps: Taps = {"last_states": True}

    def __init__(self) -> None:
        self.found: dict[int, np.ndarray] = {}

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows as they are."""
        return rows

    def see(self, model: Any, batch: Batch, tokens: Sequence[int]) -> None:
        """Keep the states of a batch."""
        del model, tokens
        assert batch.last_states is not None
        self.found |= dict(zip(batch.rows, batch.last_states.numpy(), strict=True))
