"""Every error glotlift raises on purpose.

Each message is one sentence or more that says what was got and what was expected. The command line prints it
without a traceback and exits with the class's `exit_code`.

    GlotliftError
    ├── UserError                 exit 2: the input is at fault, and the message says where
    │   ├── RecipeError           a recipe: unknown key, wrong type, impossible combination
    │   ├── TaskError             a task file, or a task, answer set or label that does not exist
    │   ├── LanguageError         a language code glotlift does not know, or that a task has no prompts in
    │   ├── DataError             a data file: missing, malformed, without a column, with an unknown label
    │   ├── ModelError            a model, adapter or tokenizer that cannot be loaded or does not fit the prompt
    │   └── OutputError           a folder that cannot be written, or that belongs to another run
    ├── RunError                  exit 1: the input was fine and the run failed
    └── Interrupted               exit 130: Ctrl-C, with everything so far kept
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GlotliftError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class UserError(GlotliftError):
    """The input is at fault."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe is at fault."""


class TaskError(UserError):
    """A task file, task name, answer set or label is at fault."""


class LanguageError(UserError):
    """A language is unknown, or a task has no prompts in it."""


class DataError(UserError):
    """A data file is at fault."""


class ModelError(UserError):
    """A model, adapter or tokenizer is at fault."""


class OutputError(UserError):
    """An output folder is at fault."""


class RunError(GlotliftError):
    """The input was fine and the run failed."""


class Interrupted(GlotliftError):
    """Ctrl-C ended the run; the message says what was kept."""

    exit_code = 130


def shown(value: object) -> str:
    """Return a value as Python writes it, cut where it is long, for messages."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, lists nested too deeply
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


_LONGEST_SHOWN = 200


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(words: Iterable[str]) -> str:
    """Return `a, b or c`, for messages."""
    listed = list(words)
    return " or ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed)
