from __future__ import annotations

import pandas as pd
import pytest

from glotlift.explanation.token_sets import (
    SETS,
    coverage_frame,
    coverage_metadata,
    coverage_warnings,
    token_sets,
)
from glotlift.models.token_bytes import beginnings, readable, token_bytes


@pytest.fixture(params=["byte_level", "sentencepiece_style"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def spelled(tokenizer, tokens) -> set[str]:
    return {readable(tokenizer, token) for token in tokens}


@pytest.mark.parametrize("word", ["positive", "积极", "บวก", "jákvæð", "положителен"])
def test_tokens_that_begin_a_word_are_those_of_a_walk_over_the_vocabulary(tokenizer, word):
    raw, found = word.encode(), set()
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    for token in range(len(tokenizer)):
        if token in special:
            continue
        text = token_bytes(tokenizer, token)
        text = text[1:] if text.startswith(b" ") else text
        if text and raw.startswith(text):
            found.add(token)
    assert beginnings(tokenizer, word) == found
    assert any(token_bytes(tokenizer, token) == raw[:1] for token in found)  # both have the single bytes


def test_a_control_token_begins_no_word(sentencepiece_style):
    assert sentencepiece_style.convert_tokens_to_ids("<s>") not in beginnings(sentencepiece_style, "<s>")


def test_parts_of_characters_are_shown_as_bytes(tokenizer):
    (token,) = (token for token in beginnings(tokenizer, "บวก") if token_bytes(tokenizer, token) == b"\xe0")
    assert readable(tokenizer, token) == "⟨E0⟩"
    letter, *_ = (token for token in beginnings(tokenizer, "good") if token_bytes(tokenizer, token) == b"g")
    assert readable(tokenizer, letter) == "g"


def test_sets_are_disjoint_and_lose_no_token(tokenizer):
    english, own = {"good": "apple", "bad": "beer"}, {"good": "apfel", "bad": "übel"}
    sets = token_sets(tokenizer, english, own)
    listed = [token for tokens in sets.by_name.values() for token in tokens]
    whole = [beginnings(tokenizer, word) for word in (*english.values(), *own.values())]
    assert len(listed) == len(set(listed)) and set(listed) == frozenset().union(*whole)
    assert list(sets.tokens) == listed
    assert set(sets.english) <= whole[0] | whole[1] and set(sets.own) <= whole[2] | whole[3]
    assert "a" in spelled(tokenizer, sets.shared) and "b" in spelled(tokenizer, sets.english)
    assert spelled(tokenizer, sets.partial) == {"⟨C3⟩"}


def test_tokens_of_two_labels_are_ambiguous_across_languages_too(tokenizer):
    sets = token_sets(tokenizer, {"good": "nice", "bad": "ill"}, {"good": "gut", "bad": "nein"})
    assert "n" in spelled(tokenizer, sets.ambiguous)
    assert "n" not in spelled(tokenizer, (*sets.english, *sets.own, *sets.shared))
    assert "g" in spelled(tokenizer, sets.own) and "i" in spelled(tokenizer, sets.english)
    both = token_sets(tokenizer, {"good": "nice", "bad": "ill"}, {"good": "neat", "bad": "nil"})
    assert "n" in spelled(tokenizer, both.ambiguous) and "n" not in spelled(tokenizer, both.shared)


def test_a_part_of_a_character_is_partial_though_two_labels_begin_with_it(tokenizer):
    sets = token_sets(tokenizer, {"good": "nice", "bad": "ill"}, {"good": "บวก", "bad": "ลบ"})
    assert "⟨E0⟩" in spelled(tokenizer, sets.partial)
    assert all(not token_bytes(tokenizer, token).decode(errors="ignore").strip() for token in sets.partial)
    for name in ("english", "own", "shared", "ambiguous"):
        assert not any("⟨" in text and len(text) == 4 for text in spelled(tokenizer, sets.by_name[name]))


def test_in_english_all_is_english(tokenizer):
    same = {"good": "nice", "bad": "ill"}
    sets = token_sets(tokenizer, same, dict(same))
    assert sets.english and not sets.own and not sets.shared


def test_coverage_counts_each_set_and_label(tokenizer):
    sets = token_sets(tokenizer, {"good": "nice", "bad": "ill"}, {"good": "gut", "bad": "nein"})
    coverage = coverage_metadata(tokenizer, sets)
    assert coverage["n_tokens"] == {name: len(tokens) for name, tokens in sets.by_name.items()}
    assert sum(coverage["share"].values()) == pytest.approx(1)
    for label in ("good", "bad"):
        assert coverage["per_label"][label]["ambiguous"] >= 1  # `n` counts for both
    assert coverage["per_label"]["good"]["own"] + coverage["per_label"]["bad"]["own"] == len(sets.own)


def test_the_audit_names_words_that_no_token_tells(tokenizer):
    english = {"good": "great", "bad": "bull"}
    frame = coverage_frame(tokenizer, english, {"en": english, "xx": {"good": "n", "bad": "nqq"}})
    assert frame[["language", "label"]].to_numpy().tolist() == [
        ["en", "good"], ["en", "bad"], ["xx", "good"], ["xx", "bad"]
    ]  # fmt: skip
    assert (frame[list(SETS)].sum(axis=1) > 0).all()
    warnings = coverage_warnings(frame)
    assert len(warnings) == 1
    assert warnings[0].startswith("xx: no token begins the own word of good, bad and no other")
    assert not coverage_warnings(frame.loc[frame["language"] == "en"])
    assert isinstance(frame, pd.DataFrame)
