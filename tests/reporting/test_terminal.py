from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from glotlift.languages import LANGUAGES
from glotlift.reporting.across import Grid, grids, spreads
from glotlift.reporting.table import percent
from glotlift.reporting.terminal import grid_table, result_table, rollups, spread_table
from tests.reporting.conftest import make_scores, predictions


def printed(what, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


def test_base_and_tuned_fit_into_about_150_columns_with_all_measures():
    sets = [predictions("paraphrase.own", ("yes", "no"), list(LANGUAGES), ("base", "tuned"), 400)]
    text = printed(result_table(make_scores(sets, seen=["zh", "de"]), "paraphrase.own"), 1000)
    header = text.splitlines()[1]
    assert all(name in header for name in ("contextual", "calibrated", "AUROC", "ECE", "Holm p", "predicted"))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 152


def columns_left(text: str) -> list[str]:
    names = ("Holm p", "calibrated", "contextual", "AUROC", "ECE", "predicted")
    header = text.split("left out")[0]
    return [name for name in names if name in header]


def test_a_narrower_terminal_loses_the_least_important_columns_first(many):
    widths = (200, 140, 130, 120, 110, 80)
    texts = [printed(result_table(many, "mood.own"), width) for width in widths]
    left = [columns_left(text) for text in texts]
    assert left[0] == ["Holm p", "calibrated", "contextual", "AUROC", "ECE", "predicted"] and "left out" not in texts[0]
    assert all(set(after) <= set(before) for before, after in zip(left, left[1:], strict=False))
    assert left[-1] == ["calibrated", "predicted"]
    for text, names in zip(texts, left, strict=True):
        lost = [name for name in ("ECE", "contextual", "AUROC", "Holm p") if name not in names]
        assert (f"left out at this width: {', '.join(lost)}\n" in text) == bool(lost)
    first = next(names for names in left if len(names) < 6)
    assert "ECE" not in first and "AUROC" in first


def test_intervals_stand_below_their_numbers_before_they_are_broken(many):
    lines = printed(result_table(many, "mood.own"), 100).splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith("German"))
    score = many["glotlift"]["tasks"]["mood.own"]["languages"]["de"]["base"]
    assert percent(score["accuracy"]) in lines[first] and "[" not in lines[first]
    assert f"[{percent(score['low'])}, {percent(score['high'])}]" in lines[first + 1]


@pytest.mark.parametrize("width", range(40, 120, 7))
def test_the_title_is_never_cut_within_a_number(many, width):
    text = printed(result_table(many, "mood.own"), width)
    title = text.split("language")[0]
    assert re.search(r"chance\s+50\.0%", title), title


def test_a_table_narrower_than_its_title_does_not_fold_it(many):
    scores = make_scores([predictions("x", ("a", "b"), ("en",), ("base",), 12)])
    assert printed(result_table(scores, "x"), 100).splitlines()[0].rstrip() == "x: a / b, own answers, chance 50.0%"


def test_grid_has_prompts_in_rows_and_answers_in_columns(many):
    (grid,) = grids(many["glotlift"])
    text = printed(grid_table(grid))
    base, tuned = text.split("nli, tuned")
    assert "nli, base: accuracy in %" in base
    for part, variant in ((base, "base"), (tuned, "tuned")):
        rows = {line.split()[0]: line.split()[2:] for line in part.splitlines() if "(" in line and "nli" not in line}
        assert list(rows) == ["English", "Chinese", "German", "Swahili"]
        for name, code in zip(rows, ("en", "zh", "de", "sw"), strict=True):
            row = grid.cells[variant][code]
            mean = sum(row.values()) / 4
            assert rows[name] == [percent(value) for value in (*(row[a] for a in grid.answers), mean)]


def test_a_wide_grid_is_broken_into_blocks_and_no_number_is_cut():
    codes = list(LANGUAGES)
    cells = {p: {a: (10 * i + j) / 1000 for j, a in enumerate(codes)} for i, p in enumerate(codes)}
    del cells["sw"]["de"]
    text = printed(grid_table(Grid("x", codes, codes, {"base": cells})), 80)
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    numbers = re.findall(r"\d+\.\d", text)
    assert len(numbers) == 20 * 20 - 1 + 20 and "–" in text
    assert text.count("English (en)") == text.count("prompt") == 3


def test_spread_has_mean_deviation_and_range(many):
    (spread,) = spreads(many["glotlift"])
    text = printed(spread_table(spread))
    assert "para.own: accuracy in % over 3 draws of demonstrations" in text
    for code, name in (("sw", "Swahili"), ("", "Mean over languages")):
        (line,) = (line for line in text.splitlines() if line.startswith(name))
        for variant in ("base", "tuned"):
            row = spread.summaries[variant][code]
            assert f"{percent(row['mean'])} ± {percent(row['sd'])}" in line
            assert f"{percent(row['min'])} to {percent(row['max'])}" in line


def test_names_are_text_and_not_markup(many):
    (grid,), (spread,) = grids(many["glotlift"]), spreads(many["glotlift"])
    for table, named in ((grid_table, grid), (spread_table, spread)):
        object.__setattr__(named, "name", "[bold]x[/bold]")
        assert "[bold]x[/bold]" in printed(table(named))


def test_variants_have_the_names_that_the_scores_give_them(many):
    named = {"glotlift": {**many["glotlift"], "names": {"base": "A", "tuned": "B"}}}
    key = next(iter(many["glotlift"]["tasks"]))
    header = next(line for line in printed(result_table(named, key)).splitlines() if "accuracy" in line)
    assert "A accuracy" in header
    assert "B accuracy" in header
    text = printed(rollups(named, key))
    assert "B accuracy" in text
    assert "Germanic" in text
