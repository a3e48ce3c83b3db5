"""What was found is written out as text, each finding in its place."""

from pathlib import Path

from glotlift.evaluation import findings
from glotlift.evaluation.check import check_task
from glotlift.tasks.load import load_task
from tests.evaluation.conftest import changed
from tests.tasks.test_load import write_task

DOCS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


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
    for kind, advice in {**findings.FAULTS, **findings.WARNINGS}.items():
        text = findings.finding("de", kind, "something")
        found = {"faults" if kind in findings.FAULTS else "warnings": (text,)}
        lines = list(findings.TaskCheck("x", **found).lines())
        assert "    de: something" in lines
        assert f"  {kind}{f': {advice}' if advice else ''}" in lines
        assert f"`{kind}`" in DOCS, kind
