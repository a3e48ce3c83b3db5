"""Tries, the paper's token sets, and the label audit."""

import itertools

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from glotlift.models import labels
from glotlift.models.labels import (
    ADVICE,
    audit_labels,
    audit_words,
    build_trie,
    continuations,
    is_byte_level,
    prefix_tokens,
    released_tokens,
)
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


@pytest.mark.parametrize("word", ["entailment", "no", "negativ", "étrange", "正面", "บวก", "Ġsign", "a▁b"])
def test_released_tokens_equal_the_steps_of_the_released_code(byte_level, sentencepiece_style, word):
    """Both kinds of vocabulary; only for byte-level BPE is the first token of every prefix added, as for Qwen."""
    for tokenizer in (byte_level, sentencepiece_style):
        vocabulary = tokenizer.get_vocab()
        expected = []
        for end in range(1, len(word) + 1):
            expected += [vocabulary.get(form) for form in (word[:end], "▁" + word[:end])]
            if tokenizer is byte_level:
                expected.append(tokenizer(word[:end])["input_ids"][0])
        written = str(word[0].encode())[2:-1]
        if written.startswith("\\x"):
            expected.append(vocabulary.get(f"<0x{written[2:4].upper()}>"))
        assert released_tokens(tokenizer, word) == set(expected) - {None}
    assert released_tokens(sentencepiece_style, word) == prefix_tokens(sentencepiece_style, word)


def test_the_released_rule_leaves_out_tokens_with_a_leading_space(byte_level):
    vocabulary = byte_level.get_vocab()
    assert {vocabulary["n"], vocabulary["Ġn"], vocabulary["Ġno"]} <= prefix_tokens(byte_level, "no")
    assert released_tokens(byte_level, "no") == {vocabulary[token] for token in ("n", "no") if token in vocabulary}
    assert vocabulary["é"] in released_tokens(byte_level, "élan")  # the letter for byte E9, of which the word has none
    assert vocabulary["é"] not in prefix_tokens(byte_level, "élan")


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_style"])
@pytest.mark.parametrize("word", ["</s>", "<s>truck</s>", "<unk>"])
def test_a_control_token_counts_for_no_word(kind, word, request):
    """A word is text, though it begins with the string of a control token."""
    tokenizer = request.getfixturevalue(kind)
    assert not prefix_tokens(tokenizer, word) & set(tokenizer.all_special_ids)
    assert prefix_tokens(tokenizer, "truck")


@pytest.mark.parametrize("name", ["sentiment", "nli", "paraphrase"])
def test_bundled_words_of_one_language_differ_and_are_no_prefixes(name):
    task = load_task(name)
    for code, answers in itertools.product(task.languages, ["own", "english", "arbitrary"]):
        words = list(task.answers(code, answers).values())
        for a, b in itertools.permutations(words, 2):
            assert not a.startswith(b), (code, answers, a, b)


# --- the audit


def audited(tokenizer, words, *, cue=None, closing=False) -> dict[str, str]:
    """Return kind -> message of the audit of two words in English."""
    task = load_task("sentiment")
    pack = task.pack("en")
    packs = {"en": pack if cue is None else pack.model_copy(update={"cue": cue})}
    sets = {"tried": dict(zip(task.labels, words, strict=True))}
    task = task.model_copy(update={"answer_sets": sets, "languages": packs})
    findings = audit_labels(tokenizer, task, "en", "tried", closing=closing)
    assert {finding.language for finding in findings} <= {"en"}
    assert len({finding.kind for finding in findings}) == len(findings)
    return {finding.kind: finding.message for finding in findings}


@pytest.fixture(params=["byte_level", "sentencepiece_style"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_words_that_differ_from_their_first_token_on_pass(tokenizer):
    assert audited(tokenizer, ("fine", "bad")) == {}


def test_every_message_says_what_to_do(tokenizer):
    for words in (("no", "none"), ("पक्ष", "बुरा"), ("OK", "ok "), ("positive", "negative")):
        for kind, message in audited(tokenizer, words).items():
            assert message.endswith(f"; {ADVICE[kind]}")
            assert ": " in ADVICE[kind]


def test_a_word_that_begins_the_other(tokenizer):
    """Tokens `n o` and `n o ne`: whatever the model says, the longer word is never more probable."""
    found = audited(tokenizer, ("no", "none"))
    assert found["prefix"].startswith("'no' begins 'none', in tokens too; where tokens nest, `sequence` never prefers")
    assert found["first token"].startswith(
        "'no' and 'none' begin with the token 'n'; `first-token` scores them the same"
    )


def test_a_word_that_begins_the_other_in_letters_only(byte_level):
    message = audited(byte_level, ("positive", "positively"))["prefix"]
    assert message.startswith("'positive' begins 'positively', though not in tokens; ")


def test_a_scored_closing_quote_tells_where_a_word_ends(tokenizer):
    assert "prefix" not in audited(tokenizer, ("no", "none"), closing=True)
    assert "first token" in audited(tokenizer, ("no", "none"), closing=True)
    assert "prefix" in audited(tokenizer, ("no", "none"), cue="Answer:", closing=True)  # there is no quote to score


@pytest.mark.parametrize(
    ("kind", "words", "piece"),
    [
        ("sentencepiece_style", ("अच्छा", "बुरा"), "byte E0"),
        ("byte_level", ("अच्छा", "बुरा"), "byte E0"),
        ("byte_level", ("ปกดี", "ปกลบ"), "bytes E0 B8"),  # a token of two of the three bytes of a letter
        ("byte_level", ("正面", "正好"), "byte E6"),
    ],
)
def test_first_bytes_that_all_letters_of_a_script_share(kind, words, piece, request):
    found = audited(request.getfixturevalue(kind), words)
    assert found["first byte"].startswith(
        f"'{words[0]}' and '{words[1]}' begin with the token {piece}, a part of a char"
    )
    assert "first token" not in found
    assert f"1 token ({piece}) counts for" in found["shared mass"]
    assert "which so always tie" in found["shared mass"]


def test_a_first_byte_that_only_prefix_mass_counts(sentencepiece_style):
    """The words have tokens of their own; the paper's rule adds the byte token of the first byte to both."""
    found = audited(sentencepiece_style, ("ดี", "เลว"))
    assert set(found) == {"shared mass"}
    assert found["shared mass"].startswith("1 token (byte E0) counts for 'ดี' and 'เลว'; what `prefix-mass` counts")


def test_tokens_of_one_word_that_all_count_for_the_other(sentencepiece_style):
    message = audited(sentencepiece_style, ("öde", "ärgerlich"))["shared mass"]
    assert message.startswith("all tokens of 'öde' count for 'ärgerlich' too, 1 token (byte C3) counts for 'öde' and")


def test_a_token_that_spans_cue_and_word(sentencepiece_style):
    """The tokenizer was trained on `: "posi`, and merges the quote into the word."""
    found = audited(sentencepiece_style, ("positive", "bad"))
    assert found["boundary"].startswith(
        "'positive' takes the end of the cue into the token ' \"posi'; `sequence` scores"
    )
    assert "'bad'" not in found["boundary"]


def test_words_that_look_alike(tokenizer):
    alike = [("é", "e\u0301"), ("ｏｋ", "ok"), ("Good", "good"), ("all right", "all  right")]  # NFC and NFD; full width
    for a, b in alike:
        message = audited(tokenizer, (a, b))["look-alike"]
        assert message.startswith(f"{a!r} and {b!r} differ in case, blanks or Unicode form only; ")
    assert "look-alike" not in audited(tokenizer, ("good", "goods"))


def test_blanks_at_the_ends_of_words(tokenizer):
    assert audited(tokenizer, ("fine ", "bad"))["blanks"].startswith("'fine ' ends with a blank; ")
    assert audited(tokenizer, (" fine", "bad"))["blanks"].startswith("' fine' begins with a blank; ")
    assert "blanks" not in audited(tokenizer, (" fine", " bad"), cue="Answer:")  # as models have read it
    assert "blanks" in audited(tokenizer, (" fine", " bad"), cue="Answer: ")
    assert "blanks" in audited(tokenizer, ("fine ", "bad"), cue="Answer:")


def test_a_word_that_prefix_mass_does_not_see(sentencepiece_style):
    """No token is a prefix of a word that begins with a blank, since tokens write it as a mark."""
    assert audited(sentencepiece_style, (" fine", "bad"))["no token"].startswith("no token is a prefix of ' fine'; ")


def test_words_with_the_same_tokens(sentencepiece_style):
    """A normalizer, as of XLM-R and T5, may make one word of two."""
    folding = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(sentencepiece_style.backend_tokenizer.to_str()), bos_token="<s>"
    )
    folding.backend_tokenizer.normalizer = normalizers.NFKC()
    assert audited(folding, ("ｏｋ", "ok"))["same tokens"].startswith("'ｏｋ' and 'ok' have the same tokens; ")
    assert "same tokens" not in audited(sentencepiece_style, ("ｏｋ", "ok"))


def test_more_than_three_findings_of_a_kind_are_counted(byte_level):
    task = load_task("sentiment")
    changes = {"labels": tuple("abcde"), "answer_sets": {"tried": {label: f"{label} " for label in "abcde"}}}
    wide = task.model_copy(update={**changes, "languages": {"en": _bare(task)}})
    found = {finding.kind: finding.message for finding in audit_labels(byte_level, wide, "en", "tried")}
    ends = ", ".join(f"'{label} ' ends with a blank" for label in "abc")
    assert found["blanks"] == f"{ends}, and 2 more; {ADVICE['blanks']}"


def _bare(task, **changes):
    return task.pack("en").model_copy(update={"demonstrations": (), "pool": (), **changes})


@pytest.mark.parametrize("source", ["demonstrations", "pool", "neither"])
def test_the_audit_reads_the_prompt_of_an_example(byte_level, source, monkeypatch):
    """Fields that are empty might merge with what is around them, as no item does."""
    read = []
    real = labels.encode
    monkeypatch.setattr(labels, "encode", lambda tokenizer, texts: read.append(texts[0]) or real(tokenizer, texts))
    task = load_task("sentiment")
    shown = task.pack("en").demonstrations
    pack = _bare(task) if source == "neither" else _bare(task, **{source: shown[1:]})
    audit_labels(byte_level, task.model_copy(update={"languages": {"en": pack}}), "en", "own")
    text = "x" if source == "neither" else shown[1].fields["text"]
    assert read[0].endswith(f'Review: {text}\nSentiment: "')


def test_words_are_audited_without_a_tokenizer():
    content = load_task("sentiment").model_copy(
        update={"answer_sets": {"tried": {"positive": "No", "negative": "no "}}}
    )
    kinds = [finding.kind for finding in audit_words(content, "en", "tried")]
    assert kinds == ["look-alike", "blanks"]
    nested = content.model_copy(update={"answer_sets": {"tried": {"positive": "no", "negative": "none"}}})
    assert [finding.message for finding in audit_words(nested, "en", "tried")] == [
        f"'no' begins 'none'; {ADVICE['prefix']}"
    ]
    assert audit_words(nested, "en", "tried", closing=True) == []


@pytest.mark.parametrize("name", ["sentiment", "nli", "paraphrase"])
def test_the_bundled_words_pass_without_a_tokenizer(name):
    task = load_task(name)
    for code, answers in itertools.product(task.languages, ["own", "english", "arbitrary"]):
        assert audit_words(task, code, answers) == []
