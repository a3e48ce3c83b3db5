"""`diagnose`: whether there is room that alignment could fill, and where, before anything is tuned. No stage of a run.

Reads: a model, and the same questions in several languages, with or without right labels. Writes: `diagnosis.json`,
the table as `diagnosis.csv`, `.md` and `.tex`, and `figures/diagnosis.svg`, `.png` and `.pdf`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from glotlift.data.parallel import in_common, read_questions
from glotlift.data.read import NoGoldError
from glotlift.errors import DataError, RecipeError
from glotlift.evaluation.settings import Diagnosing, EvalSettings, EvalTask
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.languages import in_order, resolve
from glotlift.runs import RunFolder
from glotlift.schema import validate
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item


def diagnose(asked: Diagnosing | None = None, *, output_path: str | Path, **settings: Any) -> dict[str, Any]:
    """Say how a model's answers in every language go with those in English, without looking at a right label.

    Args:
        asked: what to look at; or its settings as keywords.
        output_path: folder for the table and the figure.
        settings: see `glotlift.evaluation.settings.Diagnosing`.

    Returns:
        The content of `diagnosis.json`: `model`, `task`, `answers`, `pivot`, `languages` (code -> a `Diagnosis` of
        `glotlift.evaluation.diagnosis`, with `room`) and `predicts`, empty without right labels: how well the measures
        that need none went with the accuracy that languages lack.

    Raises:
        UserError: a setting, the task, its rows or the model is at fault, or the languages share no questions.
    """
    from glotlift.evaluation.diagnosis import Said, diagnose_language, predicts
    from glotlift.evaluation.predict import score_and_pool
    from glotlift.evaluation.prompts import prepare
    from glotlift.models.load import load_model
    from glotlift.progress import track
    from glotlift.reporting.diagnosis import write_diagnosis

    asked = asked or validate(Diagnosing, settings, "diagnose", RecipeError)
    folder = RunFolder(Path(output_path))
    task = load_task(asked.task)
    entry = EvalTask(task=asked.task, answers=asked.answers, num_fewshot=asked.num_fewshot)
    items, is_labelled = _parallel(asked)
    pivot = "en" if "en" in items else next(iter(items))
    codes = [pivot, *(code for code in items if code != pivot)]
    loaded = load_model(asked.model, adapter=asked.adapter, dtype=asked.dtype, device=asked.device)
    found = {}
    with folder.lock(), track(f"diagnose {task.name}", sum(map(len, items.values())), "items") as advance:
        first = None
        for code in codes:
            prompts = prepare(loaded, task, code, items[code], entry)
            scores, states = score_and_pool(loaded, prompts, progress=advance)
            n_tokens = np.array([row.span[1] - row.span[0] for row in prompts.rows])
            gold = np.array([item.gold for item in items[code]]) if is_labelled else None
            said = Said(scores, n_tokens, states, gold)
            first = first or said
            found[code] = diagnose_language(code, said, first, task.labels)
        content = {
            "model": loaded.name, "task": task.name, "answers": asked.answers, "pivot": pivot,
            "languages": {code: {**asdict(each), "mexa_best": each.mexa_best, "room": each.room}
                          for code, each in found.items()},
            "predicts": predicts(found, pivot),
        }  # fmt: skip
        write_diagnosis(folder.path, content)
    return content


def _parallel(asked: Diagnosing) -> tuple[dict[str, list[Item]], bool]:
    """Return the questions that all languages have, in one order, and whether their right labels are known."""
    shared = ("task", "source", "gold", "columns", "gold_map", "answers", "num_fewshot")
    entry = {name: getattr(asked, name) for name in shared}
    chosen = validate(EvalSettings, {"tasks": [entry], "languages": asked.languages}, "diagnose", RecipeError)
    try:
        (test_set,) = read_test_sets(chosen).values()
    except NoGoldError:
        if asked.gold is not None or asked.source is None:
            raise
        return _unlabelled(asked, asked.source), False
    by_name = {code: {item.id: item for item in items} for code, items in test_set.items.items()}
    names = [name for name in next(iter(by_name.values())) if all(name in each for each in by_name.values())]
    if not names:
        got = f"no item with the same id in all of {' '.join(by_name)}"
        raise DataError(f"{asked.source or asked.task}: got {got}, expected parallel questions")
    return {code: [each[name] for name in names[: asked.limit]] for code, each in by_name.items()}, True


def _unlabelled(asked: Diagnosing, source: str) -> dict[str, list[Item]]:
    task = load_task(asked.task)
    codes = asked.languages
    if set(codes) == set(resolve("all")):
        codes = tuple(in_order(task.languages))
    files = read_questions(task, source, codes, asked.columns)
    names = in_common(files)[: asked.limit]
    return {code: [Item(name, each.rows[name], "") for name in names] for code, each in files.items()}
