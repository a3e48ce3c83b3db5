"""Merging: the merged folder is a plain model that gives what the adapter gave."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from glotlift.errors import ModelError, OutputError, RunError
from glotlift.models.load import load_model
from glotlift.training import merge as module
from glotlift.training.merge import merge_adapter

PROMPTS = ['Review: Works well.\nSentiment: "', "Bewertung: gut"]


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merged_folder_loads_in_plain_transformers_and_equals_the_adapter(tiny_folder, adapter, tmp_path):
    certificate = merge_adapter(str(tiny_folder), str(adapter), tmp_path / "merged", PROMPTS)
    assert certificate["max_logit_difference"] < 1e-3
    assert certificate["argmax_agreement"] == 1.0
    assert certificate["dtype"] == "float32"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    loaded = load_model(str(tiny_folder), adapter=str(adapter))
    with torch.inference_mode():
        got = merged(ids).logits
        with loaded.as_variant("tuned") as model:
            tuned = model(ids).logits
        with loaded.as_variant("base") as model:
            base = model(ids).logits
    torch.testing.assert_close(got, tuned, atol=1e-3, rtol=1e-4)
    assert (base - tuned).abs().max() > 0.1  # so the adapter is really off and on
    json.dumps(certificate)


def test_merging_that_changes_too_much_is_refused(tiny_folder, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="merging changes logits by"):
        merge_adapter(str(tiny_folder), str(adapter), tmp_path / "merged", PROMPTS)
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_cannot_be_written_is_named(tiny_folder, adapter, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        merge_adapter(str(tiny_folder), str(adapter), tmp_path / "file" / "merged", PROMPTS)


def test_an_adapter_of_another_model_is_refused(tiny_folder, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(ModelError, match="cannot be put on the model"):
        load_model(str(tiny_folder), adapter=str(adapter))


def test_base_and_tuned_have_different_fingerprints(tiny_folder, adapter):
    loaded = load_model(str(tiny_folder), adapter=str(adapter))
    assert loaded.variants == ("base", "tuned")
    assert loaded.variant_fingerprint("base") != loaded.variant_fingerprint("tuned")
    without = load_model(str(tiny_folder))
    assert without.variants == ("base",)
    assert without.variant_fingerprint("base") == loaded.variant_fingerprint("base")
    half = load_model(str(tiny_folder), dtype="bfloat16")
    assert half.variant_fingerprint("base") != without.variant_fingerprint("base")
