"""Shares of repaired and broken answers, counted by hand on a few items."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from glotlift import intervals
from glotlift.explanation.answers import right_answers
from glotlift.explanation.repairs import SUMMARY_COLUMNS, summarise_patching

LABELS = ("yes", "no")


def patch_frame(language: str, layers, gold: str, unpatched: str, **patched: str) -> pd.DataFrame:
    """Return rows of `patch_language`: answers as letters, `y` or `n`, one an item; `patched` a source."""
    parts = []
    for source, answers in patched.items():
        for layer in layers:
            scores = {f"{name}_{label}": [-1.0 if letter == label[0] else -3.0 for letter in letters]
                      for name, letters in (("sequence", answers), ("unpatched", unpatched))
                      for label in LABELS}  # fmt: skip
            parts.append(
                pd.DataFrame(
                    {
                        "variant": "base",
                        "language": language,
                        "site": "last",
                        "source": source,
                        "source_id": "?",
                        "layer": layer,
                        "id": [f"i{k}" for k in range(len(gold))],
                        "gold": ["yes" if letter == "y" else "no" for letter in gold],
                        **scores,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def value(summary: pd.DataFrame, measure: str, source: str = "same", language: str = "de", calibration: str = "none"):
    keys = {"measure": measure, "source": source, "language": language, "calibration": calibration}
    (row,) = summary[np.logical_and.reduce([summary[name] == key for name, key in keys.items()])].itertuples()
    return row


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 500)
    intervals.resamples.cache_clear()
    yield
    intervals.resamples.cache_clear()


GERMAN = patch_frame("de", (3,), gold="yyyynnnn", unpatched="yynnnnyy", same="yyyynnny", other="nynnnnny")
THAI = patch_frame("th", (3,), gold="yyyynnnn", unpatched="yyyynnny", same="nyyynnny", other="yyyynnnn")


def test_shares_are_those_counted_by_hand():
    summary = summarise_patching(GERMAN)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    expected = {
        ("repaired", "same"): (3 / 4, 4),  # items 2, 3, 6 of 2, 3, 6, 7
        ("repaired", "other"): (1 / 4, 4),
        ("repaired", "difference"): (2 / 4, 4),
        ("broken", "same"): (0, 4),
        ("broken", "other"): (1 / 4, 4),
        ("broken", "difference"): (-1 / 4, 4),
        ("accuracy", "same"): (7 / 8, 8),
        ("accuracy_change", "same"): (3 / 8, 8),
        ("accuracy_change", "other"): (0, 8),
        ("accuracy_change", "difference"): (3 / 8, 8),
    }
    for (measure, source), (share, n) in expected.items():
        found = value(summary, measure, source)
        assert (found.value, found.n) == (pytest.approx(share), n), (measure, source)
        assert found.low <= share <= found.high
    assert set(summary["language"]) == {"de"}
    assert not ((summary["source"] == "difference") & (summary["measure"] == "accuracy")).any()


def test_the_mean_over_languages_leaves_out_english():
    english = patch_frame("en", (3,), gold="yyyynnnn", unpatched="yynnnnyy", same="nnnnnnnn", other="nnnnnnnn")
    summary = summarise_patching(pd.concat([english, GERMAN, THAI], ignore_index=True))
    assert set(summary["language"]) == {"en", "de", "th", "all"}
    found = value(summary, "repaired", language="all")
    assert found.value == pytest.approx((3 / 4 + 0) / 2)  # a mean of shares, not the share of all items
    assert found.n == 4 + 1
    assert value(summary, "broken", language="all").value == pytest.approx((0 + 1 / 7) / 2)


def test_a_language_without_wrong_answers_has_no_repaired_share():
    right = patch_frame("th", (3,), gold="yyyynnnn", unpatched="yyyynnnn", same="nyyynnnn", other="yyyynnnn")
    summary = summarise_patching(pd.concat([GERMAN, right], ignore_index=True))
    found = value(summary, "repaired", language="th")
    assert (found.n, np.isnan([found.value, found.low, found.high]).all()) == (0, True)
    assert value(summary, "repaired", language="all").value == pytest.approx(3 / 4)


def test_a_mere_preference_is_no_change_after_calibration():
    """Patched scores are those without the patch, all moved towards one label."""
    frame = GERMAN.copy()
    frame["sequence_yes"] = frame["unpatched_yes"] + 10
    frame["sequence_no"] = frame["unpatched_no"]
    summary = summarise_patching(frame)
    assert value(summary, "repaired").value == pytest.approx(2 / 4)
    assert value(summary, "broken").value == pytest.approx(2 / 4)
    assert value(summary, "repaired", calibration="batch").value == 0
    assert value(summary, "broken", calibration="batch").value == 0


def test_intervals_are_a_bootstrap_over_items(monkeypatch):
    """On many items it is that of the normal approximation of a share."""
    monkeypatch.setattr(intervals, "N_RESAMPLES", 4000)
    generator = np.random.default_rng(0)
    answers = "".join(generator.choice(["y", "n"], 300, p=[0.3, 0.7]))
    frame = patch_frame("de", (1, 2), gold="y" * 300, unpatched="n" * 300, same=answers, other="y" * 300)
    summary = summarise_patching(frame[frame["layer"] == 1])
    found, share = value(summary, "repaired"), answers.count("y") / 300
    half = 1.96 * np.sqrt(share * (1 - share) / 300)
    assert found.value == pytest.approx(share)
    assert (found.low, found.high) == pytest.approx((share - half, share + half), abs=0.007)
    sure = value(summary, "repaired", "other")
    assert (sure.value, sure.low, sure.high) == (1, pytest.approx(0.025 ** (1 / 300)), 1)


def test_translations_of_an_item_are_drawn_together():
    """Two languages that go together are as uncertain as one; two that go against each other are sure."""
    yes, no = "y" * 20 + "n" * 20, "n" * 20 + "y" * 20
    one = patch_frame("de", (1,), gold="y" * 40, unpatched="n" * 40, same=yes, other=yes)
    alike, against = (patch_frame("th", (1,), "y" * 40, "n" * 40, same=each, other=each) for each in (yes, no))
    alone = value(summarise_patching(one), "repaired")
    both = value(summarise_patching(pd.concat([one, alike])), "repaired", language="all")
    assert (both.low, both.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    assert both.high - both.low > 0.2
    opposed = value(summarise_patching(pd.concat([one, against])), "repaired", language="all")
    assert opposed.value == pytest.approx(0.5)
    assert (opposed.low, opposed.high) != pytest.approx((both.low, both.high), abs=0.05)


def test_right_answers_are_decided_as_in_evaluation():
    from glotlift.evaluation.metrics import decide

    scores = np.random.default_rng(1).normal(-3, 1, (50, 2))
    gold = np.array([0, 1] * 25)
    frame = pd.DataFrame({f"sequence_{label}": scores[:, k] for k, label in enumerate(LABELS)})
    for calibration in ("none", "batch"):
        predicted, _ = decide(frame, LABELS, "sequence", calibration)
        expected = np.array([LABELS.index(name) for name in predicted]) == gold
        np.testing.assert_array_equal(right_answers(scores, gold, calibration), expected)
    tied = right_answers(np.zeros((1, 2)), np.array([0]), "none")
    assert tied.all()


def test_no_rows_are_no_rows():
    assert summarise_patching(GERMAN.iloc[:0]).empty
