"""Test rows: every fault of one row is found, and what is odd in one language or across them."""

import json
from pathlib import Path

import pytest

from glotlift.data.read import read_items
from glotlift.errors import UserError
from glotlift.evaluation.check import check_task
from glotlift.tasks.load import load_task
from tests.evaluation.conftest import BARE, OWN, ROWS, VERBATIM, changed, found, pack, sound
from tests.tasks.test_load import write_task
from tests.tasks.test_task import definition

# --- rows


def test_files_that_cannot_be_read_do_not_hide_others(check, tmp_path):
    content = sound()
    content["languages"]["fr"] = {**content["languages"]["de"], "question": "Texte: {text}"}
    done = check(content, en=[], **changed("de", 0, label="meh"))
    kinds = [(language, kind) for language, kind, _ in found(done.faults)]
    assert kinds == [("en", "test rows"), ("fr", "test rows"), ("de", "gold")]
    messages = [each.message for each in done.faults]
    assert messages[0] == f"{tmp_path / 'rows_en.jsonl'}: got no rows, expected at least one"
    assert messages[1].startswith(f"{tmp_path / 'rows_fr.jsonl'}: no such file")
    assert list(done.prompts) == ["en", "de", "fr"]


def test_one_file_for_several_languages(check, tmp_path):
    done = check(source=str(tmp_path / "rows_de.jsonl"))
    assert [(each.language, each.kind) for each in done.faults] == [("", "test rows")]
    assert "one file for 2 languages" in done.faults[0].message
    assert done.rows == {}


def test_one_file_with_a_language_column(check, tmp_path):
    rows = [{**row, "lang": code, "id": f"{row['id']}"} for code, table in ROWS.items() for row in table]
    content = sound() | {"data": {"source": "rows_all.jsonl", "language_column": "lang"}}
    done = check(content, all=rows)
    assert (done.faults, done.warnings, done.rows) == ((), (), {"en": 3, "de": 3})
    done = check(content, all=rows[:3])
    assert [each.language for each in done.faults] == ["de"]
    assert "no rows in de; column 'lang' has: en" in done.faults[0].message


MISSING = {
    "missing": (changed("de", 1, text=...), "'text' is missing in row 2 of 3"),
    "empty": (changed("de", 1, text=" \n"), "'text' is empty in row 2 of 3"),
    "null": (changed("de", 1, text=None), "'text' is empty in row 2 of 3"),
    "number": (changed("de", 1, text=7), "'text' is 7, not text, in row 2 of 3"),
    "half a character": (
        changed("de", 1, text="Platten \ud83d"),
        "'text' holds '\\ud83d', half of a surrogate pair, in row 2 of 3",
    ),
    "no column": (
        {"de": [{**row, "txt": "x"} for row in changed("de", 0)["de"] if row.pop("text")]},
        "'text' is no column (did you mean 'txt'?)",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_rows_without_text_in_a_field(check, case):
    rows, message = MISSING[case]
    assert found(check(**rows).faults) == [("de", "fields", message)]


def test_rows_at_fault_are_counted_and_the_first_ones_named(check):
    rows = [{"text": "", "label": "gut"} for _ in range(9)] + [{"text": "x", "label": "schlecht"}]
    assert found(check(de=rows).faults) == [("de", "fields", "'text' is empty in rows 1, 2, 3 and 6 more of 10")]


GOLD = {
    "in another case": (
        changed("de", 0, label="Gut "),
        "'Gut ' in 1 of 3 rows (33%), 'gut' but for case, blanks or Unicode form, where en has 'good', "
        "whose word here is 'gut'",
    ),
    "of another language": (
        {"en": [{**row, "label": "gut" if row["label"] == "good" else "bad"} for row in ROWS["en"]]},
        "'gut' in 2 of 3 rows (67%), the word for 'good' in de, where de has 'good', whose word here is 'fine'",
    ),
    "of another translation": (
        {"de": [{**row, "label": "prima" if row["label"] == "gut" else row["label"]} for row in ROWS["de"]]},
        "'prima' in 2 of 3 rows (67%), where en has 'good', whose word here is 'gut'",
    ),
    "misspelt, in rows of different labels": (
        {"de": [{**row, "label": "schlehct"} for row in ROWS["de"]]},
        "'schlehct' in 3 of 3 rows (100%) (did you mean 'schlecht'?)",
    ),
    "like nothing": ({"de": [{**row, "label": "?"} for row in ROWS["de"]]}, "'?' in 3 of 3 rows (100%)"),
    "none": (changed("de", 1, label=None), "got None, expected text, in 1 of 3 rows (33%): row 2"),
    "not there": (changed("de", 1, label=...), "got None, expected text, in 1 of 3 rows (33%): row 2"),
    "empty": (changed("de", 1, label=""), "got '', expected text, in 1 of 3 rows (33%): row 2"),
    "a boolean": (changed("de", 1, label=True), "got True, expected text, in 1 of 3 rows (33%): row 2"),
    "an unknown number": (changed("de", 1, label=4), "got 4, expected text, in 1 of 3 rows (33%): row 2"),
}


@pytest.mark.parametrize("case", GOLD)
def test_gold_values_that_mean_no_label(check, case):
    rows, message = GOLD[case]
    (fault,) = check(**rows).faults
    assert fault.kind == "gold"
    assert fault.message.split("; ")[0] == message
    assert "it could never be right" in fault.message


def test_a_check_finds_what_the_reader_refuses_and_only_that(check):
    """One row at fault at a time: a check has a fault where `read_items` raises."""
    cells = [{"label": label} for label in ("gut", "good", "fine", "Gut", "poor", "", None, 1, True, 0.0, ...)]
    cells += [{"text": text} for text in ("x", "", " ", None, 3, ...)] + [{"id": "b"}, {"id": 7}]
    cells += [{key: "\ud800"} for key in ("text", "label", "id", "note")]
    for cell in cells:
        done = check(**changed("de", 0, **cell))
        try:
            read_items(load_task(done.name), None, ("de",))
            refused = False
        except UserError:
            refused = True
        assert bool(done.faults) == refused, cell


def test_a_boolean_is_no_label_id_even_where_its_name_is_one(tmp_path):
    """JSON's true would be "True"; the reader refuses it, and so does the check."""
    pack = {"template": "{text} is", "answer_sets": {"own": {"True": "fine", "False": "poor"}}}
    content = definition(
        labels=["True", "False"], answer_sets={}, languages={"en": pack}, data={"source": "rows.jsonl"}
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "x", "label": true}\n', encoding="utf-8")
    done = check_task(write_task(tmp_path / "mood.yaml", content))
    assert found(done.faults) == [("en", "gold", "got True, expected text, in 1 of 1 row (100%): row 1")]


def test_a_word_that_stands_for_two_labels(check):
    content = pack(answer_sets={"own": OWN, "turned": {"good": "schlecht", "bad": "gut"}})
    content["languages"]["en"]["answer_sets"]["turned"] = {"good": "x", "bad": "y"}
    messages = [message for _, _, message in found(check(content).faults)]
    assert messages[0] == (
        "'gut' in 2 of 3 rows (67%), a word that stands for different labels in different answer sets: write label ids"
    )


def test_many_unknown_gold_values_are_summed_up(check):
    """As when the gold column is a wrong one."""
    rows = [{"text": f"text {n}", "label": f"value {n}"} for n in range(9)]
    messages = [message for _, _, message in found(check(de=rows).faults)]
    assert len(messages) == 6
    assert messages[-1] == "4 other values in 4 rows"


def test_no_gold_column(check):
    done = check(de=[{"text": "x", "lable": "gut"}])
    assert [kind for _, kind, _ in found(done.faults)] == ["test rows"]
    assert "no gold column; it has text, lable, expected label, answer or gold" in done.faults[0].message


def test_gold_and_columns_of_the_task_file(check):
    content = sound() | {"data": {"source": "rows_{lang}.jsonl", "gold": "verdict", "columns": {"text": "review"}}}
    rows = {
        code: [{"id": row["id"], "review": row["text"], "verdict": row["label"]} for row in table]
        for code, table in ROWS.items()
    }
    done = check(content, **rows)
    assert (done.faults, done.warnings) == ((), ())
    assert "'review' is no column" in check(content).faults[0].message


def test_a_label_that_no_row_has(check):
    rows = {code: [row for row in table if row["id"] != "b"] for code, table in ROWS.items()}
    assert found(check(**rows).warnings) == [(code, "empty label", "no row has 'bad'") for code in ("en", "de")]
    kinds = [kind for _, kind, _ in found(check(**changed("de", 1, label="?")).warnings)]
    assert kinds == []  # the gold value says more


def test_items_that_stand_twice(check):
    rows = {code: [*table, {**table[0], "id": "d"}] for code, table in ROWS.items()}
    assert found(check(**rows).warnings) == [
        (code, "duplicates", "1 item more than once, the first in rows 1 and 4") for code in ("en", "de")
    ]
    for code, label in (("en", "bad"), ("de", "schlecht")):
        rows[code][3]["label"] = label
    assert found(check(**rows).warnings)[0][2] == (
        "1 item more than once, 1 of them with different labels, the first in rows 1 and 4"
    )


def test_ids_that_stand_twice(check, tmp_path):
    done = check(**changed("de", 2, id="a"))
    assert found(done.faults) == [
        ("de", "test rows", f"{tmp_path / 'rows_de.jsonl'}: rows 1 and 3 have the id 'a', expected distinct ids")
    ]
    assert found(done.warnings) == [
        ("de", "not parallel", "other ids than in en: 'a (again, 2)' only here, 'c' only there")
    ]


def test_rows_that_are_not_parallel(check):
    done = check(de=ROWS["de"][:2])
    assert found(done.warnings) == [("de", "not parallel", "2 rows, where en has 3: 'c' only there")]
    done = check(**changed("de", 2, id="z"))
    assert found(done.warnings) == [("de", "not parallel", "other ids than in en: 'z' only here, 'c' only there")]
    unordered = check(de=ROWS["de"][::-1])
    assert unordered.warnings == ()  # the ids say which is which


def test_the_labels_of_another_language_are_exchanged(check):
    """As in Norwegian SNLI of the paper's data: all words are known, two stand for each other."""
    turned = {"gut": "schlecht", "schlecht": "gut"}
    done = check(de=[{**row, "label": turned[row["label"]]} for row in ROWS["de"]])
    assert done.faults == ()
    (warning,) = done.warnings
    assert (warning.language, warning.kind) == ("de", "gold differs")
    assert warning.message.split("; ")[0] == (
        "other labels than in en in 3 of 3 rows: bad for good 2 times, good for bad 1 time, all there are, as if the "
        "words of 'bad' and 'good' were exchanged (a model that answers as en has it in every row scores 0% at most)"
    )
    assert "right answers to such rows are scored as wrong" in warning.message
    assert "correct the labels (for the paper's own files, `--data` with their folder takes gold" in warning.message


def test_a_label_that_differs_in_some_rows_is_not_called_exchanged(check):
    done = check(**changed("de", 2, label="schlecht"))
    text = "other labels than in en in 1 of 3 rows: bad for good 1 time (a model that answers as en has it in every row"
    assert found(done.warnings) == [("de", "gold differs", f"{text} scores 67% at most)")]


PAPER = Path(__file__).parents[2] / ".." / "shared" / "paper-data" / "snli"


@pytest.mark.skipif(not PAPER.is_dir(), reason="needs ../shared/paper-data, which is not part of the project")
def test_the_papers_norwegian_rows(tmp_path):
    done = check_task("nli", source=str(PAPER / "snli_{lang}600_test.json"), languages=["en", "no"])
    (warning,) = [each for each in done.warnings if each.kind == "gold differs"]
    assert warning.language == "no"
    assert "in 209 of 318 rows" in warning.message
    assert "the words of 'contradiction' and 'neutral' were exchanged" in warning.message
    assert "scores 34% at most" in warning.message
    whole = check_task("nli", source=str(PAPER), languages=["en", "no"])  # the folder: gold is the English one
    assert "gold differs" not in {each.kind for each in whole.warnings}
    assert len({tuple(labels.items()) for labels in whole.labels.values()}) == 1


def test_rows_that_were_not_translated(check):
    done = check(**changed("de", 1, text=ROWS["en"][1]["text"]))
    assert found(done.warnings) == [("de", "untranslated", "the same text as in en in row 2 of 3")]
    rows = {**changed("de", 1, text="42 :-)"), **changed("en", 1, text="42 :-)")}
    assert check(**rows).warnings == ()  # there is nothing to translate
    shifted = check(**changed("de", 2, text=ROWS["en"][1]["text"]))
    assert shifted.warnings == ()  # another item


def test_fields_that_translation_made_the_same(tmp_path):
    pack = {"template": "{a} {b} is", "answer_sets": {"own": {"good": "fine", "bad": "poor"}}}
    content = definition(fields=["a", "b"], languages={"en": pack}, data={"source": "rows.jsonl"})
    rows = [{"a": "one", "b": "one", "label": "good"}, {"a": "one", "b": "two", "label": "bad"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = check_task(write_task(tmp_path / "mood.yaml", content))
    assert found(done.warnings) == [("en", "same fields", "a and b are the same in row 1")]


def test_demonstrations_among_the_test_rows(check):
    content = pack(pool=[{"label": "good", "text": " Kuchen für alle!"}])
    content["languages"]["en"]["pool"] = [{"label": "good", "text": "Cakes."}]
    done = check(content, **changed("de", 1, text="Es regnet. "))
    assert found(done.warnings) == [("de", "leakage", "demonstrations[1] is row 2 and pool[1] is row 3")]


def test_test_rows_in_a_preamble(check):
    text = VERBATIM.replace("Sonne!", "Kuchen für alle!")
    english = text.replace("gut", "fine").replace("schlecht", "poor")
    done = check(pack(**BARE, preamble={"own": text, "english": english}))
    assert found(done.warnings) == [("de", "leakage", "row 3 stands in the preamble")]
    short = check(pack(**BARE, preamble={"own": VERBATIM, "english": english}), **changed("de", 0, text="regnet"))
    assert "row 1" not in "".join(each.message for each in short.warnings)


# --- the paper's layout, and what is not there


def test_a_folder_in_the_papers_layout(tmp_path):
    words = {"good": ["positive", "negative"], "bad": ["?", "!"]}
    for code, (a, b) in (("en", words["good"]), ("bn", words["bad"])):
        rows = [{"input": f"{code} one", "answer": a}, {"input": f"{code} two", "answer": b}]
        (tmp_path / f"emotion_{code}2_test.json").write_text(json.dumps(rows), encoding="utf-8")
    done = check_task("sentiment", source=str(tmp_path), languages=["en", "bn", "de"])
    assert [(each.language, each.kind) for each in done.faults] == [("de", "test rows")]
    assert done.labels == dict.fromkeys(("en", "bn"), {"positive": 1, "negative": 1})  # gold is the English one
    assert done.prompts["bn"].count("bn one") == 1


def test_languages_that_the_bundled_sample_lacks_are_no_fault(tmp_path):
    content = load_task("sentiment").model_dump(mode="json", exclude_none=True)
    content["languages"] = {code: content["languages"][code] for code in ("en", "de")}
    content["languages"]["ko"] = {**content["languages"]["de"], "demonstrations": [], "pool": []}
    done = check_task(write_task(tmp_path / "mine.yaml", content))
    assert done.faults == ()
    assert list(done.rows) == ["en", "de"]
