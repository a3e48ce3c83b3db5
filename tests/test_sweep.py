"""A sweep: several runs of a recipe, the base evaluated once, one table."""

import csv
import json
import signal
import time
from itertools import product

import pytest
import yaml
from typer.testing import CliRunner

from glotlift.cli import app
from glotlift.errors import DataError, RecipeError
from glotlift.evaluation import predict
from glotlift.stages import sweep as stage
from glotlift.sweeps import load_sweep
from tests.test_objectives import questions
from tests.warm import Warm


@pytest.fixture
def written(tiny_folder, tmp_path):
    def write(_recipe=None, **content):
        base = {
            "name": "small",
            "model": str(tiny_folder),
            "data": {"task": "sentiment", "source": questions(tmp_path / "questions"), "languages": ["de", "sw"]},
            "train": {"rank": 2, "batch_size": 4, "micro_batch_size": 2, "answers": "english"},
            "eval": {"tasks": [{"task": "sentiment", "limit": 6}], "languages": ["en", "de", "fr"]},
            **(_recipe or {}),
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base))
        sweep = {
            "name": "few",
            "recipe": str(tmp_path / "recipe.yaml"),
            "runs": [
                {"name": "consistency", "train": {"objective": "consistency"}},
                {"name": "translation", "train": {"objective": "translation"}},
            ],
            **content,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep))
        return path

    return write


@pytest.fixture
def scored(monkeypatch):
    """A list of all batches that are scored, by evaluation and for a teacher: variant, language, rows."""
    found, score_batches = [], predict.score_batches

    def counted(loaded, prompts, variant, **settings):
        for batch in score_batches(loaded, prompts, variant, **settings):
            found.append((variant, prompts.language, len(batch)))
            yield batch

    monkeypatch.setattr(predict, "score_batches", counted)
    monkeypatch.setattr("glotlift.evaluation.evaluate.score_batches", counted)
    return found


def test_the_base_is_evaluated_once_and_a_second_start_does_nothing(written, tmp_path, scored):
    path = written(seeds=[0, 1])
    folder = stage.sweep(path, tmp_path / "few")
    of_tests = [each for each in scored if each[1] == "fr"]
    assert [variant for variant, *_ in of_tests].count("tuned") == 4 * [v for v, *_ in of_tests].count("base")
    taught = [each for each in scored if each[1] == "sw"]  # asked of the base as a teacher, once for two seeds
    assert sum(n for *_, n in taught) == (14 + 3) + (2 * 14 + 3)  # questions, sentences, content-free inputs
    scored.clear()
    before = (folder / "sweep.json").read_bytes()
    stage.sweep(path, tmp_path / "few")
    assert not scored and (folder / "sweep.json").read_bytes() == before


def test_the_table_says_what_the_runs_say(written, tmp_path):
    path = written(vary={"train.rank": [1, 2]})
    result = CliRunner().invoke(app, ["sweep", str(path), "-o", str(tmp_path / "few")])
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "few" / "sweep.json").read_text())
    names = ["consistency.rank-1", "consistency.rank-2", "translation.rank-1", "translation.rank-2"]
    assert list(scores["runs"]) == names and all(name in result.output for name in names)
    assert scores["tasks"]["sentiment"]["groups"] == {
        "all": ["en", "de", "fr"], "seen": ["de"], "unseen": ["fr"], "pivot": ["en"],
    }  # fmt: skip
    own = json.loads((tmp_path / "few" / names[1] / "seed0" / "scores.json").read_text())["glotlift"]["tasks"]
    gain = scores["tasks"]["sentiment"]["gains"][names[1]]["unseen"]["raw"]
    assert gain["change"] == pytest.approx(own["sentiment"]["raw_groups"]["unseen"]["change"])
    rows = list(csv.DictReader((tmp_path / "few" / "sweep.csv").read_text().splitlines()))
    assert {row["run"] for row in rows} == set(names) and {row["measure"] for row in rows} == {
        "auroc", "calibrated", "raw",
    }  # fmt: skip
    assert float(rows[0]["tokens"]) > 0
    assert (tmp_path / "few" / "sweep.md").read_text().count("| consistency.rank-1 |") == 1
    assert "consistency.rank-1 &" in (tmp_path / "few" / "sweep.tex").read_text()


def test_against_a_run_stands_what_the_others_gain_over_it(written, tmp_path):
    from glotlift import compare

    folder = stage.sweep(written(seeds=[0, 1], against="translation"), tmp_path / "few")
    task = json.loads((folder / "sweep.json").read_text())["tasks"]["sentiment"]
    assert list(task["gains_against"]) == ["consistency"]
    gains, found = task["gains"], task["gains_against"]["consistency"]
    compared = [
        compare(*(folder / name / f"seed{seed}" for name in ("translation", "consistency")))["glotlift"]["tasks"]
        for seed in (0, 1)
    ]
    for group, measure in product(("all", "seen", "unseen"), ("auroc", "calibrated", "raw")):
        gain = found[group][measure]
        sides = [gains[name][group][measure]["tuned"] for name in ("translation", "consistency")]
        assert [gain["base"], gain["tuned"]] == pytest.approx(sides) and gain["seeds"] == 2
    raw = [each["sentiment"]["raw_groups"]["all"]["change"] for each in compared]
    assert found["all"]["raw"]["change"] == pytest.approx(sum(raw) / 2)
    assert found["unseen"]["raw"]["p_holm"] == found["unseen"]["raw"]["p"]
    lines = (folder / "sweep.md").read_text().splitlines()
    named = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert named[2:] == ["consistency", "translation", "consistency over translation"]
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    against = [row for row in rows if row["kind"] == "against"]
    assert {row["run"] for row in against} == {"consistency"} and not any(row["seconds"] for row in against)
    assert {(row["kind"], row["over"]) for row in rows} == {("run", "base"), ("against", "translation")}
    assert len(rows) == 3 * len(against) > 0


def test_a_run_s_preset_takes_the_place_of_the_recipe_s_objective(written):
    base = {"train": {"preset": "translation", "objective": "translation", "learning_rate": 1e-3}}
    runs = [
        {"name": "consistency", "train": {"preset": "consistency"}},
        {"name": "as-written", "train": {"rank": 1}},
        {"name": "both", "train": {"preset": "consistency", "objective": {"consistency": 1, "translation": 0.2}}},
    ]
    objectives = {each.name: each.recipe.train.objective for each in load_sweep(written(base, runs=runs))[1]}
    assert objectives == {
        "consistency": {"consistency": 1.0},
        "as-written": {"translation": 1.0},
        "both": {"consistency": 1.0, "translation": 0.2},
    }
    varied = load_sweep(written(base, runs=[{"name": "a"}], vary={"train.preset": ["consistency", "steering"]}))[1]
    assert [list(each.recipe.train.objective) for each in varied] == [["consistency"], ["steering"]]
    assert all(each.recipe.train.learning_rate == 1e-3 for each in varied)


@pytest.mark.parametrize(
    ("content", "recipe", "sentence"),
    [
        ({"runs": [{"name": "a"}, {"name": "A"}]}, {}, "got two runs of the name 'a', expected different names"),
        ({"runs": [{"name": "a", "train": {"ranks": 3}}]}, {}, "run a: unknown key `train.ranks`"),
        ({"runs": [{"name": "../a"}]}, {}, "got the name '../a'"),
        (
            {"runs": [{"name": "a", "train": {"preset": "steering", "objective": "translation"}}]},
            {},
            "run a: `train`: got preset steering with objective translation",
        ),
        ({"runs": []}, {}, "`runs`: got"),
        ({"against": "paper"}, {}, "`against`: got 'paper', expected a run: consistency or translation"),
        ({"seeds": [1, 1]}, {}, "got the seeds 1, 1, expected each once"),
        ({"vary": {"eval.limit": [1]}}, {}, "got 'eval.limit', expected settings of data or train"),
        ({"recipe": "nowhere.yaml"}, {}, "nowhere.yaml: no such file"),
        ({}, {"eval": None}, "got no `eval`"),
    ],
)
def test_what_is_at_fault_is_said_before_anything_runs(written, content, recipe, sentence):
    with pytest.raises(RecipeError, match=sentence.replace(".", r"\.").replace("[", r"\[")):
        load_sweep(written(recipe, **content))


def test_a_run_that_lacks_what_it_learns_from_is_named_before_another_one_trains(written, tmp_path):
    runs = [{"name": "plain"}, {"name": "ceiling", "train": {"objective": "readout", "control": "gold"}}]
    path = written(runs=runs)
    questions(tmp_path / "questions", gold=False)
    with pytest.raises(DataError, match="run 'ceiling': .*no gold column"):
        stage.sweep(path, tmp_path / "few")
    assert not list((tmp_path / "few").rglob("*.*"))


def cost(folder, run, seed=0):
    """Return what a run's row says it cost, and what its manifest says it spent."""
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    manifest = json.loads((folder / run / f"seed{seed}" / "manifest.json").read_text())
    return runs[run]["seconds"][seed], runs[run]["tokens"][seed], manifest["stages"]["train"]


def test_a_run_that_is_handed_the_teacher_s_scores_counts_them_as_if_it_had_run_alone(written, tmp_path, monkeypatch):
    from glotlift.stages import passes

    now = 0.0

    class Clock:
        @staticmethod
        def monotonic():
            nonlocal now
            now += 1000.0  # what a pass takes
            return now

    monkeypatch.setattr(passes, "time", Clock)
    runs = [
        {"name": "readout", "train": {"objective": "readout"}},
        {"name": "control", "train": {"objective": "readout", "control": "shuffled-teacher"}},
        {"name": "consistency", "train": {"objective": "consistency", "teacher": "english", "sentences": False}},
        {"name": "steering", "train": {"objective": "steering", "teacher": "english", "sentences": False}},
    ]
    folder = stage.sweep(written(runs=runs), tmp_path / "few")
    found = {each["name"]: cost(folder, each["name"]) for each in runs}
    first, tokens, spent = found["readout"]
    assert sorted(spent["passes"].values()) == [1000.0] * 6  # en, de, sw, sentences in English; their states elsewhere
    assert first == pytest.approx(spent["seconds"], abs=0.01)
    again, same, spent = found["control"]
    assert set(spent["passes"].values()) == {0.0} and same == tokens > 0
    assert again == pytest.approx(spent["seconds"] + 6000, abs=0.01)
    seconds, more, spent = found["consistency"]
    known = json.loads((folder / "consistency" / "seed0" / "teacher" / "passes.json").read_text())
    assert [known[each]["name"] for each in spent["passes"]] == ["en", "de", "sw"]
    assert seconds == pytest.approx(spent["seconds"] + 3000, abs=0.01)
    history = json.loads((folder / "consistency" / "seed0" / "adapter" / "history.json").read_text())
    assert more == history["tokens"] + sum(known[each]["tokens"] for each in spent["passes"])
    _, steered, spent = found["steering"]
    # scores and means of states; two languages under every band and strength (of three bands two are one in 3 layers)
    assert len(spent["passes"]) == 3 + 3 + 2 * 2 * 2
    assert steered > more - history["tokens"]
    rows = {row["run"]: row for row in csv.DictReader((folder / "sweep.csv").read_text().splitlines())}
    assert float(rows["control"]["tokens"]) == tokens and float(rows["control"]["seconds"]) >= 6000


def test_baselines_stand_above_the_runs_and_are_scored_once(written, tmp_path, scored):
    asked = {"tasks": [{"task": "sentiment", "limit": 6}], "languages": ["en", "de", "fr"],
             "baselines": ["english-demos", "oracle"]}  # fmt: skip
    runs = [{"name": name, "train": {"objective": "readout", "control": control}}
            for name, control in (("readout", "none"), ("shuffled", "shuffled-teacher"))]  # fmt: skip
    folder = stage.sweep(written({"eval": asked}, runs=runs), tmp_path / "few")
    in_french = [variant for variant, code, _ in scored if code == "fr"]
    assert in_french.count("base") == 3 and in_french.count("tuned") == 2  # direct and two baselines, for two runs
    scores = json.loads((folder / "sweep.json").read_text())
    of_run = json.loads((folder / "shuffled" / "seed0" / "scores.json").read_text())["glotlift"]["tasks"]["sentiment"]
    baselines = scores["tasks"]["sentiment"]["baselines"]
    assert list(baselines) == list(of_run["baselines"]) == ["english-demos", "oracle", "ensemble"]
    for name, group, measure in product(baselines, ("unseen", "seen"), ("raw", "calibrated", "auroc")):
        found, told = baselines[name][group][measure], of_run["baselines"][name][measure][group]
        assert (found["base"], found["tuned"]) == pytest.approx((told["a"], told["b"]))
    lines = [line for line in (folder / "sweep.md").read_text().splitlines() if line.startswith("| ")]
    named = [line.split("|")[1].strip() for line in lines]
    assert named[-5:] == ["english-demos (baseline)", "oracle (baseline)", "ensemble (baseline)", "readout",
                          "shuffled (control: shuffled-teacher)"]  # fmt: skip
    assert f"{baselines['oracle']['unseen']['raw']['change'] * 100:+.1f}".replace("-", "−").replace(
        "+0.0", "0.0"
    ) in next(line for line in lines if "oracle (b" in line)
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert {row["run"] for row in rows if row["kind"] == "baseline"} == set(baselines)
    assert not any(row["p_holm"] for row in rows if row["kind"] == "baseline")


def test_tokens_of_a_pass_are_those_of_prompts_and_label_words(written, tmp_path):
    from glotlift.runs import read_parquet

    folder = stage.sweep(written(runs=[{"name": "steering", "train": {"objective": "steering"}}]), tmp_path / "few")
    known = json.loads((folder / "steering" / "seed0" / "teacher" / "passes.json").read_text()).values()
    tokens = {each["name"]: each["tokens"] for each in known}
    frame, about = read_parquet(folder / "steering" / "seed0" / "teacher" / "de.parquet")
    prompts = frame["n_tokens"].sum()
    assert tokens["de pooled"] >= prompts > 0
    assert (tokens["de pooled"] - prompts) % len(frame) == 0  # the same words behind every question
    assert tokens["de"] > tokens["de pooled"]  # content-free inputs beside them
    assert len(about["content_free"]) == 3


def left(folder):
    """Return the bytes of all tables and adapters of a sweep, and its numbers without the seconds."""
    scores = json.loads((folder / "sweep.json").read_text())
    for run in scores["runs"].values():
        assert all(seconds > 0 for seconds in run.pop("seconds"))
    with (folder / "sweep.csv").open() as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    kept = [*folder.rglob("adapter/*.safetensors"), *folder.rglob("predictions/*/*/*.parquet")]
    assert len(kept) > 10
    files = {str(file.relative_to(folder)): file.read_bytes() for file in kept}
    return json.dumps(scores), rows, files


def test_a_sweep_that_is_killed_in_its_second_run_goes_on_to_the_same_bytes(written, tmp_path):
    runs = [
        {"name": "readout", "train": {"objective": "readout"}},
        {"name": "consistency", "train": {"objective": "consistency", "save_steps": 1}},
    ]
    path = written(runs=runs)
    stage.sweep(path, tmp_path / "whole")
    process = Warm(stage.sweep, path, tmp_path / "killed")
    first, second = (tmp_path / "killed" / each["name"] / "seed0" for each in runs)
    while process.poll() is None and not list(second.glob("checkpoints/*/checkpoint-3")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL, "it was over before it could be killed"
    assert (first / "scores.json").exists() and not (second / "adapter").exists()
    done = {file: file.stat().st_mtime_ns for file in first.rglob("*.parquet")}
    spent = json.loads((second / "manifest.json").read_text())["stages"]["train"]
    assert spent["status"] == "running" and spent["passes"]
    stage.sweep(path, tmp_path / "killed")
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in done} == done
    again = json.loads((second / "manifest.json").read_text())["stages"]["train"]
    assert again["status"] == "done" and again["seconds"] > spent["seconds"]
    assert again["passes"].keys() == spent["passes"].keys()
