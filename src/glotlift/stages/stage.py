"""What a stage is, and the walk over stages that brings a run folder up to date.

Enters: a recipe opened in its folder, and stages in the order in which data flows. Leaves: the folder, with every stage
done for what it depends on. A stage whose fingerprint and files are those of before is not done again, so a run that
was stopped at any moment is continued by walking again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glotlift.errors import DataError, RecipeError
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import TestSet, read_test_sets
from glotlift.processes import processes
from glotlift.recipe import Recipe, dump_recipe, load_recipe
from glotlift.runs import RunFolder, write_text

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OpenRun:
    """A recipe opened in its folder, and what stages share: read or loaded once, by the first that asks for it.

    Attributes:
        recipe: the recipe.
        folder: the run folder.
        states: fingerprint of what was run -> states of the base model, for all runs of a sweep.
        is_explained: whether `explain` follows on `eval`, which then lets it look at its pass.
    """

    recipe: Recipe
    folder: RunFolder
    states: dict[str, np.ndarray] = field(default_factory=dict)
    is_explained: bool = False

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @cached_property
    def test_sets(self) -> dict[str, TestSet]:
        """Name -> test set, for all of `eval.tasks`; also what the audit of the questions looks for."""
        return read_test_sets(self.recipe.eval) if self.recipe.eval else {}

    @property
    def evaluation(self) -> EvalSettings:
        """How the test sets are scored.

        Raises:
            RecipeError: the recipe has no `eval`.
        """
        if self.recipe.eval is None:
            raise RecipeError(f"recipe {self.recipe.name!r}: got no `eval`, expected the tasks to evaluate on")
        return self.recipe.eval

    @cached_property
    def base_fingerprint(self) -> str:
        """Digest of the base model's weights."""
        from glotlift.models.load import model_source, weights_fingerprint

        return weights_fingerprint(model_source(self.recipe.model))

    @cached_property
    def loaded(self) -> Any:
        """Base and tuned in one load, a `glotlift.models.load.LoadedModel`."""
        from glotlift.models.load import load_model

        recipe = self.recipe
        return load_model(recipe.model, adapter=str(self.path / "adapter"), dtype=recipe.dtype, device=recipe.device)


def open_run(recipe: Recipe | str | Path, output_path: str | Path | None, settings: Sequence[str] = ()) -> OpenRun:
    """Return a recipe opened in its folder.

    Args:
        recipe: a recipe, or the path of one.
        output_path: the run folder; `runs/<name>` by default.
        settings: what replaces settings of the file, see `glotlift.recipe.load_recipe`.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, settings)
    return OpenRun(recipe, RunFolder(Path(output_path) if output_path else Path("runs") / recipe.name))


@dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
        name: what the manifest calls it.
        command: what a person calls to have it done, named where its outputs are missed.
        inputs: stages whose outputs it reads.
        outputs: paths in the run folder that are there when it is done, at the most.
        fingerprint: function of the run -> digest of all that its outputs depend on.
        do: function of the run that writes the outputs; returns notes for the manifest.
        is_shared: whether all processes of a job do it together; else the first does it and the others wait.
        needless: function of the run -> whether there is nothing to do.
        feeds: names of stages behind it into whose outputs it writes, so that they are done again with it.
        asked: function of the run -> those of the outputs that this run asks for; None for all.
        tidy: function of the run that removes what is not needed any more once the stage is recorded as done.
    """

    name: str
    command: str
    inputs: tuple[Stage, ...]
    outputs: tuple[str, ...]
    fingerprint: Callable[[OpenRun], str]
    do: Callable[[OpenRun], Mapping[str, Any] | None]
    is_shared: bool = False
    needless: Callable[[OpenRun], bool] = lambda _run: False
    tidy: Callable[[OpenRun], None] = lambda _run: None
    asked: Callable[[OpenRun], Sequence[str]] | None = None
    feeds: tuple[str, ...] = ()

    def missing(self, run: OpenRun) -> str | None:
        """Return the first of its outputs that is not there."""
        asked = self.outputs if self.asked is None else self.asked(run)
        return next((path for path in asked if not (run.path / path).exists()), None)


def walk(run: OpenRun, *stages: Stage) -> None:
    """Bring stages up to date, one after the other; all processes of a job leave each together.

    The folder then also holds the recipe, with every setting written out. Other jobs are kept out of it.

    Args:
        run: the run.
        stages: in the order in which data flows.

    Raises:
        DataError: the output of a stage that another one reads is missing.
        OutputError: another process is at work in the folder.
    """
    group = processes()
    with run.folder.lock():
        if group.is_first:
            write_text(run.path / "recipe.yaml", dump_recipe(run.recipe))
        for stage in stages:
            if group.is_first or stage.is_shared:
                _bring_up_to_date(run, stage, group.is_first)
            group.wait()


def _bring_up_to_date(run: OpenRun, stage: Stage, is_first: bool) -> None:
    for source in stage.inputs:
        if missing := source.missing(run):
            raise DataError(f"{run.path}: got no {missing}, expected what `{source.command}` writes")
    if stage.needless(run):
        return
    fingerprint = stage.fingerprint(run)
    if not stage.missing(run) and run.folder.is_done(stage.name, fingerprint):
        return
    if is_first:
        run.folder.forget(*stage.feeds)
    with run.folder.stage(stage.name, fingerprint) if is_first else nullcontext({}) as notes:
        notes.update(stage.do(run) or {})
    if is_first:
        stage.tidy(run)
