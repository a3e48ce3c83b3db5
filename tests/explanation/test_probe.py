from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from glotlift.explanation.probe import probe_hits


@pytest.fixture
def random():
    return np.random.default_rng(3)


def test_it_is_scikit_learns_logistic_regression_on_items_it_was_not_trained_on(random):
    states = random.normal(size=(3, 12, 5)) + 0.7 * random.normal(size=(3, 1, 5))
    hits = probe_hits(states, seed=4, n_folds=3)
    order = np.random.RandomState(4).permutation(12)
    for held_out in np.array_split(order, 3):
        train = np.setdiff1d(np.arange(12), held_out)
        scaler = StandardScaler().fit(states[:, train].reshape(-1, 5))
        model = LogisticRegression(max_iter=1000)
        model.fit(scaler.transform(states[:, train].reshape(-1, 5)), np.repeat(np.arange(3), len(train)))
        for item in held_out:
            for language in range(3):
                said = model.predict(scaler.transform(states[language, [item]]))
                assert hits[language, item] == (said == language)


def test_languages_apart_are_told_and_languages_alike_are_not(random):
    offsets = 5 * random.normal(size=(4, 1, 8))
    apart = probe_hits(offsets + random.normal(size=(4, 30, 8)))
    assert apart.mean() == 1
    # an item is recognised at once, but says nothing of its language
    alike = probe_hits(10 * random.normal(size=(30, 8)) + 0.01 * random.normal(size=(4, 30, 8)))
    assert abs(alike.mean() - 0.25) < 0.12


def test_what_is_undefined_is_nan(random):
    assert np.isnan(probe_hits(random.normal(size=(3, 5, 4)))).all()
    assert np.isnan(probe_hits(random.normal(size=(1, 8, 4)))).all()
    assert np.isnan(probe_hits(np.full((3, 8, 4), 0.3))).all()
