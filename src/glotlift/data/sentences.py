"""Sentences: what a text is made of, in any language, well enough to pair a translation's with the original's.

Enters: text. Leaves: its sentences. A model judges a sentence more reliably than a long text, and what it says of the
sentences can be added up; that needs English only. Where a translation has as many sentences as the original, they are
taken for translations of each other, so every question gives several short ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_END = re.compile(r"(?<=[.!?…؟])[\"'”’“»)\]]*\s+(?=\S)|(?<=[。！？｡।॥])\s*(?=\S)")
"""Behind a full stop and white space, or behind one of a script that writes none between sentences."""

_LETTERS = re.compile(r"\w")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; what has no letter stays with the one before. Thai writes no ends: one sentence.

    Abbreviations end sentences too ("Dr. No"), in a translation as in the original: pairs come from equal numbers.
    """
    found: list[str] = []
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        part = text[start:end].strip()
        start = end
        if found and not _LETTERS.search(part):
            found[-1] = f"{found[-1]} {part}".strip()
        elif part:
            found.append(part)
    return found


def sentences_of(fields: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a question's sentences as questions of their own; one of several fields, or of one sentence, has none."""
    if len(fields) != 1:
        return []
    ((field, text),) = fields.items()
    parts = sentences(text)
    return [{field: part} for part in parts] if len(parts) > 1 else []
