from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from glotlift.explanation.geometry import ArrayStates
from glotlift.explanation.item_link import LINK_COLUMNS, earlier_crossover, item_link, movement
from tests.explanation.test_lens_summary import write_lens

CODES = ["de", "sw", "th"]


@pytest.fixture
def random():
    return np.random.default_rng(2)


def frames(values: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the two inputs from arrays of *shape* (items, languages)."""
    at = [(code, f"i{k:03}") for k in range(len(values)) for code in CODES]
    outcomes = pd.DataFrame(at, columns=["language", "id"]).assign(base=base.ravel(), tuned=tuned.ravel())
    outcomes["calibration"] = "none"
    quantities = pd.DataFrame(at, columns=["language", "id"]).assign(quantity="q", value=values.ravel())
    return outcomes, quantities.assign(layer=pd.array([pd.NA] * len(at), "Int64"))


def made(random, n: int = 60, link: float = 0.0):
    """Values, and which items base and tuned have right; `link` is what being right when tuned adds to a value."""
    shape = (n, len(CODES))
    tuned = random.normal(size=shape) > 0
    values = random.normal(size=shape) + link * tuned
    return values, random.random(shape) < 0.3, tuned


def test_means_and_differences_are_those_of_a_loop(random):
    values, base, tuned = made(random, 25, 0.5)
    values[3, 0] = np.nan
    values += [0.0, 50.0, -9.0]  # languages differ, which makes no link
    found = item_link(*frames(values, base, tuned)).set_index("language")
    total, weight = 0.0, 0.0
    for place, code in enumerate(CODES):
        groups = []
        for is_right in (True, False):
            chosen = [k for k in range(25) if not base[k, place] and tuned[k, place] == is_right]
            groups.append([values[k, place] for k in chosen if np.isfinite(values[k, place])])
        flipped, stayed = groups
        row = found.loc[code]
        assert (row["n_flipped"], row["n_stayed"]) == (len(flipped), len(stayed))
        assert [row["mean_flipped"], row["mean_stayed"]] == pytest.approx([np.mean(flipped), np.mean(stayed)])
        assert row["value"] == pytest.approx(np.mean(flipped) - np.mean(stayed))
        of_language = len(flipped) * len(stayed) / (len(flipped) + len(stayed))
        total, weight = total + of_language * row["value"], weight + of_language
    assert found.loc["all", "value"] == pytest.approx(total / weight)
    assert found.loc["all", "n_flipped"] == found.loc[CODES, "n_flipped"].sum()
    assert found.reset_index().columns.tolist() == ["language", *(c for c in LINK_COLUMNS if c != "language")]
    assert found["layer"].isna().all()


def test_each_calibration_has_its_own_items(random):
    values, base, tuned = made(random, 25)
    raw, quantities = frames(values, base, tuned)
    calibrated = frames(values, ~base, ~tuned)[0].assign(calibration="batch")
    both = item_link(pd.concat([raw, calibrated], ignore_index=True), quantities)
    for outcomes, name in ((raw, "none"), (calibrated, "batch")):
        alone = item_link(outcomes, quantities)
        assert set(alone["calibration"]) == {name}
        found = both[both["calibration"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, alone)
    assert both["n_flipped"].nunique() > 2


def test_a_link_is_found_and_its_interval_holds_it(random):
    found = item_link(*frames(*made(random, link=1.0))).set_index("language").loc["all"]
    assert found["low"] < 1.0 < found["high"] and found["low"] > 0.4
    assert found["p"] < 0.001
    against = item_link(*frames(*made(random, link=-1.0))).set_index("language").loc["all"]
    assert against["high"] < 0 and against["p"] < 0.001


def test_p_is_the_share_of_all_signs_of_what_items_add():
    random = np.random.default_rng(4)
    tuned = random.random((12, 2)) < 0.25
    values = random.normal(size=(12, 2)) + 1.5 * tuned
    base = random.random((12, 2)) < 0.2
    scores = np.zeros(12)
    for place in (0, 1):
        wrong = ~base[:, place]
        flips, moves = tuned[wrong, place].astype(float), values[wrong, place]
        scores[wrong] += (flips - flips.mean()) * (moves - moves.mean())
    sums = np.array(list(product((-1, 1), repeat=12))) @ scores
    expected = (np.abs(sums) >= abs(scores.sum()) - 1e-12).mean()
    never = np.ones((12, 1), bool)  # a third language in which base has all right
    found = item_link(*frames(*(np.hstack([table, never]) for table in (values, base, tuned))))
    assert found.set_index("language").loc["all", "p"] == pytest.approx(expected, abs=0.01)


def test_items_and_their_translations_count_once(random):
    copies = [np.repeat(table[:, :1], len(CODES), 1) for table in made(random, 30, link=1.0)]
    found = item_link(*frames(*copies)).set_index("language")
    bounds = ["value", "low", "high", "p"]
    assert found.loc["all", bounds].tolist() == pytest.approx(found.loc["de", bounds].tolist())
    assert 0.001 < found.loc["all", "p"] < 0.5


def test_without_a_link_p_is_even(random, monkeypatch):
    monkeypatch.setattr("glotlift.explanation.item_link.N_SIGN_FLIPS", 300)
    runs = [item_link(*frames(*made(random, 30)), seed=k, n_resamples=20) for k in range(40)]
    p = pd.concat(runs).query("language != 'all'")["p"]
    assert len(p) == 120 and (p < 0.05).mean() < 0.12 and (p < 0.5).mean() == pytest.approx(0.5, abs=0.15)


def test_few_items_have_no_interval_and_none_no_value(random):
    values, base, tuned = made(random, 12)
    base[:, 0], base[:, 1] = True, [False] * 4 + [True] * 8
    tuned[:4, 1] = [True, True, False, False]
    found = item_link(*frames(values, base, tuned)).set_index("language")
    assert found.loc["de", ["n_flipped", "n_stayed"]].tolist() == [0, 0]
    assert found.loc["de", ["mean_flipped", "value", "low", "p"]].isna().all()
    assert np.isfinite(found.loc["sw", "value"]) and np.isnan(found.loc["sw", "p"])
    assert item_link(*frames(values, np.ones_like(base), tuned))["value"].isna().all()


def states(variant: np.ndarray) -> dict[str, ArrayStates]:
    """Wrap states of *shape* (languages, layers, items, hidden) of en, de, sw."""
    ids = [f"i{k}" for k in range(variant.shape[2])]
    return {c: ArrayStates(each, ids, [4] * len(ids)) for c, each in zip(["en", "de", "sw"], variant, strict=True)}


def test_movement_is_the_change_of_the_cosine_with_the_translation(random):
    base, tuned = random.normal(size=(2, 3, 2, 9, 5))
    found = movement({"base": states(base), "tuned": states(tuned + 7)})  # a step of all items counts for nothing
    assert len(found) == 2 * 3 * 9
    changes = []
    for layer in range(2):
        near = []
        for variant in (base, tuned):
            centred = variant[:, layer] - variant[:, layer].mean(1, keepdims=True)
            x, y = centred[2, 4], centred[0, 4]
            near.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        row = found.query(f"quantity == 'towards_pivot' and layer == {layer} and language == 'sw' and id == 'i4'")
        changes.append(near[1] - near[0])
        assert row["value"].item() == pytest.approx(changes[-1])
    mean = found.query("quantity == 'towards_pivot_mean' and language == 'sw' and id == 'i4'")
    assert mean["value"].item() == pytest.approx(np.mean(changes)) and mean["layer"].isna().all()


def test_items_that_flip_are_those_that_moved(random):
    """From states and prediction files to a verdict."""
    n, meaning = 40, random.normal(size=(1, 40, 6))
    base, tuned = random.normal(size=(2, 3, 1, n, 6))
    base[0], tuned[0] = meaning, meaning
    right = random.random((n, 3)) < 0.5
    for place in (1, 2):
        tuned[place, 0, right[:, place]] += 2 * meaning[0, right[:, place]]
    of = {"base": states(base), "tuned": states(tuned)}
    at = [(code, f"i{k}", False, right[k, place]) for place, code in ((1, "de"), (2, "sw")) for k in range(n)]
    outcomes = pd.DataFrame(at, columns=["language", "id", "base", "tuned"]).assign(calibration="batch")
    found = item_link(outcomes, movement(of)).query("language == 'all'")
    assert found["quantity"].tolist() == ["towards_pivot", "towards_pivot_mean"]
    assert (found["low"] > 0.3).all() and (found["p"] < 0.001).all()


def test_an_earlier_crossover_is_counted_in_layers_an_item(tmp_path):
    english = [[0.0, 0.3, 0.3, 0.1], [0.0, 0.3, 0.3, 0.3]]  # own words take over on layer 3, and never
    own = [[0.0, 0.0, 0.1, 0.6], [0.0, 0.0, 0.0, 0.0]]
    earlier = [[0.0, 0.6, 0.6, 0.6], [0.0, 0.6, 0.6, 0.6]]
    write_lens(tmp_path, "de", "base", english_mass=english, own_mass=own)
    write_lens(tmp_path, "de", "tuned", english_mass=[[0.3, 0.3, 0.3, 0.1]] * 2, own_mass=earlier)
    write_lens(tmp_path, "th", "base", english_mass=english, own_mass=own)  # of an earlier run, without a tuned one
    found = earlier_crossover(tmp_path, "t", ["de"])
    assert found.columns.tolist() == ["quantity", "layer", "language", "id", "value"]
    assert found["id"].tolist() == ["0", "1"] and found["layer"].isna().all()
    assert found["value"].iloc[0] == 2.0 and np.isnan(found["value"].iloc[1])
