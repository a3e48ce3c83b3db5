"""Charts with a line a language: what they show of the frames, where codes stand, and that a report has them."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pandas as pd
import pytest

from glotlift.reporting.figures import figures, write_explanation
from glotlift.reporting.language_curves import (
    component_chart,
    group_mean,
    probe_chart,
    similarity_chart,
    spaced,
    specificity_chart,
)
from glotlift.reporting.read import read_run
from glotlift.reporting.read_frames import RANDOM
from glotlift.reporting.theme import to_svg
from glotlift.runs import write_parquet

CODES = ("en", "de", "zh", "sw", "th")
GROUPS = {"Tuned on": ["zh", "de"], "Pivot": ["en"], "Never tuned on": ["sw", "th"]}
LAYERS = range(4)
VARIANTS = ("base", "tuned", "difference")


def similarity() -> pd.DataFrame:
    pairs = [(b, a) if a == "en" else (a, b) for a, b in combinations(CODES, 2)]
    measures = ("pc1_r", "cka", "mexa", "mexa_centred", "retrieval", "retrieval_centred")
    rows = [
        {"variant": variant, "layer": layer, "measure": measure, "language": code, "other": other,
         "value": 0.1 * layer + 0.05 * CODES.index(code) + 0.02 * (variant == "tuned") + (other != "en") * 5}
        for variant, layer, measure, (code, other) in product(VARIANTS, LAYERS, measures, pairs)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame = frame.assign(low=frame["value"] - 0.1, high=frame["value"] + 0.2, n=9, null_low=-0.05, null_high=0.05)
    return frame.assign(p_permutation=0.5)


def probe() -> pd.DataFrame:
    rows = [
        {"variant": variant, "layer": layer, "language": code, "n": 9, "value": 0.9 - 0.1 * layer, "low": 0.2,
         "high": 1.0, "chance": 0.2}
        for variant, layer, code in product(VARIANTS, LAYERS, ("all", *CODES))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def components() -> pd.DataFrame:
    """As `RunFiles.components`: no token begins a Swahili word alone."""
    rows = [
        {"variant": variant, "layer": layer, "language": code, "component": component, "measure": measure,
         "mean": 9.0 if measure == "entropy_bits" else 0.0 if (code, measure) == ("sw", "own_mass") else 0.01 * layer}
        for variant, layer, code, component, measure in product(
            ("base", "tuned"), (1, 2, 3), CODES, ("attention", "before_mlp", "mlp"),
            ("english_mass", "own_mass", "shared_mass", "entropy_bits"),
        )
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["mean"] - 0.001, high=frame["mean"] + 0.002)


def sources(chart) -> list[pd.DataFrame]:
    return [pd.DataFrame(rows) for rows in chart.to_dict()["datasets"].values()]


def lines(chart) -> pd.DataFrame:
    """The rows of the thin lines of all panels."""
    return pd.concat(frame for frame in sources(chart) if {"language", "layer"} <= set(frame)).drop_duplicates()


def means(chart) -> pd.DataFrame:
    """The rows of the thick lines of all panels."""
    return pd.concat(frame for frame in sources(chart) if "language" not in frame and "value" in frame)


def test_only_pairs_with_the_pivot_of_base_and_tuned_are_drawn(make_run):
    frame = as_read(make_run(), similarity())
    chart = similarity_chart(frame, "sentiment", "mexa", GROUPS)
    drawn = lines(chart)
    assert set(drawn["other"]) == {"en"} and set(drawn["variant"]) == {"base", "tuned"}
    assert set(drawn["measure"]) == {"mexa", "mexa_centred"}
    assert len(drawn) == 2 * 4 * 2 * 4
    titles = [panel["title"] for row in chart.to_dict()["vconcat"] for panel in row["hconcat"]]
    assert [(title["text"], title["subtitle"]) for title in titles] == [
        ("Tuned on", "raw, 2 languages"),
        ("Never tuned on", "raw, 2 languages"),
        ("Tuned on", "each language's mean taken out, 2 languages"),
        ("Never tuned on", "each language's mean taken out, 2 languages"),
    ]
    to_svg(chart)


def as_read(path, frame: pd.DataFrame) -> pd.DataFrame:
    (path / "geometry" / "sentiment").mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path / "geometry" / "sentiment" / "similarity.parquet")
    return read_run(path).similarity["sentiment"]


def test_the_thick_line_is_the_mean_of_the_group_and_of_the_ends_of_its_intervals(make_run):
    chart = similarity_chart(as_read(make_run(), similarity()), "sentiment", "cka", GROUPS)
    found = means(chart).set_index(["variant", "layer"]).sort_index()
    unseen = found.loc[("tuned", 2)].sort_values("value").iloc[-1]
    expected = 0.2 + 0.05 * np.mean([3, 4]) + 0.02
    assert unseen[["value", "low", "high"]].tolist() == pytest.approx([expected, expected - 0.1, expected + 0.2])
    seen = found.loc[("base", 2)].sort_values("value").iloc[0]
    assert seen["value"] == pytest.approx(0.2 + 0.05 * np.mean([1, 2]))


def test_a_mean_is_of_the_same_languages_on_every_layer():
    frame = probe().query("variant == 'base' and not (language == 'th' and layer == 1)")
    found = group_mean(frame, ["sw", "th", "xx"]).set_index("layer")
    assert found["value"].isna().tolist() == [False, True, False, False]
    assert found.loc[2, "value"] == pytest.approx(0.7)


def test_the_scale_holds_lines_and_bands(make_run):
    chart = similarity_chart(as_read(make_run(), similarity()), "sentiment", "cka", GROUPS).to_dict()
    layers = chart["vconcat"][0]["hconcat"][0]["layer"]
    low, high = layers[0]["encoding"]["y"]["scale"]["domain"]
    assert -0.2 < low <= 0.05 - 0.1 and 0.3 + 0.05 * 3.5 + 0.02 + 0.2 <= high < 1


def test_a_probe_shows_every_language_the_pivot_too_and_chance():
    chart = probe_chart(probe().query("variant != 'difference'"), "sentiment", GROUPS)
    assert set(lines(chart)["language"]) == set(CODES)
    assert set(means(chart)["chance"]) == {0.2}
    panels = chart.to_dict()["vconcat"][0]["hconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["Tuned on", "Pivot", "Never tuned on"]
    to_svg(chart)


def specificity() -> pd.DataFrame:
    rows = [
        {"variant": variant, "layer": layer, "measure": measure, "language": code, "n": 9, "pivot": 0.5,
         "wrong_language": 0.4, "value": 0.1 * layer - 0.2 + 0.05 * (variant == "tuned"), "low": -0.3, "high": 0.4}
        for variant, layer, measure, code in product(
            VARIANTS, LAYERS, ("pc1_r", "cka", "mexa", "mexa_centred", "retrieval_centred"), CODES[1:]
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_specificity_shows_the_excess_over_other_languages_of_base_and_tuned(make_run):
    path = make_run(stages=("train",))
    file = path / "geometry" / "sentiment" / "specificity.parquet"
    write_parquet(file, specificity(), {"pivot": "en"})
    frame = read_run(path).specificity["sentiment"]
    chart = specificity_chart(frame, "sentiment", GROUPS)
    drawn = lines(chart)
    assert set(drawn["measure"]) == {"cka", "mexa_centred", "retrieval_centred"}
    assert set(drawn["variant"]) == {"base", "tuned"} and len(drawn) == 2 * 4 * 3 * 4
    assert means(chart)["value"].min() == pytest.approx(-0.2) and set(means(chart)["chance"]) == {0}
    rows = chart.to_dict()["vconcat"]
    assert [[panel["title"]["text"] for panel in row["hconcat"]] for row in rows] == [
        ["Tuned on", "Never tuned on"]
    ] * 3
    assert rows[0]["hconcat"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"][0] <= -0.3
    (figure,) = (figure for figure in figures(read_run(path)) if figure.section == "inside")
    assert figure.name == "specificity-sentiment" and "have come to English" in figure.caption


def test_without_groups_there_is_one_panel_of_all_languages():
    (panel,) = probe_chart(probe(), "sentiment", {"": list(CODES)}).to_dict()["vconcat"][0]["hconcat"]
    assert (panel["title"]["text"], panel["title"]["subtitle"]) == ("All languages", "5 languages")


def test_components_show_masses_and_leave_out_what_cannot_be_read():
    chart = component_chart(components(), "sentiment", GROUPS)
    drawn = lines(chart)
    assert set(drawn["measure"]) == {"english_mass", "own_mass"} and "en" not in set(drawn["language"])
    assert set(drawn.query("measure == 'own_mass'")["language"]) == {"de", "zh", "th"}
    rows = chart.to_dict()["vconcat"]
    assert [row["hconcat"][0]["title"]["text"] for row in rows] == [
        "Added by attention", "State between (residual)", "Added by MLP"]  # fmt: skip
    assert [panel["title"]["subtitle"] for panel in rows[0]["hconcat"]] == [
        "English words, 4 languages", "the language's own words, 3 languages"]  # fmt: skip
    domain = rows[0]["hconcat"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert 0.03 < domain[1] < 0.06
    to_svg(chart)


def test_there_is_no_chart_of_components_that_cannot_be_read():
    frame = components()
    assert (
        component_chart(frame.assign(mean=frame["mean"].where(frame["language"] == "en", 0.0)), "mood", GROUPS) is None
    )


@pytest.mark.parametrize("values", [[0.5] * 4, [0.0, 0.0, 0.01, 1.0], [1.0] * 4, [0.1, 0.5, 0.9, 1.0], [0.3]])
def test_codes_stand_in_order_apart_and_between_the_ends(values):
    found = spaced(np.array(values), 0.1, (0.05, 0.95))
    assert found.min() >= 0.05 - 1e-9 and found.max() <= 0.95 + 1e-9
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(found))
    assert np.abs(found - values).max() < 0.36


def test_equal_values_have_their_codes_around_them_and_too_many_stand_evenly():
    assert spaced(np.full(3, 0.5), 0.1, (0.0, 1.0)) == pytest.approx([0.4, 0.5, 0.6])
    assert spaced(np.full(5, 0.9), 0.5, (0.0, 1.0)) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert len(spaced(np.array([]), 0.1, (0.0, 1.0))) == 0


def raw_components(path) -> None:
    for variant, code in product(("base", "tuned"), CODES):
        grid = pd.DataFrame(product(["i0", "i1"], (1, 2), ("attention", "before_mlp", "mlp")))
        frame = grid.set_axis(["id", "layer", "component"], axis=1).assign(own_mass=0.1, shared_mass=0.0)
        frame["english_mass"] = 0.1 * frame["layer"] + 0.2 * (frame["component"] == "mlp") + 0.1 * (frame["id"] == "i1")
        file = path / "components" / variant / "sentiment" / f"{code}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        frame.assign(entropy_bits=1.0).to_parquet(file)


def test_component_files_are_averaged_a_component(make_run):
    path = make_run()
    raw_components(path)
    frame = read_run(path).components["sentiment"]
    here = frame.query("variant == 'base' and language == 'th' and measure == 'english_mass' and layer == 2")
    assert dict(zip(here["component"], here["mean"], strict=True)) == pytest.approx(
        {"attention": 0.25, "before_mlp": 0.25, "mlp": 0.45}
    )


def test_a_report_and_an_explanation_have_them_where_there_are_the_files(make_run):
    path = make_run(stages=("train",))
    raw_components(path)
    geometry = path / "geometry" / "sentiment"
    geometry.mkdir(parents=True)
    similarity().to_parquet(geometry / "similarity.parquet")
    probe().to_parquet(geometry / "probe.parquet")
    shown = [figure.name for figure in figures(read_run(path)) if figure.section == "inside"]
    expected = [f"{name}-sentiment" for name in ("cka", "mexa", "retrieval", "probe", "components")]
    assert shown == expected
    similarity().query("measure == 'mexa'").to_parquet(geometry / "similarity.parquet")  # nothing of the others
    (path / "adapter").rename(path.parent / "elsewhere")
    assert "Tuned on" not in next(figures(read_run(path))).svg
    write_explanation(path, path.parent / "elsewhere")
    assert {file.name for file in (path / "figures").iterdir()} == {
        f"{name}-sentiment{suffix}" for name in ("mexa", "probe", "components") for suffix in (".svg", ".png", ".pdf")
    }
    assert "Tuned on" in (path / "figures" / "mexa-sentiment.svg").read_text(encoding="utf-8")


def test_a_random_adapter_is_drawn_beneath_what_it_is_the_control_of():
    frame = similarity().query("variant != 'difference'")
    frame = pd.concat([frame, frame.query("variant == 'tuned'").assign(variant=RANDOM)]).assign(pivot="en")
    chart = similarity_chart(frame, "mood", "retrieval", GROUPS).to_dict()
    for panel in (panel for row in chart["vconcat"] for panel in row["hconcat"]):
        for layer in panel["layer"][:2]:
            rows = chart["datasets"][layer["data"]["name"]]
            assert list(dict.fromkeys(row["variant"] for row in rows)) == [RANDOM, "base", "tuned"]
