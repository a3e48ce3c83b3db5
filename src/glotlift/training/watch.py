"""What stands by while a model is tuned: progress, a stop where the loss fails, a clean end on Ctrl-C, probes.

Enters: what the Trainer tells its callbacks. Leaves: checkpoints marked as whole, or an error that says the step, the
rows and where to go on from.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from glotlift.errors import Interrupted, OutputError, RunError
from glotlift.progress import track
from glotlift.runs import write_atomic, write_json
from glotlift.strict_json import read_json
from glotlift.training.objective import Placed
from glotlift.training.shards import put_back, whole

WHOLE = "whole"
"""Name of the file that a checkpoint gets last."""

_BEST = "best.safetensors"
"""The weights of the best probe."""

_PROBES = "probes.json"
"""What a checkpoint keeps of the probes before it."""


@dataclass(frozen=True)
class Probe:
    """A small evaluation in between.

    Attributes:
        score: function of the model -> a number, higher is better.
        steps: optimizer steps between probes.
        patience: probes without a better score after which training stops.
    """

    score: Callable[[Any], float]
    steps: int
    patience: int


class Watch(TrainerCallback):
    """Shows progress in tokens, stops a loss that fails, marks checkpoints that are whole, and probes.

    Args:
        folder: of the checkpoints.
        rows: in the order in which they are learned.
        batch_size: rows of an optimizer step.
        vocab_size: tokens of the model; a loss above 2 ln(vocab_size), twice what guessing gives, has exploded.
        probe: None for no small evaluation in between.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Placed], batch_size: int, vocab_size: int, probe: Probe | None
    ) -> None:
        self.folder, self.rows, self.batch_size, self.probe = folder, rows, batch_size, probe
        self.limit = 2 * math.log(vocab_size)
        self.probes: list[dict[str, float]] = []
        self.is_interrupted = False
        self._shown: Any = None
        self._advance: Callable[[int], Any] = lambda _n: None

    def saw(self, inputs: dict[str, Any], loss: Tensor) -> None:
        """Stop at a micro-batch whose loss is no number, before it reaches the weights."""
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            self._fail("loss", float(loss.detach()), None, inputs["ids"])

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Show a bar of what is left to do; what a checkpoint holds took no time here."""
        left = self.rows[state.global_step * self.batch_size :]
        self._shown = track("train", sum(row.length for row in left), "tokens")
        self._advance = self._shown.__enter__()
        if state.global_step and self.probe is not None:
            self.probes = read_json(self._checkpoint(state) / _PROBES, OutputError)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Advance, probe where it is due, and end training on Ctrl-C."""
        self._advance(self._tokens(state.global_step - 1))
        if self.probe is not None and state.global_step % self.probe.steps == 0:
            self._run_probe(self.probe, model, state, control)
        if self.is_interrupted:
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Stop at a loss or gradient that is no number, or a loss that has exploded."""
        for what in ("loss", "grad_norm"):
            value = (logs or {}).get(what, 0.0)
            if not math.isfinite(value) or (what == "loss" and value > self.limit):
                self._fail(what, value, state.global_step, [row.id for row in self._step(state.global_step - 1)])

    def on_save(self, args, state, control, **kwargs) -> None:
        """Mark a checkpoint as whole when all processes have written it."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes a part of the checkpoint
        if state.is_world_process_zero:
            write_json(self._checkpoint(state) / _PROBES, self.probes)
            (self._checkpoint(state) / WHOLE).touch()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Take the bar away."""
        self.close()

    def finish(self, model: Any) -> None:
        """Put the best probe's weights back; say how to go on after Ctrl-C.

        Raises:
            Interrupted: training was stopped by Ctrl-C.
        """
        if self.is_interrupted:
            raise Interrupted(f"interrupted; {self._last()}, start the same command again to go on")
        best = self.folder / _BEST
        if self.probes and best.is_file():
            kept = load_file(best)
            for name, parameter in model.named_parameters():
                if name in kept:
                    put_back(parameter, kept[name])

    def close(self) -> None:
        """Take the bar off the terminal; a second call does nothing."""
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None

    def _checkpoint(self, state: Any) -> Path:
        return self.folder / f"checkpoint-{state.global_step}"

    def _step(self, index: int) -> Sequence[Placed]:
        return self.rows[index * self.batch_size : (index + 1) * self.batch_size]

    def _tokens(self, index: int) -> int:
        return sum(row.length for row in self._step(index))

    def _run_probe(self, probe: Probe, model: Any, state: Any, control: Any) -> None:
        is_training = model.training
        model.eval()
        try:
            score = probe.score(model)
        finally:
            model.train(is_training)
        best = max((each["score"] for each in self.probes), default=-math.inf)
        self.probes.append({"step": state.global_step, "score": score})
        if score > best:
            kept = {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}
            write_atomic(self.folder / _BEST, lambda file: save_file(kept, file))
        scores = [each["score"] for each in self.probes]
        if len(scores) - 1 - scores.index(max(scores)) >= probe.patience:
            control.should_training_stop = True

    def _fail(self, what: str, value: float, step: int | None, ids: Sequence[str]) -> None:
        expected = "a number" if not math.isfinite(value) else f"at most {self.limit:.1f} (twice what guessing gives)"
        where = "" if step is None else f" at step {step}"
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise RunError(
            f"the training {what} is {value:.4g}{where}, expected {expected}; rows {shown}; {self._last()}; "
            "lower train.learning_rate or look at these rows with `glotlift train --inspect`"
        )

    def _last(self) -> str:
        whole = [int(found.parent.name.rsplit("-", 1)[1]) for found in self.folder.glob(f"checkpoint-*/{WHOLE}")]
        return f"the last good checkpoint is of step {max(whole)}" if whole else "there is no checkpoint yet"


@contextmanager
def interruptible(watch: Watch) -> Iterator[None]:
    """Let the first Ctrl-C end training behind the step it is at, with a checkpoint; the second one ends it at once."""

    def stop(_number: int, _frame: Any) -> None:
        if watch.is_interrupted:
            raise KeyboardInterrupt
        watch.is_interrupted = True

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if in_main else None
    try:
        yield
    finally:
        watch.close()
        if in_main:
            signal.signal(signal.SIGINT, before)
