"""The recipe: everything a run depends on, in one YAML file.

Enters: YAML. Leaves: a frozen `Recipe`. An unknown key is an error, and all faults of a file come together.
Only stage functions see a recipe (`glotlift.pipeline`); everything below takes plain keyword values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def _direction(value: Any) -> Any:
    if value in ("to-english", "from-english"):
        return value
    if not isinstance(value, str) or not value.startswith("via:"):
        raise ValueError(f"got {value!r}, expected to-english, from-english or via:<language>")
    return f"via:{_code(value.removeprefix('via:'))}"


Code = Annotated[str, BeforeValidator(_code)]
Direction = Annotated[str, BeforeValidator(_direction)]
Codes = Annotated[tuple[str, ...], BeforeValidator(_codes)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class DataRecipe(Frozen):
    """The question pairs. See `glotlift.data.questions` for what `source`, `direction` and `balance` may be."""

    task: str
    source: str = "sample"
    languages: Codes
    direction: Direction = "to-english"
    limit: Count | None = None
    balance: Literal["none", "pairs", "tokens"] = "none"
    columns: dict[str, str] = {}
    validation_fraction: Fraction = 0.05


class ProbeRecipe(Frozen):
    """A small evaluation in between: accuracy of constrained decoding on a few unseen languages, every `steps` steps.

    Training stops when it has not risen for `patience` probes, and the best weights are kept.
    """

    steps: Count
    task: str | None = None
    source: str | None = None
    languages: Codes
    limit: Count = 50
    patience: Count = 3


class TrainRecipe(Frozen):
    """Tuning on question pairs. `batch_size` is pairs an optimizer step, whatever is run at once and by how many.

    `preset` gives the settings that are not written: `default` (ours), `paper` (arXiv 2405.13816) or `qalign`
    (NJUNLP/QAlign); see `PRESETS`.
    """

    preset: Literal["default", "paper", "qalign"] = "default"
    method: Literal["lora", "full"] = "lora"
    rank: Count = 16
    alpha: Count = 32
    dropout: Fraction = 0.0
    rslora: bool = False
    dora: bool = False
    quantization: Literal["none", "4bit"] = "none"
    target_modules: str | tuple[str, ...] = "all-linear"
    prompt_format: Literal["plain", "alpaca", "chat"] = "plain"
    learning_rate: float = Field(2e-4, gt=0)
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_fraction: Fraction = 0.1
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: Count = 16
    micro_batch_size: Count = 4
    max_length: Count = 1024
    too_long: Literal["error", "truncate"] = "error"
    gradient_checkpointing: bool = False
    save_steps: Count = 20
    probe: ProbeRecipe | None = None
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        preset = value.get("preset") if isinstance(value, dict) else None
        return {**PRESETS[preset].settings, **value} if isinstance(preset, str) and preset in PRESETS else value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainRecipe:
        if self.batch_size % self.micro_batch_size:
            got = f"batch_size {self.batch_size} and micro_batch_size {self.micro_batch_size}"
            raise ValueError(f"got {got}, expected the second to divide the first")
        if self.method == "full":
            lora_only = {"rslora": self.rslora, "dora": self.dora, "quantization": self.quantization != "none"}
            if wrong := [name for name, given in lora_only.items() if given]:
                raise ValueError(f"got method full with {', '.join(wrong)}, expected method lora")
        return self


@dataclass(frozen=True)
class Preset:
    """Published training settings.

    Attributes:
        settings: keys of `TrainRecipe`.
        data: keys of `DataRecipe`.
        seed: of the run, where it is published.
        unpublished: settings that the publication leaves open, and what they are here.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    seed: int | None
    unpublished: str


PRESETS = {
    "default": Preset({}, {}, None, ""),
    "paper": Preset(
        {
            "method": "lora", "rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"], "learning_rate": 5e-5,
            "scheduler": "cosine", "warmup_fraction": 0.1, "epochs": 3, "batch_size": 16, "micro_batch_size": 4,
            "max_length": 2048, "too_long": "truncate", "dropout": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0,
            "prompt_format": "alpaca",
        },
        {"validation_fraction": 0.05},
        None,
        "template (alpaca), seed, dropout (0), weight decay (0), gradient norm (1), the pairs of the validation set; "
        "rank and alpha are from a secondary source; fp16 is a choice of `dtype`",
    ),
    "qalign": Preset(
        {
            "method": "full", "learning_rate": 2e-5, "epochs": 3, "batch_size": 128, "scheduler": "cosine",
            "warmup_fraction": 0.03, "max_length": 512, "too_long": "truncate", "weight_decay": 0.0,
            "max_grad_norm": 1.0, "prompt_format": "alpaca",
        },
        {},
        1234,
        "template (alpaca), weight decay (0), gradient norm (1), micro-batch; bf16 is a choice of `dtype`",
    ),
}  # fmt: skip
"""Name -> preset. What is published of them stands in arXiv 2405.13816 and the repository NJUNLP/QAlign."""


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

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        """Fill what the preset of `train` says of other parts, and an epoch of PAWS, which is the paper's exception."""
        train = value.get("train") if isinstance(value, dict) else None
        if not isinstance(train, dict) or not isinstance(value.get("data"), dict):
            return value
        preset = PRESETS.get(str(train.get("preset")), PRESETS["default"])
        data = {**preset.data, **value["data"]}
        seed = {} if preset.seed is None else {"seed": preset.seed}
        if train.get("preset") == "paper" and Path(str(data.get("task"))).stem == "paraphrase":
            train = {"epochs": 1, **train}
        return {**seed, **value, "data": data, "train": train}

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


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file. Relative paths in `source` and `model` count from the working directory.

    Args:
        path: the file.
        settings: what replaces settings of the file, as `train.learning_rate=1e-4`; the value is YAML.

    Raises:
        RecipeError: the file is missing or malformed, or has faults (all are named).
    """
    file = Path(path)
    content = read_yaml(file, RecipeError)
    for setting in settings:
        _put(content, setting)
    return validate(Recipe, content, " ".join([str(file), *(f"--set {each}" for each in settings)]), RecipeError)


def _put(content: Any, setting: str) -> None:
    """Put `key.key=value` into a mapping."""
    place, separator, text = setting.partition("=")
    *parents, key = place.strip().split(".")
    if not separator or not all([*parents, key]):
        raise RecipeError(f"--set: got {setting!r}, expected a setting such as train.learning_rate=1e-4")
    for parent in parents:
        if not isinstance(content, dict) or not isinstance(content.setdefault(parent, {}), dict):
            raise RecipeError(f"--set: got {setting!r}, expected a setting; `{parent}` holds no settings")
        content = content[parent]
    try:
        content[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set: got {setting!r}, expected a value that is YAML") from None


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML, every setting written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
