"""Geometry: do the same questions lie in the same place, whatever their language?

Enters: pooled states, the mean over a question's tokens on every layer (`geometry/<task>/states/`, raw block outputs,
before the final norm). Leaves, in `geometry/<task>/`:

    pca.parquet          variant, layer, language, id, pc1, pc2
    explained.parquet    variant, layer, pc1, pc2: shares of the variance, 0 to 1
    correlation.parquet  variant, layer, language, n, r, r_partial, null_low, null_high, p_permutation

A layer's plane is fitted on the base model's states of all languages together and serves the tuned model too, so that
the two can be laid over each other. `r` is Pearson's correlation of PC1 over parallel items between a language and the
pivot language, as in arXiv 2405.13816. Long questions are long in every language, so `r` is confounded by length:
`r_partial` is what is left when the token lengths in both languages are held fixed, and the null is what it would be
if the items of a language were not parallel to the pivot's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from glotlift.models.load import digest
from glotlift.runs import parquet_metadata, write_atomic, write_parquet

N_PERMUTATIONS = 1000

_MIN_ITEMS = 6
"""Below, a correlation given two lengths has fewer than two degrees of freedom."""

_EXPLAINED = 1e-9
"""Share of PC1's variance that must be left beside the lengths; less is rounding."""

_QUANTILES = (0.025, 0.975)


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
            return json.loads(file.metadata()["glotlift"])

    @property
    def n_layers(self) -> int:
        """Layers, the embedding output counted as one."""
        with safe_open(self.path, "pt") as file:
            return file.get_slice("states").get_shape()[0]

    def layer(self, index: int) -> np.ndarray:
        """Return the states of a layer. *Shape:* (items, hidden), fp64."""
        with safe_open(self.path, "pt") as file:
            return file.get_slice("states")[index].double().numpy()


def write_states(path: Path, states: torch.Tensor, metadata: Mapping[str, Any]) -> None:
    """Write a file of pooled states atomically.

    Args:
        path: a `.safetensors` file.
        states: *Shape:* (layers + 1, items, hidden), fp32.
        metadata: `fingerprint`, `ids`, `lengths`.
    """
    header = {"glotlift": json.dumps(metadata, ensure_ascii=False)}
    write_atomic(path, lambda file: save_file({"states": states.contiguous()}, file, header))


def write_geometry(
    folder: Path,
    states: Mapping[str, Mapping[str, PooledStates]],
    *,
    pivot: str,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> bool:
    """Write the three files of the module's head unless they are there for the same states; return whether they were.

    Args:
        folder: `geometry/<task>`.
        states: variant -> language -> its states; `base` is among the variants.
        pivot: language that the others are correlated with.
        seed: of the permutations.
        n_permutations: draws of the null.
    """
    sources = [(variant, code, s.metadata) for variant, of in states.items() for code, s in of.items()]
    fingerprint = digest(sources, pivot, seed, n_permutations)
    names = ("pca", "explained", "correlation")
    if all(parquet_metadata(folder / f"{name}.parquet").get("fingerprint") == fingerprint for name in names):
        return False
    pca, explained = planes(states, seed=seed)
    lengths = {
        (variant, code): dict(zip(s.metadata["ids"], s.metadata["lengths"], strict=True))
        for variant, of in states.items()
        for code, s in of.items()
    }
    correlation = correlations(pca, lengths, pivot=pivot, seed=seed, n_permutations=n_permutations)
    metadata = {"fingerprint": fingerprint, "pivot": pivot, "seed": seed, "n_permutations": n_permutations}
    for name, frame in zip(names, (pca, explained, correlation), strict=True):
        write_parquet(folder / f"{name}.parquet", frame, metadata)
    return True


def planes(
    states: Mapping[str, Mapping[str, PooledStates]], *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the first two principal components of all items, and the shares of the variance they hold.

    The plane of a layer is fitted on `base` and applied to every variant, centred on base's mean.

    Returns:
        The frames of `pca.parquet` and `explained.parquet`, NaN on a layer where all base states are the same.
    """
    points, shares = [], []
    for layer in range(next(iter(states["base"].values())).n_layers):
        base = np.concatenate([source.layer(layer) for source in states["base"].values()])
        plane = _fit(base, seed)
        for variant, of_language in states.items():
            whole = np.concatenate([source.layer(layer) for source in of_language.values()])
            scores = np.full((len(whole), 2), np.nan)
            if plane is not None:
                scores[:, : plane.n_components_] = plane.transform(whole)
            total = whole.var(0).sum()
            share = scores.var(0) / total if total > 0 else np.full(2, np.nan)
            shares.append((variant, layer, *share.tolist()))
            ids = [(code, item) for code, source in of_language.items() for item in source.metadata["ids"]]
            frame = pd.DataFrame(ids, columns=["language", "id"])
            points.append(frame.assign(variant=variant, layer=layer, pc1=scores[:, 0], pc2=scores[:, 1]))
    pca = pd.concat(points, ignore_index=True)[["variant", "layer", "language", "id", "pc1", "pc2"]]
    return pca, pd.DataFrame(shares, columns=["variant", "layer", "pc1", "pc2"])


def _fit(states: np.ndarray, seed: int) -> PCA | None:
    """Return the plane of some states, None where they are all the same. *Shape:* (items, hidden)."""
    if len(states) < 2 or not np.ptp(states, axis=0).any():
        return None
    # arpack is exact and finds two components without the others, but needs more than two
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
    """Return how PC1 of every language goes with PC1 of the pivot, over the items that both have.

    Args:
        pca: see `planes`.
        lengths: (variant, language) -> item id -> tokens of the question.
        pivot: the other languages are held against it.
        seed: of the permutations, which are the same for all layers, variants and languages with the same n.
        n_permutations: draws of the null.

    Returns:
        The frame of `correlation.parquet`: `r`, `r_partial` and the 2.5 % and 97.5 % quantiles of the null of `r_partial`
        from -1 to 1, `p_permutation` two-sided. NaN with fewer than 6 items, or where PC1 does not vary (beside length).
    """
    rows, orders = [], {}
    for (variant, layer), group in pca.groupby(["variant", "layer"], sort=False):
        of_language = {code: part.set_index("id")["pc1"] for code, part in group.groupby("language", sort=False)}
        y = of_language.pop(pivot)
        for code, x in of_language.items():
            common = [item for item in y.index if item in x.index]
            n = len(common)
            if n not in orders:
                tiled = np.tile(np.arange(n), (n_permutations, 1))
                orders[n] = np.random.default_rng(seed).permuted(tiled, axis=1)
            of_item = lengths[variant, code], lengths[variant, pivot]
            x_lengths, y_lengths = (np.array([own[item] for item in common], float) for own in of_item)
            result = correlate(x[common].to_numpy(), y[common].to_numpy(), x_lengths, y_lengths, orders[n])
            rows.append((variant, layer, code, n, *result))
    columns = ["variant", "layer", "language", "n", "r", "r_partial", "null_low", "null_high", "p_permutation"]
    return pd.DataFrame(rows, columns=columns)


def correlate(
    x: np.ndarray, y: np.ndarray, x_lengths: np.ndarray, y_lengths: np.ndarray, orders: np.ndarray
) -> tuple[float, float, float, float, float]:
    """Return r, r given both lengths, and the permutation null of the latter.

    Under the null an item's value and its length stay together and lose their partner.

    Args:
        x: *Shape:* (items,).
        y: *Shape:* (items,).
        x_lengths: *Shape:* (items,).
        y_lengths: *Shape:* (items,).
        orders: permutations of the items of `x`. *Shape:* (draws, items).

    Returns:
        r, r_partial, the 2.5 % and 97.5 % quantiles of r_partial under the null, and the two-sided p with one added to
        hits and draws (Phipson and Smyth 2010). NaN where undefined.
    """
    nothing = (float("nan"),) * 5
    if len(x) < _MIN_ITEMS or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return nothing
    first, second = _standardise(x, x_lengths), _standardise(y, y_lengths)
    if not (first[0].any() and second[0].any()):
        return nothing
    r = float(first[0] @ second[0])
    whole = np.vstack([np.arange(len(x)), orders])
    # a: value or length of x, b: value or length of y
    partial = _given_lengths(first, second, np.einsum("adn,bn->dab", first[:, whole], second))
    r_partial, null = float(partial[0]), partial[1:][np.isfinite(partial[1:])]
    if not (np.isfinite(r_partial) and len(null)):
        return r, *nothing[1:]
    low, high = np.quantile(null, _QUANTILES)
    hits = int((np.abs(null) >= abs(r_partial) - 1e-12).sum())
    return r, r_partial, float(low), float(high), (hits + 1) / (len(null) + 1)


def _standardise(*vectors: np.ndarray) -> np.ndarray:
    """Return the vectors centred and of length 1, zero where constant. *Shape:* (vectors, items)."""
    centred = np.stack(vectors) - np.mean(vectors, axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = norms <= 1e-12 * np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, norms))


def _given_lengths(first: np.ndarray, second: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return the correlation of the residuals on both lengths, draw by draw, NaN where the lengths leave none.

    Args:
        first: value and length of x, standardised. *Shape:* (2, items).
        second: of y. *Shape:* (2, items).
        cross: correlations of them, draw by draw. *Shape:* (draws, 2, 2).

    Returns:
        *Shape:* (draws,).
    """
    draws = len(cross)
    lengths = np.empty((draws, 2, 2))
    lengths[:, 0, 0], lengths[:, 1, 1] = first[1] @ first[1], second[1] @ second[1]
    lengths[:, 0, 1] = lengths[:, 1, 0] = cross[:, 1, 1]
    x_on = np.stack([np.full(draws, first[0] @ first[1]), cross[:, 0, 1]], 1)
    y_on = np.stack([cross[:, 1, 0], np.full(draws, second[0] @ second[1])], 1)
    inverse = np.linalg.pinv(lengths, rcond=1e-10, hermitian=True)

    def explained(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("di,dij,dj->d", a, inverse, b)

    x_left, y_left = 1 - explained(x_on, x_on), 1 - explained(y_on, y_on)
    product = np.where((x_left > _EXPLAINED) & (y_left > _EXPLAINED), x_left * y_left, np.nan)
    return np.clip((cross[:, 0, 0] - explained(x_on, y_on)) / np.sqrt(product), -1, 1)


def pivot_of(languages: Sequence[str]) -> str:
    """Return the language the others are held against: English, or the first where it is missing."""
    return "en" if "en" in languages else languages[0]
