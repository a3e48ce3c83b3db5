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


def gold_key(value: Any) -> str | None:
    """Return a gold value as text: `1` for 1, 1.0 and "1", `true` for a boolean and its word; None where it is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | str):
        text = str(value)
        return text.lower() if text in ("True", "False", "TRUE", "FALSE") else text
    return None


def _pairs(value: Any) -> Any:
    """Return a mapping that a text such as `a=b,c=d` holds."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in value.split(",") if part.strip()]
    if faulty := [name for name, sign, to in parts if not (sign and name.strip() and to.strip())]:
        raise ValueError(f"got {faulty[0]!r}, expected pairs such as text=review,label=stars")
    names = [name.strip() for name, _, _ in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"got {twice[0]!r} twice, expected it once")
    return {name: to.strip() for name, (_, _, to) in zip(names, parts, strict=True)}


def _gold_map(value: Any) -> Any:
    value = _pairs(value)
    if not isinstance(value, dict):
        return value
    if faulty := [key for key in value if gold_key(key) is None]:
        raise ValueError(f"got the gold value {faulty[0]!r}, expected text, a whole number or a boolean")
    return {str(gold_key(key)): gold_key(label) or label for key, label in value.items()}


Columns = Annotated[dict[str, str], BeforeValidator(_pairs)]
"""Field -> column; a text holds them as `text=review,label=stars`."""

GoldMap = Annotated[dict[str, str], BeforeValidator(_gold_map)]
"""Gold value -> label, as `{0: negative, 1: positive}`; a text holds them as `0=negative,1=positive`."""

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
