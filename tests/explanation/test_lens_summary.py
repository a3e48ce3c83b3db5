from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from glotlift.explanation.lens import MEASURES
from glotlift.explanation.lens_summary import (
    FLOOR,
    PIVOT_COLUMNS,
    SUMMARY_COLUMNS,
    crossover,
    pivot_frame,
    pivot_summary,
    pivots,
    read_lens,
    summarise_lens,
)
from glotlift.runs import write_parquet


def write_lens(folder, language: str, variant: str = "base", **measures) -> None:
    """Write a lens file from measures, an inner list an item."""
    shape = np.shape(next(iter(measures.values())))
    values = {name: np.asarray(measures.get(name, np.zeros(shape)), float) for name in MEASURES}
    rows = [
        (str(i), layer, *(of[i, layer] for of in values.values())) for i in range(shape[0]) for layer in range(shape[1])
    ]
    frame = pd.DataFrame(rows, columns=["id", "layer", *MEASURES])
    sizes = {"english": 3, "own": 0, "shared": 1, "ambiguous": 2, "partial": 0}
    about = {"variant": variant, "task": "t", "language": language, "coverage": {"n_tokens": sizes}}
    write_parquet(folder / "lens" / variant / "t" / f"{language}.parquet", frame, about)


def test_the_summary_has_means_with_their_bands(tmp_path):
    bits = [[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]]
    write_lens(tmp_path, "de", entropy_bits=bits, english_mass=[[0.5, 0.9], [0.99, 0.9], [0.99, 0.9]])
    summary = summarise_lens(tmp_path)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    assert len(summary) == 2 * len(MEASURES)
    found = summary[summary["measure"] == "entropy_bits"].set_index("layer")
    low, high = student.interval(0.95, 2, 3.0, np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    assert found.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([3.0, max(low, 0), high])
    assert found.loc[1, ["mean", "low", "high", "n"]].tolist() == [4.0, 4.0, 4.0, 3]
    english = summary[summary["measure"] == "english_mass"].iloc[0]
    assert english["high"] == 1.0 and english["n_tokens"] == 3  # a mass is at most 1
    assert set(summary.loc[summary["measure"] == "own_mass", "n_tokens"]) == {0}


def test_the_summary_of_one_item_has_no_band_and_of_no_file_no_rows(tmp_path):
    assert summarise_lens(tmp_path).empty and read_lens(tmp_path).empty and pivot_summary(tmp_path).empty
    write_lens(tmp_path, "de", entropy_bits=[[1.0]])
    summary = summarise_lens(tmp_path)
    assert summary["low"].isna().all() and summary["mean"].notna().all()


@pytest.mark.parametrize(
    ("english", "own", "layer", "is_pivot"),
    [
        ([0.0, 0.3, 0.3, 0.1], [0.0, 0.0, 0.1, 0.6], 3, 1),  # English first, then own
        ([0.0, 0.3, 0.1, 0.1], [0.0, 0.0, 0.1, 0.6], 2, 1),  # own has as much
        ([0.0, 0.3, 0.1, 0.3], [0.0, 0.0, 0.6, 0.1], None, 1),  # and back again
        ([0.0, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0], None, 1),  # never crosses
        ([0.0, 0.0, 0.1, 0.1], [0.0, 0.3, 0.3, 0.6], None, 0),  # own from the beginning
        ([0.0, 0.005, 0.0, 0.0], [0.0, 0.0, 0.3, 0.6], None, 0),  # English below the floor is noise
        ([0.0, 0.3, 0.001, 0.0], [0.0, 0.0, 0.002, 0.005], None, 1),  # own words are not read at the end
        ([0.0, 0.001, 0.0, 0.0], [0.0, 0.0, 0.002, 0.005], None, None),  # nothing is read
    ],
)
def test_crossover_and_pivot_of_a_curve(english, own, layer, is_pivot):
    assert FLOOR == 0.01
    curves = np.array([english]), np.array([own])
    for found, expected in ((crossover(*curves), layer), (pivots(*curves), is_pivot)):
        assert found.shape == (1,)
        assert np.isnan(found[0]) if expected is None else found[0] == expected


def random_curves(seed: int, n: int = 12, at: int = 3) -> dict[str, np.ndarray]:
    """Curves of items, a third of which answer in their own language first; the others cross near a layer."""
    random = np.random.default_rng(seed)
    layers = np.arange(6)[None]
    cross = at + random.integers(0, 2, (n, 1))
    english = np.where(layers < cross, 0.7, 0.05) * (layers > 0) * random.uniform(0.5, 1, (n, 1))
    own = np.where(layers < cross, 0.02, 0.5) * (layers > 0)
    english[::3, 1], own[::3, 1] = 0.1, 0.5
    return {"english_mass": english, "own_mass": own}


def at_language(found: pd.DataFrame, language: str = "de") -> pd.DataFrame:
    """Rows of a language that are of no single layer, by variant and measure."""
    return found[(found["language"] == language) & found["layer"].isna()].set_index(["variant", "measure"])


def test_shares_and_layers_have_bootstrap_intervals_and_a_paired_difference(tmp_path):
    base, tuned = random_curves(1), random_curves(2, at=2)
    write_lens(tmp_path, "de", **base)
    write_lens(tmp_path, "de", "tuned", **tuned)
    write_lens(tmp_path, "en", english_mass=base["english_mass"])
    found = pivot_summary(tmp_path)
    assert tuple(found.columns) == PIVOT_COLUMNS
    assert set(found["language"]) == {"de", "all"} and len(found) == 2 * 3 * (3 + 6)
    value = at_language(found)
    assert value.loc[("base", "pivot_share"), "value"] == pytest.approx(8 / 12)
    for variant, of in (("base", base), ("tuned", tuned)):
        means = (of["english_mass"].mean(0)[None], of["own_mass"].mean(0)[None])
        assert value.loc[(variant, "crossover_layer"), "value"] == crossover(*means)[0]
        assert value.loc[(variant, "crossover_share"), "value"] == np.isfinite(crossover(*of.values())).mean()
    layers = value.xs("crossover_layer", level="measure")["value"]
    assert layers["difference"] == layers["tuned"] - layers["base"] < 0
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    random = np.random.default_rng(0)
    drawn = pivots(*base.values())[random.integers(0, 12, (4000, 12))].mean(1)
    row = value.loc[("base", "pivot_share")]
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(drawn, [0.025, 0.975]), atol=0.09)
    assert (value["n"] == 12).all() and (value["n_read"] == 12).all()


def test_every_layer_has_the_share_of_items_that_it_answers_in_english(tmp_path):
    base, tuned = random_curves(1), random_curves(2, at=2)
    base["english_mass"][:, 5], base["own_mass"][:, 5] = FLOOR / 2, 0  # English leads, and says nothing
    write_lens(tmp_path, "de", **base)
    write_lens(tmp_path, "de", "tuned", **tuned)
    found = pivot_summary(tmp_path).query("language == 'de' and measure == 'english_share'")
    assert found.groupby("variant")["layer"].apply(list).tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    of = found.set_index(["variant", "layer"])["value"].unstack("layer")
    leads = (base["english_mass"] > base["own_mass"]).mean(0)
    assert of.loc["base"].tolist() == pytest.approx([*leads[:5], 0.0]) and 0 < leads[3] < 1
    assert of.loc["difference"].to_numpy() == pytest.approx((of.loc["tuned"] - of.loc["base"]).to_numpy())


def test_all_is_the_mean_over_languages_and_an_item_with_its_translations_counts_once(tmp_path):
    one, other = random_curves(1), random_curves(2)
    other = {name: 0.5 * values for name, values in other.items()}
    for code, of in (("de", one), ("th", other)):
        write_lens(tmp_path, code, **of)
    write_lens(tmp_path, "sv", english_mass=one["english_mass"])  # own words are spelled like the English ones
    found = pivot_summary(tmp_path)
    of_all, german, thai = (at_language(found, code) for code in ("all", "de", "th"))
    for name in ("pivot_share", "crossover_share"):
        mean = (german.loc[("base", name), "value"] + thai.loc[("base", name), "value"]) / 2
        assert of_all.loc[("base", name), "value"] == pytest.approx(mean)
    mean_curves = [(one[name] + other[name]).mean(0)[None] for name in ("english_mass", "own_mass")]
    assert of_all.loc[("base", "crossover_layer"), "value"] == crossover(*mean_curves)[0]
    assert of_all.loc[("base", "pivot_share"), "n"] == 12
    for code in ("de", "nl"):  # the same answers twice know no more than once
        write_lens(tmp_path / "twice", code, **one)
    twice = pivot_summary(tmp_path / "twice")
    columns = ["value", "low", "high", "n"]
    pd.testing.assert_frame_equal(at_language(twice, "all")[columns], at_language(twice, "de")[columns])


def test_only_items_that_both_variants_have_are_subtracted(tmp_path):
    """A tuned model of an earlier run, on other items, lies in the same folder."""
    base, tuned = random_curves(1, n=4), random_curves(2, n=6)
    tuned["english_mass"][4:], tuned["own_mass"][4:] = 0.0, 0.9
    write_lens(tmp_path, "de", **base)
    write_lens(tmp_path, "de", "tuned", **tuned)
    value = at_language(pivot_summary(tmp_path))
    four = pivots(tuned["english_mass"][:4], tuned["own_mass"][:4]).mean() - pivots(*base.values()).mean()
    assert value.loc[("difference", "pivot_share"), "value"] == pytest.approx(four)
    assert value.loc[:, "n"].groupby("variant").first().to_dict() == {"base": 4, "difference": 4, "tuned": 6}
    frame = read_lens(tmp_path)
    other_items = frame.assign(id=frame["id"].where(frame["variant"] == "base", "x" + frame["id"]))
    assert set(pivot_frame(other_items)["variant"]) == {"base", "tuned"}
    other_model = frame[(frame["variant"] == "base") | (frame["layer"] < 4)]
    assert set(pivot_frame(other_model)["variant"]) == {"base", "tuned"}


def test_an_item_without_a_reading_is_counted(tmp_path):
    of = random_curves(1)
    of["english_mass"][0] = of["own_mass"][0] = 0
    write_lens(tmp_path, "de", **of)
    row = at_language(pivot_summary(tmp_path)).loc[("base", "pivot_share")]
    assert (row["n"], row["n_read"]) == (12, 11) and row["value"] == pytest.approx(8 / 12)


def test_without_own_tokens_there_is_nothing_to_compare(tmp_path):
    write_lens(tmp_path, "sv", english_mass=[[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    found = pivot_summary(tmp_path)
    assert set(found["language"]) == {"sv"} and len(found) == 3 + 3
    assert found[["value", "low", "high"]].isna().all(axis=None) and (found["n"] == 2).all()
