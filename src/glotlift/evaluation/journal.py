"""Scores that are kept as they are computed, batch by batch, until a prediction file is whole.

Enters: scores of items. Leaves: `predictions/<variant>/<task>/.<language>.<process>.jsonl`: a line that says what all
numbers depend on, then a line a batch with its checksum, each forced to the disk. A process that is killed loses the
batch it was at; a line that is torn or damaged is not read, so its batch runs again. Numbers are written so that they
are read back bit for bit.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from glotlift.errors import OutputError
from glotlift.runs import saving, write_text
from glotlift.strict_json import parse_json


@dataclass(frozen=True)
class LabelScores:
    """What one pass says of an item, one number a label.

    Attributes:
        sequence: natural log of the probability of the whole label word.
        prefix_mass: next-token probability of all tokens that are prefixes of the word, 0 to 1; empty where the model
            is a server, which does not tell.
        first_token: natural log of the probability of the word's first token.
        prefix_mass_released: as `prefix_mass`, of the tokens that the authors' released code counts; empty where these
            are the same.
    """

    sequence: tuple[float, ...]
    prefix_mass: tuple[float, ...]
    first_token: tuple[float, ...]
    prefix_mass_released: tuple[float, ...] = ()


class Journal:
    """The journals of a prediction file: this process's, which grows, and those of others, which are read.

    Args:
        path: the prediction file to be.
        fingerprint: of all the scores depend on; journals of another one are not read, and this process's is replaced.
        process: number of this process.
    """

    def __init__(self, path: Path, fingerprint: str, process: int = 0) -> None:
        self._folder, self._stem = path.parent, path.stem
        self._file = self._folder / f".{self._stem}.{process}.jsonl"
        self._head = json.dumps({"fingerprint": fingerprint}) + "\n"
        self._is_open = False

    def read(self) -> dict[int, LabelScores]:
        """Return the scores of all items that any process has finished."""
        found: dict[int, LabelScores] = {}
        for file in self._files():
            for line in self._whole_lines(file)[1:]:
                found |= _scores(line)
        return found

    def append(self, scores: Mapping[int, LabelScores]) -> None:
        """Write the scores of a batch through to the disk.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        content = {str(index): astuple(each) for index, each in scores.items()}
        line = json.dumps({"scores": content, "crc32": _checksum(content)}, allow_nan=False) + "\n"
        with saving(self._file):
            if not self._is_open:  # without what a killed process left unfinished, or another model wrote
                self._folder.mkdir(parents=True, exist_ok=True)
                kept = self._whole_lines(self._file) or [self._head]
                write_text(self._file, "".join(kept))
                self._is_open = True
            with self._file.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())

    def remove(self) -> None:
        """Delete the journals of all processes."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f".{self._stem}.*.jsonl"))

    def _whole_lines(self, file: Path) -> list[str]:
        """Return the finished lines of a journal, none where it is of another fingerprint."""
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        if lines and not lines[-1].endswith("\n"):
            del lines[-1]
        return lines if lines[:1] == [self._head] else []


def _scores(line: str) -> dict[int, LabelScores]:
    """Return the scores of a line, none where it is damaged."""
    try:
        entry = parse_json(line, "journal", OutputError)
        content, checksum = entry["scores"], entry["crc32"]
    except (OutputError, TypeError, KeyError):
        return {}
    if checksum != _checksum(content):
        return {}
    return {int(index): LabelScores(*map(tuple, scores)) for index, scores in content.items()}


def _checksum(content: object) -> int:
    return zlib.crc32(json.dumps(content).encode())
