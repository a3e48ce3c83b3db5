"""Test sets: the tasks of an evaluation with their items, as its settings ask for them.

Enters: `EvalSettings`. Leaves: a `TestSet` for each of its tasks. All faults of settings and files show here, before
any model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glotlift.data.parallel import read_questions
from glotlift.data.read import read_items
from glotlift.errors import RecipeError
from glotlift.evaluation.settings import EvalSettings, EvalTask
from glotlift.languages import in_order, resolve
from glotlift.names import taken_twice
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item, Task


@dataclass(frozen=True)
class TestSet:
    """A task with items to ask it of.

    Attributes:
        settings: what was asked for.
        task: the task.
        items: language -> items.
        translated: language -> item id -> fields in English, as a translation engine made them; empty where none are.
    """

    settings: EvalTask
    task: Task
    items: dict[str, list[Item]]
    translated: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the test set is called in results."""
        return self.settings.name or self.task.name

    @property
    def content(self) -> list[Any]:
        """All it holds, as JSON can: prompts, demonstrations and answer words, and every item."""
        task = self.task.model_dump(mode="json")
        english = [self.translated] if self.translated else []
        return english + [
            (self.key, task, code, [(item.id, dict(item.fields), item.gold) for item in items])
            for code, items in self.items.items()
        ]


def read_test_sets(settings: EvalSettings) -> dict[str, TestSet]:
    """Return the test sets of an evaluation by name.

    Raises:
        UserError: a task, its prompts, its demonstrations or its rows are at fault, or two test sets have one name.
    """
    test_sets = [_read(entry, settings) for entry in settings.tasks]
    if taken := taken_twice(each.key for each in test_sets):
        raise RecipeError(f"tasks: got the names {', '.join(taken)}, expected distinct ones; give one a `name`")
    return {each.key: each for each in test_sets}


def contents(test_sets: Mapping[str, TestSet]) -> list[Any]:
    """Return all that test sets hold, see `TestSet.content`."""
    return [part for each in test_sets.values() for part in each.content]


def _read(entry: EvalTask, settings: EvalSettings) -> TestSet:
    task = load_task(entry.task)
    languages = entry.languages or settings.languages
    if set(languages) == set(resolve("all")) and entry.languages is None:
        languages = tuple(in_order(task.languages))
    for code in languages:
        task.preamble(code, entry.answers, entry.num_fewshot, entry.demo_seed)  # faults of the settings show at once
    options = {"limit": entry.limit, "gold": entry.gold, "columns": entry.columns, "gold_map": entry.gold_map}
    items = read_items(task, entry.source, languages, **options)
    if entry.translated is None:
        return TestSet(entry, task, items)
    foreign = [code for code in languages if code != "en"]
    files = read_questions(task, entry.translated, foreign, entry.columns)
    return TestSet(entry, task, items, {code: each.rows for code, each in files.items()})
