"""The bytes behind tokens: which tokens begin a word, whatever kind of tokenizer spells them.

Enters: a tokenizer, tokens, words. Leaves: bytes, tokens that are a beginning of a word's UTF-8 bytes, and tokens as
people can read them. SentencePiece-style vocabularies (Llama 2, Gemma) spell text as it is, with `▁` for a blank and
`<0xE0>` for single bytes; byte-level BPE (GPT-2, Qwen, Llama 3) spells every byte as a printable letter.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from glotlift.models.control import control_strings

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens are byte-level BPE (GPT-2, Qwen, Llama 3), not SentencePiece-style (Llama 2, Gemma)."""
    known = vocabulary(tokenizer)
    return "▁" not in known and "Ġ" in known


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """Return the UTF-8 bytes that a token stands for."""
    return _as_bytes(str(tokenizer.convert_ids_to_tokens(token)), is_byte_level(tokenizer))


def beginnings(tokenizer: PreTrainedTokenizerBase, word: str) -> frozenset[int]:
    """Return the tokens whose bytes are a beginning of a word's, the whole word included, with or without a blank.

    A token that ends inside a character is one of them. Control tokens are none, whatever their strings: words are
    text.
    """
    known, raw = _tokens_of_bytes(tokenizer), word.encode()
    starts = [raw[:end] for end in range(1, len(raw) + 1)]
    return frozenset(token for start in starts for form in (start, b" " + start) for token in known.get(form, ()))


def holds_a_character(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token holds a whole character beside blanks; else it is a part of one."""
    return bool(token_bytes(tokenizer, token).decode(errors="ignore").strip())


def readable(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text; bytes that are no whole character stand as `⟨E0 B8⟩`."""
    raw, parts = token_bytes(tokenizer, token), []
    while raw:
        try:
            return "".join([*parts, raw.decode()])
        except UnicodeDecodeError as fault:
            parts += [raw[: fault.start].decode(), f"⟨{raw[fault.start : fault.end].hex(' ').upper()}⟩"]
            raw = raw[fault.end :]
    return "".join(parts)


_VOCABULARIES: dict[int, tuple[Any, dict[str, int], dict[str, int]]] = {}
_TOKENS_OF_BYTES: dict[int, dict[bytes, list[int]]] = {}


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return token -> id; `get_vocab` builds it anew at every call, which takes 0.2 s for 262,144 tokens."""
    return _read_once(tokenizer)[1]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return `control_strings`."""
    return _read_once(tokenizer)[2]


def _read_once(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, dict[str, int], dict[str, int]]:
    if id(tokenizer) not in _VOCABULARIES:
        _VOCABULARIES[id(tokenizer)] = (tokenizer, tokenizer.get_vocab(), control_strings(tokenizer))
    return _VOCABULARIES[id(tokenizer)]


def _tokens_of_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, list[int]]:
    """Return byte string -> the tokens that stand for it, control tokens left out."""
    known, control = vocabulary(tokenizer), control_tokens(tokenizer)
    if id(tokenizer) not in _TOKENS_OF_BYTES:
        spells_bytes = is_byte_level(tokenizer)
        found: dict[bytes, list[int]] = {}
        for text, token in known.items():
            if text not in control or _BYTE.fullmatch(text):  # some tokenizers call their byte tokens special
                found.setdefault(_as_bytes(text, spells_bytes), []).append(token)
        _TOKENS_OF_BYTES[id(tokenizer)] = found
    return _TOKENS_OF_BYTES[id(tokenizer)]


def _as_bytes(text: str, is_byte_level: bool) -> bytes:
    if byte := _BYTE.fullmatch(text):
        return bytes.fromhex(byte[1])
    if not is_byte_level:
        return text.replace("▁", " ").encode()
    byte_of = _byte_of()
    try:
        return bytes([byte_of[character] for character in text])
    except KeyError:  # an added token is spelled as it is
        return text.encode()


@cache
def _alphabet() -> dict[int, str]:
    """Return the printable character that byte-level BPE writes for each byte (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def _byte_of() -> dict[str, int]:
    return {character: byte for byte, character in _alphabet().items()}


def byte_level_spelling(text: str) -> str:
    """Return how byte-level BPE spells a text."""
    return "".join(_alphabet()[byte] for byte in text.encode())
