"""Whole answer words on every layer: not only the token that begins them.

Enters: prompts, answer words. Leaves: rows whose trie holds the words, and for every layer the log-probability of each
word, if that layer were the last one: the product over the word's tokens, each read off the state behind the tokens
before it. As in scoring, a token that spans prompt and word is scored whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from glotlift.errors import ModelError
from glotlift.explanation.subject import Questions
from glotlift.models.control import encode, quoter
from glotlift.models.labels import build_trie, continuations
from glotlift.models.packing import Row


def word_columns(english_words: Mapping[str, str], own_words: Mapping[str, str]) -> dict[str, str]:
    """Return column of a lens file -> answer word; the English words alone where the prompt's own are the same."""
    columns = {f"english_sequence_{label}": word for label, word in english_words.items()}
    if dict(own_words) != dict(english_words):
        columns |= {f"own_sequence_{label}": own_words[label] for label in english_words}
    return columns


def word_rows(tokenizer: PreTrainedTokenizerBase, questions: Questions, words: Sequence[str]) -> list[Row]:
    """Return the prompts with words behind them, each tokenized as a whole string with each word.

    Args:
        tokenizer: the model's.
        questions: of a language.
        words: answer words; two may be the same.

    Raises:
        ModelError: a prompt is not the tokens of its text, or shares none with the words behind it.
    """
    quote = quoter(tokenizer)
    rows = []
    for item, row, text in zip(questions.items, questions.rows, questions.texts, strict=False):
        for mark in (str, quote):  # a layout may write control tokens, data may only hold their names
            prompt, *whole = encode(tokenizer, [mark(text), *(mark(text) + quote(word) for word in words)])
            if tuple(prompt) == tuple(row.prompt):
                break
        else:
            raise ModelError(
                f"item {item.id!r}: got other tokens for the prompt than it was made of, expected the same"
            )
        root, paths = continuations(prompt, whole)
        rows.append(replace(row, trie=build_trie(paths), root=root))
    return rows


def word_tokens(rows: Sequence[Row]) -> list[int]:
    """Return the tokens that are scored."""
    return sorted({token for row in rows if row.trie for path in row.trie.steps for _, token in path})


def word_scores(
    log_probabilities: np.ndarray, tokens: Sequence[int], row: Row, nodes: Sequence[int], n_words: int
) -> np.ndarray:
    """Return the log-probability of every word of a row on every layer.

    Args:
        log_probabilities: of `tokens` at every asked position of a batch. *Shape:* (positions, layers + 1, tokens).
        tokens: its columns.
        row: the row.
        nodes: where its trie nodes are among the positions.
        n_words: words of the row.

    Returns:
        *Shape:* (words, layers + 1), natural log.
    """
    assert row.trie is not None and len(row.trie.steps) == n_words
    column = {token: index for index, token in enumerate(tokens)}
    paths = [[log_probabilities[nodes[node], :, column[token]] for node, token in path] for path in row.trie.steps]
    return np.stack([np.sum(path, 0, dtype=np.float64) for path in paths])
