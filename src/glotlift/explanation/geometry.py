"""Geometry: do the same questions lie in the same place, whatever their language?

Enters: pooled states, the mean over a question's tokens on every layer (`geometry/<task>/states/`, raw block outputs,
before the final norm). Leaves, in `geometry/<task>/`:

    pca.parquet          variant, layer, language, id, pc1, pc2
    explained.parquet    variant, layer, pc1, pc2: shares of the variance, 0 to 1
    correlation.parquet  variant, layer, language, n, r, r_partial, null_low, null_high, p_permutation

A layer's plane is fitted on the base model's states of all languages together and serves the tuned model too, so that
the two can be laid over each other. `r` is Pearson's correlation of PC1 over parallel items between a language and the
pivot language: English, or the first language where it is missing. A question that is long in one language is long in
all, so length confounds `r`: `r_partial` is what is left when the token lengths in both languages are held fixed, and
the null is what it would be if the items of a language were not parallel to the pivot's.

Source: arXiv 2405.13816, section on PCA. Unlike there, all layers are compared before the final norm, demonstrations
are not pooled, and `r` never stands alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from glotlift.errors import DataError
from glotlift.models.load import digest
from glotlift.runs import parquet_metadata, write_atomic, write_parquet
from glotlift.strict_json import parse_json

N_PERMUTATIONS = 1000

_MIN_ITEMS = 6
"""Below, a correlation with two lengths held fixed has fewer than two degrees of freedom."""

_LEFT = 1e-9
"""Share of PC1's variance that the lengths must leave; less is rounding."""

_NAN = float("nan")


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
    def n_states(self) -> int:
        """Layers, and one for the embedding output."""
        with safe_open(self.path, "pt") as file:
            return file.get_slice("states").get_shape()[0]

    def layer(self, index: int) -> np.ndarray:
        """Return the states of a layer. *Shape:* (items, hidden), fp64."""
        with safe_open(self.path, "pt") as file:
            return file.get_slice("states")[index].double().numpy()


States = Mapping[str, Mapping[str, PooledStates]]
"""Variant -> language -> its states; `base` is among the variants."""


@dataclass(frozen=True)
class Correlation:
    """How a language's PC1 goes with the pivot's; NaN where undefined.

    Attributes:
        r: Pearson's correlation, -1 to 1.
        r_partial: with the token lengths in both languages held fixed, -1 to 1.
        null_low: 2.5 % quantile of r_partial when the items are shuffled.
        null_high: 97.5 % quantile.
        p_permutation: two-sided, one added to hits and draws (Phipson and Smyth 2010).
    """

    r: float = _NAN
    r_partial: float = _NAN
    null_low: float = _NAN
    null_high: float = _NAN
    p_permutation: float = _NAN


def write_states(path: Path, states: torch.Tensor, metadata: Mapping[str, Any]) -> None:
    """Write a file of pooled states atomically.

    Args:
        path: a `.safetensors` file.
        states: *Shape:* (layers + 1, items, hidden), fp32.
        metadata: `fingerprint`, `ids`, `lengths`.
    """
    header = {"glotlift": json.dumps(metadata, ensure_ascii=False)}
    write_atomic(path, lambda file: save_file({"states": states.contiguous()}, file, header))


def write_geometry(folder: Path, states: States, *, seed: int = 0, n_permutations: int = N_PERMUTATIONS) -> bool:
    """Write the files of the module's head unless they are there for the same states; return whether it did.

    Args:
        folder: `geometry/<task>`.
        states: of all variants, which have the same languages.
        seed: of the permutations.
        n_permutations: draws of the null.
    """
    pivot = pivot_of(list(states["base"]))
    sources = [(variant, code, s.metadata) for variant, of in states.items() for code, s in of.items()]
    metadata = {"pivot": pivot, "seed": seed, "n_permutations": n_permutations}
    metadata["fingerprint"] = digest(sources, metadata)
    files = [folder / f"{name}.parquet" for name in ("pca", "explained", "correlation")]
    if all(parquet_metadata(file).get("fingerprint") == metadata["fingerprint"] for file in files):
        return False
    pca, explained = planes(states, seed=seed)
    lengths = {(variant, code): dict(zip(s["ids"], s["lengths"], strict=True)) for variant, code, s in sources}
    correlation = correlations(pca, lengths, pivot=pivot, seed=seed, n_permutations=n_permutations)
    for file, frame in zip(files, (pca, explained, correlation), strict=True):
        write_parquet(file, frame, metadata)
    return True


def pivot_of(languages: Sequence[str]) -> str:
    """Return the language the others are held against: English, or the first where it is missing."""
    return "en" if "en" in languages else languages[0]


def planes(states: States, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the first two principal components of all items, and the shares of the variance they hold.

    The plane of a layer is fitted on `base` and applied to every variant, centred on the mean of base.

    Returns:
        The frames of `pca.parquet` and `explained.parquet`; NaN on a layer where all states of base are the same.
    """
    points, shares = [], []
    for layer in range(next(iter(states["base"].values())).n_states):
        plane = _fit(np.concatenate([source.layer(layer) for source in states["base"].values()]), seed)
        for variant, of_language in states.items():
            whole = np.concatenate([source.layer(layer) for source in of_language.values()])
            scores = np.full((len(whole), 2), np.nan)
            if plane is not None:
                scores[:, : plane.n_components_] = plane.transform(whole)
            total = whole.var(0).sum()
            shares.append((variant, layer, *(scores.var(0) / total if total > 0 else (_NAN, _NAN))))
            ids = [(code, item) for code, source in of_language.items() for item in source.metadata["ids"]]
            frame = pd.DataFrame(ids, columns=["language", "id"])
            points.append(frame.assign(variant=variant, layer=layer, pc1=scores[:, 0], pc2=scores[:, 1]))
    pca = pd.concat(points, ignore_index=True).loc[:, ["variant", "layer", "language", "id", "pc1", "pc2"]]
    return pca, pd.DataFrame(shares, columns=["variant", "layer", "pc1", "pc2"])


def _fit(states: np.ndarray, seed: int) -> PCA | None:
    """Return the plane of some states, None where they are all the same. *Shape:* (items, hidden)."""
    if len(states) < 2 or not np.ptp(states, axis=0).any():
        return None
    # arpack is exact and does not compute the components nobody asked for, but needs more than two
    solver = "arpack" if min(states.shape) > 2 else "full"
    return PCA(min(2, *states.shape), svd_solver=solver, random_state=seed).fit(states)


def correlations(
    pca: pd.DataFrame,
    lengths: Mapping[tuple[str, str], Mapping[str, int]],
    *,
    pivot: str,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> pd.DataFrame:
    """Return how PC1 of every other language goes with PC1 of the pivot, over the items that both have.

    Args:
        pca: see `planes`.
        lengths: (variant, language) -> item id -> tokens of the question.
        pivot: the language the others are held against.
        seed: of the permutations, which are the same wherever n is the same.
        n_permutations: draws of the null.

    Returns:
        The frame of `correlation.parquet`, see `Correlation`. NaN with fewer than 6 items, or where PC1 does not vary
        (for `r_partial` and its null: does not vary beside the lengths).
    """
    rows: list[dict[str, Any]] = []
    orders: dict[int, np.ndarray] = {}
    for key, group in pca.groupby(["variant", "layer"], sort=False):
        variant, layer = cast(tuple[str, int], key)
        parts = group.groupby("language", sort=False)
        pc1 = {str(code): dict(zip(part["id"], part["pc1"], strict=True)) for code, part in parts}
        for code in pc1:
            if code == pivot:
                continue
            common = [item for item in pc1[pivot] if item in pc1[code]]
            n = len(common)
            if n not in orders:
                orders[n] = _orders(n, n_permutations, seed)
            sources = pc1[code], pc1[pivot], lengths[variant, code], lengths[variant, pivot]
            vectors = [np.array([source[item] for item in common], float) for source in sources]
            found = correlate(*vectors, orders=orders[n])
            rows.append({"variant": variant, "layer": layer, "language": code, "n": n, **asdict(found)})
    columns = ["variant", "layer", "language", "n", *asdict(Correlation())]
    return pd.DataFrame(rows, columns=columns)


def _orders(n: int, n_permutations: int, seed: int) -> np.ndarray:
    """Return permutations of n items. *Shape:* (draws, items)."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)


def correlate(
    x: np.ndarray, y: np.ndarray, x_lengths: np.ndarray, y_lengths: np.ndarray, *, orders: np.ndarray
) -> Correlation:
    """Return the correlation of x and y, also with both lengths held fixed, and the permutation null of the latter.

    Under the null an item's value and length in one language stay together and lose their partner in the other.

    Args:
        x: *Shape:* (items,).
        y: *Shape:* (items,).
        x_lengths: *Shape:* (items,).
        y_lengths: *Shape:* (items,).
        orders: permutations of the items of x. *Shape:* (draws, items).
    """
    if len(x) < _MIN_ITEMS or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Correlation()
    first, second = _standardise(x, x_lengths), _standardise(y, y_lengths)
    if not (first[0].any() and second[0].any()):
        return Correlation()
    r = float(first[0] @ second[0])
    orders = np.vstack([np.arange(len(x)), orders])
    partial = _given_lengths(first, second, np.einsum("adn,bn->dab", first[:, orders], second))
    null = partial[1:][np.isfinite(partial[1:])]
    if np.isnan(partial[0]) or not len(null):
        return Correlation(r, float(partial[0]))
    low, high = np.quantile(null, (0.025, 0.975)).tolist()
    hits = int((np.abs(null) >= abs(partial[0]) - 1e-12).sum())
    return Correlation(r, float(partial[0]), low, high, (hits + 1) / (len(null) + 1))


def _standardise(*vectors: np.ndarray) -> np.ndarray:
    """Return the vectors centred and of length 1, zero where constant. *Shape:* (vectors, items)."""
    stacked = np.stack(vectors)
    centred = stacked - stacked.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = norms <= 1e-12 * np.linalg.norm(stacked, axis=1, keepdims=True)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, norms))


def _given_lengths(first: np.ndarray, second: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return the correlation of the least-squares residuals of x and y on both lengths, draw by draw.

    Residuals enter by their inner products only, which follow from the correlations (a Schur complement).

    Args:
        first: x and its lengths, standardised. *Shape:* (2, items).
        second: y and its lengths. *Shape:* (2, items).
        cross: correlations of the former with the latter. *Shape:* (draws, 2, 2).

    Returns:
        *Shape:* (draws,), NaN where the lengths leave nothing of x or y.
    """
    draws = len(cross)
    gram = np.empty((draws, 2, 2))
    gram[:, 0, 0], gram[:, 1, 1] = first[1] @ first[1], second[1] @ second[1]
    gram[:, 0, 1] = gram[:, 1, 0] = cross[:, 1, 1]
    x_on = np.stack([np.full(draws, first[0] @ first[1]), cross[:, 0, 1]], 1)
    y_on = np.stack([cross[:, 1, 0], np.full(draws, second[0] @ second[1])], 1)
    inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)

    def explained(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("di,dij,dj->d", a, inverse, b)

    x_left, y_left = 1 - explained(x_on, x_on), 1 - explained(y_on, y_on)
    product = np.where((x_left > _LEFT) & (y_left > _LEFT), x_left * y_left, np.nan)
    return np.clip((cross[:, 0, 0] - explained(x_on, y_on)) / np.sqrt(product), -1, 1)
