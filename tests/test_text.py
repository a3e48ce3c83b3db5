"""Texts that are the same to a reader."""

import pytest

from glotlift.text import caseless, folded


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("A cat.", "  a\n\tcat. "),
        ("Ａ ｃａｔ．", "a cat."),
        ("caf\u00e9", "CAFE\u0301"),
        ("STRASSE", "straße"),
        ("a\u00a0cat", "a\u3000cat"),
        ("co\u00adop\u200b\ufeff", "coop"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("e\u200d\u0301", "é"),
        ("가", "\u1100\u1161"),
    ],
)
def test_texts_that_read_the_same_fold_to_one(text, other):
    assert folded(text) == folded(other)


@pytest.mark.parametrize(("text", "other"), [("café", "cafe"), ("a cat", "acat"), ("cat", "cat."), ("हिं", "हि")])
def test_texts_that_read_differently_stay_apart(text, other):
    assert folded(text) != folded(other)


def test_folding_again_changes_nothing():
    for text in ("İstanbul", "ﬃ\u0345Ω", "ǅ \u2003 ẞ"):
        assert folded(folded(text)) == folded(text)


def test_letter_case_goes_and_lines_stay():
    assert caseless("Ａ\n  B") == "a\n  b"
