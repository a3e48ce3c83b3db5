from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA

from glotlift.errors import DataError
from glotlift.explanation.comparison import MEASURES
from glotlift.explanation.geometry import (
    FRAMES,
    ArrayStates,
    PooledStates,
    geometry_frames,
    write_geometry,
    write_states,
)
from glotlift.explanation.probe import probe_hits
from glotlift.explanation.projection import planes
from glotlift.explanation.resampling import interval, item_counts, item_orders, null_share
from glotlift.explanation.similarity import similarities
from glotlift.explanation.states import pairs_of, parallel, pivot_of
from glotlift.runs import read_parquet

QUICK = {"n_permutations": 40, "n_resamples": 50}


@pytest.fixture
def random():
    return np.random.default_rng(5)


def length_of(item: str) -> int:
    return 5 + 7 * int(item[1:]) % 11


def arrays(states: np.ndarray, ids: list[str] | None = None) -> ArrayStates:
    """Wrap states of *shape* (layers, items, hidden)."""
    ids = ids or [f"i{k}" for k in range(states.shape[1])]
    return ArrayStates(states, ids, [length_of(item) for item in ids])


def saved(folder, name: str, states: np.ndarray) -> PooledStates:
    path = folder / f"{name}.safetensors"
    of = arrays(states)
    write_states(path, torch.from_numpy(states).float(), {"fingerprint": name, "ids": of.ids, "lengths": of.lengths})
    return PooledStates(path)


def rows(frame: pd.DataFrame, **wanted) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame.loc[frame[column] == value]
    return frame


@pytest.fixture
def two_variants(random):
    """Random states of three languages that share something, 3 layers, 12 items, as base and as tuned."""
    meaning = random.normal(size=(3, 12, 8))
    return {
        variant: {code: share * meaning + random.normal(size=(3, 12, 8)) + 2 for code in ("de", "en", "sw")}
        for variant, share in (("base", 0.5), ("tuned", 2.0))
    }


@pytest.fixture
def sources(two_variants):
    return {v: {code: arrays(states) for code, states in of.items()} for v, of in two_variants.items()}


def test_the_plane_is_fitted_on_base_and_serves_tuned_beside_its_own(two_variants, sources):
    pca, explained = planes(sources)
    for layer in range(3):
        whole = {v: np.concatenate([states[layer] for states in of.values()]) for v, of in two_variants.items()}
        fits = {variant: PCA(2, svd_solver="full").fit(states) for variant, states in whole.items()}
        for variant, states in whole.items():
            found = rows(pca, variant=variant, layer=layer)
            assert found["language"].tolist() == ["de"] * 12 + ["en"] * 12 + ["sw"] * 12
            assert found["id"].tolist() == [f"i{k}" for k in range(12)] * 3
            share = rows(explained, variant=variant, layer=layer)
            for plane, columns in ((fits["base"], ["pc1", "pc2"]), (fits[variant], ["pc1_own", "pc2_own"])):
                expected = plane.transform(states)
                np.testing.assert_allclose(found[columns], expected, atol=1e-6)
                np.testing.assert_allclose(share[columns], [expected.var(0) / states.var(0).sum()], atol=1e-9)
        of_base = rows(explained, variant="base", layer=layer)[["pc1", "pc2"]]
        np.testing.assert_allclose(of_base, [fits["base"].explained_variance_ratio_], atol=1e-9)


def test_equal_states_give_nan_and_few_items_do_not_crash(random):
    for name, states in {
        "equal": np.full((1, 8, 4), 0.3),
        "single": random.normal(size=(1, 1, 4)),
        "pair": random.normal(size=(1, 2, 4)),
        "line": np.outer(random.normal(size=8), random.normal(size=4))[None],
    }.items():
        frames = geometry_frames({"base": {"en": arrays(states)}}, **QUICK)
        pca, explained = frames["pca"], frames["explained"]
        assert len(pca) == states.shape[1]
        defined = name in ("pair", "line")
        assert pca["pc1"].notna().all() == defined and explained["pc1"].notna().all() == defined
        if defined:
            assert explained["pc1"].item() == pytest.approx(1)
        assert frames["similarity"].empty and frames["specificity"].empty
        assert frames["probe"]["value"].isna().all()


def test_every_pair_layer_measure_and_variant_has_a_row(sources):
    frames = geometry_frames(sources, **QUICK)
    assert tuple(frames) == FRAMES
    similarity = frames["similarity"]
    assert len(similarity) == 3 * 3 * 3 * len(MEASURES)  # variants x layers x pairs
    assert not similarity.duplicated(["variant", "layer", "measure", "language", "other"]).any()
    pairs = similarity[["language", "other"]].drop_duplicates()
    assert {tuple(pair) for pair in pairs.to_numpy()} == {("de", "en"), ("sw", "en"), ("de", "sw")}
    assert similarity.notna().all(axis=None)
    assert (similarity["low"] <= similarity["high"]).all()
    assert len(frames["specificity"]) == 3 * 3 * 2 * len(MEASURES)
    assert len(frames["probe"]) == 3 * 3 * 4
    columns = "variant layer language n r r_partial null_low null_high p_permutation"
    assert frames["correlation"].columns.tolist() == columns.split()
    assert len(frames["correlation"]) == 2 * 3 * 2
    assert set(frames["correlation"]["variant"]) == {"base", "tuned"}


def test_rows_hold_what_the_measures_give_and_the_difference_is_paired(two_variants, sources):
    frames = geometry_frames(sources, seed=3, **QUICK)
    draws = {"counts": item_counts(12, 50, 3), "orders": item_orders(12, 40, 3)}
    base, tuned = (
        similarities(np.stack([states[1] for states in two_variants[v].values()]), [(2, 1)], **draws)
        for v in ("base", "tuned")
    )
    for name in ("cka", "retrieval_centred"):
        at = {"layer": 1, "measure": name, "language": "sw", "other": "en"}
        row = rows(frames["similarity"], variant="tuned", **at).iloc[0]
        assert row["value"] == pytest.approx(tuned[name].value[0])
        ends = None if name == "cka" else (0.0, 1.0)
        expected = interval(tuned[name].draws, ends=ends, n_items=12)
        assert [row["low"], row["high"]] == pytest.approx(expected[:, 0])
        assert [row["null_low"], row["null_high"]] == pytest.approx(interval(tuned[name].null)[:, 0])
        row = rows(frames["similarity"], variant="difference", **at).iloc[0]
        assert row["value"] == pytest.approx(tuned[name].value[0] - base[name].value[0])
        expected = interval(tuned[name].draws - base[name].draws, ends=ends and (-1.0, 1.0), n_items=12)
        assert [row["low"], row["high"]] == pytest.approx(expected[:, 0])
    for plane in ("pc1", "pc1_own"):
        for variant in ("base", "tuned"):
            points = rows(frames["pca"], variant=variant, layer=2).pivot(index="id", columns="language", values=plane)
            row = rows(frames["similarity"], variant=variant, layer=2, measure=f"{plane}_r", language="de", other="sw")
            assert row["value"].item() == pytest.approx(pearsonr(points["de"], points["sw"]).statistic)


def test_the_correlation_file_is_the_fixed_plane_against_the_pivot(sources):
    frames = geometry_frames(sources, **QUICK)
    for row in frames["correlation"].itertuples():
        at = {"variant": row.variant, "layer": row.layer, "language": row.language, "other": "en"}
        raw = rows(frames["similarity"], measure="pc1_r", **at).iloc[0]
        partial = rows(frames["similarity"], measure="pc1_r_partial", **at).iloc[0]
        assert (row.r, row.r_partial, row.n) == (raw["value"], partial["value"], 12)
        assert (row.null_low, row.null_high) == (partial["null_low"], partial["null_high"])
        assert row.p_permutation == partial["p_permutation"]


def test_specificity_is_the_pivot_less_the_mean_of_wrong_languages(sources):
    frames = geometry_frames(sources, **QUICK)
    at = {"variant": "tuned", "layer": 0, "measure": "cka"}
    row = rows(frames["specificity"], language="de", **at).iloc[0]
    right = rows(frames["similarity"], language="de", other="en", **at)["value"].item()
    wrong = rows(frames["similarity"], language="de", other="sw", **at)["value"].item()
    assert [row["pivot"], row["wrong_language"], row["value"]] == pytest.approx([right, wrong, right - wrong])
    assert row["low"] < row["value"] < row["high"]
    assert "en" not in set(frames["specificity"]["language"])


def test_specificity_tells_coming_to_the_pivot_from_coming_together(random):
    meaning, own = random.normal(size=(30, 10)), random.normal(size=(4, 30, 10))
    codes = ["en", "de", "sw", "zh"]

    def variant(shares: list[float]) -> dict[str, ArrayStates]:
        return {c: arrays((s * meaning + o)[None]) for c, s, o in zip(codes, shares, own, strict=True)}

    together = geometry_frames({"base": variant([0, 0, 0, 0]), "tuned": variant([1.5] * 4)}, **QUICK)["specificity"]
    to_pivot = geometry_frames({"base": variant([1.5, 0, 0, 0]), "tuned": variant([1.5, 1.5, 0, 0])}, **QUICK)
    for frame, clear in ((together, False), (to_pivot["specificity"], True)):
        row = rows(frame, variant="difference", measure="cka", language="de").iloc[0]
        assert row["pivot"] > 0.3
        assert (row["low"] > 0) == clear


def test_the_probe_of_all_is_the_mean_over_languages(two_variants, sources):
    probe = geometry_frames(sources, seed=3, **QUICK)["probe"]
    hits = {v: probe_hits(np.stack([s[2] for s in of.values()]), seed=3) for v, of in two_variants.items()}
    hits["difference"] = hits["tuned"] - hits["base"]
    counts = item_counts(12, 50, 3)
    for variant, of_items in hits.items():
        found = rows(probe, variant=variant, layer=2)
        assert found["language"].tolist() == ["all", "de", "en", "sw"]
        assert found["value"].tolist() == pytest.approx([of_items.mean(), *of_items.mean(1)])
        low, high = interval(counts @ of_items.mean(0) / 12)
        assert found.iloc[0][["low", "high"]].tolist() == pytest.approx([low, high])
    assert set(probe["chance"]) == {1 / 3}


def test_items_are_matched_by_id_and_others_are_told(random, caplog):
    values = random.normal(size=(1, 10, 6))
    english = arrays(values)
    places = [9, 2, 3, 0, 1, 7, 8, 4]
    ids = [*(f"i{k}" for k in places), "i77"]
    german = arrays(np.concatenate([values[:, places] + 0.1, np.full((1, 1, 6), 100.0)], 1), ids)
    with caplog.at_level(logging.WARNING, "glotlift"):
        found = geometry_frames({"base": {"en": english, "de": german}}, **QUICK)
    assert "2 items are not there in every language" in caplog.text
    retrieval = rows(found["similarity"], measure="retrieval").iloc[0]
    assert retrieval["n"] == 8 and retrieval["value"] == 1
    assert rows(found["similarity"], measure="pc1_r")["value"].item() == pytest.approx(1)
    assert len(rows(found["pca"], language="de")) == 9


def test_files_arrays_and_half_precision_memory_maps_give_the_same(two_variants, tmp_path):
    base = two_variants["base"]
    of_arrays = geometry_frames({"base": {c: arrays(s) for c, s in base.items()}}, **QUICK)
    of_files = geometry_frames({"base": {c: saved(tmp_path, c, s) for c, s in base.items()}}, **QUICK)
    maps = {}
    for code, states in base.items():
        maps[code] = np.memmap(tmp_path / code, np.float16, "w+", shape=states.shape)
        maps[code][:] = states
    of_maps = geometry_frames({"base": {c: arrays(s) for c, s in maps.items()}}, **QUICK)
    for name in ("similarity", "explained"):
        pd.testing.assert_frame_equal(of_files[name], of_arrays[name], atol=1e-5)
        values = of_arrays[name].select_dtypes("number").columns.drop(["p_permutation"], errors="ignore")
        np.testing.assert_allclose(of_maps[name][values], of_arrays[name][values], atol=0.02)


def test_the_draws_depend_on_the_seed_alone(sources):
    first, again, other = (geometry_frames(sources, seed=seed, **QUICK)["similarity"] for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["null_low"], other["null_low"]) and not np.allclose(first["low"], other["low"])
    np.testing.assert_allclose(first["value"], other["value"], atol=1e-9)


def test_faults_are_told_in_a_sentence(random):
    states = random.normal(size=(1, 7, 3))
    with pytest.raises(DataError, match="got states of shape .1, 7, 3. with 2 ids and 7 lengths"):
        ArrayStates(states, ["a", "b"], [1] * 7)
    with pytest.raises(DataError, match="base, en has an id twice"):
        geometry_frames({"base": {"en": arrays(states, ["i1"] * 7)}})
    with pytest.raises(DataError, match="got the languages en of tuned, expected those of base, en de"):
        geometry_frames({"base": {"en": arrays(states), "de": arrays(states)}, "tuned": {"en": arrays(states)}})


def test_files_are_written_once_for_the_same_states(two_variants, tmp_path):
    files = {v: {c: saved(tmp_path, f"{v}-{c}", s) for c, s in of.items()} for v, of in two_variants.items()}
    target = tmp_path / "geometry"
    assert write_geometry(target, files, **QUICK)
    assert not write_geometry(target, files, **QUICK)
    for name, frame in geometry_frames(files, **QUICK).items():
        written, metadata = read_parquet(target / f"{name}.parquet")
        pd.testing.assert_frame_equal(written, frame)
        assert metadata["pivot"] == "en"
    assert write_geometry(target, files, seed=1, **QUICK)
    (target / "probe.parquet").unlink()
    assert write_geometry(target, files, seed=1, **QUICK)


def test_the_pivot_is_english_where_there_is_english_and_stands_second():
    assert pivot_of(["de", "en"]) == "en"
    assert pivot_of(["sw", "de"]) == "sw"
    assert pairs_of(["en", "de", "sw"]) == [(1, 0), (2, 0), (1, 2)]
    assert pairs_of(["en"]) == []


def test_an_interval_is_exact_where_no_item_varies():
    draws = np.stack([np.ones(100), np.arange(100) / 100], 1)
    low, high = interval(draws, ends=(0.0, 1.0), n_items=20)
    assert [low[0], high[0]] == pytest.approx([0.025 ** (1 / 20), 1])
    assert [low[1], high[1]] == pytest.approx(np.quantile(draws[:, 1], [0.025, 0.975]).tolist())
    low, high = interval(np.zeros(100), ends=(-1.0, 1.0), n_items=6)
    assert [low, high] == pytest.approx([-(1 - 0.025 ** (1 / 6)), 1 - 0.025 ** (1 / 6)])


def test_undefined_draws_are_beyond_both_ends():
    draws = np.stack([np.arange(1000.0)] * 2, 1)
    draws[:10, 0], draws[:40, 1] = np.nan, np.nan
    low, high = interval(draws)
    assert [low[0], high[0]] == pytest.approx([10 + 14, 999 - 14], abs=1)
    assert np.isnan([low[1], high[1]]).all()


def test_p_counts_both_sides_and_itself():
    null = np.array([[0.1, 0.5], [-0.4, 0.2], [np.nan, 0.1]])
    assert null_share(np.array([0.3, np.nan]), null)[0] == 2 / 3
    assert np.isnan(null_share(np.array([0.3, np.nan]), null)[1])


def test_a_resample_draws_as_many_items_as_there_are():
    counts = item_counts(9, 500, 0)
    assert (counts.sum(1) == 9).all() and (counts == 0).any()
    assert (np.sort(item_orders(9, 20, 0), 1) == np.arange(9)).all()


def test_layers_are_read_in_the_order_of_the_first_source(sources):
    found = parallel(sources)
    states = sources["base"]["de"].array
    np.testing.assert_array_equal(found.layer("base", 2)[0], states[2])
    assert found.lengths("base").shape == (3, 12) and found.n_states == 3
