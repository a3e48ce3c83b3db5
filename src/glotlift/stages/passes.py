"""Passes over the questions of a run, and what each cost, whoever made it. No stage of a run.

Reads and writes: `teacher/passes.json`, beside the scores that the base model gave: fingerprint of what ran -> `name`,
`tokens` that went through the model, `seconds` it took (None where that was not counted). It is handed on with the
scores, so a run that need not make a pass again knows what it cost. The manifest says which of them a run uses, in
`passes` of the stage: fingerprint -> the seconds in which the run made it itself, 0 where the results were there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glotlift.errors import OutputError
from glotlift.processes import processes
from glotlift.runs import write_json
from glotlift.strict_json import read_json

if TYPE_CHECKING:
    from glotlift.models.packing import Row
    from glotlift.stages.stage import OpenRun

PASSES = "teacher/passes.json"


@contextmanager
def counted_pass(
    run: OpenRun, fingerprint: str, name: str, rows: Sequence[Row], *, is_kept: bool = False
) -> Iterator[None]:
    """Count what runs inside as a pass that the run uses.

    Args:
        run: the run, in a stage.
        fingerprint: of what runs.
        name: of the pass, for who reads the file.
        rows: what goes through the model.
        is_kept: whether the results are there already, so that nothing runs.
    """
    begin = time.monotonic()
    yield
    took = 0.0 if is_kept else round(time.monotonic() - begin, 3)
    if not processes().is_first:
        return
    known = known_passes(run.path)
    if known.get(fingerprint, {}).get("seconds") is None:
        tokens = sum(len(row.prompt) + row.n_nodes for row in rows)
        add_passes(run.path, {fingerprint: {"name": name, "tokens": tokens, "seconds": None if is_kept else took}})
    used = run.folder.notes.get("passes", {})
    run.folder.note({"passes": {**used, fingerprint: round(used.get(fingerprint, 0.0) + took, 3)}})


def known_passes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `teacher/passes.json` of a run folder holds; empty where there is none."""
    file = folder / PASSES
    return read_json(file, OutputError) if file.is_file() else {}


def add_passes(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Add passes to those that a run folder knows."""
    write_json(folder / PASSES, {**known_passes(folder), **found})


@dataclass(frozen=True)
class Cost:
    """What a training takes with all passes over its questions, as if the run had made each of them, once.

    Attributes:
        seconds: wall clock; None where a pass was not counted.
        tokens: that went through the model, demonstrations and repeated rows included; None where none are counted.
    """

    seconds: float | None
    tokens: int | None


def cost_of(folder: Path, stage: Mapping[str, Any], history: Mapping[str, Any]) -> Cost:
    """Return what a run's training took.

    Args:
        folder: of the run.
        stage: its entry in the manifest.
        history: that of the adapter; `tokens` are those of its optimizer steps.
    """
    known, used = known_passes(folder), stage.get("passes", {})
    passes = [known.get(fingerprint, {"seconds": None, "tokens": None}) for fingerprint in used]
    seconds = None
    if all(each["seconds"] is not None for each in passes):
        alone = stage["seconds"] - sum(used.values())
        seconds = round(alone + sum(each["seconds"] for each in passes), 2)
    tokens = [each["tokens"] for each in passes] + ([history["tokens"]] if "tokens" in history else [])
    return Cost(seconds, sum(tokens) if tokens and None not in tokens else None)
