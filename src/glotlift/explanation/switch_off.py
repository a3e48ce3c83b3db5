"""Layer-wise switch-off: which layers of an adapter carry what it changes.

Enters: a model with a LoRA adapter and the prompts of a task. Leaves: one row an item and configuration of the adapter
(`switch_off_language`):

    language      code of the prompts
    group         which modules are meant: `all`, `attention` or `mlp`
    mode          `base`      the adapter off everywhere (layer 0)
                  `tuned`     on everywhere (layer 0)
                  `without`   on, but for the group's modules in `layer`
                  `up_to`     off, but for the group's modules in `layer` and all before
                  `from`      off, but for the group's modules in `layer` and all behind
    layer         number of the block, from 1; 0 for an adapter's embedding, one more than there are blocks for its head
    id, gold      of the item
    sequence_<label>   natural log of the probability of the label word

Layers without modules of the group are not tried. `attention` and `mlp` are only there where the adapter has both.

`without` says what no other layer makes up for; `up_to` and `from` say by which layer the change is there, and from
which layer on it is all that is needed. The three differ where layers work together, so none stands alone.

A configuration is as the base, or as the tuned model, up to some block: it takes the states there from that pass and
runs only the blocks behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from glotlift.errors import ModelError
from glotlift.explanation.answers import Asked
from glotlift.models.adapters import AdapterPart, adapter_parts, switched_off
from glotlift.models.label_scores import label_scores
from glotlift.models.load import LoadedModel
from glotlift.models.packing import TOKEN_BUDGET, Row
from glotlift.models.recording import Recording, recordable

MODES = ("without", "up_to", "from")

GROUPS = ("all", "attention", "mlp")

_TOLERANCE = 1e-3
"""How far, in nats, scores with all LoRA layers off may be from the base's."""

Configuration = tuple[str, str, int]
"""Group, mode, layer."""

On = frozenset[AdapterPart]
"""The parts of an adapter that are on."""


def switch_off_language(
    loaded: LoadedModel,
    prompts: Asked,
    *,
    modes: Sequence[str] = MODES,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """Return what the items of a language become with parts of the adapter switched off, see the module's head.

    Args:
        loaded: the model, with a LoRA adapter.
        prompts: of the language.
        modes: some of `MODES`.
        token_budget: tokens of a batch; the states between the blocks are kept of about twice as many.
        progress: called with the number of items done.

    Raises:
        ModelError: there is no LoRA adapter, it changes more than its LoRA layers add, a prompt does not fit the
            model's window, or a score is not finite.
    """
    parts = adapter_parts(loaded.model)
    configurations = _configurations(parts, modes)
    scores = {on: np.empty((len(prompts.rows), len(prompts.labels))) for on in configurations.values()}
    for chunk in recordable(prompts.rows, token_budget):
        rows = [prompts.rows[index] for index in chunk]
        for on, found in _scores(loaded, prompts.language, rows, parts, set(scores), token_budget).items():
            scores[on][chunk] = found
        if progress is not None:
            progress(len(chunk))
    return pd.concat([_frame(prompts, *name, scores[on]) for name, on in configurations.items()], ignore_index=True)


def _configurations(parts: Sequence[AdapterPart], modes: Sequence[str]) -> dict[Configuration, On]:
    """Return which parts are on in every configuration; base and tuned model first."""
    everything = frozenset(parts)
    found: dict[Configuration, On] = {("all", "base", 0): frozenset(), ("all", "tuned", 0): everything}
    is_mixed = {"attention", "mlp"} <= {part.group for part in parts}
    for group in GROUPS if is_mixed else GROUPS[:1]:
        members = [part for part in parts if group in ("all", part.group)]
        for mode in modes:
            for layer in sorted({part.layer for part in members}):
                inside = {
                    "without": everything.difference(part for part in members if part.layer == layer),
                    "up_to": frozenset(part for part in members if part.layer <= layer),
                    "from": frozenset(part for part in members if part.layer >= layer),
                }
                found[group, mode, layer] = inside[mode]
    return found


def _scores(
    loaded: LoadedModel, language: str, rows: Sequence[Row], parts: Sequence[AdapterPart], wanted: set[On], budget: int
) -> dict[On, np.ndarray]:
    """Return the scores of some rows with some parts on. *Shape:* (rows, labels) each."""
    everything, nothing = frozenset(parts), frozenset[AdapterPart]()
    with loaded.as_variant("base") as model:
        base = label_scores(model, rows, token_budget=budget)
    found: dict[On, np.ndarray] = {}
    recordings: dict[On, Recording] = {}
    with loaded.as_variant("tuned", language) as model:
        for on in (nothing, everything):
            recordings[on] = Recording(model)
            with switched_off([part for part in parts if part not in on]), recordings[on].recorded():
                found[on] = label_scores(model, rows, token_budget=budget)
        _check_base(found[nothing], base)
        for on in wanted - found.keys():
            first = {like: min(part.layer for part in on ^ like) for like in recordings}
            like = max(first, key=lambda each: first[each])
            off = [part for part in parts if part not in on]
            with switched_off(off), recordings[like].resumed(max(first[like] - 1, 0)):
                found[on] = label_scores(model, rows, token_budget=budget)
    return found


def _check_base(off: np.ndarray, base: np.ndarray) -> None:
    deviation = float(np.abs(off - base).max())
    if deviation > _TOLERANCE:
        raise ModelError(
            f"got an adapter that changes scores by {deviation:.2g} nats with all its LoRA layers off, expected plain "
            "LoRA, which then changes nothing: what else it holds has no layers that could be switched off"
        )


def _frame(prompts: Asked, group: str, mode: str, layer: int, scores: np.ndarray) -> pd.DataFrame:
    columns: Mapping[str, Any] = {
        "language": prompts.language,
        "group": group,
        "mode": mode,
        "layer": layer,
        "id": [item.id for item in prompts.items],
        "gold": [item.gold for item in prompts.items],
    }
    return pd.DataFrame({**columns, **{f"sequence_{label}": scores[:, k] for k, label in enumerate(prompts.labels)}})
