"""A small sound task with rows beside it, and what `check_task` finds in it."""

import json

import pytest

from glotlift.evaluation.check import check_task
from glotlift.evaluation.findings import TaskCheck
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
            (tmp_path / f"rows_{code}.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")
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


def pack(code: str = "de", **changes) -> dict:
    content = sound()
    content["languages"][code] = {k: v for k, v in {**content["languages"][code], **changes}.items() if v is not ...}
    return content


VERBATIM = 'Text: Es regnet.\nStimmung: "schlecht"\n\nText: Sonne!\nStimmung: "gut"\n\n'
BARE = {"demonstrations": ...}
OWN = {"good": "gut", "bad": "schlecht"}
