"""The bundled tasks and the bundled sample are what they are said to be; task files are read as they are now."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from glotlift.data.read import read_items, read_table
from glotlift.errors import DataError, TaskError
from glotlift.languages import LANGUAGES
from glotlift.tasks.load import builtin_tasks, load_task, sample_pattern
from tests.tasks.test_task import definition

DEMONSTRATIONS = {"sentiment": 2, "nli": 6, "paraphrase": 4}
QUESTION_LANGUAGES = ("en", "zh", "de", "es", "sw")


def test_the_bundled_tasks():
    assert set(builtin_tasks()) == set(DEMONSTRATIONS)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_twenty_languages_in_the_papers_order(name):
    assert list(load_task(name).languages) == list(LANGUAGES)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_are_balanced_and_the_same_in_every_language(name):
    task = load_task(name)
    labels = [shown.label for shown in task.pack("en").demonstrations]
    assert len(labels) == DEMONSTRATIONS[name]
    assert set(Counter(labels).values()) == {DEMONSTRATIONS[name] // len(task.labels)}
    assert set(labels) == set(task.labels)
    for code, pack in task.languages.items():
        assert [shown.label for shown in pack.demonstrations] == labels, code
        texts = [tuple(shown.fields.values()) for shown in pack.demonstrations]
        assert len(set(texts)) == len(texts), code


@pytest.mark.parametrize("name", DEMONSTRATIONS)
@pytest.mark.parametrize("answers", ["own", "english", "arbitrary"])
def test_prompts_render_in_every_language(name, answers):
    task = load_task(name)
    fields = {field: f"<{field}>" for field in task.fields}
    for code, pack in task.languages.items():
        prompt = task.prompt(code, answers, fields)
        assert prompt.endswith(pack.cue), code
        assert pack.cue.endswith('"'), code
        blocks = prompt.split("\n\n")
        assert len(blocks) == DEMONSTRATIONS[name] + 1, code
        words = task.answers(code, answers)
        for block, shown in zip(blocks, pack.demonstrations, strict=False):
            assert block.endswith(f'{pack.cue}{words[shown.label]}"'), code
        assert all(f"<{field}>" in blocks[-1] for field in task.fields), code


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_every_word_is_a_gold_word_of_one_label_only(name):
    task = load_task(name)
    for code in task.languages:
        for answers in ("own", "english", "arbitrary"):
            for label, word in task.answers(code, answers).items():
                assert task.label_of(code, word) == label, (code, word)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_english_and_arbitrary_words_are_the_same_everywhere(name):
    task = load_task(name)
    for answers in ("english", "arbitrary"):
        assert len({tuple(task.answers(code, answers).items()) for code in task.languages}) == 1
    assert task.answers("en", "own") == task.answers("en", "english")


# --- task files


def write_task(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return str(path)


def test_an_unknown_task_gets_the_nearest_name():
    with pytest.raises(TaskError, match=r"unknown task 'sentimant' \(did you mean 'sentiment'\?\); expected one of"):
        load_task("sentimant")


def test_a_task_file_is_read_anew(tmp_path):
    """In a notebook the file changes between two calls."""
    path = write_task(tmp_path / "mood.yaml", definition())
    assert load_task(path).labels == ("good", "bad")
    write_task(tmp_path / "mood.yaml", definition(description="new"))
    assert load_task(path).description == "new"


def test_a_missing_and_a_malformed_file(tmp_path):
    with pytest.raises(TaskError, match=r"gone\.yaml: no such file, expected a YAML file"):
        load_task(str(tmp_path / "gone.yaml"))
    (tmp_path / "bad.yml").write_text("name: x\nlabels: [a, b\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"bad\.yml, line 3, column 1: not valid YAML"):
        load_task(str(tmp_path / "bad.yml"))
    (tmp_path / "empty.yaml").write_text("", encoding="utf-8")
    with pytest.raises(TaskError, match=r"empty\.yaml: got an empty file, expected a mapping with the keys name"):
        load_task(str(tmp_path / "empty.yaml"))


def test_a_bare_no_is_explained(tmp_path):
    """YAML 1.1 reads `no:` as false."""
    text = yaml.safe_dump(definition(), sort_keys=False).replace("  de:", "  no:")
    (tmp_path / "mood.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match='YAML reads the bare key `no` as false; write "no" for Norwegian'):
        load_task(str(tmp_path / "mood.yaml"))
    (tmp_path / "mood.yaml").write_text(text.replace("  no:", '  "no":'), encoding="utf-8")
    assert list(load_task(str(tmp_path / "mood.yaml")).languages) == ["en", "no"]


def test_an_unknown_language_is_named(tmp_path):
    content = definition()
    content["languages"]["deu"] = content["languages"].pop("de")
    with pytest.raises(TaskError, match=r"mood\.yaml: languages: got deu, expected BCP-47 codes such as"):
        load_task(write_task(tmp_path / "mood.yaml", content))


@pytest.mark.parametrize("code", ["ko", "ar", "pt-BR", "zh-Hant", "yue"])
def test_languages_beyond_the_bundled_ones(tmp_path, code):
    content = definition()
    content["languages"][code] = content["languages"].pop("de")
    task = load_task(write_task(tmp_path / "mood.yaml", content))
    assert list(task.languages) == ["en", code]
    assert task.prompt(code, "own", {"text": "x"}).endswith("Stimmung:")


def test_rows_of_a_task_file_count_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for source, expected in (
        ("rows_{lang}.jsonl", "here/rows_{lang}.jsonl"),
        ("../rows.csv", "here/../rows.csv"),
        (f"{tmp_path}/rows.csv", f"{tmp_path}/rows.csv"),
        ("hub:owner/name:{lang}", "hub:owner/name:{lang}"),
    ):
        write_task(tmp_path / "here" / "mood.yaml", definition(data={"source": source}))
        monkeypatch.chdir(tmp_path)
        data = load_task("here/mood.yaml").data
        assert data is not None
        assert data.source == expected


def test_a_fault_in_the_data_of_a_task_file(tmp_path):
    path = write_task(tmp_path / "mood.yaml", definition(data={"sorce": "x", "gold": 3}))
    with pytest.raises(TaskError) as caught:
        load_task(path)
    for part in (
        "`data.gold`: got 3, expected text",
        "`data.sorce` (did you mean 'source'?)",
    ):
        assert part in str(caught.value)


def test_text_is_read_as_it_is_written(tmp_path):
    """Blanks and line breaks of a preamble survive YAML's double quotes and block scalars."""
    text = yaml.safe_dump(definition(languages={"en": definition()["languages"]["en"]}), sort_keys=False)
    text = text[: text.index("    demonstrations:")]
    block = '    preamble: |+\n      It rains. \n      Mood: "poor"\n\n'
    for preamble in (block, '    preamble: "It rains. \\n\\\n      Mood: \\"poor\\"\\n\\n"\n'):
        (tmp_path / "mood.yaml").write_text(text + preamble, encoding="utf-8")
        assert load_task(str(tmp_path / "mood.yaml")).preamble("en", "own") == 'It rains. \nMood: "poor"\n\n'


# --- the sample


@pytest.fixture(scope="module")
def items():
    return read_items(load_task("sentiment"), "sample", tuple(LANGUAGES))


@pytest.fixture(scope="module")
def questions():
    pattern = sample_pattern("sentiment", "questions")
    return {code: read_table(Path(pattern.replace("{lang}", code))).rows for code in QUESTION_LANGUAGES}


def test_items_are_parallel_balanced_and_in_all_languages(items):
    english = [(item.id, item.gold) for item in items["en"]]
    assert len(english) >= 32
    counts = Counter(gold for _, gold in english)
    assert counts["positive"] == counts["negative"]
    for code, rows in items.items():
        assert [(item.id, item.gold) for item in rows] == english, code


def test_no_text_stands_twice(items, questions):
    for rows in items.values():
        assert len({item.fields["text"] for item in rows}) == len(rows)
    for rows in questions.values():
        assert len({row["text"] for row in rows}) == len(rows)


def test_no_item_was_left_in_english(items):
    english = {item.fields["text"] for item in items["en"]}
    for code, rows in items.items():
        assert code == "en" or english.isdisjoint(item.fields["text"] for item in rows), code


def test_questions_are_parallel_and_unlabelled(questions):
    names = [row["id"] for row in questions["en"]]
    assert len(names) >= 96
    for code, rows in questions.items():
        assert [row["id"] for row in rows] == names, code
        assert all(set(row) == {"id", "text"} for row in rows), code


def test_questions_are_disjoint_from_items_and_demonstrations(items, questions):
    def five_grams(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    asked = set().union(*(five_grams(row["text"]) for row in questions["en"]))
    shown = [pack.fields["text"] for pack in load_task("sentiment").pack("en").demonstrations]
    for text in [*(item.fields["text"] for item in items["en"]), *shown]:
        assert asked.isdisjoint(five_grams(text)), text
    for code, rows in questions.items():
        texts = [row["text"] for row in rows]
        for item in items[code]:
            assert not any(item.fields["text"] in text or text in item.fields["text"] for text in texts), item.id


def test_reviews_are_parallel_in_every_language():
    found = read_items(load_task("sentiment"), "sample:reviews", tuple(load_task("sentiment").languages))
    assert len(found) == 20
    english = [(item.id, item.gold) for item in found["en"]]
    assert [gold for _, gold in english].count("positive") == len(english) / 2 == 24
    for items in found.values():
        assert [(item.id, item.gold) for item in items] == english
        assert len({item.fields["text"] for item in items}) == 48
    with pytest.raises(DataError, match="'sentiment' has no bundled sample 'review'; name a folder"):
        read_items(load_task("sentiment"), "sample:review", ("en",))


def test_a_task_without_a_sample():
    assert sample_pattern("nli", "items") is None
