"""Against the formulas of the papers written out: plain numpy, and loops over items."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from glotlift.explanation.resampling import item_counts, item_orders
from glotlift.explanation.similarity import SIMILARITIES, WeightedSums, similarities, unit

PAIRS = [(0, 1), (2, 1), (0, 2)]


@pytest.fixture
def random():
    return np.random.default_rng(11)


@pytest.fixture
def states(random):
    """Three languages with a mean of their own; the first two share most of what tells items apart. 14 items."""
    meaning = random.normal(size=(14, 9))
    noise, offset = random.normal(size=(3, 14, 9)), 5 * random.normal(size=(3, 1, 9))
    return np.array([1.0, 1.0, 0.0])[:, None, None] * meaning + 0.6 * noise + offset


def measure(states: np.ndarray, pairs=PAIRS, n_draws: int = 40):
    n = states.shape[1]
    return similarities(states, pairs, counts=item_counts(n, n_draws, 1), orders=item_orders(n, n_draws, 2))


def song_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Equation 5 of Song et al. 2012, as it is printed."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    first = np.trace(k @ l)
    second = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ l @ one)
    return (first + second - third) / (n * (n - 3))


def song_cka(x: np.ndarray, y: np.ndarray) -> float:
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return song_hsic(k, l) / np.sqrt(song_hsic(k, k) * song_hsic(l, l))


def test_cka_is_that_of_song_2012_and_kornblith_2019(states):
    found = measure(states)["cka"]
    assert found.value == pytest.approx([song_cka(states[a], states[b]) for a, b in PAIRS])
    for draw, order in enumerate(item_orders(14, 40, 2)):
        expected = [song_cka(states[a][order], states[b]) for a, b in PAIRS]
        assert found.null[draw] == pytest.approx(expected, abs=1e-5)


def test_weighted_hsic_is_a_mean_over_different_items(random):
    x = random.normal(size=(2, 7, 4))
    grams = x @ x.transpose(0, 2, 1)
    np.einsum("lii->li", grams)[:] = 0
    counts = np.vstack([np.ones(7), [2, 0, 1, 3, 1, 0, 0], [1, 1, 2, 0, 2, 1, 0], [4, 3, 0, 0, 0, 0, 0]])
    found = WeightedSums(grams, counts).hsic(0, 1)
    assert found[0] == pytest.approx(song_hsic(*grams))
    k, l = grams  # noqa: E741
    for draw in (0, 1, 2):
        sums = {2: [0.0, 0.0], 3: [0.0, 0.0], 4: [0.0, 0.0]}
        for size, total in sums.items():
            for items in permutations(range(7), size):
                weight = np.prod(counts[draw, list(items)])
                i, j, q, r = (*items, *items)[:4] if size == 2 else (*items, 0)[:4]
                other = {2: l[i, j], 3: l[i, q], 4: l[q, r]}[size]
                total[0] += weight * k[i, j] * other
                total[1] += weight
        mean = {size: total / weight for size, (total, weight) in sums.items()}
        assert found[draw] == pytest.approx(mean[2] + mean[4] - 2 * mean[3])
    assert np.isnan(found[3])  # two items are drawn


def test_an_item_that_is_drawn_twice_does_not_raise_cka(random):
    unrelated = random.normal(size=(2, 30, 50))
    found = measure(unrelated, [(0, 1)], 300)["cka"]
    assert abs(found.value[0]) < 0.2
    assert found.draws.mean() == pytest.approx(found.value[0], abs=0.03)
    naive = [song_cka(*(np.repeat(x, c.astype(int), axis=0) for x in unrelated)) for c in item_counts(30, 20, 1)]
    assert np.mean(naive) > 0.3  # what the plain bootstrap would say


def test_cka_does_not_change_with_rotation_offset_and_scale(states, random):
    rotation = np.linalg.qr(random.normal(size=(9, 9)))[0]
    turned = states.copy()
    turned[0] = 30 * states[0] @ rotation + 1e4
    before, after = measure(states)["cka"], measure(turned)["cka"]
    np.testing.assert_allclose(after.value, before.value, rtol=1e-6)
    np.testing.assert_allclose(after.draws, before.draws, atol=1e-4)
    assert measure(states[[0, 0]], [(0, 1)])["cka"].value == pytest.approx(1)


def loop_mexa(table: np.ndarray) -> list[bool]:
    n = len(table)
    return [all(table[i, i] > max(table[i, j], table[j, i]) for j in range(n) if j != i) for i in range(n)]


def loop_retrieval(table: np.ndarray) -> list[float]:
    n = len(table)
    forth = [all(table[i, i] > table[i, j] for j in range(n) if j != i) for i in range(n)]
    back = [all(table[i, i] > table[j, i] for j in range(n) if j != i) for i in range(n)]
    return [(a + b) / 2 for a, b in zip(forth, back, strict=True)]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("name", "loop"), [("mexa", loop_mexa), ("retrieval", loop_retrieval)])
def test_mexa_and_retrieval_are_those_of_loops_over_items(states, name, loop, centred):
    found = measure(states)[name + "_centred" * centred]
    if centred:
        states = states - states.mean(1, keepdims=True)

    def table(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in y] for a in x])

    for k, (a, b) in enumerate(PAIRS):
        hits = np.array(loop(table(states[a], states[b])), float)
        assert found.value[k] == pytest.approx(hits.mean())
        for draw, count in enumerate(item_counts(14, 40, 1).astype(int)):
            assert found.draws[draw, k] == pytest.approx(np.repeat(hits, count).mean())
        for draw, order in enumerate(item_orders(14, 40, 2)):
            assert found.null[draw, k] == pytest.approx(np.mean(loop(table(states[a][order], states[b]))))


def test_what_languages_share_is_found_and_an_offset_hides_it(states):
    found = measure(states)
    for name in ("cka", "mexa_centred", "retrieval_centred"):
        shared, apart, _ = found[name].value
        assert shared > np.quantile(found[name].null[:, 0], 0.99) and shared > apart + 0.2, name
    # the first two have one meaning; the mean of a language hides it from raw cosines
    assert found["retrieval"].value[0] < found["retrieval_centred"].value[0]
    assert (found["mexa"].value <= found["retrieval"].value).all()


def test_what_is_undefined_is_nan(states):
    for name, found in measure(states[:, :5]).items():
        assert all(np.isnan(each).all() for each in vars(found).values()), name
    same = states.copy()
    same[0] = 0.3
    found = measure(same)
    assert set(found) == set(SIMILARITIES)
    for name in ("cka", "mexa_centred", "retrieval_centred"):
        of = found[name]
        assert np.isnan(of.value).tolist() == [True, False, True], name
        assert np.isnan(of.draws[:, 0]).all() and np.isnan(of.null[:, 0]).all(), name
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_of_two_items_that_are_the_same_none_is_found(states):
    states = np.stack([states[0], states[0]])
    states[:, 3] = states[:, 7]
    found = measure(states, [(0, 1)])
    for name in SIMILARITIES[1:]:
        assert found[name].value[0] == pytest.approx(12 / 14), name
