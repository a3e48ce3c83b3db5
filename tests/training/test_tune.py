"""Training: it learns, it does not depend on the micro-batch, it goes on after a stop to the same weights."""

import dataclasses
import os
import signal

import pytest
import torch

from glotlift.data.questions import read_pairs
from glotlift.errors import DataError, Interrupted, ModelError, RunError
from glotlift.tasks.load import load_task
from glotlift.training.settings import TrainSettings
from glotlift.training.translation import translation_part
from glotlift.training.tune import last_checkpoint, tune
from glotlift.training.watch import Probe, Watch
from tests.conftest import random_model

SETTINGS = {
    "rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "learning_rate": 2e-3, "scheduler": "cosine",
    "warmup_fraction": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "epochs": 1.0, "batch_size": 8,
    "micro_batch_size": 4, "max_length": 1024, "save_steps": 2,
}  # fmt: skip


def _tune(tiny, folder, n=24, probe=None, seed=3, **changes):
    loaded = dataclasses.replace(tiny("llama"), model=random_model("llama"))
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=n // 2)
    settings = TrainSettings(**{**SETTINGS, **changes})
    part = translation_part(loaded, pairs, settings)
    return tune(loaded, [part], part.rows[:4], folder, settings, seed=seed, probe=probe)


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


def _same(a, b, tolerance=0.0):
    a, b = _weights(a), _weights(b)
    assert sorted(a) == sorted(b)
    return all(torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance) for name in a)


def test_weights_do_not_depend_on_the_micro_batch(tiny, tmp_path):
    """Every optimizer step has the same rows and the same mean over its target tokens, however it is cut."""
    whole, history = _tune(tiny, tmp_path / "8", micro_batch_size=8)
    for size in (1, 2):
        cut, cut_history = _tune(tiny, tmp_path / str(size), micro_batch_size=size)
        losses = [[entry["loss"] for entry in h["log"]] for h in (history, cut_history)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert _same(whole, cut, 1e-4)


def test_gradient_checkpointing_changes_nothing(tiny, tmp_path):
    plain, _ = _tune(tiny, tmp_path / "a")
    again, _ = _tune(tiny, tmp_path / "b", gradient_checkpointing=True)
    assert _same(plain, again, 1e-6)


@pytest.mark.parametrize("changes", [{"rslora": True}, {"dora": True}])
def test_kinds_of_lora_differ_from_lora(tiny, tmp_path, changes):
    plain, _ = _tune(tiny, tmp_path / "a", dropout=0.1)
    other, _ = _tune(tiny, tmp_path / "b", dropout=0.1, **changes)
    shared = [name for name in _weights(plain) if name in _weights(other)]
    assert not all(torch.equal(_weights(plain)[name], _weights(other)[name]) for name in shared)
    config = other.peft_config["default"]
    assert (config.use_rslora, config.use_dora) == (bool(changes.get("rslora")), bool(changes.get("dora")))


def test_only_the_asked_blocks_get_an_adapter(tiny, tmp_path):
    model, _ = _tune(tiny, tmp_path, lora_layers=(0.6, 1.0))
    blocks = {int(name.split("layers.")[1].split(".")[0]) for name in _weights(model)}
    assert blocks == {1, 2}  # of three, from 1.8 on
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in _weights(model)}
    assert {"q_proj", "down_proj"} <= kinds
    with pytest.raises(ValueError, match="got lora_layers 0.8, 0.2, expected two shares"):
        TrainSettings(lora_layers=(0.8, 0.2))


def test_full_tuning_changes_every_weight(tiny, tmp_path):
    before = dict(random_model("llama").named_parameters())
    model, history = _tune(tiny, tmp_path, method="full", learning_rate=1e-3)
    assert history["trainable_parameters"] == sum(p.numel() for p in before.values())
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_the_seed_decides_the_weights(tiny, tmp_path):
    first, again, other = (_weights(_tune(tiny, tmp_path / n, seed=s)[0]) for n, s in (("a", 3), ("b", 3), ("c", 4)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_going_on_after_a_stop_gives_the_same_weights(tiny, tmp_path, monkeypatch, step):
    """With dropout, so that the state of the random numbers counts too; the real kill is in test_kill_training.py."""
    expected, _ = _tune(tiny, tmp_path / "whole", n=48, dropout=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", _raising(Killed, step))
        with pytest.raises(Killed):
            _tune(tiny, tmp_path / "stopped", n=48, dropout=0.2)
    assert (last_checkpoint(tmp_path / "stopped") is None) == (step < 3)
    got, _ = _tune(tiny, tmp_path / "stopped", n=48, dropout=0.2)
    assert _same(got, expected)


def _raising(error, step):
    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise error

    return stop


def test_ctrl_c_saves_a_checkpoint_and_goes_on_to_the_same_weights(tiny, tmp_path, monkeypatch):
    expected, _ = _tune(tiny, tmp_path / "whole", n=48, save_steps=100)
    on_step_end = Watch.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", interrupt)
        with pytest.raises(Interrupted, match=r"the last good checkpoint is of step 3, start the same command again"):
            _tune(tiny, tmp_path / "stopped", n=48, save_steps=100)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    got, _ = _tune(tiny, tmp_path / "stopped", n=48, save_steps=100)
    assert _same(got, expected)


def test_a_second_ctrl_c_ends_at_once(tiny, tmp_path, monkeypatch):
    def twice(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Watch, "on_step_end", twice)
    with pytest.raises(KeyboardInterrupt):
        _tune(tiny, tmp_path)


def test_a_probe_stops_training_and_the_best_weights_are_kept(tiny, tmp_path):
    scores, seen = iter([0.5, 0.8, 0.7, 0.6, 0.9]), []

    def probe(model):
        assert not model.training
        seen.append(_weights(model))
        return next(scores)

    model, history = _tune(tiny, tmp_path, n=64, probe=Probe(probe, steps=1, patience=2))
    assert history["probes"] == [{"step": n + 1, "score": s} for n, s in enumerate((0.5, 0.8, 0.7, 0.6))]
    got = _weights(model)
    assert all(torch.equal(got[name], seen[1][name]) for name in got)
    assert not all(torch.equal(got[name], seen[3][name]) for name in got)


def test_probes_are_remembered_over_a_stop(tiny, tmp_path, monkeypatch):
    scores = {1: 0.9, 2: 0.5, 3: 0.4, 4: 0.95}
    steps = iter([1, 2, 3, 3, 4])

    def probe(_model):
        return scores[next(steps)]

    settings = {"n": 64, "probe": Probe(probe, steps=1, patience=2)}
    on_step_end = Watch.on_step_end

    def killed(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", killed)
        with pytest.raises(Killed):
            _tune(tiny, tmp_path, **settings)
    _, history = _tune(tiny, tmp_path, **settings)  # goes on behind step 2
    assert [each["step"] for each in history["probes"]] == [1, 2, 3]


def test_a_checkpoint_that_is_not_whole_is_dropped(tmp_path):
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / "whole").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()


def test_a_loss_that_is_no_number_stops_with_its_rows_and_the_last_checkpoint(tiny, tmp_path):
    with pytest.raises(RunError) as caught:
        _tune(tiny, tmp_path, learning_rate=1e38, warmup_fraction=0.0, scheduler="constant", epochs=2.0)
    message = str(caught.value)
    assert "the training loss is nan, expected a number; rows " in message
    assert message.count("q0") == 4  # the micro-batch it was seen in
    assert "there is no checkpoint yet" in message


def test_a_loss_that_explodes_stops_with_its_step_and_rows(tiny, tmp_path):
    """Twice what guessing gives is 2 ln 600 = 12.8 nats."""
    loaded = dataclasses.replace(tiny("llama"), model=random_model("llama"))
    loaded.model.lm_head.weight.data.mul_(30)
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=4)
    expected = r"training loss is [\d.]+ at step 1, expected at most 12.8 .*; rows (zh|de):q00.*no checkpoint yet"
    with pytest.raises(RunError, match=expected):
        settings = TrainSettings(**SETTINGS)
        tune(loaded, [translation_part(loaded, pairs, settings)], [], tmp_path, settings, seed=3)


def test_unknown_target_modules_are_refused(tiny, tmp_path):
    with pytest.raises(ModelError, match="target_modules"):
        _tune(tiny, tmp_path, target_modules=["no_such_layer"])


def test_a_logger_that_is_not_installed_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="report_to wandb, which is not installed; expected `pip install wandb`"):
        _tune(tiny, tmp_path, report_to=["wandb"])
