"""Requests to a server over HTTP: at a pace, tried again where that may help, cancelled at the end.

Enters: an address, limits, and method, path and body of each request. Leaves: a future of the JSON it is answered with,
or one sentence about what the server said instead, without the key in it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import Any

from glotlift.errors import ModelError, RunError
from glotlift.models.settings import ServerSettings

try:
    from huggingface_hub.utils import httpx  # httpx2, or httpx before huggingface-hub 2
except ImportError:  # before huggingface-hub 1.31
    import httpx  # pyright: ignore[reportMissingImports]

_LONGEST_PAUSE = 300.0  # seconds; a server that asks for a longer one counts as failed

Ask = Callable[[str, str, dict[str, Any] | None], Future[Any]]


@contextmanager
def session(url: str, limits: ServerSettings) -> Iterator[Ask]:
    """Yield a function that starts a request: (method, path, body) -> future of the answer.

    Requests run on an event loop in a thread of its own, which works under a running loop too (notebooks), and lets
    those under way be cancelled at the end.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise ModelError("got OPENAI_API_KEY with characters that no header can hold, expected printable ASCII")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connections = httpx.Limits(max_connections=limits.num_concurrent, max_keepalive_connections=limits.num_concurrent)
    client = httpx.AsyncClient(headers=headers, timeout=limits.timeout, limits=connections)
    pace = _Pace(limits.requests_per_second)
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="glotlift-requests", daemon=True)
    thread.start()

    under_way: set[Future[Any]] = set()

    def ask(method: str, path: str, body: dict[str, Any] | None) -> Future[Any]:
        work = _ask(client, url, limits, pace, key, method, path, body)
        future = asyncio.run_coroutine_threadsafe(work, loop)
        under_way.add(future)
        future.add_done_callback(under_way.discard)
        return future

    try:
        yield ask
    finally:
        for future in list(under_way):
            future.cancel()
        asyncio.run_coroutine_threadsafe(_close(client), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def without_echo(url: str, got: str) -> ModelError:
    """Return the error for a server that does not tell the log-probabilities of a text."""
    return ModelError(
        f"{url}: got {got}, expected a server that supports `echo` with `logprobs` on /completions "
        "(vLLM, or llama-cpp-python with logits_all=True)"
    )


async def _close(client: Any) -> None:
    # tasks of the client's own are left to it: cancelled from outside before they began, they would warn
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
    await client.aclose()


class _Pace:
    """Lets through at most `rate` requests a second, evenly spaced."""

    def __init__(self, rate: float | None) -> None:
        self.interval = 1 / rate if rate else 0.0
        self.next = 0.0

    async def turn(self) -> None:
        now = asyncio.get_running_loop().time()
        slot = max(now, self.next)
        self.next = slot + self.interval
        if slot > now:
            await asyncio.sleep(slot - now)


async def _ask(
    client: Any,
    url: str,
    limits: ServerSettings,
    pace: _Pace,
    key: str,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> Any:
    """Return the JSON of an answer, trying again where that may help."""
    trouble = ""
    for attempt in range(limits.max_retries + 1):
        pause = 0.5 * 2**attempt * random.SystemRandom().uniform(0.5, 1.5)  # seconds
        await pace.turn()
        try:
            answer = await client.request(method, url + path, json=body)
        except httpx.TimeoutException:
            trouble = f"no answer within {limits.timeout:g} s"
        except httpx.TransportError as fault:
            trouble = f"no answer ({_clean(str(fault), key) or type(fault).__name__})"
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            raise ModelError(f"{url}: got {_clean(str(fault), key)}, expected an answer") from None
        else:
            if answer.status_code == 200:
                try:
                    return answer.json()
                except ValueError:
                    raise ModelError(f"{url}{path}: got an answer that is not JSON, expected JSON") from None
            trouble = _refusal(url, answer, key)
            asked = _retry_after(answer.headers.get("Retry-After"))
            if asked is not None and asked > _LONGEST_PAUSE:
                raise RunError(f"{url}: got {trouble} with a pause of {asked:.0f} s, expected an answer")
            pause = pause if asked is None else asked
        if attempt < limits.max_retries:
            await asyncio.sleep(pause)
    times = f", {limits.max_retries + 1} times in a row" if limits.max_retries else ""
    raise RunError(f"{url}: got {trouble}{times}, expected an answer of an OpenAI-compatible server")


def _refusal(url: str, answer: Any, key: str) -> str:
    """Return `503 Service Unavailable: its message`, or raise where to ask again would not help."""
    status = answer.status_code
    message = _clean(_message(answer), key)
    trouble = f"{status} {answer.reason_phrase}".strip() + (f" ({message})" if message else "")
    if status in (401, 403):
        raise ModelError(f"{url}: got {trouble}, expected OPENAI_API_KEY to hold a key that the server takes")
    if "logprobs" in message or "logits_all" in message:
        raise without_echo(url, trouble)
    if status in (408, 429) or status >= 500:
        return trouble
    hint = "; the URL mostly ends in /v1" if status == 404 else ""
    raise ModelError(f"{url}: got {trouble}, expected an answer{hint}")


def _message(answer: Any) -> str:
    """Return what the body of a refusal says, in the forms of OpenAI, vLLM and FastAPI."""
    try:
        body = answer.json()
    except ValueError:
        return "" if "html" in answer.headers.get("Content-Type", "") else answer.text
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return str(body)


def _clean(text: str, key: str) -> str:
    """Return the first line of a text, without the key in it."""
    hidden = text.replace(key, "***") if key else text
    return (hidden.strip().splitlines() or [""])[0].strip()[:300]


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which holds seconds or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
