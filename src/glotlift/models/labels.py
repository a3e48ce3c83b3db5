"""Label words under a tokenizer: what has to be scored to choose between them, and whether it can be trusted.

Enters: a tokenizer, a prompt, the label words. Leaves: a `LabelTrie` for exact constrained decoding (`sequence`), the
token sets of the paper's rule (`prefix-mass`, arXiv 2405.13816, evaluation protocol), and the label audit.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

from glotlift.errors import ModelError
from glotlift.models.control import encode, quoted_task, quoter
from glotlift.models.token_bytes import (
    byte_level_spelling,
    control_tokens,
    is_byte_level,
    token_bytes,
    vocabulary,
)
from glotlift.tasks.task import AnswerSet, Task

if TYPE_CHECKING:  # the audit of words needs no tokenizer, and transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LabelTrie:
    """The label words as token paths that share their common beginnings.

    Node 0 is the root, the end of the prompt. Only nodes with children are nodes: the last token of a word is
    scored at its parent and never run through the model.

    Attributes:
        tokens: token of every node; the root's is -1.
        parents: parent of every node; the root's is -1.
        steps: for every label, its word as (node, token) pairs: the token is scored by the distribution at the node.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def depths(self) -> tuple[int, ...]:
        """Distance of every node from the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)


@cache
def build_trie(continuations: tuple[tuple[int, ...], ...]) -> LabelTrie:
    """Return the trie of several token sequences, one a label, none empty."""
    tokens, parents = [-1], [-1]
    child: dict[tuple[int, int], int] = {}
    steps = []
    for sequence in continuations:
        node, path = 0, []
        for position, token in enumerate(sequence):
            path.append((node, token))
            if position + 1 < len(sequence):
                if (node, token) not in child:
                    child[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = child[node, token]
        steps.append(tuple(path))
    return LabelTrie(tuple(tokens), tuple(parents), tuple(steps))


def continuations(prompt: Sequence[int], whole: Sequence[Sequence[int]]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Return where the label words begin, and their tokens from there.

    A token may span the end of the prompt and the beginning of a word. The words are then scored from the last token
    boundary that prompt and all words share, so that the probability is that of the string the model reads.

    Args:
        prompt: tokens of the prompt.
        whole: for every label, the tokens of prompt + word, tokenized as one string.

    Returns:
        The number of prompt tokens that all share, 1 to `len(prompt)`, and for every label the tokens behind them.

    Raises:
        ModelError: they share none, so there is no distribution that scores a word's first token.
    """
    shared = min(len(prompt), *(_common(prompt, row) for row in whole))
    if shared == 0:
        raise ModelError(
            "got no token boundary that the prompt shares with the text behind it, expected one: begin the prompt with "
            "text, or end it in a character that no word merges with"
        )
    return shared, tuple(tuple(row[shared:]) for row in whole)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    return next((index for index in range(n) if a[index] != b[index]), n)


def prefix_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> frozenset[int]:
    """Return the tokens that count for a label word under the paper's rule (`prefix-mass`).

    These are the tokens whose surface is a non-empty prefix of the word, with or without the word-start mark; the
    byte token of its first byte, where it starts beyond ASCII and the tokenizer has byte tokens; and, for byte-level
    BPE, the first token of the tokenization of each prefix. A control token is none of them, though the word begins
    with its string: words are text. The authors' code differs from this description on byte-level BPE, see
    `released_tokens`.
    """
    control = {number for string, number in control_tokens(tokenizer).items() if word.startswith(string)}
    if not is_byte_level(tokenizer):
        return released_tokens(tokenizer, word) - control
    surfaces = map(byte_level_spelling, _prefixes(word))
    return (_spelled(tokenizer, surfaces, "Ġ") | _first_byte(tokenizer, word) | _begun(tokenizer, word)) - control


def released_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> frozenset[int]:
    """Return the tokens that count for a label word in the code the authors released (`prefix-mass-released`).

    It looks prefixes up as a SentencePiece vocabulary spells them, with `▁` for the word-start mark, under every
    tokenizer. On byte-level BPE, which spells bytes as letters, it so leaves out tokens with a leading space
    (`Ġentail`), and takes `é`, the letter for byte E9, for the word that begins with it. Else it is `prefix_tokens`.
    Source: `process_tokens` in github.com/Shimao-Zhang/LLM-Multilingual-Learner; its branch for Qwen, the byte-level
    BPE it knows, is taken for all of them.
    """
    found = _spelled(tokenizer, _prefixes(word), "▁") | _first_byte(tokenizer, word)
    return found | _begun(tokenizer, word) if is_byte_level(tokenizer) else found


def _prefixes(word: str) -> list[str]:
    return [word[:end] for end in range(1, len(word) + 1)]


def _spelled(tokenizer: PreTrainedTokenizerBase, spellings: Iterable[str], mark: str) -> frozenset[int]:
    """Return the tokens that the vocabulary spells so, or so with the word-start mark."""
    known = vocabulary(tokenizer)
    return frozenset(known[form] for text in spellings for form in (text, mark + text) if form in known)


def _first_byte(tokenizer: PreTrainedTokenizerBase, word: str) -> frozenset[int]:
    """Return the token of the first byte of a word that starts beyond ASCII, where there is one."""
    byte = f"<0x{word[0].encode()[0]:02X}>"
    return frozenset([vocabulary(tokenizer)[byte]] if not word[0].isascii() and byte in vocabulary(tokenizer) else [])


def _begun(tokenizer: PreTrainedTokenizerBase, word: str) -> frozenset[int]:
    """Return the first token of every prefix, each tokenized alone."""
    rows = tokenizer(_prefixes(word), add_special_tokens=False)["input_ids"]
    return frozenset(row[0] for row in rows if row)  # pyright: ignore[reportIndexIssue, reportGeneralTypeIssues]


@dataclass(frozen=True)
class Finding:
    """What a check says of a language, "" for the whole task: what it found, what it does to the score, what to do."""

    language: str
    kind: str
    message: str


ADVICE = {
    "no boundary": "nothing scores the first token of a word, so evaluation refuses",
    "same tokens": "a model cannot tell them apart, so evaluation refuses: choose other words",
    "look-alike": "one is easily written for the other, and gold words are compared as they are: choose other words",
    "blanks": "they are scored with the word, and a gold word must have them too: take them off",
    "prefix": "where tokens nest, `sequence` never prefers the longer word: score the closing quote too "
    "(`closing_quote`, where the cue opens one), or choose other words",
    "boundary": "`sequence` scores such a token whole, `prefix-mass` does not see it: end the cue in a character that "
    "no word merges with",
    "first byte": "it tells the script, not the word, and `first-token` scores them the same: score by `sequence`, or "
    "choose words that begin in other bytes",
    "first token": "`first-token` scores them the same: score by `sequence`, or choose words that begin differently",
    "shared mass": "what `prefix-mass` counts for several words hides a preference: score by `sequence`",
    "no token": "`prefix-mass` is 0 for such a word: score by `sequence`",
}
"""For every kind of finding, what it does to the score and what to do; the end of its message."""


def audit_words(task: Task, language: str, answer_set: str, *, closing: bool = False) -> list[Finding]:
    """Return what may make the answer words themselves misleading, under any tokenizer; empty is a pass.

    Looked at: words that differ in case, blanks or Unicode form only; blanks at their ends; words that begin others.

    Args:
        task: the task.
        language: code of the prompt language.
        answer_set: see `Task.answers`.
        closing: whether the closing quote is scored with the word, as `closing_quote` does.

    Raises:
        TaskError: there is no such answer set for this language.
    """
    words = task.answers(language, answer_set)
    pack = task.pack(language)
    mark = pack.closing if closing else ""
    nested = [f"{a!r} begins {b!r}" for a, b in permutations(words.values(), 2) if (b + mark).startswith(a + mark)]
    found = {"look-alike": _look_alikes(words), "blanks": _blanks(words, pack.layout), "prefix": nested}
    return _findings(language, found)


def audit_labels(
    tokenizer: PreTrainedTokenizerBase, task: Task, language: str, answer_set: str, *, closing: bool = False
) -> list[Finding]:
    """Return what may make the scores of a task's label words misleading under this tokenizer; empty is a pass.

    Looked at, besides what `audit_words` does, on the prompt of the first demonstration (else the first of the pool,
    else `x` in every field): a prompt that shares no token with a word behind it, words of the same tokens, words that
    are token prefixes of others, tokens that span cue and word, words that share their first token or the first bytes
    of a character, and tokens that `prefix-mass` counts for several words. One finding a kind, which names all words
    concerned.

    Args:
        tokenizer: of the model.
        task: the task.
        language: code of the prompt language.
        answer_set: see `Task.answers`.
        closing: whether the closing quote is scored with the word, as `closing_quote` does.

    Raises:
        TaskError: there is no such answer set for this language, or no verbatim preamble for it.
    """
    words = task.answers(language, answer_set)
    pack = task.pack(language)
    asked = quoted_task(task, quoter(tokenizer))
    prompt = asked.prompt(language, answer_set, _example(asked, language))
    mark = pack.closing if closing else ""
    endings = [word + mark for word in asked.answers(language, answer_set).values()]
    prompt_ids, *whole = encode(tokenizer, [prompt, *(prompt + ending for ending in endings)])
    try:
        _, paths = continuations(prompt_ids, whole)
    except ModelError as fault:
        return _findings(language, {"no boundary": [str(fault)]})
    rows = dict(zip(words.values(), map(tuple, whole), strict=True))
    counted = {word: prefix_tokens(tokenizer, word) for word in words.values()}
    found = {
        "same tokens": [f"{_listed(group)} have the same tokens" for group in _groups(rows).values()],
        "look-alike": _look_alikes(words),
        "blanks": _blanks(words, pack.layout),
        "prefix": [_nests(a, b, rows) for a, b in permutations(rows, 2) if _begins(a, b, mark, rows)],
        "boundary": _merges(tokenizer, prompt_ids, rows),
        **_first_tokens(tokenizer, dict(zip(words.values(), paths, strict=True))),
        "shared mass": _shared_mass(tokenizer, counted),
        "no token": [f"no token is a prefix of {word!r}" for word, tokens in counted.items() if not tokens],
    }
    return _findings(language, found)


def _findings(language: str, found: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return one finding for every kind that something was found of; of many, the first three are written out."""
    findings = []
    for kind, texts in found.items():
        if texts:
            more = f", and {len(texts) - 3} more" if len(texts) > 3 else ""
            findings.append(Finding(language, kind, f"{', '.join(texts[:3])}{more}; {ADVICE[kind]}"))
    return findings


def _example(task: Task, language: str) -> Mapping[str, str]:
    """Return fields for a prompt; empty ones could merge tokens as no item does."""
    pack = task.pack(language)
    shown = (*pack.demonstrations, *pack.pool)
    return shown[0].fields if shown else dict.fromkeys(task.fields, "x")


def _look_alikes(words: AnswerSet) -> list[str]:
    folded = {word: " ".join(unicodedata.normalize("NFKC", word).casefold().split()) for word in words.values()}
    return [f"{_listed(group)} differ in case, blanks or Unicode form only" for group in _groups(folded).values()]


def _blanks(words: AnswerSet, layout: str) -> list[str]:
    """Return the words with blanks at their ends; a leading one is right behind a cue such as `Answer:`."""
    leading_is_right = layout[-1].isalnum() or layout[-1] in ":：?؟"
    found = [f"{word!r} ends with a blank" for word in words.values() if word != word.rstrip()]
    if not leading_is_right:
        found += [f"{word!r} begins with a blank" for word in words.values() if word != word.lstrip()]
    return found


def _begins(a: str, b: str, mark: str, rows: Mapping[str, tuple[int, ...]]) -> bool:
    return (b + mark).startswith(a + mark) or (rows[a] != rows[b] and _common(rows[a], rows[b]) == len(rows[a]))


def _nests(a: str, b: str, rows: Mapping[str, tuple[int, ...]]) -> str:
    in_tokens = _common(rows[a], rows[b]) == len(rows[a])
    return f"{a!r} begins {b!r}, {'in tokens too' if in_tokens else 'though not in tokens'}"


def _merges(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], rows: Mapping[str, Sequence[int]]) -> list[str]:
    found = []
    for word, row in rows.items():
        end = _common(prompt, row)
        if end < min(len(prompt), len(row)):
            found.append(f"{word!r} takes the end of the cue into the token {_piece(tokenizer, row[end])}")
    return found


def _first_tokens(tokenizer: PreTrainedTokenizerBase, paths: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Return the words that `first-token` cannot tell apart: by a part of a character, or by more than that."""
    found: dict[str, list[str]] = {"first byte": [], "first token": []}
    for token, words in _groups({word: path[0] for word, path in paths.items() if path}).items():
        text = f"{_listed(words)} begin with the token {_piece(tokenizer, token)}"
        if _is_fragment(tokenizer, token):
            found["first byte"].append(f"{text}, a part of a character")
        else:
            found["first token"].append(text)
    return found


def _shared_mass(tokenizer: PreTrainedTokenizerBase, counted: Mapping[str, frozenset[int]]) -> list[str]:
    """Return which tokens count for several words; first where that leaves a word no tokens of its own."""
    words_of: dict[int, tuple[str, ...]] = {}
    for word, tokens in counted.items():
        for token in tokens:
            words_of[token] = (*words_of.get(token, ()), word)
    nested = [(a, b) for a, b in permutations(counted, 2) if counted[a] and counted[a] < counted[b]]
    found = [f"all tokens of {a!r} count for {b!r} too" for a, b in nested]
    for group, tokens in _groups(words_of, at_least=1).items():
        if len(group) > 1:
            shown = ", ".join(_piece(tokenizer, token) for token in sorted(tokens)[:3]) + ", ..." * (len(tokens) > 3)
            count = f"{len(tokens)} tokens ({shown}) count" if len(tokens) > 1 else f"1 token ({shown}) counts"
            alone = all(counted[word] == frozenset(tokens) for word in group)
            found.append(f"{count} for {_listed(group)}{', which so always tie' if alone else ''}")
    return found


def _groups(keys: Mapping[Any, Any], at_least: int = 2) -> dict[Any, list[Any]]:
    """Return value -> the keys that have it, for values of several keys."""
    groups: dict[Any, list[Any]] = {}
    for key, value in keys.items():
        groups.setdefault(value, []).append(key)
    return {value: group for value, group in groups.items() if len(group) >= at_least}


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(map(repr, words[:-1])), repr(words[-1])])


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token for messages: its text, or its bytes where they are no whole characters."""
    raw = token_bytes(tokenizer, token)
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return f"{'bytes' if len(raw) > 1 else 'byte'} {raw.hex(' ').upper()}"


def _is_fragment(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token holds no whole character beside blanks."""
    raw = token_bytes(tokenizer, token)
    return not raw.decode(errors="ignore").strip() and bool(raw.strip())
