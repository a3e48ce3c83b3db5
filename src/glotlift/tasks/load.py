"""Task files and the bundled tasks.

Enters: the name of a bundled task (`sentiment`, `nli`, `paraphrase`) or the path of a YAML file. Leaves: a `Task`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from glotlift.errors import TaskError, nearest
from glotlift.languages import is_code
from glotlift.schema import read_yaml, validate
from glotlift.tasks.task import Task

_BUILTIN = Path(__file__).parent / "builtin"
_SAMPLE = Path(__file__).parent / "sample"


@cache
def builtin_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that come with glotlift."""
    return tuple(sorted(path.stem for path in _BUILTIN.glob("*.yaml")))


def load_task(name_or_path: str) -> Task:
    """Return a bundled task by name, or the task of a YAML file.

    Raises:
        TaskError: there is no such task, or its file has faults (all are named).
    """
    if name_or_path in builtin_tasks():
        return _builtin(name_or_path)
    if name_or_path.endswith((".yaml", ".yml")):
        return _read(Path(name_or_path))
    known = builtin_tasks()
    raise TaskError(
        f"unknown task {name_or_path!r}{nearest(name_or_path, known)}; "
        f"expected one of {', '.join(known)}, or the path of a .yaml file"
    )


@cache
def _builtin(name: str) -> Task:
    return _read(_BUILTIN / f"{name}.yaml")


def _read(path: Path) -> Task:
    content = read_yaml(path, TaskError)
    if isinstance(content, dict) and isinstance(content.get("languages"), dict):
        if False in content["languages"]:
            raise TaskError(f'{path}: languages: YAML reads the bare key `no` as false; write "no" for Norwegian')
        unknown = [str(code) for code in content["languages"] if not is_code(str(code))]
        if unknown:
            raise TaskError(f"{path}: languages: got {', '.join(unknown)}, expected BCP-47 codes such as de, pt-BR")
    task = validate(Task, content, str(path), TaskError)
    if task.data is None or task.data.source.startswith("hub:") or Path(task.data.source).is_absolute():
        return task
    return task.model_copy(
        update={"data": task.data.model_copy(update={"source": str(path.parent / task.data.source)})}
    )


def sample_pattern(task: str, kind: str) -> str | None:
    """Return the path pattern of a task's bundled sample (`items` or `questions`), None where it has none."""
    pattern = _SAMPLE / task / f"{kind}_{{lang}}.jsonl"
    return str(pattern) if Path(str(pattern).replace("{lang}", "en")).exists() else None
