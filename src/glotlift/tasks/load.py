"""Task files and the bundled tasks.

Enters: the name of a bundled task (`sentiment`, `nli`, `paraphrase`) or the path of a YAML file. Leaves: a `Task`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from glotlift.errors import TaskError, nearest
from glotlift.languages import is_code, resolve
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
    path = task_file(name_or_path)
    return _builtin(path) if path.parent == _BUILTIN else _read(path)


def show_task(name_or_path: str, languages: str = "en", answers: str = "own") -> dict[str, str]:
    """Return the prompt of a task by language, its fields as `<field>`.

    Args:
        name_or_path: see `load_task`.
        languages: codes such as `de,sw`, or `all`.
        answers: see `Task.answers`.

    Raises:
        UserError: there is no such task or answer set, or no prompt in a language.
    """
    task = load_task(name_or_path)
    blank = {field: f"<{field}>" for field in task.fields}
    return {code: task.prompt(code, answers, blank) for code in resolve(languages)}


def task_file(name_or_path: str) -> Path:
    """Return the YAML file of a task.

    Raises:
        TaskError: there is no such task.
    """
    known = builtin_tasks()
    if name_or_path in known:
        return _BUILTIN / f"{name_or_path}.yaml"
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    raise TaskError(
        f"unknown task {name_or_path!r}{nearest(name_or_path, known)}; "
        f"expected one of {', '.join(known)}, or the path of a .yaml file"
    )


@cache
def _builtin(path: Path) -> Task:
    return _read(path)


def _read(path: Path) -> Task:
    content = read_yaml(path, TaskError)
    if isinstance(content, dict) and isinstance(content.get("languages"), dict):
        if False in content["languages"]:
            raise TaskError(f'{path}: languages: YAML reads the bare key `no` as false; write "no" for Norwegian')
        unknown = [str(code) for code in content["languages"] if not is_code(str(code))]
        if unknown:
            raise TaskError(f"{path}: languages: got {', '.join(unknown)}, expected BCP-47 codes such as de, pt-BR")
    task = validate(Task, content, str(path), TaskError)
    return beside(task, path)


def beside(task: Task, path: Path) -> Task:
    """Return a task whose rows, where they are files, count from its own file."""
    source = task.data.source if task.data else None
    if task.data is None or source is None or source.startswith("hub:") or Path(source).is_absolute():
        return task
    return task.model_copy(update={"data": task.data.model_copy(update={"source": str(path.parent / source)})})


def sample_kind(source: str) -> str | None:
    """Return which bundled rows a source names: `sample` its test `items`, `sample:NAME` others; None for no sample."""
    name, _, kind = source.partition(":")
    return kind or "items" if name == "sample" else None


def sample_pattern(task: str, kind: str) -> str | None:
    """Return the path pattern of a task's bundled sample (`items`, `reviews`, `questions`), None where it has none."""
    pattern = _SAMPLE / task / f"{kind}_{{lang}}.jsonl"
    return str(pattern) if Path(str(pattern).replace("{lang}", "en")).exists() else None
