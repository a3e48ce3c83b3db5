"""JSON that Python would take silently, or answer with an error of its own."""

import pytest

from glotlift.errors import DataError, OutputError
from glotlift.strict_json import parse_json, read_json

FAULTS = {
    '{"a": 1, "b": 2, "a": 3}': r"x: got the key 'a' twice in one object, expected distinct keys",
    '[{"a": {"b": [{"c": 1, "c": 1}]}}]': r"x: got the key 'c' twice",
    '{"a": NaN}': r"x: got NaN, which is no JSON, expected null or a number",
    "[-Infinity]": r"x: got -Infinity, which is no JSON",
    "[" * 100_000: r"x: got values nested too deeply to be read, expected fewer levels",
    '{"a":' * 100_000: r"x: got values nested too deeply",
    '{"a": ' + "9" * 5000 + "}": r"x: got a whole number of more than 4,000 digits",
    '{"a": 1,\n"b"}': r"x, line 2, column 4: not valid JSON: Expecting ':' delimiter",
    "": r"x, line 1, column 1: not valid JSON: Expecting value",
    "{'a': 1}": r"x, line 1, column 2: not valid JSON",
    '{"a": 1} {"b": 2}': r"x, line 1, column 10: not valid JSON: Extra data",
    '{"a": "\0"}': r"x, line 1, column 8: not valid JSON: Invalid control character",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_one_sentence(text):
    with pytest.raises(DataError, match=f"^{FAULTS[text]}"):
        parse_json(text, "x", DataError)


def test_text_that_is_a_line_of_a_file_says_which(tmp_path):
    with pytest.raises(DataError, match="^x, line 7, column 6: not valid JSON"):
        parse_json('{"a":}', "x", DataError, line=7)
    with pytest.raises(DataError, match="^x, line 7: got NaN"):
        parse_json('{"a": NaN}', "x", DataError, line=7)


def test_sound_json_is_what_it_says():
    assert parse_json('{"a": [1, 2.5, null, true, {"a": "é"}]}', "x", DataError) == {
        "a": [1, 2.5, None, True, {"a": "é"}]
    }


def test_files_are_utf_8(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(path, OutputError) == {"a": 1}
    path.write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(OutputError, match=r"x\.json: cannot be read as UTF-8 text"):
        read_json(path, OutputError)
    with pytest.raises(OutputError, match=r"gone\.json: cannot be read as UTF-8 text \(.*No such file"):
        read_json(tmp_path / "gone.json", OutputError)
