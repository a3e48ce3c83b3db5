"""Stage `data`: the question pairs of a recipe, and their audit.

Reads: the questions that `data` of the recipe names, and the test items of `eval`, which the audit looks for in them.
Writes: `data/pairs.jsonl`, `data/audit.json`, and for objectives that ask questions as evaluation does their fields,
`data/questions.jsonl`. Fingerprint: all pairs and questions, and all test items.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glotlift.data.audit import audit_pairs
from glotlift.data.parallel import dump_questions, in_common, read_questions
from glotlift.data.questions import QuestionPair, balance_pairs, dump_pairs, load_pairs, pivot, read_pairs
from glotlift.data.read import read_items
from glotlift.errors import DataError, RecipeError
from glotlift.evaluation.test_sets import TestSet, contents
from glotlift.recipe import Recipe
from glotlift.runs import write_json, write_text
from glotlift.stages.stage import OpenRun, Stage, open_run, walk
from glotlift.tasks.load import load_task

log = logging.getLogger("glotlift")

PAIRS = "data/pairs.jsonl"
QUESTIONS = "data/questions.jsonl"
AUDIT = "data/audit.json"


def build_data(recipe: Recipe | str | Path, output_path: str | Path | None = None) -> Path:
    """Build the question pairs of a recipe and audit them; return `data/pairs.jsonl`."""
    run = open_run(recipe, output_path)
    walk(run, DATA)
    return run.path / PAIRS


def question_pairs(recipe: Recipe) -> list[QuestionPair]:
    """Return the question pairs of a recipe.

    Raises:
        UserError: the task has no prompts in a language, or the questions are at fault.
    """
    settings = recipe.data
    task = load_task(settings.task)
    for code in (*settings.languages, pivot(settings.direction)):
        task.pack(code)
    pairs = read_pairs(
        task, settings.source, settings.languages,
        direction=settings.direction, limit=settings.limit, columns=settings.columns,
    )  # fmt: skip
    if settings.balance == "none":
        return pairs
    return balance_pairs(pairs, settings.balance, _lengths(recipe, pairs) if settings.balance == "tokens" else None)


def parallel_questions(recipe: Recipe) -> str:
    """Return the questions that every language of a recipe has, English among them, as JSONL; "" where none are asked.

    Raises:
        UserError: the files hold finished pairs, or no questions with the same ids.
    """
    settings = recipe.data
    if not recipe.train.asks_questions:
        return ""
    objective = " + ".join(recipe.train.objective)
    if settings.direction != "to-english":
        got = f"got data.direction {settings.direction} for train.objective {objective}"
        raise RecipeError(f"{got}, expected to-english: what the model says in English is what it learns")
    if settings.source != "sample" and Path(settings.source).is_dir():
        got = f"{settings.source}: got a folder of finished pairs for train.objective {objective}"
        raise DataError(f"{got}, expected files with the task's fields, as questions_{{lang}}.jsonl")
    task = load_task(settings.task)
    files = read_questions(task, settings.source, ("en", *settings.languages), settings.columns)
    names = in_common(files)[: settings.limit]
    if recipe.train.control == "gold":
        right_answers(recipe, names)  # that there are none shows before the model is asked anything
    return dump_questions(files, names)


def right_answers(recipe: Recipe, names: Sequence[str]) -> dict[str, int]:
    """Return question -> number of its right label, for the control `gold`: the only place where one is learned from.

    Raises:
        DataError: the questions have no right answers.
    """
    task = load_task(recipe.data.task)
    items = read_items(task, recipe.data.source, ("en",), columns=recipe.data.columns)["en"]
    gold: Mapping[str, Any] = {item.id: item.gold for item in items}
    return {name: task.labels.index(gold[name]) for name in names}


def check_questions(recipe: Recipe) -> None:
    """Read all that a recipe learns from, so that its faults show.

    Raises:
        UserError: see `question_pairs` and `parallel_questions`.
    """
    question_pairs(recipe)
    parallel_questions(recipe)


def audit_of(recipe: Recipe, pairs: Sequence[QuestionPair], test_sets: Mapping[str, TestSet]) -> dict[str, Any]:
    """Return the audit of a recipe's question pairs, see `glotlift.data.audit`."""
    items = [item for each in test_sets.values() for rows in each.items.values() for item in rows]
    texts = (text for item in items for text in item.fields.values())
    return audit_pairs(pairs, texts, load_task(recipe.data.task))


def pairs_of(run: OpenRun) -> list[QuestionPair]:
    """Return the question pairs that stand in a run folder."""
    return load_pairs(run.path / PAIRS)


def _lengths(recipe: Recipe, pairs: Sequence[QuestionPair]) -> dict[str, int]:
    from glotlift.models.load import load_tokenizer
    from glotlift.tasks.markup import layout_text
    from glotlift.training.rows import tokenize_pairs

    layout = layout_text(load_task(recipe.data.task))
    rows = tokenize_pairs(load_tokenizer(recipe.model), pairs, recipe.train, layout)
    return {row.id: len(row.input_ids) for row in rows}


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest

    asked = [text] if (text := parallel_questions(run.recipe)) else []
    return digest(dump_pairs(question_pairs(run.recipe)), contents(run.test_sets), *asked)


def _do(run: OpenRun) -> dict[str, Any]:
    pairs = question_pairs(run.recipe)
    audit = audit_of(run.recipe, pairs, run.test_sets)
    write_json(run.path / AUDIT, audit)
    if questions := parallel_questions(run.recipe):
        write_text(run.path / QUESTIONS, questions)
    write_text(run.path / PAIRS, dump_pairs(pairs))
    flags = ", ".join(f"{count} {flag}" for flag, count in audit["flags"].items()) or "none flagged"
    log.info("data: %d question pairs in %s (%s)", len(pairs), " ".join(run.recipe.data.languages), flags)
    return {"pairs": len(pairs)}


DATA = Stage("data", "glotlift data build", inputs=(), outputs=(PAIRS, AUDIT), fingerprint=_fingerprint, do=_do)
