"""Objectives as runs: what each leaves, what it refuses, and that none reads an answer."""

import json
import random
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from glotlift.cli import app
from glotlift.data.questions import QuestionPair
from glotlift.data.read import read_items
from glotlift.errors import DataError, LanguageError, ModelError, RecipeError
from glotlift.evaluation import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models import forward
from glotlift.models.load import load_model
from glotlift.models.readout import load_readout, save_readout
from glotlift.models.steering import Steering, load_steering
from glotlift.recipe import Recipe
from glotlift.reporting.opening import opening
from glotlift.reporting.read import read_run
from glotlift.stages.evaluate import evaluate
from glotlift.stages.merge import merge
from glotlift.stages.objectives import copied
from glotlift.stages.run import run
from glotlift.stages.train import train
from glotlift.tasks.load import load_task

TEXTS = [f"This is question number {n}. It is {'good' if n % 3 else 'bad'}." for n in range(14)]


def questions(folder, gold=True, drop=(), is_permuted=False):
    folder.mkdir(exist_ok=True)
    labels = ["positive", "negative"] * (len(TEXTS) // 2)
    if is_permuted:
        random.Random(1).shuffle(labels)
    for code in ("en", "de", "sw"):
        rows = [{"id": f"q{n}", "text": f"{code}: {text}"} for n, text in enumerate(TEXTS) if (code, n) not in drop]
        if gold:
            rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=False)]
        (folder / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "{lang}.jsonl")


@pytest.fixture
def recipe(tiny_folder, tmp_path):
    def make(source=None, data=None, **training):
        content = {
            "name": "small",
            "model": str(tiny_folder),
            "data": {
                "task": "sentiment",
                "source": source or questions(tmp_path / "questions"),
                "languages": ["de", "sw"],
                "validation_fraction": 0.2,
                **(data or {}),
            },
            "train": {"rank": 2, "batch_size": 4, "micro_batch_size": 2, "epochs": 1, "answers": "english", **training},
            "eval": {"tasks": [{"task": "sentiment", "limit": 4}], "languages": ["en", "de", "fr"]},
            "explain": {"languages": ["en", "de"], "limit": 4},
        }
        return Recipe.model_validate(content)

    return make


@pytest.mark.parametrize(
    "training",
    [
        {"objective": "consistency"},
        {"objective": "consistency", "teacher": "ensemble", "replay": 0.5},
        {"objective": "contrastive"},
        {"objective": {"consistency": 1.0, "translation": 0.25, "contrastive": 0.1}},
    ],
)
def test_tuned_objectives_leave_an_adapter_that_evaluates(recipe, tmp_path, training):
    folder = train(recipe(**training), tmp_path / "run")
    history = json.loads((folder / "history.json").read_text())
    assert set(history["objective"]) <= set(history["parts"])
    is_taught = "consistency" in history["objective"]
    assert history["teacher"] == (training.get("teacher", "sentences") if is_taught else None)
    assert (history["center"], history["answers"]) == ("language" if is_taught else None, "english")
    assert ("replay" in history["parts"]) == ("replay" in training)
    assert all(part["rows_seen"] for part in history["parts"].values())
    scores = evaluate(
        model=history["base_model"], adapter=str(folder), languages="en,de", limit=4, output_path=tmp_path
    )
    assert scores["glotlift"]["variants"] == ["base", "tuned"]
    assert scores["glotlift"]["training"]["teacher"] == history["teacher"]


def test_a_report_tells_a_gain_from_a_preference_trained_away_and_from_labels(recipe, tmp_path, caplog):
    probe = {"steps": 2, "languages": ["sw"], "limit": 2}
    folder = run(recipe(objective="consistency", center="zero", layer=0.3, probe=probe), tmp_path / "run")
    assert "objective consistency does not read layer: written for nothing" in caplog.text
    assert "probe: RIGHT ANSWERS ARE READ of its items" in caplog.text
    evaluate(model=json.loads((folder / "adapter" / "history.json").read_text())["base_model"],
             adapter=str(shutil.copytree(folder / "adapter", tmp_path / "elsewhere")), languages="en,fr", limit=4,
             output_path=tmp_path / "eval")  # fmt: skip
    for path in (folder, tmp_path / "eval"):
        said = opening(read_run(path)).paragraph
        assert "held to none (center zero), not to its own, so a gain in raw accuracy may be a shifted" in said
        assert "chosen by a probe, which reads right answers: no result without labels" in said
    caplog.clear()
    plain = opening(read_run(run(recipe(objective="consistency"), tmp_path / "plain"))).paragraph
    assert "mean label score" not in plain and "probe" not in plain and "RIGHT ANSWERS" not in caplog.text


@pytest.mark.parametrize("objective", ["readout", "steering"])
def test_what_tunes_no_weight_is_fitted_on_the_questions_that_validate_others(recipe, tmp_path, objective):
    found = [
        next(
            train(recipe(data={"validation_fraction": share}, objective=objective), tmp_path / str(share)).glob("*.sa*")
        )
        for share in (0.0, 0.5)
    ]
    assert found[0].read_bytes() == found[1].read_bytes()


def test_a_readout_goes_through_a_whole_run(recipe, tmp_path, monkeypatch):
    folder = run(recipe(objective="readout"), tmp_path / "run")
    readout = load_readout(folder / "adapter", 32, 3)
    assert 1 <= readout.layer <= 3 and readout.labels == ("positive", "negative")
    assert not (folder / "merged").exists()
    history = json.loads((folder / "adapter" / "history.json").read_text())
    assert history["readout"]["is_used"] and history["readout"]["chosen"]["agreement"] > history["readout"]["without"]
    scores = json.loads((folder / "scores.json").read_text())["glotlift"]
    assert scores["variants"] == ["base", "tuned"]
    base, tuned = (
        (folder / "predictions" / variant / "sentiment" / "fr.parquet").read_bytes() for variant in ("base", "tuned")
    )
    assert base != tuned
    assert "got a readout of a middle layer, fitted on questions in German and Swahili" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    assert "library_name: glotlift" in (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    merge(folder)
    assert not (folder / "merged").exists()


def test_a_readout_of_another_ones_teacher_leaves_the_answers_of_the_base(recipe, tmp_path, tiny_folder, caplog):
    folder = run(recipe(objective="readout", control="constant-teacher"), tmp_path / "run")
    assert "it gets no weight, and the tuned model answers as the base does" in caplog.text
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "so it has no weight: the tuned model answers as the base does." in card
    frames = [
        pd.read_parquet(folder / "predictions" / variant / "sentiment" / "fr.parquet") for variant in ("base", "tuned")
    ]
    pd.testing.assert_frame_equal(*frames)
    shutil.copytree(folder / "adapter", tmp_path / "elsewhere")
    evaluate(model=str(tiny_folder), adapter=str(tmp_path / "elsewhere"), languages="en,fr", limit=4,
             output_path=tmp_path / "eval")  # fmt: skip
    said = opening(read_run(tmp_path / "eval")).paragraph
    assert "got a readout of a middle layer, fitted on questions in German and Swahili" in said
    assert "under the control constant-teacher" in said and "so it has no weight" in said


def test_states_of_a_readout_come_from_the_pass_that_scores_and_are_the_same_to_the_byte_without(
    recipe, tmp_path, monkeypatch
):
    passes = []

    def counted(*given, **options):
        passes.append(options["last_states"])
        return forward.run(*given, **options)

    monkeypatch.setattr(predict, "run", counted)
    folder = train(recipe(objective="readout"), tmp_path / "run")
    assert passes == [True] * 4  # three languages, and the English sentences
    found = (folder / "readout.safetensors").read_bytes()
    for missing in ([], ["de.parquet"], ["en.sentences.parquet", "sw.parquet"]):  # as a kill may leave it
        shutil.rmtree(folder)
        for name in missing:
            (tmp_path / "run" / "teacher" / name).unlink()
        assert (train(recipe(objective="readout"), tmp_path / "run") / "readout.safetensors").read_bytes() == found
    assert passes == [True] * 16


def test_a_readout_is_of_one_task_and_one_shape_of_model(recipe, tmp_path, tiny_folder):
    folder = train(recipe(objective="readout"), tmp_path / "run")
    (tmp_path / "nli_de.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "entailment"}\n')
    nli = str(tmp_path / "nli_{lang}.jsonl")
    asked = {"model": str(tiny_folder), "adapter": str(folder), "languages": "de", "limit": 2, "output_path": tmp_path}
    with pytest.raises(ModelError, match="got a readout of the labels positive, negative, expected one of entailment"):
        evaluate(tasks="nli", source=nli, **asked)
    with pytest.raises(ModelError, match="--no-prefix-cache with a readout"):
        evaluate(prefix_cache=False, **asked)
    with pytest.raises(ModelError, match="hidden size 32, layer . expected|expected hidden size 8"):
        load_readout(folder, 8, 3)
    (folder / "readout.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelError, match="cannot be read as a readout"):
        evaluate(**asked)


@pytest.mark.parametrize(
    "training",
    [
        {"objective": "consistency"},
        {"objective": "consistency", "teacher": "ensemble", "replay": 0.5},
        {"objective": "readout"},
        {"objective": "readout", "teacher": "ensemble"},
        {"objective": "steering"},
        {"objective": {"contrastive": 1.0, "translation": 1.0}, "replay": 0.5},
    ],
    ids=str,
)
def test_no_objective_reads_a_right_answer(recipe, tmp_path, training):
    """Questions with right answers, with wrong ones, and without any give the same bytes."""
    found = {}
    for name, gold in {"right": {}, "permuted": {"is_permuted": True}, "missing": {"gold": False}}.items():
        source = questions(tmp_path / "questions", **gold)
        folder = train(recipe(source, **training), tmp_path / name)
        file = next(folder.glob("*.safetensors"))
        assert all(tensor.any() for tensor in load_file(file).values())
        found[name] = file.read_bytes()
    assert found["permuted"] == found["right"]
    assert found["missing"] == found["right"]


def test_the_ceiling_reads_them_and_says_so(recipe, tmp_path, caplog):
    folder = train(recipe(objective="readout", control="gold"), tmp_path / "gold")
    other = train(recipe(objective="readout"), tmp_path / "plain")
    assert (folder / "readout.safetensors").read_bytes() != (other / "readout.safetensors").read_bytes()
    assert "RIGHT ANSWERS ARE READ" in caplog.text
    source = questions(
        tmp_path / "questions", is_permuted=True
    )  # what the test above would see of an objective that reads them
    wrong = train(recipe(source, objective="readout", control="gold"), tmp_path / "permuted")
    assert (wrong / "readout.safetensors").read_bytes() != (folder / "readout.safetensors").read_bytes()
    source = questions(tmp_path / "questions", gold=False)
    with pytest.raises(DataError, match="label"):
        train(recipe(source, objective="readout", control="gold"), tmp_path / "none")
    assert not (tmp_path / "none" / "teacher").exists()  # said before the model is asked anything


def test_teacher_scores_are_computed_once(recipe, tmp_path):
    train(recipe(objective="consistency"), tmp_path / "run")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "teacher").glob("*.parquet")}
    assert sorted(path.stem for path in kept) == ["de", "de.sentences", "en", "en.sentences", "sw", "sw.sentences"]
    train(recipe(objective="consistency", learning_rate=1e-3), tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": {"direction": "from-english"}},
            "expected to-english: what the model says in English is what it learns",
        ),
        ({"data": {"direction": "via:de", "languages": ["sw"]}}, "got data.direction via:de"),
    ],
)
def test_what_cannot_be_compared_is_refused(recipe, tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        train(recipe(objective="consistency", **changes), tmp_path / "run")


def test_questions_must_have_ids_in_common(recipe, tmp_path):
    source = questions(tmp_path / "few", drop={("sw", n) for n in range(1, 14)})
    with pytest.raises(DataError, match="got 1 questions with the same id in all of en, de, sw, expected at least 2"):
        train(recipe(source, data={"validation_fraction": 0.0}, objective="consistency"), tmp_path / "run")
    source = questions(tmp_path / "some", drop={("sw", n) for n in range(5, 14)})
    with pytest.raises(DataError, match="got 5 questions for a readout, expected at least 10"):
        train(recipe(source, objective="readout"), tmp_path / "run")


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"objective": "consistancy"}, "got consistancy, expected one of translation, consistency"),
        ({"objective": {"readout": 1, "translation": 1}}, "got readout together with others, expected it alone"),
        ({"objective": {"translation": 0}}, "greater than 0"),
        ({"objective": "translation", "control": "gold"}, "got control gold for translation, which has no teacher"),
    ],
)
def test_settings_that_do_not_fit_are_refused(recipe, training, said):
    with pytest.raises((RecipeError, ValueError), match=said):
        recipe(**training)


def test_a_folder_of_finished_pairs_has_no_fields(recipe, tmp_path):
    with pytest.raises(DataError, match="got a folder of finished pairs for train.objective consistency"):
        train(recipe(str(tmp_path), objective="consistency"), tmp_path / "run")


def test_steering_goes_through_a_run_and_leaves_other_languages_alone(recipe, tmp_path):
    folder = run(recipe(objective="steering", teacher="english"), tmp_path / "run")
    chosen = json.loads((folder / "adapter" / "history.json").read_text())["steering"]["chosen"]
    (tmp_path / "steered").mkdir()
    file = folder / "adapter" / "steering.safetensors"
    with safe_open(file, "pt") as stored:
        about = json.loads(stored.metadata()["steering"])
        offsets = {code: stored.get_tensor(code) for code in stored.keys()}  # noqa: SIM118
    assert about["strength"] == chosen["strength"] and set(offsets) == {"de", "sw"}
    about["strength"] = 1.0  # whatever was chosen, steer
    save_file({code: 20 * each for code, each in offsets.items()}, file, {"steering": json.dumps(about)})
    shutil.rmtree(folder / "predictions" / "tuned")
    base = json.loads((folder / "scores.json").read_text())["glotlift"]["model"]
    evaluate(model=base, adapter=str(folder / "adapter"), languages="en,de,fr", limit=4, output_path=folder)
    moved = {}
    for code in ("en", "de", "fr"):
        frames = [
            pd.read_parquet(folder / "predictions" / variant / "sentiment" / f"{code}.parquet")
            for variant in ("base", "tuned")
        ]
        moved[code] = not frames[0]["sequence_positive"].equals(frames[1]["sequence_positive"])
    assert moved == {"en": False, "de": True, "fr": False}
    assert _by_flag(folder / "adapter", tmp_path) == (folder / "predictions/tuned/sentiment/de.parquet").read_bytes()
    assert "steered to the English ones" in (folder / "README.md").read_text(encoding="utf-8")


def _by_flag(steering, tmp_path):
    """Return the German predictions that `eval --steering` writes."""
    history = json.loads((steering / "history.json").read_text())
    asked = ["eval", "--model", history["base_model"], "--steering", str(steering), "--languages", "de", "--limit", "4"]
    result = CliRunner().invoke(app, [*asked, "-o", str(tmp_path / "flag")])
    assert result.exit_code == 0, result.output
    return (tmp_path / "flag/predictions/tuned/sentiment/de.parquet").read_bytes()


def test_help_says_all_that_an_adapter_can_be():
    shown = " ".join(CliRunner().invoke(app, ["eval", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "--adapter,--steering" in shown
    assert "a peft adapter, a whole tuned model, a readout or steering" in shown


def test_steering_of_another_model_is_refused(recipe, tmp_path, tiny_folder):
    folder = train(recipe(objective="steering"), tmp_path / "run")
    with pytest.raises(ModelError, match="got steering of another model"):
        load_steering(folder, 32, 3, "another")
    with pytest.raises(ModelError, match="got steering of another model"):
        load_steering(folder, 8, 3, json.loads((folder / "history.json").read_text())["base_fingerprint"])
    (folder / "steering.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelError, match="cannot be read as steering"):
        evaluate(model=str(tiny_folder), adapter=str(folder), languages="de", limit=2, output_path=tmp_path)


def test_steering_is_undone_whatever_happens(tiny):
    model = tiny("llama").model
    steering = Steering(1, 2, 1.0, {"de": torch.ones(32)}, "x")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(RuntimeError, match="stop"), steering.steered(model, "de"):
            assert not torch.equal(model(ids).logits, before)
            raise RuntimeError("stop")
        assert torch.equal(model(ids).logits, before)
        with steering.steered(model, "fr"):
            assert torch.equal(model(ids).logits, before)


def test_a_language_without_prompts_is_refused(recipe, tmp_path):
    pack = {"template": "{text}\nA: ", "answer_sets": {"own": {"yes": "yes", "no": "no"}}}
    content = {"name": "two", "fields": ["text"], "labels": ["yes", "no"], "languages": {"en": pack, "de": pack}}
    (tmp_path / "two.yaml").write_text(json.dumps(content))
    with pytest.raises(LanguageError, match="task 'two' has no prompts in 'sw'; it has: en de"):
        train(recipe(data={"task": str(tmp_path / "two.yaml")}, objective="consistency", answers="own"), tmp_path / "r")


def test_labels_whose_first_tokens_agree_are_taught_over_the_trie(recipe, tmp_path):
    pack = {"template": "{text}\nA: ", "answer_sets": {"own": {"yes": "good thing", "no": "good grief"}}}
    content = {"name": "two", "fields": ["text"], "labels": ["yes", "no"],
               "languages": dict.fromkeys(("en", "de", "sw"), pack)}  # fmt: skip
    (tmp_path / "two.yaml").write_text(json.dumps(content))
    source = questions(tmp_path / "questions", gold=False)
    made = recipe(source, data={"task": str(tmp_path / "two.yaml")}, objective="consistency", answers="own")
    history = json.loads((train(made, tmp_path / "run") / "history.json").read_text())
    assert history["log"][0]["loss"] > 0 and history["parts"]["consistency"]["rows_seen"]


def test_a_folder_called_sample_is_not_taken_for_the_bundled_one(recipe, tmp_path, monkeypatch):
    (tmp_path / "sample").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = train(recipe("sample", data={"languages": ["de"], "limit": 10}, objective="readout"), tmp_path / "run")
    assert (folder / "readout.safetensors").is_file()


def test_copied_pairs_hold_one_language(recipe, tmp_path):
    pair = QuestionPair(
        "de:q1", "de", "en", "Frage\nTranslate the input from German to English:\n", "A question\nof two"
    )
    assert copied(pair).input == "A question\nof two\nTranslate the input from German to English:\n"
    weights = [
        (train(recipe(objective="translation", control=control), tmp_path / control) / "adapter_model.safetensors")
        for control in ("none", "copied-pairs")
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    with pytest.raises(ValueError, match="got control copied-pairs for contrastive, expected it for translation"):
        recipe(objective="contrastive", control="copied-pairs")


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_readout_runs_no_block_behind_its_layer(recipe, tmp_path, tiny_folder, monkeypatch, own):
    adapter = train(recipe(objective="readout"), tmp_path / "run")
    found = load_readout(adapter, 32, 3)
    save_readout(replace(found, layer=1, own=own), adapter)
    loaded = load_model(str(tiny_folder), adapter=str(adapter))
    task, entry = load_task("sentiment"), EvalTask(task="sentiment")
    items = read_items(task, "sample", ("fr",), limit=6)["fr"]
    whole = predict.predict(loaded, prepare(loaded, task, "fr", items, entry), "tuned")
    ends = []

    def seen(*given, **options):
        ends.append(options.get("until"))
        return forward.run(*given, **options)

    monkeypatch.setattr(predict, "run", seen)
    evaluate(model=str(tiny_folder), adapter=str(adapter), tasks="sentiment", languages="fr", limit=6,
             output_path=tmp_path / "eval")  # fmt: skip
    assert ends == [None, 1]  # base, tuned
    frame = pd.read_parquet(tmp_path / "eval" / "predictions" / "tuned" / "sentiment" / "fr.parquet")
    scores = [name for name in whole.columns if name.startswith(("sequence_", "first_token_", "prefix_mass_"))]
    assert len(scores) >= 6
    pd.testing.assert_frame_equal(frame[scores], whole[scores], atol=1e-4)
    assert list(frame["predicted"]) == list(whole["predicted"])
