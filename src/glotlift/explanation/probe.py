"""Language-ID probe: can the language of a question be read off its state?

Enters: states of parallel items in several languages. Leaves: which items a linear probe gets right that was trained
on other items. A layer where it is right on all languages keeps them apart; a layer where it falls towards chance, one
over the number of languages, is shared.

The probe is a multinomial logistic regression on standardised states (scikit-learn, C = 1). Folds are of items: an item
is held out with all its translations, so the probe cannot know a language by the items it has seen in it.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from glotlift.explanation.resampling import MIN_ITEMS

N_FOLDS = 3

_MAX_STEPS = 1000


def probe_hits(states: np.ndarray, *, seed: int = 0, n_folds: int = N_FOLDS) -> np.ndarray:
    """Return which held-out states the probe puts into their language.

    Args:
        states: of one variant and layer. *Shape:* (languages, items, hidden).
        seed: of the folds, which are the same for every layer and variant.
        n_folds: each is held out once.

    Returns:
        1 or 0; NaN with fewer than 6 items or 2 languages, or where all states are the same. *Shape:* (languages,
        items).
    """
    n_languages, n_items, _ = states.shape
    hits = np.full((n_languages, n_items), np.nan)
    if n_items < MIN_ITEMS or n_languages < 2 or not np.ptp(states, axis=(0, 1)).any():
        return hits
    folds = KFold(n_folds, shuffle=True, random_state=seed)
    for train, held_out in folds.split(np.arange(n_items)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_STEPS))
        probe.fit(np.concatenate(states[:, train]), np.repeat(np.arange(n_languages), len(train)))
        said = probe.predict(np.concatenate(states[:, held_out])).reshape(n_languages, -1)
        hits[:, held_out] = said == np.arange(n_languages)[:, None]
    return hits
