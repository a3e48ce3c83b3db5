"""Settings of evaluation: the part `eval` of a recipe, and what `glotlift eval` asks for.

Enters: what a person wrote. Leaves: test sets (`EvalTask`), how all of them are scored (`EvalSettings`), and the short
form in which the command line and `glotlift.evaluate` ask for both (`Evaluation`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from glotlift.fields import Codes, Columns, Count, GoldMap, Location, Name, Names, Natural, default_of
from glotlift.languages import resolve
from glotlift.models.settings import ModelSettings, ServerSettings
from glotlift.schema import Frozen


def _batch_size(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and value > 0) or (isinstance(value, str) and value.isdecimal()):
        return value
    raise ValueError(f"got {value!r}, expected `auto` or a number of items, at least 1")


BatchSize = Annotated[Count | Literal["auto"], BeforeValidator(_batch_size)]
"""Items of a batch; `auto` for as many as the token budget allows."""

Scoring = Literal["sequence", "prefix-mass", "prefix-mass-released", "first-token"]
"""Which scores decide, see `glotlift.evaluation.predict`."""

Calibration = Literal["none", "contextual", "batch"]
"""What is taken off them first, see `glotlift.evaluation.metrics.decide`."""


def _strengths(value: Any) -> Any:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        found = [float(part) for part in parts]
    except (TypeError, ValueError):
        return value
    return tuple(each for each in dict.fromkeys(found) if each != 1)


Strengths = Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], BeforeValidator(_strengths)]
"""What an adapter is multiplied by, beside 1."""


class EvalTask(Frozen):
    """A test set. `name` is what it is called in results; by default the task's name.

    `source` is where its rows are: by default what the task file says under `data`, else the bundled sample.
    `closing_quote` scores the quote behind an answer word too; `demo_seed` draws the demonstrations from the pool.
    `translated` is where the items' translations into English are, a path with `{lang}`: a baseline.
    """

    task: Location
    name: Name | None = None
    source: Location | None = None
    answers: str = "own"
    languages: Codes | None = None
    limit: Count | None = None
    num_fewshot: Natural | None = None
    demo_seed: Natural | None = None
    closing_quote: bool = False
    apply_chat_template: bool = False
    gold: str | None = None
    columns: Columns = {}
    gold_map: GoldMap = {}
    translated: Location | None = None


class EvalSettings(Frozen):
    """Constrained decoding in many languages. `scoring` and `calibration` decide; all others are stored beside it.

    `baselines` are ways to ask the base model that the tuned one is seen beside, see `glotlift.evaluation.baselines`;
    `adapter_strength` are strengths of a LoRA adapter beside 1, which the tuned model has.
    """

    tasks: tuple[EvalTask, ...] = Field(min_length=1)
    languages: Codes = resolve("all")
    scoring: Scoring = "sequence"
    calibration: Calibration = "none"
    token_budget: Count = 1024
    batch_size: BatchSize = "auto"
    baselines: tuple[Literal["english-demos", "oracle"], ...] = ()
    adapter_strength: Strengths = ()


class Evaluation(ModelSettings, ServerSettings):
    """What `glotlift eval` evaluates: a model on every combination of tasks, answer sets and demonstration draws.

    Attributes:
        tasks: names of bundled tasks or paths of task files.
        languages: codes, or `all` for those the task has prompts in.
        source: where the test rows are, see `glotlift.data.read`; by default what the task file says, else the sample.
        gold: the column with the right label; looked for when not named.
        columns: the column of a field, where it is not named like the field, see `glotlift.data.read`.
        gold_map: what gold values mean, as `{0: negative, 1: positive}`; without it, they are ids or words.
        answers: answer sets; with several, each makes a test set `<task>.<answers>` of its own.
        answer_languages: codes, or `all`: in place of `answers`, the grid of prompt language x answer language.
        scoring: `sequence`, `prefix-mass`, `prefix-mass-released` or `first-token`; the others are stored beside it.
        calibration: `none`, `contextual` or `batch`; accuracies under the others are stored beside it.
        adapter_strength: what a LoRA adapter is multiplied by, beside 1: `(0.25, 0.5)`, or one text with commas.
        baselines: `english-demos` (the English prompt around a question in its own language) and `oracle` (around its
            English version); see `glotlift.evaluation.baselines`.
        translated: a path with `{lang}`, where what a translation engine made of the items in English is; a baseline.
        closing_quote: score the quote behind the answer word too.
        apply_chat_template: write prompts with the model's chat template.
        limit: items a language.
        num_fewshot: demonstrations a prompt; as many as the task file shows by default.
        demo_seeds: draw so many sets of demonstrations, each a test set of its own, and report the spread.
        token_budget: tokens of a batch.
        batch_size: items of a batch; `auto` for as many as the budget allows.
        prefix_cache: False runs every prompt whole and alone.
        log_samples: write `samples_<task>_<language>.jsonl`, as lm-evaluation-harness does.
        seed: of the bootstraps, and the first of the demonstration draws.
    """

    tasks: Names = ("sentiment",)
    languages: Codes = default_of(EvalSettings, "languages")
    source: Location | None = default_of(EvalTask, "source")
    gold: str | None = default_of(EvalTask, "gold")
    columns: Columns = {}
    gold_map: GoldMap = {}
    answers: Names = (default_of(EvalTask, "answers"),)
    answer_languages: Codes = ()
    adapter_strength: Strengths = ()
    baselines: Names = ()
    translated: Location | None = None
    scoring: Scoring = default_of(EvalSettings, "scoring")
    calibration: Calibration = default_of(EvalSettings, "calibration")
    closing_quote: bool = default_of(EvalTask, "closing_quote")
    apply_chat_template: bool = default_of(EvalTask, "apply_chat_template")
    limit: Count | None = default_of(EvalTask, "limit")
    num_fewshot: Natural | None = default_of(EvalTask, "num_fewshot")
    demo_seeds: Natural = 0
    token_budget: Count = default_of(EvalSettings, "token_budget")
    batch_size: BatchSize = default_of(EvalSettings, "batch_size")
    prefix_cache: bool = True
    log_samples: bool = False
    seed: Natural = 0


class Diagnosing(ModelSettings):
    """What `glotlift diagnose` looks at: a model's answers to the same questions in several languages.

    Attributes:
        task: name of a bundled task, or path of a task file.
        languages: codes, or `all` for those the task has prompts in; the first is the pivot where English is not there.
        source: where the questions are, with or without right labels, see `glotlift.data.read`.
        gold: the column with the right label; looked for when not named.
        columns: the column of a field, where it is not named like the field.
        gold_map: what gold values mean.
        answers: answer words.
        num_fewshot: demonstrations a prompt; as many as the task file shows by default.
        limit: questions a language.
    """

    task: Location = "sentiment"
    languages: Codes = default_of(EvalSettings, "languages")
    source: Location | None = default_of(EvalTask, "source")
    gold: str | None = default_of(EvalTask, "gold")
    columns: Columns = {}
    gold_map: GoldMap = {}
    answers: str = default_of(EvalTask, "answers")
    num_fewshot: Natural | None = default_of(EvalTask, "num_fewshot")
    limit: Count | None = 200
