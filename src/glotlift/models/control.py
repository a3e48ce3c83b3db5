"""Text as tokens, in which data stay text: `</s>` in a test row is four characters, in a layout it is a token.

Enters: a tokenizer, strings. Leaves: token ids. Tokenizers read the strings of their control tokens (`</s>`,
`<|im_end|>`) as these tokens wherever they stand. What a template writes on purpose is meant so; what a row holds is
not. `quoter` marks the control strings of rows before they are put into a layout or a chat template, `encode` reads
what is marked as text, and `unquoted` takes the marks off for people. Text without control strings goes through the
tokenizer as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from glotlift.tasks.task import AnswerSet, Demonstration, Task

if TYPE_CHECKING:  # transformers takes seconds to import
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARK = "\ufdd0"
"""Stands behind the first character of a control string in data; Unicode keeps it for programs, so texts lack it."""

_IN_BRACKETS = re.compile(r"[<\[].+[>\]]", re.DOTALL)

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def control_strings(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the strings that a tokenizer reads as control tokens -> the tokens.

    These are its special tokens, and of the other added ones those in brackets that its chat template writes
    (`<think>`): words that were added to a vocabulary are text.
    """
    template = str(tokenizer.chat_template or "")
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or (_IN_BRACKETS.fullmatch(token.content) and token.content in template)
    }


def quoter(tokenizer: PreTrainedTokenizerBase, written: Container[str] = ()) -> Callable[[str], str]:
    """Return a function that marks the control strings of data, so that `encode` reads them as text.

    Args:
        tokenizer: of the model.
        written: control strings that are not marked, or a text that holds them: what a layout writes too.
    """
    strings = _Strings([_MARK, *(string for string in control_strings(tokenizer) if string not in written)])
    return lambda text: strings.starts.sub(lambda at: at[0] + _MARK if strings.at(text, at.start()) else at[0], text)


def quoted_task(task: Task, quote: Callable[[str], str]) -> Task:
    """Return a task whose answer words and examples are marked as data; layouts and verbatim preambles stay as written.

    Args:
        task: the task.
        quote: from `quoter`.
    """

    def sets(named: Mapping[str, AnswerSet]) -> dict[str, AnswerSet]:
        return {name: {label: quote(word) for label, word in words.items()} for name, words in named.items()}

    def shown(examples: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
        texts = [{key: quote(text) for key, text in each.fields.items()} for each in examples]
        return tuple(each.model_copy(update={"fields": own}) for each, own in zip(examples, texts, strict=True))

    packs = {}
    for code, pack in task.languages.items():
        parts = {"answer_sets": sets(pack.answer_sets), "demonstrations": shown(pack.demonstrations)}
        packs[code] = pack.model_copy(update={**parts, "pool": shown(pack.pool)})
    return task.model_copy(update={"answer_sets": sets(task.answer_sets), "languages": packs})


def unquoted(text: str) -> str:
    """Return text without the marks of `quoter`."""
    return re.sub(f"{_MARK}({_MARK}?)", r"\1", text) if _MARK in text else text


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Return the token ids of whole strings, with the tokens a prompt starts with and none that end it.

    Where a tokenizer cannot read control strings as text (one written in Python, a vocabulary that finds them in text
    as well), marks are of no use; `read_as_control` tells.

    Args:
        tokenizer: of the model.
        texts: the strings; marked by `quoter` where they hold data.
        special: False where the strings hold the first tokens themselves, as a chat template writes them.
    """
    marked = [text for text in dict.fromkeys(texts) if _MARK in text]
    start, end = _ends(tokenizer) if special else ([], [])
    as_text = dict(zip(marked, _encode_marked(tokenizer, marked), strict=True))
    plain = [unquoted(text) for text in texts if text not in as_text]
    rows = iter(tokenizer(plain, add_special_tokens=special)["input_ids"] if plain else [])  # pyright: ignore
    return [
        [*start, *as_text[text]] if text in as_text else _without_end(next(rows), end)  # pyright: ignore
        for text in texts
    ]


def read_as_control(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[str]]:
    """Return for every text of data the control strings that the tokenizer makes control tokens of all the same.

    The token for what is unknown is none of them, nor are those for bytes: any text may hold what a vocabulary lacks.
    """
    quote = quoter(tokenizer)
    string_of = {
        number: string
        for string, number in control_strings(tokenizer).items()
        if number != tokenizer.unk_token_id and not _BYTE.fullmatch(string)
    }
    rows = encode(tokenizer, [quote(text) for text in texts], special=False)
    return [list(dict.fromkeys(string_of[token] for token in row if token in string_of)) for row in rows]


def _encode_marked(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of marked texts, without those that a tokenizer puts before and behind them."""
    if not texts:
        return []
    strings = control_strings(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return tokenizer([unquoted(text) for text in texts], add_special_tokens=False)["input_ids"]  # pyright: ignore
    around = _around(texts)
    renamed, token_of = _renamed(tokenizer, tuple(strings), around)
    written = _Strings(strings)
    named = [unquoted(written.replaced(text, lambda string: around + string + around)) for text in texts]
    found = renamed.encode_batch(named, add_special_tokens=False)
    return [[token_of.get(token, token) for token in each.ids] for each in found]


def _around(texts: Sequence[str]) -> str:
    """Return what is put around a control string to name its token: letters for programs that no text holds so."""
    held = unquoted("\n".join(texts))
    return next(mark for number in count() if (mark := f"\ufdd1{number}\ufdd1") not in held)


@lru_cache(maxsize=2)
def _renamed(
    tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...], around: str
) -> tuple[Tokenizer, dict[int, int]]:
    """Return a tokenizer that knows control tokens by other names, so that their strings are text to it.

    Returns:
        The tokenizer, and its added tokens -> those of the original.
    """
    from tokenizers import AddedToken, Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore
    renamed = Tokenizer.from_str(json.dumps({**content, "added_tokens": [], "truncation": None, "padding": None}))
    tokens = {}
    for number, token in sorted(tokenizer.added_tokens_decoder.items()):
        is_control = token.content in strings
        options = {key: getattr(token, key) for key in ("single_word", "lstrip", "rstrip")}
        options["normalized"] = token.normalized and not is_control
        tokens[number] = AddedToken(around + token.content + around if is_control else token.content, **options)
    renamed.add_tokens(list(tokens.values()))  # at once: each call takes a second for a large vocabulary
    return renamed, {renamed.token_to_id(token.content): number for number, token in tokens.items()}  # pyright: ignore


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer of its own accord puts before and behind a text."""
    text, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    starts = range(len(whole) - len(text) + 1 if text else 0)
    at = next((index for index in starts if whole[index : index + len(text)] == text), None)
    return ([], []) if at is None else (whole[:at], whole[at + len(text) :])


def _without_end(row: Sequence[int], end: Sequence[int]) -> list[int]:
    return list(row[: len(row) - len(end)] if end and list(row[-len(end) :]) == list(end) else row)


class _Strings:
    """Strings that are looked for in texts, thousands of them; a regular expression would try each in turn.

    Args:
        strings: the strings; of one character only the mark, since no mark breaks others.
    """

    def __init__(self, strings: Collection[str]) -> None:
        self._strings = {string for string in strings if len(string) > 1 or string == _MARK}
        self._lengths = sorted({len(string) for string in self._strings}, reverse=True)
        self.starts = re.compile("|".join(re.escape(first) for first in {string[0] for string in self._strings}))

    def at(self, text: str, index: int) -> str:
        """Return the longest of the strings that begins here, an empty string for none."""
        found = (text[index : index + length] for length in self._lengths)
        return next((string for string in found if string in self._strings), "")

    def replaced(self, text: str, replace: Callable[[str], str]) -> str:
        """Return a text with all of the strings in it replaced, from left to right."""
        parts, end = [], 0
        for start in self.starts.finditer(text):
            if start.start() >= end and (string := self.at(text, start.start())):
                parts += [text[end : start.start()], replace(string)]
                end = start.start() + len(string)
        return "".join([*parts, text[end:]])
