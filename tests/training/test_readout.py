"""The readout in closed form: against scikit-learn's ridge, and on states where the answer stands at one layer."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from glotlift.errors import DataError
from glotlift.training.agreement import agreement, agrees_better
from glotlift.training.readout import (
    STRENGTHS,
    Stated,
    Tried,
    _blocks,
    _read_by_the_others_choice,
    fit_readout,
)

LABELS = ["positive", "negative"]


def scored(odds):
    return np.stack([odds / 2, -odds / 2], 1)


def stated(n=40, hidden=12, codes=("en", "de", "sw"), layer=3, own_noise=2.0, seed=0, sentences=False):
    """States of four layers; `layer` holds the answer along one direction, the same in every language."""
    rng = np.random.default_rng(seed)
    answer, direction = rng.normal(size=n), rng.normal(size=hidden)
    made = []
    for code in codes:
        states = rng.normal(size=(n, 5, hidden)) + rng.normal(size=hidden)
        states[:, layer] += answer[:, None] * direction
        own = scored(answer + own_noise * rng.normal(size=n) + 3.0)
        names = [f"q{number}" for number in range(n)]
        made.append(Stated(code, names, states, own, scored(answer)))
        if sentences:
            kept = np.arange(0, n, 2)
            parts = [names[index] for index in kept]
            made.append(Stated(code, parts, states[kept] + 5.0, own[kept], scored(answer)[kept], is_whole=False))
    return made, answer


def test_layer_strength_and_own_scores_are_chosen_where_they_were_not_fitted():
    made, answer = stated()
    readout, why = fit_readout(made, LABELS)
    assert readout.layer == why["chosen"]["layer"] == 3
    assert readout.own == 0.0  # its own scores are nearly noise here
    assert why["chosen"]["agreement"] > 0.8 > why["without"]
    assert len(why["tried"]) == 4 * len(STRENGTHS) * 2
    sure, _ = stated(own_noise=0.05)
    readout, why = fit_readout(sure, LABELS)
    assert readout.own == 1.0 and why["chosen"]["agreement"] > 0.95


@pytest.mark.parametrize(("n", "hidden"), [(40, 12), (12, 60)])
@pytest.mark.parametrize("sentences", [False, True])
def test_the_weights_are_those_of_ridge_regression(n, hidden, sentences):
    """More rows than features, and fewer."""
    made, _ = stated(n, hidden, sentences=sentences)
    readout, why = fit_readout(made, LABELS, layers=[3])
    rows = np.concatenate([each.states[:, 3] - each.states[:, 3].mean(0) for each in made])
    taught = np.concatenate([each.taught - each.taught.mean(0) for each in made])
    scale = rows.std(0) + 1e-3 * rows.std()
    ridge = why["chosen"]["strength"] * ((rows / scale) ** 2).sum() / len(rows)
    fitted = Ridge(alpha=ridge, fit_intercept=False).fit(rows / scale, taught).coef_.T / scale[:, None]
    weights = readout.direction.numpy()
    np.testing.assert_allclose(weights / np.linalg.norm(weights), fitted / np.linalg.norm(fitted), atol=2e-5)
    whole = [each for each in made if each.is_whole]
    read = np.concatenate([(each.states[:, 3] - each.states[:, 3].mean(0)) @ weights for each in whole])
    own = np.concatenate([each.own - each.own.mean(0) for each in whole])
    assert read.std() == pytest.approx(own.std(), rel=1e-4)  # as far apart as the model's own


def test_a_preference_for_a_label_teaches_nothing():
    made, _ = stated()
    moved = [Stated(s.language, s.questions, s.states, s.own + [2.0, 0], s.taught + [7.0, -7.0]) for s in made]
    one, other = (fit_readout(each, LABELS)[0] for each in (made, moved))
    np.testing.assert_allclose(one.direction, other.direction, atol=1e-6)


def test_one_language_beside_english_and_english_alone_work():
    for codes in (("en", "de"), ("en",)):
        made, _ = stated(codes=codes)
        assert fit_readout(made, LABELS)[0].layer == 3


def test_states_that_do_not_differ_read_nothing():
    made, _ = stated()
    same = [replace(each, states=np.ones_like(each.states)) for each in made]
    assert not fit_readout(same, LABELS)[0].direction.any()


def test_too_few_questions_are_refused():
    made, _ = stated(n=9)
    with pytest.raises(DataError, match="got 9 questions for a readout, expected at least 10"):
        fit_readout(made, LABELS)


def test_a_teacher_that_teaches_nothing_leaves_the_model_as_it_is():
    made, _ = stated(n=60)
    order = np.random.default_rng(3).permutation(60)
    mixed = [replace(each, taught=each.taught[order]) for each in made]
    readout, why = fit_readout(mixed, LABELS)
    assert not why["is_used"] and why["better"][0] <= 0 < why["better"][1]
    assert readout.own == 1.0 and not readout.direction.any()
    constant = [replace(each, taught=np.zeros_like(each.taught)) for each in made]
    assert fit_readout(constant, LABELS)[1]["better"] == (0.0, 0.0)
    itself = [replace(each, taught=each.own) for each in made]
    assert not fit_readout(itself, LABELS)[0].direction.any()
    assert fit_readout(made, LABELS)[1]["is_used"]


def test_what_is_judged_was_chosen_on_other_questions():
    """Ways to read that are right on some folds: every fold is read by what is best on the other four."""
    made, _ = stated(codes=("en", "de"))
    blocks, _ = _blocks(made, 3, {f"q{number}": number % 5 for number in range(40)})
    (asked,) = left_out = [each for each in blocks if each.language == "de"]

    def right_on(*folds):
        noise = 0.1 * np.random.default_rng(sum(folds)).normal(size=asked.taught.shape)
        return Tried(
            1, 1.0, 0.0, 0.0, [np.where(np.isin(asked.fold, folds)[:, None], asked.taught, -asked.taught) + noise]
        )

    tried = [right_on(0), right_on(1, 2), right_on(0, 3, 4)]
    (read,) = _read_by_the_others_choice(tried, left_out)
    for fold in range(5):
        rows, others = asked.fold == fold, asked.fold != fold
        best = max(tried, key=lambda one: agreement(one.scores[0][others], asked.taught[others]))
        np.testing.assert_array_equal(read[rows], best.scores[0][rows])
    (first, third) = (np.abs(read - each.scores[0]).max(1) == 0 for each in (tried[1], tried[2]))
    assert set(asked.fold[first]) == {0, 3, 4} and set(asked.fold[third]) == {1, 2}  # each where it is wrong


def test_the_agreement_that_is_told_is_no_better_than_that_of_the_best():
    made, _ = stated()
    _, why = fit_readout(made, LABELS)
    assert 0.8 < why["agreement"] <= why["chosen"]["agreement"] + 1e-9
    assert set(why["chosen"]) == {"layer", "strength", "own", "agreement"}


def test_the_interval_is_that_of_a_plain_bootstrap():
    """Of three languages and three labels, drawn by hand."""
    rng = np.random.default_rng(0)
    taught = [rng.normal(size=(50, 3)) for _ in range(3)]
    found, plain = ([each + noise * rng.normal(size=each.shape) + 4 for each in taught] for noise in (1.0, 1.3))
    drawn = []
    for _ in range(2000):
        rows = rng.integers(50, size=50)
        gains = [agreement(a[rows], t[rows]) - agreement(b[rows], t[rows])
                 for a, b, t in zip(found, plain, taught, strict=True)]  # fmt: skip
        drawn.append(np.mean(gains))
    np.testing.assert_allclose(agrees_better(found, plain, taught), np.quantile(drawn, [0.025, 0.975]), atol=0.012)
    flat = (found[0] - found[0].mean(0)).ravel(), (taught[0] - taught[0].mean(0)).ravel()
    assert agreement(found[0], taught[0]) == pytest.approx(np.corrcoef(*flat)[0, 1])
