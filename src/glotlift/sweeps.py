"""The sweep: several runs of one recipe, each with settings of its own and several seeds, in one YAML file.

Enters: YAML. Leaves: a frozen `Sweep`, and of it the recipes to run, all checked before the first one starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from glotlift.errors import RecipeError, one_of
from glotlift.fields import Name, Natural
from glotlift.names import safe_name, taken_twice
from glotlift.recipe import Recipe
from glotlift.schema import Frozen, read_yaml, validate
from glotlift.training.settings import without_preset


class SweepRun(Frozen):
    """A run of a sweep: its name, and what it writes over the recipe's `data` and `train`.

    With a preset of its own go the recipe's objective and what the recipe's preset gave.
    """

    name: Name
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}


class Sweep(Frozen):
    """Several runs of one recipe, each once a seed.

    Attributes:
        name: of the sweep, and of its folder under `runs/`.
        recipe: path of the recipe, from the working directory as those inside it.
        runs: at least one.
        vary: settings such as `train.learning_rate` with a list of values each; every run is made with every
            combination, which its name then tells.
        seeds: every run is made with every one.
        against: the run that the others are compared with, seed by seed, beside the base; with what varies, if it does.
    """

    name: Name
    recipe: str
    runs: tuple[SweepRun, ...] = Field(min_length=1)
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    seeds: tuple[Natural, ...] = Field((0,), min_length=1)
    against: str | None = None

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"got the seeds {', '.join(map(str, seeds))}, expected each once")
        return seeds

    @field_validator("vary")
    @classmethod
    def _of_runs(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key in vary:
            part, _, setting = key.partition(".")
            if part not in ("data", "train") or not setting:
                raise ValueError(f"got {key!r}, expected settings of data or train, such as train.learning_rate")
        return vary


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep with one seed.

    Attributes:
        name: of the run, with what varies.
        seed: of its draws.
        recipe: what is run.
    """

    name: str
    seed: int
    recipe: Recipe

    @property
    def place(self) -> str:
        """Its folder in the sweep's."""
        return f"{self.name}/seed{self.seed}"


def load_sweep(path: str | Path) -> tuple[Sweep, list[PlannedRun]]:
    """Return the sweep of a YAML file, and its runs, with all seeds of one behind each other.

    Args:
        path: the file.

    Raises:
        RecipeError: the sweep or its recipe is missing, malformed or at fault, or without `eval`; two runs have one
            name; what a run writes over the recipe is at fault; or `against` is no run.
    """
    file = Path(path)
    sweep = validate(Sweep, read_yaml(file, RecipeError), str(file), RecipeError)
    recipe = read_yaml(Path(sweep.recipe), RecipeError)
    if validate(Recipe, recipe, sweep.recipe, RecipeError).eval is None:
        raise RecipeError(f"{sweep.recipe}: got no `eval`, expected the tasks that the runs of {file} are compared on")
    listed = [(_name(run, values), run, values) for run in sweep.runs for values in _combinations(sweep.vary)]
    if twice := taken_twice(name for name, *_ in listed):
        raise RecipeError(f"{file}: got two runs of the name {twice[0]!r}, expected different names")
    names = [name for name, *_ in listed]
    if sweep.against is not None and sweep.against not in names:
        raise RecipeError(f"{file}, `against`: got {sweep.against!r}, expected a run: {one_of(names)}")
    planned = []
    for name, run, values in listed:
        for seed in sweep.seeds:
            content = _overlaid(recipe, run, values, seed)
            planned.append(PlannedRun(name, seed, validate(Recipe, content, f"{file}, run {name}", RecipeError)))
    return sweep, planned


def _combinations(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]


def _name(run: SweepRun, values: Mapping[str, Any]) -> str:
    told = [safe_name(f"{key.partition('.')[2]}-{value}") for key, value in values.items()]
    return ".".join([run.name, *told])


def _overlaid(recipe: Mapping[str, Any], run: SweepRun, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return a recipe's content with what a run writes over it."""
    content = {**recipe, "seed": seed}
    for part, settings in (("data", run.data), ("train", run.train)):
        varied = {key.partition(".")[2]: value for key, value in values.items() if key.partition(".")[0] == part}
        own, below = {**settings, **varied}, content.get(part) or {}
        content[part] = {**(without_preset(below) if part == "train" and "preset" in own else below), **own}
    return content
