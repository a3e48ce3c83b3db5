"""All test sets of an evaluation: predictions of every variant and language, then the scores.

Enters: a loaded model or a server, and test sets. Leaves: `predictions/` and `scores.json` in the run folder. Processes
of a job share the items; the first writes what they found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from glotlift.errors import ModelError
from glotlift.evaluation.baselines import ENGLISH, Baseline, baselines_of
from glotlift.evaluation.findings import some
from glotlift.evaluation.journal import LabelScores
from glotlift.evaluation.predict import Advance, score_batches, scored_tokens, server_batches
from glotlift.evaluation.prediction_file import PredictionFile, prediction_fingerprint, read_scores
from glotlift.evaluation.predictions import read_predictions
from glotlift.evaluation.prompts import Prompts, prepare, prepare_texts
from glotlift.evaluation.repeats import repeat_warnings
from glotlift.evaluation.samples import write_samples
from glotlift.evaluation.scores import baseline_scores, beside_scores, build_scores
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import TestSet
from glotlift.models.labels import audit_labels
from glotlift.models.load import LoadedModel
from glotlift.models.server import Server
from glotlift.models.watching import Witness, Witnesses
from glotlift.processes import Processes, processes
from glotlift.progress import track
from glotlift.runs import write_json
from glotlift.strict_json import read_json
from glotlift.tasks.markup import known_control, layout_text

log = logging.getLogger("glotlift")


def evaluate_test_sets(
    engine: LoadedModel | Server,
    test_sets: Mapping[str, TestSet],
    settings: EvalSettings,
    folder: Path,
    *,
    adapter: Path | None = None,
    seed: int = 0,
    prefix_cache: bool = True,
    log_samples: bool = False,
    witnesses: Witnesses | None = None,
) -> dict[str, Any]:
    """Predict with every variant of a model; write predictions and scores.

    Args:
        engine: the model, or the server.
        test_sets: name -> test set, see `glotlift.evaluation.test_sets.read_test_sets`.
        settings: how they are scored.
        folder: the run folder.
        adapter: folder of the model's adapter, whose history says what it was tuned on; None for none.
        seed: of the bootstraps.
        prefix_cache: False runs every prompt whole and alone.
        log_samples: write samples as lm-evaluation-harness does.
        witnesses: who looks at the passes of the model's own variants, too; None for nobody.

    Returns:
        The content of `scores.json`; empty where this is not the first process of a job.
    """
    group = processes()
    predictions = []
    baselines = {key: baselines_of(test_set, settings.baselines) for key, test_set in test_sets.items()}
    for test_set in test_sets.values():
        prompts = _prompts(engine, test_set, settings.scoring)
        for variant in engine.variants:
            _predict(engine, variant, variant, test_set, prompts, settings, folder, prefix_cache, group, witnesses)
        for turned in strengths(engine, settings.adapter_strength):
            name = f"tuned-{turned.strength:g}"
            _predict(turned, "tuned", name, test_set, prompts, settings, folder, prefix_cache, group)
        for each in baselines[test_set.key]:
            in_english = _english_prompts(engine, test_set, each)
            _predict(engine, "base", each.name, test_set, in_english, settings, folder, prefix_cache, group)
        if group.is_first:
            predictions.append(read_predictions(folder, test_set.key, engine.variants, list(prompts)))
            for each in prompts.values() if log_samples else ():
                write_samples(folder, test_set.key, each, predictions[-1])
    if not group.is_first:
        return {}
    seen, pivot = tuned_on(adapter)
    config = {"tasks": [entry.model_dump(mode="json") for entry in settings.tasks], "random_seed": seed}
    scores = build_scores(predictions, model=engine.name, config=config, seen=seen, pivot=pivot, seed=seed)
    for direct in predictions:
        if turned := [f"tuned-{each.strength:g}" for each in strengths(engine, settings.adapter_strength)]:
            found = {name: read_predictions(folder, direct.key, [name], direct.languages) for name in turned}
            compared = beside_scores(direct, found, seen, pivot, seed=seed)
            scores["glotlift"]["tasks"][direct.key]["strengths"] = compared
        if asked := baselines[direct.key]:
            found = {each.name: read_predictions(folder, direct.key, [each.name], list(each.items)) for each in asked}
            scores["glotlift"]["tasks"][direct.key]["baselines"] = baseline_scores(
                direct, found, seen, pivot, seed=seed
            )
    scores["glotlift"] |= {"training": learned(adapter), "warnings": _warnings(engine, test_sets)}
    _warn_of_collapse(scores["glotlift"]["tasks"])
    write_json(folder / "scores.json", scores)
    return scores


def tuned_on(adapter: Path | None) -> tuple[list[str], str]:
    """Return the languages an adapter was tuned on and what it translates into, as far as training left word of it."""
    history = _history(adapter)
    return (history["seen"], history["pivot"]) if history else ([], "en")


def learned(adapter: Path | None) -> dict[str, Any]:
    """Return what training says of how an adapter came about: `objective`, `control`, `teacher`, `center`, `answers`;
    `is_probed` where right answers chose the weights; of a readout whether it `is_used`. Empty where it left no
    word."""
    history = _history(adapter)
    names = ("objective", "control", "teacher", "center", "answers")
    found = {name: history[name] for name in names if name in history}
    if history.get("probes"):
        found["is_probed"] = True
    return {**found, "is_used": history["readout"]["is_used"]} if "readout" in history else found


def _history(adapter: Path | None) -> dict[str, Any]:
    history = adapter / "history.json" if adapter else None
    return read_json(history, ModelError) if history is not None and history.is_file() else {}


def _warnings(engine: LoadedModel | Server, test_sets: Mapping[str, TestSet]) -> list[dict[str, Any]]:
    """Return what a reader of the scores must not overlook: a kind, a text, and where; None is everywhere."""
    found = [warning for each in test_sets.values() for warning in repeat_warnings(each)]
    for each in found:
        log.warning("%s: %s, %s: %s", each["kind"], each["test_set"], " ".join(each["languages"]), each["text"])
    if isinstance(engine, LoadedModel) and engine.foreign_adapter is not None:  # which loading has logged
        found.append({"kind": "foreign-adapter", "test_set": None, "languages": [], "text": engine.foreign_adapter})
    return found


def strengths(engine: LoadedModel | Server, asked: Sequence[float]) -> list[LoadedModel]:
    """Return the tuned model with its adapter at other strengths.

    Raises:
        ModelError: some are asked for, and there is no LoRA adapter.
    """
    if not asked:
        return []
    is_lora = isinstance(engine, LoadedModel) and hasattr(engine.model, "peft_config")
    if not is_lora or not isinstance(engine, LoadedModel):
        raise ModelError(f"got adapter strengths {', '.join(f'{each:g}' for each in asked)} without a LoRA adapter, "
                         "expected one with --adapter")  # fmt: skip
    return [replace(engine, strength=each) for each in asked]


def _english_prompts(engine: LoadedModel | Server, test_set: TestSet, baseline: Baseline) -> dict[str, Prompts]:
    """Return a baseline's prompts, each under the language that its items are of."""
    found = {}
    for code, items in baseline.items.items():
        if isinstance(engine, LoadedModel):
            prompts = prepare(engine, test_set.task, ENGLISH, items, test_set.settings)
        else:
            prompts = prepare_texts(test_set.task, ENGLISH, items, test_set.settings)
        found[code] = replace(prompts, language=code)
    return found


def _predict(
    engine: LoadedModel | Server,
    variant: str,
    name: str,
    test_set: TestSet,
    prompts: Mapping[str, Prompts],
    settings: EvalSettings,
    folder: Path,
    prefix_cache: bool,
    group: Processes,
    witnesses: Witnesses | None = None,
) -> None:
    """Score a test set in all its languages with a variant of the model, under its name or that of a baseline."""
    weights = engine.variant_fingerprint(variant)
    entry = test_set.settings
    asked = {name: getattr(entry, name) for name in ("answers", "demo_seed", "closing_quote", "apply_chat_template")}
    about = {"task": test_set.key, "model": engine.name, **asked}
    files = [
        PredictionFile(
            folder / "predictions" / name / test_set.key / f"{code}.parquet",
            each, prediction_fingerprint(weights, each, prefix_cache=prefix_cache),
            scoring=settings.scoring, calibration=settings.calibration,
            metadata={**about, "variant": name, "model_fingerprint": weights}, process=group.index,
        )
        for code, each in prompts.items()
    ]  # fmt: skip
    total = sum(len(each.items) for each in prompts.values())
    with track(f"eval {test_set.key}, {name}", total, "items") as advance:
        for number, (file, each) in enumerate(zip(files, prompts.values(), strict=True)):
            share = {"process": group.index + number, "n_processes": group.count}
            witness = None
            if isinstance(engine, LoadedModel):
                is_read = variant == "tuned" and engine.readout is not None and prefix_cache and not file.is_scored
                of_base = _of_base(engine, each, folder, test_set.key) if is_read else None
                if witnesses is not None and prefix_cache and group.count == 1 and not (is_read or file.is_scored):
                    witness = witnesses.of(
                        variant=variant,
                        task_key=test_set.key,
                        language=each.language,
                        rows=each.rows,
                        tokens=scored_tokens(each),
                    )
                batches = partial(
                    score_batches, engine, each, variant, token_budget=settings.token_budget,
                    batch_size=None if settings.batch_size == "auto" else settings.batch_size,
                    prefix_cache=prefix_cache, of_base=of_base, **share,
                )  # fmt: skip
            else:
                batches = partial(server_batches, engine, each, **share)
            _score(file, batches, witness, advance)
            if group.count == 1:
                file.finish()
    group.wait()
    for file in files if group.count > 1 and group.is_first else ():
        file.finish()


def _score(file: PredictionFile, batches: Callable[..., Any], witness: Witness | None, progress: Advance) -> None:
    """Score what is missing of a file; where a watched pass fails, without its witness, whose taps take memory."""
    if witness is not None:
        try:
            file.score(partial(batches, watcher=witness), progress, again=witness.n_rows)
            witness.write()  # before the scores: what is not written then is watched again
        except Exception as fault:
            witness.give_up(fault)
        else:
            return
    file.score(batches, None if witness else progress)


def _of_base(engine: LoadedModel, prompts: Prompts, folder: Path, key: str) -> dict[int, LabelScores] | None:
    """Return what the base said of prompts, to which a readout is added; None where it was not asked."""
    path = folder / "predictions" / "base" / key / f"{prompts.language}.parquet"
    return read_scores(path, prompts, prediction_fingerprint(engine.variant_fingerprint("base"), prompts))


def _prompts(engine: LoadedModel | Server, test_set: TestSet, scoring: str) -> dict[str, Prompts]:
    """Return the prompts of a test set, a language each; a local model's label words are audited on the way."""
    task, entry = test_set.task, test_set.settings
    if not isinstance(engine, LoadedModel):
        texts = {code: prepare_texts(task, code, items, entry) for code, items in test_set.items.items()}
        _warn_of_control(test_set)
        return texts
    for code in test_set.items:
        for finding in audit_labels(engine.tokenizer, task, code, entry.answers, closing=entry.closing_quote):
            log.warning("label audit: %s, %s: %s", test_set.key, finding.language, finding.message)
    prompts = {code: prepare(engine, task, code, items, entry) for code, items in test_set.items.items()}
    if scoring == "prefix-mass" and (other := [code for code, each in prompts.items() if each.released_sets]):
        log.warning("label audit: %s: in %s `prefix-mass` counts other tokens than the code that the paper's authors "
                    "released; `prefix-mass-released` counts those", test_set.key, " ".join(other))  # fmt: skip
    return prompts


def _warn_of_control(test_set: TestSet) -> None:
    """Warn of data with control strings, which can be told from a layout's own by nobody who is sent the text."""
    task, entry = test_set.task, test_set.settings
    written = layout_text(task)
    for code, items in test_set.items.items():
        shown = task.shown(code, entry.num_fewshot, entry.demo_seed)
        texts = [text for each in (*shown, *items) for text in each.fields.values()]
        words = task.answers(code, entry.answers).values()
        if found := known_control("\n".join([*texts, *words]), written):
            log.warning("control strings: %s, %s: the data hold %s, which a server reads as control tokens where its "
                        "tokenizer has them", test_set.key, code, some(map(repr, found)))  # fmt: skip


def _warn_of_collapse(tasks: Mapping[str, Any]) -> None:
    for key, task in tasks.items():
        for variant, languages in task["collapsed"].items():
            if languages:
                listed = ", ".join(f"{code} ({label})" for code, label in languages.items())
                log.warning("collapsed: %s, %s: all predictions are one label in %s", key, variant, listed)
