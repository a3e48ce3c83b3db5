from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from glotlift.errors import OutputError
from glotlift.languages import LANGUAGES
from glotlift.reporting.charts import accuracy_chart, balance_chart, loss_chart
from glotlift.reporting.inside import MAX_POINTS, correlation_chart, lens_chart, pca_chart
from glotlift.reporting.names import language, ordered
from glotlift.reporting.read import RunFiles, read_run
from glotlift.reporting.theme import inline, language_colors, save, to_svg


@pytest.fixture
def run(make_run) -> RunFiles:
    return read_run(make_run())


def frames(chart) -> list[pd.DataFrame]:
    return [pd.DataFrame(rows) for rows in chart.to_dict()["datasets"].values()]


def columns(chart) -> set[str]:
    return {name for frame in frames(chart) for name in frame.columns}


def test_accuracy_chart_shows_the_scores(run):
    task = run.scores["tasks"]["sentiment"]
    (frame,) = {frame.to_csv(): frame for frame in frames(accuracy_chart(run.scores, "sentiment"))[:1]}.values()
    assert list(dict.fromkeys(frame["language"])) == ["Chinese", "German", "English", "Swahili"]
    assert len(frame) == 2 * len(task["languages"])
    for row in frame.to_dict("records"):
        code = next(code for code in task["languages"] if language(code).name == row["language"])
        score = task["languages"][code][row["variant"]]
        assert row["accuracy"] == pytest.approx(100 * score["accuracy"])
        assert (row["low"], row["high"]) == pytest.approx((100 * score["low"], 100 * score["high"]))
        assert row["calibrated"] == pytest.approx(100 * score["accuracy_calibrated"])


def test_shares_of_the_labels_add_up(run):
    for frame in frames(balance_chart(run.scores, "sentiment")):
        assert frame.groupby(["language", "variant"])["share"].sum().to_numpy() == pytest.approx(100)


def test_lens_is_the_mean_over_items_with_its_interval(run):
    items = pd.read_parquet(run.path / "lens" / "tuned" / "sentiment" / "sw.parquet")
    values = items.loc[items["layer"] == 3, "english_mass"]
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    frame = run.lens["sentiment"].query("variant == 'tuned' and language == 'sw' and layer == 3")
    row = frame[frame["measure"] == "english_mass"].iloc[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), low, high))


def test_lens_bands_stay_within_bounds_with_one_item(make_run):
    lens = read_run(make_run(n_items=1)).lens["sentiment"]
    assert np.isfinite(lens[["low", "high"]]).all().all()
    masses = lens[lens["measure"] != "entropy_bits"]
    assert masses["low"].min() >= 0 and masses["high"].max() <= 1


def test_lens_leaves_out_words_that_are_nowhere(run):
    shown = pd.concat(frames(lens_chart(run.lens["sentiment"], "sentiment")))
    kinds = {code: set(shown.loc[shown["language"] == code, "measure"]) for code in ("en", "de", "sw")}
    assert kinds["en"] == {"English words"}
    assert kinds["de"] == {"English words", "the language's own words"}
    assert kinds["sw"] == {"English words", "the language's own words", "in both"}


def test_scatter_is_thinned_to_the_same_items_everywhere(make_run):
    run = read_run(make_run(languages=list(LANGUAGES), n_items=60, stages=("geometry",)))
    points = [f for f in frames(pca_chart(run.pca["sentiment"], "sentiment")) if "id" in f]
    assert sum(map(len, points)) <= MAX_POINTS
    assert len({frozenset(frame["id"]) for frame in points}) == 1
    assert {len(set(frame["language"])) for frame in points} == {20}


def test_scatter_shows_first_and_last_layer_and_their_variance(run):
    spec = json.dumps(pca_chart(run.pca["sentiment"], "sentiment", run.explained["sentiment"]).to_dict())
    assert "Layer 0, base" in spec and "Layer 5, tuned" in spec and "43 % of the variance" in spec


def test_correlation_never_stands_without_its_length_partialled_value_and_null(run):
    chart = correlation_chart(run.correlation["sentiment"], "sentiment")
    assert {"r", "r_partial", "null_low", "null_high"} <= columns(chart)
    assert "en" not in set(pd.concat(frames(chart))["language"])


def test_rows_that_are_not_defined_are_left_out(make_run):
    path = make_run(stages=("geometry",))
    file = path / "geometry" / "sentiment" / "correlation.parquet"
    frame = pd.read_parquet(file)
    frame.loc[frame["language"] == "de", "r_partial"] = np.nan
    frame.to_parquet(file)
    assert "de" not in set(read_run(path).correlation["sentiment"]["language"])


def test_loss_chart_names_languages_apart(run):
    history = {**run.history, "validation_loss": {"zh": 1.2, "de": 1.2, "sw": 1.21}}
    ends = next(frame for frame in frames(loss_chart(history)) if "name" in frame)
    assert list(ends["loss"]) == [1.2, 1.2, 1.21]
    assert np.diff(ends["name_at"]).min() > 0.05


def test_svg_is_the_same_each_time_and_keeps_its_texts(run):
    history = {**run.history, "validation_loss": {'x "1.23456" <b>': 1.0}}
    first, second = (to_svg(loss_chart(history), "a < b") for _ in range(2))
    assert first == second
    assert 'x "1.23456" &lt;b&gt;' in first.replace("&quot;", '"')
    assert 'aria-label="a &lt; b"' in first


def test_inline_svg_names_no_address(run):
    svg = inline(to_svg(loss_chart(run.history)))
    assert "xmlns" not in svg and "http" not in svg and svg.startswith("<svg role=")
    assert 'style="--width:' in svg.split(">")[0]


def test_a_chart_can_be_saved_in_three_forms(run, tmp_path):
    svg = to_svg(loss_chart(run.history))
    starts = {".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        save(svg, tmp_path / f"x{suffix}")
        assert (tmp_path / f"x{suffix}").read_bytes().startswith(start)
    with pytest.raises(OutputError, match=r"expected \.svg, \.png or \.pdf"):
        save(svg, tmp_path / "x.gif")


def test_every_language_has_a_colour_of_its_own():
    colors = language_colors({code: entry.family for code, entry in LANGUAGES.items()})
    assert len(set(colors.values())) == len(LANGUAGES)


def test_unknown_languages_stand_last_under_their_code():
    assert ordered(["xx", "sw", "en", "aa"]) == ["en", "sw", "aa", "xx"]
    assert language("xx").name == "xx"
