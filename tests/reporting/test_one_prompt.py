from __future__ import annotations

import io

import pandas as pd
from rich.console import Console

from glotlift.reporting.one_prompt import grids, lens_grids, training_tables, visible, write_lens_page

FRAME = pd.DataFrame(
    {
        "layer": [0, 1, 0, 1],
        "position": [7, 7, 8, 8],
        "token": [" is", " is", "<b>", "<b>"],
        "base_token": ["[red]", " a", "\n", "⟨E0⟩"],
        "base_probability": [0.25, 0.5, 1.0, 0.01],
        "tuned_token": ["[red]", " b", "\n", "x"],
        "tuned_probability": [0.5, 0.75, 1.0, 0.9],
        "change": [0.25, -0.125, 0.0, 0.875],
    }
)


def printed(tables) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_layers_stand_from_the_last_to_the_first_and_tokens_in_order():
    base, tuned, difference = grids(FRAME)
    assert (base.title, tuned.title, difference.title) == ("base", "tuned", "difference")
    assert base.tokens == ["␣is", "<b>"]
    assert [layer for layer, _ in base.rows] == [1, 0]
    assert [cell.text for cell in base.rows[0][1]] == ["␣a", "⟨E0⟩"]
    assert [cell.shown for cell in tuned.rows[1][1]] == ["0.50", "1.00"]
    assert [cell.shown for cell in difference.rows[0][1]] == ["-0.12", "+0.88"]
    assert [cell.is_new for cell in difference.rows[0][1]] == [True, True]
    assert [cell.is_new for cell in difference.rows[1][1]] == [False, False]
    assert len(list(grids(FRAME[["layer", "position", "token", "base_token", "base_probability"]]))) == 1


def test_blanks_and_line_breaks_can_be_seen():
    assert [visible(text) for text in (" a b ", "\n", "  ", "x")] == ["␣a b␣", "⏎", "␣␣", "x"]


def test_the_terminal_shows_tokens_as_they_are():
    text = printed(lens_grids(FRAME))
    assert "[red] 0.25" in text and "␣b * -0.12" in text and text.index("base") < text.index("difference")


def test_the_page_escapes_tokens_and_fetches_nothing(tmp_path):
    page = tmp_path / "lens.html"
    write_lens_page(page, FRAME, "<script>alert(1)</script>", "m", "a")
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;b&gt;" in text and "http" not in text
    assert text.count("<table") == 3 and "⟨E0⟩" in text and "+0.88" in text


def test_the_table_of_training_shows_both_lenses():
    frame = pd.DataFrame({"layer": [0, 1], "kl_bits_plain": [9.0, 2.0], "kl_bits_tuned": [3.25, 1.0], "n": [5, 5]})
    text = printed(training_tables(frame))
    assert "mean of 5 held-out positions" in text and "3.25" in text
