"""Sentences in many scripts, and questions whose translations have as many."""

import pytest

from glotlift.data.sentences import sentences, sentences_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It broke. I sent it back!  Never again?", ["It broke.", "I sent it back!", "Never again?"]),
        ("坏了。我退货了！再也不买？", ["坏了。", "我退货了！", "再也不买？"]),
        ("यह टूट गया। मैंने लौटा दिया।", ["यह टूट गया।", "मैंने लौटा दिया।"]),
        ("„Gut.“ Sagte er. Und ging.", ["„Gut.“", "Sagte er.", "Und ging."]),
        ("It costs 3.50 at most... Fine.", ["It costs 3.50 at most...", "Fine."]),
        ("Good!!! ... And cheap.", ["Good!!! ...", "And cheap."]),
        ("มันพังแล้ว ฉันส่งคืน", ["มันพังแล้ว ฉันส่งคืน"]),
        ("No end", ["No end"]),
        ("", []),
        (" . ", ["."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_only_questions_of_one_field_and_several_sentences_are_split():
    assert sentences_of({"text": "One. Two."}) == [{"text": "One."}, {"text": "Two."}]
    assert sentences_of({"text": "One."}) == []
    assert sentences_of({"premise": "One. Two.", "hypothesis": "Three. Four."}) == []
