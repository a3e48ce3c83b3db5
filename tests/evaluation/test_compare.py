"""Paired statistics against hand-computed values, brute force, the normal approximation and simulated truth."""

from dataclasses import replace
from itertools import permutations
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax
from scipy.stats import binomtest, kstest, norm

from glotlift import intervals
from glotlift.errors import DataError
from glotlift.evaluation import compare
from glotlift.evaluation.compare import (
    compare_auroc,
    compare_ece,
    compare_group,
    compare_languages,
    group_auroc,
    group_ece,
    group_mean,
    holm,
    mcnemar,
)
from glotlift.evaluation.consistency import consistency
from glotlift.evaluation.metrics import calibration_gaps, expected_calibration_error
from glotlift.evaluation.pairing import Paired, correctness, text_digest, text_of
from glotlift.measures import auroc
from glotlift.tasks.task import Item


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


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 200)
    intervals.resamples.cache_clear()
    yield
    intervals.resamples.cache_clear()


def test_a_change_of_no_item_is_told_from_changes_that_cancel_out():
    one = random_scored(0, 60)
    same, opposite = replace(one, b=one.a), replace(one, a=one.b, b=one.a)
    for grouped in (group_auroc, group_ece):
        assert not grouped("all", {"de": same, "sw": same}).moved
        assert grouped("all", {"de": same, "sw": one}).moved
        cancelled = grouped("all", {"de": one, "sw": opposite})
        assert (cancelled.change, cancelled.moved) == (pytest.approx(0), True)
    up, down, still = paired([0, 1] * 9, [1, 1] * 9), paired([1, 1] * 9, [0, 1] * 9), paired([0, 1] * 9, [0, 1] * 9)
    assert [change.moved for change in compare_languages({"de": up, "sw": still})] == [True, False]
    cancelled = compare_group("all", {"de": up, "sw": down})
    assert (cancelled.change, cancelled.moved) == (0, True)


# --- pairing


def test_items_are_paired_by_id():
    a = predictions("xyx", "xxy", ["1", "2", "3"])
    b = predictions("xyy", "xyx", ["2", "3", "1"])
    found = correctness(a, b, "de")
    assert list(found.index) == ["1", "2", "3"]
    assert list(found["a"]) == [True, False, False]
    assert list(found["b"]) == [False, True, True]


def test_other_items_are_refused():
    """The first ones of each side are named, in the order of its file."""
    a = predictions("xxx", "xxx", ["1", "2", "3"])
    for b, got in (
        (["1", "2", "4"], "1 item ('3') in A only and 1 item ('4') in B only"),
        (["2"], "2 items ('1', '3') in A only"),
        ([*"1234987"], "4 items ('4', '9', '8', ...) in B only"),
    ):
        with pytest.raises(DataError) as caught:
            correctness(a, predictions("x" * len(b), "x" * len(b), b), "sentiment, de")
        assert str(caught.value) == f"sentiment, de: got {got}, expected the same items in both"
    with pytest.raises(DataError, match="de: item '2' has two gold labels, expected the same data in both"):
        correctness(a, predictions("xxx", "xyx", ["1", "2", "3"]), "de")


def test_files_that_hold_no_predictions_are_refused():
    """Parquet files of the logit lens, for one."""
    a = predictions("xxx", "xxx", ["1", "2", "3"])
    with pytest.raises(
        DataError, match="^de: got no gold or predicted in B, which has id, layer, expected predictions$"
    ):
        correctness(a, pd.DataFrame({"id": ["1"], "layer": [0]}), "de")


def test_other_texts_under_one_id_are_refused():
    """Where both files say what their texts are; those of glotlift 0.1 do not."""
    a = predictions("xxx", "xxx", ["1", "2", "3"]).assign(text_digest=["p", "q", "r"])
    b = predictions("xxx", "xxx", ["3", "1", "2"]).assign(text_digest=["r", "p", "Q"])
    with pytest.raises(DataError, match="^mood, de: item '2' has two texts, expected the same data in both$"):
        correctness(a, b, "mood, de")
    assert len(correctness(a, b.drop(columns="text_digest"), "mood, de")) == 3
    assert len(correctness(a, b.replace("Q", "q"), "mood, de")) == 3


def test_an_id_that_stands_twice_is_refused():
    a, b = predictions("xx", "xx", ["1", "2"]), predictions("xxx", "xxx", ["1", "2", "1"])
    with pytest.raises(DataError, match="^de: got the id '1' twice in tuned, expected every item once$"):
        correctness(a, b, "de", ("base", "tuned"))


def test_the_digest_of_a_text_tells_fields_apart():
    first = Item("1", {"premise": "a\nb", "hypothesis": "c"}, "yes")
    same = Item("2", {"hypothesis": "c", "premise": "a\nb"}, "no")
    other = Item("1", {"premise": "a", "hypothesis": "b\nc"}, "yes")
    assert text_of(first) == text_of(other) == "a\nb\nc"
    assert text_digest(first) == text_digest(same) != text_digest(other)


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
    assert (sure.change, sure.high) == (1.0, 1.0)  # each language's mean is over the items it has
    assert sure.low == pytest.approx(2 * 0.025 ** (1 / 30) - 1)  # and is known as well as the least known one


def test_draws_depend_on_the_seed_only():
    pairs = {"de": random_pairs(0, 60), "sw": random_pairs(1, 60)}
    first = compare_languages(pairs, seed=3)
    compare_languages({"de": random_pairs(2, 50)}, seed=4)  # other draws in between
    assert compare_languages(pairs, seed=3) == first
    assert (intervals.resamples(60, 3) != intervals.resamples(60, 4)).any()
    alone = compare_languages({"sw": pairs["sw"]}, seed=3)[0]
    assert (alone.low, alone.high) == (first[1].low, first[1].high)


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_resamples_draw_each_item_as_often_as_any_other(n):
    """Moments of the multinomial: mean 1, variance 1 - 1/n, covariance -1/n; every resample has n items."""
    drawn = intervals.resamples(n, 5).astype(float)
    assert drawn.shape == (intervals.N_RESAMPLES, n)
    assert (drawn.sum(1) == n).all()
    assert (drawn == np.round(drawn)).all()
    covariance = np.cov(drawn.T).reshape(n, n)
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(covariance, np.eye(n) - 1 / n, atol=0.1)
    assert len(np.unique(drawn, axis=0)) > intervals.N_RESAMPLES / 2 or n < 10


@pytest.mark.parametrize(
    ("low", "high", "clear"),
    [(-0.1, 0.1, False), (0.0, 0.1, False), (-0.1, 0.0, False), (0.01, 0.1, True), (-2, -1, True)],
)
def test_a_change_is_clear_where_its_interval_leaves_out_zero(low, high, clear):
    assert compare.Change("de", 6, 0, 0, 0, low, high).is_clear == clear


@pytest.mark.parametrize("n", range(1, 9))
def test_so_few_items_that_no_exact_test_is_significant_make_nothing_clear(n):
    change = compare_languages({"de": paired([0] * n, [1] * n)})[0]
    assert (change.low, change.high) == pytest.approx((2 * 0.025 ** (1 / n) - 1, 1.0))
    assert (change.low > 0) == change.is_clear == (change.p < 0.05) == (n >= 6)


# --- means over languages


def naive_group(tables: dict[str, pd.DataFrame], seed: int) -> np.ndarray:
    """Return the changes of all resamples, by loops: items are drawn with all their translations."""
    ids = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    changes = []
    for draw in intervals.resamples(len(ids), seed):
        per_language = []
        for table in tables.values():
            times = np.array([draw[ids.index(name)] for name in table.index])
            if times.sum():
                per_language.append(((table["b"].astype(float) - table["a"]) * times).sum() / times.sum())
        changes.append(np.mean(per_language))
    return np.array(changes)


@pytest.mark.usefixtures("few_resamples")
def test_the_interval_of_a_group_is_the_naive_bootstraps():
    tables = {"de": random_pairs(0, 30), "sw": random_pairs(1, 20), "th": random_pairs(2, 25)}
    tables["th"].index = [f"i{k}" for k in range(20, 45)]  # some items in common, some not
    found = compare_group("all", tables, seed=3)
    low, high = np.quantile(naive_group(tables, 3), [0.025, 0.975])
    assert (found.low, found.high, found.n) == pytest.approx((low, high, 45))


def test_group_mean_is_the_mean_of_accuracies_and_its_interval_knows_translations():
    random = np.random.default_rng(0)
    right = pd.Series(random.random(200) < 0.7, index=[f"i{k}" for k in range(200)])
    mean, low, high = group_mean({"de": right, "sw": right})
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 200)
    assert mean == pytest.approx(right.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    other = pd.Series(random.random(200) < 0.7, index=right.index)
    _, low_two, high_two = group_mean({"de": right, "sw": other})
    assert (high_two - low_two) / 2 == pytest.approx(half / np.sqrt(2), rel=0.12)
    assert group_mean({"de": right.iloc[:5] | True, "sw": right.iloc[:4] & False})[0] == 0.5


@pytest.mark.parametrize("n", [1, 2, 6, 40, 1000])
def test_a_mean_without_spread_is_known_as_well_as_its_items_tell(n):
    """All right in every language: Clopper and Pearson's bound of the source items, not an interval of no width."""
    exact = binomtest(n, n).proportion_ci(method="exact")
    right = {code: pd.Series(True, index=[f"i{k}" for k in range(n)]) for code in ("de", "sw", "th")}
    assert group_mean(right) == pytest.approx((1.0, exact.low, 1.0))
    wrong = {code: ~series for code, series in right.items()}
    assert group_mean(wrong) == pytest.approx((0.0, 0.0, 1 - exact.low))
    mean, low, high = group_mean({"de": right["de"], "sw": wrong["sw"]})
    assert (mean, low, high) == pytest.approx((0.5, exact.low / 2, 1 - exact.low / 2))
    turns = np.arange(n) % 2 == 0  # right in one language where it is wrong in the other
    mean, low, high = group_mean({"de": right["de"] & turns, "sw": right["de"] & ~turns})
    assert (mean, low, high) == pytest.approx((0.5, exact.low / 2, 1 - exact.low / 2))


@pytest.mark.parametrize("share", [0.9, 0.97, 0.995])
def test_exact_bounds_cover_the_truth_where_nothing_varied(share):
    """Of all samples in which every item is right, none leaves out the truth unless such samples are rare enough."""
    for n in (1, 5, 20, 80, 150):
        low, high = intervals.bounds(1.0, 1.0, n, intervals.SHARE)
        assert high == 1.0
        assert low <= share or share**n <= 0.025


def test_an_interval_that_has_a_width_is_left_as_it_is():
    assert intervals.bounds(0.2, 0.3, 5, intervals.SHARE) == (0.2, 0.3)
    assert intervals.bounds(0.5, 0.5 + 1e-15, 1, intervals.DIFFERENCE) == pytest.approx((-0.9625, 0.9875 + 0.0))


@pytest.mark.usefixtures("few_resamples")
def test_group_intervals_cover_the_truth_where_errors_go_together():
    """8 languages, whose errors on an item are mostly the item's; pairs taken as independent cover far too little."""
    random, covered, alone, n_runs = np.random.default_rng(0), 0, 0, 60
    for run in range(n_runs):
        intervals.resamples.cache_clear()
        hard, tables = random.normal(size=(2, 80)), {}
        for k in range(8):
            a, b = 0.9 * hard + 0.44 * random.normal(size=(2, 80))
            tables[f"c{k}"] = paired(a < 0.0, b < 0.5)  # 50 % and 69.1 %
        truth = norm.cdf(0.5 / np.hypot(0.9, 0.44)) - 0.5
        found = compare_group("all", tables, seed=run)
        covered += found.low <= truth <= found.high
        changes = np.concatenate([table["b"].astype(float) - table["a"] for table in tables.values()])
        alone += abs(found.change - truth) <= 1.96 * changes.std() / np.sqrt(len(changes))
    assert covered / n_runs >= 0.87
    assert alone / n_runs <= 0.8


# --- AUROC


def scored(a, b, gold, labels: str, start: int = 0) -> Paired:
    """Return paired scores. *Shapes:* (items, labels), (items, labels), (items,)."""
    ids = [f"i{k}" for k in range(start, start + len(gold))]
    renormalised = (log_softmax(np.asarray(each, float), axis=1) for each in (a, b))
    return Paired(ids, np.array(list(gold)), list(labels), *renormalised)


def random_scored(seed: int, n: int, labels: str = "ab", a: float = 0.7, b: float = 1.5, start: int = 0) -> Paired:
    """Return paired scores that tell labels apart by `a` and `b` and share half of their noise."""
    random = np.random.default_rng(seed)
    gold = random.permutation(np.arange(n) % len(labels))
    shared, *own = random.normal(size=(3, n, len(labels)))
    both = [0.7 * shared + 0.7 * each for each in own]
    for each, signal in zip(both, (a, b), strict=True):
        each[np.arange(n), gold] += signal
    return scored(*both, [labels[k] for k in gold], labels, start)


def delong_by_loops(pair: Paired) -> tuple[float, float]:
    """DeLong et al. 1988, equations 4 to 8 by double loops: the change of the area of two labels, and its variance."""
    odds = [scores[:, 0] - scores[:, 1] for scores in (pair.a, pair.b)]
    positive = np.flatnonzero(pair.gold == pair.labels[0])
    negative = np.flatnonzero(pair.gold != pair.labels[0])

    def kernel(x: float, y: float) -> float:
        return 1.0 if x > y else 0.5 if x == y else 0.0

    v10 = np.array([[np.mean([kernel(s[i], s[j]) for j in negative]) for i in positive] for s in odds])
    v01 = np.array([[np.mean([kernel(s[i], s[j]) for i in positive]) for j in negative] for s in odds])
    covariance = np.cov(v10) / len(positive) + np.cov(v01) / len(negative)
    contrast = np.array([-1, 1])
    return float(contrast @ v10.mean(1)), float(contrast @ covariance @ contrast)


def half_width(change: compare.Change) -> float:
    return (change.high - change.low) / 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_of_an_area_is_delongs(seed, ties):
    pair = random_scored(seed, 40 + 3 * seed)
    if ties:
        odds = [np.round(scores[:, 0] - scores[:, 1]) for scores in (pair.a, pair.b)]
        pair = Paired(pair.ids, pair.gold, pair.labels, *(np.stack([each / 2, -each / 2], 1) for each in odds))
    found = compare_auroc({"de": pair})[0]
    change, variance = delong_by_loops(pair)
    assert found.change == pytest.approx(change)
    assert half_width(found) == pytest.approx(norm.ppf(0.975) * np.sqrt(variance))
    assert (found.low + found.high) / 2 == pytest.approx(change)
    assert found.p == pytest.approx(2 * norm.sf(abs(change) / np.sqrt(variance)))
    assert (found.a, found.b) == (auroc(pair.a, pair.gold, pair.labels), auroc(pair.b, pair.gold, pair.labels))
    swapped = compare_auroc({"de": Paired(pair.ids, pair.gold, pair.labels, pair.b, pair.a)})[0]
    assert (swapped.p, swapped.low, swapped.high) == pytest.approx((found.p, -found.high, -found.low))


@pytest.mark.parametrize("labels", ["ab", "abc", "abcde"])
def test_the_interval_of_an_area_is_as_wide_as_a_bootstraps(labels):
    pair = random_scored(1, 150, labels)
    random, changes = np.random.default_rng(0), []
    for _ in range(400):
        rows = random.integers(0, 150, 150)
        both = [auroc(scores[rows], pair.gold[rows], pair.labels) for scores in (pair.a, pair.b)]
        changes.append(both[1] - both[0])
    assert half_width(compare_auroc({"de": pair})[0]) == pytest.approx(1.96 * np.std(changes), rel=0.12)


@pytest.mark.parametrize("labels", ["ab", "abc"])
def test_the_p_value_of_an_area_is_uniform_where_nothing_changed(labels):
    p_values = [compare_auroc({"de": random_scored(seed, 60, labels, 1.0, 1.0)})[0].p for seed in range(250)]
    assert kstest(p_values, "uniform").pvalue > 0.005
    assert np.mean(np.array(p_values) < 0.05) < 0.1
    assert compare_auroc({"de": random_scored(0, 200, labels, 0.2, 2)})[0].p < 1e-4


def test_group_area_intervals_cover_the_truth_where_errors_go_together():
    """8 languages, whose noise is mostly the item's; languages taken as independent cover far too little."""
    random, covered, alone, n_runs, n = np.random.default_rng(0), 0, 0, 80, 80
    truth = norm.cdf(1.5 / np.sqrt(2)) - norm.cdf(0.5 / np.sqrt(2))
    for _ in range(n_runs):
        gold, items, paired_scores = np.arange(n) % 2, random.normal(size=(2, n)), {}
        for k in range(8):
            noise = 0.9 * items + np.sqrt(1 - 0.81) * random.normal(size=(2, n))
            margins = [np.where(gold == 0, d, 0) + each for d, each in zip((0.5, 1.5), noise, strict=True)]
            both = [np.stack([m, 0 * m], 1) for m in margins]
            paired_scores[f"c{k}"] = scored(*both, ["ab"[g] for g in gold], "ab")
        found = group_auroc("all", paired_scores)
        covered += found.low <= truth <= found.high
        halves = [half_width(change) for change in compare_auroc(paired_scores)]
        alone += abs(found.change - truth) <= np.sqrt(np.square(halves).sum()) / 8
    assert covered / n_runs >= 0.88
    assert alone / n_runs <= 0.8


def test_a_group_of_areas_is_clustered_by_item():
    one, other = random_scored(0, 80), random_scored(1, 80)
    alone = compare_auroc({"de": one})[0]
    copies = group_auroc("all", {f"c{k}": one for k in range(5)})
    assert (copies.low, copies.high, copies.n, copies.languages) == pytest.approx((alone.low, alone.high, 80, 5))
    apart = Paired([f"x{k}" for k in range(80)], other.gold, other.labels, other.a, other.b)
    found = group_auroc("all", {"de": one, "sw": apart})  # no item in common: variances add
    halves = [half_width(change) for change in compare_auroc({"de": one, "sw": other})]
    assert half_width(found) == pytest.approx(np.hypot(*halves) / 2)
    assert (found.n, found.p, found.p_holm) == (160, None, None)
    assert found.change == pytest.approx(np.mean([c.change for c in compare_auroc({"de": one, "sw": other})]))
    opposite = Paired(one.ids, one.gold, one.labels, one.b, one.a)
    cancelled = group_auroc("all", {"de": one, "sw": opposite})
    assert half_width(cancelled) == pytest.approx(1 - 0.025 ** (1 / 40)) and cancelled.moved
    shuffled = np.random.default_rng(0).permutation(80)
    moved = Paired([one.ids[k] for k in shuffled], one.gold[shuffled], one.labels, one.a[shuffled], one.b[shuffled])
    again = group_auroc("all", {"de": one, "sw": moved})  # items are matched by id, not by row
    assert (again.low, again.high) == pytest.approx((alone.low, alone.high))


def test_languages_without_an_area_are_left_out():
    one = scored([[1, 0], [2, 0]] * 4, [[1, 0], [0, 1]] * 4, "aaaaaaaa", "ab")
    whole = random_scored(0, 40)
    found = compare_auroc({"de": one, "sw": whole})
    assert [change.name for change in found] == ["sw"]
    assert found[0].p_holm == found[0].p  # corrected over the languages that have one
    group = group_auroc("all", {"de": one, "sw": whole})
    assert (group.languages, group.change) == (1, found[0].change)
    assert group_auroc("all", {"de": one}) is None
    assert compare_auroc({"de": one}) == []


def test_one_item_of_a_label_has_an_area_but_no_interval():
    """Its variance is unknown; an interval of no width would call any change certain."""
    pair = scored([[0, 1]] + [[k, 0] for k in range(9)], [[99, 0]] + [[k, 0] for k in range(9)], "abbbbbbbbb", "ab")
    assert (auroc(pair.a, pair.gold, pair.labels), auroc(pair.b, pair.gold, pair.labels)) == (0.0, 1.0)
    assert compare_auroc({"de": pair}) == []


@pytest.mark.parametrize("n", [2, 3, 20])
def test_areas_that_do_not_vary_have_the_p_value_of_an_exact_test(n):
    """From all tied to perfect: DeLong's variance is 0, but 2n items are not proof beyond 2^(1 - 2n)."""
    margin = [1.0] * n + [-1.0] * n
    pair = scored(np.zeros((2 * n, 2)), np.stack([margin, np.zeros(2 * n)], 1), "a" * n + "b" * n, "ab")
    found = compare_auroc({"de": pair})[0]
    known = 0.025 ** (1 / n)  # n pairs of an item of either label, each as the others
    assert (found.change, found.low, found.high) == pytest.approx((0.5, 1.5 * known - 1, 1 - known / 2))
    assert found.p == 2.0 ** (1 - 2 * n)
    same = compare_auroc({"de": Paired(pair.ids, pair.gold, pair.labels, pair.b, pair.b)})[0]
    assert (same.change, same.p) == (0.0, 1.0)


def test_p_values_of_areas_are_corrected_over_the_languages():
    pairs = {code: random_scored(seed, 60, "ab", 0.8, 1.3) for seed, code in enumerate(("de", "sw", "th"))}
    found = compare_auroc(pairs)
    assert [change.p_holm for change in found] == holm([change.p for change in found])
    assert any(change.p_holm != change.p for change in found)


# --- calibration error


def ece_of(pair: Paired, rows) -> list[float]:
    return [
        expected_calibration_error(calibration_gaps(scores[rows], pair.gold[rows], pair.labels))
        for scores in (pair.a, pair.b)
    ]


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("labels", ["ab", "abc"])
def test_the_interval_of_a_calibration_error_is_a_naive_bootstraps(labels):
    pair = random_scored(2, 50, labels)
    found = compare_ece({"de": pair}, seed=4)[0]
    changes = []
    for draw in intervals.resamples(50, 4):
        a, b = ece_of(pair, np.repeat(np.arange(50), draw.astype(int)))
        changes.append(b - a)
    low, high = np.quantile(changes, [0.025, 0.975])
    assert [found.a, found.b] == pytest.approx(ece_of(pair, np.arange(50)))
    assert (found.change, found.low, found.high) == pytest.approx((found.b - found.a, low, high), abs=1e-6)
    tail = 2 * min(np.mean(np.array(changes) <= 0), np.mean(np.array(changes) >= 0))
    assert found.p == pytest.approx(min(1, max(tail, 2 / 200)))
    assert (found.n, found.languages) == (50, 1)


@pytest.mark.usefixtures("few_resamples")
def test_a_group_of_calibration_errors_is_a_naive_bootstrap_over_source_items():
    pairs = {"de": random_scored(0, 40), "sw": random_scored(1, 30, start=20)}
    found = group_ece("all", pairs, seed=1)
    changes = []
    for draw in intervals.resamples(50, 1).astype(int):
        both = [ece_of(pair, np.repeat(np.arange(len(pair.ids)), draw[start : start + len(pair.ids)]))
                for pair, start in zip(pairs.values(), (0, 20), strict=True)]  # fmt: skip
        changes.append(np.mean([b - a for a, b in both]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])), abs=1e-6)
    assert (found.name, found.n, found.languages, found.p) == ("all", 50, 2, None)
    single = compare_ece(pairs, seed=1)
    assert found.change == pytest.approx(np.mean([change.change for change in single]))
    assert [change.p_holm for change in single] == holm([change.p for change in single])
    one = group_ece("all", {f"c{k}": pairs["de"] for k in range(4)}, seed=1)  # copies tell nothing new
    assert (one.low, one.high) == pytest.approx((single[0].low, single[0].high), abs=1e-6)


@pytest.mark.usefixtures("few_resamples")
def test_p_values_of_calibration_errors_lie_in_zero_to_one():
    for seed in range(20):
        change = compare_ece({"de": random_scored(seed, 12 + seed)}, seed=seed)[0]
        assert 0 < change.p <= change.p_holm <= 1
        assert change.low <= change.high
    pair = random_scored(0, 30)
    same = compare_ece({"de": Paired(pair.ids, pair.gold, pair.labels, pair.a, pair.a)})[0]
    half = 1 - 0.025 ** (1 / 30)
    assert (same.change, same.low, same.high, same.p) == pytest.approx((0.0, -half, half, 1.0))
    sure = scored([[9, 0]] * 40, [[0.1, 0]] * 40, "ab" * 20, "ab")
    found = compare_ece({"de": sure})[0]
    assert (found.p, found.is_clear) == (2 / 200, True)
    assert found.change < -0.4
    one = compare_ece({"de": scored([[9, 0]], [[0.1, 0]], "a", "ab")})[0]
    assert (one.p, one.is_clear) == (1.0, False)  # one item proves nothing


@pytest.mark.usefixtures("few_resamples")
def test_calibration_errors_that_do_not_change_are_seldom_called_changed():
    """A model that knows more, both calibrated: measured errors hold only noise."""
    random, called, n_runs = np.random.default_rng(0), 0, 80
    for run in range(n_runs):
        intervals.resamples.cache_clear()
        knows_little = 0.5 + 0.6 * (random.random(150) - 0.5)
        more = knows_little + random.choice([-0.6, 0.6], 150) * np.minimum(knows_little, 1 - knows_little)
        gold = np.where(random.random(150) < more, "a", "b")
        both = [np.log(np.stack([p, 1 - p], 1)) for p in (knows_little, more)]
        change = compare_ece({"de": scored(*both, gold, "ab")}, seed=run)[0]
        called += change.is_clear
    assert called / n_runs <= 0.08


@pytest.mark.usefixtures("few_resamples")
def test_the_interval_covers_the_error_that_is_measured_on_as_many_items():
    """Which is above the error of endless items, by noise; of that the interval tells less than its level."""
    random, found, n_runs = np.random.default_rng(1), [], 80
    for run in range(n_runs):
        intervals.resamples.cache_clear()
        odds = random.normal(0, 1.5, 150)
        gold = np.where(random.random(150) < 1 / (1 + np.exp(-odds)), "a", "b")
        both = [np.stack([odds * t, 0 * odds], 1) for t in (1, 3)]  # calibrated, and three times too sure
        found.append(compare_ece({"de": scored(*both, gold, "ab")}, seed=run)[0])
    truth = np.mean([change.change for change in found])
    assert 0.05 < truth < 0.15
    assert np.mean([change.low <= truth <= change.high for change in found]) >= 0.85


# --- consistency


def right_of(rows: dict[str, str], start: dict[str, int] | None = None) -> dict[str, pd.Series]:
    """Return which items are right, `1` or `0` an item."""
    return {
        code: pd.Series([c == "1" for c in row], index=[f"i{k + (start or {}).get(code, 0)}" for k in range(len(row))])
        for code, row in rows.items()
    }


def jaccard(a: pd.Series, b: pd.Series, times) -> float | None:
    both = sum(times[k] for k in a.index if k in b.index and a[k] and b[k])
    either = sum(times[k] for k in a.index if k in b.index and (a[k] or b[k]))
    return both / either if either else None


def mean_jaccard(right: dict[str, pd.Series], times) -> float:
    codes = list(right)
    shares = [jaccard(right[a], right[b], times) for i, a in enumerate(codes) for b in codes[i + 1 :]]
    return float(np.mean([share for share in shares if share is not None]))


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("start", [{}, {"sw": 15}, {"sw": 100}])
def test_consistency_is_a_loop_over_pairs(start):
    random = np.random.default_rng(len(start))
    rows = {code: "".join(random.choice(["0", "1"], 40, p=[0.4, 0.6])) for code in ("de", "fr", "sw")}
    right = right_of(rows, start)
    found = consistency(right, seed=2)
    ids = list(dict.fromkeys(name for each in right.values() for name in each.index))
    assert found.mean == pytest.approx(mean_jaccard(right, dict.fromkeys(ids, 1)))
    means = [mean_jaccard(right, dict(zip(ids, draw, strict=True))) for draw in intervals.resamples(len(ids), 2)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-6)
    for a, b in permutations(rows, 2):
        assert found.pairs[a][b] == jaccard(right[a], right[b], dict.fromkeys(ids, 1))
        assert (found.pairs[a][b] is None) == (start == {"sw": 100} and "sw" in (a, b))
    assert all(code not in row for code, row in found.pairs.items())


def test_consistency_by_hand():
    found = consistency(right_of({"de": "110010", "sw": "101010"}))
    assert found.mean == 2 / 4
    assert found.low < found.mean < found.high
    same = consistency(right_of({"de": "1100", "sw": "1100", "th": "1100"}))
    assert (same.mean, same.low, same.high) == pytest.approx((1.0, 0.025 ** (1 / 2), 1.0))  # two items tell no more
    assert consistency(right_of({"de": "1100", "sw": "0011"})).mean == 0.0
    none_right = consistency(right_of({"de": "1100", "sw": "0000", "th": "0000"}))
    assert (none_right.pairs["sw"]["th"], none_right.mean) == (None, 0.0)


def test_consistency_needs_two_languages_that_share_an_item_somebody_has_right():
    assert consistency(right_of({"de": "1100"})) is None
    assert consistency({}) is None
    assert consistency(right_of({"de": "11", "sw": "11"}, {"sw": 2})) is None
    assert consistency(right_of({"de": "00", "sw": "00"})) is None
