from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from glotlift.errors import TaskError
from glotlift.evaluation.compare import FEWEST_ITEMS, Change
from glotlift.reporting import table as table_module
from glotlift.reporting.table import (
    area,
    build_table,
    change_cell,
    change_interval,
    is_clear,
    markdown_rows,
    p_value,
    percent,
    points,
    rollup_table,
    signed,
)
from glotlift.reporting.terminal import result_table
from tests.reporting.conftest import as_in_0_1, make_scores, predictions


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
        for measure in ("calibrated", "contextual"):
            both = " → ".join(f"{s[f'accuracy_{measure}'] * 100:.1f}" for s in (base, tuned))
            moved = entry["changes"][measure]
            assert cells[measure][0] == both
            assert cells[measure][1].startswith(f"[{points(moved['low'])}, {points(moved['high'])}]")
            assert cells[measure][1].endswith(" *") == (moved["p_holm"] < 0.05)
        assert cells["ece"][0] == f"{base['ece']:.2f} → {tuned['ece']:.2f}"
        moved = entry["changes"]["ece"]
        assert cells["ece"][1].startswith(f"[{signed(moved['low'])}, {signed(moved['high'])}]")
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
            shown = cell.text.partition(" (")[0] if key == "language" else cell.text.replace(" → ", "→")
            assert shown in terminal or key == "script"
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
        languages[code]["changes"]["raw"] |= {"low": low, "high": high}
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
    assert "left out at this width: ECE, contextual, AUROC, Holm p" in text
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())


def test_an_unknown_test_set_is_an_error(make_run):
    with pytest.raises(TaskError, match="no test set 'nli', expected 'sentiment'"):
        result_table(load(make_run(stages=("scores",))), "nli")


def test_the_card_has_no_room_for_intervals_of_lesser_measures_but_in_the_means(make_run):
    table = build_table(load(make_run(stages=("scores",))), "sentiment")
    column = [column.key for column in table.columns].index("calibrated")
    cells = [row[column] for row in markdown_rows(table)[1:]]
    assert ["[" in cell for cell in cells] == [False] * 4 + [True] * 3


def test_means_over_all_languages_have_the_interval_of_the_scores(many):
    task = many["glotlift"]["tasks"]["mood.own"]
    row = build_table(many, "mood.own").summary[0]
    for variant in ("base", "tuned"):
        mean = task["means"][variant]
        assert row.cells[variant].text == percent(mean["accuracy"])
        assert row.cells[variant].detail == f"[{percent(mean['low'])}, {percent(mean['high'])}]"
    assert row.cells["ece"].text == f"{task['means']['base']['ece']:.2f} → {task['means']['tuned']['ece']:.2f}"
    moved = task["ece_groups"]["all"]
    assert row.cells["ece"].detail == f"[{signed(moved['low'])}, {signed(moved['high'])}]"


@pytest.mark.parametrize("tuned", [True, False])
def test_scores_of_0_1_have_a_table_without_the_new_columns(make_run, tuned):
    scores = load(make_run(stages=("scores",), tuned=tuned))
    old = build_table(as_in_0_1(scores), "sentiment")
    assert not {"contextual", "ece", "raw"} & {column.key for column in old.columns}
    assert {"calibrated", "auroc"} <= {column.key for column in old.columns}
    new = build_table(scores, "sentiment")
    for before, after in zip(old.groups.values(), new.groups.values(), strict=True):
        for row, other in zip(before, after, strict=True):
            assert row.cells["base"] == other.cells["base"]
            assert row.cells.get("change") == other.cells.get("change")
    assert [row.cells.get("change") for row in old.summary] == [row.cells.get("change") for row in new.summary]
    assert rollup_table(as_in_0_1(scores)["glotlift"]["tasks"]["sentiment"], ["base"]) is None
    assert "⚠" in printed(as_in_0_1(scores))


def test_contextual_accuracy_has_a_column_only_where_it_is_known():
    options = {"labels": ("a", "b"), "languages": ("en", "de"), "variants": ("base",), "n": 12}
    without = make_scores([predictions("x", **options, contextual=False)])
    assert "contextual" not in [column.key for column in build_table(without, "x").columns]
    one = predictions("x", **options)
    one.content_free["base"]["de"] = None  # type: ignore[index]
    table = build_table(make_scores([one]), "x")
    cells = [row.cells["contextual"].text for row in (*table.groups[""], *table.summary)]
    assert [text == "–" for text in cells] == [False, True, True]


@pytest.mark.parametrize("calibration, measure", [("batch", "calibrated"), ("contextual", "contextual")])
def test_the_change_is_that_of_the_accuracy_the_file_decides(calibration, measure):
    options = {"labels": ("a", "b"), "languages": ("en", "de"), "variants": ("base", "tuned"), "n": 40}
    scores = make_scores([predictions("x", **options, calibration=calibration)])
    task = scores["glotlift"]["tasks"]["x"]
    table = build_table(scores, "x")
    assert f", {calibration} calibration, " in table.title
    keys = [column.key for column in table.columns]
    assert "raw" in keys and measure not in keys
    for row, code in zip(table.groups[""], ("en", "de"), strict=True):
        entry = task["languages"][code]
        gain = entry["tuned"]["accuracy"] - entry["base"]["accuracy"]
        assert row.cells["change"].text == points(gain) == points(entry["changes"][measure]["change"])
        assert row.cells["raw"].text.split(" → ")[0] == percent(entry["base"]["accuracy_raw"])
    assert points(entry["changes"]["raw"]["change"]) != points(gain) or code == "de"
    whole = task[f"{measure}_groups"]["all"]
    assert table.summary[0].cells["change"].text == points(whole["change"]) == points(task["groups"]["all"]["change"])
    before = task["raw_groups"]["all"]
    assert table.summary[0].cells["raw"].text == f"{percent(before['a'])} → {percent(before['b'])}"


def test_rollups_are_those_of_the_scores(many):
    task = many["glotlift"]["tasks"]["mood.own"]
    table = rollup_table(task, ["base", "tuned"])
    assert table is not None
    assert list(table.groups) == ["Family", "Script", "Resource class"]
    for kind, rows in zip(("family", "script", "resource"), table.groups.values(), strict=True):
        for row, (name, entry) in zip(rows, task["rollups"][kind].items(), strict=True):
            assert row.cells["group"].text == name and row.cells["n"].text == str(len(entry["languages"]))
            assert row.cells["change"] == change_cell(entry["change"])
            assert row.cells["tuned"].text == percent(entry["tuned"]["accuracy"])
    assert table.groups["Family"][1].cells["group"].detail == "English, German"


def test_a_roll_up_of_one_group_says_nothing():
    options = {"labels": ("a", "b"), "variants": ("base",), "n": 12}
    task = make_scores([predictions("x", languages=("en", "de"), **options)])["glotlift"]["tasks"]["x"]
    assert rollup_table(task, ["base"]) is None  # one family, one script, one class
    task = make_scores([predictions("x", languages=("en", "fr"), **options)])["glotlift"]["tasks"]["x"]
    table = rollup_table(task, ["base"])
    assert table is not None and list(table.groups) == ["Family"]
    assert [column.key for column in table.columns] == ["group", "n", "base"]


def test_clear_means_what_it_means_in_the_evaluation():
    assert table_module.FEWEST_ITEMS == FEWEST_ITEMS
    for n, low, high in [(5, 0.1, 0.2), (6, 0.1, 0.2), (6, -0.2, -0.1), (60, -0.1, 0.1), (60, 0.0, 0.1)]:
        change = Change("x", n, 0.5, 0.6, 0.1, low, high)
        assert is_clear(vars(change)) == change.is_clear
        assert bool(change_cell(vars(change)).tone) == change.is_clear


def test_numbers_as_text():
    assert [points(x) for x in (0.0312, -0.0312, -0.0004, 0.0)] == ["+3.1", "−3.1", "0.0", "0.0"]
    assert [signed(x) for x in (0.031, -0.031, -0.004, 0.0)] == ["+0.03", "−0.03", "0.00", "0.00"]
    assert [p_value(p) for p in (None, 0.0004, 0.0312, 1.0)] == ["–", "<0.001", "0.031", "1.000"]
    assert (percent(0.613), area(None), area(0.654)) == ("61.3", "–", "0.65")


def test_the_interval_of_a_change_of_no_item_says_so():
    still = {"change": 0.0, "low": -0.109, "high": 0.109, "moved": False}
    assert change_interval(still) == "[no item moved]"
    assert change_interval(still | {"moved": True}) == "[−10.9, +10.9]"
    assert change_interval(still | {"moved": True}, "{:.2f}".format) == "[-0.11, 0.11]"
