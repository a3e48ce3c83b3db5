"""What stands where in a row: the columns of fields and gold, and what gold values mean.

Enters: what a task file says under `data`, and what a recipe or a flag says instead. Leaves: a `Layout`, which turns a
gold value, as text, number or boolean, into a label id. A column may be one a language: `question_{lang}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glotlift.errors import DataError, one_of
from glotlift.fields import gold_key
from glotlift.tasks.task import Task


@dataclass(frozen=True)
class Layout:
    """The columns of test rows.

    Attributes:
        gold: the column with the right label; None to look for it.
        columns: the column of a field, where it is not named like the field.
        gold_map: gold value as `gold_key` writes it -> a label id, or a word of any answer set.
    """

    gold: str | None
    columns: Mapping[str, str]
    gold_map: Mapping[str, str]

    @property
    def is_by_language(self) -> bool:
        """Whether one file serves all languages, with columns of their own."""
        return any("{lang}" in name for name in self.columns.values())

    def column(self, field: str, language: str) -> str:
        """Return the column of a field."""
        return self.columns.get(field, field).replace("{lang}", language)

    def gold_in(self, language: str) -> str | None:
        """Return the column with the right label, None where it is to be looked for."""
        return None if self.gold is None else self.gold.replace("{lang}", language)

    def label(self, task: Task, language: str, value: Any) -> str:
        """Return the label id that a gold value means.

        Raises:
            DataError: it means none.
        """
        key = gold_key(value)
        if key is None or not key.strip():
            raise DataError(f"gold is {value!r}, expected text, a whole number or a boolean")
        if self.gold_map:
            if key not in self.gold_map:
                raise DataError(f"gold is {value!r}, expected {one_of(self.gold_map)}, as gold_map says")
            return task.label_of(language, self.gold_map[key])
        try:
            return task.label_of(language, key)
        except DataError as fault:
            if isinstance(value, str):
                raise
            example = f"gold_map: {{{key}: {task.labels[0]}, ...}}"
            raise DataError(f"{fault}; or say what {key} and the others mean with `{example}`") from None


def layout_of(
    task: Task,
    *,
    gold: str | None = None,
    columns: Mapping[str, str] | None = None,
    gold_map: Mapping[str, str] | None = None,
) -> Layout:
    """Return the layout that a task file gives, with what is given here in its place.

    Args:
        task: whose `data` says what is not given.
        gold: see `Layout`.
        columns: likewise, a field each.
        gold_map: likewise, in place of all of the task's.
    """
    own = task.data
    return Layout(
        gold or (own.gold if own else None),
        {**(own.columns if own else {}), **(columns or {})},
        dict(gold_map or (own.gold_map if own else {})),
    )
