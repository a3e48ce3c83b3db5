"""Tries, the paper's token sets, and the label audit."""

import itertools

import pytest

from glotlift.models.labels import audit_labels, build_trie, continuations, encode, is_byte_level, prefix_tokens
from glotlift.tasks.load import load_task


def test_trie_shares_beginnings():
    trie = build_trie(((1, 2, 3), (1, 2, 4), (5,)))
    assert trie.tokens == (-1, 1, 2)
    assert trie.parents == (-1, 0, 1)
    assert trie.depths == (0, 1, 2)
    assert trie.steps == (((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 2), (2, 4)), ((0, 5),))


def test_continuations_find_the_last_shared_boundary():
    assert continuations([1, 2, 3], [[1, 2, 3, 7], [1, 2, 3, 8, 9]]) == (3, ((7,), (8, 9)))
    assert continuations([1, 2, 3], [[1, 2, 3, 7], [1, 2, 38]]) == (2, ((3, 7), (38,)))


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_style"])
@pytest.mark.parametrize("word", ["positive", "negativ", "正面", "บวก", "নিরপেক্ষ"])
def test_prefix_tokens_equal_a_walk_over_the_vocabulary(kind, word, request):
    """The brute-force reference: look at every token of the vocabulary."""
    tokenizer = request.getfixturevalue(kind)
    raw = tokenizer.get_vocab()
    byte_level = kind == "byte_level"
    assert is_byte_level(tokenizer) == byte_level
    prefixes = {word[:end] for end in range(1, len(word) + 1)}
    expected = set()
    for token, number in raw.items():
        if byte_level:
            surface = tokenizer.backend_tokenizer.decoder.decode([token])
            whole = "�" not in surface
        else:
            surface, whole = token.replace("▁", " ", 1), True
        if whole and (surface in prefixes or (surface.startswith(" ") and surface[1:] in prefixes)):
            expected.add(number)
    if not word[0].isascii() and not byte_level:
        expected.add(raw[f"<0x{word[0].encode()[0]:02X}>"])
    if byte_level:
        expected |= {tokenizer(prefix, add_special_tokens=False)["input_ids"][0] for prefix in prefixes}
    assert prefix_tokens(tokenizer, word) == expected
    assert expected


def test_encode_leaves_off_a_closing_token(sentencepiece_style):
    rows = encode(sentencepiece_style, ["good"])
    assert rows[0][0] == sentencepiece_style.bos_token_id
    assert rows[0][-1] != sentencepiece_style.eos_token_id


@pytest.mark.parametrize("name", ["sentiment", "nli", "paraphrase"])
def test_bundled_words_of_one_language_differ_and_are_no_prefixes(name):
    task = load_task(name)
    for code, answers in itertools.product(task.languages, ["own", "english", "arbitrary"]):
        words = list(task.answers(code, answers).values())
        for a, b in itertools.permutations(words, 2):
            assert not a.startswith(b), (code, answers, a, b)


def _audit(tokenizer, words):
    task = load_task("sentiment").model_copy(update={"answer_sets": {"tried": words}})
    return {finding.kind for finding in audit_labels(tokenizer, task, "en", "tried")}


def test_audit_tells_shared_first_tokens_and_prefixes(byte_level, sentencepiece_style):
    assert _audit(byte_level, {"positive": "positive", "negative": "negative"}) == set()
    assert "first token" in _audit(sentencepiece_style, {"positive": "ปกดี", "negative": "ปกลบ"})
    assert "prefix" in _audit(byte_level, {"positive": "no", "negative": "no!"})
    assert "shared mass" in _audit(sentencepiece_style, {"positive": "ฌดี", "negative": "ฬลบ"})
