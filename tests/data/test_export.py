"""A task group for lm-eval: what its files hold, and texts that YAML, Jinja or lm-eval would change."""

import json
import random
import runpy
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from glotlift.data import export
from glotlift.data.export import export_lm_eval
from glotlift.data.read import read_items
from glotlift.errors import DataError, OutputError, TaskError
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item, Task

LM_EVAL = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
"""As in lm_eval.utils; tests/test_lm_eval.py asks lm-eval itself."""


class Loader(yaml.CSafeLoader):
    """As lm-eval's; a function stays its name."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def load(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)


def rendered(template: str, row: dict) -> str:
    """Return what lm-eval makes of a description or of `doc_to_text`: a column, else a template."""
    return row[template] if template in row else LM_EVAL.from_string(template).render(**row)


def asked(folder: Path, name: str, language: str) -> list[tuple[str, list[str], int]]:
    """Return prompt, choices and target of every item, as lm-eval reads them from the files."""
    config = load(folder / f"{name}_{language}.yaml")
    lines = (folder / config["dataset_kwargs"]["data_file"]).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [
        (
            rendered(config.get("description", ""), row) + rendered(config["doc_to_text"], row),
            config["doc_to_choice"],
            int(rendered(config["doc_to_target"], row)),
        )
        for row in rows
    ]


def expected(task: Task, language: str, items, answers="own", **options) -> list[tuple[str, list[str], int]]:
    words = list(task.answers(language, answers).values())
    prompts = [task.prompt(language, answers, item.fields, **options) for item in items]
    return [(prompt, words, task.labels.index(item.gold)) for prompt, item in zip(prompts, items, strict=True)]


def small(**pack) -> Task:
    """Return a task in one language."""
    pack = {"question": "Q: {text}", "cue": "A: ", "answer_sets": {"own": {"a": "yes", "b": "no"}}} | pack
    return Task.model_validate({"name": "small", "fields": ["text"], "labels": ["a", "b"], "languages": {"en": pack}})


ITEMS = {"en": [Item("1", {"text": "one"}, "a"), Item("2", {"text": "two"}, "b")]}


# --- the files


def test_what_is_written(tmp_path):
    task = load_task("sentiment")
    items = read_items(task, None, ("de", "th"), limit=3)
    path = export_lm_eval(task, items, tmp_path / "new" / "group")
    folder = tmp_path / "new" / "group"
    assert path == folder / "_glotlift_sentiment.yaml"
    assert sorted(str(each.relative_to(folder)) for each in folder.rglob("*.*")) == [
        "_glotlift_sentiment.yaml",
        "data/de.jsonl",
        "data/th.jsonl",
        "glotlift_sentiment_de.yaml",
        "glotlift_sentiment_th.yaml",
        "rows.py",
    ]
    assert load(path) == {
        "group": "glotlift_sentiment",
        "task": ["glotlift_sentiment_de", "glotlift_sentiment_th"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}],
        "metadata": {"version": task.version},
    }
    assert load(folder / "glotlift_sentiment_de.yaml") == {
        "task": "glotlift_sentiment_de",
        "custom_dataset": "rows.load",
        "dataset_kwargs": {"data_file": "data/de.jsonl"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "description": task.preamble("de", "own"),
        "doc_to_text": 'Rezension: {{text}}\nBewertung: "',
        "doc_to_choice": ["positiv", "negativ"],
        "doc_to_target": '{{["positive", "negative"].index(label)}}',
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": task.version},
    }


def test_prompts_are_blocks_that_can_be_read_and_edited(tmp_path):
    task = load_task("sentiment")
    export_lm_eval(task, read_items(task, None, ("th",), limit=1), tmp_path)
    text = (tmp_path / "glotlift_sentiment_th.yaml").read_text(encoding="utf-8")
    assert 'doc_to_text: |-\n  รีวิว: {{text}}\n  ความรู้สึก: "\n' in text
    assert "description: |+\n  รีวิว: " in text


@pytest.mark.parametrize("name", ["sentiment", "nli", "paraphrase"])
def test_every_bundled_prompt_comes_out_again(tmp_path, name):
    task = load_task(name)
    items = {
        code: [Item(label, {field: f"{field} of {label}" for field in task.fields}, label) for label in task.labels]
        for code in task.languages
    }
    for answers in ("own", "arbitrary"):
        path = export_lm_eval(task, items, tmp_path / answers, answers=answers)
        for code in task.languages:
            assert asked(path.parent, path.stem[1:], code) == expected(task, code, items[code], answers)


def test_demonstrations_are_those_asked_for(tmp_path):
    task = load_task("nli")
    items = {"de": [Item("1", {"premise": "p", "hypothesis": "h"}, "neutral")]}
    asked_for: list[dict[str, Any]] = [{"num_fewshot": 2}, {"num_fewshot": 0}, {"demo_seed": 3}]
    for number, options in enumerate(asked_for):
        export_lm_eval(task, items, tmp_path / str(number), **options)
        assert asked(tmp_path / str(number), "glotlift_nli", "de") == expected(task, "de", items["de"], **options)
    assert "description" not in load(tmp_path / "1" / "glotlift_nli_de.yaml")


@pytest.mark.parametrize(
    ("answers", "group"),
    [("own", "glotlift_sentiment"), ("english", "glotlift_sentiment_english"), ("in:de", "glotlift_sentiment_in_de")],
)
def test_an_answer_set_ends_the_name(tmp_path, answers, group):
    task = load_task("sentiment")
    path = export_lm_eval(task, read_items(task, None, ("sw",), limit=1), tmp_path, answers=answers)
    assert path == tmp_path / f"_{group}.yaml"
    assert load(path)["group"] == group
    assert load(tmp_path / f"{group}_sw.yaml")["task"] == f"{group}_sw"


def test_the_data_are_read_again(tmp_path):
    task = load_task("sentiment")
    items = read_items(task, None, ("en", "bn"), limit=4)
    export_lm_eval(task, items, tmp_path)
    assert read_items(task, str(tmp_path / "data" / "{lang}.jsonl"), ("en", "bn")) == items


def test_the_folder_can_be_moved(tmp_path, monkeypatch):
    texts = ["2024-01-01", "1", "null", "a\u2028b\x85c\r\nd", "😀"]  # datasets' own JSON reader makes dates of dates
    items = {"en": [Item(str(number), {"text": text}, "a") for number, text in enumerate(texts)]}
    export_lm_eval(small(), items, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "behind")
    monkeypatch.chdir(tmp_path)
    rows = runpy.run_path(str(tmp_path / "behind" / "rows.py"))["load"](data_file="data/en.jsonl", version=1, config="")
    assert list(rows) == ["test"]
    assert [row["text"] for row in rows["test"]] == texts
    assert rows["test"].column_names == ["id", "text", "label"]


# --- texts that YAML, Jinja or lm-eval would change

HARD = '{{ {% {# }} %} #} {{{ { } {{- -}} {%- raw %} {{ "x" }} \\n \\ \' " ``` # : - | >'
HARD_TASK = Task.model_validate(
    {
        "name": "hard",
        "version": 3,
        "fields": ["text", "class"],
        "labels": ['it\'s "}}"', "0", "ñ😀\\n"],
        "languages": {
            "en": {  # label words that YAML 1.1 reads as something else; Jinja marks around the fields
                "template": "{{{{ {{%\n{{{text}}}%}} {{#{class}#}} {{{class}\n A:",
                "answer_sets": {"own": {'it\'s "}}"': "no", "0": "1.0", "ñ😀\\n": "null"}},
                "preamble": f"\n\n  {HARD}\r\n\ttab, trailing space \n{HARD} \x85\u2028\ufeff\x00😀𐍈\n\n \n",
            },
            "de": {  # ends in blanks; lm-eval would take this preamble for the column
                "template": "{class}: {text}\n\n ",
                "answer_sets": {"own": {'it\'s "}}"': " yes", "0": "~\x85", "ñ😀\\n": "{{on}}"}},
                "preamble": "text",
            },
            "zh": {
                "template": "{class}{text}{{\r",
                "answer_sets": {"own": {'it\'s "}}"': "😀", "0": "𐍈\n", "ñ😀\\n": "是"}},
                "demonstrations": [
                    {"label": "0", "text": "{{", "class": "%}"},
                    {"label": "ñ😀\\n", "text": "{", "class": "{%"},
                ],
            },
        },
    }
)
HARD_ITEMS = {
    code: [
        Item("1", {"text": HARD, "class": "{{text}}"}, "0"),
        Item("{{id}}", {"text": "a\r\nb\x85\u2028c 😀 ", "class": "<&>"}, 'it\'s "}}"'),
        Item("01", {"text": "2024-01-01", "class": "{"}, "ñ😀\\n"),
    ]
    for code in ("en", "de", "zh")
}


@pytest.mark.parametrize("code", ["en", "de", "zh"])
def test_hard_texts_come_out_again(tmp_path, code):
    export_lm_eval(HARD_TASK, HARD_ITEMS, tmp_path)
    assert asked(tmp_path, "glotlift_hard", code) == expected(HARD_TASK, code, HARD_ITEMS[code])


def test_any_text_comes_out_again(tmp_path):
    generator = random.Random(0)
    pieces = [
        "{",
        "}",
        "%",
        "#",
        "-",
        "\r",
        "\n",
        " ",
        "\t",
        "\x85",
        "\u2028",
        "\ufeff",
        "a",
        '"',
        "'",
        "\\",
        ":",
        "😀",
    ]
    for _ in range(300):
        preamble, before, behind = (generator.choices(pieces, k=generator.randint(0, 7)) for _ in range(3))
        template = "{text}".join("".join(part).replace("{", "{{").replace("}", "}}") for part in (before, behind))
        task = small(question=None, cue=None, template=template, preamble="".join(preamble))
        export_lm_eval(task, ITEMS, tmp_path)
        assert asked(tmp_path, "glotlift_small", "en") == expected(task, "en", ITEMS["en"])


# --- what cannot be exported


@pytest.mark.parametrize("layout", ["{text!r}", "{text:>9}"])
def test_pythons_formats_are_refused(tmp_path, layout):
    with pytest.raises(
        TaskError, match=rf"task 'small', en: got {layout}, expected {{text}} to export it".replace("{", r"\{")
    ):
        export_lm_eval(small(question=f"Q: {layout}"), ITEMS, tmp_path)


@pytest.mark.parametrize("field", ["label", "id", "self", "none", "my text", "text-1"])
def test_fields_that_a_template_cannot_name_are_refused(tmp_path, field):
    words = {"own": {"a": "yes", "b": "no"}}
    pack = {"question": f"Q: {{{field}}}", "cue": "A:", "answer_sets": words}
    task = Task.model_validate({"name": "t", "fields": [field], "labels": ["a", "b"], "languages": {"en": pack}})
    with pytest.raises(TaskError, match=f"task 't': got the field '{field}', expected letters, digits and _"):
        export_lm_eval(task, {"en": [Item("1", {field: "x"}, "a")]}, tmp_path)


def test_a_question_of_digits_only_is_refused(tmp_path):
    task = small(question=None, cue=None, template="{text}")
    with pytest.raises(DataError, match="task 'small', en, item '7': got a question of digits only, expected more"):
        export_lm_eval(task, {"en": [*ITEMS["en"], Item("7", {"text": "42"}, "a")]}, tmp_path)


def test_nothing_to_ask_is_refused(tmp_path):
    with pytest.raises(DataError, match="task 'small', en: got no items, expected at least one"):
        export_lm_eval(small(), {"en": []}, tmp_path)
    with pytest.raises(DataError, match="task 'small': got no items to export"):
        export_lm_eval(small(), {}, tmp_path)


def test_a_refused_export_writes_nothing(tmp_path):
    task = load_task("sentiment")
    with pytest.raises(TaskError, match="got num_fewshot 99, expected at most"):
        export_lm_eval(task, read_items(task, None, ("de",), limit=1), tmp_path / "new", num_fewshot=99)
    assert not (tmp_path / "new").exists()


# --- a folder that is there


def test_another_group_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    export_lm_eval(small(), ITEMS, tmp_path)
    export_lm_eval(small(cue="B: "), ITEMS, tmp_path)  # the same group again
    assert "B: " in (tmp_path / "glotlift_small_en.yaml").read_text()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(
        OutputError, match="got a folder that holds _glotlift_small.yaml, expected one for glotlift_hard"
    ):
        export_lm_eval(HARD_TASK, HARD_ITEMS, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert tmp_path / "notes.txt" in before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export_lm_eval(small(), ITEMS, tmp_path / "file")


def test_the_group_is_written_last(tmp_path, monkeypatch):
    """An export that is cut off has no group that names missing languages."""
    written = []
    monkeypatch.setattr(export, "write_text", lambda path, text: written.append(path.name))
    export_lm_eval(HARD_TASK, HARD_ITEMS, tmp_path)
    assert written[-1] == "_glotlift_hard.yaml"
    assert len(written) == len(set(written)) == 8
