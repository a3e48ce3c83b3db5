"""Stage `explain`: base and tuned model looked into, on the items of one test set.

Reads: `adapter/`, the base model, the test rows. Writes: `lens/`, `geometry/`. Fingerprint: that of `eval`, and the
settings of explanation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glotlift.errors import LanguageError, RecipeError, one_of
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import TestSet, read_test_sets
from glotlift.explanation.settings import Explanation
from glotlift.recipe import Recipe
from glotlift.runs import RunFolder
from glotlift.schema import validate
from glotlift.stages.evaluate import EVALUATE
from glotlift.stages.stage import OpenRun, Stage
from glotlift.stages.train import TRAIN
from glotlift.tasks.task import Task


def explain(explanation: Explanation | None = None, *, output_path: str | Path, **settings: Any) -> Path:
    """Look inside a model: logit lens and geometry of the items of a task; with an adapter, base and tuned.

    Args:
        explanation: what to look at; or its settings as keywords.
        output_path: folder for `lens/` and `geometry/`.
        settings: see `glotlift.explanation.settings.Explanation`.

    Returns:
        The folder.
    """
    from glotlift.models.load import load_model

    asked = explanation or validate(Explanation, settings, "explain", RecipeError)
    entry = {name: getattr(asked, name) for name in ("task", "source", "answers", "limit")}
    chosen = validate(EvalSettings, {"tasks": [entry], "languages": asked.languages}, "explain", RecipeError)
    (test_set,) = read_test_sets(chosen).values()
    folder = RunFolder(Path(output_path))
    with folder.lock():
        loaded = load_model(asked.model, adapter=asked.adapter, dtype=asked.dtype, device=asked.device)
        _explain(loaded, test_set, folder.path, chosen.token_budget, asked.seed)
    return folder.path


def explained(recipe: Recipe, test_sets: Mapping[str, TestSet]) -> TestSet:
    """Return the test set that lens and geometry look at, with the items that they look at.

    Raises:
        RecipeError: the test set is not one of `eval`.
        LanguageError: a language to explain is not evaluated.
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
    for code in chosen:
        test_set.task.answers(code, "own")
    items = {code: test_set.items[code][: settings.limit] for code in chosen}
    return TestSet(test_set.settings, test_set.task, items)


def _explain(loaded: Any, test_set: TestSet, folder: Path, token_budget: int, seed: int) -> None:
    from glotlift.evaluation.prompts import prepare
    from glotlift.explanation.collect import explain_languages
    from glotlift.progress import track

    task = test_set.task
    entry = test_set.settings.model_copy(update={"closing_quote": False})  # no answer is scored here
    prompts = {code: prepare(loaded, task, code, rows, entry) for code, rows in test_set.items.items()}
    total = len(loaded.variants) * sum(len(each.rows) for each in prompts.values())
    with track(f"explain {test_set.key}", total, "items") as advance:
        explain_languages(
            loaded,
            prompts,
            folder,
            task_key=test_set.key,
            english_words=_english_words(task, next(iter(prompts))),
            own_words={code: task.answers(code, "own") for code in prompts},
            token_budget=token_budget,
            seed=seed,
            progress=advance,
        )


def _english_words(task: Task, language: str) -> dict[str, str]:
    return task.answers("en", "own") if "en" in task.languages else task.answers(language, "english")


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest

    return digest(EVALUATE.fingerprint(run), run.recipe.explain.model_dump(mode="json"))


def _do(run: OpenRun) -> None:
    test_set = explained(run.recipe, run.test_sets)
    _explain(run.loaded, test_set, run.path, run.evaluation.token_budget, run.recipe.seed)


EXPLAIN = Stage(
    "explain", "glotlift run", inputs=(TRAIN,), outputs=("lens", "geometry"), fingerprint=_fingerprint, do=_do
)
