"""Chat templates: one shape for every question, thinking blocks closed, templates that change what is said refused."""

import copy
import logging
from dataclasses import replace

import pytest

from glotlift.data.questions import QuestionPair
from glotlift.errors import ModelError
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.chat import answer_end, question_turn
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item
from glotlift.training.rows import tokenize_pairs
from glotlift.training.settings import TrainSettings

PLAIN = (
    "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TRIMMING = PLAIN.replace("m['content']", "m['content'] | trim")
# Qwen3's: thinks unless told not to, and then writes an empty block
HYBRID = PLAIN.replace(
    "[assistant] {% endif %}",
    "[assistant] {% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


@pytest.fixture
def with_template(tiny):
    def make(template):
        tokenizer = copy.deepcopy(tiny("llama").tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


def test_a_turn_is_what_the_template_writes(with_template):
    tokenizer = with_template(PLAIN)
    turn = question_turn(tokenizer, "Is it\n\nso?")
    assert (turn.before, turn.text, turn.behind) == ("<s>[user] ", "Is it\n\nso?", "</s>\n[assistant] ")
    message = [{"role": "user", "content": "Is it\n\nso?"}]
    assert turn.prompt == tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert answer_end(tokenizer) == "</s>"


@pytest.mark.parametrize("question", ["", "[user] ", "</s>\n[assistant] ", "How do you do?", "{{ 1 }}", "a" * 500])
def test_any_question_stands_between_the_same_words(with_template, question):
    turn = question_turn(with_template(PLAIN), question)
    assert (turn.before, turn.text, turn.behind) == ("<s>[user] ", question, "</s>\n[assistant] ")


def test_a_template_may_trim(with_template):
    assert question_turn(with_template(TRIMMING), "\n Is it? \n").text == "Is it?"


CHANGING = {
    "upper case": PLAIN.replace("m['content']", "m['content'] | upper"),
    "cut": PLAIN.replace("m['content']", "m['content'][:12]"),
    "doubled": PLAIN.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['content'] }}"),
    "dropped": PLAIN.replace("{{ m['content'] }}", ""),
    "another for long ones": PLAIN.replace("[user]", "[user]").replace(
        "[{{ m['role'] }}]", "[{{ m['role'] }}{% if m['content'] | length > 20 %}!{% endif %}]"
    ),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_template_that_changes_a_question_is_refused(with_template, name):
    with pytest.raises(ModelError, match="changes the question 'Is it a good thing, this one here\\?'"):
        question_turn(with_template(CHANGING[name]), "Is it a good thing, this one here?")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no user alone') }}", "{{ messages[3].content }}", "{% if %}"]
)
def test_a_template_that_fails_is_one_sentence(with_template, template):
    with pytest.raises(
        ModelError, match=r"the chat template cannot write a question \(.+\), expected one that"
    ) as caught:
        question_turn(with_template(template), "Is it?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("opened", "behind"),
    {
        "<think>\n": "<think>\n\n</think>\n\n",
        "<think>": "<think>\n\n</think>\n\n",
        "<thinking>\n": "<thinking>\n\n</thinking>\n\n",
        "[THINK]": "[THINK]\n\n[/THINK]\n\n",
        "<think>\n\n</think>\n\n": "<think>\n\n</think>\n\n",
    }.items(),
)
def test_a_thinking_block_is_closed_before_the_answer(with_template, caplog, opened, behind):
    template = PLAIN.replace("[assistant] {% endif", f"[assistant] {opened}{{% endif")
    logging.getLogger("glotlift").propagate = True
    with caplog.at_level("WARNING", logger="glotlift"):
        turn = question_turn(with_template(template), "Is it?")
    assert turn.behind == f"</s>\n[assistant] {behind}"
    assert ("opens a thinking block" in caplog.text) == (opened != behind)


def test_a_model_that_may_think_is_asked_not_to(with_template):
    assert question_turn(with_template(HYBRID), "Is it?").behind.endswith("[assistant] <think>\n\n</think>\n\n")


def test_the_day_of_a_prompt_is_not_today(with_template):
    tokenizer = with_template(
        "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + PLAIN
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("<s>", "<s>Today: {{ date_string }}\n")
    assert question_turn(tokenizer, "Is it?").before == "<s>Today: 26 Jul 2024\n[user] "


@pytest.mark.parametrize("end", ["", "\n", " ###"])
def test_a_template_that_ends_no_turn_is_refused(with_template, end):
    with pytest.raises(ModelError, match="expected a token that ends the turn; the model would not learn to stop"):
        answer_end(with_template(PLAIN.replace("</s>\n", end)))


def _prompts(loaded, tokenizer, texts, task="sentiment"):

    definition = load_task(task)
    items = [Item(str(n), {"text": text}, "positive") for n, text in enumerate(texts)]
    settings = EvalTask(task=task, apply_chat_template=True)
    return prepare(replace(loaded, tokenizer=tokenizer), definition, "en", items, settings)


def test_line_breaks_in_items_stay_in_the_users_turn(tiny, with_template):
    texts = ["Good.", "Bad.\nVery bad.", '\nSentiment: "positive', 'Good.\nSentiment: "negative"\n']
    prompts = _prompts(tiny("llama"), with_template(PLAIN), texts)
    for text, prompt in zip(texts, prompts.texts, strict=False):
        user, assistant = prompt.split("</s>\n[assistant] ")
        assert user.endswith(f"\n\nReview: {text}")
        assert assistant == 'Sentiment: "'


def test_training_and_evaluation_write_the_same_prompt(tiny, with_template):
    tokenizer = with_template(TRIMMING)
    prompts = _prompts(tiny("llama"), tokenizer, ["Well\nmade "])
    task = load_task("sentiment")
    asked = task.preamble("en", "own") + task.question_and_cue("en", {"text": "Well\nmade "})[0]
    (row,) = tokenize_pairs(
        tokenizer, [QuestionPair("en:1", "en", "de", asked, "Gut gemacht")], TrainSettings(prompt_format="chat")
    )
    trained = tokenizer.decode(row.input_ids).removesuffix("Gut gemacht</s>")
    assert trained == prompts.texts[0].removesuffix('Sentiment: "')
