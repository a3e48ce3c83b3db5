"""Label scores: what a model says of answer words behind prompts, out of the one pass.

Enters: rows with a trie of the answer words. Leaves: the natural log of the probability of every word, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from glotlift.errors import ModelError
from glotlift.models.forward import Batch, run
from glotlift.models.packing import TOKEN_BUDGET, Row


def label_tokens(rows: Sequence[Row]) -> list[int]:
    """Return the tokens that the rows' answer words are made of."""
    return sorted({token for row in rows if row.trie for path in row.trie.steps for _, token in path})


def token_scores(batch: Batch, rows: Sequence[Row], tokens: Sequence[int]) -> dict[int, list[list[float]]]:
    """Return for every row of a batch and every answer word the log-probability of each of its tokens.

    Log-sum-exp runs in fp32, the rest in fp64.

    Args:
        batch: of `run` with `tokens`.
        rows: all rows of the run, each with a trie.
        tokens: the columns of the batch's logits; all tokens of the answer words at least.
    """
    assert batch.normalizer is not None
    of_token = (batch.logits - batch.normalizer[:, None]).double().cpu().tolist()
    column = {token: index for index, token in enumerate(tokens)}
    found = {}
    for index, nodes in zip(batch.rows, batch.nodes, strict=True):
        trie = rows[index].trie
        assert trie is not None
        found[index] = [[of_token[nodes[node]][column[token]] for node, token in path] for path in trie.steps]
    return found


def label_scores(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Return the log-probability of every answer word behind every prompt.

    Args:
        model: the model.
        rows: each with a trie of as many words.
        token_budget: tokens of a batch.
        progress: called with the number of rows done.

    Returns:
        *Shape:* (rows, words), natural log, fp64.

    Raises:
        ModelError: a row does not fit the model or the memory, or a score is not finite.
    """
    tokens = label_tokens(rows)
    scores: dict[int, list[float]] = {}
    for batch in run(model, rows, token_budget=token_budget, tokens=tokens):
        scores |= word_scores(batch, rows, tokens)
        if progress is not None:
            progress(len(batch.rows))
    return np.array([scores[index] for index in range(len(rows))])


def word_scores(batch: Batch, rows: Sequence[Row], tokens: Sequence[int]) -> dict[int, list[float]]:
    """Return the log-probability of every answer word for the rows of a batch; arguments as `token_scores`.

    Raises:
        ModelError: a score is not finite.
    """
    found = token_scores(batch, rows, tokens)
    scores = {index: [math.fsum(path) for path in paths] for index, paths in found.items()}
    if not all(math.isfinite(value) for each in scores.values() for value in each):
        raise ModelError("the model gives scores that are not finite; expected numbers (try --dtype float32)")
    return scores
