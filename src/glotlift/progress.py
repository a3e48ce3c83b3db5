"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from glotlift.processes import prints

log = logging.getLogger("glotlift")

SECONDS_BETWEEN_LINES = 15.0
"""How often progress is logged when there is no terminal."""

Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    """Units a second since the start."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate of a task."""
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else f"– {self.unit}/s", style="cyan")


@contextmanager
def track(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how far a piece of work is; yields a function to call with the number of units done.

    Args:
        what: name of the work.
        total: how many units there are.
        unit: their name, plural.
    """
    if sys.stderr.isatty() and prints():
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn()
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)
        return
    yield _line_by_line(what, total, unit)


def _line_by_line(what: str, total: int, unit: str) -> Advance:
    begin = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last, rate = now, done / max(now - begin, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if done < total else f", {now - begin:.0f} s"
        log.info("%s: %d of %d %s, %.1f %s/s%s", what, done, total, unit, rate, unit, left)

    return advance
