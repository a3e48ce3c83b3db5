"""Charts of patching and switch-off: what they show of a summary, and that a report has them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from glotlift.reporting.cause_charts import patching_chart, switch_off_chart
from glotlift.reporting.figures import figures
from glotlift.reporting.read import read_run


def patching():
    keys = product(
        ("base", "tuned"), ("de", "th", "all"), ("last", "question"), ("same", "other", "difference"), range(4),
        ("none", "batch"), ("repaired", "broken", "accuracy_change"),
    )  # fmt: skip
    names = ("variant", "language", "site", "source", "layer", "calibration", "measure")
    frame = pd.DataFrame(list(keys), columns=list(names)).assign(low=0.0, high=1.0, n=9)
    frame["value"] = 0.1 * frame["layer"] + 0.05 * (frame["source"] == "same") + 0.5 * (frame["language"] == "de")
    return frame


def switch_off():
    rows = [
        {"language": code, "group": group, "mode": mode, "layer": layer, "measure": measure, "value": 0.7,
         "reference": "base", "change": 0.01 * layer, "low": -0.1, "high": 0.1, "n": 9}
        for code in ("de", "all") for group in ("all", "mlp") for mode in ("without", "up_to", "from", "base")
        for layer in range(1, 4) for measure in ("auroc", "accuracy", "accuracy_calibrated")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def shown(chart):
    return pd.concat([pd.DataFrame(rows) for rows in chart.to_dict()["datasets"].values()], ignore_index=True)


def test_patching_shows_repair_and_accuracy_over_all_languages_beside_their_control():
    frame = patching()
    frame.loc[frame["measure"] == "accuracy_change", "low"] = -0.3
    drawn = patching_chart(frame, "sentiment")
    chart = shown(drawn)
    assert set(chart["language"]) == {"all"} and set(chart["measure"]) == {"repaired", "accuracy_change"}
    assert set(chart["calibration"]) == {"batch"} and len(chart["source"].unique()) == 2
    assert len(chart.drop_duplicates()) == 2 * 2 * 2 * 2 * 4
    rows = [row["hconcat"] for row in drawn.to_dict()["vconcat"]]
    domains = [{tuple(panel["layer"][0]["encoding"]["y"]["scale"]["domain"]) for panel in row} for row in rows]
    (share,), (change,), *of_tuned = domains
    assert share == (0, 1) and change[0] < -0.3 and of_tuned == [{share}, {change}]


def test_a_summary_of_repair_alone_is_drawn_as_one_row():
    alone = patching().query("measure == 'repaired' and variant == 'base'")
    assert len(patching_chart(alone, "sentiment").to_dict()["vconcat"]) == 1


def test_one_language_stands_for_itself():
    alone = patching().query("language == 'de'")
    assert set(shown(patching_chart(alone, "sentiment"))["language"]) == {"de"}


def test_switch_off_shows_changes_of_every_group_of_modules_on_one_scale():
    frame = switch_off()
    of_mlp = frame["group"] == "mlp"
    frame.loc[of_mlp, "change"] = 0.5 * frame.loc[of_mlp, "change"]
    frame.loc[of_mlp, "high"] = 0.8
    chart = switch_off_chart(frame, "sentiment")
    drawn = shown(chart)
    assert set(drawn["measure"]) == {"auroc", "accuracy_calibrated"} and set(drawn["group"]) == {"all", "mlp"}
    assert len(drawn["mode"].unique()) == 3
    assert np.allclose(drawn["value"], drawn["change"])
    rows = [row["hconcat"] for row in chart.to_dict()["vconcat"]]
    assert [[panel["title"]["subtitle"] for panel in row] for row in rows] == [["all modules"] * 2, ["MLP only"] * 2]
    assert [panel["title"]["text"] for panel in rows[0]] == ["AUROC", "Accuracy, calibrated"]
    domains = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for row in rows for panel in row]
    assert all(domain == domains[0] for domain in domains) and domains[0][1] > 0.8 and domains[0][0] < -0.1


def test_where_no_item_moved_there_is_a_hollow_point_and_no_band():
    frame = switch_off().assign(moved=True)
    still = (frame["mode"] == "from") & (frame["layer"] == 3)
    frame.loc[still, ["change", "low", "high"]] = 0.0, -0.9, 0.9
    frame["moved"] = ~still
    chart = switch_off_chart(frame, "sentiment")
    panels = [panel for row in chart.to_dict()["vconcat"] for panel in row["hconcat"]]
    assert [len(panel["layer"]) for panel in panels] == [3] * 4
    domain = panels[0]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert -0.2 < domain[0] < domain[1] < 0.2  # the exact bound does not stretch the axis
    of_still = shown(chart).query("not moved")
    assert (of_still["low"] == 0).all() and (of_still["high"] == 0).all() and set(of_still["layer"]) == {3}


def test_a_report_has_them_where_a_run_has_the_files(make_run):
    path = make_run()
    for part, frame in (("patching", patching()), ("switch_off", switch_off())):
        folder = path / part / "sentiment"
        folder.mkdir(parents=True)
        frame.to_parquet(folder / "summary.parquet")
    names = [figure.name for figure in figures(read_run(path))]
    assert {"patching-sentiment", "switch-off-sentiment"} <= set(names)
