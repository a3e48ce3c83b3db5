"""The loss: target tokens only, equal to the model's own in fp64, whatever the micro-batch."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glotlift.data.questions import read_pairs
from glotlift.models import head
from glotlift.tasks.load import load_task
from glotlift.training import translation
from glotlift.training.head_loss import can_stream
from glotlift.training.rows import tokenize_pairs
from glotlift.training.settings import TrainSettings
from glotlift.training.translation import Translation
from tests.conftest import FAMILIES, SCALED, random_model


def _rows(loaded, n=6):
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=n // 2)
    return tokenize_pairs(loaded.tokenizer, pairs, TrainSettings())


def _tuned(family):
    """Return a model in fp64 with LoRA weights that are not zero."""
    torch.manual_seed(5)
    model = get_peft_model(
        random_model(family).double(), LoraConfig(r=3, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.05)
    return model.eval()


def _batch(tiny, family):
    # transformers' eager attention, which Gemma 2 has, gives NaN for padded rows in fp64
    rows = _rows(tiny(family))
    return Translation(0).collate(rows[:1] if family == "gemma2" else rows)


def target_loss(model, batch, n_targets=None):
    """Return the mean over the batch's targets, or the sum over a number of them."""
    n_targets = n_targets or int((batch["labels"] != -100).sum())
    return Translation(0).loss(model, batch) / n_targets


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _own_loss(model, batch):
    return model(**{key: value for key, value in batch.items() if key != "ids"}).loss


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_loss_and_gradients_of_the_adapter_equal_the_models_own_in_fp64(tiny, family, monkeypatch):
    """In tiles of a few tokens; Gemma 2 has a soft-cap behind its head, whose slope counts."""
    model, batch = _tuned(family), _batch(tiny, family)
    assert can_stream(model)
    own = _own_loss(model, batch)
    expected = _gradients(model, own)
    monkeypatch.setitem(head._TILE, "cpu", 9000)
    ours = target_loss(model, batch)
    found = _gradients(model, ours)
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)
    assert sorted(found) == sorted(expected)
    # transformers' own loss takes the softmax in fp32, hence the tolerance
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_streamed_loss_is_the_table_of_logits_to_the_last_digits(tiny, family, monkeypatch):
    model, batch = _tuned(family), _batch(tiny, family)
    monkeypatch.setitem(head._TILE, "cpu", 9000)
    streamed = _gradients(model, target_loss(model, batch))
    monkeypatch.setattr(translation, "can_stream", lambda _model: False)
    table = _gradients(model, target_loss(model, batch))
    for name, gradient in streamed.items():
        torch.testing.assert_close(gradient, table[name], atol=1e-12, rtol=1e-9, msg=name)


def test_full_tuning_gives_the_tied_head_its_gradient(tiny):
    model, batch = random_model("gemma3").double().eval(), Translation(0).collate(_rows(tiny("gemma3")))
    assert not can_stream(model)
    expected = _gradients(model, _own_loss(model, batch))
    found = _gradients(model, target_loss(model, batch))
    assert sorted(found) == sorted(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_an_adapter_on_the_head_is_trained(tiny):
    torch.manual_seed(5)
    model = get_peft_model(random_model("llama").double(), LoraConfig(r=2, target_modules=["lm_head"])).eval()
    assert not can_stream(model)
    loss = target_loss(model, Translation(0).collate(_rows(tiny("llama"))))
    assert any("lora_B" in name and gradient.abs().max() > 0 for name, gradient in _gradients(model, loss).items())


def test_extreme_logits_stay_finite(tiny):
    model, batch = _tuned("llama"), Translation(0).collate(_rows(tiny("llama")))
    for parameter in model.get_base_model().lm_head.parameters():
        parameter.data.mul_(1e4)
    loss = target_loss(model, batch)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in _gradients(model, loss).values())


def test_loss_and_gradients_do_not_depend_on_the_micro_batch(tiny):
    loaded, model = tiny("gemma3"), _tuned("gemma3")
    rows, collate = _rows(loaded, 8), Translation(0).collate
    n_targets = sum(row.n_targets for row in rows)

    def accumulated(size):
        parts = [target_loss(model, collate(rows[i : i + size]), n_targets) for i in range(0, len(rows), size)]
        return sum(part.item() for part in parts), _gradients(model, sum(parts))

    whole_loss, whole = accumulated(8)
    for size in (1, 3):
        loss, gradients = accumulated(size)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-6, msg=name)
    unequal = sum(target_loss(model, collate(rows[i : i + 1])).item() for i in range(8)) / 8
    assert abs(unequal - whole_loss) > 1e-4  # a mean of means would differ on these rows
