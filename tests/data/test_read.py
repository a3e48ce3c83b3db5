"""Every kind of source, and every fault of one with its file and row."""

import gzip
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from glotlift.data.read import Table, gold_column, paper_file, path_of, read_items, read_table, read_tables
from glotlift.errors import DataError
from glotlift.evaluation.settings import EvalTask
from glotlift.languages import LANGUAGES
from glotlift.tasks.load import load_task
from glotlift.tasks.task import TaskData
from tests.tasks.test_task import build, definition

ROWS = [
    {"id": "a", "text": "Great, really.", "label": "positive"},
    {"id": "b", "text": "Bad.\nVery “bad”, she said.", "label": "negative"},
]


@pytest.fixture
def sentiment():
    return load_task("sentiment")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character can only be escaped
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write(path: Path, kind: str) -> Path:
    """Write `ROWS` as a file of a kind."""
    path = path / f"rows.{kind}"
    if kind == "json":
        return write_json(path, ROWS)
    if kind == "jsonl":
        return write_jsonl(path, ROWS)
    frame = pd.DataFrame(ROWS)
    if kind == "csv":
        frame.to_csv(path, index=False, encoding="utf-8-sig")  # with a byte order mark; the newline gets quoted
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path, kind, sentiment):
    path = write(tmp_path, kind)
    assert read_table(path).rows == ROWS
    items = read_items(sentiment, str(path), ("en",))["en"]
    assert [(item.id, dict(item.fields), item.gold) for item in items] == [
        ("a", {"text": ROWS[0]["text"]}, "positive"),
        ("b", {"text": ROWS[1]["text"]}, "negative"),
    ]


def test_a_line_separator_inside_a_text_does_not_end_a_row(tmp_path):
    """JSON may hold U+2028 and U+0085 as they are; str.splitlines would cut there."""
    rows = [{"text": "one\u2028two\u0085three", "label": "positive"}, {"text": "four", "label": "negative"}]
    assert read_table(write_jsonl(tmp_path / "rows.jsonl", rows)).rows == rows


def test_line_ends_inside_a_quoted_cell_are_kept(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b'text,label\r\n"one\r\ntwo\nthree",positive\r\n')
    assert read_table(tmp_path / "rows.csv").rows == [{"text": "one\r\ntwo\nthree", "label": "positive"}]


def test_json_files_may_open_with_a_byte_order_mark(tmp_path):
    for name, text in (("a.json", json.dumps(ROWS)), ("a.jsonl", "\n".join(json.dumps(row) for row in ROWS))):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_table(tmp_path / name).rows == ROWS


def test_gold_and_fields_may_stand_in_other_columns(tmp_path, sentiment):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"review": "Fine.", "verdict": "gut", "label": "negative"}])
    own = sentiment.answers("de", "own")
    rows = [{"review": "Fein.", "verdict": own["positive"], "label": "negative"}]
    write_jsonl(path, rows)
    items = read_items(sentiment, str(path), ("de",), gold="verdict", columns={"text": "review"})["de"]
    assert (items[0].fields, items[0].gold, items[0].id) == ({"text": "Fein."}, "positive", "0")
    assert read_items(sentiment, str(path), ("de",), columns={"text": "review"})["de"][0].gold == "negative"


def test_one_file_a_language_and_the_limit(tmp_path, sentiment):
    for code in ("en", "de"):
        write_jsonl(tmp_path / f"rows_{code}.jsonl", [{**row, "text": code + row["text"]} for row in ROWS])
    items = read_items(sentiment, str(tmp_path / "rows_{lang}.jsonl"), ("de", "en"), limit=1)
    assert list(items) == ["de", "en"]
    assert [len(rows) for rows in items.values()] == [1, 1]
    assert items["de"][0].fields["text"] == "deGreat, really."


def test_one_file_for_several_languages_is_refused(tmp_path, sentiment):
    path = write(tmp_path, "jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl: one file for 2 languages, expected `\{lang\}` in the path"):
        read_items(sentiment, str(path), ("en", "de"))
    with pytest.raises(DataError, match=r"nowhere: no such file or folder, expected"):
        path_of(str(tmp_path / "nowhere"), "en", ("en", "de"))


# --- what the task file says


def with_data(task, **data):
    return task.model_copy(update={"data": TaskData(**data)})


def test_rows_gold_and_columns_of_the_task_file(tmp_path, sentiment):
    rows = [{"review": "Fine.", "verdict": "positive", "label": "negative", "text": "Other."}]
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    task = with_data(sentiment, source=source, gold="verdict", columns={"text": "review"})
    item = read_items(task, None, ("en",))["en"][0]
    assert (dict(item.fields), item.gold) == ({"text": "Fine."}, "positive")
    told = read_items(task, None, ("en",), gold="label", columns={"text": "text"})["en"][0]
    assert (dict(told.fields), told.gold) == ({"text": "Other."}, "negative")  # a recipe wins over the task file
    other = str(write_jsonl(tmp_path / "other.jsonl", [{"review": "Bad.", "verdict": "negative"}]))
    assert read_items(task, other, ("en",))["en"][0].gold == "negative"


def test_without_a_source_a_task_has_its_sample(sentiment):
    assert len(read_items(sentiment, None, ("de",))["de"]) == len(read_items(sentiment, "sample", ("de",))["de"]) > 1


MIXED = [
    {"lang": "de", "text": "Gut.", "label": "positive"},
    {"lang": "en", "text": "Good.", "label": "positive"},
    {"lang": "de", "text": "Schlecht.", "label": "negative"},
    {"lang": "sw", "text": "Nzuri.", "label": "positive"},
]


def test_one_file_for_all_languages(tmp_path, sentiment):
    source = str(write_jsonl(tmp_path / "rows.jsonl", MIXED))
    task = with_data(sentiment, source=source, language_column="lang")
    items = read_items(task, None, ("en", "de"))
    texts = {code: [item.fields["text"] for item in rows] for code, rows in items.items()}
    assert texts == {"en": ["Good."], "de": ["Gut.", "Schlecht."]}
    assert [item.id for item in items["de"]] == ["0", "1"]
    assert read_items(task, source, ("sw",))["sw"][0].gold == "positive"
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows in fr, th; column 'lang' has: de en sw"):
        read_items(task, None, ("de", "fr", "th"))
    with pytest.raises(DataError, match=r"rows\.jsonl: one file for 2 languages, expected `\{lang\}` in the path"):
        read_items(sentiment, source, ("en", "de"))  # which column, only the task file says


def test_the_language_column_is_that_of_the_task_files_own_rows(tmp_path, sentiment):
    task = with_data(sentiment, source=str(write_jsonl(tmp_path / "rows.jsonl", MIXED)), language_column="lang")
    other = write_jsonl(tmp_path / "other_en.jsonl", ROWS)
    assert len(read_items(task, str(other), ("en",))["en"]) == 2


def test_a_fault_in_one_file_for_all_languages_names_the_language(tmp_path, sentiment):
    source = str(write_jsonl(tmp_path / "rows.jsonl", [*MIXED[:2], {**MIXED[2], "label": "meh"}]))
    task = with_data(sentiment, source=source, language_column="lang")
    with pytest.raises(DataError, match=r"rows\.jsonl \(lang de\), row 2: unknown label 'meh'"):
        read_items(task, None, ("de",))
    write_jsonl(tmp_path / "rows.jsonl", [*MIXED, {"text": "x", "label": "positive"}])
    with pytest.raises(DataError, match=r"rows\.jsonl, row 5: no column 'lang'; it has: text, label"):
        read_items(task, None, ("de",))


def test_one_hub_data_set_for_all_languages(monkeypatch, sentiment):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(MIXED)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = with_data(sentiment, source="hub:owner/reviews", language_column="lang")
    items = read_items(task, None, ("en", "de"))
    assert asked == [("owner/reviews", None, "test")]  # once for all languages
    assert [item.gold for item in items["de"]] == ["positive", "negative"]


def test_label_ids_may_be_numbers_in_the_rows(tmp_path):
    task = build(
        definition(
            labels=["0", "1"],
            answer_sets={},
            languages={"en": {"template": "{text} is", "answer_sets": {"own": {"0": "poor", "1": "fine"}}}},
        )
    )
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "0"}, {"text": "c", "label": "fine"}]
    items = read_items(task, str(write_jsonl(tmp_path / "rows.jsonl", rows)), ("en",))["en"]
    assert [item.gold for item in items] == ["1", "0", "1"]
    pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}).to_parquet(tmp_path / "rows.parquet")
    items = read_items(task, str(tmp_path / "rows.parquet"), ("en",))["en"]
    assert [item.gold for item in items] == ["1", "0"]
    for value in (None, 1.5, [1], {}):
        path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": value}])
        with pytest.raises(
            DataError, match=rf"row 1: gold is {re.escape(repr(value))}, expected text, a whole number or"
        ):
            read_items(task, str(path), ("en",))
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 2}])
    with pytest.raises(DataError, match="row 1: unknown label '2'; expected one of: 0, 1, poor, fine"):
        read_items(task, str(path), ("en",))


GOLDS = {
    "numbers": ({0: "negative", 1: "positive"}, [1, 0, 1.0]),
    "digits": ({0: "negative", 1: "positive"}, ["1", "0", 1]),
    "booleans": ({False: "negative", True: "positive"}, [True, False, "True"]),
    "text": ({"+": "positive", "-": "negative"}, ["+", "-", "+"]),
    "words": ({"good": "ox", "bad": "horse"}, ["good", "bad", "good"]),
    "several a label": ({4: "positive", 5: "positive", 1: "negative"}, [4, 1, 5]),
}


@pytest.mark.parametrize("name", GOLDS)
def test_what_gold_values_mean_may_be_said(tmp_path, sentiment, name):
    gold_map, golds = GOLDS[name]
    entry = EvalTask.model_validate({"task": "sentiment", "gold_map": gold_map})
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "stars": gold} for gold in golds])
    items = read_items(sentiment, str(path), ("en",), gold="stars", gold_map=entry.gold_map)["en"]
    assert [item.gold for item in items] == ["positive", "negative", "positive"]


def test_gold_that_means_nothing_is_told_with_what_to_do(tmp_path, sentiment):
    def refused(gold, **options):
        path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": gold}])
        with pytest.raises(DataError) as caught:
            read_items(sentiment, str(path), ("en",), **options)
        return str(caught.value)

    assert "or say what 0 and the others mean with `gold_map: {0: positive, ...}`" in refused(0)
    assert "or say what true and the others mean with `gold_map: {true: positive, ...}`" in refused(True)
    assert refused(3, gold_map={"0": "negative", "1": "positive"}).endswith(
        "row 1: gold is 3, expected 0 or 1, as gold_map says"
    )
    assert refused(True, gold_map={"1": "positive"}).endswith("gold is True, expected 1, as gold_map says")
    assert "unknown label 'wonderful'" in refused(1, gold_map={"1": "wonderful"})


def test_one_file_with_a_column_a_language(tmp_path, sentiment):
    rows = [{"id": "a", "text_en": "Good.", "text_de": "Gut.", "label": "positive"}]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    items = read_items(sentiment, path, ("en", "de"), columns={"text": "text_{lang}"})
    assert {code: each[0].fields["text"] for code, each in items.items()} == {"en": "Good.", "de": "Gut."}
    with pytest.raises(DataError, match=r"row 1: no column 'text_fr'; it has: id, text_en, text_de, label"):
        read_items(sentiment, path, ("en", "fr"), columns={"text": "text_{lang}"})
    with pytest.raises(DataError, match="one file for 2 languages"):
        read_items(sentiment, path, ("en", "de"), columns={"text": "text_en"})
    by_gold = str(write_jsonl(tmp_path / "gold.jsonl", [{**rows[0], "label_de": "negative", "label_en": "positive"}]))
    found = read_items(sentiment, by_gold, ("en", "de"), columns={"text": "text_{lang}"}, gold="label_{lang}")
    assert [found[code][0].gold for code in ("en", "de")] == ["positive", "negative"]


def test_one_data_set_of_the_hub_is_not_taken_for_all_languages(monkeypatch, sentiment):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a"], "text_de": ["b"], "text_en": ["c"], "label": ["positive"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    with pytest.raises(DataError, match=r"hub:x/y: got one data set for 2 languages, expected `\{lang\}` in its name"):
        read_items(sentiment, "hub:x/y", ("en", "de"))
    found = read_items(sentiment, "hub:x/y", ("en", "de"), columns={"text": "text_{lang}"})
    assert [found[code][0].fields["text"] for code in ("en", "de")] == ["c", "b"]
    assert read_items(sentiment, "hub:x/y", ("en",))["en"][0].fields["text"] == "a"


@pytest.mark.parametrize(("same", "different"), [("same", "different"), ("yes", "no")])
def test_the_papers_own_paws_files(tmp_path, same, different):
    for code, words in (("en", (same, different)), ("de", ("gleich", "verschieden"))):
        rows = [{"sentence1": f"{code} a", "sentence2": "b", "answer": word} for word in (*words, words[0])]
        (tmp_path / f"paws_{code}500_test.json").write_text(json.dumps(rows), encoding="utf-8")
    items = read_items(load_task("paraphrase"), str(tmp_path), ("en", "de"))
    for code in ("en", "de"):
        assert [item.gold for item in items[code]] == ["yes", "no", "yes"]
    assert items["de"][0].fields == {"sentence1": "de a", "sentence2": "b"}


def test_a_task_file_may_say_columns_and_gold_without_saying_where(tmp_path):
    task = build(definition(data={"gold": "stars", "gold_map": {5: "good", 1: "bad"}, "columns": {"text": "review"}}))
    path = write_jsonl(tmp_path / "rows.jsonl", [{"review": "a", "stars": 5}, {"review": "b", "stars": 1}])
    items = read_items(task, str(path), ("en",))["en"]
    assert [(item.fields["text"], item.gold) for item in items] == [("a", "good"), ("b", "bad")]
    with pytest.raises(DataError, match="has no bundled sample"):
        read_items(task, None, ("en",))


def test_tables_are_read_as_they_are(tmp_path, sentiment):
    """Without a look at fields and gold, so that a check can name all their faults."""
    path = write_jsonl(tmp_path / "rows_en.jsonl", [{"txt": None}, {"label": 3}])
    tables = read_tables(sentiment, str(tmp_path / "rows_{lang}.jsonl"), ("en",))
    assert {code: (table.source, table.rows) for code, table in tables.items()} == {
        "en": (str(path), [{"txt": None}, {"label": 3}])
    }
    with pytest.raises(DataError, match=r"rows_de\.jsonl: no such file"):
        read_tables(sentiment, str(tmp_path / "rows_{lang}.jsonl"), ("en", "de"))


def test_the_gold_column(tmp_path):
    table = Table("rows.csv", [{"text": "a", "gold": "x", "answer": "y"}])
    assert gold_column(table, None) == "answer"  # in the order of `GOLD_COLUMNS`
    assert gold_column(table, "text") == "text"
    with pytest.raises(
        DataError, match=r"rows\.csv, row 1: no gold column; it has text, gold, answer, expected verdict"
    ):
        gold_column(table, "verdict")


FAULTS = {
    "not-json.json": ('[\n{"text": "a"},\n{"text" "b"}]', r"not-json\.json, line 3, column 9: not valid JSON"),
    "object.json": ('{"a": 1}', r"object\.json: got a JSON dict, expected a list of objects"),
    "scalar-row.json": ('[{"text": "a"}, 7]', r"scalar-row\.json, row 2: got 7, expected an object"),
    "line.jsonl": ('{"text": "a"}\n\n{"text": \n', r"line\.jsonl, line 3, column 10: not valid JSON"),
    "scalar.jsonl": ('{"text": "a"}\n[1]\n', r"scalar\.jsonl, line 2: got \[1\], expected an object"),
    "few.csv": ("id,text,label\n1,a\n", r"few\.csv, line 2: got 2 cells, expected 3 cells as in the header"),
    "many.csv": ('id,text\n1,"a\n\nb"\n2,b,c\n', r"many\.csv, line 5: got 3 cells, expected 2 cells as in the header"),
    "open.csv": (
        'text,label\nfine,positive\n"hello there,negative\nbad,negative\nugly,negative\n',
        r"open\.csv, line 3: not valid CSV: got a quote that is never closed, expected another one behind",
    ),
    "closed-later.csv": (
        'text,label\n"hello there,negative\n"bad",negative\n',
        r"closed-later\.csv, line 2: not valid CSV: ',' expected after '\"'",
    ),
    "behind.csv": ('text,label\n"a"b,positive\n', r"behind\.csv, line 2: not valid CSV: ',' expected after '\"'"),
    "open.tsv": ('text\tlabel\n"a\tpositive\n', r"open\.tsv, line 2: not valid CSV: got a quote that is never closed"),
    "twice.csv": ("text,label,text\na,positive,b\n", r"twice\.csv, line 1: got two columns 'text', expected distinct"),
    "nameless.csv": ("text,,label\na,b,positive\n", r"nameless\.csv, line 1: got no name for column 2, expected one"),
    "nul.csv": ("text,label\na\0,positive\nb,negative,x\n", r"nul\.csv, line [23]: "),
    "twice.json": ('[{"text": "a", "text": "b"}]', r"twice\.json: got the key 'text' twice in one object"),
    "twice.jsonl": (
        '{"text": "a"}\n{"text": "a", "x": {"y": 1, "y": 2}}\n',
        r"twice\.jsonl, line 2: got the key 'y' twice",
    ),
    "nan.jsonl": ('{"text": "a", "label": NaN}\n', r"nan\.jsonl, line 1: got NaN, which is no JSON"),
    "deep.json": ("[" * 100_000, r"deep\.json: got values nested too deeply"),
    "huge.jsonl": (
        '{"id": ' + "9" * 5000 + "}\n",
        r"huge\.jsonl, line 1: got a whole number of more than 4,000 digits",
    ),
    "junk.jsonl.gz": ("junk", r"junk\.jsonl\.gz: cannot be read"),
    "rows.parquet.gz": ("junk", r"rows\.parquet\.gz: got a file of kind '\.parquet\.gz', expected"),
    "head.csv": ("id,text\n", r"head\.csv: got no rows, expected at least one"),
    "empty.jsonl": ("\n", r"empty\.jsonl: got no rows, expected at least one"),
    "junk.parquet": ("PAR1 junk that is long enough", r"junk\.parquet: not valid Parquet"),
    "rows.txt": ("a", r"rows\.txt: got a file of kind '\.txt', expected \.json, \.jsonl, \.csv, \.tsv or \.parquet"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_read_says_where(tmp_path, name):
    text, message = FAULTS[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


TEXTS = ["plain", 'with "quotes", and a comma', "two\nlines", "tab\there", "é" * 200_000, "", "'", "\\"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.CSV", "a.csv.gz", "a.JSONL.GZ", "a.Json", "a.tsv.gz"])
def test_endings_in_any_case_and_compressed(tmp_path, name):
    rows = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]
    kind = name.lower().removesuffix(".gz").rpartition(".")[2]
    frame = pd.DataFrame(rows)
    if kind == "json":
        text = json.dumps(rows)
    elif kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = frame.to_csv(index=False, sep="\t" if kind == "tsv" else ",")
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert read_table(tmp_path / name).rows == rows


@pytest.mark.parametrize("given", [None, float("nan"), ""])
def test_an_id_that_is_none_is_no_id(given):
    with pytest.raises(DataError, match=r"rows, row 2: the id is .+, expected one in every row, or no column"):
        Table("rows", [{"id": "a"}, {"id": given}]).ids()


def test_a_missing_file_a_folder_and_other_encodings(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: no such file, expected"):
        read_table(tmp_path / "gone.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json: cannot be read"):
        read_table(tmp_path / "folder.json")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl: cannot be read"):
        read_table(tmp_path / "latin.jsonl")


ROW_FAULTS = {
    "no gold at all": ([{"text": "a"}], r"row 1: no gold column; it has text, expected label, answer or gold"),
    "no gold in a row": ([ROWS[0], {"id": "b", "text": "x"}], r"row 2: no column 'label'"),
    "unknown label": ([ROWS[0], {**ROWS[1], "label": "meh"}], r"row 2: unknown label 'meh'; expected one of: positive"),
    "number": ([{**ROWS[0], "label": 1}], r"row 1: unknown label '1'; expected one of: positive"),
    "empty": ([ROWS[0], {**ROWS[1], "text": " \n"}], r"row 2: 'text' is empty, expected text"),
    "no field": ([{"txt": "a", "label": "positive"}], r"row 1: no column 'text'; it has: txt, label"),
    "null": ([{"text": None, "label": "positive"}], r"row 1: 'text' is None, expected text"),
    "half a character": (
        [ROWS[0], {**ROWS[1], "text": "Bad \ud83d"}],
        r"row 2: 'text' holds '\\ud83d', half of a surrogate pair, expected whole characters",
    ),
    "half a character in gold": ([{**ROWS[0], "label": "\udc00"}], r"row 1: 'label' holds '\\udc00', half of a surro"),
    "half a character in an id": ([ROWS[0], {**ROWS[1], "id": "b\ud800"}], r"row 2: 'id' holds '\\ud800', half of a s"),
    "same id": ([ROWS[0], ROWS[1], ROWS[0]], r"rows 1 and 3 have the id 'a', expected distinct ids"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_row_at_fault_is_named_with_its_file(tmp_path, fault, sentiment):
    rows, message = ROW_FAULTS[fault]
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    with pytest.raises(DataError, match=r"test\.jsonl[:,] " + message):
        read_items(sentiment, str(path), ("en",))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_whole_characters_may_be_written_as_two_escapes(tmp_path, kind, sentiment):
    """As JSON does; and half of one in a column that nobody reads is nobody's fault."""
    row = '{"text": "Fine \\ud83d\\ude00", "label": "positive", "note": "\\ud83d"}'
    (tmp_path / f"rows.{kind}").write_text(f"[{row}]" if kind == "json" else row, encoding="utf-8")
    items = read_items(sentiment, str(tmp_path / f"rows.{kind}"), ("en",))["en"]
    assert items[0].fields["text"] == "Fine 😀"


def test_unknown_names_in_the_sample_and_in_the_layout(tmp_path, sentiment):
    with pytest.raises(DataError, match="'paraphrase' has no bundled sample"):
        read_items(load_task("paraphrase"), "sample", ("en",))
    with pytest.raises(DataError, match=r"got no file named emotion_en\[0-9\]\*_test\.json, expected one"):
        read_items(sentiment, str(tmp_path), ("en",))
    with pytest.raises(
        DataError, match="the paper's layout has no task 'other', expected sentiment, nli or paraphrase"
    ):
        paper_file(tmp_path, "other", "en", "test")


# --- the paper's layout

GOLD = ["entailment", "contradiction", "neutral", "neutral", "contradiction", "entailment"]
BENGALI = {"entailment": "ফলাফল-১", "neutral": "মাঝামাঝি", "contradiction": "বিরোধ!"}  # words of no answer set


@pytest.fixture
def layout(tmp_path):
    """A folder in the paper's layout: English labels in English, a bad translation's in Bengali."""
    for code, words in (("en", {label: label for label in GOLD}), ("bn", BENGALI)):
        rows = [
            {"premise": f"{code} premise {i}", "hypothesis": f"{code} hypothesis {i}", "answer": words[label]}
            for i, label in enumerate(GOLD)
        ]
        write_json(tmp_path / "snli" / f"snli_{code}6_test.json", rows)
    return tmp_path


def test_gold_comes_from_the_english_row(layout):
    """The words of the Bengali file are in no answer set, which cost the original a third of the items."""
    items = read_items(load_task("nli"), str(layout), ("bn", "en"), limit=5)
    assert [item.gold for item in items["bn"]] == GOLD[:5]
    assert items["bn"][3].fields == {"premise": "bn premise 3", "hypothesis": "bn hypothesis 3"}
    assert [item.id for item in items["bn"]] == [item.id for item in items["en"]]


def test_rows_that_are_not_parallel_are_refused(layout):
    path = layout / "snli" / "snli_bn6_test.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, [rows[1], rows[0], *rows[2:]])
    with pytest.raises(DataError, match=r"snli_bn6_test\.json, row 5: .* expected rows parallel to the English ones"):
        read_items(load_task("nli"), str(layout), ("bn",))
    write_json(path, rows[:-1])
    with pytest.raises(DataError, match=r"snli_bn6_test\.json: got 5 rows, expected 6 as in English"):
        read_items(load_task("nli"), str(layout), ("bn",))


def test_an_unknown_label_in_the_english_file_names_file_and_row(layout):
    path = layout / "snli" / "snli_en6_test.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[2]["answer"] = "perhaps"
    write_json(path, rows)
    with pytest.raises(DataError, match=r"snli_en6_test\.json, row 3: unknown label 'perhaps'"):
        read_items(load_task("nli"), str(layout), ("bn",))


def test_two_files_of_one_language_are_refused(layout):
    write_json(layout / "old" / "snli_en4_test.json", [])
    with pytest.raises(DataError, match=r"got 2 files named snli_en\[0-9\]\*_test\.json, expected one"):
        read_items(load_task("nli"), str(layout), ("en",))


PAPER = Path(__file__).parents[2] / ".." / "shared" / "paper-data"


@pytest.mark.skipif(not PAPER.is_dir(), reason="needs ../shared/paper-data, which is not part of the project")
@pytest.mark.parametrize("name", ["sentiment", "nli"])
def test_the_papers_own_files_are_parallel_in_all_languages(name):
    task = load_task(name)
    items = read_items(task, str(PAPER), tuple(LANGUAGES))
    gold = [item.gold for item in items["en"]]
    assert len(gold) >= 300
    assert set(gold) == set(task.labels)
    for rows in items.values():
        assert [item.gold for item in rows] == gold


# --- the hub


def test_hub_class_labels_become_names(monkeypatch, sentiment):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": [f"{config} one", "two"], "label": [1, 0]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = read_items(sentiment, "hub:owner/reviews:{lang}_all:dev", ("de", "sw"))
    assert asked == [("owner/reviews", "de_all", "dev"), ("owner/reviews", "sw_all", "dev")]
    assert [item.gold for item in items["sw"]] == ["positive", "negative"]
    assert items["sw"][0].fields == {"text": "sw_all one"}
    read_items(sentiment, "hub:owner/reviews", ("en",))
    assert asked[-1] == ("owner/reviews", None, "test")


def test_a_hub_row_without_label_is_named(monkeypatch, sentiment):
    """SNLI on the hub has -1 where annotators did not agree."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    with pytest.raises(DataError, match=r"hub:owner/reviews:test, row 2: gold is None, expected text, a whole"):
        read_items(sentiment, "hub:owner/reviews", ("en",))


def test_a_data_set_that_cannot_be_had_is_named(monkeypatch, sentiment):
    datasets = pytest.importorskip("datasets")

    def fail(*args, **options):
        raise ConnectionError  # some of the hub client's errors have no text

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"hub data set 'owner/none' \(config default\): ConnectionError"):
        read_items(sentiment, "hub:owner/none", ("en",))


def _class_label_file(path, names):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=names)})
    rows = {"premise": ["It rains.", "It snows."], "hypothesis": ["It is wet.", "It is hot."], "label": [0, 2]}
    Dataset.from_dict(rows, features=features).to_parquet(str(path))


def test_class_labels_of_a_parquet_file_are_their_names(tmp_path):
    """XNLI on the hub is stored so: 0, 1, 2 in the column, the names in the file's metadata."""
    _class_label_file(tmp_path / "xnli_en.parquet", ["entailment", "neutral", "contradiction"])
    items = read_items(load_task("nli"), str(tmp_path / "xnli_{lang}.parquet"), ("en",))["en"]
    assert [item.gold for item in items] == ["entailment", "contradiction"]


def test_class_names_that_are_no_labels_go_through_the_gold_map(tmp_path):
    _class_label_file(tmp_path / "x_en.parquet", ["yes", "maybe", "no"])
    source = str(tmp_path / "x_{lang}.parquet")
    with pytest.raises(DataError, match="unknown label 'yes'"):
        read_items(load_task("nli"), source, ("en",))
    words = {"yes": "entailment", "maybe": "neutral", "no": "contradiction"}
    items = read_items(load_task("nli"), source, ("en",), gold_map=words)["en"]
    assert [item.gold for item in items] == ["entailment", "contradiction"]


def test_class_names_of_columns_that_are_gone_or_text_are_left_alone(tmp_path):
    import pyarrow.parquet

    _class_label_file(tmp_path / "a.parquet", ["entailment", "neutral", "contradiction"])
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    texts = pyarrow.array(["neutral", "neutral"])
    pyarrow.parquet.write_table(table.set_column(2, "label", texts), tmp_path / "text_en.parquet")
    items = read_items(load_task("nli"), str(tmp_path / "text_{lang}.parquet"), ("en",))["en"]
    assert [item.gold for item in items] == ["neutral", "neutral"]
    pyarrow.parquet.write_table(table.drop_columns(["label"]), tmp_path / "none_en.parquet")
    with pytest.raises(DataError, match="label"):
        read_items(load_task("nli"), str(tmp_path / "none_{lang}.parquet"), ("en",))
