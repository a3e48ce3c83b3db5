"""Every reason for which the audit flags a pair, and that it flags nothing else."""

from glotlift.data.audit import audit_pairs
from glotlift.data.questions import QuestionPair, instruction, read_pairs
from glotlift.data.read import read_items
from glotlift.languages import LANGUAGES
from glotlift.tasks.load import load_task


def pair(name: str, there: str, here: str, source: str = "de") -> QuestionPair:
    task = load_task("sentiment")
    asked = f"{task.question(source, {'text': there})}\n{instruction(source, 'en')}\n"
    return QuestionPair(f"{source}:{name}", source, "en", asked, task.question("en", {"text": here}))


SOUND = [
    pair("1", "Der Akku hält keinen Tag.", "The battery does not last a day."),
    pair("2", "Passt wie angegossen und sieht gut aus.", "Fits like a glove and looks good."),
    pair("3", "Kam zwei Wochen zu spät an.", "Arrived two weeks late."),
]


def test_sound_pairs_are_counted_and_not_flagged():
    audit = audit_pairs([*SOUND, pair("1", "电池用不了一天。", "The battery does not last a day.", "zh")])
    assert audit == {
        "pairs": 4,
        "languages": {"de": 3, "zh": 1},
        "target": "en",
        "evaluation_texts_compared": 0,
        "flags": {},
        "flagged": {},
    }


def test_the_same_input_twice():
    audit = audit_pairs([*SOUND, pair("9", "Kam zwei Wochen zu spät an.", "It arrived two weeks late.")])
    assert audit["flagged"] == {"de:9": ["duplicate"]}


def test_a_text_that_was_left_in_english():
    """The names of the fields differ between languages, so whole lines are no guide."""
    audit = audit_pairs([*SOUND, pair("9", "Note: it broke after a week.", "Note: it broke after a week.")])
    assert audit["flagged"] == {"de:9": ["untranslated"]}
    chinese = [pair("9", "Still works.", "Still works.", "zh")]
    assert audit_pairs(chinese)["flagged"] == {"zh:9": ["untranslated"]}


def test_a_target_of_unusual_length():
    audit = audit_pairs([*SOUND, pair("9", "Gut.", "Good. " + "And then it went on for pages. " * 10)])
    assert audit["flagged"] == {"de:9": ["length"]}
    audit = audit_pairs([*SOUND, pair("9", "Gut. " + "Und dann ging es seitenlang weiter. " * 10, "Good.")])
    assert audit["flagged"] == {"de:9": ["length"]}


def test_length_is_measured_by_what_is_usual_for_the_language():
    """Chinese needs a few characters where English needs many; that is no fault."""
    english = "It arrived late, one of the corners was dented and nobody at the shop ever answered. " * 6
    chinese = [pair(str(k), f"到货晚了，边角还磕瘪了{k}。" * 3, english, "zh") for k in range(5)]
    assert len(english) > 3 * len(chinese[0].input)
    assert audit_pairs([*SOUND, *chinese])["flagged"] == {}


def test_a_text_of_the_evaluation_in_input_or_target():
    seen = ["  The battery does not last a day. ", "Kam zwei Wochen zu spät an.", "looks good", "not there at all, no"]
    audit = audit_pairs(SOUND, seen)
    assert audit["flagged"] == {"de:1": ["in evaluation"], "de:3": ["in evaluation"]}
    assert audit["evaluation_texts_compared"] == 3  # short texts stand in many others by chance


def test_all_reasons_of_a_row_are_kept():
    again = pair("9", "Der Akku hält keinen Tag.", "The battery does not last a day.")
    audit = audit_pairs([*SOUND, again], ["The battery does not last a day."])
    assert audit["flagged"] == {"de:1": ["in evaluation"], "de:9": ["duplicate", "in evaluation"]}
    assert audit["flags"] == {"in evaluation": 2, "duplicate": 1}


def test_no_pairs():
    assert audit_pairs([])["target"] is None


def test_the_bundled_questions_pass_against_the_bundled_items():
    task = load_task("sentiment")
    items = read_items(task, "sample", tuple(LANGUAGES))
    texts = [text for rows in items.values() for item in rows for text in item.fields.values()]
    audit = audit_pairs(read_pairs(task, "sample", ("zh", "de", "es", "sw")), texts)
    assert audit["languages"].keys() == {"zh", "de", "es", "sw"}
    assert audit["flagged"] == {}
