"""Adapters that fit and adapters that do not, devices, and what is never loaded."""

import copy
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from glotlift.errors import ModelError
from glotlift.models.adapters import foreign_adapter
from glotlift.models.load import load_model, tensors_fingerprint, weights_fingerprint
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


def say(file: Path, **content: object) -> None:
    """Write what a JSON file says besides what it said before."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**before, **content}))


@pytest.fixture
def other_folder(tiny_folder, tmp_path) -> Path:
    """A model of the same shape and other weights."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "other-llama"))
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_adapter_that_was_trained_on_other_weights_is_told(tiny_folder, other_folder, adapter, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("glotlift"), "propagate", True)
    say(adapter / "history.json", base_model="tiny", base_fingerprint=tensors_fingerprint(str(tiny_folder)))
    assert load_model(str(tiny_folder), adapter=str(adapter)).foreign_adapter is None
    assert not caplog.messages
    told = load_model(str(other_folder), adapter=str(adapter)).foreign_adapter
    assert told == (
        f"the adapter was made for 'tiny', and is used on '{other_folder}': "
        "the numbers of the tuned model are not those of what was trained"
    )
    assert caplog.messages == [f"{adapter}: {told}"]


def test_a_tuned_model_that_was_another_base_is_told(tiny_folder, other_folder, tmp_path):
    tuned = Path(shutil.copytree(tiny_folder, tmp_path / "tuned"))
    say(tuned / "history.json", base_model=str(tiny_folder), base_fingerprint=tensors_fingerprint(str(tiny_folder)))
    assert load_model(str(tiny_folder), adapter=str(tuned)).foreign_adapter is None
    assert f"made for '{tiny_folder}'" in (load_model(str(other_folder), adapter=str(tuned)).foreign_adapter or "")


def test_the_fingerprint_decides_whatever_the_names_are(tmp_path):
    say(tmp_path / "adapter_config.json", base_model_name_or_path="owner/something-else")
    say(tmp_path / "history.json", base_model="owner/something-else", base_fingerprint="1")
    assert foreign_adapter(tmp_path, "owner/model", tmp_path, "1") is None
    told = foreign_adapter(tmp_path, "owner/something-else", tmp_path, "2")
    assert told is not None
    assert told.startswith("the adapter was made for other weights of 'owner/something-else', and is used on")


def test_who_saved_the_weights_does_not_matter(tiny_folder, other_folder, tmp_path):
    again = Path(shutil.copytree(tiny_folder, tmp_path / "again"))
    say(again / "config.json", transformers_version="5.99.0")
    assert tensors_fingerprint(str(again)) == tensors_fingerprint(str(tiny_folder))
    assert tensors_fingerprint(str(other_folder)) != tensors_fingerprint(str(tiny_folder))


DEMO = "/cache/glotlift/models/gemma-3-270m-0123456789ab"
HUB = "/cache/hub/models--google--gemma-3-270m/snapshots/9f2d4c"


@pytest.mark.parametrize(
    ("stated", "model", "folder", "is_foreign"),
    [
        ("google/gemma-3-270m", "google/gemma-3-270m", HUB, False),
        ("unsloth/gemma-3-270m-unsloth-bnb-4bit", "google/gemma-3-270m", HUB, False),
        (HUB, "google/gemma-3-270m", HUB, False),
        (DEMO, "demo", DEMO, False),
        ("/elsewhere/gemma-3-270m-0123456789ab", "demo", DEMO, False),
        ("demo", "demo", DEMO, False),
        ("google/gemma-3-270m", "demo", DEMO, False),
        ("google/gemma-3-270m", "models/Gemma-3-270M-Q4_K_M.gguf", "/cache/Gemma-3-270M-Q4_K_M-0123456789ab", False),
        ("C:\\models\\gemma-3-270m\\", "/srv/gemma-3-270m", "/srv/gemma-3-270m", False),
        ("google/gemma-3-270m", "runs/first/merged", "runs/first/merged", False),
        ("/content/merged_model", "google/gemma-3-270m", HUB, False),
        ("out/checkpoint-500", "google/gemma-3-270m", HUB, False),
        (".", "google/gemma-3-270m", HUB, False),
        ("", "google/gemma-3-270m", HUB, False),
        (None, "google/gemma-3-270m", HUB, False),
        (7, "google/gemma-3-270m", HUB, False),
        ("google/gemma-3-270m-it", "google/gemma-3-270m", HUB, True),
        ("google/gemma-3-1b-pt", "demo", DEMO, True),
        ("/srv/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B", "/cache/models--Qwen--Qwen3-0.6B/snapshots/1", True),
        ("models--bigscience--bloom/snapshots/1", "gpt2", "/cache/models--gpt2/snapshots/1", True),
        ("owner/some-model", "/srv/tiny-llama", "/srv/tiny-llama", True),
    ],
)
def test_adapters_of_other_tools_are_told_by_the_names_of_their_bases(tmp_path, stated, model, folder, is_foreign):
    say(tmp_path / "adapter_config.json", base_model_name_or_path=stated)
    told = foreign_adapter(tmp_path, model, Path(folder), "1")
    assert (told is not None) == is_foreign
    if told:
        assert told.startswith(f"the adapter was made for {stated!r}, and is used on {model!r}: ")


def test_a_folder_may_say_in_its_config_whose_weights_it_holds(tmp_path):
    say(tmp_path / "adapter_config.json", base_model_name_or_path="google/gemma-3-270m")
    folder = tmp_path / "my-llama"
    folder.mkdir()
    assert foreign_adapter(tmp_path, str(folder), folder, "1")
    say(folder / "config.json", _name_or_path="google/gemma-3-270m")
    assert foreign_adapter(tmp_path, str(folder), folder, "1") is None


@pytest.mark.parametrize("content", ["{", "[1]", '"a"', "\ud800"])
def test_a_history_that_cannot_be_read_is_one_sentence(tmp_path, content):
    (tmp_path / "history.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=r"history\.json: got .*, expected") as caught:
        foreign_adapter(tmp_path, "owner/model", tmp_path, "1")
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
