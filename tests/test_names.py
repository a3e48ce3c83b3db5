"""Names that become paths: of runs, tasks and test sets."""

import pytest
import yaml

from glotlift.errors import LanguageError, RecipeError, TaskError, UserError
from glotlift.evaluation.settings import EvalSettings
from glotlift.evaluation.test_sets import read_test_sets
from glotlift.names import LONGEST, name_fault, safe_name, taken_twice
from glotlift.recipe import Recipe
from glotlift.schema import validate
from glotlift.stages.data import build_data
from glotlift.stages.evaluate import evaluate
from glotlift.stages.run import run
from glotlift.stages.subjects import explained
from glotlift.tasks import load

SENTIMENT = load._BUILTIN / "sentiment.yaml"


@pytest.mark.parametrize("name", ["sentiment", "own-words", "a.b", "v1.0", "_x", "-", "9", "a" * LONGEST])
def test_names_of_files(name):
    assert name_fault(name) is None


BAD = ["", ".", "..", "...", ".hidden", "a/b", "../a", "a\\b", "a b", "a\n", "a\0", "ä", "con:", "a" * (LONGEST + 1)]


@pytest.mark.parametrize("name", BAD)
def test_names_that_no_file_should_have(name):
    assert str(name_fault(name)).startswith("got ")


@pytest.mark.parametrize("name", [name for name in BAD if any(c.isalnum() and c.isascii() for c in name)])
def test_a_safe_name_is_a_files_name(name):
    assert name_fault(safe_name(name)) is None


def test_names_that_a_file_system_without_case_takes_for_one():
    assert taken_twice(["a", "B", "A", "c"]) == ["a", "A"]


def _settings(*tasks, languages="en"):
    return EvalSettings.model_validate({"tasks": list(tasks), "languages": languages})


@pytest.fixture
def own_task(tmp_path):
    """Return a function: file name, keys to replace -> the path of a task file, the bundled sentiment but for these."""

    def write(file, **changes):
        content = {**yaml.safe_load(SENTIMENT.read_text(encoding="utf-8")), **changes}
        (tmp_path / file).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return str(tmp_path / file)

    return write


@pytest.mark.parametrize("file", ["mood.yaml", "...yaml", "my task.yaml", "ä/b.yaml", ".yaml"])
def test_a_test_set_has_the_name_that_the_task_file_says(own_task, tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    path = own_task(file, name="mood")
    (key,) = read_test_sets(_settings({"task": path, "source": load.sample_pattern("sentiment", "items")}))
    assert key == "mood"


def test_a_task_name_that_leaves_the_folder_is_refused(own_task):
    with pytest.raises(TaskError, match=r"`name`: got the name '\.\.', expected letters of ASCII"):
        load.load_task(own_task("a.yaml", name=".."))


def test_predictions_and_scores_are_named_by_the_task(own_task, tiny_folder, tmp_path):
    task = own_task("my file.yaml", name="mood")
    source = load.sample_pattern("sentiment", "items")
    scores = evaluate(
        model=str(tiny_folder), tasks=task, source=source, languages="en", answers="own,english", limit=2,
        output_path=tmp_path / "out",
    )  # fmt: skip
    assert list(scores["glotlift"]["tasks"]) == ["mood.own", "mood.english"]
    folders = {path.parent.name for path in (tmp_path / "out").rglob("*.parquet")}
    assert folders == {"mood.own", "mood.english"}


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../base"])
def test_a_test_set_that_leaves_its_folder_is_refused(name):
    with pytest.raises(UserError, match="expected letters of ASCII"):
        validate(EvalSettings, {"tasks": [{"task": "sentiment", "name": name}]}, "", UserError)


@pytest.mark.parametrize("second", [{"answers": "english"}, {"name": "Sentiment"}])
def test_test_sets_need_distinct_names(second):
    with pytest.raises(RecipeError, match=r"got the names sentiment, [sS]entiment, expected distinct ones; give one a"):
        read_test_sets(_settings({"task": "sentiment"}, {"task": "sentiment", **second}))


RECIPE = {"name": "small", "data": {"task": "sentiment", "languages": "de", "limit": 4}}


def test_only_evaluated_languages_can_be_explained():
    tasks = [{"task": "sentiment", "languages": ["en", "de"]}, {"task": "sentiment", "name": "two"}]
    content = {**RECIPE, "eval": {"tasks": tasks, "languages": ["en", "sw"]}}

    def found(explain):
        recipe = Recipe.model_validate({**content, "explain": explain})
        return explained(recipe, read_test_sets(recipe.eval))

    assert list(found({"languages": "de"}).items) == ["de"]
    with pytest.raises(LanguageError, match="explain.languages: th sw not in test set 'sentiment': en de"):
        found({"languages": "de,th,sw"})
    with pytest.raises(LanguageError, match="explain.languages: de th not in test set 'two': en sw"):
        found({"languages": "de,th,sw", "task": "two"})
    with pytest.raises(
        RecipeError, match="explain.task: got 'paraphrase', expected a test set of eval: sentiment or two"
    ):
        found({"task": "paraphrase"})


def test_what_cannot_be_explained_is_said_before_anything_is_trained():
    tasks = {"tasks": [{"task": "sentiment"}], "languages": ["en", "sw"]}

    def found(what, languages="en,sw", **train):
        explain = {"what": what, "languages": languages}
        recipe = Recipe.model_validate({**RECIPE, "eval": tasks, "train": train, "explain": explain})
        return explained(recipe, read_test_sets(recipe.eval))

    with pytest.raises(LanguageError, match="patching: got the languages sw, expected English"):
        found("patching", "sw")
    assert found("switch-off", objective="translation")
    for train, name in (({}, "readout"), ({"objective": "translation", "method": "full"}, "full")):
        with pytest.raises(RecipeError, match=f"switch-off with '{name}' training, expected one that tunes a LoRA"):
            found("switch-off", **train)


def test_a_recipe_without_evaluation_builds_data_and_is_no_whole_run(tmp_path):
    recipe = Recipe.model_validate(RECIPE)
    assert build_data(recipe, tmp_path / "run").is_file()
    with pytest.raises(RecipeError, match="recipe 'small': got no `eval`, expected the tasks to evaluate on"):
        run(recipe, tmp_path / "run")


def test_the_demo_model_is_published_under_its_hub_id():
    from glotlift.names import published_name

    assert published_name("demo") == "google/gemma-3-270m"
    assert published_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
