"""Stage `eval`: base and tuned model on every test set, compared.

Reads: `adapter/`, the base model, the test rows. Writes: `predictions/<base|tuned>/<test set>/<language>.parquet`,
`scores.json`; and where `explain` follows in the run, what lens and geometry see of the same pass, for that stage.
Fingerprint: the weights of base and adapter, dtype, the settings of evaluation, all test sets.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from glotlift.errors import ModelError, RecipeError
from glotlift.evaluation.settings import EvalSettings, Evaluation
from glotlift.evaluation.test_sets import contents, read_test_sets
from glotlift.languages import in_order, resolve
from glotlift.names import safe_name
from glotlift.runs import RunFolder
from glotlift.schema import validate
from glotlift.stages.stage import OpenRun, Stage
from glotlift.stages.subjects import witnesses_of
from glotlift.stages.train import ADAPTER, TRAIN
from glotlift.tasks.load import load_task
from glotlift.tasks.task import ANSWERS_IN


def evaluate(evaluation: Evaluation | None = None, *, output_path: str | Path, **settings: Any) -> dict[str, Any]:
    """Evaluate a model by constrained decoding; with an adapter, base and tuned in one load.

    Stopped at any moment and started again, it goes on behind the last batch. Under `accelerate launch` the items are
    shared by the processes, which must see the same output folder; the results are the same.

    Args:
        evaluation: what to evaluate; or its settings as keywords.
        output_path: folder for predictions and scores.
        settings: see `glotlift.evaluation.settings.Evaluation`: `model="demo", tasks="sentiment", languages="de,sw"`.

    Returns:
        The content of `scores.json`.

    Raises:
        UserError: a setting, a task, its rows, the model or the adapter is at fault.
    """
    from glotlift.evaluation.evaluate import evaluate_test_sets

    asked = evaluation or validate(Evaluation, settings, "evaluate", RecipeError)
    common = {name: getattr(asked, name) for name in EvalSettings.model_fields if name != "tasks"}
    chosen = validate(EvalSettings, {**common, "tasks": _entries(asked)}, "evaluate", RecipeError)
    test_sets = read_test_sets(chosen)
    folder = RunFolder(Path(output_path))
    with folder.lock():
        return evaluate_test_sets(
            _engine(asked), test_sets, chosen, folder.path,
            adapter=Path(asked.adapter) if asked.adapter else None, seed=asked.seed,
            prefix_cache=asked.prefix_cache, log_samples=asked.log_samples,
        )  # fmt: skip


def _entries(asked: Evaluation) -> list[dict[str, Any]]:
    """Return the test sets that an evaluation stands for, as `EvalTask` reads them."""
    answers = [f"{ANSWERS_IN}{code}" for code in _answer_languages(asked)] or list(asked.answers)
    draws = list(range(asked.seed, asked.seed + asked.demo_seeds)) or [None]
    shared = (
        "source",
        "gold",
        "columns",
        "gold_map",
        "translated",
        "limit",
        "num_fewshot",
        "closing_quote",
        "apply_chat_template",
    )
    return [
        {
            **{name: getattr(asked, name) for name in shared},
            "task": task,
            "name": _entry_name(task, answer if len(answers) > 1 else None, draw),
            "answers": answer,
            "demo_seed": draw,
        }
        for task, answer, draw in product(asked.tasks, answers, draws)
    ]


def _answer_languages(asked: Evaluation) -> tuple[str, ...]:
    if set(asked.answer_languages) != set(resolve("all")):
        return asked.answer_languages
    return tuple(dict.fromkeys(code for task in asked.tasks for code in in_order(load_task(task).languages)))


def _entry_name(task: str, answers: str | None, draw: int | None) -> str | None:
    """Return what a test set is called where a task makes several of them."""
    if answers is None and draw is None:
        return None
    parts = [load_task(task).name, safe_name(answers or ""), "" if draw is None else f"seed{draw}"]
    return ".".join(part for part in parts if part)


def _engine(asked: Evaluation) -> Any:
    """Return a loaded model, or the server that `openai:URL#name` stands for."""
    from glotlift.models.load import load_model
    from glotlift.models.server import connect, is_server, parse_server

    model = asked.model
    if not is_server(model):
        return load_model(model, adapter=asked.adapter, dtype=asked.dtype, device=asked.device)
    for option, given in (("--adapter", asked.adapter), ("--apply-chat-template", asked.apply_chat_template)):
        if given:
            raise ModelError(f"got {option} with the server {model!r}, expected it for a local model only")
    if asked.scoring.startswith("prefix-mass"):
        raise ModelError(f"got scoring {asked.scoring!r} with the server {model!r}, expected sequence or first-token")
    return connect(replace(parse_server(model), limits=asked))


def weights_of(run: OpenRun) -> tuple[str, str, str]:
    """Return what tells base and tuned model of a run from all others: digests of their weights, and the dtype."""
    from glotlift.models.load import weights_fingerprint

    return run.base_fingerprint, weights_fingerprint(str(run.path / ADAPTER)), run.recipe.dtype


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest

    return digest(weights_of(run), run.evaluation.model_dump(mode="json"), contents(run.test_sets))


def _do(run: OpenRun) -> None:
    from glotlift.evaluation.evaluate import evaluate_test_sets

    witnesses = witnesses_of(run.recipe, run.test_sets, run.loaded, run.path) if run.is_explained else None
    evaluate_test_sets(
        run.loaded, run.test_sets, run.evaluation, run.path, adapter=run.path / ADAPTER, seed=run.recipe.seed,
        witnesses=witnesses,
    )  # fmt: skip


EVALUATE = Stage(
    "eval",
    "glotlift run",
    inputs=(TRAIN,),
    outputs=("predictions", "scores.json"),
    fingerprint=_fingerprint,
    do=_do,
    is_shared=True,
    feeds=("explain",),
)
