from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from glotlift.errors import ModelError, RunError
from glotlift.explanation.lens import (
    MASSES,
    MEASURES,
    Readings,
    check_last_layer,
    joined,
    lens_frame,
    read_layers,
)
from glotlift.explanation.token_sets import TokenSets
from glotlift.models.forward import run
from glotlift.models.token_bytes import readable
from tests.explanation.test_unembedding import plain_states

SETS = TokenSets((1, 5), (7,), (), (9, 10, 11), (12,), {})


def plain(loaded, prompt) -> np.ndarray:
    """Return next-token distributions by the plain loop: every hidden state through norm and head. fp64."""
    from glotlift.models.anatomy import base_model, final_norm

    with torch.inference_mode():
        found = loaded.model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
        states = torch.stack([hidden[0, -1] for hidden in found.hidden_states])
        states[:-1] = final_norm(loaded.model)(states[:-1])  # the library's last one is behind the norm
        logits = base_model(loaded.model).get_output_embeddings()(states)
        if loaded.name == "tiny-gemma2":
            logits = 5.0 * torch.tanh(logits / 5.0)
    return logits.double().softmax(-1).numpy()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "qwen3", "gpt_neox", "mistral"])
def test_every_measure_is_that_of_the_plain_loop(loud, ask, family):
    loaded = loud(family)
    rows = ask(loaded, limit=4)["de"].rows
    for batch in run(loaded.model, rows, token_budget=2048, tokens=(), last_states=True):
        found = read_layers(loaded.model, batch.last_states, SETS, further=[3, 5])
        for k, index in enumerate(batch.rows):
            p = plain(loaded, rows[index].prompt)
            masses = np.stack([p[:, list(tokens)].sum(1) for tokens in SETS.by_name.values()], 1)
            of = dict(zip(MEASURES, found.measures[k].T, strict=True))
            np.testing.assert_allclose(found.measures[k, :, : len(MASSES)], masses, rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(of["entropy_bits"], entropy(p, axis=1, base=2), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(of["kl_bits"], entropy(p[-1:], p, axis=1, base=2), rtol=2e-3, atol=1e-3)
            best = p[:, [1, 5, 7, 9, 10, 11]].max(1)
            np.testing.assert_array_equal(of["label_rank"], 1 + (p > best[:, None] * (1 + 1e-5)).sum(1))
            np.testing.assert_array_equal(found.top_tokens[k, :, 0], p.argmax(1))
            np.testing.assert_allclose(found.top_probabilities[k], -np.sort(-p, 1)[:, :5], rtol=2e-3, atol=1e-6)
            asked = found.log_probabilities[k][:, [1, -2, -1]]
            np.testing.assert_allclose(np.exp(asked), p[:, [5, 3, 5]], rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma2", "minicpm3", "cohere", "granite", "gpt_neox"])
def test_the_last_layer_is_the_models_own_distribution(loud, ask, family):
    loaded = loud(family)
    prompt = ask(loaded, ("en",), 1)["en"].rows[0].prompt
    states, own = plain_states(loaded.model, prompt)
    found = read_layers(loaded.model, states[None], SETS)
    own = own.double().log_softmax(-1)[list(SETS.tokens)].numpy()
    np.testing.assert_allclose(found.log_probabilities[0, -1], own, atol=1e-3)
    check_last_layer(loaded.model, found.log_probabilities[0, -1], own)
    with pytest.raises(RunError, match="deviates from the model's own logits by 0.0"):
        check_last_layer(loaded.model, found.log_probabilities[0, -1] + 0.01, own)
    with pytest.raises(RunError, match="deviates from the model's own logits by nan"):
        check_last_layer(loaded.model, found.log_probabilities[0, -1] * np.nan, own)


def test_half_precision_is_allowed_its_rounding_only(loud):
    model = copy.deepcopy(loud("llama").model).bfloat16()
    own = np.array([20.0, -3.0])
    rounded = 20 * torch.finfo(torch.bfloat16).eps
    check_last_layer(model, own + rounded, own)
    with pytest.raises(RunError):
        check_last_layer(model, own + 4 * rounded, own)


def test_numbers_that_are_not_finite_are_refused(loud):
    states = torch.ones(1, 4, 32)
    states[0, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        read_layers(loud("llama").model, states, SETS)


def test_items_that_are_read_together_do_not_change_each_other(loud, ask):
    loaded = loud("gemma2")
    (batch,) = run(loaded.model, ask(loaded, limit=4)["en"].rows, token_budget=9999, tokens=(), last_states=True)
    whole, parts = (read_layers(loaded.model, batch.last_states, SETS, n_states=n_states) for n_states in (10**9, 1))
    np.testing.assert_allclose(whole.measures, parts.measures, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(whole.top_tokens, parts.top_tokens)
    assert whole.measures.shape == (4, 4, len(MEASURES))
    again = joined([whole.rows([2, 3]), whole.rows([0, 1])]).rows([2, 3, 0, 1])
    np.testing.assert_array_equal(again.measures, whole.measures)


def test_a_frame_has_a_row_an_item_and_layer(sentencepiece_style):
    n = len(MEASURES)
    values = np.arange(2 * 3 * n, dtype=np.float32).reshape(2, 3, n)
    tokens = sentencepiece_style.convert_tokens_to_ids(["a", "b", "c", "d", "e", "<0xE0>"])
    top = np.stack([np.array(tokens), np.roll(tokens, 1)], 1).reshape(2, 3, 2)
    readings = Readings(values, top, np.full((2, 3, 2), 0.25), np.empty((2, 3, 0)))
    words = {"own_sequence_good": -np.arange(6.0).reshape(2, 3)}
    frame = lens_frame(["x", "y"], readings, sentencepiece_style, words)
    assert frame["id"].tolist() == ["x"] * 3 + ["y"] * 3
    assert frame["layer"].tolist() == [0, 1, 2, 0, 1, 2]
    assert frame["top_token"].tolist() == ["a", "b", "c", "d", "e", "⟨E0⟩"]
    assert frame["top_tokens"].tolist()[1] == ["b", "a"]
    assert frame["own_sequence_good"].tolist() == [0, -1, -2, -3, -4, -5]
    np.testing.assert_array_equal(frame[list(MEASURES)].to_numpy(), values.reshape(6, n))
    assert readable(sentencepiece_style, tokens[0]) == "a"
