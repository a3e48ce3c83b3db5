"""Names that become files and folders: of runs, tasks, test sets and data sets, all checked here; a model's for others.

Enters: a name that a person wrote. Leaves: what is wrong with it as a file's, or a name made of it that is a file's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DEMO_HUB_ID = "google/gemma-3-270m"
"""Hub id of the weights that the model name `demo` stands for."""

READOUT = "readout.safetensors"
"""File in the folder of a readout, which stands where an adapter stands."""

STEERING = "steering.safetensors"
"""Likewise of steering."""

LONGEST = 100
"""Characters of a name; file systems allow 255 bytes, and a name gets a language and an ending."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def name_fault(name: str) -> str | None:
    """Return what keeps a name from being a file's, as `got ..., expected ...`; None where nothing does."""
    if not _NAME.fullmatch(name):
        return f"got the name {name!r}, expected letters of ASCII, digits, `_`, `-` and `.`, and no `.` at its head"
    if len(name) > LONGEST:
        return f"got a name of {len(name)} characters ({name[:20]!r}...), expected at most {LONGEST}"
    return None


def published_name(model: str) -> str:
    """Return what others load a base model by: the hub id of `demo`, any other model as it was asked for."""
    return DEMO_HUB_ID if model == "demo" else model


def safe_name(text: str) -> str:
    """Return a file's name made of any text that holds a letter or digit: `in:de` -> `in-de`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip(".")[:LONGEST]


def taken_twice(names: Iterable[str]) -> list[str]:
    """Return the names that stand for one file with another one, as some file systems know no case."""
    listed = list(names)
    folded = [name.casefold() for name in listed]
    return [name for name, same in zip(listed, folded, strict=True) if folded.count(same) > 1]
