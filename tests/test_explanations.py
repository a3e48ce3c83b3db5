"""The files of an explanation as data frames."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from glotlift.errors import DataError
from glotlift.explanation.collect import explain_languages
from glotlift.explanation.geometry import FRAMES
from glotlift.explanation.lens_summary import read_lens
from glotlift.explanation.settings import KINDS, folder_of
from glotlift.runs import write_parquet
from glotlift.stages.explanations import READABLE, read_explanation
from tests.explanation.conftest import adapted, ask, loud, task, words  # noqa: F401

DOCS = (Path(__file__).parents[1] / "docs" / "explain.md").read_text(encoding="utf-8")


@pytest.fixture
def found(adapted, ask, words, tmp_path):  # noqa: F811
    """A folder with lens and geometry of three languages, base and tuned."""
    codes = ("en", "de", "th")
    explain_languages(adapted, ask(adapted, codes, 6), tmp_path, **words(*codes), n_permutations=10)
    return tmp_path


def test_every_frame_has_its_task_and_the_columns_that_the_docs_name(found):
    documented = set(re.findall(r"`(\w+)`", DOCS))
    for kind in ("lens", *FRAMES):
        frame = read_explanation(found, kind)
        assert set(frame["task"]) == {"sentiment"} and len(frame) > 0, kind
        assert set(frame) <= documented, kind
    pd.testing.assert_frame_equal(read_explanation(str(found), "lens"), read_lens(found))
    assert set(read_explanation(found, "similarity")["language"]) == {"de", "th"}
    assert set(read_explanation(found, "probe")["variant"]) == {"base", "tuned", "difference"}


def test_tasks_are_put_together_and_summaries_are_read(tmp_path):
    for name in ("a", "b"):
        write_parquet(tmp_path / "switch_off" / name / "summary.parquet", pd.DataFrame({"value": [1.0]}))
        write_parquet(tmp_path / "switch_off" / name / "de.parquet", pd.DataFrame({"id": ["x"]}))
    write_parquet(tmp_path / "lens" / "a" / "pivot.parquet", pd.DataFrame({"value": [2.0], "task": ["a"]}))
    for kind in ("switch_off", "switch-off"):
        assert read_explanation(tmp_path, kind).to_dict("list") == {"task": ["a", "b"], "value": [1.0, 1.0]}
    assert read_explanation(tmp_path, "pivot").to_dict("list") == {"task": ["a"], "value": [2.0]}


def test_every_kind_can_be_read():
    assert set(FRAMES) <= set(READABLE)
    assert {folder_of(kind) for kind in KINDS} - {"geometry"} <= set(READABLE)
    assert all(f"`{kind}`" in DOCS for kind in READABLE)


@pytest.mark.parametrize("kind", READABLE)
def test_what_is_not_there_is_said_with_the_command_that_writes_it(tmp_path, kind):
    with pytest.raises(DataError, match=f"got no .*parquet, expected what `glotlift explain {READABLE[kind][1]}"):
        read_explanation(tmp_path, kind)


def test_an_unknown_kind_and_a_damaged_file_are_said_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="got the kind of explanation 'lense', expected lens, tuned_lens"):
        read_explanation(tmp_path, "lense")
    file = tmp_path / "geometry" / "t" / "probe.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no")
    with pytest.raises(DataError, match="probe.parquet: cannot be read as Parquet"):
        read_explanation(tmp_path, "probe")
