"""Stage `explain`: base and tuned model looked into, on the items of one test set.

Reads: `adapter/`, the base model, the test rows, a tuned lens, `predictions/` for the item link. Writes: `lens/`,
`geometry/`, a folder a kind, what the lens reads beside, and `random_adapter/` where it is asked for. Fingerprint: that
of `eval`, the settings of explanation, the tuned lens.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glotlift.errors import DataError, ModelError, RecipeError
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import TestSet, read_test_sets
from glotlift.explanation.settings import (
    BESIDE_LENS,
    CONTROL,
    KINDS,
    ExplainSettings,
    Explanation,
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
from glotlift.stages.subjects import explained, subject_of
from glotlift.stages.train import ADAPTER, TRAIN
from glotlift.tasks.task import AnswerSet

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
    from glotlift.explanation.kinds import explain_kinds
    from glotlift.explanation.subject import looked_into
    from glotlift.progress import track

    kinds = asked.what
    subject = subject_of(loaded, test_set, folder, token_budget, seed, asked)
    if "lens" in kinds:
        _say_coverage(loaded, subject.english_words, subject.own_words)
    passes = len({"lens", "geometry"} & set(kinds)) > 0, "patching" in kinds
    rounds = sum(passes) * len(looked_into(loaded)) + ("switch-off" in kinds)
    total = rounds * sum(len(each.rows) for each in subject.prompts.values())
    with track(f"explain {test_set.key}", total, "items") as advance:
        explain_kinds(replace(subject, progress=advance), kinds)


def _say_coverage(loaded: Any, english: AnswerSet, own: Mapping[str, AnswerSet]) -> None:
    """Log, before anything runs, how many tokens tell the answer words of each language, and where they tell little."""
    from glotlift.explanation.token_sets import coverage_frame, coverage_lines, coverage_warnings

    coverage = coverage_frame(loaded.tokenizer, english, own)
    for line in (*coverage_lines(coverage), *coverage_warnings(coverage)):
        log.info("%s", line)


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
