"""Paired statistics against hand-computed values, brute force and the normal approximation."""

from itertools import permutations
from math import comb

import numpy as np
import pandas as pd
import pytest

from glotlift.errors import DataError
from glotlift.evaluation import compare
from glotlift.evaluation.compare import compare_group, compare_languages, correctness, holm, mcnemar


def predictions(predicted: str, gold: str, names: list[str] | None = None) -> pd.DataFrame:
    """Return the columns of a prediction file that pairing reads; one letter an item."""
    return pd.DataFrame(
        {"id": names or [f"i{k}" for k in range(len(gold))], "gold": [*gold], "predicted": [*predicted]}
    )


def paired(a: list[int], b: list[int], start: int = 0) -> pd.DataFrame:
    index = [f"i{k}" for k in range(start, start + len(a))]
    return pd.DataFrame({"a": np.array(a, bool), "b": np.array(b, bool)}, index=index)


def random_pairs(seed: int, n: int, a: float = 0.6, b: float = 0.7) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return paired(random.random(n) < a, random.random(n) < b)


# --- pairing


def test_items_are_paired_by_id():
    a = predictions("xyx", "xxy", ["1", "2", "3"])
    b = predictions("xyy", "xyx", ["2", "3", "1"])
    found = correctness(a, b, "de")
    assert list(found.index) == ["1", "2", "3"]
    assert list(found["a"]) == [True, False, False]
    assert list(found["b"]) == [False, True, True]


def test_other_items_are_refused():
    a = predictions("xxx", "xxx", ["1", "2", "3"])
    with pytest.raises(DataError, match=r"sentiment, de: 2 items are in one evaluation only \(such as '3'\)"):
        correctness(a, predictions("xxx", "xxx", ["1", "2", "4"]), "sentiment, de")
    with pytest.raises(DataError, match="de: 1 items are in one evaluation only"):
        correctness(a, predictions("xx", "xx", ["1", "2"]), "de")
    with pytest.raises(DataError, match="de: item '2' has two gold labels, expected the same data in both"):
        correctness(a, predictions("xxx", "xyx", ["1", "2", "3"]), "de")


# --- tests of significance


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (0, 1), (3, 3), (1, 8), (10, 2), (0, 20)])
def test_mcnemar_is_the_two_sided_binomial_of_the_items_that_differ(worse, better):
    a = [1] * worse + [0] * better + [1, 1, 0]
    b = [0] * worse + [1] * better + [1, 1, 0]
    n = worse + better
    tail = sum(comb(n, k) for k in range(min(worse, better) + 1)) / 2**n
    assert mcnemar(paired(a, b)) == pytest.approx(min(1, 2 * tail))
    assert mcnemar(paired(a, b)) == mcnemar(paired(b, a))


def holm_by_definition(p_values: list[float]) -> list[float]:
    """The smallest level at which Holm's procedure rejects each hypothesis, by trying levels."""
    levels = sorted({0.0, 1.0, *(min(1.0, p * k) for p in p_values for k in range(1, len(p_values) + 1))})
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])

    def rejected(level: float) -> set[int]:
        found = set()
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            found.add(index)
        return found

    return [next((x for x in levels if i in rejected(x)), 1.0) for i in range(len(p_values))]


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_its_definition(seed):
    random = np.random.default_rng(seed)
    p_values = list(random.random(random.integers(1, 8)) ** random.integers(1, 5))
    assert holm(p_values) == pytest.approx(holm_by_definition(p_values))


def test_holm_by_hand_and_in_any_order():
    """Holm 1979: 0.01 x 4, 0.02 x 3, then never less than the one before."""
    for order in permutations(range(4)):
        p_values, expected = [0.01, 0.02, 0.022, 0.9], [0.04, 0.06, 0.06, 0.9]
        assert holm([p_values[i] for i in order]) == pytest.approx([expected[i] for i in order])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_p_values_are_corrected_over_all_languages():
    found = compare_languages({"de": paired([0] * 9, [1] * 9), "sw": paired([1, 0] * 5, [1, 0] * 5)})
    assert [change.name for change in found] == ["de", "sw"]
    assert found[0].p == pytest.approx(2 / 2**9)
    assert found[0].p_holm == pytest.approx(4 / 2**9)
    assert (found[1].p, found[1].p_holm) == (1.0, 1.0)


# --- intervals


def test_a_change_is_what_it_is_called():
    change = compare_languages({"de": paired([1, 1, 0, 0], [1, 0, 1, 1])})[0]
    assert (change.n, change.a, change.b, change.change, change.languages) == (4, 0.5, 0.75, 0.25, 1)
    assert change.low <= change.change <= change.high


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_as_wide_as_the_normal_approximation(seed):
    pairs = random_pairs(seed, 400)
    change = compare_languages({"de": pairs})[0]
    gain = pairs["b"].to_numpy(float) - pairs["a"].to_numpy(float)
    half = 1.959964 * gain.std() / np.sqrt(len(gain))
    assert change.high - change.low == pytest.approx(2 * half, rel=0.06)
    assert (change.high + change.low) / 2 == pytest.approx(gain.mean(), abs=0.1 * half)


@pytest.mark.parametrize("seed", range(3))
def test_pairing_makes_the_interval_narrower(seed):
    """Two evaluations that agree on nearly all items differ by little, however hard the items are."""
    random = np.random.default_rng(seed)
    a = random.random(300) < 0.5
    b = a ^ (random.random(300) < 0.02)
    change = compare_languages({"de": paired(a, b)})[0]
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.25 / 300)
    assert change.high - change.low < 0.35 * unpaired


def test_copies_of_a_language_tell_nothing_new():
    """Items are drawn with all their translations, so 20 copies have the interval of one."""
    pairs = random_pairs(1, 150)
    one = compare_group("all", {"de": pairs})
    many = compare_group("all", {f"c{k}": pairs for k in range(20)})
    assert (many.low, many.high, many.change) == pytest.approx((one.low, one.high, one.change))
    assert many.languages == 20
    assert many.n == one.n == 150


def test_independent_languages_do_tell_something_new():
    one = compare_group("all", {"de": random_pairs(0, 150)})
    many = compare_group("all", {f"c{k}": random_pairs(k, 150) for k in range(16)})
    assert (many.high - many.low) == pytest.approx((one.high - one.low) / 4, rel=0.25)


def test_a_group_is_the_mean_of_its_languages():
    found = compare_group("all", {"de": paired([1, 1, 1, 1], [1, 1, 1, 1]), "sw": paired([0, 0], [1, 0])})
    assert (found.a, found.b, found.change) == (0.5, 0.75, 0.25)  # languages count alike, not items
    assert (found.n, found.languages, found.p) == (4, 2, None)


def test_languages_without_common_items_still_have_an_interval():
    found = compare_group("all", {"de": paired([1, 0] * 20, [1, 1] * 20), "sw": paired([1] * 30, [1, 0] * 15, 40)})
    assert found.n == 70
    assert found.low < found.change == 0.0 < found.high
    sure = compare_group("all", {"de": paired([0] * 40, [1] * 40), "sw": paired([0] * 30, [1] * 30, 40)})
    assert (sure.low, sure.change, sure.high) == (1.0, 1.0, 1.0)  # each language's mean is over the items it has


def test_draws_depend_on_the_seed_only():
    pairs = {"de": random_pairs(0, 60), "sw": random_pairs(1, 60)}
    first = compare_languages(pairs, seed=3)
    compare_languages({"de": random_pairs(2, 50)}, seed=4)  # other draws in between
    assert compare_languages(pairs, seed=3) == first
    assert (compare._resamples(60, 3) != compare._resamples(60, 4)).any()
    alone = compare_languages({"sw": pairs["sw"]}, seed=3)[0]
    assert (alone.low, alone.high) == (first[1].low, first[1].high)


def test_resamples_are_multinomial_draws():
    drawn = compare._resamples(12, 5)
    expected = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), compare.N_RESAMPLES)
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("low", "high", "clear"), [(-0.1, 0.1, False), (0.0, 0.1, False), (0.01, 0.1, True), (-2, -1, True)]
)
def test_a_change_is_clear_where_its_interval_leaves_out_zero(low, high, clear):
    assert compare.Change("de", 1, 0, 0, 0, low, high).is_clear == clear
