"""Pooled states: where a question lies on every layer, as a file, an array or a memory map.

Enters: states of a variant and a language. Leaves: one layer at a time, for the items that all languages have.

A file is `geometry/<task>/states/<variant>/<language>.safetensors`: the tensor `states`, *shape* (layers + 1, items,
hidden), of any float dtype (upcast when it is read), raw block outputs before the final norm, the embedding output
first; and as metadata `ids` and `lengths` (tokens of each question). The file is mapped, and memory holds one layer of
it, whatever its size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from glotlift.errors import DataError, ModelError
from glotlift.runs import write_atomic
from glotlift.strict_json import parse_json

log = logging.getLogger("glotlift")


class LayerStates(Protocol):
    """States of a variant and a language; `PooledStates` is a file of them, `ArrayStates` an array."""

    @property
    def ids(self) -> Sequence[str]:
        """Of the items."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each item's question."""
        ...

    @property
    def n_states(self) -> int:
        """Layers, and one for the embedding output."""
        ...

    def layer(self, index: int) -> np.ndarray:
        """Return the states of a layer. *Shape:* (items, hidden), fp64."""
        ...


States = Mapping[str, Mapping[str, LayerStates]]
"""Variant -> language -> its states; `base` is among the variants, which have the same languages."""


@dataclass(frozen=True)
class PooledStates:
    """The file of pooled states of a variant and a language; layers are read one at a time."""

    path: Path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`fingerprint`, `ids` and `lengths` (tokens of each question); `{}` where there is no file."""
        if not self.path.is_file():
            return {}
        with safe_open(self.path, "pt") as file:
            return parse_json((file.metadata() or {}).get("glotlift", "{}"), str(self.path), DataError)

    @property
    def ids(self) -> list[str]:
        """Of the items."""
        return self.metadata["ids"]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item's question."""
        return self.metadata["lengths"]

    @property
    def n_states(self) -> int:
        """Layers, and one for the embedding output."""
        with safe_open(self.path, "pt") as file:
            return file.get_slice("states").get_shape()[0]

    def layer(self, index: int) -> np.ndarray:
        """Return the states of a layer. *Shape:* (items, hidden), fp64."""
        with safe_open(self.path, "pt") as file:
            return file.get_slice("states")[index].double().numpy()


@dataclass(frozen=True)
class ArrayStates:
    """States in an array or a memory map of any float dtype. *Shape:* (layers + 1, items, hidden)."""

    array: np.ndarray
    ids: Sequence[str]
    lengths: Sequence[int]

    def __post_init__(self) -> None:
        """Check that there is an id and a length for every item."""
        counts = {"ids": len(self.ids), "lengths": len(self.lengths)}
        if self.array.ndim != 3 or any(count != self.array.shape[1] for count in counts.values()):
            got = f"states of shape {self.array.shape} with {counts['ids']} ids and {counts['lengths']} lengths"
            raise DataError(f"got {got}, expected (layers + 1, items, hidden) and one of each an item")

    @property
    def n_states(self) -> int:
        """Layers, and one for the embedding output."""
        return len(self.array)

    def layer(self, index: int) -> np.ndarray:
        """Return the states of a layer. *Shape:* (items, hidden), fp64."""
        return np.asarray(self.array[index], np.float64)


def in_type(states: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return states in the type that they are written in.

    Args:
        states: of any shape, fp32.
        dtype: `float32`, or `float16`, whose largest number is 65504.

    Raises:
        ModelError: a state has no number in that type.
    """
    kind = getattr(torch, dtype)
    largest, bound = float(states.abs().max()), torch.finfo(kind).max
    if not largest <= bound:
        raise ModelError(f"got a state of {largest:.4g}, expected at most {bound:.5g} for states_dtype {dtype}")
    return states.to(kind)


def write_states(path: Path, states: torch.Tensor, metadata: Mapping[str, Any]) -> None:
    """Write a file of pooled states atomically.

    Args:
        path: a `.safetensors` file.
        states: *Shape:* (layers + 1, items, hidden), of any float dtype.
        metadata: `fingerprint`, `ids`, `lengths`.
    """
    header = {"glotlift": json.dumps(metadata, ensure_ascii=False)}
    write_atomic(path, lambda file: save_file({"states": states.contiguous()}, file, header))


@dataclass(frozen=True)
class Parallel:
    """States of the items that all languages and variants have, in one order.

    Attributes:
        states: of all variants and languages.
        languages: codes, in the order of every array.
        ids: of the items, in the order of every array.
        places: (variant, language) -> where its file has these items. *Shape:* (items,).
    """

    states: States
    languages: list[str]
    ids: list[str]
    places: Mapping[tuple[str, str], np.ndarray]

    @property
    def n_states(self) -> int:
        """Layers, and one for the embedding output."""
        return next(iter(self.states["base"].values())).n_states

    def layer(self, variant: str, index: int) -> np.ndarray:
        """Return a layer of all languages. *Shape:* (languages, items, hidden), fp64."""
        of = self.states[variant]
        return np.stack([of[code].layer(index)[self.places[variant, code]] for code in self.languages])

    def lengths(self, variant: str) -> np.ndarray:
        """Return the tokens of every question. *Shape:* (languages, items)."""
        of = self.states[variant]
        return np.stack([np.array(of[code].lengths, float)[self.places[variant, code]] for code in self.languages])


def parallel(states: States) -> Parallel:
    """Return the items that all have, in the order of the first; others are counted in a warning.

    Raises:
        DataError: the variants have different languages, or an id stands twice.
    """
    languages = list(states["base"])
    if other := [variant for variant, of in states.items() if list(of) != languages]:
        got = " ".join(states[other[0]])
        raise DataError(
            f"geometry: got the languages {got} of {other[0]}, expected those of base, {' '.join(languages)}"
        )
    places: dict[tuple[str, str], dict[str, int]] = {}
    for variant, of in states.items():
        for code, source in of.items():
            places[variant, code] = {item: place for place, item in enumerate(source.ids)}
            if len(places[variant, code]) < len(source.ids):
                raise DataError(f"geometry: {variant}, {code} has an id twice, expected every item once")
    first, *others = places.values()
    ids = [item for item in first if all(item in of for of in others)]
    if dropped := max(map(len, places.values())) - len(ids):
        log.warning("geometry: %d items are not there in every language; measures of pairs go without them", dropped)
    return Parallel(states, languages, ids, {key: np.array([of[i] for i in ids], int) for key, of in places.items()})


def pivot_of(languages: Sequence[str]) -> str:
    """Return the language the others are held against: English, or the first where it is missing."""
    return "en" if "en" in languages else languages[0]


def pairs_of(languages: Sequence[str]) -> list[tuple[int, int]]:
    """Return every pair of languages once, as places in the list; the pivot stands second."""
    pivot = languages.index(pivot_of(languages))
    found = [(a, b) for a in range(len(languages)) for b in range(a + 1, len(languages))]
    return [(b, a) if a == pivot else (a, b) for a, b in found]
