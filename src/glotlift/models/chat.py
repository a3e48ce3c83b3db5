"""Chat templates: a question as the user's turn, up to the place where the assistant's answer begins.

Enters: a tokenizer with a chat template, and text. Leaves: `Turn`s. Evaluation and training write a question with the
same function, so that a model is asked in one way to the byte. A turn is kept in parts, so that what the template
writes (control tokens) can be told from what the user says (text).

A template is a program that came with a model. What it does to a question is checked: it may trim blanks at the ends,
and nothing else.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from glotlift.errors import ModelError

log = logging.getLogger("glotlift")

_THINKING = re.compile(r"</?(think|thinking|thought|reasoning)>|\[/?THINK\]")
"""Opens or closes the part of an answer in which a model thinks."""

_OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Templates that know them answer without thinking first, and write this day (Llama 3's own) in place of today's."""


@dataclass(frozen=True)
class Turn:
    """The user's turn as a template writes it.

    Attributes:
        before: what the template writes before the user's text.
        text: the user's text.
        behind: what the template writes from there to where the assistant's answer begins.
    """

    before: str
    text: str
    behind: str

    @property
    def prompt(self) -> str:
        """All of it."""
        return self.before + self.text + self.behind


def question_turn(tokenizer: PreTrainedTokenizerBase, question: str) -> Turn:
    """Return a question as the user's turn, and the beginning of the assistant's.

    A thinking block that the template opens is closed, empty, so that the answer does not begin inside of it.

    Args:
        tokenizer: of the model.
        question: the user's text.

    Raises:
        ModelError: there is no chat template, it fails, or it changes the question by more than blanks at its ends.
    """
    text = _rendered(tokenizer, [_message("user", question)], add_generation_prompt=True)
    before, behind, closing = _frame(tokenizer, str(tokenizer.chat_template))
    said = text[len(before) : len(text) - len(behind)]
    if before + said + behind != text or said.strip() != question.strip() or said not in question:
        got = f"got a chat template that changes the question {_shortened(question)!r}"
        raise ModelError(f"{got}, expected one that writes every question as it is, between the same words")
    return Turn(before, said, behind + closing)


def answer_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the template writes behind the assistant's answer, up to the token that ends the turn.

    Raises:
        ModelError: there is no chat template, it fails, changes the answer, or ends the turn in no token of its own.
    """
    messages = [_message("user", _ASKED), _message("assistant", _ANSWERED)]
    _, found, end = _rendered(tokenizer, messages).rpartition(_ANSWERED)
    end = end.rstrip()
    if not found:
        raise ModelError("the chat template does not write an answer as it is, expected its text in the prompt")
    if not any(end.endswith(token) for token in _control_tokens(tokenizer)):
        got = (
            f"got a chat template that writes {end!r} behind an answer"
            if end
            else "got a chat template that ends no turn"
        )
        raise ModelError(f"{got}, expected a token that ends the turn; the model would not learn to stop")
    return end


_ASKED, _ANSWERED = "How do you do?", "Very well, thank you."
"""Any question and answer, to see what a template writes around them."""


@lru_cache(maxsize=8)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str, str]:
    """Return what a template writes before and behind a question, and what closes a thinking block it leaves open."""
    text = _rendered(tokenizer, [_message("user", _ASKED)], add_generation_prompt=True)
    before, _, behind = text.rpartition(_ASKED)
    if "strftime_now" in template and "date_string" not in template:
        log.warning("chat template: it writes the time of day into every prompt, so results differ from day to day")
    marks = list(_THINKING.finditer(behind))
    if not marks or "/" in marks[-1][0]:
        return before, behind, ""
    opened = marks[-1][0]
    log.warning("chat template: it opens a thinking block (%s), which is closed, empty, before the answer", opened)
    line = "" if behind.endswith("\n") else "\n"
    return before, behind, f"{line}\n{opened[0]}/{opened[1:]}\n\n"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> str:
    if not tokenizer.chat_template:
        raise ModelError("got a tokenizer without a chat template, expected that of an instruct model")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options, **_OPTIONS))
    except Exception as fault:  # a template is a program: it may raise whatever it likes
        problem = next(iter(str(fault).splitlines()), "") or type(fault).__name__
        raise ModelError(
            f"the chat template cannot write a question ({problem}), expected one that takes a user's turn"
        ) from None


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that are no text: the special ones, and those added to the vocabulary."""
    return [str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())]  # pyright: ignore


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
