from __future__ import annotations

import copy
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glotlift.errors import OutputError
from glotlift.languages import LANGUAGES
from glotlift.reporting.figures import figures
from glotlift.reporting.page import consistency_sentence, duration, facts, key_numbers, render_page, write_report
from glotlift.reporting.read import read_run
from glotlift.reporting.table import build_table, percent, points
from tests.reporting.conftest import as_in_0_1, make_scores, predictions, write

ALL_FIGURES = (
    "accuracy-mood.own balance-mood.own parts-mood.own consistency-mood.own accuracy-mood.arbitrary "
    "balance-mood.arbitrary consistency-mood.arbitrary grid-nli spread-para.own"
)
HOSTILE = '<script>alert("1")</script>&amp;'
STAGES = ("data", "train", "merge", "scores", "lens", "geometry")


class Reader(HTMLParser):
    """What a browser makes of a page: tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


def test_page_opens_offline(written: Path):
    page = (written / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert not reader.tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base", "form"}
    assert not reader.values("src") and not reader.values("xlink:href")
    assert all(target.startswith("#") for target in reader.values("href"))
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "default-src 'none'" in page


def test_ids_are_unique_and_every_reference_has_its_target(written: Path):
    page = (written / "report.html").read_text(encoding="utf-8")
    ids = Reader(page).values("id")
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert {target[1:] for target in Reader(page).values("href")} <= set(ids)


def test_page_has_every_section(written: Path):
    page = (written / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert {"task-1", "task-2", "inside", "training", "reproduce"} <= set(reader.values("id"))
    assert "On sentiment, raw accuracy " in reader.text
    assert "demo, tuned on Chinese and German questions" in reader.text
    assert "glotlift run recipe.yaml" in reader.text and "2.9.0" in reader.text and "1 min 02 s" in reader.text
    assert page.count("<figcaption>") == page.count("<svg") == 11
    assert '<small lang="zh" dir="ltr">中文</small>' in page


def test_figures_are_svg_and_png(written: Path):
    stems = {path.stem for path in (written / "figures").iterdir()}
    assert {"accuracy-sentiment", "balance-nli", "lens-sentiment", "pca-sentiment", "pc1-sentiment", "loss"} <= stems
    for stem in stems:
        root = ElementTree.parse(written / "figures" / f"{stem}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"]) > 100
        assert root.attrib["aria-label"]
        content = (written / "figures" / f"{stem}.png").read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
        assert min(struct.unpack(">II", content[16:24])) > 100


def test_hostile_strings_are_escaped(make_run):
    run = make_run(tasks=("a<b>",), labels=(HOSTILE, "</style><b>"), model=HOSTILE, languages=("en", "de"))
    page = write_report(run).read_text(encoding="utf-8")
    reader = Reader(page)
    assert "script" not in reader.tags and "alert" not in "".join(name for name, _ in reader.attributes)
    assert HOSTILE in reader.text and "a<b>" in reader.text and "</style><b>" in reader.text
    assert page.count("</style>") == 1
    for path in (run / "figures").glob("*.svg"):
        assert not [tag for tag in ElementTree.parse(path).iter() if tag.tag.endswith("script")]
    assert "<script" not in (run / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", STAGES)
def test_a_missing_stage_leaves_out_its_section(make_run, missing, monkeypatch):
    monkeypatch.setattr("glotlift.reporting.figures.to_svg", lambda chart, description: "<svg></svg>")  # for speed
    run = read_run(make_run(languages=("en", "sw"), stages=[stage for stage in STAGES if stage != missing], n_items=8))
    page = render_page(run, list(figures(run)))
    ids = set(Reader(page).values("id"))
    assert ("task-1" in ids) == (missing != "scores")
    assert ("lens-sentiment" in ids) == (missing != "lens")
    assert ("pca-sentiment" in ids) == ("pc1-sentiment" in ids) == (missing != "geometry")
    assert ("loss" in ids) == (missing != "train")
    assert ("Audit of the question pairs" in page) == (missing != "data")
    assert ("largest logit difference" in page) == (missing != "merge")


def test_an_empty_run_still_has_a_page(tmp_path: Path):
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "This folder has no recipe" in page and "<figure" not in page


def test_a_base_model_alone_claims_no_change(make_run):
    page = write_report(make_run(tuned=False, languages=("en", "sw"))).read_text(encoding="utf-8")
    text = Reader(page).text
    assert "demo, not tuned" in text and "Mean over languages" in text
    assert "points" not in text.replace("Points: share", "").replace("Each point", "") and "Holm" not in text


@pytest.fixture(scope="module")
def across(many, tmp_path_factory) -> Path:
    """Return a run with a control, a grid and draws whose report has been written."""
    run = tmp_path_factory.mktemp("across")
    write(run / "scores.json", many)
    write_report(run)
    return run


def test_page_shows_parts_roll_ups_consistency_grid_and_spread(across: Path, many):
    page = (across / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    task = many["glotlift"]["tasks"]["mood.own"]
    ids = reader.values("id")
    assert [name for name in ids if name in ALL_FIGURES.split()] == ALL_FIGURES.split()
    assert page.count("<figcaption>") == page.count("<svg") == len(ALL_FIGURES.split())
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.</b>", page)] == list(range(1, 10))
    assert task["parts_sentence"] in reader.text and reader.text.count(task["parts_sentence"]) == 1
    assert "By family, script and resource class" in reader.text and "Indo-Aryan" not in reader.text
    assert f"{percent(task['consistency']['tuned']['mean'])}\u00a0% (tuned" in reader.text
    assert "with answer words in the language of the prompt" in reader.text
    assert "Tuned less base, draw by draw: " in reader.text
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_test_sets_of_a_grid_or_spread_are_folded_and_have_a_table_only(across: Path, many):
    page = (across / "report.html").read_text(encoding="utf-8")
    folded = re.findall(r"<details><summary>([^<]+)</summary>(.*?)</details>", page, re.DOTALL)
    keys = [key for key in many["glotlift"]["tasks"] if not key.startswith("mood")]
    assert [key for key, _ in folded] == keys
    for key, content in folded:
        assert many["glotlift"]["tasks"][key]["sentence"] in Reader(content).text
        assert content.count("<table") == 1 and "<svg" not in content
    header = page.split("<nav")[0]
    assert "On mood.own, " in header and "On para.seed0, " not in header and "Over 3 draws" in header


def test_every_new_figure_is_svg_and_png_with_a_text_for_who_cannot_see_it(across: Path):
    for stem in ALL_FIGURES.split():
        root = ElementTree.parse(across / "figures" / f"{stem}.svg").getroot()
        assert len(root.attrib["aria-label"]) > 20
        assert (across / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", ["parts", "rollups", "consistency"])
def test_what_the_scores_do_not_hold_is_not_on_the_page(many, tmp_path: Path, monkeypatch, key):
    monkeypatch.setattr("glotlift.reporting.figures.to_svg", lambda chart, description: "<svg></svg>")
    scores = copy.deepcopy(many)
    for name in ("mood.own", "mood.arbitrary"):
        scores["glotlift"]["tasks"][name].pop(key, None)
    signs = {"parts": "Bias, format, understanding", "rollups": "By family, script and resource class",
             "consistency": "The same items in every language?"}  # fmt: skip
    for content in (many, scores):
        write(tmp_path / "scores.json", content)
        run = read_run(tmp_path)
        page = render_page(run, list(figures(run)))
        assert {name: sign in page for name, sign in signs.items()} == {
            name: name != key or content is many for name in signs
        }


def test_scores_of_0_1_still_have_a_page(make_run, many, tmp_path: Path):
    write(tmp_path / "scores.json", as_in_0_1(many))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    ids = Reader(page).values("id")
    assert {"accuracy-mood.own", "balance-nli.in-de"} <= set(ids)
    assert not [
        name for name in ids if name.startswith(("parts", "consistency", "grid", "spread", "across", "members"))
    ]
    assert "ECE" not in page and "contextual" not in page and "<h3>By family" not in page


def test_consistency_is_not_drawn_for_two_languages_and_not_known_for_one(make_run):
    two = read_run(make_run(languages=("en", "de"), stages=("scores",)))
    task = two.scores["tasks"]["sentiment"]
    assert "mean over pairs" in consistency_sentence(task)
    assert not [figure for figure in figures(two) if figure.section == "consistency"]
    task["consistency"] = {"base": None, "tuned": None}
    assert consistency_sentence(task) == "" == consistency_sentence({})


def test_names_of_grids_and_parts_are_escaped(tmp_path: Path):
    options = {"labels": (HOSTILE, "b"), "languages": ("en", "de", "sw"), "variants": ("base", "tuned"), "n": 12}
    name = "<img src=x>"
    sets = [predictions(f"{name}.{c}", **options, task=name, answers=f"in:{c}") for c in ("en", "de")]
    sets += [predictions(f"{name}.s{d}", **options, task=name, demo_seed=d) for d in (0, 1)]
    sets += [predictions(f"{name}.{a}", **options, task=name, answers=a) for a in ("own", "arbitrary")]
    write(tmp_path / "scores.json", make_scores(sets))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    reader = Reader(page)
    assert not reader.tags & {"img", "script"} and name in reader.text and HOSTILE in reader.text
    assert "<img" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert {f.stem.split("-")[0] for f in (tmp_path / "figures").iterdir()} >= {"grid", "spread", "parts"}


def test_numbers_to_be_seen_first_follow_the_calibration_of_the_file():
    options = {"labels": ("a", "b"), "languages": ("en", "de"), "variants": ("base", "tuned"), "n": 40}
    scores = make_scores([predictions("x", **options, calibration="batch")])["glotlift"]
    task = scores["tasks"]["x"]
    shown = {number.title: number.value for number in key_numbers(task, build_table({"glotlift": scores}, "x").groups)}
    assert shown["All languages (2)"] == points(task["calibrated_groups"]["all"]["change"])
    assert shown["All, raw (2)"] == points(task["raw_groups"]["all"]["change"])
    assert shown["All languages (2)"] != shown["All, raw (2)"] and "All, calibrated (2)" not in shown


def test_a_change_whose_interval_holds_zero_is_not_called_one(make_run):
    run = read_run(make_run(stages=("scores",)))
    task = run.scores["tasks"]["sentiment"]
    task["raw_groups"]["all"] |= {"change": 0.03, "low": -0.001, "high": 0.06}
    task["raw_groups"]["unseen"] |= {"change": 0.03, "low": 0.001, "high": 0.06}
    task["raw_groups"]["seen"] |= {"change": -0.03, "low": -0.06, "high": -0.001}
    groups = build_table({"glotlift": run.scores}, "sentiment").groups
    everywhere, seen, unseen, *_ = key_numbers(task, groups)
    assert (everywhere.value, everywhere.tone) == ("+3.0", "") and "no clear change" in everywhere.detail
    assert (seen.value, seen.tone) == ("−3.0", "down") and "no clear change" not in seen.detail
    assert (unseen.value, unseen.tone) == ("+3.0", "up") and "[+0.1, +6.0]" in unseen.detail
    task["raw_groups"]["seen"] |= {"change": 0.0, "low": -0.07, "high": 0.07, "moved": False}
    assert key_numbers(task, groups)[1].detail.endswith(" %, no item moved")


def test_twenty_languages_stay_under_three_megabytes(make_run):
    run = read_run(make_run(languages=list(LANGUAGES), n_items=100, n_layers=27))
    assert len(render_page(run, list(figures(run))).encode()) < 2_500_000  # another task adds 0.2 MB


def test_the_same_files_give_the_same_bytes(written: Path, tmp_path: Path):
    again = tmp_path / "run"
    shutil.copytree(written, again, ignore=shutil.ignore_patterns("figures", "tables", "report.html", "README.md"))
    write_report(again)
    drawn = [path for path in (again / "figures").iterdir() if path.suffix != ".pdf"]  # objects in any order
    assert len(list((again / "figures").glob("*.pdf"))) == len(drawn) // 2
    for path in (*drawn, *(again / "tables").iterdir(), again / "report.html", again / "README.md"):
        assert path.read_bytes() == (written / path.relative_to(again)).read_bytes(), path.name


def test_faults_name_the_file(tmp_path: Path):
    with pytest.raises(OutputError, match="no such folder"):
        write_report(tmp_path / "none")
    (tmp_path / "scores.json").write_text('{"glotlift":\n oops}', encoding="utf-8")
    with pytest.raises(OutputError, match=r"scores\.json, line 2, column 2: not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "scores.json").write_text("[]", encoding="utf-8")
    with pytest.raises(OutputError, match="got a list of 0, expected the scores"):
        write_report(tmp_path)
    (tmp_path / "scores.json").unlink()
    broken = tmp_path / "lens" / "base" / "sentiment" / "de.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"de\.parquet: cannot be read as Parquet .*, expected columns"):
        write_report(tmp_path)


def test_reporting_imports_no_other_stage_and_no_torch():
    code = (
        "import sys, glotlift.reporting.page, glotlift.reporting.table\n"
        "names = ('torch', 'glotlift.evaluation', 'glotlift.explanation', 'glotlift.training', 'glotlift.models')\n"
        "print([name for name in sys.modules if name.startswith(names)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_durations_and_facts():
    assert [duration(s) for s in (4.21, 61.5, 3725)] == ["4.2 s", "1 min 02 s", "1 h 02 min"]
    shown = facts({"flags": {}, "pairs": 12345, "by_language": {"zh": 1}, "ids": list(range(40))})
    assert shown["flags"] == "none" and shown["pairs"] == "12,345" and shown["by language"] == "zh: 1"
    assert shown["ids"].endswith("11 … (40 in all)")
