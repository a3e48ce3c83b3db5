from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from glotlift.errors import ModelError, RunError
from glotlift.explanation import self_test, tuned_lens
from glotlift.explanation.collect import explain
from glotlift.explanation.lens_summary import read_lens
from glotlift.explanation.subject import LensOptions, Subject
from glotlift.explanation.tuned_lens import (
    TunedLens,
    TunedLensTraining,
    fit_tuned_lens,
    load_tuned_lens,
    save_tuned_lens,
)
from glotlift.explanation.unembedding import normed

TEXTS = [
    f"{word} works well and looks {word} in our kitchen, day {k}."
    for k, word in enumerate(["fine", "good", "nice"] * 20)
]
SHORT = TunedLensTraining(n_positions=300, batch_size=32, n_steps=60, learning_rate=3e-3)


@pytest.fixture(scope="module")
def fitted(loud):
    return fit_tuned_lens(loud("llama"), TEXTS, training=SHORT)


def test_training_brings_every_layer_nearer_to_the_last_on_other_texts(fitted):
    lens, found = fitted
    assert found["layer"].tolist() == [0, 1, 2] and (found["n"] > 0).all()
    assert (found["kl_bits_tuned"] < 0.7 * found["kl_bits_plain"]).all()
    assert lens.weights.shape == (3, 32, 32) and lens.base_model == "tiny-llama"


def test_a_sample_of_the_unlikely_tokens_serves_too(loud, fitted):
    _, found = fit_tuned_lens(loud("llama"), TEXTS, training=replace(SHORT, n_sampled=100))
    assert (found["kl_bits_tuned"] < 0.8 * found["kl_bits_plain"]).all()
    assert not np.allclose(found["kl_bits_tuned"], fitted[1]["kl_bits_tuned"])


def test_a_model_that_is_read_wrongly_is_not_trained_on(loud, monkeypatch):
    monkeypatch.setattr(self_test, "normed", lambda model, states: 1.1 * normed(model, states))
    with pytest.raises(RunError, match="LlamaForCausalLM: got a last layer that deviates"):
        fit_tuned_lens(loud("llama"), TEXTS, training=SHORT)


def test_the_coarse_divergence_keeps_listed_tokens_and_adds_up_the_rest(loud):
    model, states = loud("gemma2").model, torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = tuned_lens._coarse(model, states, list(range(600)), []).exp()
        rest = list(range(3, 600))
        part = tuned_lens._coarse(model, states, [0, 1, 2], rest).exp()
    torch.testing.assert_close(part[:, :3], whole[:, :3])
    torch.testing.assert_close(part[:, 3], whole[:, 3:].sum(1))
    generator = torch.Generator().manual_seed(0)
    listed, drawn = tuned_lens._tokens(torch.tensor([[5, 2], [2, 9]]), 600, 50, generator)
    assert listed == [2, 5, 9] and len(drawn) == 50 and not set(listed) & set(drawn)
    assert tuned_lens._tokens(torch.tensor([[5, 2], [2, 9]]), 600, 600, generator) == (list(range(600)), [])


def test_the_same_seed_gives_the_same_lens_and_training_leaves_the_model_alone(loud, fitted):
    loaded = loud("llama")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    again, _ = fit_tuned_lens(loaded, TEXTS, training=SHORT)
    torch.testing.assert_close(again.weights, fitted[0].weights, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_the_folder_is_that_of_the_package_tuned_lens(loud, fitted, tmp_path):
    lens = fitted[0]
    save_tuned_lens(lens, tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert {
        "base_model_name_or_path": "tiny-llama",
        "d_model": 32,
        "num_hidden_layers": 3,
        "bias": True,
    }.items() <= about.items()
    # as tuned_lens.nn.lenses.TunedLens holds and applies them
    translators = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(3)])
    translators.load_state_dict(torch.load(tmp_path / "params.pt", weights_only=True))
    states = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    translated = load_tuned_lens(tmp_path, loud("llama")).translate(states)
    for layer, translator in enumerate(translators):
        expected = states[:, layer] + translator(states[:, layer])
        torch.testing.assert_close(translated[:, layer], expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(translated[:, 3], states[:, 3])


def test_a_lens_without_biases_is_read(loud, fitted, tmp_path):
    save_tuned_lens(fitted[0], tmp_path)
    content = torch.load(tmp_path / "params.pt", weights_only=True)
    torch.save({name: value for name, value in content.items() if "weight" in name}, tmp_path / "params.pt")
    assert (load_tuned_lens(tmp_path, loud("llama")).biases == 0).all()


def test_a_lens_that_does_not_fit_is_refused_in_one_sentence(loud, tmp_path):
    with pytest.raises(ModelError, match="cannot be read as a tuned lens"):
        load_tuned_lens(tmp_path, loud("llama"))
    save_tuned_lens(TunedLens(torch.zeros(2, 32, 32), torch.zeros(2, 32), "x"), tmp_path)
    with pytest.raises(ModelError, match="got a tuned lens of 2 layers, hidden size 32, expected 3 and 32"):
        load_tuned_lens(tmp_path, loud("llama"))
    (tmp_path / "params.pt").write_bytes(b"not a file of torch")
    with pytest.raises(ModelError, match="cannot be read as a tuned lens"):
        load_tuned_lens(tmp_path, loud("llama"))


def test_texts_without_tokens_are_refused(loud):
    with pytest.raises(ModelError, match="got 1 texts to train a tuned lens on"):
        fit_tuned_lens(loud("llama"), ["a whole sentence"], training=SHORT)


def test_a_tuned_lens_reads_beside_the_plain_one(loud, fitted, ask, words, tmp_path):
    loaded = loud("llama")
    save_tuned_lens(fitted[0], tmp_path / "translators")
    options = LensOptions(tuned_lens=str(tmp_path / "translators"))
    explain(Subject(loaded, ask(loaded), tmp_path, **words("en", "de"), lens=options), ["lens"])
    plain, tuned = read_lens(tmp_path), read_lens(tmp_path, lens="tuned_lens")
    assert list(tuned.columns) == list(plain.columns) and len(tuned) == len(plain)
    last = plain["layer"] == 3
    np.testing.assert_allclose(plain.loc[last, "entropy_bits"], tuned.loc[last, "entropy_bits"], rtol=1e-4)
    assert not np.allclose(plain.loc[~last, "entropy_bits"], tuned.loc[~last, "entropy_bits"], rtol=0.05)
