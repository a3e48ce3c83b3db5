"""Question pairs: their exact shape, which rows belong together, and the validation split."""

import json
from pathlib import Path

import pytest

from glotlift.data.parallel import in_common, read_questions
from glotlift.data.questions import (
    QuestionPair,
    balance_pairs,
    dump_pairs,
    instruction,
    load_pairs,
    pivot,
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


def test_from_english_turns_the_pair_round(pattern, nli):
    """The id still begins with the other language, which is what the pair is counted under."""
    pairs = read_pairs(nli, pattern, ("de", "sw"), direction="from-english")
    assert pairs[1] == QuestionPair(
        id="de:1",
        source="en",
        target_language="de",
        input='Premise: en premise 1\nHypothesis: en hypothesis 1\nAnswer: "\n'
        "Translate the input from English to German:\n",
        target='Prämisse: de premise 1\nHypothese: de hypothesis 1\nAntwort: "',
    )
    assert [(pair.id, pair.language) for pair in pairs][2:] == [("de:2", "de"), ("sw:2", "sw")]


def test_via_another_language(pattern, nli):
    pairs = read_pairs(nli, pattern, ("sw", "en"), direction="via:de", limit=2)
    assert [pair.id for pair in pairs] == ["sw:2", "en:1", "en:2"]
    assert [pair.language for pair in pairs] == ["sw", "en", "en"]
    assert pairs[1] == QuestionPair(
        id="en:1",
        source="en",
        target_language="de",
        input='Premise: en premise 1\nHypothesis: en hypothesis 1\nAnswer: "\n'
        "Translate the input from English to German:\n",
        target='Prämisse: de premise 1\nHypothese: de hypothesis 1\nAntwort: "',
    )
    assert pairs[0].input.endswith("\nTranslate the input from Swahili to German:\n")
    assert "de premise 2" in pairs[0].target


def test_what_a_direction_has_in_common():
    assert [pivot(x) for x in ("to-english", "from-english", "via:zh", "via:German")] == ["en", "en", "zh", "de"]
    for wrong in ("to_english", "en", "via", "to-german"):
        with pytest.raises(DataError, match=f"got the direction '{wrong}'.*expected to-english, from-english or via:"):
            pivot(wrong)
    with pytest.raises(DataError, match="got the direction 'via:xq', expected the code of a language behind `via:`"):
        pivot("via:xq")


def test_the_direction_of_the_bundled_questions(nli):
    sentiment = load_task("sentiment")
    via = read_pairs(sentiment, "sample", ("en", "de"), direction="via:zh", limit=1)
    assert [(pair.id, pair.source, pair.target_language) for pair in via] == [
        ("en:q001", "en", "zh"),
        ("de:q001", "de", "zh"),
    ]
    with pytest.raises(DataError, match="no bundled questions of 'sentiment' in ja"):
        read_pairs(sentiment, "sample", ("de",), direction="via:ja")


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


@pytest.mark.parametrize("lacking", [("de",), ("en", "de")])
def test_rows_without_ids_are_not_cut_to_what_the_shorter_file_has(tmp_path, nli, lacking):
    for code, count in (("en", 3), ("de", 2)):
        rows = questions(code, [str(number) for number in range(count)])
        kept = [{key: value for key, value in row.items() if key != "id" or code not in lacking} for row in rows]
        write_jsonl(tmp_path / f"q_{code}.jsonl", kept)
    source = str(tmp_path / "q_{lang}.jsonl")
    with pytest.raises(DataError, match=r"q_de\.jsonl: got 2 rows, not all with an `id`, and 3 in .*q_en\.jsonl"):
        read_pairs(nli, source, ("de",))
    with pytest.raises(DataError, match="got . rows, not all with an `id`, and . in .*expected ids, or as many rows"):
        in_common(read_questions(nli, source, ("en", "de")))


def test_limit_counts_a_language(pattern, nli):
    assert [pair.id for pair in read_pairs(nli, pattern, ("de", "sw"), limit=2)] == ["de:3", "de:1", "sw:2"]


def test_the_papers_layout_holds_finished_pairs(tmp_path, nli):
    rows = [{"input": f"in {i}\nTranslate", "answer": f"out {i}"} for i in range(3)]
    write_json(tmp_path / "snli" / "snli_zh10k_train_question.json", rows)
    pairs = read_pairs(nli, str(tmp_path), ("zh",), limit=2)
    assert pairs[1] == QuestionPair("zh:1", "zh", "en", "in 1\nTranslate", "out 1")
    assert len(pairs) == 2
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
    with pytest.raises(DataError, match="got no languages, expected at least one"):
        read_pairs(nli, pattern, ())
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
    row = {"id": "a", "source": "de", "target_language": "en", "input": "x", "target": "y"}
    for name in ("a", "fr:a"):
        (tmp_path / "pairs.jsonl").write_text(json.dumps({**row, "id": name}) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=rf"row 1: got the id '{name}', expected de:<question> or en:<question>"):
            load_pairs(tmp_path / "pairs.jsonl")


def paper_rows(code: str, name: str, count: int) -> list[dict]:
    return [
        {"input": f"{code} {i}\nTranslate the input from {name} to English:\n", "answer": f"en {i}"}
        for i in range(count)
    ]


@pytest.fixture
def paper(tmp_path) -> Path:
    """The paper's layout: Chinese and Japanese pairs into English, two more in Chinese."""
    write_json(tmp_path / "snli" / "snli_zh10k_train_question.json", paper_rows("zh", "Chinese", 5))
    write_json(tmp_path / "snli" / "snli_ja10k_train_question.json", paper_rows("ja", "Japanese", 3))
    return tmp_path


def test_other_directions_are_made_from_the_papers_pairs(paper, nli):
    asks = "\nTranslate the input from {} to {}:\n"
    turned = read_pairs(nli, str(paper), ("zh", "ja"), direction="from-english", limit=2)
    assert turned[1] == QuestionPair("zh:1", "en", "zh", "en 1" + asks.format("English", "Chinese"), "zh 1")
    assert turned[3] == QuestionPair("ja:1", "en", "ja", "en 1" + asks.format("English", "Japanese"), "ja 1")
    assert len(turned) == 4
    via = read_pairs(nli, str(paper), ("en", "ja"), direction="via:zh")
    assert via[4] == QuestionPair("en:4", "en", "zh", "en 4" + asks.format("English", "Chinese"), "zh 4")
    assert via[6] == QuestionPair("ja:1", "ja", "zh", "ja 1" + asks.format("Japanese", "Chinese"), "zh 1")
    assert len(via) == 8
    assert read_pairs(nli, str(paper), ("zh",), direction="via:en") == read_pairs(nli, str(paper), ("zh",))


def test_the_papers_files_must_be_parallel(paper, nli):
    rows = paper_rows("ja", "Japanese", 3)
    rows[2]["answer"] = "en 3"
    path = write_json(paper / "snli" / "snli_ja10k_train_question.json", rows)
    for direction, languages in (("via:zh", ("ja",)), ("from-english", ("zh", "ja")), ("to-english", ("zh", "ja"))):
        with pytest.raises(
            DataError, match=r"ja10k.*, row 3: got another `answer` than in .*zh10k.*expected files with"
        ):
            read_pairs(nli, str(paper), languages, direction=direction)
        assert read_pairs(nli, str(paper), languages, direction=direction, limit=2)
    assert len(read_pairs(nli, str(paper), ("ja",), direction="from-english")) == 3  # parallel to nothing else
    write_json(path, paper_rows("ja", "Japanese", 3))
    with pytest.raises(DataError, match=r"zh10k.*, row 4: no question '3' in .*ja10k"):
        read_pairs(nli, str(paper), ("zh",), direction="via:ja")


def test_a_paper_input_without_its_instruction_cannot_be_turned_round(paper, nli):
    rows = paper_rows("ja", "Japanese", 3)
    rows[1]["input"] = "ja 1\nTranslate the input from Chinese to English:\n"
    write_json(paper / "snli" / "snli_ja10k_train_question.json", rows)
    assert len(read_pairs(nli, str(paper), ("ja",))) == 3
    with pytest.raises(DataError, match=r"ja10k.*, row 2: got an `input` that ends in .*expected .*from Japanese"):
        read_pairs(nli, str(paper), ("ja",), direction="from-english")


PAPER_DATA = Path(__file__).parents[3] / "shared" / "paper-data"


@pytest.mark.skipif(not PAPER_DATA.is_dir(), reason=f"the paper's data is not at {PAPER_DATA}")
def test_the_real_files_of_the_paper(nli):
    found = read_pairs(nli, str(PAPER_DATA), ("en", "sw", "de"), direction="via:zh")
    assert len(found) == 30_000
    for pair in found[::997]:
        assert pair.input.endswith(f"\n{instruction(pair.source, 'zh')}\n")
        assert pair.target.startswith("前提: ")
        assert pair.target.endswith('\n答案: "')
    forth = read_pairs(nli, str(PAPER_DATA), ("it",))
    back = read_pairs(nli, str(PAPER_DATA), ("it",), direction="from-english")
    assert [(a.target + f"\n{instruction('en', 'it')}\n", b.target) for a, b in zip(forth, back, strict=True)] == [
        (b.input, a.input.removesuffix(f"\n{instruction('it', 'en')}\n")) for a, b in zip(forth, back, strict=True)
    ]


# --- balance


def named(*ids: str) -> list[QuestionPair]:
    return [QuestionPair(name, name.split(":")[0], "en", "x", "y") for name in ids]


MIXED = named("de:1", "sw:1", "de:2", "de:3", "sw:2", "zh:1", "zh:2", "zh:3")


def ids(pairs: list[QuestionPair]) -> list[str]:
    return [pair.id for pair in pairs]


def test_equal_pairs_a_language():
    assert balance_pairs(MIXED, "none") == MIXED
    assert ids(balance_pairs(MIXED, "pairs")) == ["de:1", "sw:1", "de:2", "sw:2", "zh:1", "zh:2"]
    assert balance_pairs([], "tokens") == []
    turned = [QuestionPair(pair.id, "en", pair.language, "x", "y") for pair in MIXED]  # from English
    assert len(balance_pairs(turned, "pairs")) == 6


def test_equal_tokens_a_language():
    """Swahili has 20 tokens. German's first two have 20, too; of Chinese the second would be one too many."""
    lengths = {"de:1": 12, "de:2": 8, "de:3": 1, "sw:1": 15, "sw:2": 5, "zh:1": 14, "zh:2": 7, "zh:3": 1}
    assert ids(balance_pairs(MIXED, "tokens", lengths)) == ["de:1", "sw:1", "de:2", "sw:2", "zh:1"]


def test_what_cannot_be_balanced():
    with pytest.raises(
        DataError, match=r"got the balance 'token' \(did you mean 'tokens'\?\), expected none, pairs or"
    ):
        balance_pairs(MIXED, "token")
    with pytest.raises(DataError, match=r"got no length of 'de:2' \(6 in all\), expected one a pair"):
        balance_pairs(MIXED, "tokens", {"de:1": 3, "sw:1": 4})
    lengths = dict.fromkeys(ids(MIXED), 2) | {"zh:1": 5}
    with pytest.raises(
        DataError, match=r"a first pair of zh longer than all pairs of sw \(4 tokens\), expected at least"
    ):
        balance_pairs(MIXED, "tokens", lengths)


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


@pytest.mark.parametrize(("limit", "fraction"), [(1, 0.05), (1, 0.9), (3, 0.9)])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(limit, fraction):
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=limit)
    with pytest.raises(
        DataError, match=rf"data\.validation_fraction: {fraction} of {limit} questions holds all of them"
    ):
        split_validation(pairs, fraction, 0)
    assert split_validation(pairs, 0, 0)[0] == pairs
