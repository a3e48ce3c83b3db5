from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from glotlift.explanation.correlation import Correlations, correlations, standardised
from glotlift.explanation.resampling import item_counts, item_orders

PAIR = [(0, 1)]


@pytest.fixture
def random():
    return np.random.default_rng(5)


def residuals(values: np.ndarray, *controls: np.ndarray) -> np.ndarray:
    design = np.stack([np.ones(len(values)), *controls], 1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def partial(x: np.ndarray, y: np.ndarray, *lengths: np.ndarray) -> float:
    return pearsonr(residuals(x, *lengths), residuals(y, *lengths)).statistic


def confounded(random, n: int = 60, languages: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Values that have nothing in common but the length of their items, and these lengths."""
    length = random.integers(10, 90, n).astype(float)
    lengths = np.stack([(1 + 0.3 * k) * length + random.integers(0, 5, n) for k in range(languages)])
    return lengths + 3 * random.normal(size=lengths.shape), lengths


def correlate(values: np.ndarray, lengths: np.ndarray, pairs=PAIR, n_draws: int = 200) -> Correlations:
    n = values.shape[1]
    return correlations(values, lengths, pairs, counts=item_counts(n, n_draws, 1), orders=item_orders(n, n_draws, 2))


def test_every_pair_is_what_pearson_and_least_squares_residuals_say(random):
    values, lengths = confounded(random, 25, 4)
    values += random.normal(size=25) * 5
    pairs = [(0, 1), (0, 2), (3, 1), (2, 3)]
    found = correlate(values, lengths, pairs, 30)
    counts, orders = item_counts(25, 30, 1), item_orders(25, 30, 2)
    for k, (a, b) in enumerate(pairs):
        x, y, x_lengths, y_lengths = values[a], values[b], lengths[a], lengths[b]
        assert found.r[k] == pytest.approx(pearsonr(x, y).statistic)
        assert found.r_partial[k] == pytest.approx(partial(x, y, x_lengths, y_lengths))
        for draw, count in enumerate(counts.astype(int)):
            drawn = [np.repeat(each, count) for each in (x, y, x_lengths, y_lengths)]
            assert found.r_draws[draw, k] == pytest.approx(pearsonr(*drawn[:2]).statistic)
            assert found.r_partial_draws[draw, k] == pytest.approx(partial(*drawn))
        for draw, order in enumerate(orders):
            assert found.r_null[draw, k] == pytest.approx(pearsonr(x[order], y).statistic)
            expected = partial(x[order], y, x_lengths[order], y_lengths)
            assert found.r_partial_null[draw, k] == pytest.approx(expected)


def test_length_alone_makes_r_but_not_r_partial(random):
    found = correlate(*confounded(random))
    assert found.r[0] > 0.9
    low, high = np.quantile(found.r_partial_null, (0.025, 0.975))
    assert low < found.r_partial[0] < high


def test_what_is_common_beside_length_is_found(random):
    values, lengths = confounded(random)
    meaning = 6 * random.normal(size=60)
    found = correlate(np.stack([values[0] + meaning, values[1] - meaning]), lengths)
    assert found.r_partial[0] < found.r_partial_null.min()
    assert np.quantile(found.r_partial_draws, 0.975) < 0


def test_equal_and_constant_lengths_are_one_control_or_none(random):
    values = random.normal(size=(2, 20))
    length = random.integers(5, 50, 20).astype(float)
    expected = partial(*values, length)
    assert correlate(values, np.stack([length, length])).r_partial[0] == pytest.approx(expected)
    assert correlate(values, np.stack([length, 0.3 * length + 0.7])).r_partial[0] == pytest.approx(expected)
    one = correlate(values, np.stack([length, np.full(20, 7.0)]))
    assert one.r_partial[0] == pytest.approx(expected)
    none = correlate(values, np.stack([np.full(20, 7.0), np.full(20, 9.0)]))
    assert none.r_partial[0] == pytest.approx(none.r[0])
    assert np.isfinite(none.r_partial_null).all()


def test_what_is_undefined_is_nan(random):
    values, lengths = confounded(random, 20)

    def is_nan(found: Correlations) -> list[bool]:
        return [bool(np.isnan(each).all()) for each in vars(found).values()]

    assert all(is_nan(correlate(values[:, :5], lengths[:, :5])))
    assert not any(is_nan(correlate(values[:, :6], lengths[:, :6])))
    assert all(is_nan(correlate(np.stack([np.full(20, 0.1), values[1]]), lengths)))
    assert all(is_nan(correlate(np.stack([values[0], np.full(20, np.nan)]), lengths)))
    of_length = correlate(np.stack([3 * lengths[0] - 1, values[1]]), lengths)
    assert is_nan(of_length) == [False, True, False, True, False, True]


def test_standardised_rows_have_mean_0_and_variance_1(random):
    rows = standardised(np.stack([random.normal(size=9) * 7 + 1e6, np.full(9, 1e6 + 0.1)]))
    assert rows[0].mean() == pytest.approx(0, abs=1e-9) and rows[0].std() == pytest.approx(1)
    assert not rows[1].any()
