"""`export_tasks`: tasks with their items, for lm-evaluation-harness. No stage of a run.

Reads: tasks and test rows. Writes: a task group into a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glotlift.errors import RecipeError
from glotlift.evaluation.settings import EvalSettings, EvalTask
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.fields import default_of
from glotlift.schema import validate


def export_tasks(
    tasks: str | Sequence[str],
    output_path: str | Path,
    *,
    languages: str | Sequence[str] = "all",
    source: str | None = None,
    answers: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> list[str]:
    """Write tasks with their items as task groups of lm-evaluation-harness; return the names of the groups.

    Arguments as in `evaluate`; `output_path` is the folder for `lm_eval --include_path`.
    """
    from glotlift.data.export import export_lm_eval

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    words = answers or default_of(EvalTask, "answers")
    common = {"source": source, "answers": words, "limit": limit, "num_fewshot": num_fewshot}
    content = {"tasks": [{"task": name, **common} for name in names], "languages": languages}
    return [
        export_lm_eval(each.task, each.items, Path(output_path), answers=words, num_fewshot=num_fewshot).stem.lstrip(
            "_"
        )
        for each in read_test_sets(validate(EvalSettings, content, "export", RecipeError)).values()
    ]
