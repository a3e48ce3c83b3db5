"""Adapters that fit and adapters that do not, devices, and what is never loaded."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from glotlift.errors import ModelError
from glotlift.models.load import load_model, weights_fingerprint
from tests.conftest import FAMILIES, random_model


def write_adapter(folder: Path, model=None, targets=("q_proj", "v_proj")) -> Path:
    config = LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model or random_model("llama"), config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path) -> Path:
    return write_adapter(tmp_path / "adapter")


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([[5, 6, 7]])).logits


def test_base_and_tuned_are_one_load(tiny_folder, adapter):
    plain = load_model(str(tiny_folder))
    loaded = load_model(str(tiny_folder), adapter=str(adapter))
    assert (plain.variants, loaded.variants) == (("base",), ("base", "tuned"))
    assert loaded.variant_fingerprint("base") == plain.variant_fingerprint("base")
    assert loaded.variant_fingerprint("tuned") != loaded.variant_fingerprint("base")
    with loaded.as_variant("base") as base:
        torch.testing.assert_close(logits(base), logits(plain.model))
    with loaded.as_variant("tuned") as tuned:
        assert (logits(tuned) - logits(plain.model)).abs().max() > 1e-3


def test_an_adapter_that_was_replaced_has_another_fingerprint(adapter):
    """In one process a run may be trained anew; its old scores must not be taken for the new ones."""
    before = weights_fingerprint(str(adapter))
    assert weights_fingerprint(str(adapter)) == before
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, adapter / "new")
    (adapter / "new").replace(adapter / "adapter_model.safetensors")
    assert weights_fingerprint(str(adapter)) != before


def changed(**settings: object) -> torch.nn.Module:
    """Return a random model like that of `tiny_folder` but for some settings."""
    config = copy.deepcopy(FAMILIES["llama"])
    for name, value in settings.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config)


def narrow(tmp_path: Path) -> Path:
    """An adapter of a model with other widths."""
    return write_adapter(tmp_path / "narrow", changed(hidden_size=16))


def shallow(tmp_path: Path) -> Path:
    """An adapter of a model with fewer layers: peft would leave the others untuned, with a mere warning."""
    return write_adapter(tmp_path / "shallow", changed(num_hidden_layers=2))


def other_family(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "gpt2", random_model("gpt2"), ["c_attn"])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (narrow, "size mismatch for .*q_proj.lora_A"),
        (shallow, "Found missing adapter keys"),
        (other_family, "Target modules .* not found in the base model"),
    ],
)
def test_an_adapter_of_another_model_is_refused(tiny_folder, tmp_path, make, message):
    folder = make(tmp_path)
    with pytest.raises(ModelError, match=rf"adapter '{folder}' cannot be put on the model: .*{message}") as caught:
        load_model(str(tiny_folder), adapter=str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_refused(tiny_folder, adapter, file):
    (adapter / file).write_text("{}" if file.endswith(".json") else "damaged beyond repair")
    with pytest.raises(ModelError, match="cannot be put on the model: "):
        load_model(str(tiny_folder), adapter=str(adapter))


def test_pickled_weights_are_never_loaded(tiny_folder, adapter, tmp_path):
    """A pickle runs code when it is read; only safetensors are."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot be loaded: .*no file named model\.safetensors"):
        load_model(str(folder))
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a folder without adapter_model\.safetensors, expected a peft adapter"):
        load_model(str(tiny_folder), adapter=str(adapter))


def test_devices(tiny_folder):
    assert next(load_model(str(tiny_folder), device="cpu").model.parameters()).device.type == "cpu"
    with pytest.raises(ModelError, match="got device 'gpu', expected `auto`, `cpu`, `cuda`"):
        load_model(str(tiny_folder), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="cannot be put on device 'cuda'"):
            load_model(str(tiny_folder), device="cuda")


@pytest.mark.parametrize("name", ["owner/absent", "no such name"])
def test_a_fingerprint_of_what_is_not_there(name):
    with pytest.raises(ModelError, match=f"model '{name}' cannot be fetched: "):
        weights_fingerprint(name)
