from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from glotlift.errors import TaskError
from glotlift.reporting.table import area, build_table, markdown_rows, p_value, percent, points, result_table


def load(run: Path) -> dict:
    return json.loads((run / "scores.json").read_text(encoding="utf-8"))


def printed(scores: dict, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(result_table(scores, "sentiment"))
    return console.export_text()


def test_numbers_are_those_of_the_scores(make_run):
    scores = load(make_run(stages=("scores",)))
    task = scores["glotlift"]["tasks"]["sentiment"]
    table = build_table(scores, "sentiment")
    rows = {row.language.code: row for group in table.groups.values() for row in group if row.language}
    assert set(rows) == set(task["languages"])
    for code, entry in task["languages"].items():
        base, tuned, change = entry["base"], entry["tuned"], entry["change"]
        cells = {key: (cell.text, cell.detail) for key, cell in rows[code].cells.items()}
        assert cells["n"][0] == str(base["n"])
        for variant, score in (("base", base), ("tuned", tuned)):
            interval = f"[{score['low'] * 100:.1f}, {score['high'] * 100:.1f}]"
            assert cells[variant] == (f"{score['accuracy'] * 100:.1f}", interval)
        assert cells["change"][0] == points(change["change"])
        assert cells["change"][1] == f"[{points(change['low'])}, {points(change['high'])}]"
        assert cells["p"][0] == p_value(change["p_holm"])
        assert cells["calibrated"][0] == " → ".join(f"{s['accuracy_calibrated'] * 100:.1f}" for s in (base, tuned))
        assert cells["auroc"][0] == f"{base['auroc']:.2f} → {tuned['auroc']:.2f}"
        assert cells["predicted"][0] == " → ".join("/".join(map(str, s["predicted"].values())) for s in (base, tuned))
        assert sum(rows[code].balance["base"].values()) == pytest.approx(1)


def test_every_form_shows_the_same_cells(make_run):
    run = make_run(stages=("scores",))
    scores = load(run)
    table = build_table(scores, "sentiment")
    terminal = printed(scores)
    markdown = "\n".join(" | ".join(row) for row in markdown_rows(table))
    for row in (*(row for group in table.groups.values() for row in group), *table.summary):
        for key, cell in row.cells.items():
            assert cell.text in markdown
            assert cell.text in terminal or key == "script"
    assert [len(row) for row in markdown_rows(table)] == [len(table.columns)] * (1 + 4 + 3)


def test_order_is_tuned_on_pivot_never_tuned_on(make_run):
    table = build_table(load(make_run(stages=("scores",), languages=("sw", "en", "de", "zh", "fr"))), "sentiment")
    codes = {title: [row.language.code for row in rows if row.language] for title, rows in table.groups.items()}
    assert codes == {"Tuned on": ["zh", "de"], "Pivot": ["en"], "Never tuned on": ["fr", "sw"]}
    assert [row.cells["language"].text for row in table.summary] == ["All (5)", "Tuned on (2)", "Never tuned on (2)"]


def test_without_a_tuned_model_there_are_no_groups_and_no_change(make_run):
    table = build_table(load(make_run(stages=("scores",), tuned=False)), "sentiment")
    assert list(table.groups) == [""]
    assert not {"tuned", "change", "p"} & {column.key for column in table.columns}
    assert [row.cells["language"].text for row in table.summary] == ["Mean over languages"]


def test_tone_says_up_or_down_only_where_the_interval_leaves_out_zero(make_run):
    scores = load(make_run(stages=("scores",)))
    languages = scores["glotlift"]["tasks"]["sentiment"]["languages"]
    for code, low, high in (("zh", 0.01, 0.1), ("de", -0.1, -0.01), ("en", -0.01, 0.1), ("sw", 0.0, 0.1)):
        languages[code]["change"] |= {"low": low, "high": high}
    table = build_table(scores, "sentiment")
    rows = {row.language.code: row for group in table.groups.values() for row in group if row.language}
    assert {code: row.cells["change"].tone for code, row in rows.items()} == {
        "zh": "up",
        "de": "down",
        "en": "",
        "sw": "",
    }


def test_collapse_is_marked(make_run):
    scores = load(make_run(stages=("scores",), languages=("sw",)))
    entry = scores["glotlift"]["tasks"]["sentiment"]["languages"]["sw"]
    entry["base"] |= {"n": 400, "predicted": {"positive": 400}}
    entry["tuned"] |= {"n": 400, "predicted": {"positive": 20, "negative": 380}}
    (row,) = build_table(scores, "sentiment").groups["Never tuned on"]
    assert row.collapsed == {"base": "all positive", "tuned": "95.0 % negative"}
    assert row.cells["predicted"].text == "400/0 → 20/380"
    assert row.cells["predicted"].detail == "base: all positive; tuned: 95.0 % negative"
    assert "⚠" in printed(scores)
    entry["tuned"]["predicted"] = {"positive": 21, "negative": 379}
    (row,) = build_table(scores, "sentiment").groups["Never tuned on"]
    assert row.collapsed == {"base": "all positive"}


def test_labels_are_text_and_not_markup(make_run):
    assert "[bold]x[/bold]" in printed(load(make_run(stages=("scores",), labels=("[bold]x[/bold]", "y"))))


def test_a_narrow_terminal_cuts_no_number(make_run):
    scores = load(make_run(stages=("scores",), languages=("en", "de", "no", "zh")))
    text = printed(scores, width=80)
    for entry in scores["glotlift"]["tasks"]["sentiment"]["languages"].values():
        assert f"[{percent(entry['base']['low'])}," in text and points(entry["change"]["change"]) in text
    assert "accuracy" in text and "calibrated" in text and "Norwegian" in text
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())


def test_an_unknown_test_set_is_an_error(make_run):
    with pytest.raises(TaskError, match="no test set 'nli', expected 'sentiment'"):
        result_table(load(make_run(stages=("scores",))), "nli")


def test_numbers_as_text():
    assert [points(x) for x in (0.0312, -0.0312, -0.0004, 0.0)] == ["+3.1", "−3.1", "0.0", "0.0"]
    assert [p_value(p) for p in (None, 0.0004, 0.0312, 1.0)] == ["–", "<0.001", "0.031", "1.000"]
    assert (percent(0.613), area(None), area(0.654)) == ("61.3", "–", "0.65")
