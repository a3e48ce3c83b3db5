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

from glotlift.errors import UserError, nearest, shown


class Frozen(BaseModel):
    """A pydantic model that cannot be changed and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


_DEEPEST = 50
"""Levels of a YAML file; task files and recipes have 7."""

_MOST_COPIES = 100_000
"""Values that aliases may stand for, all together; a few lines of them can stand for billions."""

_LONGEST_INTEGER = 20
"""Characters of a whole number: those of 64 bits and a sign."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, strict about what it would take silently, and bounded in what a small file can make of it.

    A key that stands twice is an error (PyYAML keeps the last one), and so is a key that Python takes for the same as
    another, as it does 1 and true. Nesting, aliases and numbers have limits.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._n_copies = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; how many values it stands for, aliases followed, is kept in `_sizes`.

        Raises:
            MarkedYAMLError: it is nested too deeply, an alias stands inside what it is an alias of, or aliases stand
                for too many values.
        """
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        if self._depth >= _DEEPEST:
            problem = f"got values nested more than {_DEEPEST} levels deep, expected fewer"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            inside = node.value if isinstance(node.value, list) else ()
            parts = [part for each in inside for part in (each if isinstance(each, tuple) else (each,))]
            self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
            return node
        if node not in self._sizes:
            problem = "got an alias inside of what it stands for, expected it behind"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self._n_copies += self._sizes[node]
        if self._n_copies > _MOST_COPIES:
            problem = f"got aliases that stand for more than {_MOST_COPIES:,} values, expected fewer"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written: before `<<` merges others into it, whose keys its own may replace.

        Raises:
            MarkedYAMLError: a key stands twice.
        """
        node = super().compose_mapping_node(anchor)
        first_as: dict[Any, yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag in _NO_KEYS:
                continue
            first = first_as.setdefault(self.construct_object(key), key)
            if first is not key:
                other = "" if first.value == key.value else f"as {first.value!r} "
                problem = f"the key {key.value!r} stands twice, first {other}in line {first.start_mark.line + 1}"
                raise yaml.MarkedYAMLError(problem=f"{problem}, expected it once", problem_mark=key.start_mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a node.

        Raises:
            MarkedYAMLError: it is written as a number, date or text that cannot be; PyYAML's own errors name no line.
        """
        kind = node.tag.rpartition(":")[2]
        if kind == "int" and len(node.value) > _LONGEST_INTEGER:
            got = f"got a whole number of {len(node.value)} characters"
            problem = f"{got}, expected at most {_LONGEST_INTEGER}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError) as fault:  # as PyYAML's own regex and table say
            why = f" ({fault})" if isinstance(fault, ValueError) else ""
            problem = f"got {shown(node.value)}, expected a value of the kind {kind}{why}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_yaml_str(self, node: Any) -> str:
        """Return text; two escapes that JSON writes for one character become it.

        Raises:
            ValueError: it holds half of such a pair alone.
        """
        text = self.construct_scalar(node)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ValueError("half of a surrogate pair") from None


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)

_NO_KEYS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
"""Tags of `<<` and `=`, which PyYAML reads in ways of its own."""


def read_yaml(path: Path, error: type[UserError]) -> Any:
    """Return what a YAML file holds.

    Raises:
        error: the file is missing, is not UTF-8 text, or as `parse_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file, expected a YAML file") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise error(f"{path}: cannot be read as UTF-8 text ({fault})") from None
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, where: str, error: type[UserError]) -> Any:
    """Return what YAML text says.

    Args:
        text: one YAML document.
        where: what it is from, at the head of an error.
        error: class of the error.

    Raises:
        error: it is not YAML (with line and column), a key stands twice in a mapping, it is nested too deeply, aliases
            stand for too much, or a number or a date cannot be one.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise error(f"{where}{at}: not valid YAML: {problem}") from None


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
    return f"{key}: got {shown(fault['input'])}, expected {_expected(fault)}"


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
