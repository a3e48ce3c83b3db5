"""Data stay text under every kind of tokenizer; what a template writes stays a control token."""

import copy

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from glotlift.models.control import (
    control_strings,
    encode,
    quoted_task,
    quoter,
    read_as_control,
    unquoted,
)
from glotlift.tasks.load import load_task

END = "<|im_end|>"


@pytest.fixture(scope="module")
def qwen_like(byte_level):
    """Byte-level BPE without a first token, whose turns end in a special token; one added token is no special one."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_level.backend_tokenizer.to_str()), eos_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", END]})
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("kawaii", normalized=False)])
    tokenizer.chat_template = "<|im_start|>kawaii {{ messages }}<think>"
    return tokenizer


@pytest.fixture(scope="module")
def ending(byte_level):
    """Byte-level BPE that puts [CLS] before and [SEP] behind a text, as encoders do; [SEP] is not the `eos_token`."""
    backend = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]", cls_token="[CLS]", eos_token="</s>")


@pytest.fixture(scope="module")
def unigram():
    """Unigram, as T5 and XLM-R: the vocabulary itself has the control strings, and text is cut into them."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "abc</s>")]
    backend = Tokenizer(Unigram(list(dict(pieces).items()), unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def tokenizer(request):
    return request.getfixturevalue(request.param)


KINDS = {"qwen_like": END, "sentencepiece_style": "</s>", "ending": "[SEP]"}
every_kind = pytest.mark.parametrize("tokenizer", KINDS, indirect=True)


def string_of(tokenizer) -> str:
    return END if END in tokenizer.get_vocab() else "[SEP]" if tokenizer.sep_token else "</s>"


def letters(tokenizer, text: str) -> list[int]:
    """Return the tokens of a text by the parts of the backend alone, which know no added tokens."""
    backend = tokenizer.backend_tokenizer
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    pieces = backend.pre_tokenizer.pre_tokenize_str(text)
    return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]


def test_what_counts_as_control(qwen_like, sentencepiece_style):
    assert set(control_strings(qwen_like)) >= {"<|endoftext|>", "<|im_start|>", END, "<think>"}
    assert "kawaii" not in control_strings(qwen_like)
    assert set(control_strings(sentencepiece_style)) >= {"<s>", "</s>", "<pad>"}


@every_kind
def test_a_control_string_in_data_is_text(tokenizer):
    string = string_of(tokenizer)
    for text in (string, f"It rains {string} here.", f"{string}{string}", f"{string[:2]}{string} é", f" {string}\n"):
        (row,) = encode(tokenizer, [quoter(tokenizer)(text)], special=False)
        assert row == letters(tokenizer, text)
        assert control_strings(tokenizer)[string] not in row
        assert tokenizer.convert_tokens_to_ids(string) in tokenizer(text, add_special_tokens=False)["input_ids"]
    assert read_as_control(tokenizer, [string, "plain", f"a {string} b"]) == [[], [], []]


@every_kind
def test_what_a_template_writes_stays_control(tokenizer):
    """The text around a token is cut where the tokenizer itself cuts it."""
    string = string_of(tokenizer)
    quote = quoter(tokenizer)
    for field in ("It rains.", f"It {string} rains.", string, ""):
        (row,) = encode(tokenizer, [f"Text: {quote(field)}{string}\nMood:"], special=False)
        assert row.count(control_strings(tokenizer)[string]) == 1
        if string not in field:
            assert row == tokenizer(f"Text: {field}{string}\nMood:", add_special_tokens=False)["input_ids"]
    other = "It ÷ rains."  # of which the same text without control strings would be
    (marked,) = encode(tokenizer, [f"Text: {quote(string)} {other}{string}\nMood:"], special=False)
    (plain,) = encode(tokenizer, [f"{other}{string}\nMood:"], special=False)
    assert marked[-len(plain) + 2 :] == plain[2:]


@every_kind
def test_the_first_tokens_are_there_and_the_last_are_not(tokenizer):
    quote = quoter(tokenizer)
    string = string_of(tokenizer)
    plain, marked, empty = encode(tokenizer, ["It rains.", quote(f"It {string}"), ""])
    start = {"<s>": [tokenizer.bos_token_id], "[CLS]": [tokenizer.cls_token_id]}
    own = start["[CLS]"] if tokenizer.cls_token else start["<s>"] if string == "</s>" else []
    assert plain == own + letters(tokenizer, "It rains.")
    assert marked == own + letters(tokenizer, f"It {string}")
    assert empty == own


def test_a_text_that_ends_in_the_end_token_keeps_it(byte_level):
    """Only what the tokenizer itself puts there is taken off."""
    assert encode(byte_level, ["good</s>"])[0][-1] == byte_level.eos_token_id


@every_kind
def test_plain_text_goes_through_the_tokenizer_as_it_is(tokenizer, monkeypatch):
    texts = ["It rains.", " \n", "a < b > c", "Ça «va» 好", "<", "[SE", "kawaii"]
    quote = quoter(tokenizer)
    assert [quote(text) for text in texts] == texts
    monkeypatch.setattr("glotlift.models.control._renamed", None)
    assert encode(tokenizer, texts, special=False) == tokenizer(texts, add_special_tokens=False)["input_ids"]


@every_kind
def test_marks_come_off(tokenizer):
    quote, string = quoter(tokenizer), string_of(tokenizer)
    for text in (string * 2, "\ufdd0", f"\ufdd0{string}\ufdd0\ufdd0", "plain", "<\ufdd0/s>"):
        assert unquoted(quote(text)) == text
        (row,) = encode(tokenizer, [quote(text)], special=False)
        assert row == letters(tokenizer, text)


@every_kind
def test_data_cannot_forge_the_name_of_a_control_token(tokenizer):
    """Whatever stands around its string, and though a layout writes the token on both sides."""
    string = string_of(tokenizer)
    number = control_strings(tokenizer)[string]
    quote = quoter(tokenizer)
    for mark in ("\ufdd0", "\ufdd1", "\ufdd10\ufdd1", "\ufdd10\ufdd1\ufdd11\ufdd1", "0\ufdd1"):
        data = mark + string + mark
        assert number not in encode(tokenizer, [quote(data)], special=False)[0]
        (row,) = encode(tokenizer, [f"{string}{quote(data)}{string}"], special=False)
        assert [index for index, token in enumerate(row) if token == number] == [0, len(row) - 1]
        assert unquoted(quote(data)) == data


def test_control_strings_that_overlap(byte_level):
    tokenizer = copy.deepcopy(byte_level)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<<a", "<a>>", "<a"]})
    for text in ("<<a>>", "<a>>", "<<<a>><a"):
        assert encode(tokenizer, [quoter(tokenizer)(text)]) == [letters(tokenizer, text)]


def test_tokens_that_eat_blanks_around_them(byte_level):
    """As Phi 3's and Mistral's: the blank behind a turn's end belongs to the token, but not to its string in data."""
    tokenizer = copy.deepcopy(byte_level)
    end = AddedToken("<|end|>", lstrip=True, rstrip=True, special=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    written, field = "good <|end|> \nbad", "good <|end|> bad"
    quote = quoter(tokenizer)
    (row,) = encode(tokenizer, [quote(field) + written])
    assert row == letters(tokenizer, field + "good") + [tokenizer.convert_tokens_to_ids("<|end|>")] + letters(
        tokenizer, "bad"
    )


def test_a_tokenizer_that_prepends_a_blank_to_the_first_text_only(sentencepiece_style):
    backend = Tokenizer.from_str(sentencepiece_style.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    quote = quoter(tokenizer)
    for text in ("{}good</s>bad", "</s>{}good", "{}"):
        for field in ("fine", "</s>"):
            (row,) = encode(tokenizer, [text.format(quote(field))])
            other = field.replace("</s>", "÷÷÷÷")
            (reference,) = encode(tokenizer, [text.format(other)])
            n = len(letters(tokenizer, other)) - len(letters(tokenizer, field))
            assert (len(row), row[0]) == (len(reference) - n, reference[0])
            assert row.count(tokenizer.eos_token_id) == text.count("</s>")


def test_a_vocabulary_that_finds_control_strings_in_text_is_told(unigram):
    """No mark helps there; nor where a normalizer makes the string of other letters."""
    assert read_as_control(unigram, ["a</s>b", "abc", "xyz"]) == [["</s>"], [], []]
    unigram.backend_tokenizer.normalizer = normalizers.NFKC()
    assert read_as_control(unigram, ["a＜/s＞b"]) == [["</s>"]]


class InPython(PreTrainedTokenizerFast):
    """A tokenizer without the Rust part that can be told otherwise."""

    backend_tokenizer = None  # pyright: ignore


def test_a_tokenizer_written_in_python_is_told(sentencepiece_style):
    tokenizer = InPython(tokenizer_object=sentencepiece_style.backend_tokenizer, eos_token="</s>", bos_token="<s>")
    assert read_as_control(tokenizer, ["a </s>", "a"]) == [["</s>"], []]


def test_a_task_whose_words_and_examples_are_data():
    task = load_task("sentiment")
    assert quoted_task(task, str) == task
    loud = quoted_task(task, str.upper)
    assert loud.answers("de", "own") == {label: word.upper() for label, word in task.answers("de", "own").items()}
    assert [shown.fields["text"] for shown in loud.shown("de")] == [
        shown.fields["text"].upper() for shown in task.shown("de")
    ]
    assert loud.pack("de").layout == task.pack("de").layout


def test_a_word_level_model_is_a_tokenizer_too():
    """Nothing is known of `a` here, so what is put around a text cannot be seen."""
    backend = Tokenizer(BPE({"x": 0, "</s>": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert encode(tokenizer, ["xx"]) == [[0, 0]]
