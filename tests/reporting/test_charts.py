from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from glotlift.errors import OutputError
from glotlift.languages import LANGUAGES
from glotlift.reporting.across import grids, spreads
from glotlift.reporting.charts import accuracy_chart, balance_chart, loss_chart, parts_chart, spread_chart
from glotlift.reporting.heatmaps import consistency_chart, grid_chart
from glotlift.reporting.inside import MAX_POINTS, correlation_chart, lens_chart, pca_chart
from glotlift.reporting.names import language, ordered
from glotlift.reporting.read import RunFiles, read_run
from glotlift.reporting.table import points
from glotlift.reporting.theme import inline, language_colors, save, to_svg
from tests.reporting.conftest import make_scores, predictions


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
        assert row["beside"] == pytest.approx(100 * score["accuracy_calibrated"])


def test_shares_of_the_labels_add_up(run):
    for frame in frames(balance_chart(run.scores, "sentiment")):
        assert frame.groupby(["language", "variant"])["share"].sum().to_numpy() == pytest.approx(100)


def test_accuracy_chart_sets_calibrated_beside_raw_accuracy():
    options = {"labels": ("a", "b"), "languages": ("en", "de"), "variants": ("base", "tuned"), "n": 40}
    scores = make_scores([predictions("x", **options, calibration="batch")])["glotlift"]
    chart = accuracy_chart(scores, "x")
    score = scores["tasks"]["x"]["languages"]["en"]["base"]
    row = frames(chart)[0].query("language == 'English' and variant == 'base'").iloc[0]
    assert (row["accuracy"], row["beside"]) == (100 * score["accuracy_calibrated"], 100 * score["accuracy_raw"])
    assert "Without calibration" in json.dumps(chart.to_dict())


def test_parts_chart_shows_the_parts_and_marks_those_that_are_not_clear(many):
    parts = json.loads(json.dumps(many["glotlift"]["tasks"]["mood.own"]["parts"]))
    parts["format"] |= {"low": -0.01, "high": 0.02, "change": 0.005}
    parts["bias"] |= {"low": 0.01, "high": 0.02, "change": 0.015, "n": 5}
    parts["understanding"] |= {"low": 0.01, "high": 0.02, "change": 0.015}
    (frame,) = frames(parts_chart(parts, "mood.own"))
    assert [name.split()[-1 if i == 0 else 1] for i, name in enumerate(frame["part"])] == [
        "accuracy", "bias", "format", "understanding"]  # fmt: skip
    entries = [parts[name] for name in ("gain", "bias", "format", "understanding")]
    for row, entry in zip(frame.to_dict("records"), entries, strict=True):
        for name in ("change", "low", "high"):
            assert row[name] == pytest.approx(100 * entry[name])
        assert row["text"] == points(entry["change"])
    assert list(frame["is_clear"][1:]) == [False, False, True]


def test_the_parts_scale_holds_zero_and_every_interval(many):
    parts = {"gain": {"change": -0.1, "low": -0.2, "high": -0.05, "n": 60}}
    layers = parts_chart(parts, "x").to_dict()["layer"]
    low, high = next(layer["encoding"]["x"]["scale"]["domain"] for layer in layers)
    assert low < -20 and high > 0


def test_consistency_chart_has_each_pair_once(many):
    scores = many["glotlift"]
    found = scores["tasks"]["mood.own"]["consistency"]
    frame = pd.concat(frames(consistency_chart(scores, "mood.own"))).dropna(subset="value")
    assert len(frame) == 2 * 6
    for row in frame.to_dict("records"):
        value = found[row["variant"]]["pairs"][row["row"]][row["column"]]
        assert row["value"] == pytest.approx(100 * value) and row["text"] == f"{100 * value:.0f}"
    assert {frozenset(pair) for pair in frame[["row", "column"]].to_numpy()} == {
        frozenset(pair) for pair in [("zh", "de"), ("zh", "en"), ("zh", "sw"), ("de", "en"), ("de", "sw"), ("en", "sw")]
    }


def test_a_pair_without_a_value_is_drawn_as_unknown(many):
    scores = json.loads(json.dumps(many["glotlift"]))
    pairs = scores["tasks"]["mood.own"]["consistency"]["base"]["pairs"]
    pairs["zh"]["de"] = pairs["de"]["zh"] = None
    frame = pd.concat(frames(consistency_chart(scores, "mood.own")))
    (cell,) = frame.query("variant == 'base' and row == 'de' and column == 'zh'").to_dict("records")
    assert cell["text"] == "–"
    to_svg(consistency_chart(scores, "mood.own"))
    scores["tasks"]["mood.own"]["consistency"] = {
        "base": {"mean": 0, "low": 0, "high": 0, "pairs": {"zh": {"de": None}, "de": {"zh": None}}}
    }
    to_svg(consistency_chart(scores, "mood.own"))  # no value at all


def test_grid_chart_has_every_cell_and_frames_the_same_language(many):
    (grid,) = grids(many["glotlift"])
    chart = grid_chart(grid)
    found = frames(chart)
    cells = pd.concat(frame for frame in found if len(frame) == 16)
    assert len(cells) == 2 * 16
    for row in cells.to_dict("records"):
        assert row["value"] == pytest.approx(100 * grid.cells[row["variant"]][row["row"]][row["column"]])
    same = [frame for frame in found if len(frame) == 4]
    assert len(same) == 2 and all((frame["row"] == frame["column"]).all() for frame in same)


def test_heatmap_panels_are_on_one_scale(many):
    spec = json.dumps(grid_chart(grids(many["glotlift"])[0]).to_dict())
    domains = [tuple(domain) for domain in json.loads(f"[{','.join(_domains(spec))}]")]
    assert len(domains) == 2 and len(set(domains)) == 1


def _domains(spec: str) -> list[str]:
    return re.findall(r'"scale": \{"domain": (\[[\d., ]+\]), "range"', spec)


def test_spread_chart_has_every_draw(many):
    scores = many["glotlift"]
    (spread,) = spreads(scores)
    (frame,) = frames(spread_chart(scores, spread))[:1]
    draws = frame[frame["kind"] == "draw"]
    assert len(draws) == 3 * 2 * 5
    swahili = draws.query("language == 'Swahili' and variant == 'tuned'")["accuracy"]
    expected = [scores["tasks"][key]["languages"]["sw"]["tuned"]["accuracy"] * 100 for key in spread.test_sets]
    assert list(swahili) == pytest.approx(expected)
    summary = frame.query("kind == 'summary' and language == 'All' and variant == 'base'").iloc[0]
    assert summary["mean"] == pytest.approx(100 * spread.summaries["base"][""]["mean"])
    assert list(dict.fromkeys(frame["group"])) == ["Mean over languages", "Tuned on", "Pivot", "Never tuned on"]


def test_heatmaps_are_the_same_each_time_and_their_ids_are_their_own(many):
    scores = many["glotlift"]
    charts = [grid_chart(grids(scores)[0]), consistency_chart(scores, "mood.own")]
    first, second = ([to_svg(chart) for chart in charts] for _ in range(2))
    assert first == second
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in first]
    assert all(ids) and not ids[0] & ids[1]
    for svg, own in zip(first, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= own


def test_lens_is_the_mean_over_items_with_its_interval(run):
    items = pd.read_parquet(run.path / "lens" / "tuned" / "sentiment" / "sw.parquet")
    values = items.loc[items["layer"] == 3, "english_mass"]
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    frame = run.lens["sentiment"].query("variant == 'tuned' and language == 'sw' and layer == 3")
    row = frame[frame["measure"] == "english_mass"].iloc[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), low, high))


def test_lens_bands_stay_within_bounds_with_two_items(make_run):
    lens = read_run(make_run(n_items=2)).lens["sentiment"]
    has_band = np.isfinite(lens[["low", "high"]]).all(axis=1)
    assert has_band.any()
    assert (lens.loc[~has_band, "mean"] == 0).all()  # two items without any mass do not spread, and have no band
    masses = lens[lens["measure"] != "entropy_bits"]
    assert masses["low"].min() >= 0 and masses["high"].max() <= 1


def test_one_item_has_a_line_in_the_lens_and_no_band(make_run):
    lens = read_run(make_run(n_items=1, languages=("en", "de"), n_layers=3)).lens["sentiment"]
    assert lens["mean"].notna().all() and lens[["low", "high"]].isna().all().all()
    assert "NaN" not in to_svg(lens_chart(lens, "sentiment"))


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
