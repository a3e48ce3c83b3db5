"""YAML as people write it: a key that stands twice is an error, and all else is what PyYAML reads."""

import pytest
import yaml

from glotlift.errors import RecipeError, TaskError
from glotlift.recipe import load_recipe
from glotlift.schema import read_yaml
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
