"""Tokens that begin answer words: in English only, in the prompt's language only, in both, or telling nothing.

Enters: a tokenizer, the answer words in English and in the prompt's language. Leaves: five disjoint sets of tokens, and
how well they cover the words. A token counts for a word when its bytes are a beginning of the word's UTF-8 bytes, with
or without a blank before it, so SentencePiece's byte tokens and byte-level BPE are treated alike:

    english     begins an English word only; all words, where the prompt's own words are the English ones
    own         begins a word of the prompt's language only
    shared      begins the word of one label in both
    ambiguous   begins the words of two labels, in whatever language, so it tells nothing of the answer
    partial     a part of a character: it tells the script of an answer word, hardly the word

Every token that counts is in one of them. Source: the token sets of the constrained decoding of arXiv 2405.13816, made
disjoint, so that no item has to be dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from glotlift.models.token_bytes import beginnings, holds_a_character, readable

SETS = ("english", "own", "shared", "ambiguous", "partial")

COVERAGE_COLUMNS = ("language", "label", "english_word", "own_word", *SETS)


@dataclass(frozen=True)
class TokenSets:
    """Disjoint sets of tokens that begin answer words, as in the module's head.

    Attributes:
        coverage: label id -> set name -> how many of the tokens of the label's words fell into the set.
    """

    english: tuple[int, ...]
    own: tuple[int, ...]
    shared: tuple[int, ...]
    ambiguous: tuple[int, ...]
    partial: tuple[int, ...]
    coverage: Mapping[str, Mapping[str, int]]

    @property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """Set name -> tokens, in the order of `SETS`."""
        return {name: getattr(self, name) for name in SETS}

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens, set by set, in the order of `SETS`."""
        return tuple(token for tokens in self.by_name.values() for token in tokens)


def token_sets(
    tokenizer: PreTrainedTokenizerBase, english_words: Mapping[str, str], own_words: Mapping[str, str]
) -> TokenSets:
    """Return the token sets of a prompt language.

    Args:
        tokenizer: the model's.
        english_words: label id -> English answer word.
        own_words: label id -> answer word of the prompt's language, for the same labels.
    """
    english = {label: beginnings(tokenizer, word) for label, word in english_words.items()}
    own = {label: beginnings(tokenizer, own_words[label]) for label in english_words}
    if dict(own_words) == dict(english_words):
        own = dict.fromkeys(own, frozenset())
    both = {label: english[label] | own[label] for label in english}
    partial = {token for tokens in both.values() for token in tokens if not holds_a_character(tokenizer, token)}
    n_labels = Counter(token for tokens in both.values() for token in tokens)
    ambiguous = {token for token, count in n_labels.items() if count > 1} - partial
    nothing = ambiguous | partial
    of_label = {
        label: {
            "english": english[label] - own[label] - nothing,
            "own": own[label] - english[label] - nothing,
            "shared": (english[label] & own[label]) - nothing,
            "ambiguous": both[label] & ambiguous,
            "partial": both[label] & partial,
        }
        for label in english
    }
    # what is English for one label may be own for another only where it is ambiguous, so the unions are disjoint
    union = {name: set().union(*(sets[name] for sets in of_label.values())) for name in SETS}
    coverage = {label: {name: len(sets[name]) for name in SETS} for label, sets in of_label.items()}
    return TokenSets(**{name: tuple(sorted(union[name])) for name in SETS}, coverage=coverage)


def coverage_metadata(tokenizer: PreTrainedTokenizerBase, sets: TokenSets) -> dict[str, Any]:
    """Return what a reader must know of the sets to judge the masses, as JSON can hold it.

    Returns:
        `n_tokens` (set -> size), `share` (set -> share of all tokens of the answer words, 0 to 1), `per_label`
        (label -> set -> size) and `pieces` (set -> its tokens, readable). The mass of an empty set is 0 by definition
        and says nothing.
    """
    sizes = {name: len(tokens) for name, tokens in sets.by_name.items()}
    total = max(sum(sizes.values()), 1)
    return {
        "n_tokens": sizes,
        "share": {name: size / total for name, size in sizes.items()},
        "per_label": sets.coverage,
        "pieces": {name: [readable(tokenizer, token) for token in tokens] for name, tokens in sets.by_name.items()},
    }


def coverage_frame(
    tokenizer: PreTrainedTokenizerBase, english_words: Mapping[str, str], own_words: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    """Return how many tokens of every label's words are in each set, before anything is run.

    Args:
        tokenizer: the model's.
        english_words: label id -> English answer word.
        own_words: language -> label id -> answer word of that language.

    Returns:
        One row a language and label, columns as `COVERAGE_COLUMNS`.
    """
    rows = []
    for language, words in own_words.items():
        coverage = token_sets(tokenizer, english_words, words).coverage
        rows += [(language, label, english_words[label], words[label], *of.values()) for label, of in coverage.items()]
    return pd.DataFrame(rows, columns=list(COVERAGE_COLUMNS))


def coverage_lines(coverage: pd.DataFrame) -> list[str]:
    """Return a line a language: how many tokens begin its labels' words, set by set, label by label.

    Args:
        coverage: from `coverage_frame`.
    """
    lines = []
    for language in dict.fromkeys(coverage["language"]):
        rows = coverage.loc[coverage["language"] == language]
        sets = ", ".join(f"{'+'.join(map(str, rows[name]))} {name}" for name in SETS)
        lines.append(f"{language}, tokens that begin {' + '.join(rows['own_word'])}: {sets}")
    return lines


def coverage_warnings(coverage: pd.DataFrame) -> list[str]:
    """Return one sentence for every language whose masses can say little, empty where all can.

    Args:
        coverage: from `coverage_frame`.
    """
    found = []
    for language in dict.fromkeys(coverage["language"]):
        rows = coverage.loc[coverage["language"] == language]
        is_english = list(rows["english_word"]) == list(rows["own_word"])
        for name in ("english",) if is_english else ("english", "own"):
            if without := rows.loc[rows[name] == 0, "label"].tolist():
                found.append(
                    f"{language}: no token begins the {'English' if name == 'english' else 'own'} word of "
                    f"{', '.join(without)} and no other, so {name}_mass does not see it"
                )
    return found
