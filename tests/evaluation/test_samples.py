"""Sample logs, line by line against what lm-evaluation-harness writes with `--log_samples`."""

import hashlib
import json
from pathlib import Path

import pytest

from glotlift.data.export import export_lm_eval
from glotlift.data.read import read_items
from glotlift.evaluation.predict import predict
from glotlift.evaluation.predictions import Predictions
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.samples import write_samples
from glotlift.evaluation.settings import EvalTask
from glotlift.tasks.load import load_task

KEYS = ["doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
        "prompt_hash", "target_hash", "acc"]  # fmt: skip


def written(loaded, folder: Path, language="th", limit=4, variants=("base",), scoring="sequence", **options):
    """Write the sample logs of the bundled sentiment items; return the prompts and the predictions."""
    task = load_task("sentiment")
    items = read_items(task, "sample", (language,), limit=limit)[language]
    prompts = prepare(loaded, task, language, items, EvalTask(task=task.name, **options))
    frame = predict(loaded, prompts, "base", scoring=scoring)
    predictions = Predictions("mood", {variant: {language: frame.copy()} for variant in variants}, {"scoring": scoring})
    write_samples(folder, "mood", prompts, predictions)
    return prompts, predictions


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.peers
def test_lm_eval_writes_the_same_lines(tiny, tmp_path):
    """All but whether greedy decoding gives an answer, which one forward pass does not tell, and our `predicted`."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded, task = tiny("llama"), load_task("sentiment")
    written(loaded, tmp_path)
    path = export_lm_eval(task, read_items(task, "sample", ("th",), limit=4), tmp_path / "tasks")
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4),
        tasks=[path.stem.removeprefix("_")],
        task_manager=TaskManager(include_path=str(path.parent), include_defaults=False),
        bootstrap_iters=0,
    )
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs.json"))
    tracker.date_id = "now"
    ((name, samples),) = found["samples"].items()
    tracker.save_results_samples(name, samples)
    theirs = lines(tmp_path / f"samples_{name}_now.jsonl")
    ours = lines(tmp_path / "samples_mood_th.jsonl")
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == [*other, "predicted"] == [*KEYS, "predicted"]
        for key in set(KEYS) - {"resps", "filtered_resps"}:
            assert mine[key] == other[key], key
        for key in ("resps", "filtered_resps"):
            flat = [pair if key == "filtered_resps" else pair[0] for pair in mine[key]]
            expected = [pair if key == "filtered_resps" else pair[0] for pair in other[key]]
            assert [len(pair) for pair in flat] == [len(pair) for pair in expected] == [2, 2]
            assert all(isinstance(value, str) for pair in flat for value in pair)
            assert [float(pair[0]) for pair in flat] == pytest.approx([float(pair[0]) for pair in expected], abs=1e-4)


@pytest.mark.parametrize("scoring", ["sequence", "prefix-mass", "prefix-mass-released", "first-token"])
def test_a_line_is_an_item(tiny, tmp_path, scoring):
    prompts, predictions = written(tiny("qwen2"), tmp_path, "de", scoring=scoring, closing_quote=True)
    found = lines(tmp_path / "samples_mood_de.jsonl")
    frame = predictions.frames["base"]["de"]
    assert [line["doc_id"] for line in found] == [0, 1, 2, 3]
    for line, item, text, row in zip(
        found, prompts.items, prompts.texts[:4], frame.to_dict("records"), strict=True
    ):  # fmt: skip
        assert line["doc"] == {"id": item.id, **item.fields, "label": item.gold}
        assert line["target"] == str(["positive", "negative"].index(item.gold))
        assert line["arguments"] == {
            "gen_args_0": {"arg_0": text, "arg_1": 'positiv"'},
            "gen_args_1": {"arg_0": text, "arg_1": 'negativ"'},
        }
        name = scoring.replace("-", "_")
        scores = [row[f"{name}_{label}"] for label in prompts.labels]
        assert [float(pair[0]) for pair in line["filtered_resps"]] == scores  # to the last bit
        assert line["resps"] == [[pair] for pair in line["filtered_resps"]]
        assert line["doc_hash"] == sha256(json.dumps(line["doc"], indent=2, ensure_ascii=False))
        assert line["prompt_hash"] == sha256(line["arguments"]["gen_args_0"]["arg_0"])
        assert line["target_hash"] == sha256(line["target"])
        assert line["acc"] == float(row["predicted"] == item.gold)
        assert (line["predicted"], line["metrics"], line["filter"]) == (row["predicted"], ["acc"], "none")
    assert len({line["prompt_hash"] for line in found}) == 4


def test_base_and_tuned_have_a_file_each(tiny, tmp_path):
    loaded = tiny("llama")
    prompts, predictions = written(loaded, tmp_path / "one", "de")
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["samples_mood_de.jsonl"]
    other = predictions.frames["base"]["de"].copy()
    other["predicted"] = ["positive"] * 4
    both = Predictions("mood", {"base": predictions.frames["base"], "tuned": {"de": other}}, predictions.metadata)
    write_samples(tmp_path / "two", "mood", prompts, both)
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == [
        "samples_mood_de.base.jsonl",
        "samples_mood_de.jsonl",
    ]
    base, tuned = (lines(tmp_path / "two" / f"samples_mood_de{ending}.jsonl") for ending in (".base", ""))
    assert base == lines(tmp_path / "one" / "samples_mood_de.jsonl")
    assert [line["predicted"] for line in tuned] == ["positive"] * 4
    assert [line["acc"] for line in tuned] == [float(item.gold == "positive") for item in prompts.items]


def test_text_is_written_as_it_is_and_the_same_twice(tiny, tmp_path):
    prompts, predictions = written(tiny("llama"), tmp_path, "th")
    file = tmp_path / "samples_mood_th.jsonl"
    first = file.read_bytes()
    assert prompts.items[0].fields["text"].encode() in first  # not as escapes
    assert first.count(b"\n") == 4
    write_samples(tmp_path, "mood", prompts, predictions)
    assert file.read_bytes() == first


def test_datasets_reads_it(tiny, tmp_path):
    datasets = pytest.importorskip("datasets")
    written(tiny("llama"), tmp_path, "th", variants=("base", "tuned"))
    files = [str(tmp_path / f"samples_mood_th{ending}.jsonl") for ending in (".base", "")]
    found = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert found.num_rows == 8
    assert found.column_names == [*KEYS, "predicted"]
    first = lines(tmp_path / "samples_mood_th.jsonl")[0]
    assert found[4]["filtered_resps"] == first["filtered_resps"]
    assert found[4]["arguments"] == first["arguments"]
