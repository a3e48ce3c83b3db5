"""Two evaluations decided by one scoring, of files that hold its scores in other columns or not at all."""

import pandas as pd
import pytest

from glotlift.errors import DataError
from glotlift.evaluation.versus import read_versus
from glotlift.runs import write_parquet

RELEASED = {"prefix_mass_released_yes": [0.1, 0.4], "prefix_mass_released_no": [0.3, 0.2]}


def written(path, **changes):
    """Write a prediction file in which `prefix-mass` says yes, and `sequence` no."""
    about = {"labels": ["yes", "no"], "scoring": "sequence", "calibration": "none", "texts": "of the items"}
    about |= {"label_words": {"yes": "so", "no": "me"}, "task_name": "odd", "answers": "own"}
    columns = {"prefix_mass_yes": [0.3, 0.4], "prefix_mass_no": [0.2, 0.1]} | changes.pop("columns", {})
    shared = {"id": ["a", "b"], "gold": ["yes", "no"], "predicted": ["no", "no"], "tied": [1, 1]}
    sequence = {"sequence_yes": [-3.0, -3.0], "sequence_no": [-1.0, -1.0]}
    write_parquet(path, pd.DataFrame(shared | sequence | columns), {**about, **changes})
    return path


def test_the_released_rule_is_that_of_prefix_mass_where_no_other_scores_are_stored(tmp_path):
    a = {"en": written(tmp_path / "a.parquet"), "zh": written(tmp_path / "zh.parquet")}
    b = {"en": written(tmp_path / "b.parquet", columns=RELEASED), "zh": a["zh"]}
    frames = read_versus("odd", a, b, scoring="prefix-mass-released").predictions.frames
    assert list(frames["base"]["en"]["predicted"]) == ["yes", "yes"]
    assert list(frames["tuned"]["en"]["predicted"]) == ["no", "yes"]
    assert list(frames["tuned"]["zh"]["predicted"]) == ["yes", "yes"]


def test_a_file_that_does_not_tell_whether_the_rules_differ_is_refused(tmp_path):
    a = {"en": written(tmp_path / "a.parquet", columns=RELEASED)}
    b = {"en": written(tmp_path / "b.parquet", texts=None)}
    with pytest.raises(DataError, match=r"b\.parquet: got a file of glotlift 0\.1, .*: evaluate again$"):
        read_versus("odd", a, b, scoring="prefix-mass-released")
    assert read_versus("odd", a, b, scoring="prefix-mass").differences == ()
