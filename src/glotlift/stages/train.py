"""Stage `train`: the model of a recipe, tuned on its question pairs.

Reads: `data/pairs.jsonl`, the base model. Writes: `adapter/` (a peft adapter, or a whole model where all weights were
tuned; `history.json` in both), checkpoints while it runs. Fingerprint: the pairs, how they are split, the settings of
training but for those that change no weight, the base's weights, dtype, seed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glotlift.data.questions import QuestionPair, dump_pairs, pivot, split_validation
from glotlift.data.read import read_items
from glotlift.evaluation.settings import EvalTask
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.names import published_name
from glotlift.processes import processes
from glotlift.recipe import Recipe, load_recipe
from glotlift.runs import write_folder, write_json
from glotlift.stages.data import DATA, audit_of, pairs_of, question_pairs
from glotlift.stages.stage import OpenRun, Stage, open_run, walk
from glotlift.tasks.load import load_task
from glotlift.training.settings import PRESETS

log = logging.getLogger("glotlift")

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"


def train(recipe: Recipe | str | Path, output_path: str | Path | None = None, *, settings: Sequence[str] = ()) -> Path:
    """Tune the model of a recipe on its question pairs; return the adapter's folder.

    Started again after a stop, it goes on from the last checkpoint to the same weights. Under `accelerate launch` or
    `torchrun` the processes share every optimizer step.

    Args:
        recipe: a recipe, or the path of one.
        output_path: the run folder; `runs/<name>` by default.
        settings: what replaces settings of the file, see `glotlift.recipe.load_recipe`.
    """
    run = open_run(recipe, output_path, settings)
    walk(run, DATA, TRAIN)
    return run.path / ADAPTER


def inspect_training(recipe: Recipe | str | Path, *, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a model would read and learn, a language at a time, and what that would take. Loads no weights.

    Args:
        recipe: a recipe, or the path of one.
        settings: see `train`.

    Returns:
        `languages` (see `glotlift.training.rows.inspect_rows`), `estimate` (`glotlift.training.estimate.Estimate`),
        `audit` (see `glotlift.data.audit.audit_pairs`).

    Raises:
        DataError: some pairs cannot be trained on; all are named.
    """
    from glotlift.models.load import load_tokenizer
    from glotlift.tasks.markup import layout_text
    from glotlift.training.rows import inspect_rows, tokenize_pairs

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    pairs = question_pairs(recipe)
    audit = audit_of(recipe, pairs, read_test_sets(recipe.eval) if recipe.eval else {})
    training, _ = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    rows = tokenize_pairs(tokenizer, training, recipe.train, layout_text(load_task(recipe.data.task)))
    return {"languages": inspect_rows(tokenizer, rows), "estimate": _estimate(recipe, rows), "audit": audit}


def _estimate(recipe: Recipe, rows: Sequence[Any]) -> Any:
    from glotlift.models.load import model_source, place_and_dtype
    from glotlift.training.estimate import estimate
    from glotlift.training.order import step_order

    settings = recipe.train
    lengths = [len(row.input_ids) for row in rows]
    order = step_order(lengths, epochs=settings.epochs, batch_size=settings.batch_size, seed=recipe.seed)
    device, dtype = place_and_dtype(recipe.device, recipe.dtype)
    return estimate(model_source(recipe.model), [rows[index] for index in order], settings, dtype=dtype, device=device)


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest

    recipe = run.recipe
    settings = recipe.train.model_dump(mode="json", exclude={"preset", "report_to", "save_steps"})
    held_out = recipe.data.validation_fraction
    return digest((dump_pairs(pairs_of(run)), held_out, settings, run.base_fingerprint, recipe.dtype, recipe.seed))


def _do(run: OpenRun) -> dict[str, Any]:
    from glotlift.models.load import load_model, load_tokenizer, model_source, tensors_fingerprint
    from glotlift.tasks.markup import layout_text
    from glotlift.training.rows import tokenize_pairs
    from glotlift.training.tune import tune

    recipe, settings = run.recipe, run.recipe.train
    if settings.preset != "default":
        log.info("train: preset %s; not published: %s", settings.preset, PRESETS[settings.preset].unpublished)
    pairs = pairs_of(run)
    training, validation = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    layout = layout_text(load_task(recipe.data.task))
    rows = tokenize_pairs(load_tokenizer(recipe.model), training, settings, layout)
    log.info("train: %d pairs, %d held out, on %s; %s",
             len(training), len(validation), recipe.model, _estimate(recipe, rows).sentence())  # fmt: skip
    loaded = load_model(recipe.model, dtype=recipe.dtype, device=recipe.device, quantization=settings.quantization)
    model, history = tune(
        loaded, training, validation, run.path / CHECKPOINTS / _fingerprint(run), settings,
        layout=layout, seed=recipe.seed, probe=_probe(recipe, loaded),
    )  # fmt: skip
    base = {"base_model": recipe.model, "base_fingerprint": tensors_fingerprint(model_source(recipe.model))}
    history |= {"seen": _sources(pairs), "pivot": pivot(recipe.data.direction), **base}
    if processes().is_first:
        _save_tuned(model, loaded, history, run.path / ADAPTER)
    return {"validation_loss": history["validation_loss"]}


def _probe(recipe: Recipe, loaded: Any) -> Any:
    """Return the small evaluation that a recipe asks for between training steps, None where it asks for none."""
    settings = recipe.train.probe
    if settings is None:
        return None
    from glotlift.evaluation.predict import predict
    from glotlift.evaluation.prompts import prepare
    from glotlift.training.watch import Probe

    entry = EvalTask(task=settings.task or recipe.data.task)
    task = load_task(entry.task)
    items = read_items(task, settings.source, settings.languages, limit=settings.limit)
    prompts = [prepare(loaded, task, code, rows, entry) for code, rows in items.items()]

    def score(model: Any) -> float:
        """Return the mean accuracy over the languages, the preference for a label taken out (batch calibration)."""
        now = replace(loaded, model=model)
        total = 0.0
        for each in prompts:
            frame = predict(now, each, "tuned", calibration="batch")
            total += (frame["predicted"].to_numpy() == frame["gold"].to_numpy()).mean()
        return total / len(prompts)

    return Probe(score, settings.steps, settings.patience)


def _sources(pairs: Sequence[QuestionPair]) -> list[str]:
    return list(dict.fromkeys(pair.language for pair in pairs))


def _save_tuned(model: Any, loaded: Any, history: Mapping[str, Any], target: Path) -> None:
    """Write an adapter, or a whole model, that works elsewhere: it names its base as others load it, and no path."""

    def save(folder: Path) -> None:
        if hasattr(model, "peft_config"):
            for config in model.peft_config.values():
                config.base_model_name_or_path = published_name(loaded.name)
            model.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # peft's empty form; the report writes the card
        else:
            model.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)

    write_folder(target, save)


TRAIN = Stage(
    "train",
    "glotlift train",
    inputs=(DATA,),
    outputs=(f"{ADAPTER}/history.json",),
    fingerprint=_fingerprint,
    do=_do,
    is_shared=True,
    tidy=lambda run: shutil.rmtree(run.path / CHECKPOINTS, ignore_errors=True),
)
