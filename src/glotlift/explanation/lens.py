"""Logit lens: what every layer would answer if it were the last one.

Enters: the state of the last prompt token on every layer, and the answer words in English and in the prompt's
language. Leaves: one row an (item, layer) of `lens/<variant>/<task>/<language>.parquet`:

    english_mass    next-token probability of tokens that begin an English answer word only
    own_mass        of tokens that begin a word of the prompt's language only
    shared_mass     of tokens that begin the word of a label in both
    ambiguous_mass  of tokens that begin the words of two labels; they are in none of the sets above
    entropy_bits    entropy of the next token, 0 to log2(vocabulary)
    top_token       the most likely token, decoded

Where the mass moves from English to the prompt's language tells in which language a layer answers. Layer 0 is the
embedding output; the last layer's row is the model's own next-token distribution, which is checked on every batch.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; arXiv 2405.13816, section on the logit lens, with the
token sets of its constrained decoding as described (`glotlift.models.labels.prefix_tokens`; on byte-level BPE the
authors' code leaves out tokens with a leading space). Unlike there, the sets are made disjoint, so that no item has to
be dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from glotlift.errors import ModelError, RunError
from glotlift.models.anatomy import base_model, decoder_layers
from glotlift.models.labels import prefix_tokens
from glotlift.runs import read_parquet

SETS = ("english", "own", "shared", "ambiguous")

MEASURES = (*(f"{name}_mass" for name in SETS), "entropy_bits")

SUMMARY_COLUMNS = ("variant", "task", "language", "layer", "measure", "mean", "low", "high", "n", "n_tokens")

_LOGITS_BUDGET = 16 * 2**20
"""Logits that are held at once: layers x vocabulary of a few items (64 MiB in fp32)."""

_LEVEL = 0.95

_TOLERANCE = 1e-3
"""How far the last layer may be from the model's own logits, beside two rounding steps of the model's dtype."""


@dataclass(frozen=True)
class TokenSets:
    """Disjoint sets of tokens that begin answer words.

    Attributes:
        english: begin an English word only; all words, where the prompt's own words are the English ones.
        own: begin a word of the prompt's language only.
        shared: begin the words of one label in both.
        ambiguous: begin words of two labels, so they tell nothing.
        coverage: label id -> set name -> how many of the tokens of the label's words fell into the set.
    """

    english: tuple[int, ...]
    own: tuple[int, ...]
    shared: tuple[int, ...]
    ambiguous: tuple[int, ...]
    coverage: Mapping[str, Mapping[str, int]]

    @property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """Set name -> tokens, in the order of `SETS`."""
        return {name: getattr(self, name) for name in SETS}


def token_sets(
    tokenizer: PreTrainedTokenizerBase, english_words: Mapping[str, str], own_words: Mapping[str, str]
) -> TokenSets:
    """Return the token sets of a prompt language.

    Args:
        tokenizer: the model's.
        english_words: label id -> English answer word.
        own_words: label id -> answer word of the prompt's language, for the same labels.
    """
    english = {label: prefix_tokens(tokenizer, word) for label, word in english_words.items()}
    own = {label: prefix_tokens(tokenizer, own_words[label]) for label in english_words}
    if dict(own_words) == dict(english_words):
        own = dict.fromkeys(own, frozenset())
    n_labels = Counter(token for label in english for token in english[label] | own[label])
    ambiguous = {token for token, count in n_labels.items() if count > 1}
    of_label = {
        label: {
            "english": english[label] - own[label] - ambiguous,
            "own": own[label] - english[label] - ambiguous,
            "shared": (english[label] & own[label]) - ambiguous,
            "ambiguous": (english[label] | own[label]) & ambiguous,
        }
        for label in english
    }
    union = {name: set().union(*(sets[name] for sets in of_label.values())) for name in SETS}
    coverage = {label: {name: len(sets[name]) for name in SETS} for label, sets in of_label.items()}
    return TokenSets(**{name: tuple(sorted(union[name])) for name in SETS}, coverage=coverage)


def coverage_metadata(tokenizer: PreTrainedTokenizerBase, sets: TokenSets) -> dict[str, Any]:
    """Return what a reader must know of the sets to judge the masses, as JSON can hold it.

    Returns:
        `n_tokens` (set -> size), `share` (set -> share of all tokens of the answer words, 0 to 1), `per_label`
        (label -> set -> size) and `pieces` (set -> its tokens as the vocabulary spells them). The mass of an empty
        set is 0 by definition and says nothing.
    """
    sizes = {name: len(tokens) for name, tokens in sets.by_name.items()}
    total = max(sum(sizes.values()), 1)
    return {
        "n_tokens": sizes,
        "share": {name: size / total for name, size in sizes.items()},
        "per_label": sets.coverage,
        "pieces": {name: tokenizer.convert_ids_to_tokens([*tokens]) for name, tokens in sets.by_name.items()},
    }


def unembed(model: nn.Module, states: Tensor) -> Tensor:
    """Return the logits the model would give if its last block had put out these states.

    The states replace the last block's output in a pass over one token, as if they were a batch. So all that comes
    behind the blocks is the model's own code: the final norm, once, the head, and soft-cap or scaling where it has one.

    Args:
        model: a causal language model of transformers, or a peft model around one.
        states: output of any block. *Shape:* (states, hidden).

    Returns:
        *Shape:* (states, vocabulary), in the model's dtype.
    """

    def replace(_module: nn.Module, _args: tuple, output: Any) -> Any:
        block = output[0] if isinstance(output, tuple) else output
        given = states.to(block.device, block.dtype)[:, None]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = decoder_layers(model)[-1].register_forward_hook(replace)
    try:
        any_token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        with torch.inference_mode():
            return model(input_ids=any_token, use_cache=False).logits[:, 0]
    finally:
        handle.remove()


def read_layers(
    model: nn.Module,
    states: Tensor,
    own_logits: Tensor,
    sets: TokenSets,
    *,
    logits_budget: int = _LOGITS_BUDGET,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the lens sees on every layer, a few items at a time.

    Args:
        model: the model.
        states: of the last prompt token. *Shape:* (items, layers + 1, hidden).
        own_logits: what the model itself gives there. *Shape:* (items, vocabulary).
        sets: the token sets.
        logits_budget: logits that are held at once, at least those of one item.

    Returns:
        The measures, in the order of `MEASURES`, *shape* (items, layers + 1, 5), and the most likely tokens, *shape*
        (items, layers + 1).

    Raises:
        RunError: the last layer is not the model's own distribution.
        ModelError: the logits are not finite.
    """
    _check_finite(own_logits)
    n_items, n_states, _ = states.shape
    step = max(1, logits_budget // (n_states * own_logits.shape[-1]))
    measures, top = [], []
    with torch.inference_mode():
        for start in range(0, n_items, step):
            part = states[start : start + step]
            logits = unembed(model, part.flatten(0, 1)).float()
            last = logits.unflatten(0, part.shape[:2])[:, -1]
            _check_last_layer(model, last, own_logits[start : start + step].float())
            top.append(logits.argmax(-1).view(part.shape[:2]).cpu())
            measures.append(measure(logits, sets).view(*part.shape[:2], -1).cpu())
    values = torch.cat(measures)
    _check_finite(values)
    return values.numpy(), torch.cat(top).numpy()


def measure(logits: Tensor, sets: TokenSets) -> Tensor:
    """Return the measures of next-token distributions. Overwrites the logits, to save a copy of them.

    The entropy is log Z - E[z] over logits z less their maximum: a probability that underflows adds 0, not NaN.

    Args:
        logits: *Shape:* (states, vocabulary), fp32.
        sets: the token sets.

    Returns:
        *Shape:* (states, 5), in the order of `MEASURES`; masses from 0 to 1, entropy in bits.
    """
    shifted = logits.sub_(logits.amax(-1, keepdim=True))
    weights = shifted.exp()
    total = weights.sum(-1)
    masses = [weights[:, list(tokens)].sum(-1) / total for tokens in sets.by_name.values()]
    entropy = total.log() - weights.mul_(shifted).sum(-1) / total
    return torch.stack([*(mass.clamp(0, 1) for mass in masses), entropy.clamp(min=0) / np.log(2)], 1)


def _check_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise ModelError("the logit lens gives values that are not finite; expected numbers (try --dtype float32)")


def _check_last_layer(model: nn.Module, read: Tensor, own: Tensor) -> None:
    deviation = (read - own).abs().max().item()
    allowed = _TOLERANCE + 2 * torch.finfo(base_model(model).dtype).eps * own.abs().max().item()
    if not deviation <= allowed:  # true of NaN, too
        raise RunError(
            f"logit lens of {type(base_model(model)).__name__}: got a last layer that deviates from the model's own "
            f"logits by {deviation:.2g}, expected at most {allowed:.2g}; the lens cannot read this model"
        )


def lens_frame(
    ids: Sequence[str], measures: np.ndarray, top: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Return the rows of a lens file, see the module's head.

    Args:
        ids: of the items.
        measures: *Shape:* (items, layers + 1, 5).
        top: most likely tokens. *Shape:* (items, layers + 1).
        tokenizer: decodes them.
    """
    n_items, n_states, _ = measures.shape
    text = {token: tokenizer.decode([token]) for token in np.unique(top).tolist()}
    flat = measures.reshape(n_items * n_states, -1)
    return pd.DataFrame(
        {
            "id": np.repeat(np.array(ids, dtype=object), n_states),
            "layer": np.tile(np.arange(n_states), n_items),
            **{name: flat[:, column] for column, name in enumerate(MEASURES)},
            "top_token": [text[token] for token in top.ravel().tolist()],
        }
    )


def summarise_lens(folder: Path) -> pd.DataFrame:
    """Return means over items of all lens files of a run.

    Args:
        folder: the run folder, with `lens/` in it.

    Returns:
        One row a variant, task, language, measure and layer, columns as `SUMMARY_COLUMNS`: `mean` with the ends `low`
        and `high` of its 95 % band (Student's t over items, cut to the measure's range; NaN for one item), `n` items,
        and `n_tokens` in the measure's token set (NaN for the entropy), where 0 means that the mass says nothing.
    """
    parts = [_summary(path) for path in sorted(folder.glob("lens/*/*/*.parquet"))]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SUMMARY_COLUMNS))


def _summary(path: Path) -> pd.DataFrame:
    frame, metadata = read_parquet(path)
    sizes = {f"{name}_mass": float(size) for name, size in metadata["coverage"]["n_tokens"].items()}
    long = frame.melt(["id", "layer"], list(MEASURES), "measure", "value")
    groups = long.groupby(["measure", "layer"])["value"]
    rows = groups.agg(mean="mean", sem="sem", n="count").reset_index()
    half = rows["sem"] * student.ppf((1 + _LEVEL) / 2, rows["n"] - 1)
    rows["low"] = (rows["mean"] - half).clip(lower=0)
    rows["high"] = (rows["mean"] + half).clip(upper=np.where(rows["measure"] == "entropy_bits", np.inf, 1.0))
    rows["n_tokens"] = rows["measure"].map(sizes)
    rows = rows.assign(variant=metadata["variant"], task=metadata["task"], language=metadata["language"])
    return rows.loc[:, list(SUMMARY_COLUMNS)]
