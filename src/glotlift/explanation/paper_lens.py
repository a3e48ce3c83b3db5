"""The quantities of arXiv 2405.13816's logit lens, as its released code has them.

Enters: log-probabilities on every layer. Leaves: `paper_lens/<variant>/<task>/<language>.parquet`, one row an (item,
layer), layers from 1, since the original leaves out the embedding output:

    latent       mass of the tokens that count for the English word of the item's right label, 0 to 1
    out          of those of its word in the prompt's language
    all_latent   of the tokens of all English words
    all_out      of all words in the prompt's language
    entropy_bits entropy of the next token

Tokens count by the rule of the released code (`glotlift.models.labels.released_tokens`). As there, an item whose two
sets share a token is left out, except in English; how many are kept stands in the file's metadata, and the file of a
language that keeps none has no rows. Unlike there, an underflowing probability does not make the entropy NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from glotlift.models.labels import released_tokens
from glotlift.runs import read_parquet

QUANTITIES = ("latent", "out", "all_latent", "all_out", "entropy_bits")

SUMMARY_COLUMNS = ("variant", "task", "language", "layer", "quantity", "mean", "low", "high", "n", "n_items")


@dataclass(frozen=True)
class PaperSets:
    """Label id -> tokens that count for its word, in English and in the prompt's language."""

    latent: Mapping[str, frozenset[int]]
    out: Mapping[str, frozenset[int]]

    @property
    def tokens(self) -> list[int]:
        """All tokens of the sets."""
        return sorted(frozenset().union(*self.latent.values(), *self.out.values()))

    def keeps(self, label: str, language: str) -> bool:
        """Return whether the original keeps an item of a right label."""
        latent, out = self.latent[label], self.out[label]
        return bool(latent and out) and (language == "en" or not latent & out)


def paper_sets(
    tokenizer: PreTrainedTokenizerBase, english_words: Mapping[str, str], own_words: Mapping[str, str]
) -> PaperSets:
    """Return the original's token sets; arguments as `glotlift.explanation.token_sets.token_sets`."""
    latent, out = (
        {label: released_tokens(tokenizer, words[label]) for label in english_words}
        for words in (english_words, own_words)
    )
    return PaperSets(latent, out)


def paper_frame(
    ids: Sequence[str],
    golds: Sequence[str],
    log_probabilities: np.ndarray,
    tokens: Sequence[int],
    entropy_bits: np.ndarray,
    sets: PaperSets,
    language: str,
) -> pd.DataFrame:
    """Return the rows of a file, see the module's head; none where the original keeps no item.

    Args:
        ids: of the items.
        golds: their right labels.
        log_probabilities: natural log. *Shape:* (items, layers + 1, tokens).
        tokens: its columns.
        entropy_bits: *Shape:* (items, layers + 1).
        sets: the token sets.
        language: of the prompts.
    """
    column = {token: index for index, token in enumerate(tokens)}
    all_latent, all_out = (frozenset().union(*of.values()) for of in (sets.latent, sets.out))
    kept = [index for index, gold in enumerate(golds) if sets.keeps(gold, language)]
    parts = []
    for index in kept:
        here = np.exp(log_probabilities[index, 1:].astype(np.float64))
        counted = (sets.latent[golds[index]], sets.out[golds[index]], all_latent, all_out)
        masses = [here[:, [column[token] for token in found]].sum(1) for found in counted]
        columns = dict(zip(QUANTITIES, (*masses, entropy_bits[index, 1:]), strict=True))
        parts.append(pd.DataFrame({"id": ids[index], "layer": np.arange(1, len(here) + 1), **columns}))
    if not parts:
        parts = [pd.DataFrame({"id": [], "layer": np.array([], int), **{name: np.array([]) for name in QUANTITIES}})]
    return pd.concat(parts, ignore_index=True)


def summarise_paper_lens(folder: Path) -> pd.DataFrame:
    """Return the curves of the original's figures: mean over the kept items +- 1.96 standard errors.

    Args:
        folder: the run folder.

    Returns:
        One row a variant, task, language, layer and quantity, columns as `SUMMARY_COLUMNS`; `n` items of `n_items` are
        kept. The band is that of the original, not cut to the quantity's range; NaN for one item.
    """
    parts = []
    for path in sorted(folder.glob("paper_lens/*/*/*.parquet")):
        frame, about = read_parquet(path)
        if frame.empty:
            continue
        long = frame.melt(["id", "layer"], list(QUANTITIES), "quantity", "value")
        rows = long.groupby(["layer", "quantity"])["value"].agg(mean="mean", sem="sem", n="count").reset_index()
        named = {name: about[name] for name in ("variant", "task", "language", "n_items")}
        half = 1.96 * rows["sem"]
        parts.append(rows.assign(low=rows["mean"] - half, high=rows["mean"] + half, **named))
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SUMMARY_COLUMNS))
    return whole.loc[:, list(SUMMARY_COLUMNS)]
