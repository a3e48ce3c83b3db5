"""`run`: every stage of a recipe, in the order in which data flows.

    data -> train -> merge -> eval (base and tuned, compared) -> explain -> report

Stages exchange files in the run folder. A new stage is a file beside this one that describes itself with a `Stage`, and
a place in `STAGES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glotlift.recipe import Recipe
from glotlift.stages.data import DATA
from glotlift.stages.evaluate import EVALUATE
from glotlift.stages.explain import EXPLAIN
from glotlift.stages.merge import MERGE
from glotlift.stages.report import REPORT
from glotlift.stages.stage import open_run, walk
from glotlift.stages.subjects import explained
from glotlift.stages.train import TRAIN

DEMO = Path(__file__).parents[1] / "tasks" / "sample" / "demo.yaml"
"""The recipe of the bundled sample."""

STAGES = (DATA, TRAIN, MERGE, EVALUATE, EXPLAIN, REPORT)


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
    opened = replace(open_run(recipe, output_path, settings), is_explained=True)
    _ = opened.evaluation  # a recipe without it is not a whole run
    explained(opened.recipe, opened.test_sets)  # faults in test data show before hours of training
    walk(opened, *STAGES)
    return opened.path


def demo(output_path: str | Path | None = None) -> Path:
    """Do every stage on a real small model and the bundled sample, and return the run folder; minutes on a CPU.

    Args:
        output_path: the run folder; `runs/demo` by default.

    Raises:
        ModelError: the demo model is not installed.
    """
    return run(DEMO, output_path)
