"""The whole pipeline on a tiny model: every stage, skipping, and going on after a kill at any moment."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from glotlift.errors import ModelError, RecipeError
from glotlift.recipe import load_recipe
from glotlift.runs import read_parquet
from glotlift.stages.evaluate import evaluate
from glotlift.stages.run import run
from glotlift.tasks import load
from tests.warm import Warm

STAGES = ("data", "train", "merge", "eval", "explain")


@pytest.fixture(scope="module")
def recipe(tiny_folder, tmp_path_factory):
    """A recipe that runs every stage in seconds: 16 pairs, 2 x 3 languages of 6 items."""
    content = {
        "name": "tiny",
        "model": str(tiny_folder),
        "data": {"task": "sentiment", "languages": ["zh", "de"], "limit": 8, "validation_fraction": 0.25},
        "train": {
            "objective": "translation",
            "rank": 2,
            "batch_size": 4,
            "micro_batch_size": 2,
            "epochs": 3,
            "save_steps": 1,
            "learning_rate": 0.01,
        },
        "eval": {"tasks": [{"task": "sentiment", "limit": 6}], "languages": ["en", "de", "sw"], "token_budget": 256},
        "explain": {"languages": ["en", "de"], "limit": 6, "what": ["lens", "geometry", "patching"]},
    }
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """An uninterrupted run, report included."""
    return run(recipe, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """A copy of the run; what runs from here on writes no report, which takes longer than all else."""
    monkeypatch.setattr("glotlift.stages.report._write", lambda folder: None)
    return Path(shutil.copytree(whole, tmp_path / "again"))


def _files(folder):
    """Return what a run must reproduce byte for byte."""
    kept = [*folder.glob("predictions/**/*.parquet"), *folder.glob("lens/**/*.parquet")]
    kept += [*folder.glob("geometry/**/*.parquet"), *folder.glob("geometry/**/*.safetensors")]
    kept += folder.glob("patching/**/*.parquet")
    kept += [folder / "adapter" / "adapter_model.safetensors", folder / "data" / "pairs.jsonl"]
    kept += [folder / "merged" / "model.safetensors", folder / "scores.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_every_stage_leaves_its_files(recipe, whole):
    folder = whole
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [manifest["stages"][stage]["status"] for stage in STAGES] == ["done"] * 5
    assert load_recipe(folder / "recipe.yaml") == load_recipe(recipe)
    for name in ("report.html", "README.md", "scores.json", "adapter/history.json", "merge.json", "data/audit.json"):
        assert (folder / name).stat().st_size > 0
    assert len(list(folder.glob("predictions/*/sentiment/*.parquet"))) == 6
    assert len(list(folder.glob("lens/*/sentiment/*.parquet"))) == 4
    assert not (folder / "checkpoints").exists()
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    scores = json.loads((folder / "scores.json").read_text())["glotlift"]
    assert scores["seen"] == ["zh", "de"]
    assert scores["warnings"] == []
    assert scores["tasks"]["sentiment"]["languages"]["sw"]["change"]["n"] == 6


def test_adapter_and_merged_model_can_be_published_as_they_are(whole, tiny_folder):
    """They name their base as it was asked for, and hold the real card, with links that lead nowhere in neither."""
    assert json.loads((whole / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny_folder
    )
    for folder, library in (("adapter", "peft"), ("merged", "transformers")):
        card = (whole / folder / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(card.split("---")[1])
        assert front["library_name"] == library
        assert ("lora" in front["tags"]) == (library == "peft")
        assert 'from_pretrained(".")' in card
        assert "## Results" in card and "## Licence" in card
        assert "figures/" not in card and "report.html" not in card


def test_a_finished_run_does_nothing_again(recipe, again):
    folder = again
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[aplm]*/**/*") if path.is_file()}
    manifest = (folder / "manifest.json").read_bytes()
    run(recipe, folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "manifest.json").read_bytes() == manifest


def test_a_changed_recipe_does_again_only_what_depends_on_it(recipe, again, tmp_path):
    folder = again
    adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    german = folder / "predictions" / "tuned" / "sentiment" / "de.parquet"
    before = german.stat().st_mtime_ns
    content = yaml.safe_load(recipe.read_text())
    content["eval"]["languages"].append("fr")
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(content))
    run(changed, folder)
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == adapter
    assert german.stat().st_mtime_ns == before
    assert (folder / "predictions" / "tuned" / "sentiment" / "fr.parquet").is_file()


def test_a_changed_prompt_is_evaluated_again(recipe, again, tmp_path):
    """The recipe names a task file; what stands in it decides the numbers."""
    task = tmp_path / "sentiment.yaml"
    builtin = Path(load.__file__).parent / "builtin" / "sentiment.yaml"
    task.write_text(builtin.read_text(encoding="utf-8"), encoding="utf-8")
    content = yaml.safe_load(recipe.read_text())
    content["eval"]["tasks"][0]["task"] = str(task)
    with_file = tmp_path / "with-file.yaml"
    with_file.write_text(yaml.safe_dump(content))
    run(with_file, again)
    predictions = again / "predictions" / "tuned" / "sentiment"
    before = {code: (predictions / f"{code}.parquet").read_bytes() for code in ("en", "de")}
    german = task.read_text(encoding="utf-8").replace("Bewertung: ", "Urteil: ")
    task.write_text(german, encoding="utf-8")
    run(with_file, again)
    assert (predictions / "de.parquet").read_bytes() != before["de"]
    assert (predictions / "en.parquet").read_bytes() == before["en"]


def test_a_recipe_asks_for_pooling_item_link_and_the_random_adapter(recipe, again):
    asked = ["explain.what=[geometry, item-link]", "explain.pooling=position-weighted", "explain.random_adapter=true"]
    before = (again / "geometry/sentiment/states/tuned/de.safetensors").read_bytes()
    run(recipe, again, settings=asked)
    manifest = json.loads((again / "manifest.json").read_text())
    assert manifest["stages"]["explain"]["status"] == "done"
    assert (again / "geometry/sentiment/states/tuned/de.safetensors").read_bytes() != before
    assert (again / "random_adapter" / "geometry" / "sentiment" / "similarity.parquet").is_file()
    link, about = read_parquet(again / "item_link" / "sentiment" / "summary.parquet")
    assert set(link["quantity"]) == {"towards_pivot", "towards_pivot_mean"} and set(link["language"]) == {"de", "all"}
    assert about["pooling"] == "position-weighted"
    shutil.rmtree(again / "random_adapter")  # an output that is missing is made again
    run(recipe, again, settings=asked)
    assert (again / "random_adapter" / "adapter" / "random_adapter.json").is_file()


def test_lens_and_geometry_look_at_the_pass_that_evaluation_makes(recipe, again, whole, monkeypatch):
    def never(*_args, **_options):
        raise AssertionError("a pass of its own")

    for folder in ("predictions", "lens", "geometry"):
        shutil.rmtree(again / folder)
    with monkeypatch.context() as patch:
        patch.setattr("glotlift.explanation.collect.run", never)
        run(recipe, again, settings=["explain.what=[lens, geometry]"])
    assert _files(again) == _files(whole)
    shutil.rmtree(again / "lens")  # what is missed later is looked at anew
    run(recipe, again, settings=["explain.what=[lens, geometry]"])
    assert _files(again).keys() == _files(whole).keys()


def test_what_evaluation_writes_for_the_explanation_does_not_stand_for_it(recipe, again, whole):
    for folder in ("predictions", "lens", "geometry"):
        shutil.rmtree(again / folder)
    run(recipe, again)
    assert _files(again) == _files(whole)


def test_a_pass_that_fails_when_it_is_watched_is_scored_without(recipe, again, whole, monkeypatch, caplog):
    from glotlift.evaluation import predict

    plain = predict.run

    def full(*args, **options):
        if options.get("pooled_states"):
            raise ModelError("a prompt of 60 tokens does not fit in memory alone")
        return plain(*args, **options)

    for folder in ("predictions", "lens", "geometry"):
        shutil.rmtree(again / folder)
    monkeypatch.setattr(predict, "run", full)
    run(recipe, again)
    got, expected = _files(again), _files(whole)
    assert got.keys() == expected.keys()
    assert all(got[name] == expected[name] for name in got if name.split("/")[0] in ("predictions", "scores.json"))
    assert caplog.text.count("cannot watch the pass of eval and makes its own: a prompt of 60 tokens") == 1


def test_an_item_link_of_a_readout_is_refused_before_anything_runs(recipe, tmp_path):
    settings = ["train.objective=readout", "explain.what=[geometry, item-link]"]
    with pytest.raises(RecipeError, match="explain.what: got item-link with a readout"):
        run(recipe, tmp_path / "refused", settings=settings)
    assert not list((tmp_path / "refused").rglob("*.parquet"))


def test_what_an_explanation_lacks_is_said_behind_the_scores(recipe, again, tmp_path):
    for folder in ("predictions", "lens", "geometry"):
        shutil.rmtree(again / folder)
    (again / "scores.json").unlink()
    lens = tmp_path / "lens"
    lens.mkdir()
    (lens / "config.json").write_text("{}")
    (lens / "params.pt").write_bytes(b"damaged")
    with pytest.raises(ModelError):
        run(recipe, again, settings=[f"explain.tuned_lens={lens}"])
    assert (again / "scores.json").is_file() and not (again / "lens").exists()


def test_what_the_lens_wrote_beside_is_an_output_that_is_missed(recipe, again):
    asked = ["explain.what=[lens]", "explain.paper=true", "explain.components=true"]
    run(recipe, again, settings=asked)
    for folder in ("paper_lens", "components"):
        files = sorted(again.glob(f"{folder}/*/sentiment/*.parquet"))
        assert len(files) == 4
        shutil.rmtree(again / folder)
        run(recipe, again, settings=asked)
        assert sorted(again.glob(f"{folder}/*/sentiment/*.parquet")) == files
    assert not (again / "tuned_lens").exists()  # nobody asked for it


# When to kill: as soon as this is there.
MOMENTS = {
    "in training": "checkpoints/*/checkpoint-3/trainer_state.json",
    "in merging": ".merged.*",
    "in evaluation": "predictions/base/sentiment/.de.*.jsonl",
    "behind a pass that was watched": "lens/base/sentiment/en.parquet",
    "between base and tuned": "predictions/base/sentiment/sw.parquet",
    "in the geometry": "geometry/sentiment/pca.parquet",
    "in patching": "patching/sentiment/base/de.parquet",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again_gives_the_same_bytes(recipe, whole, tmp_path, monkeypatch, moment):
    monkeypatch.setattr("glotlift.stages.report._write", lambda folder: None)
    target = tmp_path / "killed"
    process = Warm(run, recipe, target)
    while process.poll() is None and not list(target.glob(MOMENTS[moment])):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (target / "report.html").exists()
    run(recipe, target)
    got, expected = _files(target), _files(whole)
    assert {name.split("/")[0] for name in got} >= {"predictions", "lens", "geometry", "patching", "adapter"}
    assert sorted(got) == sorted(expected)
    differing = [name for name in got if got[name] != expected[name] and name != "scores.json"]
    assert not differing
    a, b = (json.loads(files["scores.json"]) for files in (got, expected))
    assert a["glotlift"]["tasks"] == b["glotlift"]["tasks"]


def test_full_tuning_is_evaluated_against_its_base_as_two_models(recipe, tmp_path):
    """There is no adapter to switch off: base and tuned are two models in one load."""
    settings = ["train.method=full", "train.learning_rate=0.01", "train.epochs=6"]
    folder = run(recipe, tmp_path / "full", settings=settings)
    assert (folder / "adapter" / "config.json").is_file()
    assert not (folder / "adapter" / "adapter_config.json").exists()
    assert not (folder / "merged").exists()
    base, tuned = (read_parquet(folder / "predictions" / v / "sentiment" / "de.parquet")[0] for v in ("base", "tuned"))
    assert list(base["id"]) == list(tuned["id"])
    assert abs(base["sequence_positive"] - tuned["sequence_positive"]).max() > 0.01
    plain = evaluate(
        model=str(folder / "adapter"), languages=["de"], limit=6, output_path=tmp_path / "plain", token_budget=256
    )
    alone = read_parquet(tmp_path / "plain" / "predictions" / "base" / "sentiment" / "de.parquet")[0]
    assert plain["results"]
    assert abs(alone["sequence_positive"] - tuned["sequence_positive"]).max() < 1e-4  # as a model of its own
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert "AutoModelForCausalLM" in card
