"""`read_predictions`: one frame of what a run predicted."""

import pytest

import glotlift
from glotlift.errors import DataError
from glotlift.runs import write_parquet


@pytest.fixture(scope="module")
def evaluated(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    glotlift.evaluate(model=str(tiny_folder), languages="en,de", limit=4, output_path=folder)
    return folder


def test_a_row_is_an_item_with_its_scores(evaluated):
    frame = glotlift.read_predictions(evaluated)
    expected = ["test_set", "id", "text", "language", "variant", "gold", "predicted", "scores"]
    assert list(frame.columns) == expected
    assert len(frame) == 8
    assert set(frame["language"]) == {"en", "de"} and set(frame["variant"]) == {"base"}
    assert set(frame["test_set"]) == {"sentiment"}
    items = glotlift.load_task("sentiment").labels
    for row in frame.itertuples():
        assert set(row.scores) == set(items)
        assert max(row.scores, key=row.scores.get) == row.predicted
        assert row.text.strip()


@pytest.mark.parametrize("inside", ["predictions", "predictions/base", "predictions/base/sentiment"])
def test_folders_inside_are_read_too(evaluated, inside):
    assert glotlift.read_predictions(evaluated / inside).equals(glotlift.read_predictions(evaluated))


def test_what_holds_no_predictions_is_refused(tmp_path):
    with pytest.raises(DataError, match="no prediction files, expected a run"):
        glotlift.read_predictions(tmp_path)
    import pandas as pd

    write_parquet(tmp_path / "de.parquet", pd.DataFrame({"id": ["a"]}), {"language": "de"})
    with pytest.raises(DataError, match="got no labels in its metadata"):
        glotlift.read_predictions(tmp_path)
