"""Which process this is, by the variables of torchrun, accelerate and the MPIs."""

import pytest

from glotlift.processes import Processes, prints, processes

VARIABLES = [("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"),
             ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK")]  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in (name for pair in VARIABLES for name in pair):
        monkeypatch.delenv(name, raising=False)


class _State:
    process_index, num_processes = 1, 2

    def __init__(self, cpu):
        pass

    def wait_for_everyone(self):
        """Nobody else is there."""


@pytest.mark.parametrize(("size", "rank"), VARIABLES)
def test_every_launcher_is_seen(monkeypatch, size, rank):
    monkeypatch.setattr("accelerate.PartialState", _State)
    assert processes() == Processes()
    monkeypatch.setenv(size, "2")
    found = processes()
    assert (found.index, found.count, found.is_first) == (1, 2, False)
    monkeypatch.setenv(rank, "1")
    assert not prints()
    monkeypatch.setenv(rank, "0")
    assert prints()


def test_alone_it_prints_and_is_the_first(monkeypatch):
    assert prints()
    assert processes().is_first
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes() == Processes()
