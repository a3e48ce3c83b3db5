"""What a server says of a text that it sends back: its tokens and their log-probabilities, and whether to believe it.

Enters: answers of a completions endpoint to `echo` with `logprobs`. Leaves: an `Echo`, or one sentence about what
cannot be: a log-probability above 0, text for a number, a text that was not sent, values that belong to other tokens.

That each value belongs to its own token is seen from three short texts (`check_echo`). The most probable next token,
which the server tells with its log-probability, must have the same one when it is sent as part of the text; and the
tokens of a text must have the same ones whatever follows. A server that scores every token by a wrong row of its table
fails the one or the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from glotlift.errors import ModelError
from glotlift.models.requests import without_echo

TIED = 0.5
"""Nats by which a token's log-probability may differ between two requests that share the text up to it."""

_PROBE, _ENDING = "one two three", " seven"
_ABOVE = 1e-3  # nats above 0 that low precision may give
_ID = "token_id:"  # vLLM shows tokens so under --return-tokens-as-token-ids
_FEW = 4  # values of which all may be 0: of as few tokens a model can be as sure as fp32 can say


@dataclass(frozen=True)
class Echo:
    """The tokens of a text as the server shows them, and their natural-log probabilities; the first may have none.

    Attributes:
        tokens: of the text.
        log_probabilities: of each.
        generated: the token generated behind the text and its log-probability; None where there is none.
    """

    tokens: list[str]
    log_probabilities: list[float | None]
    generated: tuple[str, float] | None = None


def read_echo(url: str, answer: Any) -> Echo:
    """Return the tokens of a text and their log-probabilities; `usage` counts those generated behind it.

    Args:
        url: of the server, for messages.
        answer: to a request with `echo` and `logprobs`.

    Raises:
        ModelError: it has no such log-probabilities, or some that cannot be.
    """
    tokens = _at(url, answer, "choices", 0, "logprobs", "tokens")
    values = _at(url, answer, "choices", 0, "logprobs", "token_logprobs")
    counts = [_at(url, answer, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise without_echo(url, f"tokens that are no list of texts ({_shortened(tokens)})")
    if not isinstance(values, list) or not all(isinstance(count, int) for count in counts):
        raise without_echo(url, f"log-probabilities {_shortened(values)} of {_shortened(counts)} tokens")
    n_text, n_generated = counts
    n_echoed = len(tokens) - n_generated
    # llama-cpp-python counts the beginning-of-sequence token but does not show it
    if len(values) != len(tokens) or n_echoed not in (n_text, n_text - 1):
        raise without_echo(url, f"log-probabilities of {max(n_echoed, 0)} of a text's {n_text} tokens")
    for place, value in enumerate(values):
        if not (_is_log_probability(value) or (place == 0 and value is None)):
            got = f"got {_shortened(value)} as the log-probability of token {place + 1} of {len(tokens)}"
            hint = "; vLLM gives logits under --logprobs-mode raw_logits" if _is_number(value) and value > 0 else ""
            raise ModelError(f"{url}: {got}, {tokens[place]!r}, expected a number that is not above 0{hint}")
    known = [value for value in values[:n_echoed] if value is not None]
    if len(known) > _FEW and not any(known):
        raise ModelError(f"{url}: got the log-probability 0 for all {len(known)} tokens of a text, expected their own")
    generated = (tokens[n_echoed], values[n_echoed]) if n_generated == 1 and values[n_echoed] is not None else None
    return Echo(tokens[:n_echoed], values[:n_echoed], generated)


def check_echo(url: str, ask: Callable[[str], Any]) -> None:
    """Send three short texts, and raise where what comes back cannot be what a model says of them.

    Args:
        url: of the server, for messages.
        ask: function of a text -> the server's answer.

    Raises:
        ModelError: the server sends another text back, or log-probabilities that belong to other tokens.
    """
    answer = ask(_PROBE)
    plain = read_echo(url, answer)
    # llama-cpp-python, for models without a beginning-of-sequence token: it pairs the first token it shows with the
    # first row of logits, so that each is scored by what stands behind it; the text's last is then the generated one
    is_short = len(plain.tokens) < _at(url, answer, "usage", "prompt_tokens")
    if is_short and not _letters(plain.tokens).endswith(_PROBE.split()[-1]):
        raise _off_by_one(url)
    _check_text(url, _PROBE, plain)
    longer = read_echo(url, ask(_PROBE + _ENDING))
    _check_text(url, _PROBE + _ENDING, longer)
    _check_tied(url, plain, longer)
    if plain.generated is None or not plain.generated[0].isprintable() or not plain.generated[0].strip():
        return  # vLLM shows nothing of a piece of a character
    token, value = plain.generated
    again = read_echo(url, ask(_PROBE + token))
    if again.tokens == [*plain.tokens, token]:
        _check_tied(url, Echo(again.tokens, [*plain.log_probabilities, value]), again)


def _check_text(url: str, text: str, echo: Echo) -> None:
    """Raise for an echo of another text; servers show blanks in several ways, and a first token that was not sent."""
    if echo.tokens and all(token.startswith(_ID) for token in echo.tokens):
        return  # of ids the text cannot be seen
    if not _letters(echo.tokens).endswith(text.replace(" ", "")):
        raise ModelError(f"{url}: got the echo {_shortened(''.join(echo.tokens))}, expected that of the text {text!r}")


def _letters(tokens: Sequence[str]) -> str:
    shown = "".join(tokens)
    return "".join(character for character in shown if character.isascii() and not character.isspace())


def _check_tied(url: str, one: Echo, other: Echo) -> None:
    """Raise where two texts give the tokens that they share different log-probabilities."""
    shared = takewhile(lambda pair: pair[0][0] == pair[1][0], zip(_rows(one), _rows(other), strict=False))
    if any(a is not None and b is not None and abs(a - b) > TIED for (_, a), (_, b) in shared):
        raise _off_by_one(url)


def _rows(echo: Echo) -> Iterator[tuple[str, float | None]]:
    return zip(echo.tokens, echo.log_probabilities, strict=True)


def _off_by_one(url: str) -> ModelError:
    return ModelError(
        f"{url}: got log-probabilities that are off by one (llama-cpp-python gives such for models without "
        "a beginning-of-sequence token), expected those of the tokens shown: serve the model with vLLM"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_log_probability(value: Any) -> bool:
    return _is_number(value) and value <= _ABOVE


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(url: str, answer: Any, *path: str | int) -> Any:
    for depth, key in enumerate(path):
        try:
            answer = answer[key]
        except (KeyError, IndexError, TypeError):
            answer = None
        if answer is None:
            raise without_echo(url, f"an answer without `{'.'.join(map(str, path[: depth + 1]))}`")
    return answer
