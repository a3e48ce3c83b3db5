from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA

from glotlift.explanation.geometry import (
    PooledStates,
    correlate,
    correlations,
    pivot_of,
    planes,
    write_geometry,
    write_states,
)
from glotlift.runs import read_parquet


@pytest.fixture
def random():
    return np.random.default_rng(5)


def orders(n: int, draws: int = 200) -> np.ndarray:
    return np.stack([np.random.default_rng(k).permutation(n) for k in range(draws)])


def residuals(values: np.ndarray, *controls: np.ndarray) -> np.ndarray:
    design = np.stack([np.ones(len(values)), *controls], 1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def confounded(random, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two vectors that have nothing in common but the length of their items."""
    length = random.integers(10, 90, n).astype(float)
    x_lengths, y_lengths = length + random.integers(0, 5, n), 1.3 * length + random.integers(0, 5, n)
    return x_lengths + 3 * random.normal(size=n), y_lengths + 3 * random.normal(size=n), x_lengths, y_lengths


def test_partial_correlation_and_null_are_those_of_least_squares_residuals(random):
    x, y, x_lengths, y_lengths = confounded(random, 25)
    x += y
    draws = orders(25, 50)
    found = correlate(x, y, x_lengths, y_lengths, orders=draws)
    assert found.r == pytest.approx(pearsonr(x, y).statistic)

    def partial(order: np.ndarray) -> float:
        lengths = x_lengths[order], y_lengths
        return pearsonr(residuals(x[order], *lengths), residuals(y, *lengths)).statistic

    null = np.array([partial(order) for order in draws])
    assert found.r_partial == pytest.approx(partial(np.arange(25)))
    assert [found.null_low, found.null_high] == pytest.approx(np.quantile(null, [0.025, 0.975]).tolist())
    assert found.p_permutation == (1 + (np.abs(null) >= abs(found.r_partial)).sum()) / 51


def test_length_alone_makes_r_but_not_r_partial(random):
    x, y, x_lengths, y_lengths = confounded(random)
    found = correlate(x, y, x_lengths, y_lengths, orders=orders(60))
    assert found.r > 0.9
    assert found.null_low < found.r_partial < found.null_high
    assert found.p_permutation > 0.05


def test_what_is_common_beside_length_is_found(random):
    x, y, x_lengths, y_lengths = confounded(random)
    meaning = 6 * random.normal(size=60)
    found = correlate(x + meaning, y - meaning, x_lengths, y_lengths, orders=orders(60))
    assert found.r_partial < found.null_low
    assert found.p_permutation == 1 / 201


def test_equal_and_constant_lengths_are_one_control_or_none(random):
    x, y = random.normal(size=(2, 20))
    length = random.integers(5, 50, 20).astype(float)
    equal = correlate(x, y, length, length, orders=orders(20))
    assert equal.r_partial == pytest.approx(pearsonr(residuals(x, length), residuals(y, length)).statistic)
    linear = correlate(x, y, length, 0.3 * length + 0.7, orders=orders(20))
    assert linear.r_partial == pytest.approx(equal.r_partial)
    constant = correlate(x, y, np.full(20, 7.0), np.full(20, 9.0), orders=orders(20))
    assert constant.r_partial == pytest.approx(constant.r)
    assert np.isfinite(constant.p_permutation)


def test_what_is_undefined_is_nan(random):
    x, y, x_lengths, y_lengths = confounded(random, 20)

    def is_nan(found) -> list[bool]:
        return np.isnan(list(vars(found).values())).tolist()

    few = [vector[:5] for vector in (x, y, x_lengths, y_lengths)]
    assert all(is_nan(correlate(*few, orders=orders(5))))
    assert all(is_nan(correlate(np.full(20, 0.1), y, x_lengths, y_lengths, orders=orders(20))))
    assert all(is_nan(correlate(x, np.full(20, np.nan), x_lengths, y_lengths, orders=orders(20))))
    of_length = correlate(3 * x_lengths - 1, y, x_lengths, y_lengths, orders=orders(20))
    assert is_nan(of_length) == [False, True, True, True, True]
    assert not any(is_nan(correlate(*(v[:6] for v in (x, y, x_lengths, y_lengths)), orders=orders(6))))


def saved(folder, name: str, states: np.ndarray, ids: list[str] | None = None) -> PooledStates:
    """Write states of *shape* (layers, items, hidden) and return their file."""
    path = folder / f"{name}.safetensors"
    ids = ids or [f"i{k}" for k in range(states.shape[1])]
    lengths = [5 + 7 * int(item[1:]) % 11 for item in ids]
    write_states(path, torch.from_numpy(states).float(), {"fingerprint": name, "ids": ids, "lengths": lengths})
    return PooledStates(path)


@pytest.fixture
def two_variants(tmp_path, random):
    """Random states of two languages, 3 layers, 12 items, as base and as tuned."""
    states = {(v, c): random.normal(size=(3, 12, 8)) + 2 for v in ("base", "tuned") for c in ("de", "en")}
    files = {
        variant: {code: saved(tmp_path, f"{variant}-{code}", states[variant, code]) for code in ("de", "en")}
        for variant in ("base", "tuned")
    }
    return states, files


def test_the_plane_is_fitted_on_base_and_serves_tuned(two_variants):
    states, files = two_variants
    pca, explained = planes(files)
    for layer in range(3):
        base, tuned = (np.concatenate([states[v, c][layer] for c in ("de", "en")]) for v in ("base", "tuned"))
        plane = PCA(2, svd_solver="full").fit(base)
        for variant, whole in (("base", base), ("tuned", tuned)):
            rows = pca[(pca["variant"] == variant) & (pca["layer"] == layer)]
            assert rows["language"].tolist() == ["de"] * 12 + ["en"] * 12
            assert rows["id"].tolist() == [f"i{k}" for k in range(12)] * 2
            np.testing.assert_allclose(rows[["pc1", "pc2"]].to_numpy(), plane.transform(whole), atol=1e-5)
        shares = explained[explained["layer"] == layer].set_index("variant")[["pc1", "pc2"]]
        np.testing.assert_allclose(shares.loc["base"], plane.explained_variance_ratio_, atol=1e-6)
        np.testing.assert_allclose(shares.loc["tuned"], plane.transform(tuned).var(0) / tuned.var(0).sum(), atol=1e-6)


def test_equal_states_give_nan_and_few_items_do_not_crash(tmp_path, random):
    for name, states in {
        "equal": np.full((1, 8, 4), 0.3),
        "single": random.normal(size=(1, 1, 4)),
        "pair": random.normal(size=(1, 2, 4)),
        "line": np.outer(random.normal(size=8), random.normal(size=4))[None],
    }.items():
        pca, explained = planes({"base": {"en": saved(tmp_path, name, states)}})
        assert len(pca) == states.shape[1]
        defined = name in ("pair", "line")
        assert pca["pc1"].notna().all() == defined and explained["pc1"].notna().all() == defined
        if defined:
            assert explained["pc1"].item() == pytest.approx(1)


def test_items_are_matched_by_id(random):
    values = random.normal(size=10)
    rows = [("base", 1, "en", f"i{k}", values[k]) for k in range(10)]
    rows += [("base", 1, "de", f"i{k}", values[k] + 0.1 * random.normal()) for k in (9, 2, 3, 0, 1, 7, 8, 4)]
    rows += [("base", 1, "de", "elsewhere", 100.0)]
    pca = pd.DataFrame(rows, columns=["variant", "layer", "language", "id", "pc1"])
    lengths = {("base", c): {f"i{k}": (3 * k) % 7 for k in range(10)} | {"elsewhere": 900} for c in ("en", "de")}
    found = correlations(pca, lengths, pivot="en")
    assert found["language"].tolist() == ["de"] and found["n"].item() == 8
    assert found["r"].item() > 0.9
    again = correlations(pca.sample(frac=1, random_state=1), lengths, pivot="en")
    assert again["r_partial"].item() == pytest.approx(found["r_partial"].item())


def test_the_null_depends_on_the_seed_alone(two_variants):
    _, files = two_variants
    pca, _ = planes(files)
    lengths = {(v, c): {f"i{k}": 5 + 7 * k % 11 for k in range(12)} for v in files for c in ("de", "en")}
    first, again, other = (correlations(pca, lengths, pivot="en", seed=seed, n_permutations=60) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["null_low"], other["null_low"])
    np.testing.assert_array_equal(first["r_partial"], other["r_partial"])


def test_files_are_written_once_for_the_same_states(two_variants, tmp_path):
    _, files = two_variants
    target = tmp_path / "geometry"
    assert write_geometry(target, files, n_permutations=20)
    assert not write_geometry(target, files, n_permutations=20)
    correlation, metadata = read_parquet(target / "correlation.parquet")
    assert metadata["pivot"] == "en"
    columns = "variant layer language n r r_partial null_low null_high p_permutation"
    assert correlation.columns.tolist() == columns.split()
    assert len(correlation) == 2 * 3  # variants x layers, one language beside the pivot
    assert write_geometry(target, files, seed=1, n_permutations=20)
    (target / "pca.parquet").unlink()
    assert write_geometry(target, files, seed=1, n_permutations=20)


def test_the_pivot_is_english_where_there_is_english():
    assert pivot_of(["de", "en"]) == "en"
    assert pivot_of(["sw", "de"]) == "sw"
