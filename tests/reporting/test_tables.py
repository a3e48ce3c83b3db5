"""Tables as files: the numbers of scores.json in CSV, the report's cells in Markdown and LaTeX."""

import csv
import io
import json
import re

import pytest

from glotlift.reporting.table import build_table, markdown_rows
from glotlift.reporting.tables import csv_text, escape_latex, latex_text, markdown_text, write_tables


@pytest.fixture
def scores(make_run):
    return json.loads((make_run() / "scores.json").read_text())


def test_csv_holds_the_numbers_of_the_scores_in_full(scores):
    rows = {row["language"]: row for row in csv.DictReader(io.StringIO(csv_text(scores)))}
    task = scores["glotlift"]["tasks"]["sentiment"]
    assert set(rows) == {*task["languages"], "mean", "mean of seen", "mean of unseen"}
    for code, entry in task["languages"].items():
        row = rows[code]
        assert int(row["n"]) == entry["base"]["n"]
        assert float(row["tuned_accuracy"]) == entry["tuned"]["accuracy"]
        assert float(row["base_auroc"]) == entry["base"]["auroc"]
        assert float(row["change"]) == entry["changes"]["raw"]["change"]
        assert float(row["change_high"]) == entry["changes"]["raw"]["high"]
        assert float(row["p_mcnemar"]) == entry["changes"]["raw"]["p"]
        assert float(row["auroc_change"]) == entry["changes"]["auroc"]["change"]
    assert float(rows["mean"]["tuned_accuracy"]) == task["means"]["tuned"]["accuracy"]
    assert float(rows["mean of unseen"]["calibrated_change"]) == task["calibrated_groups"]["unseen"]["change"]


def test_markdown_and_latex_have_the_cells_of_the_report(scores):
    table = build_table(scores, "sentiment")
    cells = markdown_rows(table)
    lines = [line for line in markdown_text(table).splitlines() if line.startswith("|")]
    assert len(lines) == len(cells) + 1
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(table.columns) + 1 for line in lines)
    body = [line for line in latex_text(table).splitlines() if line.endswith(r"\\")]
    assert len(body) == len(cells)
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1 for line in body)
    assert "German" in body[1] or "Chinese" in body[1]


def test_hostile_names_stay_text(scores):
    task = scores["glotlift"]["tasks"].pop("sentiment")
    key = "a|b & 50%_{x}\\input{y}\n#1"
    scores["glotlift"]["tasks"][key] = task
    assert next(csv.DictReader(io.StringIO(csv_text(scores), newline="")))["test_set"] == key
    tex = latex_text(build_table(scores, key))
    assert tex.splitlines()[0].startswith("% a|b") and tex.splitlines()[1].startswith("\\begin{tabular}")
    assert escape_latex(key) == r"a|b \& 50\%\_\{x\}\textbackslash{}input\{y\} \#1"


def test_files_of_every_test_set(make_run, tmp_path):
    scores = json.loads((make_run(tasks=("sentiment", "nli")) / "scores.json").read_text())
    written = write_tables(tmp_path / "tables", scores)
    assert sorted(path.name for path in written) == [
        "nli.md",
        "nli.tex",
        "results.csv",
        "sentiment.md",
        "sentiment.tex",
    ]


def test_a_base_model_alone_has_no_change(make_run):
    scores = json.loads((make_run(tuned=False) / "scores.json").read_text())
    head = csv_text(scores).splitlines()[0].split(",")
    assert "base_accuracy" in head and "change" not in head and "tuned_accuracy" not in head


def test_lens_means_without_spread_have_no_band(make_run):
    import pandas as pd

    from glotlift.explanation.lens import MEASURES
    from glotlift.reporting.read_frames import mean_over_items

    same = pd.DataFrame({"layer": [0, 0, 1, 1], **{name: [0.5, 0.5, 0.1, 0.3] for name in MEASURES}})
    means = mean_over_items(same).set_index(["measure", "layer"])
    assert means.loc[(MEASURES[0], 0)][["low", "high"]].isna().all()
    assert means.loc[(MEASURES[0], 1), "low"] < 0.2 < means.loc[(MEASURES[0], 1), "high"]
