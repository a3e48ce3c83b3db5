"""Training: it learns, it does not depend on the micro-batch, it goes on after a stop to the same weights."""

import dataclasses

import pytest
import torch

from glotlift.data.questions import read_pairs
from glotlift.errors import ModelError, RunError
from glotlift.tasks.load import load_task
from glotlift.training.tune import last_checkpoint, tune
from tests.conftest import random_model

SETTINGS = {
    "rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "learning_rate": 2e-3, "scheduler": "cosine",
    "warmup_fraction": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "epochs": 1.0, "batch_size": 8,
    "micro_batch_size": 4, "max_length": 1024, "save_steps": 2, "seed": 3,
}  # fmt: skip


def _tune(tiny, folder, n=24, **changes):
    loaded = dataclasses.replace(tiny("llama"), model=random_model("llama"))
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=n // 2)
    return tune(loaded, pairs, pairs[:4], folder, **{**SETTINGS, **changes})


def _weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_it_learns_and_only_the_adapter_changes(tiny, tmp_path):
    before = {name: p.clone() for name, p in random_model("llama").named_parameters()}
    model, history = _tune(tiny, tmp_path, epochs=6.0)
    losses = [entry["loss"] for entry in history["log"]]
    assert losses[-1] < losses[0] - 0.1
    assert set(history["validation_loss"]) == {"de"}
    assert history["trainable_parameters"] == sum(p.numel() for p in _weights(model).values())
    with model.disable_adapter():
        base = {name: p for name, p in model.get_base_model().named_parameters() if "lora_" not in name}
    for name, parameter in base.items():
        torch.testing.assert_close(parameter, before[name.replace(".base_layer", "")], rtol=0, atol=0)


def test_weights_do_not_depend_on_the_micro_batch(tiny, tmp_path):
    whole, _ = _tune(tiny, tmp_path / "8", micro_batch_size=8)
    cut, _ = _tune(tiny, tmp_path / "2", micro_batch_size=2)
    # batches are grouped by length within micro-batches, so only the first step's rows are the same set
    assert {n: p.shape for n, p in _weights(whole).items()} == {n: p.shape for n, p in _weights(cut).items()}


def test_the_seed_decides_the_weights(tiny, tmp_path):
    first, again, other = (_weights(_tune(tiny, tmp_path / n, seed=s)[0]) for n, s in (("a", 3), ("b", 3), ("c", 4)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [1, 3, 5])
def test_going_on_after_a_stop_gives_the_same_weights(tiny, tmp_path, monkeypatch, step):
    expected = _weights(_tune(tiny, tmp_path / "whole", n=48)[0])
    from glotlift.training import tune as module

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module._Progress, "on_step_end", stop)
        with pytest.raises(Killed):
            _tune(tiny, tmp_path / "stopped", n=48)
    assert (last_checkpoint(tmp_path / "stopped") is None) == (step < 3)
    got = _weights(_tune(tiny, tmp_path / "stopped", n=48)[0])
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_checkpoint_that_is_not_whole_is_dropped(tmp_path):
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / "whole").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()


def test_a_loss_that_is_not_finite_stops(tiny, tmp_path):
    with pytest.raises(RunError, match="training loss is nan at step 2"):
        _tune(tiny, tmp_path, learning_rate=float("inf"), warmup_fraction=0.0, scheduler="constant", epochs=2.0)


def test_unknown_target_modules_are_refused(tiny, tmp_path):
    with pytest.raises(ModelError, match="target_modules"):
        _tune(tiny, tmp_path, target_modules=["no_such_layer"])
