"""Sharded weights (FSDP2) on one CPU process: the loss, what is saved, what a probe puts back."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from glotlift.models.anatomy import decoder_layers
from glotlift.stages.train import _save_tuned
from glotlift.training.objective import Part, in_order
from glotlift.training.rows import IGNORED, TokenRow
from glotlift.training.settings import TrainSettings
from glotlift.training.shards import gathered, put_back, whole
from glotlift.training.translation import Translation, target_loss
from glotlift.training.tune import _arguments
from glotlift.training.watch import Probe, Watch
from tests.conftest import random_model


@pytest.fixture
def group():
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def make_rows(lengths):
    """Return rows of any tokens, of which the last five are learned."""
    tokens = [[(7 * k + 3 * length) % 590 + 5 for k in range(length)] for length in lengths]
    return [TokenRow(str(k), "de", ids, [IGNORED] * (len(ids) - 5) + ids[-5:]) for k, ids in enumerate(tokens)]


def adapted(family):
    model = random_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train()


def shard(model):
    for block in decoder_layers(model):
        fully_shard(block)
    return fully_shard(model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_loss_and_gradient_of_a_sharded_model_are_those_of_the_whole(group, family):
    """The head is then no plain tensor, and the streamed loss leaves it to the plain one."""
    batch = Translation(0).collate(make_rows([30, 21]))
    found = []
    for model in (adapted(family), shard(adapted(family))):
        loss = target_loss(model, batch)
        loss.backward()
        learned = [p for p in model.parameters() if p.requires_grad]
        found.append((loss.item(), torch.cat([whole(p.grad).flatten() for p in learned])))
    (loss, gradient), (loss_sharded, gradient_sharded) = found
    assert loss_sharded == pytest.approx(loss, rel=1e-5)
    assert (gradient_sharded - gradient).norm() < 1e-4 * gradient.norm()


def test_a_sharded_adapter_is_saved_whole(group, tiny, tmp_path):
    loaded, plain, model = tiny("llama"), adapted("llama"), shard(adapted("llama"))
    _save_tuned(plain, gathered(plain), loaded, {}, tmp_path / "plain")
    _save_tuned(model, gathered(model), loaded, {}, tmp_path / "sharded")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "sharded")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert gathered(plain) is None
    assert all("lora_" in name for name in gathered(model)), "the base is not gathered"


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # a head of its own; one with the embedding
def test_a_sharded_model_is_saved_whole(group, tiny, tmp_path, family):
    plain, model = random_model(family), shard(random_model(family))
    _save_tuned(model, gathered(model), tiny(family), {}, tmp_path / "tuned")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), plain.parameters(), strict=True))


def test_the_best_weights_of_a_sharded_model_are_put_back(group, tmp_path):
    model = shard(adapted("llama"))
    part = Part("translation", Translation(0), make_rows([20] * 4), 1.0, 2)
    rows = in_order([part], epochs=1, micro_batch_size=2, seed=0)
    values = iter([0.9, 0.1])
    watch = Watch(tmp_path, rows, 2, 600, Probe(lambda _model: next(values), 1, 9))

    class State:
        global_step = 1

    learned = [p for p in model.parameters() if p.requires_grad]
    assert all(isinstance(p, DTensor) for p in learned)
    before = [whole(p).clone() for p in learned]
    watch._run_probe(watch.probe, model, State, State)
    for p in learned:
        put_back(p, torch.full(p.shape, 7.0))
    assert all((whole(p) == 7).all() for p in learned)
    watch._run_probe(watch.probe, model, State, State)
    watch.finish(model)
    assert all(torch.equal(whole(p), kept) for p, kept in zip(learned, before, strict=True))


def test_a_model_on_the_cpu_is_trained_there_though_there_is_a_gpu(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = _arguments(tiny("llama"), tmp_path, TrainSettings(objective="translation"), 0)
    assert arguments.use_cpu
    assert arguments.device.type == "cpu"
    assert not arguments.dataloader_pin_memory
