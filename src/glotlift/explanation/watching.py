"""Lens and geometry as witnesses of the pass in which evaluation scores answers, so that they need none of their own.

Enters: a subject. Leaves: the same files as a pass of their own would, up to rounding, since its batches are others.
What a witness cannot look at is left to that pass: whole words and the blocks' parts, which ask for more than the pass
has; states weighted by position, which would change what its rows share; prompts that differ, and passes
that score none of the tokens that the lens reads, so that nothing would tell whether it reads the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from glotlift.explanation.collect import Look, Looks
from glotlift.explanation.subject import Subject, looked_into
from glotlift.models.forward import Batch
from glotlift.models.packing import Row

log = logging.getLogger("glotlift")


class LookWitness:
    """A look from aside: what goes wrong in it ends the look and not the pass.

    Args:
        look: at a variant and language.
        n_rows: see `glotlift.models.watching.Witness`.
        tell: is told what went wrong.
    """

    def __init__(self, look: Look, n_rows: int, tell: Callable[[Exception], None]) -> None:
        self._look: Look | None = look
        self._tell = tell
        self.n_rows, self.taps = n_rows, look.taps

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows of the pass, see `Look.rows`."""
        return self._look.rows(rows) if self._look else rows

    def see(self, model: Any, batch: Batch, tokens: Sequence[int]) -> None:
        """Look at a batch, see `Look.see`."""
        self._try(lambda look: look.see(model, batch, tokens))

    def write(self) -> None:
        """Write what was seen, see `Look.write`."""
        self._try(Look.write)

    def give_up(self, fault: Exception) -> None:
        """Let go of what was seen, and tell."""
        self._look = None
        self._tell(fault)

    def _try(self, action: Callable[[Look], Any]) -> None:
        if self._look is None:
            return
        try:
            action(self._look)
        except Exception as fault:  # whatever it is: a guest does not end the host's work
            self.give_up(fault)


class LookWitnesses:
    """Who watches the passes of an evaluation for lens and geometry.

    Once a look has failed nobody watches any more, and the pass of their own says what is wrong.

    Args:
        subject_of: makes the subject, whose questions are the first rows of the passes; called when first needed.
        kinds: of explanation; those beside lens and geometry are not watched.
    """

    def __init__(self, subject_of: Callable[[], Subject], kinds: Sequence[str]) -> None:
        self._subject_of, self._kinds = subject_of, kinds
        self._has_given_up = not {"lens", "geometry"} & set(kinds)

    @cached_property
    def _looks(self) -> Looks:
        return Looks(self._subject_of(), self._kinds)

    def of(
        self, *, variant: str, task_key: str, language: str, rows: Sequence[Row], tokens: Sequence[int]
    ) -> LookWitness | None:
        """Return who watches a pass, see `glotlift.models.watching.Witnesses`."""
        if self._has_given_up:
            return None
        try:
            return self._of(variant, task_key, language, rows, tokens)
        except Exception as fault:  # see `LookWitness`
            self._give_up(fault)
            return None

    def _of(
        self, variant: str, task_key: str, language: str, rows: Sequence[Row], tokens: Sequence[int]
    ) -> LookWitness | None:
        subject = self._looks.subject
        questions = subject.prompts.get(language)
        if questions is None or task_key != subject.task_key or not _can_be_watched(subject, self._kinds):
            return None
        n_rows = len(questions.rows)
        if variant not in looked_into(subject.loaded) or _asked(rows[:n_rows]) != _asked(questions.rows):
            return None
        look = self._looks.of(variant, language)
        if look.is_written or not look.can_be_checked(tokens):
            return None
        self._looks.test(variant, language)
        return LookWitness(look, n_rows, self._give_up)

    def _give_up(self, fault: Exception) -> None:
        self._has_given_up = True
        log.warning("explain: cannot watch the pass of eval and makes its own: %s", fault)


def _can_be_watched(subject: Subject, kinds: Sequence[str]) -> bool:
    is_weighted = "geometry" in kinds and subject.pooling == "position-weighted"
    return not (subject.lens.sequences or subject.lens.components or is_weighted)


def _asked(rows: Sequence[Row]) -> list[tuple[Any, Any]]:
    return [(row.prompt, row.span) for row in rows]
