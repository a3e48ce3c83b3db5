"""How far English comes first: the file that an explanation leaves, and what it logs."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from glotlift.explanation.collect import explain, explain_languages
from glotlift.explanation.lens_summary import PIVOT_COLUMNS, pivot_summary
from glotlift.explanation.subject import Subject
from glotlift.explanation.tuned_lens import TunedLensTraining, fit_tuned_lens, save_tuned_lens
from glotlift.runs import read_parquet

CODES = ("en", "de", "th")


@pytest.fixture
def look(ask, words, tmp_path):
    """Return a function that reads the lens of a model on some items, into one folder, and gives the subject."""

    def make(loaded, limit: int, folder=tmp_path, codes=CODES) -> Subject:
        subject = Subject(loaded, ask(loaded, codes, limit), folder, **words(*codes))
        explain(subject, ["lens"])
        return subject

    return make


def pivot_of(folder, lens: str = "lens") -> pd.DataFrame:
    return read_parquet(folder / lens / "sentiment" / "pivot.parquet")[0]


def lines_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "answer in English first" in record.getMessage()]


def test_an_explanation_leaves_the_summary_of_its_lens_and_a_line_a_variant(adapted, look, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "glotlift"):
        look(adapted, 6)
    found = pivot_of(tmp_path)
    assert tuple(found.columns) == PIVOT_COLUMNS
    assert set(found["variant"]) == {"base", "tuned", "difference"} and set(found["language"]) == {"de", "th", "all"}
    pd.testing.assert_frame_equal(found, pivot_summary(tmp_path))
    lines = lines_of(caplog)
    assert [line.split(":")[0] for line in lines] == ["lens, base", "lens, tuned", "lens, tuned less base"]
    row = found.query("variant == 'tuned' and language == 'all' and measure == 'pivot_share'").iloc[0]
    said = f"share of 6 items that answer in English first {row['value']:.3f} (95 % interval {row['low']:.3f} to"
    assert said in lines[1]


def test_what_is_there_for_the_same_readings_is_kept(adapted, look, tmp_path, caplog):
    look(adapted, 2)
    file = tmp_path / "lens" / "sentiment" / "pivot.parquet"
    before = file.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, "glotlift"):
        look(adapted, 2)
        assert file.stat().st_mtime_ns == before and not lines_of(caplog)
        look(adapted, 3)
    assert (pivot_of(tmp_path)["n"] == 3).all() and len(lines_of(caplog)) == 3


def test_a_tuned_model_of_an_earlier_explanation_is_not_taken_for_this_ones(adapted, loud, look, tmp_path):
    """Six items with an adapter, then four without one, into the same folder."""
    look(adapted, 6)
    look(loud("gemma2"), 4)
    assert (tmp_path / "lens" / "tuned" / "sentiment" / "de.parquet").is_file()
    found = pivot_of(tmp_path)
    assert set(found["variant"]) == {"base"} and (found["n"] == 4).all()
    of_folder = pivot_summary(tmp_path)
    assert of_folder.groupby("variant")["n"].max().to_dict() == {"base": 4, "difference": 4, "tuned": 6}


def test_english_alone_has_none_and_leaves_no_earlier_one(adapted, look, tmp_path):
    look(adapted, 2)
    look(adapted, 2, codes=("en",))
    assert not (tmp_path / "lens" / "sentiment" / "pivot.parquet").exists()


def test_a_random_adapter_is_called_one(adapted, look, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "glotlift"):
        look(adapted, 2, tmp_path / "random_adapter")
    assert [line.split(":")[0] for line in lines_of(caplog)] == ["lens, random adapter less base"]


def test_a_tuned_lens_has_its_own(adapted, ask, words, tmp_path):
    from glotlift.explanation.subject import LensOptions

    texts = ["Guten Tag, wie geht es dir heute? " * 3, "The film was long and loud. " * 4] * 3
    lens, _ = fit_tuned_lens(adapted, texts, training=TunedLensTraining(n_steps=2))
    save_tuned_lens(lens, tmp_path / "translators")
    options = LensOptions(tuned_lens=str(tmp_path / "translators"))
    explain_languages(adapted, ask(adapted, ("en", "de"), 3), tmp_path, **words("en", "de"), lens=options)
    plain, tuned = pivot_of(tmp_path), pivot_of(tmp_path, "tuned_lens")
    assert plain["measure"].tolist() == tuned["measure"].tolist()
    share = "measure == 'english_share' and language == 'de' and variant == 'base'"
    assert not np.array_equal(plain.query(share)["value"], tuned.query(share)["value"])
