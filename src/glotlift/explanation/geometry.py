"""Geometry: do the same questions lie in the same place, whatever their language?

Enters: pooled states of parallel questions on every layer, see `glotlift.explanation.states`. Leaves, in
`geometry/<task>/`:

    pca.parquet          variant, layer, language, id, pc1, pc2, pc1_own, pc2_own
    explained.parquet    variant, layer, pc1, pc2, pc1_own, pc2_own: shares of the variance, 0 to 1
    correlation.parquet  variant, layer, language, n, r, r_partial, null_low, null_high, p_permutation
    similarity.parquet   every pair of languages: correlation of PC1, CKA, MEXA, retrieval
    specificity.parquet  nearer to the pivot than to wrong languages?
    probe.parquet        accuracy of a language-ID probe

`correlation.parquet` holds what `similarity.parquet` has of PC1 in the plane of base between each language and the
pivot: English, or the first language where it is missing. `r` is Pearson's, `r_partial` with the token lengths held
fixed, and the null is that of the latter. The columns of the last three are in `glotlift.explanation.comparison`.

Source: arXiv 2405.13816, section on PCA. Unlike there, all layers are compared before the final norm, demonstrations
are not pooled (unless pooling is `whole`), and `r` never stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from glotlift.explanation.comparison import compare_languages
from glotlift.explanation.projection import planes
from glotlift.explanation.resampling import N_PERMUTATIONS, N_RESAMPLES
from glotlift.explanation.states import ArrayStates, PooledStates, States, parallel, pivot_of, write_states
from glotlift.models.fingerprints import digest
from glotlift.runs import parquet_metadata, write_parquet

__all__ = [
    "FRAMES",
    "N_PERMUTATIONS",
    "N_RESAMPLES",
    "ArrayStates",
    "PooledStates",
    "States",
    "geometry_frames",
    "write_geometry",
    "write_states",
]

FRAMES = ("pca", "explained", "correlation", "similarity", "specificity", "probe")


def geometry_frames(
    states: States, *, seed: int = 0, n_permutations: int = N_PERMUTATIONS, n_resamples: int = N_RESAMPLES
) -> dict[str, pd.DataFrame]:
    """Return the frames of the module's head, by name, in the order of `FRAMES`.

    Args:
        states: variant -> language -> states: files (`PooledStates`), or arrays and memory maps (`ArrayStates`).
        seed: of resamples, permutations, folds and the solver.
        n_permutations: draws of a null.
        n_resamples: of the bootstrap over items.

    Raises:
        DataError: the variants have different languages, or an id stands twice.
    """
    items = parallel(states)
    pca, explained = planes(states, seed=seed)
    draws = {"n_permutations": n_permutations, "n_resamples": n_resamples}
    similarity, specificity, probe = compare_languages(items, pca, seed=seed, **draws)
    correlation = _with_pivot(similarity, pivot_of(items.languages))
    found = (pca, explained, correlation, similarity, specificity, probe)
    return dict(zip(FRAMES, found, strict=True))


def _with_pivot(similarity: pd.DataFrame, pivot: str) -> pd.DataFrame:
    """Return the frame of `correlation.parquet`."""
    rows = similarity.loc[(similarity["other"] == pivot) & (similarity["variant"] != "difference")]
    raw = rows.loc[rows["measure"] == "pc1_r"].reset_index(drop=True)
    partial = rows.loc[rows["measure"] == "pc1_r_partial"].reset_index(drop=True)
    same = partial.loc[:, ["null_low", "null_high", "p_permutation"]]
    return (
        raw.loc[:, ["variant", "layer", "language", "n"]].assign(r=raw["value"], r_partial=partial["value"]).join(same)
    )


def write_geometry(
    folder: Path,
    states: Mapping[str, Mapping[str, PooledStates]],
    *,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
    n_resamples: int = N_RESAMPLES,
) -> bool:
    """Write the files of the module's head unless they are there for the same states; return whether it did.

    Args:
        folder: `geometry/<task>`.
        states: files of all variants, which have the same languages.
        seed: see `geometry_frames`.
        n_permutations: likewise.
        n_resamples: likewise.
    """
    pivot = pivot_of(list(states["base"]))
    sources = [(variant, code, source.metadata) for variant, of in states.items() for code, source in of.items()]
    settings = {"seed": seed, "n_permutations": n_permutations, "n_resamples": n_resamples}
    metadata = {"pivot": pivot, **settings}
    metadata["fingerprint"] = digest(sources, metadata, FRAMES)
    metadata["pooling"] = next(iter(states["base"].values())).metadata.get("pooling", "question")
    files = [folder / f"{name}.parquet" for name in FRAMES]
    if all(parquet_metadata(file).get("fingerprint") == metadata["fingerprint"] for file in files):
        return False
    for name, frame in geometry_frames(states, **settings).items():
        write_parquet(folder / f"{name}.parquet", frame, metadata)
    return True
