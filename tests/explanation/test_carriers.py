"""Scores of an adapter's configurations and their changes, by hand, scikit-learn and evaluation's own comparison."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from glotlift import intervals
from glotlift.evaluation.compare import compare_auroc, compare_group, compare_languages, group_auroc
from glotlift.evaluation.pairing import Paired
from glotlift.explanation.answers import right_answers
from glotlift.explanation.carriers import SUMMARY_COLUMNS, summarise_switch_off

LABELS = ("yes", "no")
CONFIGURATIONS = (("all", "base", 0), ("all", "tuned", 0), ("all", "without", 2), ("mlp", "up_to", 1))
N = 40


def answers(seed: int, gold: np.ndarray) -> dict[tuple, np.ndarray]:
    """Return scores a configuration, the better the later it stands. *Shape:* (items, labels)."""
    generator = np.random.default_rng(seed)
    sign = np.where(gold == "yes", 1, -1)
    return {
        name: np.stack([sign * k * 0.5 + generator.normal(0, 1, N) + 0.4, np.full(N, -2.0)], 1)
        for k, name in enumerate(CONFIGURATIONS)
    }


GOLD = np.array(["yes", "no"] * (N // 2))
SCORES = {code: answers(seed, GOLD) for seed, code in enumerate(("en", "de", "th"))}


def frame_of(codes=("en", "de", "th"), gold=GOLD) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"language": code, "group": group, "mode": mode, "layer": layer, "id": [f"i{k}" for k in range(N)],
             "gold": gold, "sequence_yes": scores[:, 0], "sequence_no": scores[:, 1]}
        )
        for code in codes
        for (group, mode, layer), scores in SCORES[code].items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 500)
    intervals.resamples.cache_clear()
    yield
    intervals.resamples.cache_clear()


def row(summary: pd.DataFrame, language: str, configuration: tuple, measure: str):
    key = (language, *configuration, measure)
    (found,) = summary.set_index(["language", "group", "mode", "layer", "measure"]).loc[[key]].itertuples()
    return found


def reference(configuration: tuple) -> tuple:
    return CONFIGURATIONS[1] if configuration[1] in ("without", "base") else CONFIGURATIONS[0]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("language", ["en", "de"])
def test_of_a_language(configuration, language):
    summary = summarise_switch_off(frame_of())
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    own, held = (SCORES[language][name] for name in (configuration, reference(configuration)))
    number = (GOLD == "no").astype(int)
    for measure, calibration in (("accuracy", "none"), ("accuracy_calibrated", "batch")):
        right, before = (right_answers(each, number, calibration) for each in (own, held))
        found = row(summary, language, configuration, measure)
        assert found.value == pytest.approx(right.mean())
        (change,) = compare_languages({language: pd.DataFrame({"a": before, "b": right})})
        assert (found.change, found.low, found.high) == pytest.approx((change.change, change.low, change.high))
        assert (found.n, found.reference) == (N, reference(configuration)[1])
    found = row(summary, language, configuration, "auroc")
    assert found.value == pytest.approx(roc_auc_score(GOLD == "yes", own[:, 0] - own[:, 1]))
    ids = [f"i{k}" for k in range(N)]
    (change,) = compare_auroc({language: Paired(ids, GOLD, LABELS, held, own)})
    assert (found.change, found.low, found.high) == pytest.approx((change.change, change.low, change.high))


def test_the_mean_over_languages_is_clustered_and_leaves_out_english():
    summary = summarise_switch_off(frame_of())
    number, ids = (GOLD == "no").astype(int), [f"i{k}" for k in range(N)]
    for configuration in CONFIGURATIONS[2:]:
        pairs = {code: (SCORES[code][reference(configuration)], SCORES[code][configuration]) for code in ("de", "th")}
        tables = {
            code: pd.DataFrame({"a": right_answers(a, number, "none"), "b": right_answers(b, number, "none")}, ids)
            for code, (a, b) in pairs.items()
        }
        found, change = row(summary, "all", configuration, "accuracy"), compare_group("all", tables)
        assert (found.value, found.change) == pytest.approx((change.b, change.change))
        assert (found.low, found.high) == pytest.approx((change.low, change.high))
        found = row(summary, "all", configuration, "auroc")
        change = group_auroc("all", {code: Paired(ids, GOLD, LABELS, a, b) for code, (a, b) in pairs.items()})
        assert (found.value, found.change) == pytest.approx((change.b, change.change))
        assert (found.low, found.high) == pytest.approx((change.low, change.high))
    assert set(summarise_switch_off(frame_of(("en", "de")))["language"]) == {"en", "de"}  # no mean over one language


def test_a_configuration_with_the_answers_of_its_reference_is_said_to_move_no_item():
    frame = frame_of()
    keys = frame.set_index(["group", "mode", "layer"]).index
    scores = ["sequence_yes", "sequence_no"]
    frame.loc[keys == CONFIGURATIONS[3], scores] = frame.loc[keys == CONFIGURATIONS[0], scores].to_numpy()
    moved = summarise_switch_off(frame).set_index(["group", "mode", "layer"])["moved"]
    assert not moved.loc[[CONFIGURATIONS[3]]].any()
    assert moved.loc[[CONFIGURATIONS[1]]].all()


def test_languages_whose_changes_cancel_out_have_moved():
    frame = frame_of(("de", "th"))
    scores = ["sequence_yes", "sequence_no"]
    rows = frame.set_index(["language", "group", "mode", "layer"]).index
    base, tuned = (frame.loc[rows == ("de", *name), scores].to_numpy() for name in CONFIGURATIONS[:2])
    frame.loc[rows == ("th", *CONFIGURATIONS[0]), scores] = tuned
    frame.loc[rows == ("th", *CONFIGURATIONS[1]), scores] = base
    summary = summarise_switch_off(frame)
    for measure in ("auroc", "accuracy", "accuracy_calibrated"):
        found = row(summary, "all", CONFIGURATIONS[1], measure)
        assert found.change == pytest.approx(0) and found.moved


def test_auroc_of_items_of_one_label_is_not_defined():
    frame = pd.concat([frame_of(("de",)), frame_of(("th",), np.array(["yes"] * N))], ignore_index=True)
    summary = summarise_switch_off(frame)
    alone = row(summary, "th", CONFIGURATIONS[2], "auroc")
    assert np.isnan([alone.value, alone.change, alone.low, alone.high]).all()
    both, german = (row(summary, code, CONFIGURATIONS[2], "auroc") for code in ("all", "de"))
    assert both.value == pytest.approx(german.value)
    assert row(summary, "th", CONFIGURATIONS[2], "accuracy").n == N


def test_order_of_rows_does_not_matter():
    frame = frame_of(("de",))
    shuffled = frame.iloc[np.random.default_rng(0).permutation(len(frame))]
    keys = ["mode", "measure"]
    one, two = (summarise_switch_off(each).sort_values(keys).set_index(keys) for each in (frame, shuffled))
    np.testing.assert_allclose(one["value"], two["value"])
    np.testing.assert_allclose(one["change"], two["change"])


def test_no_rows_are_no_rows():
    assert summarise_switch_off(frame_of().iloc[:0]).empty
