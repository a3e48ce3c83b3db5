"""Stage `train`: the model of a recipe, tuned on its question pairs.

Reads: `data/pairs.jsonl`, the base model. Writes: `adapter/` (a peft adapter, or a whole model where all weights were
tuned; `history.json` in both), checkpoints while it runs. Fingerprint: the pairs, how they are split, the settings of
training but for those that change no weight, the base's weights, dtype, seed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from glotlift.stages.data import DATA, QUESTIONS, audit_of, pairs_of, parallel_questions, question_pairs
from glotlift.stages.objectives import asked_as
from glotlift.stages.stage import OpenRun, Stage, open_run, walk
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item
from glotlift.training.settings import PRESETS, TUNED

log = logging.getLogger("glotlift")

CONTROLS = {
    "shuffled-teacher": "every question is taught another one's answer; what this gains, the recipe gains without it",
    "own-language-teacher": "every language is taught its own answers, so there is nothing to learn",
    "constant-teacher": "every question is taught the same answer",
    "gold": "RIGHT ANSWERS ARE READ: this is the ceiling, no result without labels",
    "shuffled-pairs": "every question is paired with another one's English version",
    "copied-pairs": "every question stands in the target language already and is copied, so no other language is read",
}
"""Control -> what to know of a run that has it."""

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
        `languages` (see `glotlift.training.rows.inspect_rows`; of objectives that ask questions, these), `estimate`
        (`glotlift.training.estimate.Estimate`, None where no weight is tuned), `audit` (see
        `glotlift.data.audit.audit_pairs`).

    Raises:
        DataError: some pairs cannot be trained on; all are named.
    """
    from glotlift.models.load import load_tokenizer
    from glotlift.tasks.markup import layout_text
    from glotlift.training.objective import Part
    from glotlift.training.rows import inspect_rows, tokenize_pairs
    from glotlift.training.translation import Translation

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    pairs = question_pairs(recipe)
    audit = audit_of(recipe, pairs, read_test_sets(recipe.eval) if recipe.eval else {})
    training, _ = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    if "translation" in recipe.train.objective:
        rows = tokenize_pairs(tokenizer, training, recipe.train, layout_text(load_task(recipe.data.task)))
    else:
        rows = _asked_rows(recipe, tokenizer)
    part = Part("+".join(recipe.train.objective), Translation(0), rows, 1.0, recipe.train.batch_size)
    is_tuned = set(recipe.train.objective) <= set(TUNED)
    return {
        "languages": inspect_rows(tokenizer, rows),
        "estimate": _estimate(recipe, [part]) if is_tuned else None,
        "audit": audit,
    }


def _asked_rows(recipe: Recipe, tokenizer: Any) -> list[Any]:
    """Return the questions of a recipe as the model reads them, with nothing to learn but what a teacher will say."""
    import json

    from glotlift.evaluation.prompts import prepare_texts
    from glotlift.models.control import encode
    from glotlift.training.rows import IGNORED, TokenRow

    task, entry = load_task(recipe.data.task), asked_as(recipe)
    rows = []
    for line in parallel_questions(recipe).splitlines():
        question = json.loads(line)
        item = Item(question["id"], question["fields"], "")
        (text, *_) = prepare_texts(task, question["language"], [item], entry).texts
        (ids,) = encode(tokenizer, [text])
        rows.append(TokenRow(item.id, question["language"], ids, [IGNORED] * len(ids)))
    return rows


def _estimate(recipe: Recipe, parts: Sequence[Any]) -> Any:
    from glotlift.models.load import model_source, place_and_dtype
    from glotlift.training.estimate import estimate
    from glotlift.training.objective import in_order

    settings = recipe.train
    rows = in_order(parts, epochs=settings.epochs, micro_batch_size=settings.micro_batch_size, seed=recipe.seed)
    steps = len(rows) // sum(part.batch_size for part in parts)
    device, dtype = place_and_dtype(recipe.device, recipe.dtype)
    return estimate(
        model_source(recipe.model), [each.row for each in rows], steps, settings, dtype=dtype, device=device
    )


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest

    recipe = run.recipe
    settings = recipe.train.model_dump(mode="json", exclude={"preset", "report_to", "save_steps"})
    held_out = recipe.data.validation_fraction
    asked = []
    if recipe.train.asks_questions:
        asked = [(run.path / QUESTIONS).read_text(encoding="utf-8"), asked_as(recipe).model_dump(mode="json")]
    return digest(
        (dump_pairs(pairs_of(run)), *asked, held_out, settings, run.base_fingerprint, recipe.dtype, recipe.seed)
    )


def _do(run: OpenRun) -> dict[str, Any]:
    from glotlift.models.load import load_model, model_source, tensors_fingerprint
    from glotlift.models.readout import save_readout
    from glotlift.models.steering import save_steering
    from glotlift.stages.objectives import parts_of, readout_of, steering_of
    from glotlift.training.shards import gathered
    from glotlift.training.tune import tune

    recipe, settings = run.recipe, run.recipe.train
    if PRESETS[settings.preset].unpublished:
        log.info("train: preset %s; not published: %s", settings.preset, PRESETS[settings.preset].unpublished)
    if settings.unused:
        log.warning("train: objective %s does not read %s: written for nothing", " + ".join(settings.objective),
                    ", ".join(settings.unused))  # fmt: skip
    if settings.control != "none":
        log.warning("train: control %s: %s", settings.control, CONTROLS[settings.control])
    if settings.probe and settings.reads("probe"):
        log.warning("train: probe: RIGHT ANSWERS ARE READ of its items, and the weights that get most of them right "
                    "are kept: no result without labels")  # fmt: skip
    pairs = pairs_of(run)
    training, validation = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    loaded = load_model(recipe.model, dtype=recipe.dtype, device=recipe.device, quantization=settings.quantization)
    base = {"base_model": recipe.model, "base_fingerprint": tensors_fingerprint(model_source(recipe.model))}
    about = {"seen": _sources(pairs), "pivot": pivot(recipe.data.direction), **base, **_learned(recipe)}
    for name, (compute, save) in {
        "readout": (readout_of, save_readout),
        "steering": (steering_of, save_steering),
    }.items():
        if name in settings.objective:
            computed, found = compute(run, loaded, validation)
            if processes().is_first:
                history = {"log": [], "validation_loss": {}, **about, name: found}
                _save_computed(partial(save, computed), history, run.path / ADAPTER)
            return {"chosen": found["chosen"]}
    parts, held_out = parts_of(run, loaded, training, validation)
    log.info("train: %s on %s; %s", " and ".join(f"{len(part.rows)} rows of {part.name}" for part in parts),
             recipe.model, _estimate(recipe, parts).sentence())  # fmt: skip
    model, history = tune(
        loaded, parts, held_out, run.path / CHECKPOINTS / _fingerprint(run), settings,
        seed=recipe.seed, probe=_probe(recipe, loaded),
    )  # fmt: skip
    history |= about
    weights = gathered(model)
    if processes().is_first:
        _save_tuned(model, weights, loaded, history, run.path / ADAPTER)
    return {"validation_loss": history["validation_loss"]}


def _learned(recipe: Recipe) -> dict[str, Any]:
    """Return what was learned and from whom, for the history; None for what the objective does not read."""
    settings = recipe.train
    read = {name: getattr(settings, name) if settings.reads(name) else None for name in ("teacher", "center")}
    answers = asked_as(recipe).answers if settings.asks_questions else None
    return {"objective": settings.objective, "control": settings.control, **read, "answers": answers}


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


def _save_tuned(model: Any, weights: Any, loaded: Any, history: Mapping[str, Any], target: Path) -> None:
    """Write an adapter, or a whole model, that works elsewhere: it names its base as others load it, and no path.

    `weights` are those of the model, gathered from several processes; None where they lie in the model as they are.
    """

    def save(folder: Path) -> None:
        if hasattr(model, "peft_config"):
            for config in model.peft_config.values():
                config.base_model_name_or_path = published_name(loaded.name)
            model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
            (folder / "README.md").unlink(missing_ok=True)  # peft's empty form; the report writes the card
        else:
            model.save_pretrained(folder, state_dict=weights)
            loaded.tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)

    write_folder(target, save)


def _save_computed(save: Callable[[Path], None], history: Mapping[str, Any], target: Path) -> None:
    """Write what tunes no weight, and its history, where an adapter would stand."""

    def write(folder: Path) -> None:
        save(folder)
        write_json(folder / "history.json", history)

    write_folder(target, write)


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
