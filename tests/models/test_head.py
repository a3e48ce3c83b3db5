"""The head in tiles says what the whole head says."""

import pytest
import torch

from glotlift.models import head
from glotlift.models.anatomy import base_model
from glotlift.models.head import head_logits, head_scores, language_model_head
from glotlift.models.linear import fast_linear
from tests.conftest import FAMILIES


def _states(model, n=7):
    torch.manual_seed(1)
    return torch.randn(n, model.config.hidden_size)


@pytest.mark.parametrize("tile", [100, 2**20])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_all_logits(tiny, family, tile, monkeypatch):
    """Seven positions in tiles of 14 tokens, or in one; soft-cap (Gemma 2) and bias included."""
    model, tokens = tiny(family).model, [0, 13, 14, 599, 301]
    monkeypatch.setitem(head._TILE, "cpu", tile)
    states = _states(model)
    with torch.inference_mode(), fast_linear(model):
        logits = head_logits(model, states)
        normalizer, chosen = head_scores(model, states, tokens)
    assert logits.shape == (7, 600)
    torch.testing.assert_close(normalizer, logits.logsumexp(-1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(chosen, logits[:, tokens], atol=1e-4, rtol=1e-5)


def test_the_models_own_code_behind_the_head_runs(tiny, monkeypatch):
    model = tiny("gemma2").model
    monkeypatch.setitem(head._TILE, "cpu", 100)
    with torch.inference_mode():
        _, chosen = head_scores(model, 100 * _states(model), list(range(600)))
    assert chosen.abs().max() <= 5.0 < (100 * _states(model) @ model.lm_head.weight.T).abs().max()


def test_a_head_with_an_adapter_is_called_as_a_whole(tiny):
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    model = get_peft_model(deepcopy(tiny("llama").model), LoraConfig(r=2, target_modules=["lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    states = _states(base_model(model))
    with torch.inference_mode():
        normalizer, chosen = head_scores(model, states, [3, 4])
        logits = language_model_head(model)(states)
        assert not torch.allclose(logits, states @ language_model_head(model).weight.T)
    torch.testing.assert_close(normalizer, logits.logsumexp(-1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(chosen, logits[:, [3, 4]])
