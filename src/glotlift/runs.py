"""The run folder: what a run writes, and how it knows what is already done.

    runs/<name>/
      recipe.yaml  manifest.json           the resolved recipe; per stage: fingerprint, status, seconds, versions
      data/pairs.jsonl  data/audit.json    question pairs and what was checked
      adapter/  merged/                    peft folder; plain Hugging Face folder
      predictions/<base|tuned>/<task>/<language>.parquet
      scores.json                          lm-eval's result schema
      lens/  geometry/                     tidy Parquet
      figures/  report.html  README.md     README.md is the model card

A file gets its name only when it is whole (written beside, then renamed), so a run that is killed at any moment leaves
nothing half-written under a final name. A stage is done when the manifest says so for its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from glotlift.errors import DataError, OutputError
from glotlift.processes import prints
from glotlift.strict_json import read_json

log = logging.getLogger("glotlift")

LOCK = ".lock"
"""Of a run folder: what a process at work holds."""

T = TypeVar("T")

_OF_STAGES = ("status", "fingerprint", "started", "finished", "seconds", "versions")
"""What the manifest says of every stage, beside its notes."""

_PACKAGES = ("glotlift", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "scipy", "scikit-learn")


class RunFolder:
    """A run's folder and its manifest.

    Args:
        path: the folder; made when missing.

    Raises:
        OutputError: it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise OutputError(
                f"{path}: cannot be made ({fault.strerror}), expected a folder that can be written"
            ) from None
        self._manifest = path / "manifest.json"
        self.notes: dict[str, Any] = {}
        """Of the stage that is running."""
        self._keep_notes: Callable[[], None] | None = None

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest holds: `{"stages": {...}}` at least."""
        try:
            manifest = read_json(self._manifest, OutputError) if self._manifest.exists() else {"stages": {}}
        except OutputError as fault:
            raise OutputError(f"{fault}; delete it to start anew") from None
        if not isinstance(manifest, dict) or not isinstance(manifest.get("stages"), dict):
            raise OutputError(
                f"{self._manifest}: got no `stages`, expected a manifest of glotlift; delete it to start anew"
            )
        return manifest

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder while inside; the system ends the lock of a process that was killed.

        Of the processes of a job the first one takes it. Where the file system knows no locks, there is none.

        Raises:
            OutputError: another process is at work in the folder.
        """
        lock = FileLock(self.path / LOCK)
        if prints():
            try:
                lock.acquire(blocking=False)
            except Timeout:
                got = "another glotlift process is at work here"
                raise OutputError(f"{self.path}: {got}, expected one at a time") from None
            except NotImplementedError:
                log.warning("%s: the file system knows no locks; start one process at a time here", self.path)
        try:
            yield
        finally:
            if lock.is_locked:
                with suppress(OSError):  # an open file cannot be removed everywhere
                    Path(lock.lock_file).unlink()
            lock.release()

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Return whether a stage has finished with this fingerprint."""
        entry = self.manifest()["stages"].get(stage, {})
        return entry.get("status") == "done" and entry.get("fingerprint") == fingerprint

    def forget(self, *stages: str) -> None:
        """Take stages for not done, whatever is there of them."""
        manifest = self.manifest()
        if any([manifest["stages"].pop(stage, None) for stage in stages]):
            write_json(self._manifest, manifest)

    @contextmanager
    def stage(self, name: str, fingerprint: str) -> Iterator[dict[str, Any]]:
        """Record a stage: `running` while inside, `done` with its seconds behind it, `failed` on an error.

        Attempts at the same fingerprint that did not finish add up: their seconds, one that was killed up to its last
        `note`, and their notes.

        Yields:
            A dict for notes that are kept in the manifest with the stage.
        """
        notes, earlier = self._unfinished(name, fingerprint)
        begin = time.monotonic()

        def record(status: str, **entry: Any) -> None:
            seconds = round(earlier + time.monotonic() - begin, 2)
            self._record(name, {"status": status, "fingerprint": fingerprint, **entry, "seconds": seconds, **notes})

        started, status = _now(), "failed"
        record("running", started=started)
        self.notes, self._keep_notes = notes, lambda: record("running", started=started)
        try:
            yield notes
            status = "done"
        finally:
            self.notes, self._keep_notes = {}, None
            record(status, finished=_now(), versions=versions())

    def note(self, found: Mapping[str, Any]) -> None:
        """Keep notes of the stage that is running, and its seconds so far, even if it is killed; outside of one, none.

        Args:
            found: replace notes of the same names.
        """
        if self._keep_notes is not None:
            self.notes.update(found)
            self._keep_notes()

    def _unfinished(self, stage: str, fingerprint: str) -> tuple[dict[str, Any], float]:
        """Return the notes of earlier attempts at a stage that did not finish, and their seconds."""
        entry = self.manifest()["stages"].get(stage, {})
        if entry.get("fingerprint") != fingerprint or entry.get("status") == "done":
            return {}, 0.0
        return {name: value for name, value in entry.items() if name not in _OF_STAGES}, entry.get("seconds", 0.0)

    def _record(self, stage: str, entry: Mapping[str, Any]) -> None:
        manifest = self.manifest()
        manifest["stages"][stage] = dict(entry)
        write_json(self._manifest, manifest)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what is raised while `path` is written, by Python or by a library, into an error that names it.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as fault:
        raise OutputError(f"{path}: cannot be written ({fault.strerror or fault})") from None
    except (SafetensorError, RuntimeError) as fault:  # safetensors and torch.save have no OSError for a full disk
        if not any(sign in str(fault) for sign in ("I/O error", "inline_container", "PytorchStreamWriter")):
            raise
        raise OutputError(f"{path}: cannot be written ({str(fault).splitlines()[0]})") from None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then give it the name.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    scratch = None
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            handle, name = tempfile.mkstemp(prefix=_scratch_prefix(path, os.getpid()), dir=path.parent)
            os.close(handle)
            scratch = Path(name)
            write(scratch)
            scratch.chmod(0o644)
            scratch.replace(path)
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `path`, then give it the name, in place of what had it before.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    scratch = None
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(path, os.getpid()), dir=path.parent))
            write(scratch)
            for inside in (scratch, *scratch.rglob("*")):  # safetensors lets the owner only read what it writes
                inside.chmod(0o755 if inside.is_dir() else 0o644)
            if path.exists():
                shutil.rmtree(path)
            scratch.rename(path)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _scratch_prefix(path: Path, process: int | str) -> str:
    """Return how the names of what will be `path` begin; they say which process of which machine is writing it."""
    return f".{path.name}.{platform.node()}.{process}."


def _remove_leftovers(path: Path) -> None:
    """Delete what processes of this machine that are no more were writing."""
    start = _scratch_prefix(path, "")[:-1]
    for scratch in path.parent.iterdir():
        process = scratch.name.removeprefix(start).split(".")[0]
        if scratch.name.startswith(start) and process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there a signal is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda file: _write_through(file, text))


def _write_through(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(path: Path, frame: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a pandas frame as Parquet atomically, with a checksum of the whole file.

    Args:
        path: the file.
        frame: what it holds.
        metadata: goes into the schema under the key `glotlift`.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    extra = {b"glotlift": json.dumps(metadata or {}, ensure_ascii=False).encode(), _CHECKSUM: _NO_CHECKSUM}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **extra})

    def write(file: Path) -> None:
        pyarrow.parquet.write_table(table, file)
        content = file.read_bytes()
        found = list(_CHECKSUM_PLACE.finditer(content))[-1]
        start, end = found.span(1)
        file.write_bytes(content[:start] + hashlib.sha256(content).hexdigest().encode() + content[end:])

    write_atomic(path, write)


_CHECKSUM, _NO_CHECKSUM = b"glotlift.sha256", b"0" * 64

_CHECKSUM_PLACE = re.compile(rb"glotlift\.sha256\x18\x40(.{64})", re.DOTALL)
"""The checksum in the footer, the last such place of a file: key, then a text (0x18) of 64 (0x40) characters in the
compact Thrift protocol, which is part of the format. Its own characters count as zeros."""


def read_parquet(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the pandas frame and the metadata of a file that `write_parquet` wrote.

    Raises:
        DataError: it is missing, damaged or not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    table = _read(path, lambda content: pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).read())
    return table.to_pandas(), _metadata(table.schema)


def parquet_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a file that `write_parquet` wrote, `{}` where there is no such file or it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        return _metadata(_read(path, lambda content: pyarrow.parquet.read_schema(pyarrow.BufferReader(content))))
    except DataError:
        return {}


def _read(path: Path, decode: Callable[[bytes], T]) -> T:
    """Return what `decode` makes of a file's bytes, when they are those that were written."""
    import pyarrow

    try:
        content = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: cannot be read as Parquet ({fault.strerror})") from None
    if found := list(_CHECKSUM_PLACE.finditer(content)):  # not in files of glotlift 0.1
        start, end = found[-1].span(1)
        blank = content[:start] + _NO_CHECKSUM + content[end:]
        if hashlib.sha256(blank).hexdigest().encode() != found[-1][1]:
            raise DataError(
                f"{path}: damaged, its bytes are not those that were written; delete it to have it made again"
            )
    try:
        return decode(content)
    except (OSError, ValueError, pyarrow.ArrowException) as fault:
        raise DataError(f"{path}: cannot be read as Parquet ({str(fault).splitlines()[0]})") from None


def _metadata(schema: Any) -> dict[str, Any]:
    return json.loads((schema.metadata or {}).get(b"glotlift", b"{}"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
