"""JSON as a file holds it: nothing is dropped on the way, and every fault is one sentence.

Enters: text, or a file. Leaves: what it says. Python's reader keeps the last of two keys of one name, takes `NaN`,
which is no JSON, and answers deep nesting and long numbers with errors of its own; here all of them are faults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glotlift.errors import UserError


class _Refused(ValueError):
    """What JSON's grammar allows, or Python's reader takes, and a file should not hold."""


def read_json(path: Path, error: type[UserError], *, infinite: bool = False) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        error: class of the error.
        infinite: take `Infinity` and `NaN`, which transformers writes into the configs of some models.

    Raises:
        error: the file is missing, is not UTF-8 text, or as `parse_json`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise error(f"{path}: cannot be read as UTF-8 text ({fault})") from None
    return parse_json(text, str(path), error, infinite=infinite)


def parse_json(
    text: str, where: str, error: type[UserError], *, line: int | None = None, infinite: bool = False
) -> Any:
    """Return what JSON text says.

    Args:
        text: one JSON value.
        where: what it is from, at the head of an error.
        error: class of the error.
        line: the line of `where` in which the text begins, for text that is one line of a file.
        infinite: see `read_json`.

    Raises:
        error: it is not JSON (with line and column), an object has two keys of one name, a number is NaN, infinite or
            longer than Python reads, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=None if infinite else _constant)
    except json.JSONDecodeError as fault:
        at = f"line {fault.lineno + (line or 1) - 1}, column {fault.colno}"
        raise error(f"{where}, {at}: not valid JSON: {fault.msg}") from None
    except RecursionError:
        problem = "got values nested too deeply to be read, expected fewer levels"
    except _Refused as fault:
        problem = str(fault)
    except ValueError:  # `int` refuses them
        problem = "got a whole number of more than 4,000 digits, expected a number that can be read, or text"
    raise error(f"{where}{f', line {line}' if line else ''}: {problem}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"got the key {twice!r} twice in one object, expected distinct keys")
    return found


def _constant(word: str) -> Any:
    raise _Refused(f"got {word}, which is no JSON, expected null or a number")
