"""The recipe: everything a run depends on, in one YAML file.

Enters: YAML. Leaves: a frozen `Recipe`, made of the settings of every wing (`<wing>/settings.py`). An unknown key is an
error, and all faults of a file come together. Only stages see a recipe; what they call takes the settings of its wing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from glotlift.data.settings import DataSettings
from glotlift.errors import RecipeError
from glotlift.evaluation.settings import EvalSettings
from glotlift.explanation.settings import ExplainSettings
from glotlift.fields import Name
from glotlift.schema import Frozen, parse_yaml, read_yaml, validate
from glotlift.training.settings import PRESETS, MergeSettings, TrainSettings, without_preset


class Recipe(Frozen):
    """A whole run; without `eval` what comes before evaluation: data, training, merging."""

    name: Name
    model: str = "demo"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataSettings
    train: TrainSettings = TrainSettings.model_validate({})
    merge: MergeSettings = MergeSettings.model_validate({})
    eval: EvalSettings | None = None
    explain: ExplainSettings = ExplainSettings()

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
        if train.get("preset") == "paper" and data.get("task") == "paraphrase":
            train = {"epochs": 1, **train}
        return {**seed, **value, "data": data, "train": train}


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file. Relative paths in `source` and `model` count from the working directory.

    Args:
        path: the file.
        settings: what replaces settings of the file, as `train.learning_rate=1e-4`; the value is YAML. With a
            `train.preset` go the file's objective and what its own preset gave.

    Raises:
        RecipeError: the file is missing or malformed, or has faults (all are named).
    """
    file = Path(path)
    content = read_yaml(file, RecipeError)
    places = [setting.partition("=")[0].strip() for setting in settings]
    if "train.preset" in places and isinstance(content, dict) and isinstance(content.get("train"), dict):
        content["train"] = without_preset(content["train"])
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
        content[key] = parse_yaml(text, "it", RecipeError)
    except RecipeError as fault:
        raise RecipeError(f"--set: got {setting!r}, expected a value that is YAML ({fault})") from None


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML, every setting written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
