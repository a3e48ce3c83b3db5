"""The recipe: everything a run depends on, in one YAML file.

Enters: YAML. Leaves: a frozen `Recipe`. An unknown key is an error, and all faults of a file come together.
Only stage functions see a recipe (`glotlift.pipeline`); everything below takes plain keyword values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from glotlift.errors import LanguageError, RecipeError
from glotlift.languages import resolve
from glotlift.schema import Frozen, read_yaml, validate


def _codes(value: Any) -> Any:
    if any(isinstance(code, bool) for code in (value if isinstance(value, list | tuple) else [value])):
        raise ValueError('got a YAML boolean; write "no" in quotes for Norwegian')
    if isinstance(value, list | tuple):
        value = [str(code) for code in value]
    elif not isinstance(value, str):
        return value
    try:
        return resolve(value)
    except LanguageError as error:
        raise ValueError(str(error)) from None


def _code(value: Any) -> Any:
    codes = _codes((value,) if isinstance(value, str) else value)
    return codes[0] if isinstance(codes, tuple) and len(codes) == 1 else value


Code = Annotated[str, BeforeValidator(_code)]
Codes = Annotated[tuple[str, ...], BeforeValidator(_codes)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class DataRecipe(Frozen):
    """The question pairs. See `glotlift.data.questions.read_pairs` for what `source` may be."""

    task: str
    source: str = "sample"
    languages: Codes
    target: Code = "en"
    limit: Count | None = None
    columns: dict[str, str] = {}
    validation_fraction: Fraction = 0.05


class TrainRecipe(Frozen):
    """LoRA on question pairs. `batch_size` is pairs an optimizer step, whatever `micro_batch_size` fits in memory."""

    rank: Count = 16
    alpha: Count = 32
    dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate: float = Field(2e-4, gt=0)
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_fraction: Fraction = 0.1
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: Count = 16
    micro_batch_size: Count = 4
    max_length: Count = 1024
    save_steps: Count = 20

    @model_validator(mode="after")
    def _divides(self) -> TrainRecipe:
        if self.batch_size % self.micro_batch_size:
            got = f"batch_size {self.batch_size} and micro_batch_size {self.micro_batch_size}"
            raise ValueError(f"got {got}, expected the second to divide the first")
        return self


class EvalTask(Frozen):
    """A test set. `name` is what it is called in results; by default the task's name.

    `source` is where its rows are: by default what the task file says under `data`, else the bundled sample.
    `closing_quote` scores the quote behind an answer word too; `demo_seed` draws the demonstrations from the pool.
    """

    task: str
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    source: str | None = None
    answers: str = "own"
    languages: Codes | None = None
    limit: Count | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    demo_seed: Annotated[int, Field(ge=0)] | None = None
    closing_quote: bool = False
    apply_chat_template: bool = False
    gold: str | None = None
    columns: dict[str, str] = {}

    @property
    def key(self) -> str:
        """What the test set is called in results."""
        return self.name or Path(self.task).stem


class EvalRecipe(Frozen):
    """Constrained decoding in many languages. `scoring` and `calibration` decide; all others are stored beside it."""

    tasks: tuple[EvalTask, ...] = Field(min_length=1)
    languages: Codes = resolve("all")
    scoring: Literal["sequence", "prefix-mass", "first-token"] = "sequence"
    calibration: Literal["none", "contextual", "batch"] = "none"
    token_budget: Count = 1024
    batch_size: Count | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _distinct(self) -> EvalRecipe:
        keys = [task.key for task in self.tasks]
        if len(set(keys)) < len(keys):
            raise ValueError(f"tasks: got the names {', '.join(keys)}, expected distinct ones; give one a `name`")
        return self


class ExplainRecipe(Frozen):
    """Logit lens and geometry, on the items of one test set of `eval`."""

    task: str | None = None
    languages: Codes | None = None
    limit: Count = 100


class Recipe(Frozen):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    model: str = "demo"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataRecipe
    train: TrainRecipe = TrainRecipe.model_validate({})
    eval: EvalRecipe
    explain: ExplainRecipe = ExplainRecipe()

    @model_validator(mode="after")
    def _explains_a_test_set(self) -> Recipe:
        keys = [task.key for task in self.eval.tasks]
        if self.explain.task is not None and self.explain.task not in keys:
            raise ValueError(f"explain.task: got {self.explain.task!r}, expected a test set of eval: {', '.join(keys)}")
        explained = self.eval.tasks[keys.index(self.explain.task or keys[0])]
        has = explained.languages or self.eval.languages
        if missing := [code for code in self.explain.languages or () if code not in has]:
            raise ValueError(
                f"explain.languages: got {' '.join(missing)}, expected languages of {explained.key!r}: {' '.join(has)}"
            )
        return self


def load_recipe(path: str | Path) -> Recipe:
    """Return the recipe of a YAML file. Relative paths in `source` and `model` count from the working directory.

    Raises:
        RecipeError: the file is missing or malformed, or has faults (all are named).
    """
    file = Path(path)
    return validate(Recipe, read_yaml(file, RecipeError), str(file), RecipeError)


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML, every setting written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
