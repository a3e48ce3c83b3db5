"""Token rows: what is read and what is learned, in every format; rows that cannot be trained on are named."""

import copy

import pytest
from tokenizers import processors

from glotlift.data.questions import QuestionPair, read_pairs
from glotlift.errors import DataError, ModelError
from glotlift.tasks.load import load_task
from glotlift.training.rows import IGNORED, cue_of, inspect_rows, tokenize_pairs
from glotlift.training.settings import TrainSettings

CHAT = (
    "<s>{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def _pairs(n=2, codes=("de", "zh")):
    return read_pairs(load_task("sentiment"), "sample", codes, limit=n)


def _learned(row):
    return [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]


def test_a_pair_is_read_up_to_the_target_and_the_target_is_learned_with_its_end(tiny):
    tokenizer = tiny("llama").tokenizer
    (pair,) = _pairs(1, ("de",))
    (row,) = tokenize_pairs(tokenizer, [pair], TrainSettings(cue="kept"))
    learned = _learned(row)
    assert learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]).strip() == pair.target.strip()
    n_read = len(row.input_ids) - len(learned)
    assert row.labels == [IGNORED] * n_read + learned
    assert row.n_targets == len(learned)
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(row.input_ids[1:n_read]) == pair.input


def test_the_cue_is_stripped_or_masked_where_labels_are_scored(tiny):
    """Kept, as published, the end token is learned behind the cue, in the place of the answer."""
    tokenizer = tiny("llama").tokenizer
    (pair,) = _pairs(1, ("de",))
    cue = '\nSentiment: "'
    assert pair.target.endswith(cue)
    kept, masked, stripped = (
        tokenize_pairs(tokenizer, [pair], TrainSettings(cue=cue))[0] for cue in ("kept", "masked", "stripped")
    )
    question = pair.target.removesuffix(cue)
    assert tokenizer.decode(_learned(stripped)[:-1]).strip() == question
    assert _learned(stripped)[-1] == tokenizer.eos_token_id
    assert masked.input_ids == kept.input_ids
    learned = tokenizer.decode(_learned(masked)).strip()
    assert (
        question.startswith(learned) and len(question) - len(learned) < 3
    )  # a token may span the beginning of the cue
    assert tokenizer.eos_token_id not in _learned(masked)


@pytest.mark.parametrize(
    ("target", "cue"),
    [
        ('Premise: A.\nHypothesis: B.\nAnswer: "', '\nAnswer: "'),
        ("前提: 甲\n答案：“", "\n答案：“"),
        ("Premise: A.\nHypothesis: B.", ""),
        ("one line only:", ""),
        ("Text: a\nThe mood is", "\nThe mood is"),
    ],
)
def test_a_cue_is_known_by_its_form_or_by_the_layout(target, cue):
    assert cue_of(target, "Text: \n\nThe mood is") == cue


def test_alpaca_puts_the_pair_between_its_headings(tiny):
    tokenizer = tiny("llama").tokenizer
    (pair,) = _pairs(1, ("de",))
    (row,) = tokenize_pairs(tokenizer, [pair], TrainSettings(prompt_format="alpaca"))
    n_read = len(row.input_ids) - row.n_targets
    prompt = tokenizer.decode(row.input_ids[1:n_read])
    assert f"### Instruction:\n{pair.input.rstrip()}\n\n### Response:\n" in prompt
    assert _learned(row)[-1] == tokenizer.eos_token_id


def test_chat_learns_the_answer_and_the_end_of_its_turn(tiny):
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    tokenizer.chat_template = CHAT
    (pair,) = _pairs(1, ("de",))
    (row,) = tokenize_pairs(tokenizer, [pair], TrainSettings(prompt_format="chat", cue="kept"))
    n_read = len(row.input_ids) - row.n_targets
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(row.input_ids[:n_read]).endswith(f"[user] {pair.input.rstrip()}</s>\n[assistant] ")
    assert tokenizer.decode(_learned(row)) == pair.target + "</s>"


def test_chat_without_a_template_is_refused(tiny):
    with pytest.raises(ModelError, match="got a tokenizer without a chat template"):
        tokenize_pairs(tiny("llama").tokenizer, _pairs(1), TrainSettings(prompt_format="chat"))


def test_rows_that_cannot_be_trained_on_are_named_all_at_once(tiny):
    good = _pairs(1)
    empty = QuestionPair("de:e", "de", "en", good[0].input, " \n")
    with pytest.raises(DataError) as caught:
        tokenize_pairs(tiny("llama").tokenizer, [*good, empty, good[0]], TrainSettings(max_length=9))
    message = str(caught.value)
    assert "4 of 4 pairs" in message
    assert "row 1 (de:q001): got" in message
    assert "row 3 (de:e): got an empty target" in message
    assert "expected at most 9; raise train.max_length" in message


def test_control_strings_in_a_pair_are_learned_as_text(tiny):
    """The end of a target is the one end token; what the task's own layout writes is a token as in evaluation."""
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    tokenizer.chat_template = CHAT
    end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
    pair = QuestionPair("de:a", "de", "en", "Text: Ende</s> <s>\nTranslate:\n", "Text: end</s> <s>")
    for name, ends, starts in (("plain", 1, 1), ("alpaca", 1, 1), ("chat", 2, 1)):
        (row,) = tokenize_pairs(tokenizer, [pair], TrainSettings(prompt_format=name))
        assert (row.input_ids.count(end), row.input_ids.count(start)) == (ends, starts)
        assert (_learned(row).count(end), _learned(row)[-1], row.control) == (1, end, ())
        assert tokenizer.decode(_learned(row)).strip() == "Text: end</s> <s></s>"
    (row,) = tokenize_pairs(tokenizer, [pair], TrainSettings(), "{text}</s>")
    assert (row.input_ids.count(end), row.input_ids.count(start)) == (3, 1)


def test_pairs_that_a_tokenizer_cannot_keep_as_text_are_counted(tiny, monkeypatch):
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", None)  # as one written in Python
    good, bad = _pairs(1, ("de",))[0], QuestionPair("de:a", "de", "en", "Ende</s>\n", "end")
    rows = tokenize_pairs(tokenizer, [good, bad], TrainSettings())
    assert [row.control for row in rows] == [(), ("</s>",)]
    assert inspect_rows(tokenizer, rows)["de"]["control"] == 1


@pytest.mark.parametrize("name", ["plain", "alpaca"])
def test_a_tokenizer_without_an_end_is_refused(tiny, name):
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=f"got train.prompt_format {name} for a tokenizer without an end-of-sequence"):
        tokenize_pairs(tokenizer, _pairs(1), TrainSettings(prompt_format=name))


def test_a_prompt_does_not_end_in_what_a_tokenizer_appends(tiny):
    """[SEP] is not the end of sequence; the target ends in that alone."""
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    tokenizer.add_special_tokens({"sep_token": "[SEP]"})
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "[SEP]")]
    single = processors.TemplateProcessing(single="<s> $A [SEP]", special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = single
    rows = tokenize_pairs(tokenizer, _pairs(1, ("de",)), TrainSettings())
    assert (
        rows[0].input_ids == tokenize_pairs(tiny("llama").tokenizer, _pairs(1, ("de",)), TrainSettings())[0].input_ids
    )
    assert inspect_rows(tokenizer, rows)["de"]["ends"] == ["</s>"]


def test_a_target_that_nothing_scores_is_refused(tiny):
    """A prompt that is one token with the target's beginning, at a tokenizer without a first token."""
    pair = QuestionPair("de:a", "de", "en", "a", "nd")
    tokenizer = tiny("qwen2").tokenizer
    assert [len(tokenizer(text)["input_ids"]) for text in ("a", "and")] == [1, 1]
    good = _pairs(1, ("de",))[0]
    with pytest.raises(
        DataError, match=r"1 of 2 pairs.*\n  row 2 \(de:a\): got no token boundary that the prompt shares"
    ):
        tokenize_pairs(tokenizer, [good, pair], TrainSettings())


def test_truncation_cuts_the_end_and_refuses_a_target_that_is_gone(tiny):
    tokenizer = tiny("llama").tokenizer
    pairs = _pairs(1, ("de",))
    (whole,) = tokenize_pairs(tokenizer, pairs, TrainSettings())
    n_read = len(whole.input_ids) - whole.n_targets
    (cut,) = tokenize_pairs(tokenizer, pairs, TrainSettings(max_length=n_read + 3, too_long="truncate"))
    assert cut.input_ids == whole.input_ids[: n_read + 3]
    assert (cut.n_targets, cut.n_cut) == (3, whole.n_targets - 3)
    with pytest.raises(DataError, match=r"row 1 \(de:q001\): .*nothing of the target is left"):
        tokenize_pairs(tokenizer, pairs, TrainSettings(max_length=n_read, too_long="truncate"))


def test_the_x_ray_shows_every_language(tiny):
    tokenizer = tiny("llama").tokenizer
    pairs = _pairs(3)
    rows = tokenize_pairs(tokenizer, pairs, TrainSettings(max_length=150, too_long="truncate"))
    found = inspect_rows(tokenizer, rows, n_shown=2)
    assert list(found) == ["de", "zh"]
    german = [row for row in rows if row.language == "de"]
    assert found["de"]["rows"] == 3
    assert found["de"]["tokens"][0] == min(len(row.input_ids) for row in german)
    assert found["de"]["control"] == 0
    assert found["de"]["ends"] == ["</s>"]
    assert found["de"]["truncated"] == sum(row.n_cut > 0 for row in german)
    assert [row["id"] for row in found["de"]["shown"]] == ["de:q001", "de:q002"]
    assert found["de"]["shown"][0]["prompt"].endswith(pairs[0].input)
