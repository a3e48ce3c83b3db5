"""Principal components of the states of all languages, a layer at a time.

Enters: pooled states. Leaves: where every item lies on the first two components, and the shares of the variance these
hold. There are two planes:

    fixed   fitted on the base model, applied to every variant: base and tuned can be laid over each other
    own     fitted on each variant alone, as arXiv 2405.13816 does: it shows how each is spread by itself, but what
            moves between two such planes may be the planes, and the sign of a component says nothing
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from glotlift.explanation.states import States

_NAN = float("nan")

_COLUMNS = ["pc1", "pc2", "pc1_own", "pc2_own"]


def planes(states: States, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the first two principal components of all items, and the shares of the variance they hold.

    Args:
        states: all items of all languages count, also those that are not there in every language.
        seed: of the solver.

    Returns:
        One row a variant, layer, language and item: `pc1`, `pc2` in the plane of `base`, centred on its mean, and
        `pc1_own`, `pc2_own` in the variant's own. One row a variant and layer: the shares of the variance, 0 to 1,
        under the same names. NaN on a layer where all states that a plane is fitted on are the same.
    """
    points, shares = [], []
    for layer in range(next(iter(states["base"].values())).n_states):
        fixed = None
        for variant in sorted(states, key=lambda name: name != "base"):
            of_language = states[variant]
            whole = np.concatenate([source.layer(layer) for source in of_language.values()])
            own = _fit(whole, seed)
            fixed = own if variant == "base" else fixed
            scores = np.hstack([_scores(plane, whole) for plane in (fixed, own)])
            total = whole.var(0).sum()
            shares.append((variant, layer, *(scores.var(0) / total if total > 0 else [_NAN] * 4)))
            ids = [(code, item) for code, source in of_language.items() for item in source.ids]
            frame = pd.DataFrame(ids, columns=["language", "id"]).assign(variant=variant, layer=layer)
            points.append(frame.assign(**dict(zip(_COLUMNS, scores.T, strict=True))))
    pca = pd.concat(points, ignore_index=True).loc[:, ["variant", "layer", "language", "id", *_COLUMNS]]
    return pca, pd.DataFrame(shares, columns=["variant", "layer", *_COLUMNS])


def _fit(states: np.ndarray, seed: int) -> PCA | None:
    """Return the plane of some states, None where they are all the same. *Shape:* (items, hidden)."""
    if len(states) < 2 or not np.ptp(states, axis=0).any():
        return None
    # arpack is exact and does not compute the components nobody asked for, but needs more than two
    solver = "arpack" if min(states.shape) > 2 else "full"
    return PCA(min(2, *states.shape), svd_solver=solver, random_state=seed).fit(states)


def _scores(plane: PCA | None, states: np.ndarray) -> np.ndarray:
    """Return states in a plane, NaN where there is none or it lacks a component. *Shape:* (items, 2)."""
    scores = np.full((len(states), 2), np.nan)
    if plane is not None:
        scores[:, : plane.n_components_] = plane.transform(states)
    return scores
