"""What an explanation left, as frames: bands, and what is of an earlier explanation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from glotlift.errors import OutputError
from glotlift.reporting.figures import figures
from glotlift.reporting.inside import paper_lens_chart
from glotlift.reporting.read import read_run
from glotlift.reporting.read_frames import PAPER, RANDOM
from glotlift.runs import write_parquet

LAYERS = 3


def write_lens(folder, variant: str, ids, *, model: str = "m", code: str = "de", place: str = "lens") -> None:
    """Write a lens file in which the mass of English words is the number in an item's id, over ten."""
    rows = [
        {"id": name, "layer": layer, "english_mass": int(name) / 10, "own_mass": 0.0, "shared_mass": 0.0,
         "entropy_bits": 1.0}
        for name, layer in product(ids, range(LAYERS))
    ]  # fmt: skip
    write_parquet(folder / place / variant / "sentiment" / f"{code}.parquet", pd.DataFrame(rows), {"model": model})


def drawn(folder, code: str = "de") -> set[str]:
    frame = read_run(folder).lens["sentiment"]
    return set(frame.loc[frame["language"] == code, "variant"])


def test_base_and_tuned_of_the_same_items_are_drawn_together(tmp_path):
    for variant in ("base", "tuned"):
        write_lens(tmp_path, variant, "123")
    assert drawn(tmp_path) == {"base", "tuned"}


@pytest.mark.parametrize("left", [{"ids": "123456"}, {"ids": "12"}, {"ids": "567"}, {"ids": "123", "model": "other"}])
def test_a_tuned_model_of_an_earlier_explanation_is_not_drawn(tmp_path, left):
    write_lens(tmp_path, "tuned", **left)
    write_lens(tmp_path, "base", "123")
    for variant in ("base", "tuned"):  # another language of the same explanation is
        write_lens(tmp_path, variant, "1", code="th")
    assert drawn(tmp_path) == {"base"} and drawn(tmp_path, "th") == {"base", "tuned"}
    (lens, _) = (figure for figure in figures(read_run(tmp_path)) if figure.section == "inside")
    assert "random" not in lens.caption


@pytest.mark.parametrize(("ids", "is_drawn"), [("123", True), ("1234", False)])
def test_a_random_adapter_is_drawn_in_the_lens_where_it_was_read_on_the_same_items(tmp_path, ids, is_drawn):
    for variant in ("base", "tuned"):
        write_lens(tmp_path, variant, "123")
        write_lens(tmp_path / "random_adapter", variant, ids)
    assert drawn(tmp_path) == {"base", "tuned", *([RANDOM] if is_drawn else ())}
    lens = next(figure for figure in figures(read_run(tmp_path)) if figure.name == "lens-sentiment")
    assert ("random adapter" in lens.svg) is is_drawn and ("random directions" in lens.caption) is is_drawn


def test_a_tuned_lens_has_figures_of_its_own(tmp_path):
    write_lens(tmp_path, "base", "123", place="tuned_lens")
    found = {figure.name: figure for figure in figures(read_run(tmp_path)) if figure.section == "inside"}
    assert set(found) == {"tuned-lens-sentiment", "tuned-entropy-sentiment"}
    assert "Tuned lens on sentiment" in found["tuned-lens-sentiment"].svg.replace("&nbsp;", " ")
    assert found["tuned-lens-sentiment"].caption.startswith("The same through a tuned lens")


def write_paper(folder, variant: str, values) -> None:
    rows = [
        {"id": str(item), "layer": layer, **dict.fromkeys(PAPER, 0.0), "latent": value}
        for item, value in enumerate(values) for layer in (1, 2)
    ]  # fmt: skip
    write_parquet(folder / "paper_lens" / variant / "sentiment" / "de.parquet", pd.DataFrame(rows))


def test_the_papers_lens_has_the_band_of_the_original(tmp_path):
    values = np.array([0.0, 0.1, 1.0])
    for variant in ("base", "tuned"):
        write_paper(tmp_path, variant, values)
    frame = read_run(tmp_path).paper_lens["sentiment"]
    row = frame.query("variant == 'tuned' and measure == 'latent' and layer == 2").iloc[0]
    half = 1.96 * values.std(ddof=1) / np.sqrt(3)
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([values.mean(), values.mean() - half,
                                                                   values.mean() + half])  # fmt: skip
    assert row["low"] < 0  # as in the original, not cut
    shown = pd.concat(pd.DataFrame(rows) for rows in paper_lens_chart(frame, "x").to_dict()["datasets"].values())
    assert set(shown["measure"]) == {"in English", "in the prompt's language"}
    assert [figure.name for figure in figures(read_run(tmp_path))] == ["paper-lens-sentiment"]


@pytest.mark.parametrize(
    ("pooling", "says"),
    [
        (None, "the tokens of its question and the answer cue;"),
        ("question", "the tokens of its question and the answer cue;"),
        ("position-weighted", "the tokens of its question and the answer cue, later ones counting more;"),
        ("whole", "its whole prompt, demonstrations included;"),
    ],
)
def test_the_scatter_says_what_a_state_is_the_mean_of(make_run, pooling, says):
    path = make_run(stages=("geometry",))
    file = path / "geometry" / "sentiment" / "pca.parquet"
    write_parquet(file, pd.read_parquet(file), {"pooling": pooling} if pooling else {})
    (figure,) = (figure for figure in figures(read_run(path)) if figure.name == "pca-sentiment")
    assert figure.caption.startswith(f"Each point is an item, as the mean state over {says}")


def test_a_number_that_may_be_missing_is_still_a_column(tmp_path):
    frame = pd.DataFrame({"variant": ["base"], "language": ["de"], "measure": ["crossover_layer"], "value": [1.0]})
    file = tmp_path / "lens" / "sentiment" / "pivot.parquet"
    write_parquet(file, frame.assign(low=0.0, high=2.0))
    with pytest.raises(OutputError, match="got no column layer, expected variant, language, measure, value, layer"):
        read_run(tmp_path)
    write_parquet(file, frame.assign(low=0.0, high=2.0, layer=pd.array([pd.NA], "Int64")))
    found = read_run(tmp_path).english_first["sentiment"]
    assert len(found) == 1 and found["layer"].isna().all() and found["layer"].dtype == float
