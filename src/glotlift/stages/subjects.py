"""What a run or an explanation looks into, out of its settings. No stage of a run.

Enters: a recipe with its test sets, and a loaded model. Leaves: the test set and the subject of all kinds of
explanation, and who watches evaluation's passes for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glotlift.errors import LanguageError, RecipeError, one_of
from glotlift.evaluation.test_sets import TestSet
from glotlift.explanation.settings import ExplainSettings, Explanation, LensSettings, check_languages
from glotlift.recipe import Recipe
from glotlift.tasks.task import Task
from glotlift.training.settings import CLOSED_FORM

if TYPE_CHECKING:
    from glotlift.explanation.subject import Subject
    from glotlift.explanation.watching import LookWitnesses


def explained(recipe: Recipe, test_sets: Mapping[str, TestSet]) -> TestSet:
    """Return the test set that lens and geometry look at, with the items that they look at.

    Raises:
        RecipeError: the test set is not one of `eval`, switch-off lacks a LoRA adapter, or item-link changed states.
        LanguageError: a language to explain is not evaluated, or patching lacks English or another language.
        TaskError: the task has no answer words of a language's own.
    """
    settings = recipe.explain
    name = settings.task or next(iter(test_sets))
    if name not in test_sets:
        raise RecipeError(f"explain.task: got {name!r}, expected a test set of eval: {one_of(test_sets)}")
    test_set = test_sets[name]
    chosen = settings.languages or tuple(test_set.items)
    if missing := [code for code in chosen if code not in test_set.items]:
        has = " ".join(test_set.items)
        raise LanguageError(f"explain.languages: {' '.join(missing)} not in test set {test_set.key!r}: {has}")
    check_languages(settings.what, chosen)
    without_lora = [*(name for name in recipe.train.objective if name in CLOSED_FORM), recipe.train.method]
    if "switch-off" in settings.what and without_lora != ["lora"]:
        got = without_lora[0]
        raise RecipeError(f"explain.what: got switch-off with {got!r} training, expected one that tunes a LoRA adapter")
    if "item-link" in settings.what and "readout" in recipe.train.objective:
        raise RecipeError("explain.what: got item-link with a readout, expected training that changes states")
    for code in chosen:
        test_set.task.answers(code, "own")
    items = {code: test_set.items[code][: settings.limit] for code in chosen}
    return TestSet(test_set.settings, test_set.task, items)


def subject_of(
    loaded: Any, test_set: TestSet, folder: Path, token_budget: int, seed: int, asked: ExplainSettings | Explanation
) -> Subject:
    """Return what is looked into.

    Args:
        loaded: the model.
        test_set: with the items that are looked at.
        folder: gets a folder a kind of explanation.
        token_budget: tokens of a batch.
        seed: of all draws.
        asked: settings of explanation.
    """
    from glotlift.evaluation.prompts import prepare
    from glotlift.explanation.subject import LensOptions, Subject

    task = test_set.task
    entry = test_set.settings.model_copy(update={"closing_quote": False})  # no answer is scored here
    prompts = {code: prepare(loaded, task, code, rows, entry) for code, rows in test_set.items.items()}
    own = {code: task.answers(code, "own") for code in prompts}
    options = LensOptions(**{name: getattr(asked, name) for name in LensSettings.model_fields})
    return Subject(
        loaded, prompts, folder, test_set.key, _english_words(task, next(iter(prompts))), own, seed, token_budget,
        lens=options, pooling=asked.pooling, states_dtype=asked.states_dtype,
    )  # fmt: skip


def witnesses_of(recipe: Recipe, test_sets: Mapping[str, TestSet], loaded: Any, folder: Path) -> LookWitnesses | None:
    """Return who watches evaluation's passes for `explain`; None where the recipe has no `eval`.

    Args:
        recipe: of the run.
        test_sets: name -> test set, those of `eval`.
        loaded: the model.
        folder: the run folder.
    """
    from glotlift.explanation.watching import LookWitnesses

    if recipe.eval is None:
        return None
    rest = recipe.eval.token_budget, recipe.seed, recipe.explain
    return LookWitnesses(lambda: subject_of(loaded, explained(recipe, test_sets), folder, *rest), recipe.explain.what)


def _english_words(task: Task, language: str) -> dict[str, str]:
    return task.answers("en", "own") if "en" in task.languages else task.answers(language, "english")
