from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from glotlift.errors import ModelError
from glotlift.models.load import load_model
from glotlift.models.random_adapter import write_random_adapter


@pytest.fixture
def adapter(tiny, tmp_path):
    """The folder of a LoRA adapter on attention and embedding."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "embed_tokens"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(copy.deepcopy(tiny("llama").model), lora)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter"


def updates(base, folder) -> dict[str, torch.Tensor]:
    """Return what peft adds to every weight, its scaling included."""
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def test_every_update_has_its_norms_and_no_direction_of_it(tiny, adapter, tmp_path):
    norms = write_random_adapter(str(adapter), tmp_path / "random", seed=1)
    base = tiny("llama").model
    was, now = updates(base, adapter), updates(base, tmp_path / "random")
    assert len(was) == 3 * 2 + 1 == len(norms)
    for name, update in was.items():
        torch.testing.assert_close(torch.linalg.svdvals(now[name]), torch.linalg.svdvals(update), atol=1e-4, rtol=1e-4)
        cosine = (now[name] * update).sum() / now[name].norm() / update.norm()
        assert abs(cosine) < 0.3
        assert norms[f"base_model.model.{name.removeprefix('base_model.model.')}"] == pytest.approx(
            float(update.norm()) / 2, rel=1e-4
        )  # alpha is twice the rank


def test_it_loads_like_the_other_and_changes_the_logits(tiny_folder, adapter, tmp_path):
    write_random_adapter(str(adapter), tmp_path / "random")
    loaded = load_model(str(tiny_folder), adapter=str(tmp_path / "random"), dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        logits = []
        for variant in loaded.variants:
            with loaded.as_variant(variant) as model:
                logits.append(model(ids).logits)
    assert loaded.variants == ("base", "tuned") and not torch.allclose(*logits, atol=1e-2)


def test_the_seed_decides_and_is_kept(adapter, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        write_random_adapter(str(adapter), tmp_path / name, seed=seed)
    one, again, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "again", "two"))
    assert all(torch.equal(one[name], again[name]) and not torch.equal(one[name], two[name]) for name in one)
    assert json.loads((tmp_path / "two" / "random_adapter.json").read_text())["seed"] == 2


def test_an_update_of_nothing_stays_nothing_in_its_dtype(adapter, tmp_path):
    file = adapter / "adapter_model.safetensors"
    tensors = {name: tensor.bfloat16() * (0 if "B" in name else 1) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    assert set(write_random_adapter(str(adapter), tmp_path / "random").values()) == {0.0}
    assert {tensor.dtype for tensor in load_file(tmp_path / "random" / file.name).values()} == {torch.bfloat16}


def test_what_is_no_plain_lora_adapter_is_refused(adapter, tmp_path):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    with pytest.raises(ModelError, match="with lm_head.weight, expected pairs of LoRA matrices"):
        save_file({**tensors, "lm_head.weight": torch.ones(2, 2)}, file)
        write_random_adapter(str(adapter), tmp_path / "random")
    second = next(name for name in tensors if "lora_B" in name)
    with pytest.raises(ModelError, match=f"without {second}"):
        save_file({name: tensor for name, tensor in tensors.items() if name != second}, file)
        write_random_adapter(str(adapter), tmp_path / "random")
    file.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="expected safetensors"):
        write_random_adapter(str(adapter), tmp_path / "random")
    file.unlink()
    with pytest.raises(ModelError, match="got a folder without adapter_model.safetensors"):
        write_random_adapter(str(adapter), tmp_path / "random")
    assert not (tmp_path / "random").exists()
