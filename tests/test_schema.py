"""YAML as people write it, and as nobody should: what PyYAML would take silently, or never come back from."""

import re
import time

import pytest
import yaml

from glotlift.errors import RecipeError, TaskError
from glotlift.recipe import load_recipe
from glotlift.schema import parse_yaml, read_yaml
from glotlift.tasks.load import load_task

TWICE = {
    "top level": ("a: 1\nb: 2\na: 3\n", "line 3, column 1", "'a'", 1),
    "inside": ("a:\n  b: 1\n  c: {d: 1}\n  b: 1\n", "line 4, column 3", "'b'", 2),
    "in one line": ("x: {good: a, good: b}\n", "line 1, column 14", "'good'", 1),
    "in a list": ("- a: 1\n- b: 1\n  'b': 2\n", "line 3, column 3", "'b'", 2),
    "number": ("1: a\n1: b\n", "line 2, column 1", "'1'", 1),
    "beside a merge": ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2\n", "line 5, column 3", "'b'", 4),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path, case):
    text, where, key, first = TWICE[case]
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TaskError) as caught:
        read_yaml(path, TaskError)
    problem = f"the key {key} stands twice, first in line {first}, expected it once"
    assert str(caught.value) == f"{path}, {where}: not valid YAML: {problem}"


SOUND = {
    "a key once in each of several mappings": "a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 2}]\n",
    "text and number": "1: a\n'1': b\n",
    "own keys over merged ones": "base: &b {x: 1, y: 2}\nmore: &m\n  <<: *b\n  x: 3\nlast:\n  <<: *m\n  y: 4\n",
    "the merged mapping is read later": "a:\n  b: &b\n    <<: &x {k: 0, l: 1}\n    k: 1\nc:\n  <<: *b\n  k: 2\n",
    "several merges": "a: &a {x: 1}\nb: &b {y: 2}\nc: {<<: *a, <<: *b}\nd: {<<: [*a, *b], x: 3}\n",
    "the same mapping twice": "a: &a {x: 1}\nb: [*a, *a]\n",
    "no mapping": "[a, a]\n",
    "equals sign": "= : 2\nb: 1\n",
    "nothing": "",
}


@pytest.mark.parametrize("case", SOUND)
def test_all_else_is_read_as_pyyaml_does(tmp_path, case):
    path = tmp_path / "x.yaml"
    path.write_text(SOUND[case], encoding="utf-8")
    assert read_yaml(path, TaskError) == yaml.safe_load(SOUND[case])


def test_tags_of_python_objects_are_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']\n", encoding="utf-8")
    with pytest.raises(TaskError, match="not valid YAML: could not determine a constructor for the tag"):
        read_yaml(path, TaskError)


def test_recipes_and_task_files_are_read_so(tmp_path):
    """The second `de` of a task once replaced the first, and its demonstrations with it."""
    task, recipe = tmp_path / "mood.yaml", tmp_path / "run.yaml"
    task.write_text("name: mood\nlanguages:\n  de: {cue: a}\n  en: {cue: b}\n  de: {cue: c}\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"mood\.yaml, line 5, column 3: .* the key 'de' stands twice, first in line 3"):
        load_task(str(task))
    recipe.write_text("name: x\nmodel: demo\nmodel: demo\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"run\.yaml, line 3, column 1: .* the key 'model' stands twice"):
        load_recipe(recipe)


SAME = {"1: a\ntrue: b\n": "1", "1: a\n1.0: b\n": "1", "no: a\nfalse: b\n": "no", "~: a\nnull: b\n": "~"}


@pytest.mark.parametrize("text", SAME)
def test_keys_that_python_takes_for_one_are_named(text):
    """A gold map `{1: entailment, true: neutral}` would have had one entry."""
    with pytest.raises(TaskError, match=rf"x, line 2, column 1: .* twice, first as '{SAME[text]}' in line 1, expected"):
        parse_yaml(text, "x", TaskError)


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
HOSTILE = {
    "lists": ("a: " + "[" * 100_000, "line 1, column 53: .* nested more than 50 levels deep, expected fewer"),
    "mappings": ("{a: " * 5000, "nested more than 50 levels"),
    "blocks": ("".join(" " * i + "a:\n" for i in range(300)), "line 50, column 50: .* nested more than 50 levels"),
    "aliases": (ALIASES, "line 6, .* got aliases that stand for more than 100,000 values, expected fewer"),
    "merges": (MERGES, "line 6, .* got aliases that stand for more than 100,000 values"),
    "itself": ("a: &a [*a]", "line 1, column 8: .* got an alias inside of what it stands for"),
    "number": (
        "x: 1\na: " + "9" * 5000,
        "line 2, column 4: .* got a whole number of 5000 characters, expected at most",
    ),
    "hexadecimal": ("a: 0x" + "f" * 5000, "got a whole number of 5002 characters"),
    "sixties": ("a: 1" + ":10" * 5000, "got a whole number of 15001 characters"),
    "date": ("x: 1\na: 2024-13-45", "line 2, column 4: .* got '2024-13-45', expected a value of the kind timestamp"),
    "no date": ("a: !!timestamp soon", "got 'soon', expected a value of the kind timestamp"),
    "no truth": ("a: !!bool maybe", "got 'maybe', expected a value of the kind bool"),
    "half a character": ('a: "\\ud83d"', r"line 1, column 4: .* \(half of a surrogate pair\)"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_end_in_one_sentence_at_once(case):
    text, message = HOSTILE[case]
    begin = time.process_time()
    with pytest.raises(TaskError, match=rf"^x{'' if message.startswith('line') else '.*'}.*{message}") as caught:
        parse_yaml(text, "x", TaskError)
    assert time.process_time() - begin < 1
    assert "\n" not in str(caught.value)


def test_two_escapes_of_one_character_become_it():
    """JSON is YAML but for this: it writes a character beyond 16 bits as two."""
    assert parse_yaml('a: "\\ud83d\\ude00 \\u00e9"', "x", TaskError) == {"a": "😀 é"}


def test_aliases_and_numbers_of_a_usual_size_are_read():
    text = f"a: &a [{', '.join('x' * 100)}]\nb: [{', '.join(['*a'] * 100)}]\nc: -9223372036854775808\n"
    read = parse_yaml(text, "x", TaskError)
    assert len(read["b"]) == 100
    assert read["c"] == -(2**63)


def test_a_setting_of_the_command_line_is_read_so_too(tmp_path):
    (tmp_path / "run.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape("expected a value that is YAML (it, line 1, column 51: not valid")):
        load_recipe(tmp_path / "run.yaml", ["name=" + "[" * 2000])


def test_a_long_value_is_cut_in_a_message(tmp_path):
    (tmp_path / "run.yaml").write_text(f"name: [{'x, ' * 5000}]\nseed: 99999999999999999999\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"`seed`: got 99999999999999999999, expected less than") as caught:
        load_recipe(tmp_path / "run.yaml")
    assert len(str(caught.value)) < 1000
