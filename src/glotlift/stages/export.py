"""Public functions that read or write question pairs and tasks for others. No stages of a run.

`audit_data` reads pairs; `export_data` writes them as TRL, LLaMA-Factory or the hub read them; `export_tasks` writes
tasks with their items for lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glotlift.errors import DataError, RecipeError
from glotlift.evaluation.settings import EvalSettings, EvalTask
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.fields import default_of
from glotlift.schema import validate
from glotlift.strict_json import read_json


def audit_data(pairs: str | Path, task: str | None = None) -> dict[str, Any]:
    """Return the audit of a file of question pairs, see `glotlift.data.audit.audit_pairs`.

    Args:
        pairs: a `pairs.jsonl`, or a run folder.
        task: name or path of a task, whose answers are looked for in the pairs; None for none.

    Raises:
        UserError: the file or the task is at fault.
    """
    from glotlift.data.audit import audit_pairs
    from glotlift.data.questions import load_pairs
    from glotlift.tasks.load import load_task

    return audit_pairs(load_pairs(_pairs_file(pairs)), task=load_task(task) if task else None)


def export_data(
    pairs: str | Path, output_path: str | Path, *, format: str = "trl", name: str = "questions", about: str = ""
) -> Path:
    """Write question pairs as others read them; return the file, or the folder for the hub.

    Args:
        pairs: a `pairs.jsonl`, or a run folder, whose audit then stands in the card.
        output_path: folder for the files.
        format: `trl`, `llama-factory` or `hub`.
        name: of the data set.
        about: where the questions are from, for the card.

    Raises:
        UserError: the pairs, the format or the name is at fault.
    """
    from glotlift.data.export_pairs import export_pairs
    from glotlift.data.questions import load_pairs

    file = _pairs_file(pairs)
    audit = file.with_name("audit.json")
    known = read_json(audit, DataError) if audit.is_file() else None
    return export_pairs(load_pairs(file), Path(output_path), format, name=name, about=about, audit=known)


def _pairs_file(pairs: str | Path) -> Path:
    path = Path(pairs)
    return path / "data" / "pairs.jsonl" if path.is_dir() else path


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
