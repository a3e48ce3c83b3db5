"""What a journal gives back after kills, damage, full disks, other models and other processes."""

import errno
import json
import math
import os
import sys
from pathlib import Path

import pytest

from glotlift.errors import OutputError
from glotlift.evaluation.journal import Journal, LabelScores


def scores(k: float) -> LabelScores:
    return LabelScores((-k - 0.1, -k / 3), (0.1 / (k + 1), 0.7), (-k - 1e-9, -0.0))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "predictions" / "base" / "mood" / "de.parquet"


def file_of(path: Path, process: int = 0) -> Path:
    return path.parent / f".de.{process}.jsonl"


def filled(path: Path, n_batches: int = 3, fingerprint: str = "one", process: int = 0) -> dict[int, LabelScores]:
    """Write batches of two items each; return what was written."""
    journal, found = Journal(path, fingerprint, process), {}
    for k in range(n_batches):
        batch = {100 * process + 2 * k + i: scores(k + i / 2 + process) for i in range(2)}
        journal.append(batch)
        found |= batch
    return found


def test_nothing_is_read_where_nothing_was_written(path):
    journal = Journal(path, "one")
    assert journal.read() == {}
    journal.remove()
    assert not path.parent.exists()


def test_a_batch_can_be_read_as_soon_as_it_is_written(path):
    journal = Journal(path, "one")
    for k in range(3):
        journal.append({k: scores(k)})
        assert Journal(path, "one").read() == {i: scores(i) for i in range(k + 1)}
    assert [each.name for each in path.parent.iterdir()] == [".de.0.jsonl"]


def test_numbers_come_back_bit_for_bit(path):
    odd = (0.1 + 0.2, 1 / 3, 5e-324, -5e-324, sys.float_info.max, sys.float_info.min, -0.0, math.nextafter(-7, 0), 1e16)
    Journal(path, "one").append({3: LabelScores(odd, odd[:2], ())})
    back = Journal(path, "one").read()[3]
    assert [value.hex() for value in back.sequence] == [value.hex() for value in odd]
    assert (back.prefix_mass, back.first_token) == (odd[:2], ())
    assert isinstance(back.sequence, tuple)


def test_numbers_that_are_not_finite_are_never_written(path):
    journal = Journal(path, "one")
    journal.append({0: scores(0)})
    with pytest.raises(ValueError, match="JSON"):
        journal.append({1: LabelScores((float("nan"), -1.0), (), (-1.0, -1.0))})
    assert Journal(path, "one").read() == {0: scores(0)}


# --- kills and damage


def test_a_line_torn_anywhere_is_not_read_and_the_next_goes_on_behind_the_last_whole_one(path):
    known = filled(path)
    whole = file_of(path).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        file_of(path).write_bytes(whole[:cut])
        journal = Journal(path, "one")
        assert journal.read() == {index: known[index] for index in range(4)}
        journal.append({9: scores(9)})
        assert journal.read() == {index: known[index] for index in range(4)} | {9: scores(9)}


def test_a_torn_head_is_as_no_journal(path):
    filled(path)
    whole = file_of(path).read_bytes()
    for cut in range(whole.index(b"\n") + 1):
        file_of(path).write_bytes(whole[:cut])
        assert Journal(path, "one").read() == {}
    file_of(path).write_bytes(whole[:5])
    journal = Journal(path, "one")
    journal.append({1: scores(1)})
    assert journal.read() == {1: scores(1)}


GARBAGE = [
    b"\x00" * 40 + b"\n",
    b"\xff\xfe\x80 not UTF-8\n",
    b"\n",
    b"null\n",
    b"[]\n",
    b"7\n",
    b'"scores"\n',
    b"{}\n",
    b'{"scores": {}}\n',
    b'{"scores": null, "crc32": 0}\n',
    b'{"0": [[-1.0, -2.0], [0.5, 0.5], [-1.0, -2.0]]}\n',
    b'{"scores": {"0": [[-1.0, -2.0], [0.5, 0.5], [-1.0, -2.0]]}, "crc32": 1}\n',
    b'{"scores": {"0": [[NaN, -2.0], [], []]}, "crc32": 1}\n',
    "\u2028 {\u2028}\x85 \x0c\n".encode(),
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("position", [1, 2, 4])
def test_garbage_between_lines_costs_no_other_line(path, garbage, position):
    known = filled(path)
    given = file_of(path).read_bytes().splitlines(keepends=True)
    file_of(path).write_bytes(b"".join([*given[:position], garbage, *given[position:]]))
    journal = Journal(path, "one")
    assert journal.read() == known
    journal.append({9: scores(9)})
    assert journal.read() == known | {9: scores(9)}


def test_no_damaged_line_gives_wrong_scores(path):
    """Every byte of a line in the middle, changed to another digit, letter or nothing: its items are scored again."""
    known = filled(path)
    rest = {index: each for index, each in known.items() if index not in (2, 3)}
    given = file_of(path).read_bytes()
    start = [i for i, byte in enumerate(given) if byte == ord("\n")]
    for at in range(start[1] + 1, start[2]):
        for other in (b"7", b"e", b"\xc3", b""):
            if given[at : at + 1] != other:
                file_of(path).write_bytes(given[:at] + other + given[at + 1 :])
                found = Journal(path, "one").read()
                assert found in (rest, known), (at, other)  # `known`: what changed was a space
                assert all(found[index] == known[index] for index in found)


def test_a_line_that_runs_into_the_next_costs_both_and_no_more(path):
    known = filled(path)
    given = file_of(path).read_bytes().splitlines(keepends=True)
    file_of(path).write_bytes(b"".join([given[0], given[1][:30] + given[2], given[3]]))
    assert Journal(path, "one").read() == {index: known[index] for index in (4, 5)}


# --- other models, other processes


def test_another_models_journal_is_neither_read_nor_kept(path):
    known = filled(path)
    foreign = Journal(path, "two")
    assert foreign.read() == {}
    assert Journal(path, "one").read() == known  # reading does no harm
    foreign.append({7: scores(7)})
    assert foreign.read() == {7: scores(7)}
    assert Journal(path, "one").read() == {}
    assert json.loads(file_of(path).read_text(encoding="utf-8").splitlines()[0]) == {"fingerprint": "two"}


def test_all_processes_are_read_and_each_writes_its_own(path):
    written = [filled(path, process=process) for process in range(3)]
    together = written[0] | written[1] | written[2]
    assert len(together) == 18
    for process in range(3):
        assert Journal(path, "one", process).read() == together
        assert file_of(path, process).is_file()
    Journal(path, "two", 1).append({5: scores(5)})  # a process of another model replaces its own only
    assert Journal(path, "one").read() == written[0] | written[2]
    assert Journal(path, "two").read() == {5: scores(5)}


def test_a_run_of_fewer_processes_goes_on_from_a_run_of_more(path):
    written = [filled(path, process=process) for process in range(4)]
    assert Journal(path, "one").read() == written[0] | written[1] | written[2] | written[3]
    Journal(path, "one").remove()
    assert list(path.parent.iterdir()) == []


def test_other_languages_and_files_are_left_alone(path):
    filled(path)
    others = [path.with_name("de-AT.parquet"), path.with_name("d.parquet"), path.with_name("sw.parquet")]
    for other in others:
        Journal(other, "one").append({0: scores(0)})
    path.write_text("the file", encoding="utf-8")
    assert len(Journal(path, "one").read()) == 6
    Journal(path, "one").remove()
    assert sorted(each.name for each in path.parent.iterdir()) == [
        ".d.0.jsonl", ".de-AT.0.jsonl", ".sw.0.jsonl", "de.parquet",
    ]  # fmt: skip


# --- disks


def test_a_full_disk_is_an_output_error_and_loses_no_batch_before(path, monkeypatch):
    journal = Journal(path, "one")
    journal.append({0: scores(0)})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        journal.append({1: scores(1)})
    with pytest.raises(OutputError, match="No space left"):
        Journal(path.with_name("sw.parquet"), "one").append({1: scores(1)})  # the head already
    monkeypatch.undo()
    assert Journal(path, "one").read()[0] == scores(0)
    assert Journal(path.with_name("sw.parquet"), "one").read() == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk(path):
    journal = Journal(path, "one")
    journal.append({0: scores(0)})
    file_of(path).unlink()
    file_of(path).symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        journal.append({1: scores(1)})


def test_a_folder_that_cannot_be_is_an_output_error(path):
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError):
        Journal(path, "one").append({0: scores(0)})


def test_every_batch_is_forced_to_the_disk(path, monkeypatch):
    journal = Journal(path, "one")
    journal.append({0: scores(0)})
    forced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (forced.append(os.fstat(descriptor).st_size), fsync(descriptor))
    )
    journal.append({1: scores(1)})
    assert forced == [file_of(path).stat().st_size]  # once, with all of the line
