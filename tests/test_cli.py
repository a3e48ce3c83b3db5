"""The command line: every bad input of a user is one clear sentence and exit code 2; and the good paths."""

import copy
import errno
import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet
import pytest
import torch
import typer
import yaml
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

import glotlift
from glotlift.cli import app, data, main, tasks
from glotlift.evaluation.settings import Evaluation
from glotlift.explanation.settings import Explanation
from glotlift.explanation.states import PooledStates
from glotlift.languages import LANGUAGES
from glotlift.models.steering import Steering, save_steering
from glotlift.reporting.read import read_run
from glotlift.runs import read_parquet, write_parquet
from glotlift.tasks import load
from tests.data.test_read import write_jsonl
from tests.tasks.test_load import write_task
from tests.tasks.test_task import definition


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Undo what `main` sets for a process of its own: environment variables and the logger."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        monkeypatch.setenv(name, os.environ.get(name, "error"))
    monkeypatch.setenv("COLUMNS", "160")
    logger = logging.getLogger("glotlift")
    before = logger.handlers, logger.level, logger.propagate
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def cli(capsys):
    """Return a function that runs a command line in this process: arguments -> code, out, err."""

    def run(*arguments: object) -> SimpleNamespace:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code or 0, out=out, err=err)

    return run


@pytest.fixture
def refused(cli):
    """Return a function that runs a command line and returns the one sentence it is refused with."""

    def run(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.code == 2, result
        assert "Traceback" not in result.err
        _, *found = re.split(r"^error: ", result.err, flags=re.MULTILINE)
        assert len(found) == 1, result.err
        return found[0].removesuffix("\n")

    return run


@pytest.fixture
def recipe(tiny_folder, tmp_path):
    """Return a function that writes a recipe of the tiny model, changed at the top level, and returns its path."""

    def write(**changes: object) -> Path:
        content = {
            "name": "small",
            "model": str(tiny_folder),
            "data": {"task": "sentiment", "languages": ["de"], "limit": 4},
            "eval": {"tasks": [{"task": "sentiment", "limit": 2}], "languages": ["en", "de"]},
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def evaluate(tiny_folder, tmp_path):
    """Return the arguments of an evaluation of the tiny model into `tmp_path / "out"`, in English unless said."""
    return ["eval", "--model", tiny_folder, "--output-path", tmp_path / "out", "--languages", "en"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- recipes


def test_a_missing_recipe(refused, tmp_path):
    assert refused("run", tmp_path / "gone.yaml") == f"{tmp_path / 'gone.yaml'}: no such file, expected a YAML file"


def test_a_malformed_recipe_is_named_with_its_line(refused, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: small\ndata: {task: sentiment\neval: 3\n", encoding="utf-8")
    sentence = refused("run", path)
    assert sentence.startswith(f"{path}, line 3, column 5: not valid YAML: ")
    assert "\n" not in sentence


def test_three_unknown_keys(refused, recipe):
    path = recipe(modle="x", train={"lerning_rate": 1}, explain={"limitt": 3})
    lines = refused("run", path).splitlines()
    assert lines[0] == f"{path}: 3 faults:"
    assert {
        re.findall(r"unknown key `(.*?)` \(did you mean '(.*?)'\?\); expected one of: ", line)[0] for line in lines[1:]
    } == {
        ("modle", "model"),
        ("train.lerning_rate", "learning_rate"),
        ("explain.limitt", "limit"),
    }


def test_unknown_languages_of_a_recipe(refused, recipe):
    path = recipe(data={"task": "sentiment", "languages": ["de", "germn", "xx"]})
    sentence = refused("run", path)
    assert sentence.startswith(f"{path}: `data.languages`: unknown language 'germn' (did you mean 'german'?); unknown")
    assert "'xx'" in sentence
    assert sentence.endswith("expected BCP-47 codes such as: " + " ".join(LANGUAGES))


def test_unknown_tasks_of_a_recipe(refused, recipe, tmp_path):
    evaluated = recipe(eval={"tasks": [{"task": "sentimant"}]})
    sentence = refused("run", evaluated, "-o", tmp_path / "run")
    assert sentence.startswith("unknown task 'sentimant' (did you mean 'sentiment'?); expected one of nli, paraphrase")
    learned = recipe(data={"task": "paraphrases", "languages": ["de"]})
    assert refused("run", learned, "-o", tmp_path / "run").startswith("unknown task 'paraphrases' (did you mean 'para")


def test_a_language_the_questions_are_not_in(refused, recipe, tmp_path):
    path = recipe(data={"task": "sentiment", "languages": ["de", "th"]})
    assert refused("run", path, "-o", tmp_path / "run") == (
        "no bundled questions of 'sentiment' in th; there are: de en es sw zh"
    )


def parallel(folder: Path, n: int = 12, ids: str = "q{n}", **lengths: int) -> str:
    """Write questions in English and German and return their pattern; `ids` is empty for none."""
    for code in ("en", "de"):
        rows = [{"text": f"{code} {number}: is it good?"} for number in range(lengths.get(code, n))]
        named = [{"id": ids.format(n=number, code=code), **row} if ids else row for number, row in enumerate(rows)]
        write_jsonl(folder / f"{code}.jsonl", named)
    return str(folder / "{lang}.jsonl")


PACK = {"template": "{text}\nA: ", "answer_sets": {"own": {"yes": "yes", "no": "no"}}}
NO_GERMAN = {"name": "two", "fields": ["text"], "labels": ["yes", "no"], "languages": {"en": PACK, "sw": PACK}}

ALIGNMENT = {
    "no id in common": (
        {"ids": "{code}{n}"}, {}, {},
        "en.jsonl: got 0 questions with the same id in all of en, de, expected at least 2; this objective compares "
        "translations",
    ),
    "no ids, and files of two lengths": (
        {"ids": "", "de": 9}, {}, {},
        "en.jsonl: got 12 rows, not all with an `id`, and 9 in {folder}/de.jsonl, expected ids, or as many rows: "
        "without ids the same row is the same question",
    ),
    "no prompts": ({}, {"task": "{folder}/two.yaml"}, {}, "task 'two' has no prompts in 'de'; it has: en sw"),
    "one question": (
        {"n": 1}, {"validation_fraction": 0.0}, {},
        "en.jsonl: got 1 questions with the same id in all of en, de, expected at least 2; this objective compares "
        "translations",
    ),
    "from English": (
        {}, {"direction": "from-english"}, {},
        "got data.direction from-english for train.objective consistency, expected to-english: what the model says in "
        "English is what it learns",
    ),
    "a preset of another objective": (
        {}, {}, {"preset": "steering"},
        "recipe.yaml: `train`: got preset steering with objective consistency, expected steering in the objective, or "
        "another preset",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ALIGNMENT)
def test_questions_and_settings_that_no_objective_can_learn_from(refused, recipe, tmp_path, fault):
    files_, data_, train, expected = ALIGNMENT[fault]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(NO_GERMAN), encoding="utf-8")
    content = {"task": "sentiment", "languages": ["de"], "source": parallel(tmp_path, **files_), **data_}
    content["task"] = content["task"].replace("{folder}", str(tmp_path))
    path = recipe(data=content, train={"objective": "consistency", "answers": "own", **train})
    sentence = refused("train", path, "-o", tmp_path / "run")
    assert sentence.endswith(expected.replace("{folder}", str(tmp_path))) and "\n" not in sentence
    assert not (tmp_path / "run" / "adapter").exists()


def test_labels_whose_first_tokens_agree_train(cli, recipe, tmp_path):
    pack = {"template": "{text}\nA: ", "answer_sets": {"own": {"yes": "good thing", "no": "good grief"}}}
    task = {**NO_GERMAN, "languages": {"en": pack, "de": pack}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    data_ = {"task": str(tmp_path / "two.yaml"), "languages": ["de"], "source": parallel(tmp_path, ids="")}
    made = recipe(data=data_, train={"objective": "consistency", "answers": "own", "rank": 2}, eval=None)
    result = cli("train", made, "-o", tmp_path / "run")
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_sweep_with_two_runs_of_one_name(refused, recipe, tmp_path):
    content = {"name": "few", "recipe": str(recipe()), "runs": [{"name": "a"}, {"name": "A"}]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert refused("sweep", tmp_path / "sweep.yaml", "-o", tmp_path / "few") == (
        f"{tmp_path / 'sweep.yaml'}: got two runs of the name 'a', expected different names"
    )
    assert not (tmp_path / "few").exists()


def test_steering_of_another_model(refused, evaluate, tmp_path):
    (tmp_path / "steering").mkdir()
    save_steering(Steering(1, 2, 1.0, {"de": torch.ones(32)}, "the digest of another"), tmp_path / "steering")
    assert refused(*evaluate, "--steering", tmp_path / "steering") == (
        f"{tmp_path / 'steering' / 'steering.safetensors'}: got steering of another model, "
        "expected that of the model that is steered"
    )


# --- test data


def test_malformed_json(refused, evaluate, tmp_path):
    (tmp_path / "rows.json").write_text('[\n{"text": "a", "label": "positive"},\n{"text" "b"}]', encoding="utf-8")
    assert refused(*evaluate, "--data", tmp_path / "rows.json") == (
        f"{tmp_path / 'rows.json'}, line 3, column 9: not valid JSON: Expecting ':' delimiter"
    )


FINE = {"id": "a", "text": "Fine.", "label": "positive"}
ROWS = {
    "no gold column": ([{"text": "a"}], ", row 1: no gold column; it has text, expected label, answer or gold"),
    "no gold in a row": ([FINE, {"id": "b", "text": "a"}], ", row 2: no column 'label'; it has: id, text"),
    "unknown label": (
        [FINE, {**FINE, "id": "b", "label": "good"}],
        ", row 2: unknown label 'good'; expected one of: positive, negative, ox, horse",
    ),
    "empty text": ([FINE, {**FINE, "id": "b", "text": ""}], ", row 2: 'text' is empty, expected text"),
    "no rows": ([], ": got no rows, expected at least one"),
}


@pytest.mark.parametrize("fault", ROWS)
def test_test_rows_at_fault_are_named_with_file_and_row(refused, evaluate, tmp_path, fault):
    rows, message = ROWS[fault]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert refused(*evaluate, "--data", path) == f"{path}{message}"
    assert files(tmp_path) == ["rows.jsonl"]


def test_test_data_that_is_not_there(refused, evaluate, tmp_path):
    assert refused(*evaluate, "--data", tmp_path / "gone.jsonl") == (
        f"{tmp_path / 'gone.jsonl'}: no such file, expected .json, .jsonl, .csv, .tsv or .parquet"
    )
    (tmp_path / "empty").mkdir()
    assert refused(*evaluate, "--data", tmp_path / "empty") == (
        f"{tmp_path / 'empty'}: got no file named emotion_en[0-9]*_test.json, expected one (the paper's layout), "
        "or give a pattern with {lang}"
    )


def test_faults_of_test_data_show_before_training(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{**FINE, "label": "good"}])
    tasks = [{"task": "sentiment", "source": str(path), "languages": ["en"]}]
    sentence = refused("run", recipe(eval={"tasks": tasks}), "-o", tmp_path / "run")
    assert sentence.startswith(f"{path}, row 1: unknown label 'good'")
    assert files(tmp_path / "run") == []


def test_a_prompt_longer_than_the_window(refused, evaluate, tmp_path):
    rows = [FINE, {**FINE, "id": "b", "text": "and then it broke " * 400}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sentence = refused(*evaluate, "--data", path)
    assert re.fullmatch(
        r"task 'sentiment', en: prompt 2 has \d{4} tokens, the model's window 1024; "
        "use fewer demonstrations, shorter texts or a model with a longer window",
        sentence,
    )
    assert files(tmp_path / "out") == []


# --- tasks, languages and other options


def test_unknown_names_on_the_command_line(refused, evaluate):
    assert refused(*evaluate, "--tasks", "sentimnt").startswith("unknown task 'sentimnt' (did you mean 'sentiment'?)")
    assert refused(*evaluate, "--languages", "de,swahilli").startswith(
        "--languages: unknown language 'swahilli' (did you mean 'swahili'?)"
    )
    assert refused(*evaluate, "--answers", "animals") == (
        "task 'sentiment', en: no answer set 'animals'; expected english, arbitrary or own"
    )
    assert refused(*evaluate, "--scoring", "best") == (
        "--scoring: got 'best', expected 'sequence', 'prefix-mass', 'prefix-mass-released' or 'first-token'"
    )
    assert refused(*evaluate, "--limit", "0") == "--limit: got 0, expected greater than or equal to 1"
    assert refused(*evaluate, "--seed", "-1", "--batch-size", "x").splitlines() == [
        "2 faults:",
        "  --batch-size: got 'x', expected `auto` or a number of items, at least 1",
        "  --seed: got -1, expected greater than or equal to 0",
    ]
    assert refused(*evaluate, "--dtype", "int4") == (
        "--dtype: got 'int4', expected 'auto', 'float32', 'bfloat16' or 'float16'"
    )
    assert refused(*evaluate, "--device", "gpu") == (
        "got device 'gpu', expected `auto`, `cpu`, `cuda` or another of torch's"
    )
    assert refused(*evaluate, "--num-fewshot", "9") == "task 'sentiment', en: got num_fewshot 9, expected at most 8"
    assert refused("tasks", "show", "nil").startswith("unknown task 'nil' (did you mean 'nli'?)")


def test_a_language_the_task_has_no_prompts_in(refused, evaluate, tmp_path):
    path = write_task(tmp_path / "mood.yaml", definition())
    assert refused(*evaluate, "--tasks", path, "--languages", "de,th") == (
        "task 'mood' has no prompts in 'th'; it has: en de"
    )


def test_settings_that_do_not_go_together(refused, evaluate):
    assert refused(*evaluate, "--tasks", "sentiment, sentiment") == (
        "tasks: got the names sentiment, sentiment, expected distinct ones; give one a `name`"
    )
    assert refused(*evaluate, "--tasks", " , ") == "evaluate: `tasks`: got [], expected at least 1 item"


def test_two_labels_with_the_same_word(refused, evaluate, tmp_path):
    content = definition()
    content["languages"]["de"]["answer_sets"]["own"] = {"good": "so", "bad": "so"}
    path = write_task(tmp_path / "mood.yaml", content)
    assert refused(*evaluate, "--tasks", path) == (
        f"{path}: languages.de.answer_sets.own: 'good' and 'bad' have the same word 'so', expected two words"
    )


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["eval", "--limit", "x"], ["eval", "--limt", "3"], ["compare", "--seed", "-1"], ["run"]]
)
def test_what_the_parser_refuses(cli, arguments):
    result = cli(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "Usage: " in result.err


# --- models and adapters


def test_a_model_folder_that_does_not_exist(refused, evaluate, tmp_path):
    assert refused(*evaluate, "--model", tmp_path / "gone") == (
        f"'{tmp_path / 'gone'}': no such model folder; expected a hub id, a folder, a .gguf file or `demo`"
    )
    assert refused(*evaluate, "--model", tmp_path / "gone.gguf") == (
        f"{tmp_path / 'gone.gguf'}: no such file, expected a GGUF model"
    )


def test_a_model_folder_without_tokenizer(refused, evaluate, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    assert refused(*evaluate, "--model", tmp_path / "model") == (
        f"{tmp_path / 'model'}: got a model folder without a tokenizer, "
        "expected one of tokenizer.json, tokenizer.model, tokenizer_config.json, vocab.json"
    )


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_folder(refused, evaluate, tiny_folder, tmp_path, file):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / file).write_text("{ this is not what it was")
    sentence = refused(*evaluate, "--model", tmp_path / "model")
    assert sentence.startswith(f"model '{tmp_path / 'model'}'")
    assert "cannot be loaded" in sentence
    assert "\n" not in sentence


def test_adapter_folders_at_fault(refused, evaluate, tmp_path):
    (tmp_path / "adapter").mkdir()
    assert refused(*evaluate, "--adapter", tmp_path / "adapter") == (
        f"{tmp_path / 'adapter'}: got a folder without adapter_config.json, expected a peft adapter"
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert refused(*evaluate, "--adapter", tmp_path / "adapter") == (
        f"{tmp_path / 'adapter'}: got a folder without adapter_model.safetensors, expected a peft adapter"
    )
    sentence = refused(*evaluate, "--adapter", tmp_path / "gone")
    assert sentence.startswith(f"adapter '{tmp_path / 'gone'}' cannot be put on the model: ")


# --- output


def test_an_output_folder_that_cannot_be_made(refused, evaluate, recipe, tmp_path):
    (tmp_path / "file").write_text("")
    expected = "file/run: cannot be made (Not a directory), expected a folder that can be written"
    assert refused(*evaluate, "-o", tmp_path / "file" / "run").endswith(expected)
    assert refused("run", recipe(), "-o", tmp_path / "file" / "run").endswith(expected)


def _full_parquet(table, file, *arguments, **options):
    Path(file).write_bytes(b"PAR1 half of a")
    raise OSError(errno.ENOSPC, "No space left on device")


def _full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


FULL_DISKS = {"mkstemp": (tempfile, "mkstemp", _full), "rename": (Path, "replace", _full)}
FULL_DISKS["parquet"] = (pyarrow.parquet, "write_table", _full_parquet)


@pytest.mark.parametrize("call", FULL_DISKS)
def test_no_space_left_leaves_nothing_half_written(refused, evaluate, tmp_path, monkeypatch, call):
    monkeypatch.setattr(*FULL_DISKS[call])
    sentence = refused(*evaluate, "--limit", 2)
    name, left = ("en.parquet", [".en.0.jsonl"]) if call == "parquet" else (".en.0.jsonl", [])
    path = tmp_path / "out" / "predictions" / "base" / "sentiment" / name
    assert sentence == f"{path}: cannot be written (No space left on device)"
    assert files(tmp_path / "out") == left  # scores that could be kept are


def test_no_space_left_keeps_what_is_finished(cli, refused, evaluate, tmp_path, monkeypatch):
    """The second language finds the disk full; when there is space again, the first one is not computed anew."""
    real = pyarrow.parquet.write_table

    def full_at_german(table, file, *arguments, **options):
        (_full_parquet if ".de.parquet." in str(file) else real)(table, file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", full_at_german)
        refused(*evaluate, "--languages", "en,de", "--limit", 2)
    english = tmp_path / "out" / "predictions" / "base" / "sentiment" / "en.parquet"
    assert files(tmp_path / "out") == [".de.0.jsonl", "en.parquet"]
    written = english.stat().st_mtime_ns
    assert cli(*evaluate, "--languages", "en,de", "--limit", 2).code == 0
    assert files(tmp_path / "out") == ["de.parquet", "en.parquet", "scores.json"]
    assert english.stat().st_mtime_ns == written


def test_a_run_on_a_full_disk(refused, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkstemp", _full)
    sentence = refused("run", recipe(), "-o", tmp_path / "run")
    assert sentence == f"{tmp_path / 'run' / 'recipe.yaml'}: cannot be written (No space left on device)"
    assert files(tmp_path / "run") == []


def test_no_space_left_for_the_adapter(refused, recipe, tmp_path, monkeypatch):
    """safetensors has an error of its own for a full disk."""

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    sentence = refused("run", recipe(train={"objective": "translation"}), "-o", tmp_path / "run")
    assert sentence.startswith(f"{tmp_path / 'run' / 'checkpoints'}")
    assert "cannot be written (Error while serializing: I/O error: No space left on device" in sentence
    assert not list((tmp_path / "run").glob("*adapter*"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {stage: entry["status"] for stage, entry in manifest["stages"].items()} == {
        "data": "done",
        "train": "failed",
    }


def test_a_report_of_an_empty_folder(refused, tmp_path):
    (tmp_path / "run").mkdir()
    assert refused("report", tmp_path / "run") == (
        f"{tmp_path / 'run'}: got no scores.json, expected a folder that `glotlift run` or `eval` wrote"
    )
    assert (
        refused("merge", tmp_path / "run") == f"{tmp_path / 'run' / 'recipe.yaml'}: no such file, expected a YAML file"
    )
    assert files(tmp_path / "run") == []
    refused("report", tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_an_interrupt_is_no_error_of_ours(cli, evaluate, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("glotlift.stages.evaluate.evaluate", interrupt)
    result = cli(*evaluate)
    assert result.code == 130
    assert result.err == "error: interrupted; finished work is kept, start the same command again to go on\n"


# --- good paths


@pytest.mark.parametrize(("command", "settings"), [("eval", Evaluation), ("explain", Explanation)])
def test_help_shows_the_defaults_of_the_settings(command, settings):
    parameters = {each.name: each for each in typer.main.get_command(app).commands[command].params}
    assert set(settings.model_fields) <= set(parameters)
    for name, field in settings.model_fields.items():
        said = parameters[name].show_default or ""
        default = field.default[0] if isinstance(field.default, tuple) and field.default else field.default
        special = {
            "prefix_cache": "prefix-cache",
            "languages": "all",
            "what": "lens,geometry",
        }  # a pair of flags; a short form
        is_nothing = not default and not isinstance(default, int | float) or default is False
        assert said == special.get(name, "" if is_nothing else str(default)), name


def test_tasks_are_listed_and_shown(cli):
    listed = cli("tasks", "list")
    assert listed.code == 0
    assert re.findall(r"^(\w+) +20 languages, ", listed.out, flags=re.MULTILINE) == ["nli", "paraphrase", "sentiment"]
    shown = cli("tasks", "show", "sentiment", "--languages", "de,th", "--answers", "english")
    assert shown.code == 0
    assert shown.out.startswith("--- sentiment, de\nRezension: ")
    assert 'Rezension: <text>\nBewertung: "\n\n--- sentiment, th\n' in shown.out
    assert 'Bewertung: "positive"\n\n' in shown.out


def test_languages_are_listed(cli):
    listed = cli("languages")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == list(LANGUAGES)


def test_a_task_is_checked_with_and_without_a_tokenizer(cli, tiny_folder, tmp_path):
    path = write_task(tmp_path / "mood.yaml", definition())
    assert "2 languages, 2 labels: no fault" in cli("tasks", "check", path).out
    audited = cli("tasks", "check", path, "--model", tiny_folder)
    assert audited.code == 0
    assert "tokens of the answer words: not checked" not in audited.out
    faulty = definition()
    faulty["languages"]["de"]["demonstrations"][0]["label"] = "nix"
    refused = cli("tasks", "check", write_task(tmp_path / "odd.yaml", faulty))
    assert refused.code == 2
    assert "got label 'nix'" in refused.out


def test_a_task_is_exported_for_lm_eval(cli, refused, tmp_path):
    done = cli("tasks", "export", tmp_path / "group", "--languages", "de,th", "--limit", 2)
    assert done.out == f"lm_eval --include_path {tmp_path / 'group'} --tasks glotlift_sentiment\n"
    assert (tmp_path / "group" / "glotlift_sentiment_th.yaml").is_file()
    assert refused("tasks", "export", tmp_path / "x", "--format", "helm") == "--format: got 'helm', expected lm-eval"


def test_question_pairs_are_audited(cli, recipe, tmp_path):
    built = cli("data", "build", recipe(), "-o", tmp_path / "run")
    assert built.code == 0
    assert built.out.strip() == str(tmp_path / "run" / "data" / "pairs.jsonl")
    audit = json.loads(cli("data", "audit", built.out.strip(), "--task", "sentiment").out)
    assert (audit["pairs"], audit["languages"]) == (4, {"de": 4})
    kept = json.loads((tmp_path / "run" / "data" / "audit.json").read_text())
    assert audit == {**kept, "overlap": {**kept["overlap"], "of": 0}}  # there is nothing to compare with here
    assert (audit["question_only"], kept["overlap"]["of"] > 0) == (True, True)


@pytest.mark.parametrize("format", ["trl", "llama-factory", "hub"])
def test_question_pairs_are_exported(cli, recipe, tmp_path, format):
    cli("data", "build", recipe(), "-o", tmp_path / "run")
    exported = cli("data", "export", tmp_path / "run", tmp_path / "out", "--format", format)
    assert exported.code == 0, exported.err
    assert Path(exported.out.strip()).is_file()


def test_an_unknown_export_format_is_refused(cli, recipe, tmp_path):
    cli("data", "build", recipe(), "-o", tmp_path / "run")
    refused = cli("data", "export", tmp_path / "run", tmp_path / "out", "--format", "csv")
    assert refused.code == 2
    assert "'csv'" in refused.err


@pytest.fixture
def evaluated(cli, evaluate, tmp_path):
    """Evaluate the tiny model on four items of two languages; returns the outcome and the folder."""
    return cli(*evaluate, "--languages", "en,de", "--limit", 4), tmp_path / "out"


def test_an_evaluation_prints_a_table_and_writes_scores(evaluated):
    result, folder = evaluated
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert re.search(r"English +4 ", result.out)
    assert re.search(r"German +4 ", result.out)
    assert "On sentiment, the model is right on" in " ".join(result.out.split())
    assert result.out.rstrip().endswith(str(folder / "scores.json"))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["n-shot"] == {"sentiment_en": 2, "sentiment_de": 2}
    frame, _ = read_parquet(folder / "predictions" / "base" / "sentiment" / "de.parquet")
    assert scores["results"]["sentiment_de"]["acc,none"] == (frame["predicted"] == frame["gold"]).mean()
    assert re.search(r"eval sentiment, base: 8 of 8 items, [\d.]+ items/s", result.err)  # plain lines, no terminal


def test_an_evaluation_twice_gives_the_same_bytes(evaluated, cli, evaluate, tmp_path):
    _, folder = evaluated
    cli(*evaluate, "--languages", "en,de", "--limit", 4, "-o", tmp_path / "again")
    for path in folder.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def _rewritten(source, target, change, about=None):
    """Write the prediction files of a folder into another one, each frame changed, and what is said of them."""
    for path in source.glob("*.parquet"):
        frame, known = read_parquet(path)
        write_parquet(target / path.name, change(frame), {**known, **(about or {})})
    return target


def _all_right(frame):
    """Give every item's gold label the better score."""
    scores = {f"sequence_{label}": -5.0 * (frame["gold"] != label) for label in ("positive", "negative")}
    return frame.assign(**scores)


def test_two_evaluations_are_compared(evaluated, cli, tmp_path):
    folder = evaluated[1] / "predictions" / "base" / "sentiment"
    better = _rewritten(folder, tmp_path / "better", _all_right)
    result = cli("compare", folder, better)
    assert result.code == 0, result.err
    rows = {cells[0]: cells for line in result.out.splitlines() if len(cells := re.findall(r"[^\s│]+", line)) > 5}
    wrong = (read_parquet(folder / "de.parquet")[0].eval("predicted != gold")).sum()
    assert rows["German"][1:3] == ["4", f"{100 - wrong / 4 * 100:.1f}"]
    assert f"+{wrong / 4 * 100:.1f}" in rows["German"]
    assert [name for name in rows if name in ("English", "German", "All")] == ["English", "German", "All"]
    assert "A accuracy" in result.out
    assert "B accuracy" in result.out
    assert f"A: {folder}; B: " in result.out  # long paths go over lines


def test_run_folders_are_compared_by_their_test_sets(evaluated, cli, refused, tmp_path):
    run = evaluated[1]
    other = _rewritten(
        run / "predictions" / "base" / "sentiment",
        tmp_path / "run" / "predictions" / "tuned" / "sentiment",
        lambda x: x,
    ).parents[2]
    result = cli("compare", run, other)
    assert result.code == 0, result.err
    assert " 0.0 " in result.out
    assert refused("compare", run, other, "--variant-b", "base") == (f"B, {other}: got variant 'base', expected tuned")
    assert cli("compare", run, other, "--variant-a", "base", "--scoring", "first-token").code == 0


def test_what_two_evaluations_do_differently_is_told(evaluated, cli, tmp_path):
    folder = evaluated[1] / "predictions" / "base" / "sentiment"
    other = _rewritten(folder, tmp_path / "other", lambda frame: frame, {"answers": "english", "num_fewshot": 0})
    assert "sentiment: A and B differ in answers own / english, num_fewshot 2 / 0" in cli("compare", folder, other).err


def test_evaluations_that_were_decided_in_other_ways_are_not_compared_unasked(evaluated, refused, cli, tmp_path):
    folder = evaluated[1] / "predictions" / "base" / "sentiment"
    other = _rewritten(folder, tmp_path / "other", lambda frame: frame, {"scoring": "first-token"})
    assert refused("compare", folder, other) == (
        f"{folder} and {other}: got predictions by scoring sequence and first-token, expected one; "
        "say by which both are decided with --scoring"
    )
    assert cli("compare", folder, other, "--scoring", "first-token").code == 0
    assert " 0.0 " in cli("compare", folder, other, "--scoring", "prefix-mass", "--calibration", "batch").out
    assert refused("compare", folder, folder, "--scoring", "magic").endswith(
        "got no scores 'magic_positive', expected those of scoring magic"
    )


def test_items_of_other_texts_are_not_compared(evaluated, refused, tmp_path):
    folder = evaluated[1] / "predictions" / "base" / "sentiment"
    other = _rewritten(folder, tmp_path / "other", lambda frame: frame.assign(text_digest="other"))
    assert refused("compare", folder, other) == (
        "sentiment, en: item 's01' has two texts, expected the same data in both"
    )


def test_evaluations_that_cannot_be_compared(evaluated, refused, cli, evaluate, tmp_path):
    folder = evaluated[1] / "predictions" / "base" / "sentiment"
    cli(*evaluate, "--languages", "en,de", "--limit", 3, "-o", tmp_path / "fewer")
    fewer = tmp_path / "fewer" / "predictions" / "base" / "sentiment"
    assert refused("compare", folder, fewer) == (
        "sentiment, en: got 1 item ('s04') in A only, expected the same items in both"
    )
    (fewer / "de.parquet").unlink()
    (fewer / "en.parquet").rename(fewer / "sw.parquet")
    assert refused("compare", folder, fewer) == "sentiment: A and B have no language in common: de en and sw"
    (tmp_path / "nothing").mkdir()
    assert refused("compare", tmp_path / "nothing", folder).startswith(
        f"A, {tmp_path / 'nothing'}: got no prediction files, expected a run or evaluation folder"
    )
    (fewer / "de.parquet").write_bytes(b"PAR1 junk")
    assert refused("compare", folder, fewer).startswith(f"{fewer / 'de.parquet'}: cannot be read as Parquet")
    pd.DataFrame({"a": [1]}).to_parquet(fewer / "de.parquet")
    assert "got no labels in its metadata, expected a prediction file" in refused("compare", folder, fewer)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["eval"], ["tasks"], ["tasks", "show"], ["data", "export"]], ids=" ".join)
def test_help_of_every_command_has_a_short_flag(command, flag, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, flag])
    assert end.value.code == 0
    assert "Usage: " in capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"glotlift {glotlift.__version__}\n")


def test_shells_complete_commands(monkeypatch, capsys):
    monkeypatch.setenv("_GLOTLIFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "glotlift ta")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setattr("sys.argv", ["glotlift"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.strip() == "tasks"


@pytest.mark.parametrize("name", load.builtin_tasks())
def test_a_bundled_task_can_be_copied(name, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["tasks", "show", name, "--yaml"])
    assert end.value.code == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load.load_task(str(copy)) == load.load_task(name)
    assert load.show_task(str(copy), "de,th") == load.show_task(name, "de,th")


GROUPS = {"data": data.app, "tasks": tasks.app}
README = Path(__file__).parents[1] / "README.md"


def test_every_command_is_a_public_function_that_the_readme_names():
    rows = re.findall(r"^\| `glotlift (.+?)` \| `(\w+)` \|", README.read_text(encoding="utf-8"), re.M)
    words = [line.split() for line, _ in rows]
    named = {" ".join(each[: 2 if each[0] in GROUPS else 1]) for each in words}
    commands = {name for name in typer.main.get_group(app).commands if name not in GROUPS}
    commands |= {f"{group} {name}" for group, sub in GROUPS.items() for name in typer.main.get_group(sub).commands}
    assert named == commands
    assert {function for _, function in rows} <= set(glotlift.__all__)


def test_gold_and_columns_are_flags(cli, evaluate, refused, tmp_path):
    rows = [{"review": "Good.", "stars": 5}, {"review": "Bad.", "stars": 1}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    asked = [*evaluate, "--languages", "en", "--data", path, "--columns", "text=review", "--gold", "stars"]
    result = cli(*asked, "--gold-map", "5=positive, 1=negative")
    assert result.code == 0, result.err
    assert "English" in result.out
    assert "gold_map: {5: positive, ...}" in refused(*asked)
    assert refused(*asked, "--gold-map", "5") == (
        "evaluate: --gold-map: got '5', expected pairs such as text=review,label=stars"
    ).removeprefix("evaluate: ")
    assert refused(*asked, "--columns", "text=a,text=b").endswith("got 'text' twice, expected it once")


# --- inside a model


def test_one_prompt_is_shown_layer_by_layer_and_written_as_a_page(cli, tiny_folder, tmp_path):
    shown = cli(
        "explain",
        "lens",
        "--model",
        tiny_folder,
        "--text",
        "Works well",
        "--tokens",
        "2",
        "--html",
        tmp_path / "x.html",
    )
    assert shown.code == 0, shown.err
    assert [line.split()[0] for line in shown.out.splitlines() if line[:5].strip().isdigit()] == ["3", "2", "1", "0"]
    assert "<table" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert cli("explain", "lens", "--model", tiny_folder).code == 2


def test_a_tuned_lens_is_trained_saved_and_read_beside_the_plain_one(cli, tiny_folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"It works well, day {k} of many." for k in range(40)), encoding="utf-8")
    trained = cli(
        "explain", "tuned-lens", "--model", tiny_folder, "--texts", texts, "--steps", "3", "-o", tmp_path / "lens"
    )
    assert trained.code == 0, trained.err
    assert "held-out positions" in trained.out and (tmp_path / "lens" / "params.pt").is_file()
    asked = ("--model", tiny_folder, "--languages", "en,de", "--data", "sample", "--limit", "2", "-o", tmp_path / "out")
    done = cli("explain", *asked, "--what", "lens", "--tuned-lens", tmp_path / "lens", "--paper")
    assert done.code == 0, done.err
    found = {path.parts[-4] for path in (tmp_path / "out").glob("*/*/*/*.parquet")}
    assert found == {"lens", "tuned_lens", "paper_lens"}
    assert "en, tokens that begin positive + negative: " in done.err  # before the run
    assert "paper lens, de: 0 of 2 items kept" in done.err


def test_what_cannot_be_explained_is_said_in_a_sentence(cli, tmp_path):
    wrong = cli("explain", "--what", "lens,pixies", "-o", tmp_path)
    expected = "--what: got 'pixies', expected lens, geometry, patching, switch-off or item-link"
    assert wrong.code == 2 and expected in wrong.err
    missing = cli("explain", "tuned-lens", "--texts", tmp_path / "none.txt", "-o", tmp_path)
    assert missing.code == 2 and "none.txt: cannot be read as text" in missing.err


@pytest.fixture
def tiny_adapter(tiny, tmp_path) -> Path:
    """The folder of an adapter that changes what the tiny model answers."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(copy.deepcopy(tiny("llama").model), lora)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.5)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_pooling_item_link_and_random_adapter_are_asked_for_by_flags(
    cli, tiny_folder, tiny_adapter, tmp_path, monkeypatch
):
    out, drawn = tmp_path / "out", []
    monkeypatch.setattr("glotlift.reporting.figures.write_explanation", lambda *of: drawn.append(of))  # takes longest
    asked = ("--model", tiny_folder, "--adapter", tiny_adapter, "--languages", "en,de,sw", "--data", "sample",
             "--limit", "8", "-o", out)  # fmt: skip
    assert cli("eval", "--tasks", "sentiment", *asked).code == 0
    more = ("--what", "lens,geometry,item-link", "--pooling", "whole", "--random-adapter")
    done = cli("explain", *asked, *more)
    assert done.code == 0, done.err
    for said in ("towards_pivot_mean, calibration none: ", "earlier_crossover, calibration batch: "):
        assert f"item link, {said}" in done.err

    states = {where: PooledStates(out / where / "geometry/sentiment/states/tuned/de.safetensors")
              for where in ("", "random_adapter")}  # fmt: skip
    assert states[""].metadata["pooling"] == "whole" and min(states[""].lengths) > 40  # with the demonstrations
    assert states["random_adapter"].lengths == states[""].lengths
    assert abs(states[""].layer(3) - states["random_adapter"].layer(3)).max() > 1e-3
    base = "geometry/sentiment/states/base/de.safetensors"
    assert (out / base).read_bytes() == (out / "random_adapter" / base).read_bytes()
    for place in ("geometry/sentiment/similarity.parquet", "lens/tuned/sentiment/de.parquet"):
        frames = [read_parquet(folder / place)[0] for folder in (out, out / "random_adapter")]
        assert frames[0].shape == frames[1].shape and not frames[0].equals(frames[1])
    assert read_parquet(out / "geometry/sentiment/similarity.parquet")[1]["pooling"] == "whole"

    link, _ = read_parquet(out / "item_link/sentiment/summary.parquet")
    assert set(link["quantity"]) == {"towards_pivot", "towards_pivot_mean", "earlier_crossover"}
    assert set(link["language"]) == {"de", "sw", "all"} and not (out / "random_adapter" / "item_link").exists()
    flipped, stayed = 0, 0
    for code in ("de", "sw"):
        right = [
            (frame["gold"] == frame["predicted"]).to_numpy()
            for variant in ("base", "tuned")
            for frame in [read_parquet(out / "predictions" / variant / "sentiment" / f"{code}.parquet")[0]]
        ]
        flipped, stayed = flipped + (~right[0] & right[1]).sum(), stayed + (~right[0] & ~right[1]).sum()
    row = link.query("quantity == 'towards_pivot_mean' and language == 'all' and calibration == 'none'").iloc[0]
    assert (row["n_flipped"], row["n_stayed"]) == (flipped, stayed) and flipped + stayed > 0
    assert drawn == [(out, tiny_adapter)]
    found = read_run(out)
    assert {*found.similarity["sentiment"]["variant"]} == {*found.probe["sentiment"]["variant"]} == {
        "base", "tuned", "random adapter"
    }  # fmt: skip

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".parquet", ".safetensors")
              and "random_adapter" not in path.parts}  # fmt: skip
    assert cli("explain", *asked, *more).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is computed twice


def test_patching_and_switch_off_are_asked_for_by_flags(cli, tiny_folder, tiny_adapter, tmp_path):
    out = tmp_path / "out"
    asked = ("--model", tiny_folder, "--adapter", tiny_adapter, "--languages", "en,de,sw", "--data", "sample",
             "--limit", "4", "-o", out)  # fmt: skip
    done = cli("explain", *asked, "--what", "patching,switch-off")
    assert done.code == 0, done.err
    assert {path.name for path in out.glob("patching/sentiment/*/*.parquet")} == {"de.parquet", "sw.parquet"}
    assert {path.name for path in out.glob("switch_off/sentiment/*.parquet")} == {
        "en.parquet", "de.parquet", "sw.parquet", "summary.parquet"
    }  # fmt: skip
    repaired, switched = (glotlift.read_explanation(out, kind) for kind in ("patching", "switch-off"))
    assert set(repaired["variant"]) == {"base", "tuned"} and set(repaired["language"]) == {"de", "sw", "all"}
    assert set(repaired["source"]) == {"same", "other", "difference"} and set(repaired["layer"]) == {0, 1, 2, 3}
    assert set(switched["mode"]) == {"base", "tuned", "without", "up_to", "from"}
    assert set(switched["group"]) == {"all", "attention", "mlp"} and (switched["change"] != 0).any()
    for name in ("patching-sentiment", "switch-off-sentiment"):
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert not (out / "lens").exists() and not (out / "geometry").exists()


def test_what_the_lens_reads_beside_is_asked_for_by_flags(cli, tiny_folder, tmp_path):
    out = tmp_path / "out"
    asked = ("--model", tiny_folder, "--languages", "en,de,zh", "--data", "sample", "--limit", "2", "-o", out)
    done = cli("explain", *asked, "--what", "lens", "--components", "--sequences")
    assert done.code == 0, done.err
    parts = glotlift.read_explanation(out, "components")
    assert set(parts["component"]) == {"attention", "before_mlp", "mlp"} and set(parts["layer"]) == {1, 2, 3}
    german = glotlift.read_explanation(out, "lens").query("language == 'de'")
    words = [f"{whose}_sequence_{label}" for whose in ("english", "own") for label in ("positive", "negative")]
    assert (german[words] < 0).all(axis=None) and len(german) == 2 * 4
    assert (out / "figures" / "lens-sentiment.svg").is_file()


def test_states_are_written_in_half_by_a_flag(cli, refused, tiny_folder, tmp_path):
    out = tmp_path / "out"
    asked = ("explain", "--model", tiny_folder, "--languages", "en,de", "--data", "sample", "--limit", "2", "-o", out)
    assert refused(*asked, "--states-dtype", "half").startswith("--states-dtype: got 'half', expected ")
    done = cli(*asked, "--what", "geometry", "--states-dtype", "float16")
    assert done.code == 0, done.err
    sizes = [path.stat().st_size for path in out.glob("geometry/sentiment/states/base/*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 2 * 4 * 32 * 4  # what float32 takes of 2 items, 4 layers and 32 numbers


def test_what_these_flags_need_is_said_before_anything_runs(refused, tiny_folder, tiny_adapter, tmp_path):
    asked = ("explain", "--model", tiny_folder, "--languages", "en,de", "--data", "sample", "--limit", "2", "-o",
             tmp_path / "out")  # fmt: skip
    assert refused(*asked, "--pooling", "mean").startswith("--pooling: got 'mean', expected ")
    assert refused(*asked, "--random-adapter").startswith("random_adapter: got no adapter, expected ")
    assert "got item-link without geometry, expected both" in refused(*asked, "--what", "item-link")
    both = ("--what", "geometry,item-link")
    assert refused(*asked, *both).startswith("item-link: got no tuned model to look into")
    missing = refused(*asked, *both, "--adapter", tiny_adapter)
    assert "predictions/base/sentiment/de.parquet, expected the predictions of base and tuned" in missing
    assert not (tmp_path / "out" / "geometry").exists()
