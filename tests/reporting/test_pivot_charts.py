"""Charts of English as a pivot: what they show of the frames, and that a report has them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from glotlift.reporting.figures import figures, write_explanation
from glotlift.reporting.pivot_charts import item_link_chart, pivot_chart
from glotlift.reporting.read import read_run
from glotlift.reporting.theme import to_svg
from glotlift.runs import write_parquet

CODES = ("all", "de", "sw")
LAYERS = range(4)


def english_first() -> pd.DataFrame:
    """As `lens/<task>/pivot.parquet`: Swahili never crosses, and Swedish cannot be read."""
    rows = []
    for variant, code in product(("base", "tuned", "difference"), (*CODES, "sv")):
        share = np.nan if code == "sv" else 0.2
        at = {"variant": variant, "task": "sentiment", "language": code, "n": 9, "n_read": 9}
        for layer in LAYERS:
            value = share + 0.1 * layer
            rows.append({**at, "measure": "english_share", "layer": layer, "value": value, "low": value - 0.1,
                         "high": value + 0.1})  # fmt: skip
        crossed = {"value": 2.0, "low": 1.0, "high": 3.0} if code == "de" else dict.fromkeys(("value", "low", "high"))
        if (code, variant) == ("all", "base"):
            crossed = {"value": 3.0, "low": None, "high": None}  # in fewer than half of the resamples
        rows.append({**at, "measure": "crossover_layer", "layer": pd.NA, **crossed})
        rows.append({**at, "measure": "pivot_share", "layer": pd.NA, "value": 0.9, "low": 0.8, "high": 1.0})
    frame = pd.DataFrame(rows)
    return frame.assign(layer=frame["layer"].astype("Int64"), **frame[["value", "low", "high"]].astype(float))


def item_link(p: float = 0.042) -> pd.DataFrame:
    rows = [
        {"quantity": quantity, "layer": layer, "language": code, "n_flipped": 5, "n_stayed": 7, "mean_flipped": 0.2,
         "mean_stayed": 0.1, "value": 0.1 + place, "low": np.nan if code == "sw" else 0.0, "high": 0.3, "p": p}
        for place, code in enumerate(CODES)
        for quantity, layer in (*(("towards_pivot", layer) for layer in LAYERS), ("towards_pivot_mean", pd.NA),
                                ("earlier_crossover", pd.NA))
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame = frame.assign(layer=frame["layer"].astype("Int64"))
    raw = frame.assign(value=9.0, low=8.0, high=10.0, p=0.9)  # which the figure leaves out
    return pd.concat([raw.assign(calibration="none"), frame.assign(calibration="batch")], ignore_index=True)


@pytest.fixture
def as_read(make_run):
    """Return a function: where a frame lies in a run, the frame -> what a report reads of the run."""
    path = make_run(stages=("train",))

    def make(place: str, frame: pd.DataFrame, metadata=None):
        write_parquet(path / place, frame, metadata)
        return read_run(path)

    return make


def sources(chart) -> list[pd.DataFrame]:
    return [pd.DataFrame(rows) for rows in chart.to_dict()["datasets"].values()]


def test_the_pivot_chart_has_shares_and_the_crossover_layer_of_what_can_be_read(as_read):
    frame = as_read("lens/sentiment/pivot.parquet", english_first()).english_first["sentiment"]
    chart = pivot_chart(frame, "sentiment")
    drawn = pd.concat(sources(chart)).drop_duplicates()
    shares = drawn[drawn["measure"] == "english_share"]
    assert set(drawn["variant"]) == {"base", "tuned"} and set(drawn["language"]) == set(CODES)
    assert len(shares) == 2 * 3 * 4
    titles = [panel["title"]["text"] for panel in chart.to_dict()["concat"]]
    assert titles == ["All languages", "German", "Swahili"]
    crossed = drawn[drawn["measure"] == "crossover_layer"]
    dots, ends = crossed[crossed["layer"] == crossed["value"]], crossed[crossed["layer"] == crossed["low"]]
    assert set(zip(dots["language"], dots["variant"], dots["layer"], strict=True)) == {
        ("de", "base", 2), ("de", "tuned", 2), ("all", "base", 3)}  # fmt: skip
    assert set(zip(ends["language"], ends["layer"], ends["high"], strict=True)) == {("de", 1, 3)}
    lanes = dots.groupby("variant")["lane"].first()
    assert 1 < lanes["base"] < lanes["tuned"]
    assert chart.to_dict()["concat"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"][1] > lanes["tuned"]
    assert "NaN" not in to_svg(chart)


def test_the_item_link_has_its_curve_its_languages_and_the_p_of_the_mean(as_read):
    frame = as_read("item_link/sentiment/summary.parquet", item_link()).item_link["sentiment"]
    chart = item_link_chart(frame, "sentiment")
    panels = chart.to_dict()["hconcat"]
    assert [panel["title"]["text"] for panel in panels] == [
        "Nearer to English by layer, all languages",
        "Nearer to English, mean over layers",
        "Earlier crossover",
    ]
    assert panels[0]["title"]["subtitle"] == "mean over layers +0.1000, p = 0.042; 5 flipped, 7 stayed"
    curve = [each for each in sources(chart) if "layer" in each and each["layer"].notna().all()]
    assert all(set(each["language"]) == {"all"} and set(each["layer"]) == set(LAYERS) for each in curve) and curve
    names = next(layer["encoding"]["y"]["sort"] for layer in panels[1]["layer"] if "y" in layer["encoding"])
    assert names == ["All (5, 7)", "German (5, 7)", "Swahili (5, 7)"]
    spans = [each for each in sources(chart) if "name" in each and "Swahili (5, 7)" not in set(each["name"])]
    assert len(spans) == 2  # no interval where there are too few items, and so no line
    to_svg(chart)


def test_without_a_test_the_item_link_says_so(as_read):
    frame = as_read("item_link/sentiment/summary.parquet", item_link(np.nan)).item_link["sentiment"]
    (title, *_) = [panel["title"] for panel in item_link_chart(frame, "sentiment").to_dict()["hconcat"]]
    assert "too few items for a test" in title["subtitle"]


def test_a_report_and_an_explanation_have_them_where_there_are_the_files(as_read):
    as_read("lens/sentiment/pivot.parquet", english_first())
    as_read("tuned_lens/sentiment/pivot.parquet", english_first())
    run = as_read("item_link/sentiment/summary.parquet", item_link())
    expected = ["pivot-sentiment", "tuned-pivot-sentiment", "item-link-sentiment"]
    assert [figure.name for figure in figures(run) if figure.section == "inside"] == expected
    write_explanation(run.path)
    assert {file.stem for file in (run.path / "figures").iterdir()} == set(expected)


@pytest.mark.parametrize("is_same", [True, False])
def test_a_random_adapter_is_shown_beside_the_base_it_was_put_on(as_read, is_same):
    control = english_first()
    if not is_same:  # of an earlier explanation, on other items
        control.loc[(control["variant"] == "base") & (control["language"] == "de"), "value"] -= 0.1
    as_read("random_adapter/lens/sentiment/pivot.parquet", control)
    run = as_read("lens/sentiment/pivot.parquet", english_first())
    (figure,) = (figure for figure in figures(run) if figure.section == "inside")
    assert ("random adapter" in figure.svg) is is_same
    assert ("The random adapter moves" in figure.caption) is is_same
    if is_same:
        assert len(set(run.english_first["sentiment"]["variant"])) == 3
