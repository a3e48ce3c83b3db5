"""The stages, each a function, and `run`, which does them all from a recipe into a run folder.

    data -> train -> merge -> eval (base and tuned, compared) -> explain -> report

Stages exchange files in the run folder. Each is skipped when the manifest says that it is done with the same inputs,
so a run that was stopped at any moment is continued by starting it again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from glotlift.data.audit import audit_pairs
from glotlift.data.questions import (
    QuestionPair,
    balance_pairs,
    dump_pairs,
    load_pairs,
    pivot,
    read_pairs,
    split_validation,
)
from glotlift.data.read import read_items
from glotlift.errors import DataError, LanguageError, ModelError, RecipeError
from glotlift.languages import in_order, members, resolve
from glotlift.processes import processes
from glotlift.recipe import PRESETS, EvalRecipe, EvalTask, Recipe, dump_recipe, load_recipe
from glotlift.runs import RunFolder, write_folder, write_json, write_text
from glotlift.schema import validate
from glotlift.tasks.load import load_task
from glotlift.tasks.task import ANSWERS_IN, Item, Task

log = logging.getLogger("glotlift")


def run(recipe: Recipe | str | Path, output_path: str | Path | None = None, *, settings: Sequence[str] = ()) -> Path:
    """Do every stage of a recipe and return the run folder. Started again, it goes on where it stopped.

    Args:
        recipe: a recipe, or the path of one.
        output_path: the run folder; `runs/<name>` by default.
        settings: what replaces settings of the file, see `glotlift.recipe.load_recipe`.

    Raises:
        UserError: something in the recipe or the files it names is at fault.
        RunError: a stage failed.
    """
    recipe, folder = _open(recipe, output_path, settings)
    test_sets = _read_test_sets(recipe.eval)  # faults in test data show before hours of training
    _explained(recipe, test_sets)  # and so do faults in what is to be explained
    _data_stage(recipe, folder, test_sets)
    _train_stage(recipe, folder)
    group = processes()
    if group.is_first:
        _merge_stage(recipe, folder)
    group.wait()
    _eval_and_explain(recipe, folder, test_sets)
    return report(folder.path) if group.is_first else folder.path


def build_data(recipe: Recipe | str | Path, output_path: str | Path | None = None) -> Path:
    """Build the question pairs of a recipe and audit them; return `data/pairs.jsonl`."""
    recipe, folder = _open(recipe, output_path)
    _data_stage(recipe, folder, _read_test_sets(recipe.eval))
    return folder.path / "data" / "pairs.jsonl"


def train(recipe: Recipe | str | Path, output_path: str | Path | None = None, *, settings: Sequence[str] = ()) -> Path:
    """Tune the model of a recipe on its question pairs; return the adapter's folder.

    Started again after a stop, it goes on from the last checkpoint to the same weights. Under `accelerate launch` or
    `torchrun` the processes share every optimizer step.

    Args:
        recipe: a recipe, or the path of one.
        output_path: the run folder; `runs/<name>` by default.
        settings: what replaces settings of the file, see `glotlift.recipe.load_recipe`.
    """
    recipe, folder = _open(recipe, output_path, settings)
    _data_stage(recipe, folder, _read_test_sets(recipe.eval))
    _train_stage(recipe, folder)
    return folder.path / "adapter"


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
    from glotlift.training.rows import inspect_rows, tokenize_pairs

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    pairs, audit = _pairs_of(recipe, _read_test_sets(recipe.eval))
    training, _ = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    rows = tokenize_pairs(tokenizer, training, **_reading(recipe))
    return {"languages": inspect_rows(tokenizer, rows), "estimate": _estimate(recipe, rows), "audit": audit}


def merge(run_path: str | Path) -> Path:
    """Merge the adapter of a run into its base model; return the folder of the merged model."""
    recipe, folder = _open(Path(run_path) / "recipe.yaml", run_path)
    _merge_stage(recipe, folder)
    return folder.path / "merged"


def report(run_path: str | Path) -> Path:
    """Write figures, report.html and the model card of a run; return the run folder."""
    from glotlift.reporting.page import write_report

    path = Path(run_path)
    if not (path / "scores.json").is_file():
        raise DataError(f"{path}: got no scores.json, expected a folder that `glotlift run` or `eval` wrote")
    folder = RunFolder(path)
    write_report(folder.path)
    return folder.path


def evaluate(
    *,
    model: str = "demo",
    adapter: str | None = None,
    tasks: str | Sequence[str] = ("sentiment",),
    languages: str | Sequence[str] = "all",
    source: str | None = None,
    answers: str | Sequence[str] = "own",
    answer_languages: str | Sequence[str] = (),
    scoring: str = "sequence",
    calibration: str = "none",
    closing_quote: bool = False,
    apply_chat_template: bool = False,
    limit: int | None = None,
    num_fewshot: int | None = None,
    demo_seeds: int = 0,
    output_path: str | Path,
    log_samples: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    token_budget: int = 1024,
    batch_size: int | str = "auto",
    prefix_cache: bool = True,
    num_concurrent: int = 8,
    max_retries: int = 5,
    requests_per_second: float | None = None,
    timeout: float = 60.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a model by constrained decoding; with an adapter, base and tuned in one load.

    Stopped at any moment and started again, it goes on behind the last batch. Under `accelerate launch` the items are
    shared by the processes, which must see the same output folder; the results are the same.

    Args:
        model: hub id, folder, `.gguf` file, `demo`, or `openai:URL#name` for a server with a completions endpoint.
        adapter: a peft adapter to compare with the base.
        tasks: names of bundled tasks or paths of task files.
        languages: codes, or `all` for those the task has prompts in.
        source: where the test rows are, see `glotlift.data.read`; by default what the task file says, else the sample.
        answers: answer sets; with several, each makes a test set `<task>.<answers>` of its own.
        answer_languages: codes, or `all`: in place of `answers`, the grid of prompt language x answer language.
        scoring: `sequence`, `prefix-mass` or `first-token`; the others are stored beside it.
        calibration: `none`, `contextual` or `batch`; accuracies under the others are stored beside it.
        closing_quote: score the quote behind the answer word too.
        apply_chat_template: write prompts with the model's chat template.
        limit: items a language.
        num_fewshot: demonstrations a prompt; as many as the task file shows by default.
        demo_seeds: draw so many sets of demonstrations, each a test set of its own, and report the spread.
        output_path: folder for predictions and scores.
        log_samples: write `samples_<task>_<language>.jsonl`, as lm-evaluation-harness does.
        dtype: see `glotlift.models.load.load_model`.
        device: see there.
        token_budget: tokens of a batch.
        batch_size: items of a batch; `auto` for as many as the budget allows.
        prefix_cache: False runs every prompt whole and alone.
        num_concurrent: of a server: requests under way at most.
        max_retries: of a server: further attempts after a request that failed.
        requests_per_second: of a server: at most so many; None for no limit.
        timeout: of a server: seconds to wait for an answer.
        seed: of the bootstraps, and the first of the demonstration draws.

    Returns:
        The content of `scores.json`.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    sets = [answers] if isinstance(answers, str) else list(answers)
    if answer_languages:
        sets = [f"{ANSWERS_IN}{code}" for code in _answer_languages(names, answer_languages)]
    draws = [None] if demo_seeds == 0 else list(range(seed, seed + demo_seeds))
    entries = [
        {
            "task": task,
            "name": _entry_name(task, answer if len(sets) > 1 else None, draw),
            "source": source,
            "answers": answer,
            "limit": limit,
            "num_fewshot": num_fewshot,
            "demo_seed": draw,
            "closing_quote": closing_quote,
            "apply_chat_template": apply_chat_template,
        }
        for task in names
        for answer in sets
        for draw in draws
    ]
    content = {
        "tasks": entries,
        "languages": resolve(languages),
        "scoring": scoring,
        "calibration": calibration,
        "token_budget": token_budget,
        "batch_size": batch_size,
    }
    settings = validate(EvalRecipe, content, "evaluate", RecipeError)
    test_sets = _read_test_sets(settings)
    folder = RunFolder(Path(output_path))
    limits = {"concurrency": num_concurrent, "retries": max_retries, "rate": requests_per_second, "timeout": timeout}
    engine = _engine(model, adapter, dtype, device, scoring, apply_chat_template, limits)
    return _evaluate(
        engine, settings, test_sets, folder, Path(adapter) if adapter else None, seed, prefix_cache, log_samples
    )


def _answer_languages(tasks: Sequence[str], codes: str | Sequence[str]) -> tuple[str, ...]:
    if codes == "all":
        return tuple(dict.fromkeys(code for task in tasks for code in in_order(load_task(task).languages)))
    return resolve(codes)


def _entry_name(task: str, answers: str | None, draw: int | None) -> str | None:
    """Return what a test set is called where a task makes several of them."""
    if answers is None and draw is None:
        return None
    parts = [Path(task).stem, (answers or "").replace(":", "-"), "" if draw is None else f"seed{draw}"]
    return ".".join(part for part in parts if part)


def _engine(
    model: str, adapter: str | None, dtype: str, device: str, scoring: str, chat: bool, limits: Mapping[str, Any]
) -> Any:
    """Return a loaded model, or the server that `openai:URL#name` stands for."""
    from glotlift.models.load import load_model
    from glotlift.models.server import connect, is_server, parse_server

    if not is_server(model):
        return load_model(model, adapter=adapter, dtype=dtype, device=device)
    for option, given in (("--adapter", adapter), ("--apply-chat-template", chat)):
        if given:
            raise ModelError(f"got {option} with the server {model!r}, expected it for a local model only")
    if scoring == "prefix-mass":
        raise ModelError(f"got scoring 'prefix-mass' with the server {model!r}, expected sequence or first-token")
    return connect(replace(parse_server(model), **limits))


def export_tasks(
    tasks: str | Sequence[str],
    output_path: str | Path,
    *,
    languages: str | Sequence[str] = "all",
    source: str | None = None,
    answers: str = "own",
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> list[str]:
    """Write tasks with their items as task groups of lm-evaluation-harness; return the names of the groups.

    Arguments as in `evaluate`; `output_path` is the folder for `lm_eval --include_path`.
    """
    from glotlift.data.export import export_lm_eval

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    common = {"source": source, "answers": answers, "limit": limit, "num_fewshot": num_fewshot}
    content = {"tasks": [{"task": name, **common} for name in names], "languages": resolve(languages)}
    test_sets = _read_test_sets(validate(EvalRecipe, content, "export", RecipeError))
    return [
        export_lm_eval(task, items, Path(output_path), answers=answers, num_fewshot=num_fewshot).stem.lstrip("_")
        for task, items in test_sets.values()
    ]


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare two evaluations of the same items, language by language.

    Args:
        a: a folder with `<language>.parquet` prediction files.
        b: another one; languages that both have are compared.
        seed: of the bootstraps.

    Returns:
        Name -> `glotlift.evaluation.compare.Change` for every language, for `all`, and for every family, script and
        resource class that some but not all of the languages are of, as in `script Latn`.

    Raises:
        DataError: there is no common language, a file holds no predictions, or the items or their gold labels differ.
    """
    from glotlift.evaluation.compare import compare_group, compare_languages, correctness
    from glotlift.runs import read_parquet

    files = [{path.stem: path for path in Path(folder).glob("*.parquet")} for folder in (a, b)]
    for folder, found in zip((a, b), files, strict=True):
        if not found:
            raise DataError(
                f"{folder}: got no prediction files, expected <language>.parquet, as in RUN/predictions/base/TASK"
            )
    common = in_order(code for code in files[0] if code in files[1])
    if not common:
        raise DataError(f"{a} and {b} have no language in common: {' '.join(files[0])} and {' '.join(files[1])}")
    paired = {}
    for code in common:
        both = files[0][code], files[1][code]
        frames = [read_parquet(path)[0] for path in both]
        paired[code] = correctness(*frames, where=f"{code}, A {both[0]} and B {both[1]}")
    changes = [*compare_languages(paired, seed=seed), compare_group("all", paired, seed=seed)]
    for kind in ("family", "script", "resource"):
        for name, codes in sorted(members(common, kind).items()):
            if len(codes) < len(common):
                group = {code: paired[code] for code in codes}
                changes.append(compare_group(f"{kind} {name}", group, seed=seed))
    return {change.name: vars(change) for change in changes}


def explain(
    *,
    model: str = "demo",
    adapter: str | None = None,
    task: str = "sentiment",
    languages: str | Sequence[str] = "all",
    source: str | None = None,
    answers: str = "own",
    limit: int | None = 100,
    output_path: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Look inside a model: logit lens and geometry of the items of a task; with an adapter, base and tuned.

    Arguments as in `evaluate`. Returns the folder with `lens/` and `geometry/`.
    """
    from glotlift.models.load import load_model

    content = {"task": task, "source": source, "answers": answers, "limit": limit}
    settings = validate(EvalRecipe, {"tasks": [content], "languages": resolve(languages)}, "explain", RecipeError)
    entry = settings.tasks[0]
    test_sets = _read_test_sets(settings)
    folder = RunFolder(Path(output_path))
    loaded = load_model(model, adapter=adapter, dtype=dtype, device=device)
    definition, items = test_sets[entry.key]
    _explain(loaded, definition, entry, items, folder, settings.token_budget, seed)
    return folder.path


TestSets = Mapping[str, tuple[Task, dict[str, list[Item]]]]
"""Name of a test set -> its task, and its items a language."""


def _open(
    recipe: Recipe | str | Path, output_path: str | Path | None, settings: Sequence[str] = ()
) -> tuple[Recipe, RunFolder]:
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, settings)
    folder = RunFolder(Path(output_path) if output_path else Path("runs") / recipe.name)
    write_text(folder.path / "recipe.yaml", dump_recipe(recipe))
    return recipe, folder


def _read_test_sets(settings: EvalRecipe) -> TestSets:
    test_sets = {}
    for entry in settings.tasks:
        task = load_task(entry.task)
        languages = entry.languages or settings.languages
        if set(languages) == set(resolve("all")) and entry.languages is None:
            languages = tuple(in_order(task.languages))
        for code in languages:
            task.preamble(
                code, entry.answers, entry.num_fewshot, entry.demo_seed
            )  # faults of the settings show at once
        options = {"limit": entry.limit, "gold": entry.gold, "columns": entry.columns}
        test_sets[entry.key] = (task, read_items(task, entry.source, languages, **options))
    return test_sets


def _pairs_of(recipe: Recipe, test_sets: TestSets) -> tuple[list[QuestionPair], dict[str, Any]]:
    """Return the question pairs of a recipe and their audit."""
    settings = recipe.data
    task = load_task(settings.task)
    for code in (*settings.languages, pivot(settings.direction)):
        task.pack(code)
    pairs = read_pairs(
        task, settings.source, settings.languages,
        direction=settings.direction, limit=settings.limit, columns=settings.columns,
    )  # fmt: skip
    if settings.balance != "none":
        pairs = balance_pairs(pairs, settings.balance, _lengths(recipe, pairs))
    items = [item for _, by_language in test_sets.values() for rows in by_language.values() for item in rows]
    audit = audit_pairs(pairs, (text for item in items for text in item.fields.values()), task)
    return pairs, audit


def _lengths(recipe: Recipe, pairs: Sequence[QuestionPair]) -> dict[str, int] | None:
    if recipe.data.balance != "tokens":
        return None
    from glotlift.models.load import load_tokenizer
    from glotlift.training.rows import tokenize_pairs

    rows = tokenize_pairs(load_tokenizer(recipe.model), pairs, **_reading(recipe))
    return {row.id: len(row.input_ids) for row in rows}


def _reading(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of `tokenize_pairs`."""
    settings = recipe.train
    return {
        "max_length": settings.max_length,
        "prompt_format": settings.prompt_format,
        "too_long": settings.too_long,
    }


def _data_stage(recipe: Recipe, folder: RunFolder, test_sets: TestSets) -> None:
    from glotlift.models.load import digest

    group = processes()
    if group.is_first:
        pairs, audit = _pairs_of(recipe, test_sets)
        text = dump_pairs(pairs)
        fingerprint = digest(text, _contents(test_sets))  # the audit looks for the test items in the pairs
        if not folder.is_done("data", fingerprint):
            with folder.stage("data", fingerprint) as notes:
                write_json(folder.path / "data" / "audit.json", audit)
                write_text(folder.path / "data" / "pairs.jsonl", text)
                notes["pairs"] = len(pairs)
            flags = ", ".join(f"{count} {flag}" for flag, count in audit["flags"].items()) or "none flagged"
            log.info("data: %d question pairs in %s (%s)", len(pairs), " ".join(recipe.data.languages), flags)
    group.wait()


def _estimate(recipe: Recipe, rows: Sequence[Any]) -> Any:
    from glotlift.models.load import model_source, place_and_dtype
    from glotlift.training.estimate import estimate
    from glotlift.training.order import step_order

    settings = recipe.train
    order = step_order(
        [len(row.input_ids) for row in rows], epochs=settings.epochs, batch_size=settings.batch_size, seed=recipe.seed
    )
    device, dtype = place_and_dtype(recipe.device, recipe.dtype)
    names = ("method", "rank", "target_modules", "quantization", "batch_size", "micro_batch_size")
    return estimate(
        model_source(recipe.model), [rows[index] for index in order],
        gradient_checkpointing=settings.gradient_checkpointing, dtype=dtype, device=device,
        **{name: getattr(settings, name) for name in names},
    )  # fmt: skip


def _train_stage(recipe: Recipe, folder: RunFolder) -> None:
    from glotlift.models.load import digest, load_model, load_tokenizer, model_source, weights_fingerprint

    pairs = load_pairs(folder.path / "data" / "pairs.jsonl")
    settings = recipe.train.model_dump(mode="json", exclude={"preset", "report_to", "save_steps"})
    weights = weights_fingerprint(model_source(recipe.model))
    inputs = (dump_pairs(pairs), recipe.data.validation_fraction, settings, weights, recipe.dtype, recipe.seed)
    fingerprint = digest(inputs)
    if folder.is_done("train", fingerprint) and _adapter_is_there(folder):
        return
    from glotlift.training.rows import tokenize_pairs
    from glotlift.training.tune import tune

    group = processes()
    if recipe.train.preset != "default":
        log.info("train: preset %s; not published: %s", recipe.train.preset, PRESETS[recipe.train.preset].unpublished)
    training, validation = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    rows = tokenize_pairs(load_tokenizer(recipe.model), training, **_reading(recipe))
    log.info("train: %d pairs, %d held out, on %s; %s",
             len(training), len(validation), recipe.model, _estimate(recipe, rows).sentence())  # fmt: skip
    with folder.stage("train", fingerprint) if group.is_first else nullcontext({}) as notes:
        quantization = recipe.train.quantization
        loaded = load_model(recipe.model, dtype=recipe.dtype, device=recipe.device, quantization=quantization)
        checkpoints = folder.path / "checkpoints" / fingerprint
        options = {key: value for key, value in settings.items() if key != "probe"}
        model, history = tune(
            loaded, training, validation, checkpoints, seed=recipe.seed, save_steps=recipe.train.save_steps,
            report_to=recipe.train.report_to, **options, **_probe(recipe, loaded),
        )  # fmt: skip
        history |= {"seen": _sources(pairs), "pivot": pivot(recipe.data.direction)}
        if group.is_first:
            _save_tuned(model, loaded.tokenizer, history, folder.path / "adapter")
            notes["validation_loss"] = history["validation_loss"]
    group.wait()
    if group.is_first:
        shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)


def _probe(recipe: Recipe, loaded: Any) -> dict[str, Any]:
    """Return the small evaluation that a recipe asks for between training steps, as settings of `tune`."""
    settings = recipe.train.probe
    if settings is None:
        return {}
    from glotlift.evaluation.predict import predict, prepare

    task = load_task(settings.task or recipe.data.task)
    items = read_items(task, settings.source, settings.languages, limit=settings.limit)
    prompts = [prepare(loaded, task, code, rows, "own") for code, rows in items.items()]

    def score(model: Any) -> float:
        """Return the mean accuracy over the languages, the preference for a label taken out (batch calibration)."""
        now = replace(loaded, model=model)
        total = 0.0
        for each in prompts:
            frame = predict(now, each, "tuned", calibration="batch")
            total += (frame["predicted"].to_numpy() == frame["gold"].to_numpy()).mean()
        return total / len(prompts)

    return {"probe": score, "probe_steps": settings.steps, "patience": settings.patience}


def _sources(pairs: Sequence[QuestionPair]) -> list[str]:
    return list(dict.fromkeys(pair.language for pair in pairs))


def _adapter_is_there(folder: RunFolder) -> bool:
    """Return whether training has left an adapter, or a model whose weights were all tuned."""
    return any((folder.path / "adapter" / name).is_file() for name in ("adapter_config.json", "config.json"))


def _save_tuned(model: Any, tokenizer: Any, history: Mapping[str, Any], target: Path) -> None:
    def save(folder: Path) -> None:
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder, save_embedding_layers=False)
        else:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)

    write_folder(target, save)


def _merge_stage(recipe: Recipe, folder: RunFolder) -> None:
    from glotlift.models.load import digest, model_source, weights_fingerprint

    adapter = folder.path / "adapter"
    if not _adapter_is_there(folder):
        raise DataError(f"{folder.path}: got no adapter, expected one from `glotlift train`")
    if (adapter / "config.json").is_file():
        log.info("merge: nothing to do, all weights were tuned; the model is %s", adapter)
        return
    weights = weights_fingerprint(model_source(recipe.model)), weights_fingerprint(str(adapter))
    fingerprint = digest(weights, recipe.model, recipe.dtype)
    if folder.is_done("merge", fingerprint) and (folder.path / "merged" / "config.json").is_file():
        return
    from glotlift.training.merge import merge_adapter

    pairs = load_pairs(folder.path / "data" / "pairs.jsonl")
    _, held_out = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    with folder.stage("merge", fingerprint):
        certificate = merge_adapter(
            recipe.model, str(adapter), folder.path / "merged", (held_out or pairs)[:16],
            dtype=recipe.dtype, device=recipe.device,
            max_length=recipe.train.max_length, prompt_format=recipe.train.prompt_format,
        )  # fmt: skip
        write_json(folder.path / "merge.json", certificate)
    log.info(
        "merge: largest logit difference to the adapter %.2g, accuracy on %d target tokens %.4f and %.4f",
        *(certificate[key] for key in ("max_logit_difference", "n_targets", "accuracy_adapter", "accuracy_merged")),
    )


def _eval_and_explain(recipe: Recipe, folder: RunFolder, test_sets: TestSets) -> None:
    """Evaluate and explain base and tuned in one load of the model."""
    from glotlift.models.load import digest, load_model, model_source, weights_fingerprint

    adapter = folder.path / "adapter"
    weights = weights_fingerprint(model_source(recipe.model)), weights_fingerprint(str(adapter)), recipe.dtype
    eval_fingerprint = digest(weights, recipe.eval.model_dump(mode="json"), _contents(test_sets))
    explain_fingerprint = digest(eval_fingerprint, recipe.explain.model_dump(mode="json"))
    eval_done = folder.is_done("eval", eval_fingerprint) and (folder.path / "scores.json").is_file()
    explain_done = folder.is_done("explain", explain_fingerprint)
    if eval_done and explain_done:
        return
    loaded = load_model(recipe.model, adapter=str(adapter), dtype=recipe.dtype, device=recipe.device)
    group = processes()
    if not eval_done:
        with folder.stage("eval", eval_fingerprint) if group.is_first else nullcontext():
            _evaluate(loaded, recipe.eval, test_sets, folder, adapter, recipe.seed, True)
    if not explain_done and group.is_first:
        entry, task, items = _explained(recipe, test_sets)
        with folder.stage("explain", explain_fingerprint):
            _explain(loaded, task, entry, items, folder, recipe.eval.token_budget, recipe.seed)


def _contents(test_sets: TestSets) -> list[Any]:
    """Return all that test sets hold, as JSON can: prompts, demonstrations and answer words, and every item."""
    return [
        (key, task.model_dump(mode="json"), code, [(item.id, dict(item.fields), item.gold) for item in items])
        for key, (task, by_language) in test_sets.items()
        for code, items in by_language.items()
    ]


def _explained(recipe: Recipe, test_sets: TestSets) -> tuple[EvalTask, Task, dict[str, list[Item]]]:
    """Return the test set that lens and geometry look at, with its items a language.

    Raises:
        LanguageError: a language to explain is not evaluated.
        TaskError: the task has no answer words of a language's own.
    """
    entry = next(e for e in recipe.eval.tasks if e.key == (recipe.explain.task or recipe.eval.tasks[0].key))
    task, items = test_sets[entry.key]
    chosen = recipe.explain.languages or tuple(items)
    if missing := [code for code in chosen if code not in items]:
        raise LanguageError(f"explain.languages: {' '.join(missing)} not in test set {entry.key!r}: {' '.join(items)}")
    for code in chosen:
        task.answers(code, "own")
    return entry, task, {code: items[code][: recipe.explain.limit] for code in chosen}


def _evaluate(
    engine: Any,
    settings: EvalRecipe,
    test_sets: TestSets,
    folder: RunFolder,
    adapter: Path | None,
    seed: int,
    prefix_cache: bool,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Predict with a `LoadedModel` or a `Server`; write predictions and scores."""
    from glotlift.evaluation.predict import PredictionFile, prediction_fingerprint, score_batches, server_batches
    from glotlift.evaluation.samples import write_samples
    from glotlift.evaluation.scores import build_scores, read_predictions
    from glotlift.models.load import LoadedModel
    from glotlift.progress import track

    group = processes()
    batch_size = None if settings.batch_size == "auto" else settings.batch_size
    predictions = []
    for entry in settings.tasks:
        task, by_language = test_sets[entry.key]
        prompts = _prompts(engine, task, entry, by_language)
        total = sum(len(each.items) for each in prompts.values())
        about = {"task": entry.key, "model": engine.name, "answers": entry.answers, "demo_seed": entry.demo_seed}
        for variant in engine.variants:
            weights = engine.variant_fingerprint(variant)
            files = {
                code: PredictionFile(
                    folder.path / "predictions" / variant / entry.key / f"{code}.parquet",
                    each, prediction_fingerprint(weights, each, prefix_cache=prefix_cache),
                    scoring=settings.scoring, calibration=settings.calibration,
                    metadata={**about, "variant": variant}, process=group.index,
                )
                for code, each in prompts.items()
            }  # fmt: skip
            with track(f"eval {entry.key}, {variant}", total, "items") as advance:
                for number, (code, each) in enumerate(prompts.items()):
                    share = {"process": group.index + number, "n_processes": group.count}
                    if isinstance(engine, LoadedModel):
                        batches = partial(
                            score_batches, engine, each, variant, token_budget=settings.token_budget,
                            batch_size=batch_size, prefix_cache=prefix_cache, **share,
                        )  # fmt: skip
                    else:
                        batches = partial(server_batches, engine, each, **share)
                    files[code].score(batches, advance)
                    if group.count == 1:
                        files[code].finish()
            group.wait()
            if group.count > 1 and group.is_first:
                for file in files.values():
                    file.finish()
        if not group.is_first:
            continue
        predictions.append(read_predictions(folder.path, entry.key, engine.variants, list(prompts)))
        if log_samples:
            for each in prompts.values():
                write_samples(folder.path, entry.key, each, predictions[-1])
    if not group.is_first:
        return {}
    seen, pivot = _tuned_on(adapter)
    config = {"tasks": [entry.model_dump(mode="json") for entry in settings.tasks], "random_seed": seed}
    scores = build_scores(predictions, model=engine.name, config=config, seen=seen, pivot=pivot, seed=seed)
    _warn_of_collapse(scores["glotlift"]["tasks"])
    write_json(folder.path / "scores.json", scores)
    return scores


def _prompts(engine: Any, task: Task, entry: EvalTask, by_language: Mapping[str, list[Item]]) -> dict[str, Any]:
    """Return the prompts of a test set, a language each; a local model's label words are audited on the way."""
    from glotlift.evaluation.predict import prepare, prepare_texts
    from glotlift.models.labels import audit_labels
    from glotlift.models.load import LoadedModel

    options = {"num_fewshot": entry.num_fewshot, "demo_seed": entry.demo_seed, "closing_quote": entry.closing_quote}
    if not isinstance(engine, LoadedModel):
        return {code: prepare_texts(task, code, items, entry.answers, **options) for code, items in by_language.items()}
    for code in by_language:
        for finding in audit_labels(engine.tokenizer, task, code, entry.answers, closing=entry.closing_quote):
            log.warning("label audit: %s, %s: %s", entry.key, finding.language, finding.message)
    options["apply_chat_template"] = entry.apply_chat_template
    return {code: prepare(engine, task, code, items, entry.answers, **options) for code, items in by_language.items()}


def _warn_of_collapse(tasks: Mapping[str, Any]) -> None:
    for key, task in tasks.items():
        for variant, languages in task["collapsed"].items():
            if languages:
                listed = ", ".join(f"{code} ({label})" for code, label in languages.items())
                log.warning("collapsed: %s, %s: all predictions are one label in %s", key, variant, listed)


def _tuned_on(adapter: Path | None) -> tuple[list[str], str]:
    """Return the languages an adapter was tuned on and what it translates into, as far as `train` left word of it."""
    history = adapter / "history.json" if adapter else None
    if history is None or not history.is_file():
        return [], "en"
    import json

    content = json.loads(history.read_text(encoding="utf-8"))
    return content["seen"], content["pivot"]


def _explain(
    loaded: Any,
    task: Task,
    entry: EvalTask,
    items: Mapping[str, list[Item]],
    folder: RunFolder,
    token_budget: int,
    seed: int,
) -> None:
    from glotlift.evaluation.predict import prepare
    from glotlift.explanation.collect import explain_languages
    from glotlift.progress import track

    prompts = {
        code: prepare(
            loaded, task, code, rows, entry.answers, num_fewshot=entry.num_fewshot, demo_seed=entry.demo_seed,
            apply_chat_template=entry.apply_chat_template,
        )
        for code, rows in items.items()
    }  # fmt: skip
    total = len(loaded.variants) * sum(len(each.rows) for each in prompts.values())
    with track(f"explain {entry.key}", total, "items") as advance:
        explain_languages(
            loaded,
            prompts,
            folder.path,
            task_key=entry.key,
            english_words=_english_words(task, next(iter(prompts))),
            own_words={code: task.answers(code, "own") for code in prompts},
            token_budget=token_budget,
            seed=seed,
            progress=advance,
        )


def _english_words(task: Task, language: str) -> dict[str, str]:
    return task.answers("en", "own") if "en" in task.languages else task.answers(language, "english")


__all__ = [
    "build_data",
    "compare",
    "evaluate",
    "explain",
    "export_tasks",
    "inspect_training",
    "merge",
    "report",
    "run",
    "train",
]
