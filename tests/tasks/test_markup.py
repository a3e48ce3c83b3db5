"""Control strings that are known without a tokenizer."""

import pytest

from glotlift.tasks.load import load_task
from glotlift.tasks.markup import known_control, layout_text


def test_the_text_of_layouts_is_what_stands_around_the_fields():
    text = layout_text(load_task("sentiment"))
    assert 'Sentiment: "' in text
    assert len(text.splitlines()) >= 20


@pytest.mark.parametrize(
    "string",
    ["<s>", "</s>", "<pad>", "<eos>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[INST]", "[/INST]"]
    + ["[SEP]", "<think>", "</think>", "<｜end▁of▁sentence｜>"],
)
def test_a_known_control_string_is_found_once(string):
    assert known_control(f"a{string}b {string}") == [string]
    assert known_control(f"a{string}b", f"Text: {string}") == []


@pytest.mark.parametrize(
    "text", ["", "a < b > c", "x<y|z>", "<|a b|>", "[1] [sic]", "<em>so</em>", "if a<s and b>s", "||"]
)
def test_other_brackets_are_not(text):
    assert known_control(text) == []


@pytest.mark.parametrize("name", ["sentiment", "nli", "paraphrase"])
def test_bundled_layouts_and_examples_have_none(name):
    task = load_task(name)
    assert known_control(layout_text(task)) == []
    for code in task.languages:
        assert known_control(task.preamble(code, "own")) == []
