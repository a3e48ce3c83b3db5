"""Question pairs: their exact shape, which rows belong together, and the validation split."""

import json
from pathlib import Path

import pytest

from glotlift.data.questions import (
    QuestionPair,
    dump_pairs,
    instruction,
    load_pairs,
    read_pairs,
    split_validation,
)
from glotlift.errors import DataError
from glotlift.tasks.load import load_task
from tests.data.test_read import write_json, write_jsonl


@pytest.fixture
def nli():
    return load_task("nli")


def questions(code: str, names: list[str]) -> list[dict]:
    return [{"id": n, "premise": f"{code} premise {n}", "hypothesis": f"{code} hypothesis {n}"} for n in names]


@pytest.fixture
def pattern(tmp_path) -> str:
    """Questions in English, German and Swahili; the translations stand in another order and some are missing."""
    write_jsonl(tmp_path / "q_en.jsonl", questions("en", ["1", "2", "3"]))
    write_jsonl(tmp_path / "q_de.jsonl", questions("de", ["3", "1", "2"]))
    write_jsonl(tmp_path / "q_sw.jsonl", questions("sw", ["2"]))
    return str(tmp_path / "q_{lang}.jsonl")


def test_a_pair_has_exactly_the_released_shape(pattern, nli):
    """Both sides are prompts with their trailing cue; the input asks for the translation and ends in a newline."""
    pair = read_pairs(nli, pattern, ("de",))[1]
    assert pair == QuestionPair(
        id="de:1",
        source="de",
        target_language="en",
        input='Prämisse: de premise 1\nHypothese: de hypothesis 1\nAntwort: "\n'
        "Translate the input from German to English:\n",
        target='Premise: en premise 1\nHypothesis: en hypothesis 1\nAnswer: "',
    )


def test_the_pivot_may_be_another_language(pattern, nli):
    pair = read_pairs(nli, pattern, ("en",), target="de", limit=1)[0]
    assert instruction("en", "de") == "Translate the input from English to German:"
    assert pair.input.endswith('Answer: "\nTranslate the input from English to German:\n')
    assert pair.target == 'Prämisse: de premise 1\nHypothese: de hypothesis 1\nAntwort: "'
    assert pair.target_language == "de"


def test_rows_are_matched_by_id_not_by_position(pattern, nli):
    pairs = read_pairs(nli, pattern, ("de", "sw"))
    assert [pair.id for pair in pairs] == ["de:3", "de:1", "de:2", "sw:2"]
    for pair in pairs:
        name = pair.id.split(":")[1]
        assert f"premise {name}\n" in pair.input
        assert f"en premise {name}\n" in pair.target


def test_rows_without_ids_are_matched_by_position(tmp_path, nli):
    for code in ("en", "de"):
        rows = [{k: v for k, v in row.items() if k != "id"} for row in questions(code, ["x", "y"])]
        write_jsonl(tmp_path / f"q_{code}.jsonl", rows)
    pairs = read_pairs(nli, str(tmp_path / "q_{lang}.jsonl"), ("de",))
    assert [(pair.id, "hypothesis y" in pair.input, "hypothesis y" in pair.target) for pair in pairs] == [
        ("de:0", False, False),
        ("de:1", True, True),
    ]


def test_limit_counts_a_language(pattern, nli):
    assert [pair.id for pair in read_pairs(nli, pattern, ("de", "sw"), limit=2)] == ["de:3", "de:1", "sw:2"]


def test_the_papers_layout_holds_finished_pairs(tmp_path, nli):
    rows = [{"input": f"in {i}\nTranslate", "answer": f"out {i}"} for i in range(3)]
    write_json(tmp_path / "snli" / "snli_zh10k_train_question.json", rows)
    pairs = read_pairs(nli, str(tmp_path), ("zh",), limit=2)
    assert pairs[1] == QuestionPair("zh:1", "zh", "en", "in 1\nTranslate", "out 1")
    assert len(pairs) == 2
    with pytest.raises(DataError, match="translate into English, got target 'de'"):
        read_pairs(nli, str(tmp_path), ("zh",), target="de")
    with pytest.raises(DataError, match=r"no file named snli_sw\[0-9\]\*_train_question\.json"):
        read_pairs(nli, str(tmp_path), ("sw",))


def test_a_translation_without_original_and_repeated_ids_are_refused(tmp_path, pattern, nli):
    write_jsonl(tmp_path / "q_sw.jsonl", questions("sw", ["2", "9"]))
    with pytest.raises(DataError, match=r"q_sw\.jsonl, row 2: no question '9' in .*q_en\.jsonl"):
        read_pairs(nli, pattern, ("sw",))
    write_jsonl(tmp_path / "q_sw.jsonl", questions("sw", ["2", "2"]))
    with pytest.raises(DataError, match=r"q_sw\.jsonl: rows 1 and 2 have the id '2'"):
        read_pairs(nli, pattern, ("sw",))
    write_jsonl(tmp_path / "q_en.jsonl", questions("en", ["2", "1", "2"]))
    with pytest.raises(DataError, match=r"q_en\.jsonl: rows 1 and 3 have the id '2'"):
        read_pairs(nli, pattern, ("de",))


def test_other_faults_of_the_source(pattern, nli):
    with pytest.raises(DataError, match="got 'en' as source and as target"):
        read_pairs(nli, pattern, ("de", "en"))
    with pytest.raises(DataError, match="'nli' has no bundled questions"):
        read_pairs(nli, "sample", ("de",))
    with pytest.raises(DataError, match=r"no bundled questions of 'sentiment' in fr, th; there are: de en es sw zh"):
        read_pairs(load_task("sentiment"), "sample", ("de", "fr", "th"))


def test_pairs_survive_writing_and_reading(tmp_path, pattern, nli):
    pairs = [*read_pairs(nli, pattern, ("de",)), QuestionPair("sw:7", "sw", "en", "a\u2028b", "c\u0085d")]
    (tmp_path / "pairs.jsonl").write_text(dump_pairs(pairs), encoding="utf-8")
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs


def test_a_file_of_pairs_that_lacks_a_key_is_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"id": "a", "source": "de"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.jsonl, row 1: no column 'target_language'"):
        load_pairs(Path(tmp_path / "pairs.jsonl"))


# --- validation


@pytest.fixture
def pairs():
    return read_pairs(load_task("sentiment"), "sample", ("zh", "de", "sw"))


def question(pair: QuestionPair) -> str:
    return pair.id.split(":")[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_question_goes_to_one_side_with_all_its_translations(pairs, seed):
    training, validation = split_validation(pairs, 0.1, seed)
    held = {question(pair) for pair in validation}
    assert held.isdisjoint(question(pair) for pair in training)
    assert len(held) == round(0.1 * len({question(pair) for pair in pairs}))
    assert len(validation) == 3 * len(held)  # each in three languages
    assert sorted([*training, *validation], key=lambda p: p.id) == sorted(pairs, key=lambda p: p.id)


def test_the_split_depends_on_the_seed_and_on_nothing_else(pairs):
    def held(some, seed):
        return {question(pair) for pair in split_validation(some, 0.1, seed)[1]}

    assert held(pairs, 3) == held(list(reversed(pairs)), 3)
    assert held(pairs, 3) != held(pairs, 4)
    training, _ = split_validation(pairs, 0.1, 3)
    assert training == [pair for pair in pairs if question(pair) not in held(pairs, 3)]  # order is kept


def test_the_smallest_fractions(pairs):
    assert split_validation(pairs, 0, 0) == (pairs, [])
    assert len(split_validation(pairs, 1e-6, 0)[1]) == 3  # one question at least
