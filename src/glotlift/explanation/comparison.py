"""Measures of every pair of languages and of every language, as tidy frames: base, tuned, and their difference.

Enters: pooled states of parallel items. Leaves three frames, with the 95 % interval of each value by bootstrap over
items (see `glotlift.explanation.resampling`); `difference` among the variants is tuned less base, paired item by item.

    similarity     variant, layer, measure, language, other, n, value, low, high, null_low, null_high, p_permutation
    specificity    variant, layer, measure, language, n, pivot, wrong_language, value, low, high
    probe          variant, layer, language, n, value, low, high, chance

In `similarity` a pair stands once, the pivot second. Measures are those of `glotlift.explanation.similarity`, and
`pc1_r`, `pc1_r_partial` (plane of base), `pc1_own_r`, `pc1_own_r_partial` (own plane) of
`glotlift.explanation.correlation`. The null is the measure under shuffled pairs, its central 95 %; `p_permutation` is
two-sided.

`specificity` is the control for wrong-language pairs: `pivot` is a measure between a language and the pivot,
`wrong_language` its mean over all other languages, `value` the former less the latter. When tuning raises every pair,
the languages have only come together; when it raises `value`, they have come to the pivot.

In `probe` the language `all` is the mean over languages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import pandas as pd

from glotlift.explanation.correlation import correlations
from glotlift.explanation.probe import probe_hits
from glotlift.explanation.resampling import N_PERMUTATIONS, N_RESAMPLES, interval, item_counts, item_orders, null_share
from glotlift.explanation.similarity import N_SHUFFLES, SIMILARITIES, Measured, similarities
from glotlift.explanation.states import Parallel, pairs_of, pivot_of

CORRELATIONS = ("pc1_r", "pc1_r_partial", "pc1_own_r", "pc1_own_r_partial")

MEASURES = (*CORRELATIONS, *SIMILARITIES)

_SHARES = SIMILARITIES[1:]
"""Means over items of what is 0 to 1."""

_BOUNDS = ["value", "low", "high"]
_NULL = ["null_low", "null_high", "p_permutation"]
_SIMILARITY = ["variant", "layer", "measure", "language", "other", "n", *_BOUNDS, *_NULL]
_SPECIFICITY = ["variant", "layer", "measure", "language", "n", "pivot", "wrong_language", *_BOUNDS]
_PROBE = ["variant", "layer", "language", "n", *_BOUNDS, "chance"]

Values = dict[str, Measured]
"""Measure -> its values, draws and null of every pair, of one variant and layer."""


def compare_languages(
    items: Parallel,
    pca: pd.DataFrame,
    *,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
    n_resamples: int = N_RESAMPLES,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the frames `similarity`, `specificity` and `probe`, see the module's head.

    Args:
        items: of base, and of tuned where there is one.
        pca: see `glotlift.explanation.projection.planes`.
        seed: of resamples, permutations and folds, which are the same for all variants, layers and measures.
        n_permutations: draws of the null of the correlations; of the other measures at most 200.
        n_resamples: of the bootstrap.
    """
    n_items, pairs = len(items.ids), pairs_of(items.languages)
    counts = item_counts(n_items, n_resamples, seed)
    orders = item_orders(n_items, n_permutations, seed)
    points = _points(items, pca)
    similarity, specificity, probe = [], [], []
    for layer in range(items.n_states):
        values: dict[str, Values] = {}
        hits: dict[str, np.ndarray] = {}
        for variant in items.states:
            states = items.layer(variant, layer)
            found = _correlated(points[variant, layer], items.lengths(variant), pairs, counts, orders)
            values[variant] = found | similarities(states, pairs, counts=counts, orders=orders[:N_SHUFFLES])
            hits[variant] = probe_hits(states, seed=seed)
        for variant, of in _with_difference(values):
            at = {"variant": variant, "layer": layer}
            similarity.append(_similarity(of, pairs, items, variant == "difference").assign(**at))
            specificity.append(_specificity(of, pairs, items).assign(**at))
        if "tuned" in hits:
            hits["difference"] = hits["tuned"] - hits["base"]
        for variant, of_items in hits.items():
            ends = (-1.0, 1.0) if variant == "difference" else (0.0, 1.0)
            probe.append(_probe(of_items, items, counts, ends).assign(variant=variant, layer=layer))
    frames = zip((similarity, specificity, probe), (_SIMILARITY, _SPECIFICITY, _PROBE), strict=True)
    first, second, third = (pd.concat(parts, ignore_index=True).loc[:, columns] for parts, columns in frames)
    return first, second, third


def _points(items: Parallel, pca: pd.DataFrame) -> dict[tuple[str, int], np.ndarray]:
    """Return (variant, layer) -> PC1 in the fixed and the own plane. *Shape:* (2, languages, items)."""
    found = {}
    for key, part in pca.groupby(["variant", "layer"], sort=False):
        variant, layer = cast(tuple[str, int], key)
        table = part.pivot(index="language", columns="id", values=["pc1", "pc1_own"])
        found[variant, layer] = np.stack(
            [table[plane].loc[items.languages, items.ids].to_numpy(float) for plane in ("pc1", "pc1_own")]
        )
    return found


def _correlated(
    points: np.ndarray, lengths: np.ndarray, pairs: list[tuple[int, int]], counts: np.ndarray, orders: np.ndarray
) -> Values:
    found: Values = {}
    for prefix, plane in zip(("pc1", "pc1_own"), points, strict=True):
        of = correlations(plane, lengths, pairs, counts=counts, orders=orders)
        found[f"{prefix}_r"] = Measured(of.r, of.r_draws, of.r_null)
        found[f"{prefix}_r_partial"] = Measured(of.r_partial, of.r_partial_draws, of.r_partial_null)
    return found


def _with_difference(values: Mapping[str, Values]) -> Iterator[tuple[str, Values]]:
    """Yield the values of every variant, and those of tuned less base, draw by draw."""
    yield from values.items()
    if "tuned" in values:
        base, tuned = values["base"], values["tuned"]
        yield (
            "difference",
            {
                name: Measured(
                    tuned[name].value - base[name].value,
                    tuned[name].draws - base[name].draws,
                    tuned[name].null - base[name].null,
                )
                for name in base
            },
        )


def _ends(measure: str, is_difference: bool) -> tuple[float, float] | None:
    return None if measure not in _SHARES else (-1.0, 1.0) if is_difference else (0.0, 1.0)


def _similarity(values: Values, pairs: list[tuple[int, int]], items: Parallel, is_difference: bool) -> pd.DataFrame:
    codes = [(items.languages[a], items.languages[b]) for a, b in pairs]
    parts = []
    for measure in MEASURES:
        of = values[measure]
        low, high = interval(of.draws, ends=_ends(measure, is_difference), n_items=len(items.ids))
        null_low, null_high = interval(of.null)
        frame = pd.DataFrame(codes, columns=["language", "other"]).assign(measure=measure, n=len(items.ids))
        columns = {"value": of.value, "low": low, "high": high, "null_low": null_low, "null_high": null_high}
        parts.append(frame.assign(**columns, p_permutation=null_share(of.value, of.null)))
    return pd.concat(parts, ignore_index=True)


def _specificity(values: Values, pairs: list[tuple[int, int]], items: Parallel) -> pd.DataFrame:
    pivot = items.languages.index(pivot_of(items.languages))
    places = [place for place in range(len(items.languages)) if place != pivot] if len(items.languages) > 2 else []
    right = [pairs.index((place, pivot)) for place in places]
    wrong = [[k for k, pair in enumerate(pairs) if place in pair and pivot not in pair] for place in places]
    parts = []
    for measure in MEASURES if places else ():
        of = values[measure]
        near, far = of.value[right], np.array([of.value[others].mean() for others in wrong])
        draws = of.draws[:, right] - np.stack([of.draws[:, others].mean(1) for others in wrong], 1)
        low, high = interval(draws)
        frame = pd.DataFrame({"language": [items.languages[place] for place in places]})
        columns = {"pivot": near, "wrong_language": far, "value": near - far, "low": low, "high": high}
        parts.append(frame.assign(measure=measure, n=len(items.ids), **columns))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_SPECIFICITY[2:])


def _probe(hits: np.ndarray, items: Parallel, counts: np.ndarray, ends: tuple[float, float]) -> pd.DataFrame:
    """Return the accuracy of every language and of all. *Shape of hits:* (languages, items)."""
    n_items = len(items.ids)
    each = np.vstack([hits.mean(0), hits])
    low, high = interval(counts @ each.T / max(n_items, 1), ends=ends, n_items=n_items)
    frame = pd.DataFrame({"language": ["all", *items.languages], "n": n_items})
    return frame.assign(value=each.mean(1), low=low, high=high, chance=1 / len(items.languages))
