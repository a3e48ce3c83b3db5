"""Pooling: which tokens of a prompt the state of an item is the mean of.

Enters: the rows of prompts, whose `span` marks the question. Leaves: the same rows, pooled as asked:

    question            all tokens of the question, and the answer cue behind it, alike
    position-weighted   the same tokens with the weights 1, 2, ...: later tokens have seen more (arXiv 2202.08904, as in
                        MEXA, arXiv 2410.05873)
    whole               all tokens of the prompt, demonstrations and first token included (arXiv 2405.13816); these are
                        the same for all items of a language and drown what tells items apart
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from glotlift.explanation.settings import Pooling
from glotlift.models.packing import Row


def pooled_rows(rows: Sequence[Row], pooling: Pooling) -> list[Row]:
    """Return the rows with the span and the weights of a pooling; `run(..., pooled_states=True)` does the rest."""
    if pooling == "whole":
        return [replace(row, span=(0, len(row.prompt))) for row in rows]
    return [replace(row, by_position=pooling == "position-weighted") for row in rows]
