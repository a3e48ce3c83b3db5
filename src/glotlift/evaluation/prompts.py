"""Prompts: a task, a language and items -> what a model reads, as text and as tokens.

Enters: a task and items, and for a local model its tokenizer. Leaves: `Prompts`: every prompt with every answer word
behind it, tokenized as a whole string, and the same for content-free inputs ("N/A" and so on, Zhao et al. 2021, arXiv
2102.09690), which show which label a model prefers when nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glotlift.errors import ModelError
from glotlift.evaluation.settings import EvalTask
from glotlift.models.chat import question_turn
from glotlift.models.control import encode, quoted_task, quoter, unquoted
from glotlift.models.labels import build_trie, continuations, prefix_tokens, released_tokens
from glotlift.models.load import LoadedModel
from glotlift.models.packing import Row, check_lengths
from glotlift.tasks.task import AnswerSet, Item, Task

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs that say nothing, put into every field (Zhao et al. 2021)."""


@dataclass(frozen=True)
class Prompts:
    """The items of a task in one language, as text, and for a local model as tokens.

    Attributes:
        task: name of the task.
        version: of the task file.
        language: code of the prompt language.
        words: label id -> answer word.
        items: the items, in the order of the rows.
        texts: their prompts, then those of the content-free inputs.
        endings: what is scored behind a prompt: every answer word, with the closing quote where it is asked for.
        num_fewshot: demonstrations of a prompt.
        rows: what a model runs for the items; empty for a server.
        content_free: what it runs for the content-free inputs.
        prefix_sets: for every label, the tokens that `prefix-mass` counts.
        released_sets: those that `prefix-mass-released` counts; empty where they are the same for all labels.
    """

    task: str
    version: int
    language: str
    words: AnswerSet
    items: Sequence[Item]
    texts: list[str]
    endings: list[str]
    num_fewshot: int
    rows: list[Row] = field(default_factory=list)
    content_free: list[Row] = field(default_factory=list)
    prefix_sets: list[list[int]] = field(default_factory=list)
    released_sets: list[list[int]] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """Label ids, in the task's order."""
        return list(self.words)


def prepare(
    loaded: LoadedModel,
    task: Task,
    language: str,
    items: Sequence[Item],
    settings: EvalTask,
) -> Prompts:
    """Tokenize the prompts of a task in one language, each as a whole string with each label word behind it.

    Args:
        loaded: the model.
        task: the task.
        language: code of the prompt language.
        items: the items; at least one.
        settings: how to ask: `answers` (see `Task.answers`), `num_fewshot` and `demo_seed` (see `Task.shown`),
            `closing_quote` (score the quote behind the word too, so that no word is the beginning of another),
            `apply_chat_template` (write demonstrations and question as the user's turn, and begin the assistant's with
            the cue, see `Task.question_and_cue`).

    Raises:
        LanguageError: the task has no prompts in the language.
        TaskError: it has no such answer set.
        ModelError: a prompt is longer than the model's window, or shares no token with the words behind it; two labels
            have the same tokens; there is no chat template.
    """
    chat = loaded.tokenizer if settings.apply_chat_template else None
    prompts, preambles = _render(task, language, items, settings, chat, quoter(loaded.tokenizer))
    strings = [text + ending for text in prompts.texts for ending in ("", *prompts.endings)]
    has_start = chat is not None  # a chat template writes the start token itself
    encoded = encode(loaded.tokenizer, strings, special=not has_start)
    starts = encode(loaded.tokenizer, preambles, special=not has_start)
    width = len(prompts.endings) + 1
    rows = []
    for index in range(len(prompts.texts)):
        prompt_ids, *whole = encoded[index * width : (index + 1) * width]
        try:
            root, paths = continuations(prompt_ids, whole)
        except ModelError as fault:
            raise ModelError(f"task {task.name!r}, {language}, {_name(items, index)}: {fault}") from None
        if len(set(paths)) < len(paths) or not all(paths):
            raise ModelError(
                f"task {task.name!r}, {language}: the tokenizer gives two of the words "
                f"{', '.join(prompts.words.values())} the same tokens, expected different ones"
            )
        span = (_shared(starts[index if len(starts) > 1 else 0], prompt_ids), len(prompt_ids))
        rows.append(Row(tuple(prompt_ids), build_trie(paths), root, span))
    try:
        check_lengths(loaded.model, rows)
    except ModelError as fault:
        raise ModelError(f"task {task.name!r}, {language}: {fault}") from None
    sets, released = (
        [sorted(counted(loaded.tokenizer, word)) for word in prompts.words.values()]
        for counted in (prefix_tokens, released_tokens)
    )
    texts, endings = [unquoted(text) for text in prompts.texts], [unquoted(text) for text in prompts.endings]
    return replace(prompts, texts=texts, endings=endings, rows=rows[: len(items)], content_free=rows[len(items) :],
                   prefix_sets=sets, released_sets=released if released != sets else [])  # fmt: skip


def prepare_texts(task: Task, language: str, items: Sequence[Item], settings: EvalTask) -> Prompts:
    """Return the prompts of a task in one language as text only, for a server; arguments as `prepare`."""
    return _render(task, language, items, settings, None, str)[0]


def _name(items: Sequence[Item], index: int) -> str:
    return f"item {items[index].id!r}" if index < len(items) else f"input {CONTENT_FREE[index - len(items)]!r}"


def _render(
    task: Task, language: str, items: Sequence[Item], settings: EvalTask, chat: Any, quote: Callable[[str], str]
) -> tuple[Prompts, list[str]]:
    """Return the prompts as text, and what stands before the question: one text, or one a prompt under a template.

    Texts and endings have the marks of `quote` (see `glotlift.models.control`) in what is data.
    """
    words, task = task.answers(language, settings.answers), quoted_task(task, quote)
    pack = task.pack(language)
    draw = settings.num_fewshot, settings.demo_seed
    preamble = task.preamble(language, settings.answers, *draw)
    fields = [item.fields for item in items] + [dict.fromkeys(task.fields, text) for text in CONTENT_FREE]
    asked = [task.question_and_cue(language, {key: quote(text) for key, text in each.items()}) for each in fields]
    texts, preambles = [preamble + question + cue for question, cue in asked], [preamble]
    if chat is not None:
        turns = [question_turn(chat, preamble + question) for question, _ in asked]
        texts = [turn.prompt + cue.removeprefix("\n") for turn, (_, cue) in zip(turns, asked, strict=True)]
        preambles = [
            turn.before + turn.text[: turn.text.rfind(question.strip())]  # a template may trim it
            for turn, (question, _) in zip(turns, asked, strict=True)
        ]
    closing = pack.closing if settings.closing_quote else ""
    endings = [word + closing for word in task.answers(language, settings.answers).values()]
    n_shown = len(task.shown(language, *draw))
    return Prompts(task.name, task.version, language, words, items, texts, endings, n_shown), preambles


def _shared(preamble: Sequence[int], prompt: Sequence[int]) -> int:
    pairs = zip(preamble, prompt, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(preamble), len(prompt)))
