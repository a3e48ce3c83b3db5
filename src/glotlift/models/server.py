"""Models behind a server: label words scored through an OpenAI-compatible `/completions` endpoint.

Enters: `openai:URL#name`, prompts, label words. Leaves: for every prompt the log-probability of each whole word and of
its first token.

The server sends a text back (`echo`) with the log-probability of each of its tokens. A prompt is sent alone and with
each word behind it, and the words are scored from the last token boundary that all these texts share, as
`labels.continuations` does it for a local model. `text_offset` is not used: vLLM counts a beginning-of-sequence token
and replacement characters into it, so that it drifts away from the characters of the text.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from glotlift.errors import ModelError, RunError, nearest, one_of
from glotlift.models.echo import TIED, Echo, check_echo, read_echo
from glotlift.models.load import digest
from glotlift.models.requests import session
from glotlift.models.settings import ServerSettings

PREFIX = "openai:"

_LOWEST = -9999.0  # what vLLM sends for minus infinity, which JSON cannot hold


@dataclass(frozen=True)
class Server:
    """What `--model openai:URL#name` stands for.

    Attributes:
        url: of the API, without a trailing slash: `http://localhost:8000/v1`.
        name: the model's name in requests.
        limits: how it is asked.
        card: what the server says of the model, from `connect`; None before.
    """

    url: str
    name: str
    limits: ServerSettings = ServerSettings()
    card: tuple[tuple[str, Any], ...] | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        """`base`: what the server does with its weights is its own affair."""
        return ("base",)

    def variant_fingerprint(self, variant: str) -> str:
        """Return the digest of the address, the name and the model's card; asks the server where `connect` has not.

        The weights cannot be seen from here: a model that is replaced under the same name keeps its fingerprint.

        Raises:
            ModelError: as in `connect`.
        """
        card = (self if self.card is not None else connect(self)).card
        return digest("openai", self.url, self.name, card)


def is_server(name: str) -> bool:
    """Return whether a model's name stands for a server."""
    return name.startswith(PREFIX)


def parse_server(name: str) -> Server:
    """Return the server that `openai:URL#name` stands for; asks nothing of it.

    Raises:
        ModelError: the name is not of that form.
    """
    url, _, model = name.removeprefix(PREFIX).partition("#")
    form = "expected openai:URL#name, as in openai:http://localhost:8000/v1#my-model"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as fault:
        raise ModelError(f"got model {name!r} ({fault}), {form}") from None
    if "@" in parts.netloc:
        raise ModelError("got a server's URL with a user or password, expected none: the key goes into OPENAI_API_KEY")
    if not is_server(name) or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or not model:
        raise ModelError(f"got model {name!r}, {form}")
    return Server(url.rstrip("/"), model)


def connect(server: Server) -> Server:
    """Ask the server once which models it has, and for the log-probabilities of short texts that must agree.

    Returns:
        The server with the model's `card`: what of its entry in `/models` outlives a restart.

    Raises:
        ModelError: the server cannot be reached, refuses the key, does not have the model, or does not give the
            log-probabilities of a text, see `glotlift.models.echo`.
    """
    with session(server.url, server.limits.model_copy(update={"max_retries": 0})) as ask:
        try:
            answer = ask("GET", "/models", None).result()
        except RunError as fault:
            raise ModelError(str(fault)) from None
    models = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(models, list):
        raise ModelError(f"{server.url}/models: got an answer without `data`, expected a list of models")
    cards = {str(card["id"]): card for card in models if isinstance(card, dict) and "id" in card}
    if server.name not in cards:
        listed = one_of(sorted(cards)[:20]) or "a server that has models"
        raise ModelError(f"{server.url}: got model {server.name!r}{nearest(server.name, cards)}, expected {listed}")
    card = cards[server.name]
    with session(server.url, server.limits) as ask:
        check_echo(server.url, lambda text: ask("POST", "/completions", _request(server, text)).result())
    keys = ("id", "root", "parent", "max_model_len")
    return replace(server, card=tuple((key, card[key]) for key in keys if card.get(key) is not None))


def score_words(
    server: Server, prompts: Sequence[str], words: Sequence[str]
) -> Iterator[tuple[int, list[float], list[float]]]:
    """Score every word behind every prompt; at most `server.limits.num_concurrent` requests are under way.

    One request a prompt and one more a word of it. Requests under way are cancelled when the iterator is closed.

    Args:
        server: from `parse_server` or `connect`.
        prompts: texts as the model reads them.
        words: label words, with the space in front of them where there is one.

    Yields:
        In the order in which prompts are done: the prompt's position, the `sequence` scores (natural log of the
        probability of each whole word behind the prompt) and the `first_token` scores (natural log of the probability
        of its first token). Where a token spans the end of the prompt, or where it may for all that can be seen of the
        tokens, all words of the prompt are scored from the same earlier boundary.

    Raises:
        ModelError: the server refuses a request, or its answer has no log-probabilities of the text or some that are
            not finite.
        RunError: the server failed `max_retries` + 1 times in a row.
    """
    texts = ("", *words)
    jobs = ((index, place) for index in range(len(prompts)) for place in range(len(texts)))
    pending: dict[Future[Any], tuple[int, int]] = {}
    echoes: dict[int, dict[int, Echo]] = defaultdict(dict)
    with session(server.url, server.limits) as ask:
        while True:
            for index, place in islice(jobs, server.limits.num_concurrent - len(pending)):
                body = _request(server, prompts[index] + texts[place])
                pending[ask("POST", "/completions", body)] = (index, place)
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                index, place = pending.pop(future)
                echoes[index][place] = read_echo(server.url, future.result())
                if len(echoes[index]) == len(texts):
                    found = echoes.pop(index)
                    yield index, *_scores(server, words, [found[place] for place in range(len(texts))])


def _scores(server: Server, words: Sequence[str], echoes: Sequence[Echo]) -> tuple[list[float], list[float]]:
    """Return the (sequence, first-token) scores of the words; `echoes` are of the prompt and of prompt + each word."""
    start = _shared(echoes)
    if start == 0:
        raise ModelError(
            f"{server.url}: got no token boundary that a prompt shares with {one_of(map(repr, words))}, expected one "
            "before the words: put text before them"
        )
    sequence, first = [], []
    for word, echo in zip(words, echoes[1:], strict=True):
        values = echo.log_probabilities[start:]
        known = [value for value in values if value is not None and math.isfinite(value) and value > _LOWEST]
        if not values:
            raise ModelError(f"{server.url}: got no token for the word {word!r}, expected at least one")
        if len(known) < len(values):
            raise ModelError(f"{server.url}: got log-probabilities {values} for the word {word!r}, expected numbers")
        sequence.append(math.fsum(known))
        first.append(known[0])
    return sequence, first


def _shared(echoes: Sequence[Echo]) -> int:
    """Return how many leading tokens all texts share, no more than are certain to be the same ones.

    Servers show tokens as text, in which pieces of characters are lost: two different tokens may look the same. The
    last shared token therefore has to show its text, and to be about as probable in all texts.
    """
    shared = 0
    for shown in zip(*(echo.tokens for echo in echoes), strict=False):
        if len(set(shown)) > 1:
            break
        shared += 1
    while shared and not _is_certain(echoes[0].tokens[shared - 1], [e.log_probabilities[shared - 1] for e in echoes]):
        shared -= 1
    return shared


def _is_certain(token: str, values: list[float | None]) -> bool:
    known = [value for value in values if value is not None]
    differ = bool(known) and max(known) - min(known) > TIED  # never where they are no numbers: `_scores` says so
    return bool(token) and "\ufffd" not in token and not differ


def _request(server: Server, text: str) -> dict[str, Any]:
    # one token, because several servers refuse to generate none
    return {
        "model": server.name,
        "prompt": text,
        "max_tokens": 1,
        "echo": True,
        "logprobs": 1,
        "temperature": 0,
        "seed": 0,
    }
