"""Parts of an adapter switched off, against the same adapter with those weights set to zero by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from glotlift.data.read import read_items
from glotlift.errors import ModelError
from glotlift.evaluation.predict import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.explanation import switch_off
from glotlift.explanation.switch_off import switch_off_language
from glotlift.models.adapters import adapter_parts, switched_off
from glotlift.models.recording import Recording
from tests.conftest import FAMILIES
from tests.explanation.test_patching import scores_of

TARGETS = {
    **dict.fromkeys(FAMILIES, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
}


@pytest.fixture(scope="module")
def tuned(loud):
    """Return a function: family, targets -> a model with a random adapter."""

    def make(family: str, targets=None, **options):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            lora = LoraConfig(r=4, target_modules=targets or TARGETS[family], init_lora_weights=False,
                              fan_in_fan_out=family == "gpt2", **options)  # fmt: skip
            model = get_peft_model(copy.deepcopy(loud(family).model), lora).eval()
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data.normal_(0, 0.3)
        return replace(loud(family), model=model, adapter_fingerprint="adapter")

    return make


@pytest.fixture(scope="module")
def asked(task):
    def make(loaded, language="de", limit=4):
        items = read_items(task, "sample", (language,), limit=limit)[language]
        return prepare(loaded, task, language, items, EvalTask(task=task.name))

    return make


def zeroed(loaded, is_off):
    """Return a model whose adapter adds nothing where `is_off` says so of a parameter's name."""
    model = copy.deepcopy(loaded.model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and is_off(name):
            parameter.data.zero_()
    return replace(loaded, model=model)


def block(name: str) -> int:
    return int(next(part for part in name.split(".") if part.isdecimal())) + 1


def is_attention(name: str) -> bool:
    return "attn" in name or "attention" in name


def predicted(loaded, prompts, variant="tuned") -> np.ndarray:
    """Return the scores of evaluation, every prompt whole and alone."""
    return scores_of(predict(loaded, prompts, variant, prefix_cache=False))


def rows(frame, group, mode, layer) -> np.ndarray:
    return scores_of(frame[(frame["group"] == group) & (frame["mode"] == mode) & (frame["layer"] == layer)])


@pytest.mark.parametrize("family", TARGETS)
def test_equals_an_adapter_with_zeros(tuned, asked, family):
    loaded = tuned(family)
    prompts = asked(loaded, limit=2)
    frame = switch_off_language(loaded, prompts, token_budget=100)
    of_group = {"all": lambda _name: True, "attention": is_attention, "mlp": lambda name: not is_attention(name)}
    spread = []
    for group, is_in in of_group.items():
        for layer in (1, 2, 3) if group == "all" else (2,):
            off = {
                "without": lambda name, is_in=is_in, layer=layer: is_in(name) and block(name) == layer,
                "up_to": lambda name, is_in=is_in, layer=layer: not (is_in(name) and block(name) <= layer),
                "from": lambda name, is_in=is_in, layer=layer: not (is_in(name) and block(name) >= layer),
            }
            for mode, is_off in off.items():
                expected = predicted(zeroed(loaded, is_off), prompts)
                np.testing.assert_allclose(rows(frame, group, mode, layer), expected, atol=1e-3, rtol=2e-4)
                spread.append(expected)
    assert len(frame) == 2 * (2 + 3 * 3 * 3)
    assert np.abs(np.diff(spread, axis=0)).max(axis=(1, 2)).min() > 1e-3  # they differ, so equality says something


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_all_off_is_the_base_and_none_off_is_the_tuned_model(tuned, asked, family):
    loaded = tuned(family)
    prompts = asked(loaded)
    frame = switch_off_language(loaded, prompts)
    base, on = (predicted(loaded, prompts, variant) for variant in ("base", "tuned"))
    assert np.abs(base - on).max() > 1e-2
    np.testing.assert_allclose(rows(frame, "all", "base", 0), base, atol=5e-4)
    np.testing.assert_allclose(rows(frame, "all", "tuned", 0), on, atol=5e-4)
    np.testing.assert_array_equal(rows(frame, "all", "up_to", 3), rows(frame, "all", "tuned", 0))
    np.testing.assert_array_equal(rows(frame, "all", "from", 1), rows(frame, "all", "tuned", 0))
    parts = adapter_parts(loaded.model)
    with switched_off(parts):
        np.testing.assert_allclose(predicted(loaded, prompts), base, atol=1e-5)
    with switched_off([]):
        np.testing.assert_allclose(predicted(loaded, prompts), on, atol=1e-5)


def test_passes_share_what_comes_before_the_first_difference(tuned, asked, monkeypatch):
    loaded, begun = tuned("llama", ["q_proj"]), []

    class Watched(Recording):
        def resumed(self, layer):
            begun.append(layer)
            return super().resumed(layer)

    monkeypatch.setattr(switch_off, "Recording", Watched)
    switch_off_language(loaded, asked(loaded))
    # on in 2 and 3, in 1 and 3, in 1: as base or tuned model up to block 1; in 1 and 2, in 3: up to block 2
    assert sorted(begun) == [1, 1, 1, 2, 2]


def test_an_adapter_of_one_kind_or_of_some_layers_has_no_groups(tuned, asked):
    loaded = tuned("llama", ["q_proj"], layers_to_transform=[1])
    frame = switch_off_language(loaded, asked(loaded), modes=("without",))
    assert set(zip(frame["group"], frame["mode"], frame["layer"], strict=True)) == {
        ("all", "base", 0),
        ("all", "tuned", 0),
        ("all", "without", 2),
    }
    np.testing.assert_array_equal(rows(frame, "all", "without", 2), rows(frame, "all", "base", 0))


@pytest.mark.parametrize(("target", "layer"), [("embed_tokens", 0), ("lm_head", 4)])
def test_embedding_and_head_stand_before_and_behind_the_blocks(tuned, asked, target, layer):
    loaded = tuned("llama", ["q_proj", target])
    prompts = asked(loaded)
    assert [part.layer for part in adapter_parts(loaded.model)] == sorted([layer, 1, 2, 3])
    frame = switch_off_language(loaded, prompts)
    model = copy.deepcopy(loaded.model)
    for name, parameter in model.named_parameters():
        if target in name and ("lora_B" in name or "lora_embedding_B" in name):
            parameter.data.zero_()
    expected = predicted(replace(loaded, model=model), prompts)
    np.testing.assert_allclose(rows(frame, "all", "without", layer), expected, atol=1e-3, rtol=2e-4)
    assert np.abs(expected - rows(frame, "all", "tuned", 0)).max() > 1e-3


def test_scaling_is_restored_after_an_error_and_keeps_its_strength(tuned):
    parts = adapter_parts(tuned("llama").model)
    before = [dict(part.module.scaling) for part in parts]
    assert any(scale for scaling in before for scale in scaling.values())
    with pytest.raises(KeyError), switched_off(parts[1:3]):
        assert [set(part.module.scaling.values()) == {0.0} for part in parts[:4]] == [False, True, True, False]
        raise KeyError
    assert [dict(part.module.scaling) for part in parts] == before


def test_a_strength_holds_for_what_is_on(tuned, asked):
    loaded = replace(tuned("llama"), strength=0.5)
    prompts = asked(loaded)
    frame = switch_off_language(loaded, prompts, modes=("without",))
    np.testing.assert_allclose(rows(frame, "all", "tuned", 0), predicted(loaded, prompts), atol=5e-4)
    expected = predicted(zeroed(loaded, lambda name: block(name) == 2), prompts)
    np.testing.assert_allclose(rows(frame, "all", "without", 2), expected, atol=1e-3, rtol=2e-4)


def test_what_is_no_plain_lora_is_refused(tuned, asked, loud):
    prompts = asked(loud("llama"))
    with pytest.raises(ModelError, match="got a model without LoRA layers"):
        switch_off_language(loud("llama"), prompts)
    saved = tuned("llama", ["q_proj"], modules_to_save=["lm_head"])
    for name, parameter in saved.model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.5)
    with pytest.raises(ModelError, match="with all its LoRA layers off, expected plain LoRA"):
        switch_off_language(saved, prompts)


def test_progress_counts_items(tuned, asked):
    loaded, done = tuned("gpt2"), []
    prompts = asked(loaded)
    switch_off_language(loaded, prompts, token_budget=40, progress=done.append)
    assert sum(done) == len(prompts.items)
    assert len(done) > 1
