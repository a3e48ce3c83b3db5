"""The run folder: whole files or none, and a manifest that knows what is done."""

import errno
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from safetensors import SafetensorError

from glotlift.errors import DataError, OutputError
from glotlift.recipe import Recipe
from glotlift.runs import (
    RunFolder,
    parquet_metadata,
    read_parquet,
    versions,
    write_atomic,
    write_folder,
    write_json,
    write_parquet,
    write_text,
)
from glotlift.stages.data import build_data
from glotlift.stages.evaluate import evaluate
from glotlift.stages.explain import explain
from glotlift.stages.report import report
from tests.warm import Warm

RECIPE = Recipe.model_validate({"name": "small", "data": {"task": "sentiment", "languages": "de", "limit": 4}})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_text_is_written_with_unix_line_ends_and_readable_by_all(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "één\nтри\n")
    path = tmp_path / "deep" / "a.txt"
    assert path.read_bytes() == "één\nтри\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("fault", [ValueError("boom"), KeyboardInterrupt(), MemoryError()])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, fault):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(file: Path) -> None:
        file.write_text("half of the n")
        raise fault

    with pytest.raises(type(fault)):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def full_disk(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", [(tempfile, "mkstemp"), (Path, "open"), (Path, "replace"), (Path, "mkdir")])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(*call, full_disk)
        write_text(tmp_path / "a.txt", "x" * 100)
    assert str(caught.value) == f"{tmp_path / 'a.txt'}: cannot be written (No space left on device)"
    assert names(tmp_path) == []


def test_a_writer_that_is_killed_leaves_no_final_file(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from glotlift.runs import write_atomic

        def slow(file):
            file.write_text("half")
            print("writing", flush=True)
            time.sleep(60)

        write_atomic(Path(sys.argv[1]), slow)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "a.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a.json").exists()
    write_json(tmp_path / "a.json", {"whole": True})
    assert json.loads((tmp_path / "a.json").read_text()) == {"whole": True}


LIBRARY_FAULTS = {
    "safetensors": (SafetensorError, "Error while serializing: I/O error: No space left on device (os error 28)"),
    "torch.save": (RuntimeError, "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598\nframe #0: x"),
}


@pytest.mark.parametrize("library", LIBRARY_FAULTS)
def test_a_full_disk_is_named_whatever_a_library_calls_it(tmp_path, library):
    kind, text = LIBRARY_FAULTS[library]

    def fail(file: Path) -> None:
        raise kind(text)

    for write in (write_atomic, write_folder):
        with pytest.raises(OutputError) as caught:
            write(tmp_path / "a", fail)
        assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written ({text.splitlines()[0]})"
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_libraries_stay_what_they_are(tmp_path):
    def fail(file: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        write_folder(tmp_path / "a", fail)


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "new.txt").write_text("new")
    (folder / "deep" / "new.txt").chmod(0o600)


def test_a_folder_is_replaced_whole_and_readable_by_all(tmp_path):
    path = tmp_path / "up" / "adapter"
    path.mkdir(parents=True)
    (path / "old.txt").write_text("old")
    write_folder(path, fill)
    assert names(tmp_path) == ["new.txt"]
    assert (path / "deep" / "new.txt").stat().st_mode & 0o777 == 0o644
    assert path.stat().st_mode & 0o777 == (path / "deep").stat().st_mode & 0o777 == 0o755
    assert [entry.name for entry in path.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize("fault", [ValueError("boom"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_folder_that_cannot_be_filled_leaves_the_old_one(tmp_path, fault):
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "old.txt").write_text("old")

    def fail(folder: Path) -> None:
        fill(folder)
        raise fault

    with pytest.raises(OutputError if isinstance(fault, OSError) else type(fault)):
        write_folder(path, fail)
    assert names(tmp_path) == ["old.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_json_with_a_number_that_json_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


# --- Parquet


def test_a_frame_comes_back_with_its_metadata(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "score": [0.1, -2.5]})
    write_parquet(tmp_path / "a.parquet", frame, {"labels": ["gut", "schlecht"], "fingerprint": "f"})
    back, metadata = read_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(back, frame)
    assert metadata == {"labels": ["gut", "schlecht"], "fingerprint": "f"}
    assert parquet_metadata(tmp_path / "a.parquet") == metadata


def test_the_same_frame_gives_the_same_bytes(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "score": [0.1, -2.5]})
    for name in ("a", "b"):
        write_parquet(tmp_path / name, frame, {"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_damaged_or_missing_file(tmp_path):
    path = tmp_path / "a.parquet"
    assert parquet_metadata(path) == {}
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read_parquet(path)
    path.write_bytes(b"PAR1 and no more")
    assert parquet_metadata(path) == {}  # so it is computed again
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read_parquet(path)


def test_no_changed_byte_gives_wrong_values(tmp_path):
    """Bytes all over a file and all that say where its checksum is: noticed, or all that is read is right."""
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame({"id": ["a", "ü"], "score": [0.1, -2.5]})
    write_parquet(path, frame, {"labels": ["gut"]})
    given, kept = path.read_bytes(), []
    checksum = given.rindex(b"glotlift.sha256")
    for at in sorted({*range(0, len(given), 13), *range(checksum, checksum + 18)}):
        path.write_bytes(given[:at] + bytes([given[at] ^ (1, 128, 255)[at % 3]]) + given[at + 1 :])
        try:
            back, metadata = read_parquet(path)
        except DataError:
            assert parquet_metadata(path) == {}
            continue
        kept.append(at)
        pd.testing.assert_frame_equal(back, frame)
        assert metadata == parquet_metadata(path) == {"labels": ["gut"]}
    assert all(checksum <= at < checksum + 18 for at in kept)
    path.write_bytes(given[:200] + b"x" + given[201:])
    with pytest.raises(DataError, match=r"a\.parquet: damaged, its bytes are not those that were written"):
        read_parquet(path)


def test_files_without_a_checksum_are_read(tmp_path):
    """Those of glotlift 0.1, and a frame with what looks like a checksum in it."""
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame({"text": ["a", "glotlift.sha256\x18\x40" + "0" * 64]})
    frame[:1].to_parquet(path)
    assert parquet_metadata(path) == {}
    assert list(read_parquet(path)[0]["text"]) == ["a"]
    write_parquet(path, frame)
    pd.testing.assert_frame_equal(read_parquet(path)[0], frame)


# --- stages


def test_a_stage_is_done_only_for_its_fingerprint(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "x")
    assert not folder.is_done("train", "f")
    with folder.stage("train", "f") as notes:
        assert not folder.is_done("train", "f")
        assert folder.manifest()["stages"]["train"]["status"] == "running"
        notes["pairs"] = 7
    again = RunFolder(tmp_path / "runs" / "x")
    assert again.is_done("train", "f")
    assert not again.is_done("train", "g")
    assert not again.is_done("merge", "f")
    entry = again.manifest()["stages"]["train"]
    assert entry["pairs"] == 7
    assert entry["seconds"] >= 0
    assert entry["versions"] == versions()
    assert {"python", "numpy", "torch"} <= set(entry["versions"])


@pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_stage_that_fails_is_not_done_and_others_stay_done(tmp_path, fault):
    folder = RunFolder(tmp_path)
    with folder.stage("data", "f"):
        pass
    with pytest.raises(type(fault)), folder.stage("train", "g"):
        raise fault
    assert folder.is_done("data", "f")
    assert not folder.is_done("train", "g")
    assert folder.manifest()["stages"]["train"]["status"] == "failed"


def test_a_stage_that_is_killed_is_not_done(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from glotlift.runs import RunFolder

        with RunFolder(Path(sys.argv[1])).stage("train", "f"):
            print("running", flush=True)
            time.sleep(60)
    """)
    begin = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGKILL)
    assert time.monotonic() - begin < 30
    assert not RunFolder(tmp_path).is_done("train", "f")


def test_a_stage_done_anew_replaces_the_old_entry(tmp_path):
    folder = RunFolder(tmp_path)
    for fingerprint in ("f", "g"):
        with folder.stage("train", fingerprint):
            pass
    assert folder.is_done("train", "g")
    assert not folder.is_done("train", "f")


def test_attempts_at_a_stage_add_up_until_it_is_done(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def attempt(seconds, ends=None, note=None):
        nonlocal now
        folder = RunFolder(tmp_path)  # as a new process has it
        with suppress(KeyboardInterrupt), folder.stage("train", "f"):
            now += seconds
            if note:
                folder.note(note)
            now += 0.5
            if ends == "killed":
                monkeypatch.setattr(folder, "_record", lambda *_: None)
            if ends:
                raise KeyboardInterrupt
        return folder.manifest()["stages"]["train"]

    assert attempt(3, "stopped")["seconds"] == 3.5
    killed = attempt(5, "killed", note={"passes": 2})
    assert (killed["status"], killed["seconds"], killed["passes"]) == ("running", 3.5 + 5, 2)
    done = attempt(7)
    assert (done["status"], done["seconds"], done["passes"]) == ("done", 3.5 + 5 + 7.5, 2)
    assert "started" not in done
    anew = attempt(1)
    assert anew["seconds"] == 1.5 and "passes" not in anew
    RunFolder(tmp_path).note({"passes": 3})  # no stage is running
    assert RunFolder(tmp_path).manifest()["stages"]["train"] == anew


def test_a_damaged_manifest_is_named_with_its_line(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"stages":\n}')
    with pytest.raises(
        OutputError, match=r"manifest\.json, line 2, column 1: not valid JSON: Expecting value; delete it to start anew"
    ):
        RunFolder(tmp_path).is_done("train", "f")
    for content in ("[]", "{}", '{"stages": 3}'):
        path.write_text(content)
        with pytest.raises(OutputError, match=r"manifest\.json: got no `stages`, expected"):
            RunFolder(tmp_path).is_done("train", "f")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be made \(Not a directory\), expected a folder"):
        RunFolder(tmp_path / "file" / "run")


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = platform.node()
    (tmp_path / f".scores.json.{host}.{dead.pid}.abc").write_text("half")
    (tmp_path / f".adapter.{host}.{dead.pid}.abc").mkdir()
    kept = {f".scores.json.{host}.{os.getppid()}.abc", f".scores.json.elsewhere.{dead.pid}.abc", f".other.{dead.pid}.x"}
    for name in kept:
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "scores.json", {})
    write_folder(tmp_path / "adapter", lambda folder: (folder / "a").write_text(""))
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "adapter", *kept}


def _hold(folder: Path) -> None:
    with RunFolder(folder).lock():
        write_text(folder / "at-work", "")
        time.sleep(60)


def test_a_folder_is_one_process_at_a_time_and_free_again_after_a_kill(tmp_path):
    other = Warm(_hold, tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "at-work").exists():
        assert other.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    expected = f"{tmp_path}: another glotlift process is at work here, expected one at a time"
    for start in (
        lambda: evaluate(model="demo", languages="en", limit=1, output_path=tmp_path),
        lambda: build_data(RECIPE, tmp_path),
        lambda: explain(model="demo", languages="en", limit=1, output_path=tmp_path),
        lambda: report(tmp_path),
    ):
        write_text(tmp_path / "scores.json", "{}")
        with pytest.raises(OutputError) as caught:
            start()
        assert str(caught.value) == expected
    assert not (tmp_path / "recipe.yaml").exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with RunFolder(tmp_path).lock():
        pass
    assert build_data(RECIPE, tmp_path).exists()


def test_processes_of_one_job_share_a_folder(tmp_path, monkeypatch):
    with RunFolder(tmp_path).lock():
        monkeypatch.setenv("RANK", "1")
        with RunFolder(tmp_path).lock():
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def none(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("glotlift.runs.FileLock.acquire", none)
    monkeypatch.setattr(logging.getLogger("glotlift"), "propagate", True)
    with RunFolder(tmp_path).lock():
        pass
    assert "knows no locks; start one process at a time here" in caplog.text
