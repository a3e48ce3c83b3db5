"""Right and wrong from prediction files, held against those of evaluation; what is of something else is refused."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from glotlift.errors import DataError
from glotlift.evaluation.metrics import SCORINGS, decide
from glotlift.evaluation.predict import predict
from glotlift.evaluation.prediction_file import PredictionFile, prediction_fingerprint
from glotlift.explanation.collect import explain
from glotlift.explanation.kinds import explain_kinds
from glotlift.explanation.outcomes import OUTCOME_COLUMNS, read_outcomes
from glotlift.explanation.subject import Subject
from glotlift.runs import read_parquet, write_parquet

FINGERPRINTS = {"base": "of base", "tuned": "of tuned"}


@pytest.fixture
def predicted(adapted, ask, tmp_path):
    """Return a function that writes predictions of eight German items, and the prompts."""
    prompts = ask(adapted, ("de",), 8)

    def make(scoring="sequence", calibration="none", fingerprints=FINGERPRINTS):
        for variant, fingerprint in fingerprints.items():
            frame = predict(adapted, prompts["de"], variant, scoring=scoring, calibration=calibration)
            frame["text"] = ["\n".join(item.fields.values()) for item in prompts["de"].items]
            about = {"labels": prompts["de"].labels, "scoring": scoring, "model": "tiny",
                     "label_words": prompts["de"].words, "model_fingerprint": fingerprint}  # fmt: skip
            write_parquet(tmp_path / "predictions" / variant / "sentiment" / "de.parquet", frame, about)
        return tmp_path / "predictions", prompts

    return make


@pytest.mark.parametrize("scoring", SCORINGS)
def test_right_and_wrong_are_those_of_evaluation(predicted, scoring):
    """Whatever calibration the file itself was decided by."""
    folder, prompts = predicted(scoring, "batch")
    found = read_outcomes(folder, "sentiment", prompts, FINGERPRINTS)
    assert found.columns.tolist() == OUTCOME_COLUMNS
    assert found["id"].tolist() == 2 * [item.id for item in prompts["de"].items]
    seen = []
    for calibration, rows in found.groupby("calibration"):
        for variant in FINGERPRINTS:
            frame, about = read_parquet(folder / variant / "sentiment" / "de.parquet")
            labels, _ = decide(frame, about["labels"], scoring, str(calibration))
            assert rows[variant].tolist() == [a == b for a, b in zip(labels, frame["gold"], strict=True)]
            seen.append(rows[variant].tolist())
    assert len(seen) == 4
    if scoring == "sequence":
        assert seen[0] != seen[2] or seen[1] != seen[3]  # calibration flips items here


def test_only_items_that_are_looked_into_and_have_predictions_count(predicted):
    folder, prompts = predicted()
    german = prompts["de"]
    fewer = replace(german, items=german.items[3:5], rows=german.rows[3:5])
    whole = read_outcomes(folder, "sentiment", prompts, FINGERPRINTS).query("calibration == 'batch'")
    found = read_outcomes(folder, "sentiment", {"de": fewer}, FINGERPRINTS).query("calibration == 'batch'")
    assert found["id"].tolist() == [item.id for item in german.items[3:5]]
    assert found["base"].tolist() == whole["base"].tolist()[3:5]  # calibrated over all items of the file
    others = replace(german, items=[replace(item, id=f"x{item.id}") for item in german.items])
    with pytest.raises(DataError, match="got predictions of none of the items of 'sentiment' that are looked into"):
        read_outcomes(folder, "sentiment", {"de": others}, FINGERPRINTS)


def test_predictions_of_something_else_are_refused(predicted):
    folder, prompts = predicted()
    german = prompts["de"]
    first, *rest = german.items

    def refused(expected, fingerprints=FINGERPRINTS, **changes):
        with pytest.raises(DataError, match=expected):
            read_outcomes(folder, "sentiment", {"de": replace(german, **changes)}, fingerprints)

    refused("tuned/sentiment/de.parquet: got predictions of tiny with other weights or another adapter, expected",
            {"base": "of base", "tuned": "of another"})  # fmt: skip
    refused(f"got another text of item '{first.id}'", items=[replace(first, fields={"text": "Other."}), *rest])
    gold = next(label for label in german.labels if label != first.gold)
    refused(f"got another right answer of item '{first.id}'", items=[replace(first, gold=gold), *rest])
    longer = replace(german.rows[0], prompt=(*german.rows[0].prompt, 5))
    refused(f"got another prompt of item '{first.id}'", rows=[longer, *german.rows[1:]])
    words = dict(zip(german.labels, ("yes", "no"), strict=True))
    refused("predictions of the answer words .+, expected yes no", words=words)


def test_an_item_link_says_what_it_leaves_out_and_refuses_before_anything_runs(
    adapted, ask, words, tmp_path, caplog, monkeypatch
):
    prompts = ask(adapted, ("en", "de"), 6)
    fewer = ask(adapted, ("de",), 4)["de"]
    for variant in ("base", "tuned"):
        weights = adapted.variant_fingerprint(variant)
        frame = predict(adapted, fewer, variant)
        file = PredictionFile(
            tmp_path / "predictions" / variant / "sentiment" / "de.parquet", fewer,
            prediction_fingerprint(weights, fewer), scoring="sequence", calibration="none",
            metadata={"model": "tiny", "model_fingerprint": weights},
        )  # fmt: skip
        file._write(frame, [])
    subject = Subject(adapted, prompts, tmp_path, **words("en", "de"))
    monkeypatch.setattr(logging.getLogger("glotlift"), "propagate", True)
    with caplog.at_level(logging.INFO, "glotlift"):
        explain(subject, ["geometry", "item-link"], n_permutations=20)
    assert "item link: 2 of 6 items have no predictions and are left out" in caplog.messages
    link, _ = read_parquet(tmp_path / "item_link" / "sentiment" / "summary.parquet")
    assert set(link["calibration"]) == {"none", "batch"}
    counts = link.query("quantity == 'towards_pivot_mean' and language == 'de'").set_index("calibration")
    fingerprints = {variant: adapted.variant_fingerprint(variant) for variant in ("base", "tuned")}
    outcomes = read_outcomes(tmp_path / "predictions", "sentiment", {"de": prompts["de"]}, fingerprints)
    for calibration, rows in outcomes.groupby("calibration"):
        assert counts.loc[calibration, "n_flipped"] == np.sum(~rows["base"] & rows["tuned"])
        assert counts.loc[calibration, "n_stayed"] == np.sum(~rows["base"] & ~rows["tuned"])
    other = Subject(replace(adapted, adapter_fingerprint="other"), prompts, tmp_path / "x", **words("en", "de"))
    (tmp_path / "x").mkdir()
    (tmp_path / "predictions").rename(tmp_path / "x" / "predictions")
    with pytest.raises(DataError, match="tuned/sentiment/de.parquet: got predictions of tiny with other weights"):
        explain_kinds(other, ["geometry", "item-link"])
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["predictions"]
