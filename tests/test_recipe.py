"""A recipe: defaults, round trip, and every fault of a file at once, each with its place."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from glotlift.errors import RecipeError
from glotlift.languages import LANGUAGES
from glotlift.recipe import PRESETS, Recipe, dump_recipe, load_recipe
from glotlift.stages.run import DEMO
from glotlift.sweeps import load_sweep

RECIPES = Path(__file__).parents[1] / "recipes"
SMALLEST = {
    "name": "small",
    "data": {"task": "sentiment", "languages": ["zh", "de"]},
    "eval": {"tasks": [{"task": "sentiment"}]},
}


def write(path: Path, content: dict | str) -> Path:
    path = path / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def faults(path: Path, content: dict | str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(path, content))
    return str(caught.value)


def test_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALLEST))
    assert (recipe.model, recipe.dtype, recipe.device, recipe.seed) == ("demo", "auto", "auto", 0)
    data = recipe.data
    assert (data.source, data.direction, data.validation_fraction) == ("sample", "to-english", 0.05)
    assert (recipe.train.rank, recipe.train.alpha, recipe.train.learning_rate) == (16, 32, 2e-4)
    assert recipe.eval.languages == tuple(LANGUAGES)
    assert recipe.eval.scoring == "sequence"
    assert recipe.eval.tasks[0].answers == "own"


def test_a_dumped_recipe_loads_to_the_same(tmp_path):
    content = {
        **SMALLEST,
        "train": {"target_modules": ["q_proj", "v_proj"], "rank": 8, "learning_rate": 5.0e-5},
        "eval": {
            "tasks": [
                {"task": "sentiment", "answers": "english", "limit": 7},
                {"task": "sentiment", "name": "own-words", "columns": {"text": "input"}, "languages": ["no", "sw"]},
            ],
            "languages": "all",
            "scoring": "prefix-mass",
        },
        "explain": {"task": "own-words", "languages": ["no"]},
        "seed": 7,
    }
    recipe = load_recipe(write(tmp_path, content))
    text = dump_recipe(recipe)
    assert load_recipe(write(tmp_path, text)) == recipe
    assert dump_recipe(load_recipe(write(tmp_path, text))) == text
    assert yaml.safe_load(text)["train"]["warmup_fraction"] == 0.1  # every setting is written out
    assert yaml.safe_load(text)["explain"]["languages"] == ["no"]  # Norwegian, not false


@pytest.mark.parametrize("path", [*RECIPES.glob("*.yaml"), DEMO], ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project_load(path):
    assert load_recipe(path).name


def test_the_sweeps_that_come_with_the_project_load(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    for path in (RECIPES / "sweeps").glob("*.yaml"):
        assert load_sweep(path)[1]


def test_a_recipe_cannot_be_changed(tmp_path):
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(write(tmp_path, SMALLEST)).seed = 3


def test_languages_may_be_written_as_people_write_them(tmp_path):
    data = {**SMALLEST["data"], "languages": "German, zho_Hans sw", "direction": "via:English"}
    recipe = load_recipe(write(tmp_path, {**SMALLEST, "data": data}))
    assert recipe.data.languages == ("de", "zh", "sw")
    assert recipe.data.direction == "via:en"


def test_three_unknown_keys_are_all_named_with_the_nearest_valid_one(tmp_path):
    content = {
        **SMALLEST,
        "sed": 3,
        "train": {"lerning_rate": 1e-3},
        "eval": {"tasks": [{"task": "sentiment", "limt": 3}]},
    }
    text = faults(tmp_path, content)
    assert text.startswith(f"{tmp_path / 'recipe.yaml'}: 3 faults:")
    assert "unknown key `sed` (did you mean 'seed'?)" in text
    assert "unknown key `train.lerning_rate` (did you mean 'learning_rate'?)" in text
    assert "unknown key `eval.tasks.0.limt` (did you mean 'limit'?); expected one of: task, name, source" in text
    assert text.count("\n") == 3  # nothing else is said, such as that the list of tasks is then too short


VALUES = {
    "seed: -1": "`seed`: got -1, expected greater than or equal to 0",
    "seed: x": "`seed`: got 'x', expected a valid integer",
    "model: 3": "`model`: got 3, expected text",
    "dtype: int8": "`dtype`: got 'int8', expected 'auto', 'float32', 'bfloat16' or 'float16'",
    "name: a b": "`name`: got the name 'a b', expected letters of ASCII, digits, `_`, `-` and `.`",
    "name: ..": "`name`: got the name '..', expected letters",
    "name: a/b": "`name`: got the name 'a/b', expected letters",
    "train: 3": "`train`: got 3, expected a mapping",
    "train: {rank: 0}": "`train.rank`: got 0, expected greater than or equal to 1",
    "train: {learning_rate: .inf}": "`train.learning_rate`: got inf, expected a finite number",
    "train: {batch_size: 6}": "`train`: got batch_size 6 and micro_batch_size 4, expected the second to divide",
    "explain: {languages: [de, xx]}": "`explain.languages`: unknown language 'xx'; expected BCP-47 codes such as: en",
    "explain: {languages: no}": '`explain.languages`: got a YAML boolean; write "no" in quotes for Norwegian',
    "explain: {languages: [de, no]}": '`explain.languages`: got a YAML boolean; write "no" in quotes for Norwegian',
    "explain: {languages: []}": "`explain.languages`: no language was given; expected codes such as",
    "explain: {languages: 3}": "`explain.languages`: got 3, expected a list",
}


@pytest.mark.parametrize("line", VALUES)
def test_a_wrong_value_says_what_was_got_and_expected(tmp_path, line):
    text = yaml.safe_dump(SMALLEST, sort_keys=False)
    if line.startswith("name"):
        text = text.replace("name: small\n", "")
    message = faults(tmp_path, f"{text}{line}\n")
    assert VALUES[line] in message
    assert "\n" not in message  # one fault, one sentence


def test_other_faults_of_the_languages(tmp_path):
    data = {**SMALLEST["data"], "languages": ["zh", "xx", "Germn"], "direction": "via:yy"}
    text = faults(tmp_path, {**SMALLEST, "data": data})
    assert "`data.languages`: unknown language 'xx'; unknown language 'Germn' (did you mean 'german'?)" in text
    assert "`data.direction`: unknown language 'yy'" in text


def test_there_is_something_to_evaluate_or_no_evaluation(tmp_path):
    assert load_recipe(write(tmp_path, {key: SMALLEST[key] for key in SMALLEST if key != "eval"})).eval is None
    assert "`eval.tasks`: got [], expected at least 1 item" in faults(tmp_path, {**SMALLEST, "eval": {"tasks": []}})


def test_missing_keys_are_all_named(tmp_path):
    text = faults(tmp_path, {"name": "x", "data": {}})
    assert all(f"missing key `{key}`" in text for key in ("data.task", "data.languages"))


FILES = {
    "name: [a\nb: c": r"recipe.yaml, line 2, column 2: not valid YAML: expected ',' or ']', but got ':'",
    "name: x\n\tdata: y": "recipe.yaml, line 2, column 1: not valid YAML: found character '\\t'",
    "name: 2020-13-45": "recipe.yaml, line 1, column 7: not valid YAML: got '2020-13-45', expected",
    "name: \x01": "recipe.yaml: not valid YAML: unacceptable character #x0001",
    "": "recipe.yaml: got an empty file, expected a mapping with the keys name, model",
    "- a": "recipe.yaml: got a list, expected a mapping with the keys name, model",
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_that_is_no_recipe(tmp_path, content):
    text = faults(tmp_path, content)
    assert FILES[content] in text
    assert "\n" not in text


def test_a_missing_file_a_folder_and_other_encodings(tmp_path):
    with pytest.raises(RecipeError, match=r"gone\.yaml: no such file, expected a YAML file"):
        load_recipe(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8 text"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml: cannot be read as UTF-8 text"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_preset_does_not_run_another_objective_under_its_name(tmp_path):
    said = faults(tmp_path, {**SMALLEST, "train": {"preset": "consistency", "objective": "translation"}})
    expected = "`train`: got preset consistency with objective translation, expected consistency in the objective, or"
    assert expected in said and said.count("\n") == 0
    both = {"preset": "consistency", "objective": {"consistency": 1.0, "translation": 0.2}}
    assert set(load_recipe(write(tmp_path, {**SMALLEST, "train": both})).train.objective) == set(both["objective"])
    assert "got consistancy, expected one of" in faults(
        tmp_path, {**SMALLEST, "train": {"preset": "paper", "objective": "consistancy"}}
    )


def test_a_preset_of_the_command_line_takes_the_place_of_the_file_s_objective_and_preset(tmp_path):
    path = write(tmp_path, {**SMALLEST, "train": {"objective": "translation", "epochs": 2, "rank": 8}})
    train = load_recipe(path, ["train.rank=4", "train.preset=consistency"]).train
    assert train.objective == {"consistency": 1.0} and train.lora_layers == (0.5, 1.0)
    assert (train.rank, train.epochs) == (4, 2)  # what the command line and the file write
    with pytest.raises(RecipeError, match="got preset consistency with objective contrastive"):
        load_recipe(path, ["train.preset=consistency", "train.objective=contrastive"])

    paper = write(tmp_path, {**SMALLEST, "train": {"preset": "paper", "epochs": 2}})
    train = load_recipe(write(tmp_path, dump_recipe(load_recipe(paper))), ["train.preset=consistency"]).train
    expected = load_recipe(write(tmp_path, {**SMALLEST, "train": {"preset": "consistency", "epochs": 2}})).train
    assert train == expected  # though every setting of `paper` was written out
    assert load_recipe(path, ["train.preset=default"]).train.objective == {"readout": 1.0}


@pytest.mark.parametrize(
    ("train", "unused"),
    [
        ({"rank": 4, "center": "zero", "layer": 0.4, "teacher": "english"}, ["center", "layer", "rank"]),
        ({"objective": "steering", "sentences": False, "center": "zero", "answers": "own"}, ["sentences", "center"]),
        (
            {"objective": "translation", "teacher": "english", "center": "zero", "answers": "english", "cue": "kept"},
            ["teacher", "center", "answers"],
        ),
        ({"objective": "translation", "replay": 0.5, "answers": "english", "prompt_format": "alpaca"}, []),
        (
            {"objective": "consistency", "cue": "kept", "replay": 0.5, "center": "zero", "max_length": 9},
            ["cue", "max_length"],
        ),
        ({"objective": "consistency", "prompt_format": "alpaca"}, ["prompt_format"]),
        ({"objective": "consistency", "prompt_format": "chat"}, []),
        ({"preset": "contrastive", "layer": 0.3, "teacher": "english"}, ["teacher"]),
        ({"preset": "paper"}, []),
    ],
    ids=str,
)
def test_settings_that_the_objective_does_not_read_are_known(tmp_path, train, unused):
    recipe = load_recipe(write(tmp_path, {**SMALLEST, "train": train}))
    assert sorted(recipe.train.unused) == sorted(unused)
    again = load_recipe(write(tmp_path, dump_recipe(recipe))).train  # which writes every setting out
    fields = type(again).model_fields
    assert sorted(again.unused) == sorted(name for name in unused if getattr(again, name) != fields[name].default)


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Recipe.model_validate({**SMALLEST, "explain": {"limit": 0}})


def test_directions(tmp_path):
    for written, meant in {"from-english": "from-english", "via:zh": "via:zh", "via:Chinese": "via:zh"}.items():
        data = {**SMALLEST["data"], "languages": ["de"], "direction": written}
        assert load_recipe(write(tmp_path, {**SMALLEST, "data": data})).data.direction == meant
    text = faults(tmp_path, {**SMALLEST, "data": {**SMALLEST["data"], "direction": "to-german"}})
    assert "`data.direction`: got 'to-german', expected to-english, from-english or via:<language>" in text


def test_the_paper_preset_is_what_was_published(tmp_path):
    recipe = load_recipe(write(tmp_path, {**SMALLEST, "train": {"preset": "paper", "epochs": 2}}))
    train = recipe.train
    assert (train.method, train.rank, train.alpha, train.target_modules) == ("lora", 8, 16, ("q_proj", "v_proj"))
    assert (train.learning_rate, train.scheduler, train.warmup_fraction) == (5e-5, "cosine", 0.1)
    assert (train.batch_size, train.micro_batch_size, train.max_length) == (16, 4, 2048)
    assert train.epochs == 2  # what is written wins
    assert recipe.data.validation_fraction == 0.05
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    paws = {**SMALLEST, "data": {**SMALLEST["data"], "task": "paraphrase"}, "train": {"preset": "paper"}}
    assert load_recipe(write(tmp_path, paws)).train.epochs == 1
    assert load_recipe(write(tmp_path, {**SMALLEST, "train": {"preset": "paper"}})).train.epochs == 3


def test_the_qalign_preset_is_what_was_published(tmp_path):
    recipe = load_recipe(write(tmp_path, {**SMALLEST, "train": {"preset": "qalign"}}))
    train = recipe.train
    assert (train.method, train.learning_rate, train.epochs, train.batch_size) == ("full", 2e-5, 3, 128)
    assert (train.scheduler, train.warmup_fraction, train.max_length, recipe.seed) == ("cosine", 0.03, 512, 1234)
    assert load_recipe(write(tmp_path, {**SMALLEST, "seed": 5, "train": {"preset": "qalign"}})).seed == 5


def test_every_preset_says_what_its_publication_leaves_open():
    assert {name for name, preset in PRESETS.items() if preset.unpublished} == {"paper", "qalign"}
    assert "template" in PRESETS["paper"].unpublished
    assert "seed" in PRESETS["paper"].unpublished


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"preset": "papr"}, "`train.preset`: got 'papr', expected 'default', 'consistency',"),
        ({"method": "full", "dora": True}, "got method full with dora, expected method lora"),
        ({"batch_size": 6, "micro_batch_size": 4}, "expected the second to divide the first"),
    ],
)
def test_training_settings_that_do_not_fit_together(tmp_path, train, message):
    assert message in faults(tmp_path, {**SMALLEST, "train": train})


def test_settings_of_the_command_line_replace_those_of_the_file(tmp_path):
    path = write(tmp_path, SMALLEST)
    recipe = load_recipe(path, ["train.learning_rate=1e-4", "train.target_modules=[q_proj]", "data.direction=via:zh",
                                "data.languages=de"])  # fmt: skip
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.target_modules == ("q_proj",)
    assert (recipe.data.languages, recipe.data.direction) == (("de",), "via:zh")
    for setting, message in {
        "train.rank": "got 'train.rank', expected a setting such as train.learning_rate=1e-4",
        "name.x=3": "`name` holds no settings",
        "train.rank=[1": "expected a value that is YAML",
        "train.rnk=3": "unknown key `train.rnk` (did you mean 'rank'?)",
    }.items():
        with pytest.raises(RecipeError, match=re.escape(message)):
            load_recipe(path, [setting])
