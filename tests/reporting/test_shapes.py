"""Files of a run folder with parts missing, of another kind, or made to break the report."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from glotlift.errors import OutputError
from glotlift.reporting.read import read_run
from glotlift.reporting.shapes import checked
from tests.reporting.conftest import write

MISSING = object()


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with another value at a path such as `glotlift.tasks`, or without it."""
    content = copy.deepcopy(content)
    *parents, last = path.split("/")
    inside: Any = content
    for part in parents:
        inside = inside[part]
    if value is MISSING:
        del inside[last]
    else:
        inside[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("glotlift", MISSING, "scores.json: got no `glotlift`, expected the scores that `glotlift eval`"),
        ("glotlift", None, "scores.json, `glotlift`: got None, expected a valid dictionary"),
        ("glotlift/tasks", MISSING, "got no `glotlift.tasks`"),
        ("glotlift/tasks", [1], "`glotlift.tasks`: got a list of 1, expected a valid dictionary"),
        ("glotlift/variants", ["tuned"], "variants`: got a list of 1, expected ['base'] or ['base', 'tuned']"),
        ("glotlift/variants", ["base", "base"], "`glotlift.variants`: got a list of 2"),
        ("glotlift/seen", "de", "`glotlift.seen`: got 'de', expected a valid list"),
        ("glotlift/tasks/mood.own/languages", {}, "got a mapping of 0, expected "),
        ("glotlift/tasks/mood.own/languages/de/tuned", MISSING, "got no `glotlift.tasks.mood.own.languages.de.tuned`"),
        ("glotlift/tasks/mood.own/languages/de/change", MISSING, "got no `glotlift.tasks.mood.own.languages.de.ch"),
        ("glotlift/tasks/mood.own/languages/de/base/n", 0, "got 0, expected greater than or equal to 1"),
        ("glotlift/tasks/mood.own/languages/de/base/accuracy", 61.2, "got 61.2, expected less than or equal to 1"),
        ("glotlift/tasks/mood.own/languages/de/base/accuracy", "0.6", "got '0.6', expected a valid number"),
        ("glotlift/tasks/mood.own/languages/de/base/accuracy", float("nan"), "got nan, expected "),
        ("glotlift/tasks/mood.own/languages/de/base/predicted", None, "base.predicted`: got None"),
        ("glotlift/tasks/mood.own/means", {"base": {}}, "got no `glotlift.tasks.mood.own.means.base.accuracy`"),
        ("glotlift/tasks/mood.own/groups", MISSING, "got no `glotlift.tasks.mood.own.groups`"),
        ("glotlift/tasks/mood.own/calibration", "both", "got 'both', expected 'none', 'batch' or 'contextual'"),
        ("glotlift/tasks/mood.own/rollups/family", [], "`glotlift.tasks.mood.own.rollups.family`: got a list of 0"),
        ("glotlift/tasks/para.seed0/languages/sw", MISSING, "got no `glotlift.tasks.para.seed0.languages.sw`"),
        ("glotlift/answer_language_grid/nli/other", {}, "_grid.nli.other`: got a mapping of 0, expected "),
        ("glotlift/demonstration_spread/para.own/tuned", MISSING, "got no `glotlift.demonstration_spread.para.own."),
        ("glotlift/warnings", [{"kind": "leakage"}], "got no `glotlift.warnings.0.text`"),
    ],
)  # fmt: skip
def test_scores_with_a_part_missing_or_wrong_are_one_sentence_that_names_it(many, path, value, says):
    with pytest.raises(OutputError) as caught:
        checked(changed(many, path, value), "scores", "scores.json")
    sentence = str(caught.value)
    assert says in sentence and "\n" not in sentence and len(sentence) < 300


def test_what_is_whole_is_left_as_it_is(many):
    assert checked(many, "scores", "scores.json") is many


def test_results_of_another_harness_are_not_called_an_empty_run(tmp_path: Path):
    write(tmp_path / "scores.json", {"results": {"mood_de": {"acc,none": 0.5}}, "versions": {}})
    with pytest.raises(OutputError, match=r"scores\.json: got no `glotlift`, expected the scores"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("adapter/history.json", {"log": [None]}, "history.json, `log.0`: got None, expected"),
        ("adapter/history.json", {"log": [{"step": 1, "loss": "low"}]}, "`log.0.loss`: got 'low', expected a valid"),
        ("adapter/history.json", {"validation_loss": [1.0]}, "`validation_loss`: got a list of 1"),
        ("adapter/history.json", {"seen": None}, "`seen`: got None, expected a valid list"),
        ("merge.json", {"dtype": "float32"}, "merge.json: got no `max_logit_difference`, expected the certificate"),
        ("data/audit.json", {"pairs": "80"}, "audit.json, `pairs`: got '80', expected a valid integer"),
        ("data/audit.json", {"pairs": 8, "overlap": {}}, "audit.json: got no `overlap.n`, expected the audit"),
        ("data/audit.json", {"pairs": 8, "flags": None}, "`flags`: got None"),
        ("manifest.json", {}, "manifest.json: got no `stages`, expected the manifest of a run"),
        ("manifest.json", {"stages": {"eval": None}}, "`stages.eval`: got None"),
        ("manifest.json", {"stages": {"eval": {"seconds": "long"}}}, "`stages.eval.seconds`: got 'long'"),
        ("recipe.yaml", ["model"], "recipe.yaml: got a list of 1, expected a recipe"),
        ("recipe.yaml", {"train": "lora"}, "recipe.yaml, `train`: got 'lora', expected"),
    ],
)  # fmt: skip
def test_every_other_file_is_checked_too(tmp_path: Path, file, content, says):
    write(tmp_path / file, content)
    with pytest.raises(OutputError) as caught:
        read_run(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5_000 + "}", "", "\0", "nul"])
def test_json_that_python_cannot_read_is_a_sentence(tmp_path: Path, text):
    (tmp_path / "scores.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        OutputError, match=r"scores\.json.*: (not valid JSON|got values nested too deeply|got a whole number of more)"
    ):
        read_run(tmp_path)


def frame(**columns: Any) -> pd.DataFrame:
    numbers = ("layer", "english_mass", "own_mass", "shared_mass", "entropy_bits")
    return pd.DataFrame({"id": ["s1", "s2"]} | {name: [1.0, 0.5] for name in numbers} | columns)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"layer": ["one", "two"]}, r"de\.parquet, column layer: got \w+, expected numbers"),
        ({"own_mass": [True, False]}, r"de\.parquet, column own_mass: got bool, expected numbers"),
        ({"own_mass": [[1.0], [2.0]]}, r"de\.parquet, column own_mass: got object, expected numbers"),
    ],
)
def test_a_frame_of_other_types_is_a_sentence(tmp_path: Path, columns, says):
    path = tmp_path / "lens" / "base" / "mood" / "de.parquet"
    path.parent.mkdir(parents=True)
    frame(**columns).to_parquet(path)
    with pytest.raises(OutputError, match=says):
        read_run(tmp_path)


def test_rows_without_numbers_are_left_out_of_a_frame(tmp_path: Path):
    path = tmp_path / "lens" / "base" / "mood" / "de.parquet"
    path.parent.mkdir(parents=True)
    frame(own_mass=[0.5, float("inf")], english_mass=[0.5, None], layer=[0, 1]).to_parquet(path)
    assert set(read_run(tmp_path).lens["mood"]["layer"]) == {0}
    frame().iloc[:0].to_parquet(path)
    assert read_run(tmp_path).lens == {}


def test_a_frame_without_a_column_names_it(tmp_path: Path):
    path = tmp_path / "geometry" / "mood" / "pca.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"variant": ["base"], "layer": [0], "language": ["de"], "pc1": [0.1], "pc2": [0.1]}).to_parquet(path)
    with pytest.raises(OutputError, match=r"pca\.parquet: got no column id, expected variant, language, id, layer"):
        read_run(tmp_path)


def test_hostile_values_stay_short_in_the_message():
    with pytest.raises(OutputError) as caught:
        checked({"pairs": "x" * 10_000}, "audit", "audit.json")
    assert len(str(caught.value)) < 150
    assert json.dumps(str(caught.value))
