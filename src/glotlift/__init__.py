"""glotlift: lift an LLM into languages it was never labelled in.

Tune it on translated questions only, prove on 20 languages what changed, and show why from inside the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glotlift.errors import GlotliftError
    from glotlift.evaluation.check import check_task
    from glotlift.languages import LANGUAGES
    from glotlift.models.describe import describe_model
    from glotlift.models.load import load_model
    from glotlift.recipe import Recipe, load_recipe
    from glotlift.stages.compare import compare
    from glotlift.stages.data import build_data
    from glotlift.stages.diagnose import diagnose
    from glotlift.stages.evaluate import evaluate
    from glotlift.stages.explain import explain, explain_text, train_tuned_lens
    from glotlift.stages.explanations import read_explanation
    from glotlift.stages.export import audit_data, export_data, export_tasks
    from glotlift.stages.merge import merge
    from glotlift.stages.predictions import read_predictions
    from glotlift.stages.report import report
    from glotlift.stages.run import demo, run
    from glotlift.stages.sweep import sweep
    from glotlift.stages.train import inspect_training, train
    from glotlift.tasks.load import builtin_tasks, load_task, show_task
    from glotlift.tasks.task import Item, Task

__version__ = "0.1.0"

_HOME = {
    "GlotliftError": "glotlift.errors",
    "Item": "glotlift.tasks.task",
    "LANGUAGES": "glotlift.languages",
    "Recipe": "glotlift.recipe",
    "Task": "glotlift.tasks.task",
    "audit_data": "glotlift.stages.export",
    "build_data": "glotlift.stages.data",
    "builtin_tasks": "glotlift.tasks.load",
    "check_task": "glotlift.evaluation.check",
    "compare": "glotlift.stages.compare",
    "demo": "glotlift.stages.run",
    "describe_model": "glotlift.models.describe",
    "diagnose": "glotlift.stages.diagnose",
    "evaluate": "glotlift.stages.evaluate",
    "explain": "glotlift.stages.explain",
    "explain_text": "glotlift.stages.explain",
    "export_data": "glotlift.stages.export",
    "export_tasks": "glotlift.stages.export",
    "inspect_training": "glotlift.stages.train",
    "load_model": "glotlift.models.load",
    "load_recipe": "glotlift.recipe",
    "load_task": "glotlift.tasks.load",
    "merge": "glotlift.stages.merge",
    "read_explanation": "glotlift.stages.explanations",
    "read_predictions": "glotlift.stages.predictions",
    "report": "glotlift.stages.report",
    "run": "glotlift.stages.run",
    "show_task": "glotlift.tasks.load",
    "sweep": "glotlift.stages.sweep",
    "train": "glotlift.stages.train",
    "train_tuned_lens": "glotlift.stages.explain",
}

__all__ = [
    "GlotliftError",
    "Item",
    "LANGUAGES",
    "Recipe",
    "Task",
    "audit_data",
    "build_data",
    "builtin_tasks",
    "check_task",
    "compare",
    "demo",
    "describe_model",
    "diagnose",
    "evaluate",
    "explain",
    "explain_text",
    "export_data",
    "export_tasks",
    "inspect_training",
    "load_model",
    "load_recipe",
    "load_task",
    "merge",
    "read_explanation",
    "read_predictions",
    "report",
    "run",
    "show_task",
    "sweep",
    "train",
    "train_tuned_lens",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; `import glotlift` itself loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'glotlift' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
