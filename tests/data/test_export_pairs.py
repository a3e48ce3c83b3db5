"""Question pairs for other trainers and the hub: read back as they would be read there, equal to the character."""

import json
from pathlib import Path

import datasets
import pytest
import yaml

from glotlift.data.audit import audit_pairs
from glotlift.data.export_pairs import export_pairs
from glotlift.data.questions import QuestionPair, load_pairs, read_pairs
from glotlift.errors import DataError, OutputError
from glotlift.tasks.load import load_task

ODD = QuestionPair("no:7", "no", "en", ' a\u2028b\u0085\r\nc\t"\\\u0000\n', '{{ x }} 😀\n"')
"""What readers of lines, of JSON or of templates might change."""


@pytest.fixture
def pairs() -> list[QuestionPair]:
    return [*read_pairs(load_task("sentiment"), "sample", ("zh", "de"), limit=20), ODD]


@pytest.fixture
def load(tmp_path):
    """Read with the datasets library, which keeps what it has read in a folder of the test's."""
    return lambda *what, **how: datasets.load_dataset(*what, **how, cache_dir=str(tmp_path / "cache"))


def texts(pairs: list[QuestionPair]) -> list[tuple[str, str]]:
    return [(pair.input, pair.target) for pair in pairs]


# --- LLaMA-Factory


def alpaca(folder: Path, name: str, load) -> list[tuple[str, str]]:
    """Return prompt and response of every row as LLaMA-Factory's alpaca converter makes them (data/converter.py)."""
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    assert entry.get("formatting", "alpaca") == "alpaca"
    columns = entry["columns"]
    rows = load("json", data_files=str(folder / entry["file_name"]), split="train")
    return [
        ("\n".join(row[columns[part]] for part in ("prompt", "query") if row[columns[part]]), row[columns["response"]])
        for row in rows
    ]


def test_llama_factory_reads_input_and_target_to_the_character(pairs, tmp_path, load):
    path = export_pairs(pairs, tmp_path / "out", "llama-factory", name="lift")
    assert path == tmp_path / "out" / "lift.json"
    assert set(json.loads(path.read_text(encoding="utf-8"))[0]) == {"instruction", "input", "output"}
    assert alpaca(tmp_path / "out", "lift", load) == texts(pairs)


def test_other_data_sets_of_llama_factory_stay(pairs, tmp_path, load):
    other = {"identity": {"file_name": "identity.json", "tags": {"x": "é"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(other), encoding="utf-8")
    export_pairs(pairs[:3], tmp_path, "llama-factory", name="first")
    export_pairs(pairs, tmp_path, "llama-factory", name="second")
    export_pairs(pairs[:5], tmp_path, "llama-factory", name="first")  # again: replaced
    index = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(index) == ["identity", "first", "second"]
    assert index["identity"] == other["identity"]
    assert alpaca(tmp_path, "first", load) == texts(pairs[:5])
    for entry in ({"file_name": "y.json"}, {"hf_hub_url": "a/b"}):
        (tmp_path / "dataset_info.json").write_text(json.dumps({"x": entry}), encoding="utf-8")
        with pytest.raises(OutputError, match=r"got a data set 'x' that is not in x\.json, expected another name"):
            export_pairs(pairs, tmp_path, "llama-factory", name="x")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", ".*not valid JSON"), ("[]", ": got JSON of another shape"), ('{"a": 1}', ": got JSON of another shape")],
)
def test_a_spoilt_index_is_left_alone(pairs, tmp_path, content, message):
    (tmp_path / "dataset_info.json").write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=rf"dataset_info\.json{message}"):
        export_pairs(pairs, tmp_path, "llama-factory")
    assert (tmp_path / "dataset_info.json").read_text(encoding="utf-8") == content
    assert not (tmp_path / "questions.json").exists()


# --- TRL


def test_trl_reads_prompt_and_completion(pairs, tmp_path, load):
    path = export_pairs(pairs, tmp_path, "trl")
    assert path == tmp_path / "questions.jsonl"
    rows = load("json", data_files=str(path), split="train")
    assert rows.column_names == ["prompt", "completion"]
    assert [(row["prompt"], row["completion"]) for row in rows] == texts(pairs)  # texts, not lists of messages


# --- the hub


def test_the_hub_folder_loads_whole_and_by_language(pairs, tmp_path, load):
    card = export_pairs(pairs, tmp_path / "hub", "hub")
    assert card == tmp_path / "hub" / "README.md"
    rows = load(str(tmp_path / "hub"))["train"]
    assert [QuestionPair(**row) for row in rows] == pairs
    assert [QuestionPair(**row) for row in load(str(tmp_path / "hub"), "no", split="train")] == [ODD]
    assert load_pairs(tmp_path / "hub" / "data" / "train-de.jsonl") == [p for p in pairs if p.language == "de"]


def front_matter(card: Path) -> tuple[dict, str]:
    _, front, text = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_of_the_card(pairs, tmp_path):
    front, text = front_matter(export_pairs(pairs, tmp_path, "hub", name="lift-41", about="Written for a test."))
    assert front["pretty_name"] == "lift-41"
    assert front["language"] == ["de", "en", "no", "zh"]  # `no` is text, not false
    assert front["task_categories"] == ["translation"]
    assert front["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in front["configs"]] == ["default", "zh", "de", "no"]
    assert "# lift-41" in text
    assert "Written for a test." in text
    assert "| `de` | German | English | 20 |" in text
    assert "arXiv 2405.13816" in text


@pytest.mark.parametrize(
    ("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K"), (150_000, "100K<n<1M")]
)
def test_the_size_of_a_data_set(tmp_path, count, size):
    some = [QuestionPair(f"de:{k}", "de", "en", "x", "y") for k in range(count)]
    checked = {"pairs": count, "question_only": None, "overlap": {"n": 8, "of": 0}, "flags": {}}
    assert front_matter(export_pairs(some, tmp_path, "hub", audit=checked))[0]["size_categories"] == [size]


def test_the_card_says_of_answers_and_overlap_what_the_audit_found(tmp_path):
    task = load_task("sentiment")
    pairs = read_pairs(task, "sample", ("de",), limit=9)
    unknown = front_matter(export_pairs(pairs, tmp_path, "hub"))[1]
    assert "- Answers of the task: not looked for.\n- Texts of test items: not looked for.\n" in unknown
    clean = front_matter(export_pairs(pairs, tmp_path, "hub", audit=audit_pairs(pairs, ["not there at all"], task)))[1]
    assert "- Answers of the task: no pair holds one." in clean
    assert "- Texts of test items: 0 of 1 share 8 words in a row" in clean
    assert clean.endswith("- Other pairs that were flagged: none.\n")
    spoilt = [
        *pairs[:-1],
        QuestionPair(**{**vars(pairs[-1]), "input": pairs[0].input, "target": pairs[0].target + "bad"}),
    ]
    spoilt[0] = QuestionPair(**{**vars(spoilt[0]), "target": spoilt[0].target + 'negative"'})
    text = front_matter(export_pairs(spoilt, tmp_path, "hub", audit=audit_pairs(spoilt, (), task)))[1]
    assert "- Answers of the task: **1 pairs hold one.**" in text
    assert text.endswith("- Other pairs that were flagged: 1 duplicate.\n")


def test_files_of_other_languages_are_refused(pairs, tmp_path):
    export_pairs(pairs, tmp_path, "hub")
    with pytest.raises(
        OutputError, match=r"got a folder that holds data/train-no\.jsonl, expected one for these pairs"
    ):
        export_pairs(pairs[:-1], tmp_path, "hub")
    assert len(load_pairs(tmp_path / "data" / "train-no.jsonl")) == 1


# --- faults


def test_what_cannot_be_exported(pairs, tmp_path):
    with pytest.raises(
        OutputError, match=r"got the format 'trl2' \(did you mean 'trl'\?\), expected llama-factory, trl"
    ):
        export_pairs(pairs, tmp_path, "trl2")
    for name in ("", "a/b", "../a", ".a", "dataset_info"):
        with pytest.raises(OutputError, match=f"got the name '{name}', expected"):
            export_pairs(pairs, tmp_path, "trl", name=name)
    with pytest.raises(DataError, match="got no question pairs to export"):
        export_pairs([], tmp_path, "trl")
    with pytest.raises(DataError, match="got an audit of 3 pairs, expected one of these 41"):
        export_pairs(pairs, tmp_path, "hub", audit=audit_pairs(pairs[:3]))
    with pytest.raises(DataError, match="got an audit without overlap and question_only, expected what `audit_pairs`"):
        export_pairs(pairs, tmp_path, "hub", audit={"pairs": 41, "flags": {}})
    assert list(tmp_path.iterdir()) == []
