"""Rows that stand twice, and rows that demonstrations show, whatever their case, blanks and Unicode form."""

import json

import pytest
import yaml

from glotlift.evaluation.repeats import repeat_warnings, repeated_rows, shown_rows
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.stages.evaluate import evaluate
from glotlift.tasks.load import load_task, task_file

SAME = ["Works well.", "works  WELL.", "Works\u00a0well.", "Ｗorks well.", "\ufeffWorks well.\n"]
OTHERS = ["Works well", "Wórks well.", "Works, well."]


def test_texts_that_a_reader_takes_for_the_same():
    texts = [{"text": text} for text in ["", *SAME, *OTHERS, ""]]
    assert repeated_rows(texts) == [[1, 2, 3, 4, 5]]
    assert repeated_rows([{"a": "x", "b": "y"}, {"a": "y", "b": "x"}]) == []


def test_rows_that_an_example_or_a_preamble_shows():
    texts = [{"text": text} for text in [*SAME, *OTHERS]]
    assert shown_rows({"pool[1]": {"text": "WORKS WELL."}}, [], texts) == [("pool[1]", index) for index in range(5)]
    assert shown_rows({}, ["A: works\nwell. B"], texts[1:2]) == [("preamble", 0)]
    assert shown_rows({}, ["A: good B"], [{"text": "good"}]) == []  # a common word


@pytest.fixture
def rows(tmp_path):
    """Return a function: (text, label) ... -> the pattern of row files in English and German, with the same rows."""

    def write(*pairs):
        lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
        for code in ("en", "de"):
            (tmp_path / f"rows_{code}.jsonl").write_text(lines, encoding="utf-8")
        return str(tmp_path / "rows_{lang}.jsonl")

    return write


def _warnings(source, languages="en", **entry):
    settings = {"tasks": [{"task": "sentiment", "source": source, **entry}], "languages": languages}
    (test_set,) = read_test_sets(EvalSettings.model_validate(settings)).values()
    return {each["kind"]: (each["languages"], each["text"]) for each in repeat_warnings(test_set)}


def test_what_an_evaluation_says_of_its_rows(rows):
    shown = load_task("sentiment").pack("en").demonstrations[0]
    source = rows(("One.", "positive"), ("one. ", "negative"), ("Two!", "positive"), ("TWO!", "positive"),
                  (shown.fields["text"].upper(), shown.label))  # fmt: skip
    assert _warnings(source, "en,de") == {
        "leakage": (["en"], "the demonstrations show the model 1 test item with the answer"),
        "duplicates": (
            ["en", "de"], "2 test items a language more than once, so that intervals come out too narrow"
        ),
        "contradictions": (["en", "de"], "1 test item a language more than once with different labels"),
    }  # fmt: skip
    assert "leakage" not in _warnings(source, num_fewshot=0)  # nothing is shown
    assert _warnings(rows(("One.", "positive"), ("Two.", "negative"))) == {}


def test_a_preamble_that_is_used_leaks_and_one_that_is_left_out_does_not(rows, tmp_path):
    content = yaml.safe_load(task_file("sentiment").read_text(encoding="utf-8"))
    pack = content["languages"]["en"]
    content["languages"] = {"en": {key: pack[key] for key in ("question", "cue", "answer_sets")}}
    content["languages"]["en"]["preamble"] = 'Review: A good lamp indeed\nSentiment: "positive"\n\n'
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    source = rows(("a good LAMP  indeed", "positive"), ("Two.", "negative"))
    assert list(_warnings(source, task=str(tmp_path / "own.yaml"))) == ["leakage"]
    assert _warnings(source, task=str(tmp_path / "own.yaml"), num_fewshot=0) == {}


def test_they_stand_in_the_scores(rows, tiny_folder, tmp_path):
    source = rows(("One.", "positive"), ("one. ", "negative"))
    scores = evaluate(model=str(tiny_folder), source=source, languages="en", output_path=tmp_path / "out")
    kinds = [(each["kind"], each["test_set"], each["languages"]) for each in scores["glotlift"]["warnings"]]
    assert kinds == [("duplicates", "sentiment", ["en"]), ("contradictions", "sentiment", ["en"])]
