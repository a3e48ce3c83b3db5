"""`glotlift eval` and its flags, end to end on a tiny model."""

import json
import logging
import os
import signal
from itertools import count
from pathlib import Path

import pytest

from glotlift import compare, evaluate
from glotlift.cli import main
from glotlift.errors import DataError, ModelError, RecipeError, TaskError
from glotlift.evaluation.journal import Journal
from glotlift.reporting.baselines import strength_table
from glotlift.runs import read_parquet
from glotlift.tasks.load import load_task
from tests.models.test_adapters import write_adapter
from tests.warm import Warm, as_by_torchrun

pytestmark = pytest.mark.usefixtures("_quiet")


@pytest.fixture
def _quiet(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def evaluated(tiny_folder, folder, **options):
    settings = {"model": str(tiny_folder), "languages": "de,th", "limit": 8, "output_path": folder, **options}
    return evaluate(**settings)


def test_answer_languages_make_the_grid(tiny_folder, tmp_path):
    scores = evaluated(tiny_folder, tmp_path, answer_languages="de,en,th")["glotlift"]
    assert list(scores["tasks"]) == ["sentiment.in-de", "sentiment.in-en", "sentiment.in-th"]
    found = scores["answer_language_grid"]["sentiment"]
    assert found["test_sets"] == {code: [f"sentiment.in-{code}"] for code in ("de", "en", "th")}
    grid = found["base"]
    assert {prompt: list(row) for prompt, row in grid.items()} == {"de": ["de", "en", "th"], "th": ["de", "en", "th"]}
    assert grid["th"]["en"] == scores["tasks"]["sentiment.in-en"]["languages"]["th"]["base"]["accuracy"]
    own = evaluated(tiny_folder, tmp_path / "own")["glotlift"]["tasks"]["sentiment"]["languages"]
    assert own["de"]["base"]["auroc"] == scores["tasks"]["sentiment.in-de"]["languages"]["de"]["base"]["auroc"]
    shown = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["glotlift"]["tasks"]["sentiment.in-en"]
    assert shown["label_words"] == dict.fromkeys(("de", "th"), {"positive": "positive", "negative": "negative"})
    german = load_task("sentiment").answers("de", "own")
    shown = json.loads((tmp_path / "own" / "scores.json").read_text(encoding="utf-8"))["glotlift"]["tasks"]["sentiment"]
    assert shown["label_words"]["de"] == german != shown["label_words"]["th"]


def test_an_adapter_of_another_base_is_told_in_the_scores(tiny_folder, tmp_path):
    adapter = write_adapter(tmp_path / "adapter")
    history = {"seen": ["zh"], "pivot": "en", "base_model": "owner/other", "base_fingerprint": "of other weights"}
    (adapter / "history.json").write_text(json.dumps(history), encoding="utf-8")
    asked = {"languages": "de", "limit": 2, "adapter": str(adapter)}
    evaluated(tiny_folder, tmp_path / "out", **asked)
    (told,) = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))["glotlift"]["warnings"]
    text = told.pop("text")
    assert told == {"kind": "foreign-adapter", "test_set": None, "languages": []}
    assert f"made for 'owner/other', and is used on '{tiny_folder}'" in text
    (adapter / "history.json").unlink()
    assert evaluated(tiny_folder, tmp_path / "out", **asked)["glotlift"]["warnings"] == []


def test_demonstration_draws_differ_and_their_spread_is_told(tiny_folder, tmp_path):
    scores = evaluated(tiny_folder, tmp_path, demo_seeds=4, seed=7, log_samples=True)["glotlift"]
    assert list(scores["tasks"]) == [f"sentiment.seed{seed}" for seed in (7, 8, 9, 10)]
    spread = scores["demonstration_spread"]["sentiment.own"]
    means = [scores["tasks"][key]["means"]["base"]["accuracy"] for key in spread["test_sets"]]
    assert spread["base"]["mean"]["min"] == min(means)
    assert spread["base"]["mean"]["mean"] == pytest.approx(sum(means) / 4)
    files = [tmp_path / f"samples_sentiment.seed{seed}_de.jsonl" for seed in (7, 8, 9, 10)]
    prompts = {json.loads(file.read_text(encoding="utf-8").splitlines()[0])["arguments"]["gen_args_0"]["arg_0"]
               for file in files}  # fmt: skip
    assert len(prompts) > 1
    assert all(prompt.count("Rezension: ") == 3 for prompt in prompts)
    assert all('"positiv"' in prompt and '"negativ"' in prompt for prompt in prompts)  # draws are even over the labels


@pytest.mark.parametrize("scoring", ["sequence", "prefix-mass", "first-token"])
@pytest.mark.parametrize("calibration", ["none", "contextual", "batch"])
def test_every_scoring_and_calibration_decides(tiny_folder, tmp_path, scoring, calibration):
    scores = evaluated(tiny_folder, tmp_path, scoring=scoring, calibration=calibration)
    score = scores["glotlift"]["tasks"]["sentiment"]["languages"]["de"]["base"]
    asked = {"none": "accuracy_raw", "contextual": "accuracy_contextual", "batch": "accuracy_calibrated"}[calibration]
    assert score["accuracy"] == score[asked] == scores["results"]["sentiment_de"]["acc,none"]


def test_arbitrary_answers_beside_the_own_ones_need_a_tuned_model_to_split_a_gain(tiny_folder, tmp_path):
    tasks = evaluated(tiny_folder, tmp_path, answers=["own", "arbitrary"])["glotlift"]["tasks"]
    assert "parts" not in tasks["sentiment.own"]
    assert tasks["sentiment.own"]["consistency"]["base"]["pairs"]["de"].keys() == {"th"}
    assert tasks["sentiment.own"]["rollups"]["script"]["Latn"]["languages"] == ["de"]


def test_a_collapse_is_warned_of(tiny_folder, tmp_path, caplog):
    logging.getLogger("glotlift").propagate = True
    with caplog.at_level("WARNING", "glotlift"):
        tasks = evaluated(tiny_folder, tmp_path, limit=1)["glotlift"]["tasks"]
    label = tasks["sentiment"]["collapsed"]["base"]["de"]
    assert f"collapsed: sentiment, base: all predictions are one label in de ({label})" in caplog.text


def test_the_version_of_a_task_file_reaches_the_scores(tiny_folder, tmp_path):
    task = tmp_path / "mood.yaml"
    task.write_text(MOOD, encoding="utf-8")
    (tmp_path / "mood_ko.jsonl").write_text(
        '{"frage": "좋아요", "urteil": 1}\n{"frage": "나빠요", "urteil": 0}\n', encoding="utf-8"
    )
    scores = evaluated(tiny_folder, tmp_path / "out", tasks=str(task), languages="ko", limit=None)
    assert scores["versions"] == {"mood_ko": 7}
    assert scores["glotlift"]["tasks"]["mood"]["rollups"]["family"] == {
        "unknown": scores["glotlift"]["tasks"]["mood"]["rollups"]["family"]["unknown"]
    }
    frame, about = read_parquet(tmp_path / "out" / "predictions" / "base" / "mood" / "ko.parquet")
    assert list(frame["gold"]) == ["1", "0"]
    assert about["num_fewshot"] == 0


MOOD = """
name: mood
version: 7
fields: [text]
labels: ["0", "1"]
data: {source: "mood_{lang}.jsonl", gold: urteil, columns: {text: frage}}
languages:
  ko:
    template: "{text} → "
    preamble: "이 문장은 어떤가요?  \\n"
    answer_sets: {own: {"0": 나쁨, "1": 좋음}}
"""

REFUSED = {
    "answers": ({"answers": "mine"}, TaskError, "no answer set 'mine'"),
    "answer language": ({"answer_languages": "ko"}, Exception, "no prompts in 'ko'"),
    "fewshot": ({"num_fewshot": 9}, TaskError, "got num_fewshot 9, expected at most 8"),
    "batch size": ({"batch_size": 0}, RecipeError, "batch_size"),
    "chat": ({"apply_chat_template": True}, ModelError, "without a chat template"),
    "server and adapter": ({"model": "openai:http://127.0.0.1:9/v1#m", "adapter": "a"}, ModelError, "--adapter"),
    "server and released mass": (
        {"model": "openai:http://127.0.0.1:9/v1#m", "scoring": "prefix-mass-released"},
        ModelError,
        "released' with the",
    ),
    "server and mass": ({"model": "openai:http://127.0.0.1:9/v1#m", "scoring": "prefix-mass"}, ModelError, "first-t"),
    "server away": ({"model": "openai:http://127.0.0.1:9/v1#m"}, ModelError, "127.0.0.1:9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tiny_folder, tmp_path, case):
    options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        evaluated(tiny_folder, tmp_path / "out", **options)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_compare_reads_any_two_folders_and_refuses_other_items(tiny_folder, tmp_path):
    evaluated(tiny_folder, tmp_path / "a")
    evaluated(tiny_folder, tmp_path / "b", answers="english", batch_size=3)
    evaluated(tiny_folder, tmp_path / "c", limit=7)
    a, b, c = (tmp_path / name / "predictions" / "base" / "sentiment" for name in "abc")
    scores = compare(a, b)["glotlift"]
    task = scores["tasks"]["sentiment"]
    assert list(task["languages"]) == ["de", "th"]
    assert scores["differences"]["sentiment"] == ["answers own / english"]
    assert task["rollups"]["script"]["Latn"]["languages"] == ["de"]
    change = task["languages"]["de"]["change"]
    assert change["p_holm"] >= change["p"]
    assert set(task["languages"]["de"]["changes"]) == {"raw", "calibrated", "contextual", "auroc", "ece"}
    assert compare(tmp_path / "a", tmp_path / "b")["glotlift"]["tasks"] == {"sentiment": task}
    with pytest.raises(DataError) as caught:
        compare(a, c)
    assert str(caught.value) == "sentiment, de: got 1 item ('s08') in A only, expected the same items in both"


def test_two_processes_give_the_bytes_of_one(tiny_folder, tmp_path):
    """As `torchrun` starts them on a CPU; `accelerate launch` sets the same variables on GPUs."""
    asked = ["eval", "--model", str(tiny_folder), "--languages", "de,th", "--limit", "20"]
    asked += ["--batch-size", "3", "--answers", "own,english", "--log-samples"]
    told = []
    for name, environments in (("one", [{}]), ("two", as_by_torchrun(2))):
        arguments = [*asked, "--output-path", str(tmp_path / name)]
        for code, out, err in [each.wait() for each in [Warm(main, arguments, **each) for each in environments]]:
            assert code == 0, err
            told.append(out.replace(str(tmp_path / name), ""))
    assert told[0]
    assert told == [told[0], told[0], ""]  # printed once
    files = [{str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
             for folder in (tmp_path / "one", tmp_path / "two")]  # fmt: skip
    assert len(files[0]) == 4 + 4 + 1
    assert files[0] == files[1]


def _interrupted_at_the_third_batch(arguments):
    append, batches = Journal.append, count(1)

    def stop(journal, scores):
        append(journal, scores)
        if next(batches) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    Journal.append = stop
    main(arguments)


def test_an_interrupt_leaves_whole_batches_and_says_how_to_go_on(tiny_folder, tmp_path):
    asked = ["eval", "--model", str(tiny_folder), "--languages", "de", "--limit", "20", "--batch-size", "2"]
    code, _, err = Warm(_interrupted_at_the_third_batch, [*asked, "-o", str(tmp_path / "out")]).wait()
    assert code == 130
    assert "start the same command again to go on" in err
    assert "Traceback" not in err
    left = [str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert left == [str(Path("predictions/base/sentiment/.de.0.jsonl"))]
    assert len((tmp_path / "out" / left[0]).read_text().splitlines()) == 4  # what it depends on, and three batches


def test_an_adapter_at_several_strengths_in_one_load(tiny_folder, tmp_path):
    from tests.training.test_merge import random_adapter

    adapter = random_adapter(str(tiny_folder), tmp_path / "adapter")
    asked = {"model": str(tiny_folder), "languages": "en,de", "limit": 6, "output_path": tmp_path / "eval"}
    scores = evaluate(adapter=str(adapter), adapter_strength="0.5,1", **asked)
    task = scores["glotlift"]["tasks"]["sentiment"]
    assert list(task["strengths"]) == ["tuned-0.5"] and scores["glotlift"]["variants"] == ["base", "tuned"]
    table = strength_table(task, "sentiment")
    assert [row.cells["way"].text for row in table.groups[""]] == ["asked directly", "adapter x 0.5", "tuned"]
    with pytest.raises(ModelError, match="got adapter strengths 0.5 without a LoRA adapter"):
        evaluate(adapter_strength=[0.5], **asked)
    with pytest.raises(RecipeError, match="adapter_strength"):
        evaluate(adapter=str(adapter), adapter_strength="-1", **asked)
