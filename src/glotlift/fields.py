"""Types of settings that several parts share: language codes, counts, fractions, defaults.

Enters: what a person wrote. Leaves: values that are checked. Each wing keeps its own settings in `settings.py`, in
terms of these; `glotlift.recipe` puts them together.
"""

from __future__ import annotations

from os import PathLike
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from glotlift.errors import LanguageError
from glotlift.languages import resolve
from glotlift.names import name_fault


def _codes(value: Any) -> Any:
    if any(isinstance(code, bool) for code in (value if isinstance(value, list | tuple) else [value])):
        raise ValueError('got a YAML boolean; write "no" in quotes for Norwegian')
    if isinstance(value, list | tuple):
        value = [str(code) for code in value]
    elif not isinstance(value, str):
        return value
    try:
        return resolve(value)
    except LanguageError as error:
        raise ValueError(str(error)) from None


def one_code(value: Any) -> Any:
    """Return the one code that a value stands for, or the value where it is none."""
    codes = _codes((value,) if isinstance(value, str) else value)
    return codes[0] if isinstance(codes, tuple) and len(codes) == 1 else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, PathLike) else value


def _names(value: Any) -> Any:
    """Return names as a tuple; one text holds them separated by commas."""
    if not isinstance(value, str):
        return (str(value),) if isinstance(value, PathLike) else value
    return tuple(part for part in (each.strip() for each in value.split(",")) if part)


def _file_name(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


Name = Annotated[str, AfterValidator(_file_name)]
"""A name that becomes a file's or a folder's."""

Code = Annotated[str, BeforeValidator(one_code)]
"""Code of a language."""

Codes = Annotated[tuple[str, ...], BeforeValidator(_codes)]
"""Codes of languages; a text such as `de,sw`, or `all` for those glotlift has prompts in."""

Location = Annotated[str, BeforeValidator(_text)]
"""A name, a path or an address, kept as text."""

Names = Annotated[tuple[Location, ...], BeforeValidator(_names)]
"""Names or paths; one text holds them separated by commas."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A share, 0 up to but not 1."""

Count = Annotated[int, Field(ge=1, lt=2**63)]
"""A number of things, at least one."""

Natural = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things, or a seed."""


def default_of(settings: type[BaseModel], name: str) -> Any:
    """Return what a setting is where nobody says, so that it is written in one place."""
    return settings.model_fields[name].get_default(call_default_factory=True)
