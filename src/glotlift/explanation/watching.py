"""Lens and geometry as watchers of the pass in which evaluation scores answers, so that they need none of their own.

Enters: a subject. Leaves: the same files as a pass of their own would, up to rounding, since its batches are others.
What a watcher cannot look at (whole words, the blocks' parts, prompts that differ) is left to that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glotlift.errors import ModelError, RunError
from glotlift.explanation.collect import Look, Looks
from glotlift.explanation.subject import Subject, looked_into
from glotlift.models.forward import Batch
from glotlift.models.packing import Row


class Watching:
    """A look from aside: what it cannot read ends the look and not the pass; a pass of its own will say what it is."""

    def __init__(self, look: Look) -> None:
        self._look: Look | None = look
        self.taps = look.taps
        self.rows = look.rows

    def see(self, model: Any, batch: Batch, tokens: Sequence[int]) -> None:
        """Look at a batch, see `Look.see`."""
        self._try(lambda look: look.see(model, batch, tokens))

    def write(self) -> None:
        """Write what was seen, see `Look.write`."""
        self._try(Look.write)

    def _try(self, action: Callable[[Look], Any]) -> None:
        try:
            if self._look is not None:
                action(self._look)
        except (ModelError, RunError):
            self._look = None


def watch(subject: Subject, kinds: Sequence[str]) -> Callable[[str, str, str, Sequence[Row]], Watching | None]:
    """Return a function: variant, task, language and all rows of a pass -> who watches it; None where nobody does.

    Args:
        subject: what is looked into; its questions are the first rows of the pass.
        kinds: of explanation; those beside lens and geometry are not watched.
    """
    looks = Looks(subject, kinds)
    is_possible = {"lens", "geometry"} & set(kinds) and not (subject.lens.sequences or subject.lens.components)

    def watching(variant: str, task_key: str, language: str, rows: Sequence[Row]) -> Watching | None:
        questions = subject.prompts.get(language)
        if not is_possible or questions is None or task_key != subject.task_key:
            return None
        if variant not in looked_into(subject.loaded) or _asked(rows[: len(questions.rows)]) != _asked(questions.rows):
            return None
        look = looks.of(variant, language)
        if look.is_written:
            return None
        try:
            looks.test(variant, language)
        except (ModelError, RunError):
            return None
        return Watching(look)

    return watching


def _asked(rows: Sequence[Row]) -> list[tuple[Any, Any]]:
    return [(row.prompt, row.span) for row in rows]
