"""Label words under a tokenizer: what has to be scored to choose between them, and whether it can be trusted.

Enters: a tokenizer, a prompt, the label words. Leaves: a `LabelTrie` for exact constrained decoding (`sequence`), the
token sets of the paper's rule (`prefix-mass`, arXiv 2405.13816, evaluation protocol), and the label audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from transformers import PreTrainedTokenizerBase

from glotlift.tasks.task import Task


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


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of whole strings, with the tokens a prompt starts with and none that end it."""
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"]  # pyright: ignore[reportAssignmentType]
    end = tokenizer.eos_token_id
    if end is not None and end != tokenizer.bos_token_id:
        rows = [row[:-1] if row and row[-1] == end else row for row in rows]
    return rows


def continuations(prompt: Sequence[int], whole: Sequence[Sequence[int]]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Return where the label words begin, and their tokens from there.

    A token may span the end of the prompt and the beginning of a word. The words are then scored from the last token
    boundary that prompt and all words share, so that the probability is that of the string the model reads.

    Args:
        prompt: tokens of the prompt.
        whole: for every label, the tokens of prompt + word, tokenized as one string.

    Returns:
        The number of prompt tokens that all share, at most `len(prompt)`, and for every label the tokens behind them.
    """
    shared = len(prompt)
    for row in whole:
        shared = min(shared, _common(prompt, row))
    return shared, tuple(tuple(row[shared:]) for row in whole)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    return next((index for index in range(n) if a[index] != b[index]), n)


def prefix_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> frozenset[int]:
    """Return the tokens that count for a label word under the paper's rule (`prefix-mass`).

    These are the tokens whose surface is a non-empty prefix of the word, with or without the word-start mark; the
    byte token of its first byte, where it starts beyond ASCII and the tokenizer has byte tokens; and, for byte-level
    BPE, the first token of the tokenization of each prefix.
    """
    vocabulary = _vocabulary(tokenizer)
    prefixes = [word[:end] for end in range(1, len(word) + 1)]
    byte_level = is_byte_level(tokenizer)
    mark = "Ġ" if byte_level else "▁"
    surfaces = [_byte_level(prefix) if byte_level else prefix for prefix in prefixes]
    found = {vocabulary[form] for surface in surfaces for form in (surface, mark + surface) if form in vocabulary}
    if not word[0].isascii():
        byte = f"<0x{word[0].encode()[0]:02X}>"
        found |= {vocabulary[byte]} if byte in vocabulary else set()
    if byte_level:
        rows = tokenizer(prefixes, add_special_tokens=False)["input_ids"]
        found |= {row[0] for row in rows if row}  # pyright: ignore[reportIndexIssue, reportGeneralTypeIssues]
    return frozenset(found)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens are byte-level BPE (GPT-2, Qwen, Llama 3), not SentencePiece-style (Llama 2, Gemma)."""
    vocabulary = _vocabulary(tokenizer)
    return "▁" not in vocabulary and "Ġ" in vocabulary


_VOCABULARIES: dict[int, tuple[PreTrainedTokenizerBase, dict[str, int]]] = {}


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return token -> id; `get_vocab` builds it anew at every call, which takes 0.2 s for 262,144 tokens."""
    if id(tokenizer) not in _VOCABULARIES:
        _VOCABULARIES[id(tokenizer)] = (tokenizer, tokenizer.get_vocab())
    return _VOCABULARIES[id(tokenizer)][1]


@cache
def _byte_alphabet() -> dict[int, str]:
    """Return the printable character that byte-level BPE writes for each byte (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _byte_level(text: str) -> str:
    return "".join(_byte_alphabet()[byte] for byte in text.encode())


@dataclass(frozen=True)
class Finding:
    """What the label audit says of the words of one language: what it found, what it does to the score, what to do."""

    language: str
    kind: str
    message: str


def audit_labels(tokenizer: PreTrainedTokenizerBase, task: Task, language: str, answer_set: str) -> list[Finding]:
    """Return what may make the scores of a task's label words misleading under this tokenizer; empty is a pass.

    Looked at, on the prompt of the first demonstration (or of empty fields): words that share their first token, words
    that are token prefixes of others, tokens that span cue and word, tokens that `prefix-mass` counts for two labels.
    """
    words = task.answers(language, answer_set)
    shown = task.pack(language).demonstrations
    fields = shown[0].fields if shown else dict.fromkeys(task.fields, "")
    prompt = task.prompt(language, answer_set, fields)
    prompt_ids, *whole = encode(tokenizer, [prompt, *(prompt + word for word in words.values())])
    root, paths = continuations(prompt_ids, whole)
    label_sets = {label: prefix_tokens(tokenizer, word) for label, word in words.items()}
    findings = []
    if root < len(prompt_ids):
        findings.append(
            Finding(language, "boundary", "a token spans the cue and a word; `sequence` scores it whole, "
                    "`prefix-mass` does not see it: end the cue in a character that no word merges with")
        )  # fmt: skip
    for (a, path_a), (b, path_b) in combinations(zip(words, paths, strict=True), 2):
        pair = f"{words[a]!r} and {words[b]!r}"
        if _common(path_a, path_b) in (len(path_a), len(path_b)):
            findings.append(
                Finding(language, "prefix", f"{pair}: one word begins with the other, so `sequence` always prefers "
                        "the shorter one: choose other words")
            )  # fmt: skip
        elif path_a[0] == path_b[0]:
            piece = tokenizer.decode([path_a[0]])
            findings.append(
                Finding(language, "first token", f"{pair} share their first token {piece!r}, so the first token does "
                        "not tell them apart: score by `sequence`, or choose other words")
            )  # fmt: skip
        both = label_sets[a] & label_sets[b]
        if both:
            pieces = ", ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(sorted(both)[:3]))
            findings.append(
                Finding(language, "shared mass", f"{pair}: `prefix-mass` counts {len(both)} tokens ({pieces}) for "
                        "both, which hides a preference: score by `sequence`")
            )  # fmt: skip
    for label, tokens in label_sets.items():
        if not tokens:
            findings.append(
                Finding(language, "no token", f"no token is a prefix of {words[label]!r}, so `prefix-mass` is 0 for "
                        "it: score by `sequence`")
            )  # fmt: skip
    return findings
