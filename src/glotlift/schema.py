"""Files that people write, read into frozen pydantic models: recipes and task files.

Enters: a YAML file. Leaves: a model, or one error that names every fault of the file: the line of a syntax error,
every unknown key with the nearest valid one, every wrong value with what was expected.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from glotlift.errors import UserError, nearest


class Frozen(BaseModel):
    """A pydantic model that cannot be changed and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which of a key that stands twice would silently keep the last one only."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written: before `<<` merges others into it, whose keys its own may replace.

        Raises:
            MarkedYAMLError: a key stands twice.
        """
        node = super().compose_mapping_node(anchor)
        first_in: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (name := (key.tag, key.value)) in first_in:
                problem = f"the key {key.value!r} stands twice, first in line {first_in[name]}, expected it once"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first_in[name] = key.start_mark.line + 1
        return node


def read_yaml(path: Path, error: type[UserError]) -> Any:
    """Return what a YAML file holds.

    Raises:
        error: the file is missing, is not UTF-8 text, or is not YAML (with line and column); a key standing twice in a
            mapping is none.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise error(f"{path}: no such file, expected a YAML file") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise error(f"{path}: cannot be read as UTF-8 text ({fault})") from None
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise error(f"{path}{where}: not valid YAML: {problem}") from None
    except ValueError as fault:  # a scalar that looks like a date and is none
        raise error(f"{path}: not valid YAML: {fault}") from None


def validate(
    model: type[M], content: Any, source: str, error: type[UserError], *, place: Callable[[str], str] = "`{}`".format
) -> M:
    """Return `content` as a `model`.

    Args:
        model: what it must be.
        content: from a file or a caller.
        source: what it is from, at the head of an error.
        error: class of the error.
        place: function of a key, with those above it before dots -> how an error names it.

    Raises:
        error: with every fault of the content, each with its place.
    """
    if not isinstance(content, dict):
        got = "an empty file" if content is None else f"a {type(content).__name__}"
        raise error(f"{source}: got {got}, expected a mapping with the keys {', '.join(model.model_fields)}")
    try:
        return model.model_validate(content)
    except ValidationError as fault:
        lines = [_sentence(model, entry, place) for entry in _own_faults(fault.errors())]
        start = f"{source}: " if source else ""
        head = start if len(lines) == 1 else f"{start}{len(lines)} faults:\n  "
        raise error(head + "\n  ".join(lines)) from None


def _own_faults(faults: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the faults without those of a list that is too short only because pydantic left out its faulty entries."""
    places = [fault["loc"] for fault in faults]

    def is_echo(fault: ErrorDetails) -> bool:
        depth = len(fault["loc"])
        return fault["type"] == "too_short" and any(len(p) > depth and p[:depth] == fault["loc"] for p in places)

    return [fault for fault in faults if not is_echo(fault)]


def _sentence(model: type[BaseModel], fault: ErrorDetails, place: Callable[[str], str]) -> str:
    key = place(".".join(str(part) for part in fault["loc"]) or "(top level)")
    if fault["type"] == "extra_forbidden":
        known = _keys_beside(model, fault["loc"])
        return f"unknown key {key}{nearest(str(fault['loc'][-1]), known)}; expected one of: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"missing key {key}"
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if fault["loc"] else message
    return f"{key}: got {fault['input']!r}, expected {_expected(fault)}"


def _expected(fault: ErrorDetails) -> str:
    """Return what pydantic expected, as the end of a sentence."""
    known = {"model_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list", "string_type": "text"}
    if fault["type"] in known:
        return known[fault["type"]]
    message = fault["msg"].split(" should ", 1)[-1].split(" after validation")[0]
    message = message.replace("match pattern", "text that matches")
    return message.removeprefix("be ").removeprefix("have ")


def _keys_beside(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys of the mapping in which the key at `place` stands."""
    here: Any = model
    for part in place[:-1]:
        fields = getattr(here, "model_fields", None)
        if fields is not None and part in fields:
            here = _model_inside(fields[part].annotation)
        # list indexes and mapping keys lead to the same model: `_model_inside` has unwrapped the container
    return list(getattr(here, "model_fields", {}))


def _model_inside(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_inside(argument) for argument in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)
