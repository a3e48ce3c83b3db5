"""Prompts as tokens: what is data stays text, and what cannot be scored is refused by name."""

import copy
import dataclasses
import json

import pytest

from glotlift.data.questions import QuestionPair
from glotlift.errors import ModelError
from glotlift.evaluation import evaluate, test_sets
from glotlift.evaluation.check import check_task
from glotlift.evaluation.journal import LabelScores
from glotlift.evaluation.predict import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalSettings, EvalTask
from glotlift.models.server import parse_server
from glotlift.tasks.task import Item, Task
from glotlift.training.rows import tokenize_pairs
from glotlift.training.settings import TrainSettings
from tests.tasks.test_load import write_task

CHAT = (
    "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def one_language(template: str, words=("so", "me"), **changes) -> Task:
    sets = {"own": dict(zip(("yes", "no"), words, strict=True))}
    pack = {"template": template, "answer_sets": sets, **changes}
    return Task.model_validate({"name": "odd", "fields": ["text"], "labels": ["yes", "no"], "languages": {"en": pack}})


def prompts_of(loaded, task: Task, *texts: str, **settings):
    items = [Item(name, {"text": text}, "yes") for name, text in zip("abc", texts, strict=False)]
    return prepare(loaded, task, "en", items, EvalTask(task="odd", **settings))


# --- a prompt that fuses with the words as a whole, at a tokenizer without a first token

NO_BOUNDARY = "got no token boundary that the prompt shares with the text behind it, expected one: "


def test_a_content_free_input_that_fuses_with_the_words_is_refused(tiny):
    task = one_language("{text} ")
    with pytest.raises(ModelError, match=rf"^task 'odd', en, input '': {NO_BOUNDARY}begin the prompt with text"):
        prompts_of(tiny("qwen2"), task, "A fine day.")
    assert prompts_of(tiny("llama"), task, "A fine day.").content_free[2].root == 1  # behind the first token


@pytest.mark.parametrize("text", ["", "a"])
def test_an_item_that_fuses_with_a_word_is_refused(tiny, text):
    """One word is enough: all words are scored from the same boundary."""
    with pytest.raises(ModelError, match=rf"^task 'odd', en, item 'b': {NO_BOUNDARY}"):
        prompts_of(tiny("qwen2"), one_language("{text}", ("nd", "!")), "It rains.", text)


def test_a_boundary_that_is_left_is_used(tiny):
    """The last character fuses, the text before it does not; with and without cache the scores are the same."""
    loaded, task = tiny("qwen2"), one_language("Text: {text} ")
    prompts = prompts_of(loaded, task, "a", "It rains.")
    assert [len(row.prompt) - row.root for row in (*prompts.rows, *prompts.content_free)] == [1] * 5
    cached, plain = (predict(loaded, prompts, "base", prefix_cache=cache) for cache in (True, False))
    columns = ["sequence_yes", "sequence_no", "first_token_yes"]
    assert cached[columns].to_numpy() == pytest.approx(plain[columns].to_numpy(), abs=1e-4)


def test_a_check_names_the_language(tiny, tmp_path):
    """On the first example; without one, on the inputs that say nothing."""
    folder = tmp_path / "model"
    tiny("qwen2").model.save_pretrained(folder)
    tiny("qwen2").tokenizer.save_pretrained(folder)
    task = one_language("{text} ").model_dump(mode="json", exclude_none=True)
    path = write_task(tmp_path / "odd.yaml", task)
    faults = check_task(path, str(folder)).faults
    assert [(each.language, each.kind) for each in faults] == [("en", "no boundary")]
    assert faults[0].message.startswith(f"`own`: input '': {NO_BOUNDARY}")


@pytest.mark.parametrize(("family", "found"), [("llama", []), ("qwen2", ["other tokens for 4 of 4 answer words"])])
def test_a_check_counts_the_words_that_the_released_rule_scores_otherwise(tiny, monkeypatch, family, found):
    monkeypatch.setattr("glotlift.models.load.load_tokenizer", lambda name: tiny(family).tokenizer)
    warnings = check_task("sentiment", "any", languages=["en"]).warnings
    assert [each.message.split("; ")[0] for each in warnings if each.kind == "released rule"] == found


def test_a_check_names_texts_that_a_tokenizer_cannot_keep(tiny, tmp_path, monkeypatch):
    task = one_language("{text}: ", ("so", "me</s>"), pool=[{"label": "yes", "text": "<s>"}])
    content = {**task.model_dump(mode="json", exclude_none=True), "data": {"source": "rows_{lang}.jsonl"}}
    path = write_task(tmp_path / "odd.yaml", content)
    rows = [{"text": text, "label": "yes"} for text in ("fine", "no</s>", "so", "no</s> <s>")]
    (tmp_path / "rows_en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    monkeypatch.setattr("glotlift.models.load.load_tokenizer", lambda name: tokenizer)
    assert "control" not in {each.kind for each in check_task(path, "any").warnings}
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", None)  # as one written in Python
    found = [each.message.split("; ")[0] for each in check_task(path, "any").warnings if each.kind == "control"]
    assert found == ["'</s>' in the words of `own` and rows 2 and 4", "'<s>' in pool[1] and row 4"]


# --- control strings in data


def test_control_strings_in_items_examples_and_words_are_text(tiny):
    loaded = tiny("llama")
    shown = [{"label": "yes", "text": "Ha</s>!"}, {"label": "no", "text": "Oh."}]
    task = one_language("<s>Text: {text}</s>\nMood: ", ("so</s>", "me"), demonstrations=shown)
    prompts = prompts_of(loaded, task, "It</s><pad>rains.", "It rains.")
    end = loaded.tokenizer.eos_token_id
    assert [row.prompt.count(end) for row in prompts.rows] == [3, 3]  # one an example and one of the item
    assert all(end not in dict(path).values() for row in prompts.rows for path in row.trie.steps)
    assert loaded.tokenizer.pad_token_id not in prompts.rows[0].prompt
    assert prompts.texts[0] == task.prompt("en", "own", {"text": "It</s><pad>rains."})
    assert prompts.endings == ["so</s>", "me"]
    assert prompts.words == {"yes": "so</s>", "no": "me"}
    assert [item.fields["text"] for item in prompts.items] == ["It</s><pad>rains.", "It rains."]


def test_under_a_chat_template_only_its_own_control_strings_are_tokens(tiny):
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    tokenizer.chat_template = CHAT
    loaded = dataclasses.replace(tiny("llama"), tokenizer=tokenizer)
    task = one_language("Text: {text}\nMood: ")
    prompts = prompts_of(loaded, task, "It</s>[assistant] <s>rains.", "It rains.", apply_chat_template=True)
    for row in prompts.rows:
        assert [row.prompt.count(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [1, 1]
        assert row.prompt[0] == tokenizer.bos_token_id
    start, end = prompts.rows[0].span
    assert tokenizer.decode(prompts.rows[0].prompt[start:end]).startswith(" Text: It</s>[assistant] <s>rains.</s>")


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_training_reads_a_text_as_evaluation_does(tiny, prompt_format):
    tokenizer = copy.deepcopy(tiny("llama").tokenizer)
    tokenizer.chat_template = CHAT
    loaded = dataclasses.replace(tiny("llama"), tokenizer=tokenizer)
    text = "It</s> rains <s>here."
    task = one_language("{text}")
    prompts = prompts_of(loaded, task, text, apply_chat_template=prompt_format == "chat")
    (row,) = tokenize_pairs(
        tokenizer, [QuestionPair("de:a", "de", "en", text, "!!")], TrainSettings(prompt_format=prompt_format)
    )
    n_read = len(row.input_ids) - row.n_targets
    assert tuple(row.input_ids[:n_read]) == prompts.rows[0].prompt[:n_read]
    assert n_read >= len(prompts.rows[0].prompt) - 1


def test_data_that_a_server_may_read_as_control_tokens_are_warned_of(monkeypatch, tmp_path, caplog):
    """It is sent the text, and what it makes of control strings cannot be seen from here."""

    def scored(server, prompts, **_):
        yield {index: LabelScores((-1.0, -2.0), (), (-1.0, -2.0)) for index in range(len(prompts.texts))}

    monkeypatch.setattr(evaluate, "server_batches", scored)
    server = dataclasses.replace(parse_server("openai:http://localhost/v1#m"), card=())
    task = one_language("[INST] {text} [/INST]", ("so</s>", "me"))
    for text, found in (("[INST] fine", "'</s>'"), ("fine <|im_end|>", "'<|im_end|>' and '</s>'")):
        items = {"en": [Item("a", {"text": text}, "yes")]}
        caplog.clear()
        test_set = test_sets.TestSet(EvalTask(task="odd"), task, items)
        evaluate.evaluate_test_sets(server, {"odd": test_set}, EvalSettings(tasks=(test_set.settings,)), tmp_path)
        warned = [each.message for each in caplog.records if "control strings" in each.message]
        assert warned == [
            f"control strings: odd, en: the data hold {found}, which a server reads as control tokens where its "
            "tokenizer has them"
        ]
