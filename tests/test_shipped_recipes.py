"""The recipes, sweeps and scripts in `recipes/`: all can be read, and what they say of the files holds."""

import json
import runpy
from pathlib import Path

import pytest

from glotlift.errors import DataError
from glotlift.evaluation.baselines import baselines_of
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.languages import resolve
from glotlift.recipe import load_recipe
from glotlift.stages.data import check_questions, parallel_questions
from glotlift.sweeps import load_sweep

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))
SENTIMENT, NLI = ("positive", "negative"), ("neutral", "entailment", "contradiction")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_read_and_is_called_like_its_file(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_can_be_read_and_is_called_like_its_file(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep, planned = load_sweep(path)
    assert sweep.name == path.stem
    assert len({each.place for each in planned}) == len(sweep.runs) * len(sweep.seeds)


def test_the_sweep_of_objectives_has_every_objective_and_control_and_what_was_published(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {each.name: each.recipe.train for each in load_sweep(ROOT / "recipes/sweeps/objectives.yaml")[1]}
    assert {name for each in settings.values() for name in each.objective} == {
        "translation", "consistency", "contrastive", "steering", "readout",
    }  # fmt: skip
    assert {each.control for each in settings.values()} == {
        "none", "shuffled-teacher", "own-language-teacher", "constant-teacher", "gold", "shuffled-pairs",
        "copied-pairs",
    }  # fmt: skip
    assert settings["paper"].preset == "paper" and settings["paper"].cue == "kept"
    assert any(len(each.objective) > 1 for each in settings.values())
    assert any(each.replay for each in settings.values() if "translation" in each.objective)
    seeds = [each.seed for each in load_sweep(ROOT / "recipes/sweeps/seeds.yaml")[1]]
    assert seeds == [0, 1, 2] * 2


def released(folder):
    """Write files in the paper's layout: rows parallel in all languages, answers in the language's own words."""
    (folder / "ap_emotion").mkdir(parents=True)
    (folder / "snli").mkdir()
    for code in resolve("all"):
        reviews = [{"input": f"{code} review {n}", "answer": f"{code}-{n % 2}"} for n in range(8)]
        pairs = [
            {"premise": f"{code} premise {n // 3}", "hypothesis": f"{code} hypothesis {n}", "answer": f"{code}-{n}"}
            for n in range(24)
        ]
        if code == "en":
            reviews = [{**row, "answer": SENTIMENT[n // 2 % 2]} for n, row in enumerate(reviews)]
            pairs = [{**row, "answer": NLI[n % 3]} for n, row in enumerate(pairs)]
        (folder / "ap_emotion" / f"emotion_{code}500_test.json").write_text(json.dumps(reviews))
        (folder / "snli" / f"snli_{code}600_test.json").write_text(json.dumps(pairs))
    (folder / "snli" / "snli_de10k_train_question.json").write_text("[]")
    return folder


@pytest.mark.parametrize(
    ("script", "target", "recipe"),
    [("split_amazon", "amazon", "amazon"), ("split_snli", "snli", "snli-readout")],
)
def test_items_of_a_split_are_parallel_and_never_on_both_sides(tmp_path, monkeypatch, script, target, recipe):
    monkeypatch.chdir(tmp_path)
    split = runpy.run_path(str(ROOT / "recipes" / f"{script}.py"))["split"]
    split(released(tmp_path / "paper-data"), Path(target))
    asked = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    (test_set,) = read_test_sets(asked.eval).values()
    assert set(test_set.items) == set(resolve("all"))
    tests = {code: [item.id for item in items] for code, items in test_set.items.items()}
    golds = [[item.gold for item in items] for items in test_set.items.values()]
    assert all(ids == tests["en"] for ids in tests.values()) and all(each == golds[0] for each in golds)
    assert len(set(golds[0])) == len(test_set.task.labels)
    questions = [json.loads(line) for line in parallel_questions(asked).splitlines()]
    assert {each["language"] for each in questions} == {"en", *asked.data.languages}
    names = {each["id"].partition(":")[2] for each in questions}
    assert not names & set(tests["en"])
    first = test_set.task.fields[0]  # a premise that is asked about several times, too
    texts = {item.fields[first] for items in test_set.items.values() for item in items}
    assert not texts & {each["fields"][first] for each in questions}
    n_rows = 24 if target == "snli" else 8
    assert len(names) == len(tests["en"]) == n_rows // 2
    found = {each.name: each for each in baselines_of(test_set, asked.eval.baselines)}
    assert set(found) == {"english-demos", "oracle"}
    assert [item.fields[first] for item in found["oracle"].items["de"]] == [
        item.fields[first] for item in test_set.items["en"]
    ]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_finds_what_it_learns_from(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    runpy.run_path("recipes/split_amazon.py")["split"](released(tmp_path / "paper-data"), Path("amazon"))
    _, planned = load_sweep(path)
    for each in planned:
        check_questions(each.recipe)  # raises
    (tmp_path / "amazon" / "labelled_en.jsonl").write_text("")
    ceilings = [each.recipe for each in planned if each.recipe.train.control == "gold"]
    for recipe in ceilings:
        with pytest.raises(DataError, match="labelled_en"):
            check_questions(recipe)
    assert bool(ceilings) == (path.stem == "objectives")


def test_files_that_are_not_there_are_named(tmp_path):
    split = runpy.run_path(str(ROOT / "recipes" / "split_snli.py"))["split"]
    (tmp_path / "snli").mkdir()
    with pytest.raises(SystemExit, match="got no snli_en600_test.json, expected the paper's released files"):
        split(tmp_path, tmp_path / "out")
    released(tmp_path / "data")
    (tmp_path / "data" / "snli" / "snli_de600_test.json").write_text("[]")
    with pytest.raises(SystemExit, match="got 0 rows, expected the 24 of English"):
        split(tmp_path / "data", tmp_path / "out")
