"""Processes that need not import torch and its like anew: forks of a server that has imported them once.

For tests of what a process does: killed, interrupted, one of several. What starting one takes is tested elsewhere, by
`python -m glotlift` itself: launchers in test_train.py, imports in test_architecture.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["glotlift.stages.run", "glotlift.cli", "glotlift.training.tune", "glotlift.training.merge",
     "glotlift.explanation.collect", "glotlift.evaluation.scores", "glotlift.evaluation.samples",
     "glotlift.models.load", "glotlift.models.server", "transformers.models.llama.modeling_llama"]
)  # fmt: skip


class Warm:
    """A function called with arguments in a process of its own, with this one's environment; see `subprocess.Popen`.

    Function and arguments must be picklable. `SystemExit` ends it as it ends any process.
    """

    def __init__(self, function: Callable[..., object], *arguments: object, **environment: str) -> None:
        self._told = tempfile.TemporaryDirectory()
        called = (self._told.name, {**os.environ, **environment}, function, arguments)
        self._process = _CONTEXT.Process(target=_call, args=called, daemon=True)
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code, minus the signal for a process that was killed; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 300) -> tuple[int, str, str]:
        """Return the exit code and what was printed to stdout and stderr."""
        self._process.join(timeout)
        code = self._process.exitcode
        assert code is not None, f"still running after {timeout} s"
        with self._told:
            out, err = (Path(self._told.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        return code, out, err


def as_by_torchrun(count: int) -> list[dict[str, str]]:
    """Return the environment of each of several processes that share a job, as `torchrun` sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(index), "LOCAL_RANK": str(index)} for index in range(count)]


def _call(folder: str, environment: dict[str, str], function: Callable[..., object], arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        with Path(folder, name).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    function(*arguments)
