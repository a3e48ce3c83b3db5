from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from glotlift.reporting.card import base_model, escape_markdown, licence, model_card
from glotlift.reporting.figures import Figure
from glotlift.reporting.names import guarantee
from glotlift.reporting.read import read_run
from tests.reporting.conftest import as_in_0_1, write

FIGURES = [Figure("grid-nli", "across", "nli", "Grid", "", "")]
FIGURE = Figure("accuracy-sentiment", "results", "sentiment", "Accuracy", "", "")


def split(card: str) -> tuple[dict, str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_front_matter_is_what_the_hub_reads(make_run):
    head, _ = split(model_card(read_run(make_run(languages=("en", "no", "zh", "de"))), [FIGURE]))
    assert head["base_model"] == "google/gemma-3-270m"
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-generation"
    assert head["language"] == ["en", "zh", "de", "no"]
    assert {"glotlift", "lora", "question-alignment"} <= set(head["tags"])


def test_card_says_what_was_tuned_results_limits_and_versions(make_run):
    _, body = split(model_card(read_run(make_run()), [FIGURE]))
    assert "from Chinese and German into English" in body and "- Question pairs: 80\n" in body
    assert "- Settings: rank 16, alpha 32, learning rate 0.0002, epochs 1.0\n" in body
    assert "![Accuracy](figures/accuracy-sentiment.png)\n\n| language | " in body
    assert "## Limits\n" in body and "https://ai.google.dev/gemma/terms" in body
    assert "Versions: python 3.12.1, " in body and "torch 2.9.0, " in body
    assert "glotlift run recipe.yaml" in body


def test_every_table_row_has_the_same_columns(make_run):
    run = make_run(labels=("a|b", "c"), stages=("scores",))
    _, body = split(model_card(read_run(run), []))
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4 + 3
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_an_evaluation_is_not_called_an_adapter(make_run):
    head, body = split(model_card(read_run(make_run(tuned=False)), []))
    assert "library_name" not in head and "lora" not in head["tags"]
    assert "nothing was tuned" in body and "from peft" not in body


def test_card_says_what_a_gain_is_made_of_and_what_its_columns_are(many, tmp_path: Path):
    write(tmp_path / "scores.json", many)
    task = many["glotlift"]["tasks"]["mood.own"]
    run = read_run(tmp_path)
    _, body = split(model_card(run, [*FIGURES, FIGURE]))
    assert escape_markdown(task["parts_sentence"]) in body
    assert "*Contextual* is accuracy after contextual calibration" in body
    assert "*ECE* is the expected calibration error" in body and "*Raw* is" not in body
    assert re.search(r"\| AUROC \| ECE \| predicted \|", body)
    assert "### nli.in-de" not in body and "### para.seed0" not in body and "### mood.arbitrary" in body
    assert "![Grid](figures/grid-nli.png)" in body and "Over 3 draws of demonstrations" in body


def test_a_card_of_old_scores_speaks_of_no_new_measure(make_run, tmp_path: Path):
    scores = json.loads((make_run(stages=("scores",)) / "scores.json").read_text(encoding="utf-8"))
    write(tmp_path / "scores.json", as_in_0_1(scores))
    _, body = split(model_card(read_run(tmp_path), []))
    assert "*Calibrated*" in body and "ECE" not in body and "ontextual" not in body


def test_an_empty_run_has_a_card(tmp_path: Path):
    head, body = split(model_card(read_run(tmp_path), []))
    assert "base_model" not in head and "language" not in head and "## Results" not in body


@pytest.mark.parametrize(
    "name, expected",
    [("demo", "google/gemma-3-270m"), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), ("gpt2", "gpt2"), ("/models/x", ""),
     ("./x", ""), ("x.gguf", ""), ("", ""), ("<b>", "")],
)  # fmt: skip
def test_base_model_is_a_hub_id_or_nothing(name, expected):
    assert base_model(name) == expected


def test_a_local_folder_is_no_hub_id(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert base_model("org/model") == ""


def test_markdown_is_escaped():
    assert escape_markdown("a|b\n<i>*x*") == r"a\|b &lt;i&gt;\*x\*"


@pytest.mark.parametrize(
    ("question_only", "flags", "overlap", "sentence"),
    [
        (True, {}, (0, 47, 0), "No pair holds an answer of the task; none of 47 evaluation texts has 8 tokens in a "
         "row in common with a pair."),
        (False, {"answer": 3}, (2, 1047, 5), "3 pairs hold an answer of the task; 2 of 1,047 evaluation texts have 8 "
         "tokens in a row in common with 5 pairs."),
        (None, {}, (0, 0, 0), "Answers were not looked for; there were no evaluation texts to compare with."),
    ],
)  # fmt: skip
def test_the_guarantee_says_what_the_audit_found(question_only, flags, overlap, sentence):
    items, of, pairs = overlap
    found = {"n": 8, "items": items, "of": of, "pairs": pairs}
    assert guarantee({"pairs": 9, "question_only": question_only, "flags": flags, "overlap": found}) == sentence
    assert guarantee({}) == ""


def _changed(run, train=None, data=None, **audit):
    """Return the card of a run whose recipe and audit say something else."""
    recipe = {**run.recipe, "train": {**run.recipe.get("train", {}), **(train or {})},
              "data": {**run.recipe.get("data", {}), **(data or {})}}  # fmt: skip
    return model_card(dataclasses.replace(run, recipe=recipe, audit={**run.audit, **audit}), [])


def test_the_card_claims_that_no_answer_was_seen_only_where_that_was_found(make_run):
    claim, run = "No answer of the task was found in the training data.", read_run(make_run())
    assert claim in _changed(run, question_only=True)
    for found in (False, None):
        assert claim not in _changed(run, question_only=found)


def test_the_card_says_what_was_tuned_and_in_which_direction(make_run):
    run = read_run(make_run())
    plain = _changed(run)
    assert "tuned with LoRA to translate questions from Chinese and German into English (" in plain
    full = _changed(run, train={"method": "full"}, data={"direction": "from-english"})
    assert "tuned in all its weights to translate questions from English into Chinese and German (" in full
    assert "- Languages: from English into Chinese and German\n" in full


@pytest.mark.parametrize("objective", ["readout", "steering"])
def test_a_card_of_what_tunes_no_weight_tells_nothing_of_tuning(make_run, objective):
    run = read_run(make_run(stages=("data", "train", "scores")))
    about = {"objective": {objective: 1.0}, "control": "none", "teacher": "sentences", "center": None,
             "answers": "english"}  # fmt: skip
    run = dataclasses.replace(run, history={"log": [], "seen": ["zh", "de"], "pivot": "en", **about})
    for folder, adapter in (("", "adapter"), ("adapter", ".")):
        head, body = split(model_card(run, [], folder))
        assert head["library_name"] == "glotlift" and "lora" not in head["tags"] and objective in head["tags"]
        assert f"- Settings: objective {objective}, teacher sentences, answers english\n" in body
        command = f"glotlift eval --model google/gemma-3-270m --adapter {adapter} --tasks sentiment --answers english"
        assert f"```\n{command}\n```\n" in body
        for wrong in ("LoRA", "from peft", "from_pretrained", "learning rate", "tuned on\n"):
            assert wrong not in body
    assert "Chinese and German" in body


def test_a_card_of_a_tuned_objective_lists_it_and_its_teacher(make_run):
    run = read_run(make_run())
    about = {"objective": {"consistency": 1.0, "translation": 0.2}, "teacher": "ensemble", "answers": "own"}
    head, body = split(model_card(dataclasses.replace(run, history={**run.history, **about}), []))
    assert {"lora", "consistency", "question-alignment"} <= set(head["tags"])
    assert "- Settings: objective 1 consistency, 0.2 translation, teacher ensemble, answers own, rank 16" in body
    assert "AutoPeftModelForCausalLM.from_pretrained" in body


def test_the_demo_model_s_licence_is_told_in_the_card_and_to_the_hub(make_run):
    run = read_run(make_run())
    assert run.model == "demo"
    for folder in ("", "adapter"):
        card = model_card(run, (), folder)
        assert yaml.safe_load(card.split("---")[1])["license"] == "gemma"
        assert "https://ai.google.dev/gemma/terms" in card
    other = model_card(dataclasses.replace(run, scores={**run.scores, "model": "org/model"}), ())
    assert "license" not in yaml.safe_load(other.split("---")[1])
    assert "glotlift does not know them" in other


@pytest.mark.parametrize(
    ("model", "known"),
    [("google/gemma-3-1b-it", True), ("google/gemma-2b", True), ("google/gemma-2-9b", True),
     ("google/gemma-4-1b", False), ("org/gemma-3-1b", False)],
)  # fmt: skip
def test_licences_are_those_of_the_very_weights(model, known):
    assert (licence(model) is not None) == known
