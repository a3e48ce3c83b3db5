from __future__ import annotations

import copy

import numpy as np
import pytest

from glotlift.reporting.across import Grid, grids, members, spreads


def test_a_grid_is_that_of_the_scores_in_the_order_of_the_report(many):
    (grid,) = grids(many["glotlift"])
    assert (grid.name, grid.prompts, grid.answers) == ("nli", ["en", "zh", "de", "sw"], ["en", "zh", "de", "sw"])
    assert grid.test_sets == {code: [f"nli.in-{code}"] for code in ("en", "de", "sw", "zh")}
    assert set(grid.cells) == {"base", "tuned"}
    assert (
        grid.cells["tuned"]["sw"]["de"]
        == many["glotlift"]["tasks"]["nli.in-de"]["languages"]["sw"]["tuned"]["accuracy"]
    )


def test_the_sentence_of_a_grid_sets_same_against_other_languages():
    grid = Grid(
        "mood", ["en", "de"], ["en", "de"], {"base": {"en": {"en": 0.9, "de": 0.5}, "de": {"en": 0.7, "de": 0.8}}}
    )
    assert "85.0% and 60.0% (base, 2 and 2 cells)" in grid.sentence
    assert Grid("mood", ["sw"], ["en", "de"], {"base": {"sw": {"en": 0.9, "de": 0.5}}}).sentence == ""


def test_one_answer_language_is_no_grid(many):
    scores = copy.deepcopy(many["glotlift"])
    for variant in ("base", "tuned"):
        for row in scores["answer_language_grid"]["nli"][variant].values():
            for code in ("en", "zh", "sw"):
                del row[code]
    assert grids(scores) == []
    assert members(scores) == {"para.seed0", "para.seed1", "para.seed2"}


def test_a_spread_has_the_draws_behind_its_numbers(many):
    (spread,) = spreads(many["glotlift"])
    assert spread.name == "para.own" and spread.languages == ["en", "zh", "de", "sw"]
    for variant, rows in spread.summaries.items():
        for code, row in rows.items():
            draws = spread.draws[variant][code]
            assert len(draws) == 3
            assert (row["mean"], row["sd"]) == pytest.approx((np.mean(draws), np.std(draws, ddof=1)))
            assert (row["min"], row["max"]) == (min(draws), max(draws))


def test_the_sentence_of_a_spread_says_how_base_and_tuned_differ_draw_by_draw(many):
    scores = copy.deepcopy(many["glotlift"])
    for key, (base, tuned) in zip(
        ("para.seed0", "para.seed1", "para.seed2"), [(0.5, 0.6), (0.5, 0.7), (0.6, 0.5)], strict=True
    ):
        scores["tasks"][key]["means"]["base"]["accuracy"] = base
        scores["tasks"][key]["means"]["tuned"]["accuracy"] = tuned
    (spread,) = spreads(scores)
    assert "Tuned less base, draw by draw: +6.7 ± 15.3 points, above zero in 2 of 3." in spread.sentence
    del scores["tasks"]["para.seed1"]
    (spread,) = spreads(scores)
    assert spread.draws == {} and "draw by draw" not in spread.sentence and "Over 3 draws" in spread.sentence


def test_members_are_what_grids_and_spreads_show(many):
    keys = set(many["glotlift"]["tasks"])
    assert members(many["glotlift"]) == keys - {"mood.own", "mood.arbitrary"}
    alone = copy.deepcopy(many["glotlift"])  # a test set in another language's words that no grid shows
    alone["tasks"]["mood.in-de"] = {**alone["tasks"]["mood.own"], "answers": "in:de"}
    assert members(alone) == members(many["glotlift"])
    assert members({}) == set() and grids({}) == spreads({}) == []
