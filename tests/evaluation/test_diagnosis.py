"""Diagnosis: measures against their definitions on made-up answers, and the command on a tiny model."""

import csv
import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import pearsonr
from typer.testing import CliRunner

from glotlift.cli import app
from glotlift.errors import DataError
from glotlift.evaluation.diagnosis import Said, diagnose_language, predicts
from glotlift.reporting.diagnosis import diagnosis_csv, diagnosis_table, prediction_sentence, sentences
from glotlift.stages.diagnose import diagnose

LABELS = ["positive", "negative"]


def said(odds, states=None, tokens=10.0, gold=None):
    scores = np.stack([odds / 2, -odds / 2], 1) - 3.0
    states = np.random.default_rng(5).normal(size=(len(odds), 3, 8)) if states is None else states
    return Said(scores, np.full(len(odds), tokens), states, gold)


@pytest.fixture
def odds():
    return np.random.default_rng(0).normal(size=60)


def test_the_pivot_agrees_with_itself(odds):
    found = diagnose_language("en", said(odds), said(odds), LABELS)
    assert (found.agreement, found.agreement_centred, found.correlation) == (1.0, 1.0, pytest.approx(1.0))
    assert found.mexa == found.mexa_raw == (1.0, 1.0, 1.0) and found.token_ratio == 1.0 and found.room == []
    assert found.accuracy is None


def test_a_preference_for_a_label_is_bias_and_nothing_else(odds):
    found = diagnose_language("de", said(odds + 1.5), said(odds), LABELS)
    assert found.agreement < 0.7 and found.agreement_centred == 1.0
    assert found.correlation == pytest.approx(1.0) and found.room == ["bias"]


def test_other_answers_are_room_for_alignment_where_translations_are_told_apart(odds):
    rng = np.random.default_rng(1)
    other = 0.4 * odds + rng.normal(size=60)
    states = rng.normal(size=(60, 3, 8))
    near = diagnose_language("de", said(other, states + 0.1, tokens=20.0), said(odds, states), LABELS)
    assert near.correlation == pytest.approx(pearsonr(other, odds).statistic)
    assert near.low < near.correlation < near.high
    assert near.room == ["alignment", "tokenizer"] and near.token_ratio == 2.0
    far = diagnose_language("de", said(other, rng.normal(size=(60, 3, 8))), said(odds, states), LABELS)
    assert far.room == ["reading"] and far.mexa_best < 0.5


def test_states_that_differ_by_a_language_s_mean_are_found_once_it_is_off(odds):
    states = np.random.default_rng(2).normal(size=(60, 3, 8))
    found = diagnose_language("de", said(odds, 0.05 * states + 9.0), said(odds, states), LABELS)
    assert max(found.mexa_raw) < 0.9 and found.mexa == (1.0, 1.0, 1.0)


def test_with_right_answers_accuracy_and_auroc_stand_beside(odds):
    gold = np.where(odds > 0, "positive", "negative")
    found = diagnose_language("de", said(odds + 1.5, gold=gold), said(odds), LABELS)
    assert found.auroc == 1.0 and found.accuracy < 0.7 < found.accuracy_calibrated


def test_what_predicts_the_gap_is_told_with_its_sign(odds):
    rng = np.random.default_rng(3)
    gold = np.where(odds > 0, "positive", "negative")
    pivot = said(odds, gold=gold)
    languages = {f"x{n}": said(odds + n * rng.normal(size=60), tokens=10.0 + n, gold=gold) for n in (0.1, 0.5, 1, 2, 4)}
    found = {code: diagnose_language(code, each, pivot, LABELS) for code, each in languages.items()}
    found["en"] = diagnose_language("en", pivot, pivot, LABELS)
    told = predicts(found, "en")
    assert told["correlation"]["auroc"] < -0.8 and told["token_ratio"]["auroc"] > 0.8
    assert predicts({"en": found["en"]}, "en") == {}


def test_what_a_language_lacks_is_told_in_auroc_and_in_calibrated_accuracy(odds):
    rng = np.random.default_rng(3)
    gold = np.where(odds > 0, "positive", "negative")
    pivot = said(odds, gold=gold)
    given = {"en": pivot} | {
        code: said(odds + noise * rng.normal(size=60), tokens=10.0 + noise, gold=gold)
        for code, noise in zip(("de", "fr", "ru", "sw", "th"), (0.1, 0.5, 1, 2, 4), strict=True)
    }
    found = {code: diagnose_language(code, each, pivot, LABELS) for code, each in given.items()}
    told = predicts(found, "en")
    shown = {code: {**asdict(each), "mexa_best": each.mexa_best, "room": each.room} for code, each in found.items()}
    content = {"model": "m", "task": "t", "answers": "own", "pivot": "en", "languages": shown, "predicts": told}
    sentence = prediction_sentence(content)
    assert "tell the AUROC and the calibrated accuracy that a language lacks (Spearman over 5 languages)" in sentence
    two = [f"{told['token_ratio'][gap]:+.2f}" for gap in ("auroc", "accuracy_calibrated")]
    assert f"tokens against the pivot {two[0]} and {two[1]}" in sentence
    rows = {row["language"]: row for row in csv.DictReader(diagnosis_csv(content).splitlines())}
    assert float(rows["th"]["gap_accuracy_calibrated"]) == pytest.approx(
        found["en"].accuracy_calibrated - found["th"].accuracy_calibrated
    )
    assert float(rows["th"]["gap_auroc"]) == pytest.approx(1 - found["th"].auroc) and float(rows["th"]["gap_auroc"]) > 0
    table = diagnosis_table(content)
    (body,) = table.groups.values()
    first, thai = body[0], next(row for row in body if row.cells["language"].text == "Thai")
    assert "gap_auroc" not in first.cells and thai.cells["gap_auroc"].text == f"+{100 * (1 - found['th'].auroc):.1f}"
    only = {name: {"accuracy_calibrated": each["accuracy_calibrated"]} for name, each in told.items()}
    assert "AUROC" not in prediction_sentence({**content, "predicts": only})
    bare = {
        code: {**each, "accuracy": None, "accuracy_calibrated": None, "auroc": None} for code, each in shown.items()
    }
    columns = [column.key for column in diagnosis_table({**content, "languages": bare}).columns]
    assert not any(key.startswith("gap") for key in columns)


def test_few_questions_have_no_correlation_and_unequal_ones_are_refused(odds):
    found = diagnose_language("de", said(odds[:5]), said(odds[:5]), LABELS)
    assert found.correlation is None and found.room == []
    with pytest.raises(DataError, match="got 5 questions against 60 of the pivot"):
        diagnose_language("de", said(odds[:5]), said(odds), LABELS)


def test_the_command_with_and_without_labels(tiny_folder, tmp_path):
    asked = ["diagnose", "--model", str(tiny_folder), "--languages", "de,en,sw,th,fr,ru", "--limit", "12"]
    result = CliRunner().invoke(app, [*asked, "-o", str(tmp_path / "labelled")])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "labelled" / "diagnosis.json").read_text())
    assert content["pivot"] == "en" and content["languages"]["en"]["agreement"] == 1.0
    assert content["languages"]["sw"]["n"] == 12 and content["languages"]["sw"]["accuracy"] is not None
    assert content["predicts"] and "which need no labels" in result.output.replace("\n", " ")
    for name in ("diagnosis.tex", "diagnosis.md", "figures/diagnosis.png", "figures/diagnosis.pdf"):
        assert (tmp_path / "labelled" / name).stat().st_size > 100
    rows = list(csv.DictReader((tmp_path / "labelled" / "diagnosis.csv").read_text().splitlines()))
    assert len(rows) == 6 and rows[0]["mexa_0"]
    for code in ("en", "de"):
        rows = [{"id": str(n), "text": f"{code} {n} is it good?"} for n in range(8)]
        (tmp_path / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = diagnose(model=str(tiny_folder), languages="en,de", source=str(tmp_path / "{lang}.jsonl"),
                     output_path=tmp_path / "bare")  # fmt: skip
    assert found["languages"]["de"]["accuracy"] is None and found["predicts"] == {}
    assert sentences(found)[0].startswith("German: the same answer as in English for ")


def test_questions_without_common_ids_are_refused(tiny_folder, tmp_path):
    for code in ("en", "de"):
        row = {"id": code, "text": "x", "label": "positive"}
        (tmp_path / f"{code}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="got no item with the same id in all of en de, expected parallel questions"):
        diagnose(model=str(tiny_folder), languages="en,de", source=str(tmp_path / "{lang}.jsonl"), output_path=tmp_path)
