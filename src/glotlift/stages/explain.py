"""Stage `explain`: base and tuned model looked into, on the items of one test set.

Reads: `adapter/`, the base model, the test rows, a tuned lens, `predictions/` for the item link. Writes: `lens/`,
`geometry/`, a folder a kind, what the lens reads beside, and `random_adapter/` where it is asked for. Fingerprint: that
of `eval`, the settings of explanation, the tuned lens.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glotlift.errors import DataError, LanguageError, ModelError, RecipeError, one_of
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import TestSet, read_test_sets
from glotlift.explanation.settings import (
    BESIDE_LENS,
    CONTROL,
    KINDS,
    ExplainSettings,
    Explanation,
    LensSettings,
    LensTraining,
    TextLens,
    beside_lens,
    check_languages,
    folder_of,
)
from glotlift.models.settings import ModelSettings
from glotlift.recipe import Recipe
from glotlift.runs import RunFolder
from glotlift.schema import validate
from glotlift.stages.evaluate import EVALUATE
from glotlift.stages.stage import OpenRun, Stage
from glotlift.stages.train import ADAPTER, TRAIN
from glotlift.tasks.task import AnswerSet, Task
from glotlift.training.settings import CLOSED_FORM

log = logging.getLogger("glotlift")


def explain(explanation: Explanation | None = None, *, output_path: str | Path, **settings: Any) -> Path:
    """Look inside a model, on the items of a task; with an adapter, base and tuned.

    Args:
        explanation: what to look at; or its settings as keywords.
        output_path: gets a folder a kind of explanation. The item link reads its `predictions/`.
        settings: see `glotlift.explanation.settings.Explanation`.

    Returns:
        The folder, with `figures/` of all that is in it.

    Raises:
        UserError: a setting, the task, its rows, the model or the adapter is at fault.
    """
    from glotlift.reporting.figures import write_explanation

    asked = explanation or validate(Explanation, settings, "explain", RecipeError)
    entry = {name: getattr(asked, name) for name in ("task", "source", "answers", "limit")}
    chosen = validate(EvalSettings, {"tasks": [entry], "languages": asked.languages}, "explain", RecipeError)
    (test_set,) = read_test_sets(chosen).values()
    check_languages(asked.what, test_set.items)
    folder = RunFolder(Path(output_path))
    with folder.lock():
        control = _control(asked.adapter, folder.path, asked.seed) if asked.random_adapter else None
        loaded = _loaded(asked, asked.adapter)
        _explain(loaded, test_set, folder.path, chosen.token_budget, asked.seed, asked)
        if control is not None:
            del loaded  # two models would need the memory of two
            _explain_control(_loaded(asked, control), test_set, folder.path, chosen.token_budget, asked.seed, asked)
        write_explanation(folder.path, Path(asked.adapter) if asked.adapter else None)
    return folder.path


def explain_text(lens: TextLens | None = None, **settings: Any) -> Any:
    """Return what every layer would say behind the last tokens of a prompt; with an adapter, base and tuned.

    Args:
        lens: what to look at; or its settings as keywords.
        settings: see `glotlift.explanation.settings.TextLens`: `model="demo", text="Berlin is the capital of"`.

    Returns:
        A data frame, see `glotlift.explanation.one_prompt.lens_of_text`.
    """
    from glotlift.explanation.one_prompt import lens_of_text
    from glotlift.explanation.tuned_lens import load_tuned_lens
    from glotlift.models.load import load_model

    asked = lens or validate(TextLens, settings, "explain", RecipeError)
    loaded = load_model(asked.model, adapter=asked.adapter, dtype=asked.dtype, device=asked.device)
    translators = load_tuned_lens(asked.tuned_lens, loaded) if asked.tuned_lens else None
    return lens_of_text(loaded, asked.text, n_tokens=asked.tokens, language=asked.language, tuned_lens=translators)


def train_tuned_lens(training: LensTraining | None = None, *, output_path: str | Path, **settings: Any) -> Any:
    """Train a tuned lens on unlabelled text, and write it as the package tuned-lens does.

    Args:
        training: on what; or its settings as keywords.
        output_path: gets `config.json` and `params.pt`.
        settings: see `glotlift.explanation.settings.LensTraining`.

    Returns:
        A data frame: how far each layer's reading is from the last layer's, plain and tuned, see
        `glotlift.explanation.tuned_lens.fit_tuned_lens`.

    Raises:
        DataError: the file of texts cannot be read.
    """
    from glotlift.explanation.tuned_lens import TunedLensTraining, fit_tuned_lens, save_tuned_lens
    from glotlift.models.load import load_model
    from glotlift.progress import track

    asked = training or validate(LensTraining, settings, "explain", RecipeError)
    texts = _texts(asked.texts)
    loaded = load_model(asked.model, dtype=asked.dtype, device=asked.device)
    with track("tuned lens", asked.steps, "steps") as advance:
        how = TunedLensTraining(n_steps=asked.steps, seed=asked.seed)
        lens, found = fit_tuned_lens(loaded, texts, training=how, progress=advance)
    save_tuned_lens(lens, Path(output_path))
    return found


def _texts(source: str) -> list[str]:
    """Return unlabelled texts: the lines of a file, or the bundled questions in all languages, with the answer cue."""
    from glotlift.data.read import read_table
    from glotlift.tasks.load import load_task, sample_pattern

    if source == "sample":
        task = load_task("sentiment")
        pattern = Path(sample_pattern(task.name, "questions") or "")
        files = {code: pattern.with_name(pattern.name.replace("{lang}", code)) for code in task.languages}
        return [
            "".join(task.question_and_cue(code, {field: str(row[field]) for field in task.fields}))
            for code, file in files.items() if file.is_file() for row in read_table(file).rows
        ]  # fmt: skip
    try:
        return [line for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{source}: cannot be read as text ({fault}), expected UTF-8, one text a line") from None


def explained(recipe: Recipe, test_sets: Mapping[str, TestSet]) -> TestSet:
    """Return the test set that lens and geometry look at, with the items that they look at.

    Raises:
        RecipeError: the test set is not one of `eval`, or switch-off lacks a LoRA adapter.
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
    for code in chosen:
        test_set.task.answers(code, "own")
    items = {code: test_set.items[code][: settings.limit] for code in chosen}
    return TestSet(test_set.settings, test_set.task, items)


def _control(adapter: str | None, folder: Path, seed: int) -> str:
    """Write the random adapter of the same norm and return its folder; first of all, since it may be refused."""
    from glotlift.models.random_adapter import write_random_adapter

    if adapter is None:
        raise ModelError("random_adapter: got no adapter, expected one that the random one is as large as")
    target = folder / CONTROL / "adapter"
    write_random_adapter(adapter, target, seed=seed)
    return str(target)


def _loaded(of: ModelSettings | Recipe, adapter: str | None) -> Any:
    from glotlift.models.load import load_model

    return load_model(of.model, adapter=adapter, dtype=of.dtype, device=of.device)


def _explain_control(
    loaded: Any, test_set: TestSet, folder: Path, token_budget: int, seed: int, asked: ExplainSettings | Explanation
) -> None:
    """Do the same with the random adapter, but for the item link, which is of answers that nobody gave.

    What is known of the base is copied: it carries its fingerprint, so nothing of it is computed again.
    """
    target = folder / CONTROL
    for base in (*folder.glob("*/base"), *folder.glob("*/*/base"), *folder.glob("geometry/*/states/base")):
        place = base.relative_to(folder)
        if base.is_dir() and place.parts[0] not in ("predictions", CONTROL):
            shutil.copytree(base, target / place, dirs_exist_ok=True)
    without_link = tuple(kind for kind in asked.what if kind != "item-link")
    _explain(loaded, test_set, target, token_budget, seed, asked.model_copy(update={"what": without_link}))


def _explain(
    loaded: Any, test_set: TestSet, folder: Path, token_budget: int, seed: int, asked: ExplainSettings | Explanation
) -> None:
    from glotlift.evaluation.prompts import prepare
    from glotlift.explanation.kinds import explain_kinds
    from glotlift.explanation.subject import LensOptions, Subject, looked_into
    from glotlift.progress import track

    task, kinds = test_set.task, asked.what
    entry = test_set.settings.model_copy(update={"closing_quote": False})  # no answer is scored here
    prompts = {code: prepare(loaded, task, code, rows, entry) for code, rows in test_set.items.items()}
    english = _english_words(task, next(iter(prompts)))
    own = {code: task.answers(code, "own") for code in prompts}
    if "lens" in kinds:
        _say_coverage(loaded, english, own)
    options = LensOptions(**{name: getattr(asked, name) for name in LensSettings.model_fields})
    passes = len({"lens", "geometry"} & set(kinds)) > 0, "patching" in kinds
    rounds = sum(passes) * len(looked_into(loaded)) + ("switch-off" in kinds)
    total = rounds * sum(len(each.rows) for each in prompts.values())
    with track(f"explain {test_set.key}", total, "items") as advance:
        subject = Subject(
            loaded, prompts, folder, test_set.key, english, own, seed, token_budget, advance, options,
            asked.pooling, asked.states_dtype,
        )  # fmt: skip
        explain_kinds(subject, kinds)


def _say_coverage(loaded: Any, english: AnswerSet, own: Mapping[str, AnswerSet]) -> None:
    """Log, before anything runs, how many tokens tell the answer words of each language, and where they tell little."""
    from glotlift.explanation.token_sets import coverage_frame, coverage_lines, coverage_warnings

    coverage = coverage_frame(loaded.tokenizer, english, own)
    for line in (*coverage_lines(coverage), *coverage_warnings(coverage)):
        log.info("%s", line)


def _english_words(task: Task, language: str) -> dict[str, str]:
    return task.answers("en", "own") if "en" in task.languages else task.answers(language, "english")


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.fingerprints import digest, file_digest

    settings = run.recipe.explain
    lens = file_digest(Path(settings.tuned_lens) / "params.pt") if settings.tuned_lens else None
    return digest(EVALUATE.fingerprint(run), settings.model_dump(mode="json"), lens)


def _do(run: OpenRun) -> None:
    test_set, settings = explained(run.recipe, run.test_sets), run.recipe.explain
    rest = test_set, run.path, run.evaluation.token_budget, run.recipe.seed, settings
    control = _control(str(run.path / ADAPTER), run.path, run.recipe.seed) if settings.random_adapter else None
    _explain(run.loaded, *rest)
    if control is not None:
        _explain_control(_loaded(run.recipe, control), *rest)


EXPLAIN = Stage(
    "explain",
    "glotlift run",
    inputs=(TRAIN,),
    outputs=(*(folder_of(kind) for kind in KINDS), *BESIDE_LENS, CONTROL),
    fingerprint=_fingerprint,
    do=_do,
    asked=lambda run: [
        *(folder_of(kind) for kind in run.recipe.explain.what),
        *beside_lens(run.recipe.explain),
        *([CONTROL] if run.recipe.explain.random_adapter else ()),
    ],
)
