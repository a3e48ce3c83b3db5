"""How benchmarks/gpu.py runs its parts and tells what they found: time limits, memory, timing, figures, tables.

Enters: parts, generators of figures. Leaves: a result a part, whatever happens in it; Markdown and JSON.
"""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from evaluate import _memory

T = TypeVar("T")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

SAME = 1e-3
"""Nats by which two fp32 kernels may differ in the log-probability of a word, or in a loss."""


class Skipped(Exception):
    """A part, or the rest of it, cannot run here; the text says why."""


@dataclass(frozen=True)
class Figure:
    """One thing that was found.

    Attributes:
        what: what was measured, with its unit.
        value: the figure.
        expected: what it must be, in words; empty where it is only measured.
        is_right: whether it is that.
    """

    what: str
    value: float
    expected: str = ""
    is_right: bool = True


def at_most(what: str, value: float, limit: float) -> Figure:
    """Return a figure that must not be larger than `limit`; not a number is wrong too."""
    return Figure(what, float(value), f"at most {limit:.3g}", bool(value <= limit))


def at_least(what: str, value: float, limit: float) -> Figure:
    """Return a figure that must not be smaller than `limit`; not a number is wrong too."""
    return Figure(what, float(value), f"at least {limit:.3g}", bool(value >= limit))


@dataclass(frozen=True)
class Bench:
    """Where and how large.

    Attributes:
        device: of the models under test.
        toy: tiny models, few items.
        scratch: a folder that is gone at the end.
        peak: operations a second of a large bf16 matrix product.
    """

    device: torch.device
    toy: bool
    scratch: Path
    peak: float = float("nan")

    @property
    def shown(self) -> int | None:
        """Demonstrations of a prompt; None for as many as the task file shows."""
        return 1 if self.toy else None

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one that counts its own memory."""
        return self.device.type == "cuda"

    def size(self, real: int, toy: int) -> int:
        """Return how many: of the real run, or of the toy one."""
        return toy if self.toy else real

    def some(self, cases: Sequence[T]) -> Sequence[T]:
        """Return cases that differ in size alone: all of them, or at toy size, where they do not differ, the first."""
        return cases[:1] if self.toy else cases

    def finish(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what is no longer used, and count the peak anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def used(self) -> float:
        """Return the bytes in use: of the device, or of this process on a CPU."""
        return torch.cuda.memory_allocated() if self.on_gpu else _memory("VmRSS")

    def most(self) -> float:
        """Return the most bytes that were in use since `free`."""
        return torch.cuda.max_memory_allocated() if self.on_gpu else _memory("VmHWM")

    def seconds(self, work: Callable[..., object], *given: object, **options: object) -> float:
        """Return how long a call takes, the device's share included."""
        self.finish()
        begin = time.perf_counter()
        work(*given, **options)
        self.finish()
        return time.perf_counter() - begin

    @contextmanager
    def steps(self) -> Iterator[list[float]]:
        """Yield a list that gets the time of every optimizer step's end."""
        ends: list[float] = []

        def end(*_: object) -> None:
            self.finish()
            ends.append(time.perf_counter())

        handle = register_optimizer_step_post_hook(end)
        try:
            yield ends
        finally:
            handle.remove()


def matrix_rate(bench: Bench) -> float:
    """Return the operations a second of a large bf16 matrix product, the best of five times ten."""
    size = 8192 if bench.on_gpu else 256
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))

    def ten() -> None:
        for _ in range(10):
            torch.mm(a, b)

    return 10 * 2 * size**3 / min(bench.seconds(ten) for _ in range(5))


@contextmanager
def heard(text: str) -> Iterator[list[str]]:
    """Yield a list that gets glotlift's log messages that hold a text."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                messages.append(record.getMessage())

    listener, log = Listener(), logging.getLogger("glotlift")
    log.addHandler(listener)
    try:
        yield messages
    finally:
        log.removeHandler(listener)


Part = Callable[[Bench], Iterator[Figure]]


@dataclass
class Result:
    """What became of a part."""

    part: str
    figures: list[Figure] = field(default_factory=list)
    state: str = PASSED
    why: str = ""
    seconds: float = 0.0


def run_part(name: str, part: Part, bench: Bench, seconds: float) -> Result:
    """Run a part and keep what it found, also where it fails, is skipped, or is not done in time."""
    result, begin = Result(name), time.perf_counter()
    try:
        with _limited(seconds):
            for figure in part(bench):
                result.figures.append(figure)
    except Skipped as fault:
        result.state, result.why = SKIPPED, str(fault)
    except Exception as fault:
        traceback.print_exc(file=sys.stderr)
        first = (str(fault).strip().splitlines() or [""])[0]
        result.state, result.why = FAILED, f"{type(fault).__name__}: {first}"
    if wrong := [figure.what for figure in result.figures if not figure.is_right]:
        not_right = f"not as expected: {', '.join(wrong)}"
        result.state, result.why = FAILED, f"{not_right}; {result.why}" if result.why else not_right
    result.seconds = time.perf_counter() - begin
    return result


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError(f"not done in {seconds:.0f} s, its share of --minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def markdown(results: Sequence[Result]) -> str:
    """Return the results as two tables: the parts, and all they found."""
    lines = ["| part | state | s |", "|---|---|---|"]
    lines += [f"| {r.part} | {r.state}{': ' if r.why else ''}{_cell(r.why)} | {r.seconds:.0f} |" for r in results]
    lines += ["", "| part | what | figure | expected |", "|---|---|---|---|"]
    for result in results:
        for each in result.figures:
            shown = f"{each.value:.4g}" if each.is_right else f"**{each.value:.4g}**"
            lines.append(f"| {result.part} | {_cell(each.what)} | {shown} | {each.expected} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def as_json(results: Sequence[Result], about: dict[str, object]) -> str:
    """Return the results on one line; a figure that is no number is null."""
    figures = {
        f"{result.part}: {each.what}": each.value if abs(each.value) < float("inf") else None
        for result in results
        for each in result.figures
    }
    states = {result.part: result.state for result in results}
    why = {result.part: result.why for result in results if result.why}
    seconds = {result.part: round(result.seconds, 1) for result in results}
    return json.dumps({**about, "parts": states, "why": why, "seconds": seconds, "figures": figures}, allow_nan=False)
