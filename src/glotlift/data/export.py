"""A task as a task group of lm-evaluation-harness (EleutherAI), for `lm_eval --include_path FOLDER --tasks GROUP`.

Enters: a task, an answer set, items. Leaves: a folder that can be moved, read by lm-eval 0.4.13 as it is:

    _<group>.yaml            the group: all languages, their accuracies averaged with equal weight
    <group>_<lang>.yaml      one language: demonstrations as `description`, the question as a Jinja template
    data/<lang>.jsonl        its items: `id`, the fields, `label`; `read_items` reads them, too
    rows.py                  finds the data beside itself (lm-eval reads other paths from the working directory)

The prompts are those of glotlift to the character. So is every score of `sequence`, but for two things lm-eval does:
blanks that end a prompt are scored with the word, which costs all words the same; and where a token spans prompt and
word, only the tokens behind it are scored, so that words may tie (`glotlift tasks check` says where: `boundary`).
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from glotlift.errors import DataError, OutputError, TaskError
from glotlift.runs import write_text
from glotlift.tasks.task import Item, Task

_ROWS = '''\
"""Rows of the task for lm-eval, from the data folder beside this file."""

import json
from pathlib import Path

from datasets import Dataset


def load(data_file, **_):
    """Return the test split; lm-eval also passes the task's metadata and the model's arguments."""
    with (Path(__file__).parent / data_file).open(encoding="utf-8") as file:
        return {"test": Dataset.from_list([json.loads(line) for line in file])}
'''

_TAKEN = ("id", "label", "false", "none", "not", "self", "true", "False", "None", "True")
"""Names that a field cannot have: the other columns of the data files, and what Jinja does not take for a variable."""

_SPECIAL = re.compile(r"\{+(?:[%#\r]|\Z)|\{{2,}|\r")
"""What Jinja reads as its own, or may once a field follows; it also turns carriage returns into newlines."""


def export_lm_eval(
    task: Task,
    items: Mapping[str, Sequence[Item]],
    folder: Path,
    *,
    answers: str = "own",
    num_fewshot: int | None = None,
    demo_seed: int | None = None,
) -> Path:
    """Write a task in the languages of `items` as a task group of lm-eval.

    Args:
        task: the task.
        items: language code -> test rows.
        folder: where to; made when missing. Files of the same names are replaced, others stay.
        answers: the answer set, see `Task.answers`; it ends the group's name unless it is `own`.
        num_fewshot: see `Task.shown`. The demonstrations are part of the text, so lm-eval's own count is 0.
        demo_seed: see `Task.shown`.

    Returns:
        The path of the group's file, `_<group>.yaml`.

    Raises:
        LanguageError: the task has no prompts in a language.
        TaskError: it has no such answer set or number of demonstrations, or a prompt that Jinja cannot express.
        DataError: a language has no items, or an item that lm-eval cannot be asked.
        OutputError: the folder cannot be written, or holds another group.
    """
    group = f"glotlift_{task.name}" + ("" if answers == "own" else "_" + re.sub(r"[^\w.-]+", "_", answers))
    _check_fields(task)
    if not items:
        raise DataError(f"task {task.name!r}: got no items to export, expected those of at least one language")
    files = {"rows.py": _ROWS}
    for code, rows in items.items():
        preamble = task.preamble(code, answers, num_fewshot, demo_seed)
        words = list(task.answers(code, answers).values())
        files[f"data/{code}.jsonl"] = _data(task, code, rows)
        files[f"{group}_{code}.yaml"] = _yaml(_language(task, f"{group}_{code}", code, preamble, words))
    files[f"_{group}.yaml"] = _yaml(_group(task, group, list(items)))  # last: no group before all it names is there
    others = sorted(path.name for path in folder.glob("_glotlift_*.yaml") if path.name not in files)
    if others:
        raise OutputError(f"{folder}: got a folder that holds {others[0]}, expected one for {group} alone")
    for name, text in files.items():
        write_text(folder / name, text)
    return folder / f"_{group}.yaml"


def _check_fields(task: Task) -> None:
    """Raise for a field that Jinja cannot name."""
    for field in task.fields:
        if not field.isidentifier() or field in _TAKEN:
            raise TaskError(
                f"task {task.name!r}: got the field {field!r}, expected letters, digits and _, "
                f"and none of {', '.join(_TAKEN)}, to name it in a template of lm-eval"
            )


def _data(task: Task, code: str, rows: Sequence[Item]) -> str:
    """Return the items of a language as JSONL."""
    if not rows:
        raise DataError(f"task {task.name!r}, {code}: got no items, expected at least one")
    for item in rows:
        if task.question(code, item.fields).isdigit():
            raise DataError(
                f"task {task.name!r}, {code}, item {item.id!r}: got a question of digits only, expected more; "
                "lm-eval takes it for the number of a choice"
            )
    objects = ({"id": item.id, **{key: item.fields[key] for key in task.fields}, "label": item.gold} for item in rows)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects)


def _group(task: Task, group: str, languages: Sequence[str]) -> dict[str, Any]:
    return {
        "group": group,
        "task": [f"{group}_{code}" for code in languages],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}],
        "metadata": {"version": task.version},
    }


def _language(task: Task, name: str, code: str, preamble: str, words: list[str]) -> dict[str, Any]:
    """Return the content of a language's file."""
    columns = ("id", *task.fields, "label")
    # lm-eval takes a description that is the name of a column for that column
    description = f"{{{{ {_quoted(preamble)} }}}}" if preamble in columns else _literal(preamble)
    return {
        "task": name,
        "custom_dataset": _Function("rows.load"),
        "dataset_kwargs": {"data_file": f"data/{code}.jsonl"},
        "test_split": "test",
        "output_type": "multiple_choice",
        **({"description": description} if preamble else {}),
        "doc_to_text": _template(task, code),
        "doc_to_choice": words,
        "doc_to_target": f"{{{{[{', '.join(_quoted(label) for label in task.labels)}].index(label)}}}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": task.version},
    }


def _template(task: Task, code: str) -> str:
    """Return how a language writes an item, as Jinja: `{text}` becomes `{{text}}`."""
    template = literal = ""
    for text, field, form, conversion in string.Formatter().parse(task.pack(code).layout):
        literal += text
        if form or conversion:
            got = f"{{{field}{'!' + conversion if conversion else ''}{':' + form if form else ''}}}"
            raise TaskError(f"task {task.name!r}, {code}: got {got}, expected {{{field}}} to export it to lm-eval")
        if field is not None:
            template += f"{_literal(literal)}{{{{{field}}}}}"
            literal = ""
    return template + _literal(literal)


def _literal(text: str) -> str:
    """Return text as a Jinja template that renders to it."""
    return _SPECIAL.sub(lambda found: f"{{{{ {_quoted(found[0])} }}}}", text)


def _quoted(text: str) -> str:
    """Return text as a Jinja string; its escapes are Python's, in which JSON's surrogate pairs would be two letters."""
    return json.dumps(text, ensure_ascii=False)


class _Function(str):
    """A Python function that lm-eval imports from beside the YAML file."""


class _Dumper(yaml.SafeDumper):
    """Writes text with newlines as blocks, so that prompts can be read and edited."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes a NEL (U+0085) bare in every style but the double-quoted one, and readers make it a newline
    style = '"' if "\x85" in text else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", name, style=""))


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=10**6)
