"""Passes that begin in the middle of others: the same numbers, fewer blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from glotlift.data.read import read_items
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.anatomy import decoder_layers
from glotlift.models.label_scores import label_scores
from glotlift.models.patch import Patch
from glotlift.models.recording import Recording, recordable
from glotlift.tasks.load import load_task


@pytest.fixture
def asked(tiny):
    """Return a function: family -> model and rows."""

    def make(family: str):
        loaded, task = tiny(family), load_task("sentiment")
        items = read_items(task, "sample", ("de",), limit=5)["de"]
        return loaded.model, prepare(loaded, task, "de", items, EvalTask(task=task.name)).rows

    return make


@pytest.fixture
def runs(monkeypatch):
    """Return a function: model -> a list that gets the number of every block that runs."""

    def count(model):
        seen: list[int] = []
        for number, layer in enumerate(decoder_layers(model), 1):
            part = next(child for name, child in layer.named_children() if "mlp" in name)
            monkeypatch.setattr(part, "forward", counted(seen, number, part.forward))
        return seen

    def counted(seen, number, forward):
        def inner(*args, **kwargs):
            seen.append(number)
            return forward(*args, **kwargs)

        return inner

    return count


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_what_comes_before_is_not_run_again(asked, runs, family):
    model, rows = asked(family)
    seen = runs(model)
    moves = [replace(row, patches=(Patch(2, row.span, torch.arange(32.0) / 8, is_added=True),)) for row in rows]
    still = [replace(row, patches=(Patch(2, row.span, torch.zeros(32), is_added=True),)) for row in rows]
    whole, changed = label_scores(model, still), label_scores(model, moves)
    assert np.abs(whole - changed).max() > 1e-2
    recording = Recording(model)
    seen.clear()
    with recording.recorded():
        np.testing.assert_array_equal(label_scores(model, still), whole)
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]  # the prefix, and the rows behind it
    for layer, run in ((0, [1, 1, 2, 2, 3, 3]), (2, [1, 2, 3, 3]), (3, [1, 2, 3])):
        seen.clear()
        with recording.resumed(layer):
            np.testing.assert_array_equal(label_scores(model, still), whole)
            assert sorted(seen) == run
            if layer < 3:
                np.testing.assert_array_equal(label_scores(model, moves), changed)
    seen.clear()
    np.testing.assert_array_equal(label_scores(model, moves), changed)
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]


def test_batches_that_were_not_recorded_are_run_whole(asked):
    model, rows = asked("llama")
    recording = Recording(model)
    with recording.recorded():
        label_scores(model, rows[:3])
    expected = label_scores(model, rows)
    with recording.resumed(3):
        np.testing.assert_array_equal(label_scores(model, rows), expected)


def test_a_block_that_fails_is_no_recording(asked, monkeypatch):
    """Memory may run out in the middle of a batch, which is then halved."""
    model, rows = asked("llama")
    recording, expected = Recording(model), label_scores(model, rows)
    with monkeypatch.context() as patch, recording.recorded():
        patch.setattr(decoder_layers(model)[2].mlp, "forward", fail)
        with pytest.raises(KeyError):
            label_scores(model, rows)
    with recording.resumed(3):
        np.testing.assert_array_equal(label_scores(model, rows), expected)


def hooks(model):
    return [[*module._forward_pre_hooks, *module._forward_hooks] for module in model.modules()]


def fail(*_args):
    raise KeyError


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_as_before_after_an_error(asked, family):
    model, rows = asked(family)
    recording, expected = Recording(model), label_scores(model, rows)
    first, before = decoder_layers(model)[0], hooks(model)  # transformers leaves some of its own
    for inside in (recording.recorded, lambda: recording.resumed(2)):
        with pytest.raises(KeyError), inside():
            fail()
        assert hooks(model) == before
        assert all("forward" not in vars(layer) for layer in decoder_layers(model))
    own = first.forward
    first.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as accelerate does
    try:
        kept = first.forward
        with recording.resumed(2):
            assert first.forward is not kept
        assert first.forward is kept
    finally:
        del first.forward
    np.testing.assert_array_equal(label_scores(model, rows), expected)


def test_every_row_is_recorded_once_and_few_together(asked):
    _, rows = asked("llama")
    assert sorted(index for batch in recordable(rows, 100) for index in batch) == list(range(len(rows)))
    assert len(recordable(rows, 4)) == len(rows)
    assert len(recordable(rows, 10_000)) == 1
