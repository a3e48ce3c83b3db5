"""The first paragraph of a report and its verdict."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glotlift.cli.output import print_run
from glotlift.reporting.card import escape_markdown, model_card
from glotlift.reporting.names import series
from glotlift.reporting.opening import opening
from glotlift.reporting.page import render_page
from glotlift.reporting.read import RunFiles, read_run
from glotlift.reporting.verdict import DO_NOT_SHIP, NO_EVIDENCE, SHIP, families, verdict
from tests.reporting.conftest import as_in_0_1, build_run, make_scores, predictions, write
from tests.reporting.test_page import Reader

CODES = ("en", "de", "sw", "zh", "fr", "ja")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> RunFiles:
    """Return a run in which the mean over languages clearly rises and nothing speaks against; not to be changed."""
    run = read_run(
        build_run(tmp_path_factory.mktemp("opening") / "run", languages=CODES, stages=("data", "train", "scores"))
    )
    assert verdict(run).word == SHIP  # pyright: ignore[reportOptionalMemberAccess]
    return run


Edit = Callable[[dict[str, Any]], None]


def edited(run: RunFiles, *edits: Edit, key: str = "sentiment") -> RunFiles:
    """Return a run with another test set in its scores."""
    scores = copy.deepcopy(run.scores)
    for edit in edits:
        edit(scores["tasks"][key])
    return dataclasses.replace(run, scores=scores)


def fall(code: str, measure: str = "raw", p: float = 0.01) -> Edit:
    def edit(task: dict[str, Any]) -> None:
        task["languages"][code]["changes"][measure] |= {"change": -0.2, "low": -0.3, "high": -0.1, "p_holm": p}

    return edit


def predicted(code: str, variant: str, **counts: int) -> Edit:
    def edit(task: dict[str, Any]) -> None:
        task["languages"][code][variant]["predicted"] = counts

    return edit


def mean(group: str, measure: str, low: float, high: float, n: int = 40) -> Edit:
    def edit(task: dict[str, Any]) -> None:
        middle = (low + high) / 2
        task[f"{measure}_groups"][group] |= {
            "n": n,
            "a": 0.5,
            "b": 0.5 + middle,
            "change": middle,
            "low": low,
            "high": high,
        }

    return edit


def judged(run: RunFiles) -> tuple[str, str]:
    found = verdict(run)
    assert found is not None
    assert found.line == f"Verdict: {found.word}, because {found.reason}."
    return found.word, found.reason


def test_a_rise_that_nothing_speaks_against_is_shipped(tuned):
    word, reason = judged(tuned)
    assert word == SHIP and reason.startswith(
        "mean accuracy on sentiment over the 3 languages never tuned on clearly rises (+"
    )
    assert reason.endswith(" points), also after batch calibration, and no language clearly falls")
    text = opening(tuned).paragraph
    assert text.startswith(
        "demo was tuned with LoRA to translate questions from Chinese and German into English (80 pairs), and "
        "evaluated before and after on sentiment (6 languages, 40 items each). On sentiment, over the 3 languages "
        "never tuned on, mean accuracy rises from "
    )
    group = tuned.scores["tasks"]["sentiment"]["groups"]["unseen"]
    assert f"95 % interval {group['low'] * 100:+.1f} to {group['high'] * 100:+.1f})" in text
    assert (
        "; over the 2 languages tuned on, it " in text
        and "; after batch calibration, over all 6 languages, it " in text
    )
    assert "In no single language does accuracy clearly fall." in text


@pytest.mark.parametrize(
    ("codes", "names"),
    [(["sw"], "in Swahili"), (["sw", "de"], "in German and Swahili"),
     (["fr", "sw", "de"], "in German, French and Swahili"), (list(CODES), "in English, Chinese and 4 more")],
)  # fmt: skip
def test_a_language_that_falls_is_not_shipped_however_much_the_mean_rises(tuned, codes, names):
    run = edited(tuned, *map(fall, codes))
    assert judged(run) == (DO_NOT_SHIP, f"accuracy on sentiment clearly falls {names}")
    text = opening(run).paragraph
    assert f"On sentiment, accuracy clearly falls in {len(codes)} of 6 languages: " in text
    assert "(each by its own test, Holm p < 0.05)." in text and "In no single language" not in text
    assert all(
        name in text.split("clearly falls", 1)[1] for name in names.removeprefix("in ").split(" and ")[0].split(", ")
    )


def test_a_fall_after_calibration_counts_and_one_that_is_not_clear_does_not(tuned):
    word, reason = judged(edited(tuned, fall("sw", "calibrated")))
    assert (word, reason) == (DO_NOT_SHIP, "accuracy after batch calibration on sentiment clearly falls in Swahili")
    assert judged(edited(tuned, fall("sw", p=0.05)))[0] == SHIP

    def few(task: dict[str, Any]) -> None:
        task["languages"]["sw"]["changes"]["raw"]["n"] = 5

    assert judged(edited(tuned, fall("sw"), few))[0] == SHIP


def test_a_mean_that_falls_is_not_shipped(tuned):
    word, reason = judged(edited(tuned, mean("seen", "raw", -0.2, -0.1)))
    assert word == DO_NOT_SHIP
    assert reason == "mean accuracy on sentiment over the 2 languages tuned on clearly falls (−15.0 points)"
    word, reason = judged(edited(tuned, mean("all", "calibrated", -0.2, -0.1)))
    assert word == DO_NOT_SHIP and reason.startswith("mean accuracy after batch calibration on sentiment over all 6 ")


@pytest.mark.parametrize(
    ("base", "after", "word"),
    [
        ({"positive": 20, "negative": 20}, {"positive": 40}, DO_NOT_SHIP),
        ({"positive": 20, "negative": 20}, {"positive": 38, "negative": 2}, DO_NOT_SHIP),
        ({"positive": 20, "negative": 20}, {"positive": 37, "negative": 3}, SHIP),
        ({"positive": 40}, {"positive": 39, "negative": 1}, SHIP),
        ({"positive": 40}, {"negative": 40}, DO_NOT_SHIP),
    ],
)
def test_a_collapse_that_the_base_had_not_is_not_shipped(tuned, base, after, word):
    run = edited(tuned, predicted("sw", "base", **base), predicted("sw", "tuned", **after))
    assert judged(run)[0] == word
    text = opening(run).paragraph
    assert ("the tuned model gives one label 95 % or more of the time in 1 of 6 languages" in text) == (
        after != {"positive": 37, "negative": 3}
    )
    assert ("; so does the base model." in text) == (base == {"positive": 40} and "positive" in after)


def test_a_rise_needs_to_be_clear_of_zero_and_to_stay_after_calibration(tuned):
    word, reason = judged(edited(tuned, mean("unseen", "raw", -0.01, 0.1)))
    assert word == NO_EVIDENCE
    assert (
        reason == "mean accuracy on sentiment over the 3 languages never tuned on does not clearly rise (+4.5 points)"
    )
    word, reason = judged(edited(tuned, mean("unseen", "calibrated", -0.01, 0.1)))
    assert word == NO_EVIDENCE and reason.endswith(
        "but not after batch calibration: what changed is which label is preferred"
    )
    word, reason = judged(edited(tuned, mean("unseen", "raw", 0.1, 0.3, n=5)))
    assert (word, reason) == (NO_EVIDENCE, "5 items on sentiment cannot show a change")


def test_where_no_item_moved_no_interval_is_told(tuned):
    def still(task: dict[str, Any]) -> None:
        for groups in (task["groups"], task["raw_groups"], task["calibrated_groups"]):
            for change in groups.values():
                change |= {"b": change["a"], "change": 0.0, "low": -0.05, "high": 0.05, "moved": False}

    text = opening(edited(tuned, still)).paragraph
    assert ", mean accuracy stays at " in text and text.count("no item moved") == 3
    assert "points" not in text and "clearly change" not in text


def test_a_rise_among_many_test_sets_has_to_be_clearer(tuned):
    one = edited(tuned, *(mean("unseen", measure, 0.01, 0.20) for measure in ("raw", "calibrated")))
    flat = [mean(group, measure, -0.1, 0.1) for group in ("all", "seen", "unseen") for measure in ("raw", "calibrated")]
    many = copy.deepcopy(one.scores)
    for number in range(5):
        many["tasks"][f"other{number}"] = edited(tuned, *flat).scores["tasks"]["sentiment"]
    assert judged(one)[0] == SHIP
    assert judged(dataclasses.replace(one, scores=many))[0] == NO_EVIDENCE


@pytest.mark.parametrize(
    ("kind", "audit", "reason"),
    [
        ("foreign-adapter", {}, "the adapter was made for another base"),
        ("leakage", {}, "demonstrations show the model test items"),
        ("duplicates", {}, ""),
        ("", {"question_only": False, "flags": {"answer": 1}}, "training pairs hold answers of the task"),
        ("", {"overlap": {"n": 8, "items": 5, "of": 40, "pairs": 7}}, "5 of 40 test texts stand among the training "
         "questions"),
        ("", {"overlap": {"n": 8, "items": 1, "of": 40, "pairs": 1}}, ""),
    ],
)  # fmt: skip
def test_numbers_in_doubt_are_no_evidence(tuned, kind, audit, reason):
    warnings = [{"kind": kind, "test_set": "sentiment", "languages": ["sw"], "text": "look here"}] if kind else []
    run = dataclasses.replace(tuned, scores={**tuned.scores, "warnings": warnings}, audit={**tuned.audit, **audit})
    assert judged(run)[0] == (NO_EVIDENCE if reason else SHIP)
    assert not reason or judged(run)[1] == reason
    text = opening(run).paragraph
    assert ("Look here (on sentiment, in Swahili)." in text) == bool(kind)
    assert ("1 training pair holds an answer of the task." in text) == ("flags" in audit)
    if overlap := audit.get("overlap"):
        some = "1 of 40 test texts shares 8 words in a row with 1 training pair."
        many = "5 of 40 test texts share 8 words in a row with 7 training pairs."
        assert (some if overlap["items"] == 1 else many) in text


def test_a_fall_is_worse_than_a_doubt(tuned):
    run = edited(tuned, fall("sw"))
    warnings = [{"kind": "foreign-adapter", "text": "the adapter is of another model"}]
    run = dataclasses.replace(run, scores={**run.scores, "warnings": warnings})
    assert judged(run)[0] == DO_NOT_SHIP
    assert "The adapter is of another model." in opening(run).paragraph


def test_many_warnings_are_cut_and_equal_ones_said_once(tuned):
    warnings = [{"kind": "k", "text": f"thing {n // 2}"} for n in range(18)]
    text = opening(dataclasses.replace(tuned, scores={**tuned.scores, "warnings": warnings})).paragraph
    assert text.count("Thing ") == 6 and "3 more warnings stand in scores.json." in text


def test_a_base_model_alone_is_described_and_gets_no_verdict(make_run):
    found = opening(read_run(make_run(tuned=False, languages=("sw",))))
    assert found.verdict is None
    assert found.paragraph.startswith(
        "demo was evaluated on sentiment (1 language, 40 items); nothing was tuned. On sentiment, accuracy is "
    )
    assert "in the one language tested (95 % interval " in found.paragraph and "points" not in found.paragraph
    assert "tuned model" not in found.paragraph and "fall" not in found.paragraph


def test_what_was_tuned_and_not_evaluated_is_no_evidence(make_run):
    run = read_run(make_run(stages=("data", "train")))
    assert judged(run) == (NO_EVIDENCE, "the tuned model was not evaluated")
    assert opening(run).paragraph.endswith("; it was not evaluated, so what tuning changed is not known.")


def test_an_empty_folder_says_nothing(tmp_path: Path):
    found = opening(read_run(tmp_path))
    assert found.paragraph == "" and found.verdict is None


def test_an_adapter_of_unknown_origin_is_not_said_to_have_learned_anything(tmp_path: Path):
    scores = make_scores([predictions("x", ("a", "b"), ("sw", "de"), ("base", "tuned"), 40)])
    write(tmp_path / "scores.json", scores)
    text = opening(read_run(tmp_path)).paragraph
    assert text.startswith(
        "An adapter was put on demo, and evaluated before and after on x (2 languages, 40 items each)."
    )
    assert "What it was trained on was not audited here, nor compared with the test items." in text
    assert "over all 2 languages, mean accuracy " in text


def test_ties_and_few_items_are_spoken_of(tuned):
    def tie(task: dict[str, Any]) -> None:
        task["languages"]["sw"]["tuned"]["tied"] = 12

    text = opening(edited(tuned, tie)).paragraph
    assert "On sentiment, 12 of 240 predictions are ties, which the first label wins." in text
    few = opening(
        edited(
            tuned,
            lambda task: [
                entry["base"].update(n=1) or entry["tuned"].update(n=1) for entry in task["languages"].values()
            ],
        )
    )  # type: ignore[func-returns-value]
    assert "With 1 item a language, sentiment can show no change." in few.paragraph


def test_controls_are_no_test_of_the_task(many, tmp_path: Path):
    write(tmp_path / "scores.json", many)
    run = read_run(tmp_path)
    text = opening(run).paragraph
    assert "No control" not in text and "mood.arbitrary" not in text
    control = {**run.scores, "tasks": {"mood.arbitrary": run.scores["tasks"]["mood.arbitrary"]}}
    for key in ("answer_language_grid", "demonstration_spread"):
        control.pop(key)
    alone = dataclasses.replace(run, scores=control)
    assert judged(alone)[0] == NO_EVIDENCE and "arbitrary answer words" in judged(alone)[1]
    assert "All answer words are arbitrary, so nothing here is evidence on the task." in opening(alone).paragraph


def test_columns_of_a_grid_are_looks_at_one_thing(many, tmp_path: Path):
    write(tmp_path / "scores.json", many)
    run = read_run(tmp_path)
    assert sorted(map(len, families(run.scores))) == [1, 3, 4]
    quiet = edited(run, key="nli.in-de")
    for p, is_fall in ((0.02, False), (0.01, True)):
        assert (
            " on nli.in-de clearly falls in Swahili" in judged(edited(quiet, fall("sw", p=p), key="nli.in-de"))[1]
        ) == is_fall


def test_more_test_sets_than_fit_are_counted(tuned):
    scores = copy.deepcopy(tuned.scores)
    for number in range(9):
        scores["tasks"][f"set{number}"] = edited(tuned, fall("sw")).scores["tasks"]["sentiment"]
    text = opening(dataclasses.replace(tuned, scores=scores)).paragraph
    assert "and 7 more. On sentiment" in text and "The numbers of 7 more test sets stand below." in text
    assert text.count("clearly falls in 1 of 6 languages") == 3 and "The like holds of 6 more test sets" in text


def test_scores_of_0_1_have_an_opening(make_run, tmp_path: Path):
    run = read_run(make_run(stages=("scores",)))
    write(tmp_path / "scores.json", as_in_0_1({"glotlift": run.scores}))
    old = read_run(tmp_path)
    assert judged(old)[0] == judged(run)[0]
    results = [opening(each).paragraph.split(" On sentiment", 1)[1].split("In no single")[0] for each in (old, run)]
    assert results[0] == results[1]


def test_series_are_grammatical():
    assert series(["a"]) == "a" and series(["a", "b"]) == "a and b" and series(["a", "b", "c"]) == "a, b and c"
    assert series(list("abc"), 3) == "a, b and c" and series(list("abcd"), 3) == "a, b and 2 more"


def test_it_stands_first_on_the_page_in_the_card_and_in_the_terminal(make_run, capsys):
    path = make_run(model="<b>x</b>", languages=("sw", "de"), stages=("data", "train", "scores"), tasks=("a*b*",))
    run = read_run(path)
    found = opening(run)
    assert found.verdict is not None
    page = Reader(render_page(run, []))
    text = " ".join(page.text.split("</style>")[-1].split())
    assert "b" not in page.tags or "<b>x</b>" in page.text
    assert text.index(found.paragraph) < text.index(found.verdict.line) < text.index("On a*b*, raw accuracy")
    card = model_card(run, [])
    first, second = (escape_markdown(each) for each in (found.paragraph, found.verdict.line))
    assert card.split("# ", 1)[1].split("\n\n")[1:3] == [first, f"**{second}**"]
    print_run(path)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"{found.paragraph} {found.verdict.line} a*b*: positive / negative")
