"""Baselines: what each asks, what it is compared with, and that an ensemble of twice the same changes nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from glotlift.errors import DataError, RecipeError
from glotlift.evaluation.baselines import ensemble
from glotlift.evaluation.predictions import read_predictions
from glotlift.reporting.baselines import baseline_table
from glotlift.stages.evaluate import evaluate


@pytest.fixture
def asked(tiny_folder, tmp_path):
    return {
        "model": str(tiny_folder), "languages": "en,de,sw", "limit": 8, "answers": "english",
        "output_path": tmp_path / "eval",
    }  # fmt: skip


def translations(folder, code, ids, fields="text"):
    rows = [{"id": name, fields: f"A translation of {name} from {code}."} for name in ids]
    (folder / f"mt_{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_baseline_is_asked_and_compared(asked, tmp_path):
    for code in ("de", "sw"):
        translations(tmp_path, code, [f"s{n:02}" for n in range(1, 9)])
    scores = evaluate(baselines="english-demos,oracle", translated=str(tmp_path / "mt_{lang}.jsonl"), **asked)
    task = scores["glotlift"]["tasks"]["sentiment"]
    assert list(task["baselines"]) == ["english-demos", "translated", "oracle", "ensemble"]
    assert scores["glotlift"]["variants"] == ["base"]
    texts = {}
    for name in ("base", "english-demos", "translated", "oracle"):
        frame = pd.read_parquet(tmp_path / "eval" / "predictions" / name / "sentiment" / "de.parquet")
        texts[name] = frame["text"].tolist()
    assert texts["english-demos"] == texts["base"] != texts["oracle"]
    assert texts["translated"][0] == "A translation of s01 from de."
    english = pd.read_parquet(tmp_path / "eval" / "predictions" / "base" / "sentiment" / "en.parquet")
    oracle = pd.read_parquet(tmp_path / "eval" / "predictions" / "oracle" / "sentiment" / "de.parquet")
    np.testing.assert_allclose(oracle["sequence_positive"], english["sequence_positive"], atol=1e-4)
    raw = task["baselines"]["oracle"]["raw"]["all"]
    languages = task["languages"]
    assert raw["b"] == pytest.approx(languages["en"]["base"]["accuracy"])
    assert raw["a"] == pytest.approx(np.mean([languages[code]["base"]["accuracy"] for code in ("de", "sw")]))
    table = baseline_table(task, "sentiment")
    assert [row.cells["way"].text for row in table.groups[""]] == [
        "asked directly", "English prompt around the question", "translated into English, then asked",
        "its English version asked (oracle)", "direct and English answers together",
    ]  # fmt: skip
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "eval" / "predictions").rglob("*.parquet")}
    evaluate(baselines="english-demos,oracle", translated=str(tmp_path / "mt_{lang}.jsonl"), **asked)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_without_baselines_there_is_no_table(asked):
    task = evaluate(**asked)["glotlift"]["tasks"]["sentiment"]
    assert baseline_table(task, "sentiment") is None


def test_an_ensemble_with_itself_orders_items_as_before(asked, tmp_path):
    evaluate(**asked)
    direct = read_predictions(tmp_path / "eval", "sentiment", ["base"], ["de"])
    frame = ensemble(direct, direct).frames["ensemble"]["de"]
    own = direct.frames["base"]["de"]
    odds = [each["sequence_positive"] - each["sequence_negative"] for each in (frame, own)]
    np.testing.assert_allclose(odds[0], 2 * (odds[1] - odds[1].mean()))


def test_faults(asked, tmp_path):
    translations(tmp_path, "de", ["s01"])
    translations(tmp_path, "sw", ["s01"])
    with pytest.raises(DataError, match="de: got no translation of item 's02', expected one of every item"):
        evaluate(translated=str(tmp_path / "mt_{lang}.jsonl"), **asked)
    with pytest.raises(RecipeError, match="baselines"):
        evaluate(baselines="french-demos", **asked)
    with pytest.raises(DataError, match="de: got no English version of item 's01'"):
        evaluate(baselines="oracle", **{**asked, "languages": "de"})
