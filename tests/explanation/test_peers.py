"""Lens, tuned lens and patching against nnsight and tuned-lens themselves, on the same tiny random models.

nnsight's side is written as its documentation has it (docs/patterns/logit-lens.md, activation-patching.md of 0.8).
"""

from __future__ import annotations

import logging
from operator import attrgetter

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from glotlift.explanation.collect import explain
from glotlift.explanation.lens import MASSES
from glotlift.explanation.lens_summary import read_lens
from glotlift.explanation.patching import hold, patch_language
from glotlift.explanation.subject import Subject
from glotlift.explanation.token_sets import token_sets
from glotlift.explanation.tuned_lens import TunedLens, load_tuned_lens, save_tuned_lens
from glotlift.explanation.unembedding import distributions
from glotlift.models.forward import run
from tests.conftest import FAMILIES
from tests.explanation.test_patching import LAYERS, cell, scores_of

pytestmark = pytest.mark.peers

BLOCKS_AND_NORM = {
    "gpt2": ("transformer.h", "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
}
"""Where nnsight finds them; in all other families `model.layers` and `model.norm`."""

READ_BY_TUNED_LENS = ("llama", "gpt2", "gpt_neox")
"""Families of ours that its `get_final_norm` knows."""

VOCABULARY = range(600)


@pytest.fixture
def wrapped():
    """Return a function: loaded model -> the model as nnsight has it.

    nnsight gives every object of the process a method, so it is not imported before a test needs it.
    """
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed: `make test-peers` has it")
    return lambda loaded: nnsight.TransformersModel(loaded.model, tokenizer=loaded.tokenizer, task="text-generation")


@pytest.fixture
def lenses():
    """Lenses of the package tuned-lens."""
    reason = "tuned-lens is not installed: `make test-peers` has it"
    return pytest.importorskip("tuned_lens.nn.lenses", reason=reason)


def blocks_and_norm(model, family):
    return (attrgetter(path)(model) for path in BLOCKS_AND_NORM.get(family, ("model.layers", "model.norm")))


def lens_by_nnsight(model, family, prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states and logits of every layer at the last token. *Shape:* (layers + 1, hidden), (layers + 1, 600)."""
    import nnsight

    blocks, norm = blocks_and_norm(model, family)
    cap = getattr(model.config, "final_logit_softcapping", None)
    with torch.no_grad(), model.trace(list(prompt)):
        states, logits = nnsight.save([]), nnsight.save([])
        for number in range(-1, len(blocks)):
            hidden = blocks[0].input if number < 0 else blocks[number].output
            read = model.lm_head(norm(hidden))
            states.append(hidden[0, -1])
            logits.append(read[0, -1] if cap is None else torch.tanh(read[0, -1] / cap) * cap)
        own = model.output.logits[0, -1].save()
    torch.testing.assert_close(logits[-1], own)  # the check of the wiring that its documentation asks for
    return torch.stack(list(states)), torch.stack(list(logits))


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_distributions_of_every_layer_are_those_of_nnsight(wrapped, loud, ask, family):
    loaded = loud(family)
    model = wrapped(loaded)
    for prompts in ask(loaded, ("en", "th")).values():
        for batch in run(loaded.model, prompts.rows, tokens=(), last_states=True):
            found = distributions(loaded.model, batch.last_states, VOCABULARY).log_probabilities
            for k, index in enumerate(batch.rows):
                states, logits = lens_by_nnsight(model, family, prompts.rows[index].prompt)
                torch.testing.assert_close(batch.last_states[k], states, atol=5e-4, rtol=5e-4)
                torch.testing.assert_close(found[k], logits.log_softmax(-1), atol=2e-3, rtol=5e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_files_of_the_lens_hold_what_nnsights_logits_give(wrapped, loud, ask, words, task, family, tmp_path):
    loaded = loud(family)
    model, prompts = wrapped(loaded), ask(loaded, ("en", "de"))
    explain(Subject(loaded, prompts, tmp_path, **words("en", "de")), ["lens"])
    frame = read_lens(tmp_path).set_index(["language", "id"]).sort_values("layer")
    for code, asked in prompts.items():
        sets = token_sets(loaded.tokenizer, task.answers("en", "own"), task.answers(code, "own"))
        for item, row in zip(asked.items, asked.rows, strict=True):
            ours = frame.loc[[(code, item.id)]]
            p = lens_by_nnsight(model, family, row.prompt)[1].double().softmax(-1).numpy()
            masses = np.stack([p[:, list(tokens)].sum(1) for tokens in sets.by_name.values()], 1)
            np.testing.assert_allclose(ours[list(MASSES)], masses, rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(ours["entropy_bits"], entropy(p, axis=1, base=2), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(ours["kl_bits"], entropy(p[-1:], p, axis=1, base=2), rtol=2e-3, atol=1e-3)
            np.testing.assert_allclose(np.stack(ours["top_probabilities"]), -np.sort(-p, 1)[:, :5], rtol=2e-3)


def patched_by_nnsight(model, family, english, row, layer, word) -> tuple[float, float]:
    """Return a word's log-probability with the English state of a layer at the prompt's last token, and without it.

    The word stands behind the prompt, so the place is counted from the end, where nnsight's padding does not reach.
    """
    blocks, _ = blocks_and_norm(model, family)
    asked, place = [*row.prompt[: row.root], *word], -len(word) - 1
    with torch.no_grad(), model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(list(english.prompt[: english.root])):
            clean = (blocks[0].input if layer == 0 else blocks[layer - 1].output)[:, -1]
            barrier()
        with tracer.invoke(asked):
            barrier()
            hidden = blocks[0].input if layer == 0 else blocks[layer - 1].output
            hidden[:, place] = clean
            patched = model.output.logits[0, place:-1].log_softmax(-1).save()
        with tracer.invoke(asked):
            unpatched = model.output.logits[0, place:-1].log_softmax(-1).save()
    return tuple(sum(each[k, token].item() for k, token in enumerate(word)) for each in (patched, unpatched))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_label_scores_behind_an_english_state_are_those_of_nnsight(wrapped, loud, ask, family):
    loaded = loud(family)
    model, prompts = wrapped(loaded), ask(loaded, ("en", "th"), 2)
    frame = patch_language(loaded, prompts["th"], hold(loaded, prompts["en"]), sites=("last",))
    english = {item.id: row for item, row in zip(prompts["en"].items, prompts["en"].rows, strict=True)}
    moved = 0.0
    for layer in range(LAYERS + 1):
        for source in ("same", "other"):
            ours = cell(frame, "last", source, layer)
            for k, row in enumerate(prompts["th"].rows):
                of_words = [[token for _, token in path] for path in row.trie.steps]
                given = english[ours["source_id"].iloc[k]]
                theirs = [patched_by_nnsight(model, family, given, row, layer, word) for word in of_words]
                patched, unpatched = np.transpose(theirs)
                np.testing.assert_allclose(scores_of(ours)[k], patched, atol=1e-3, rtol=5e-4)
                np.testing.assert_allclose(scores_of(ours, "unpatched")[k], unpatched, atol=1e-3, rtol=5e-4)
                moved = max(moved, np.abs(patched - unpatched).max())
    assert moved > 1e-2


# --- tuned-lens


def random_lens(seed: int) -> TunedLens:
    generator = torch.Generator().manual_seed(seed)
    weights, biases = (torch.randn(*shape, generator=generator) for shape in ((LAYERS, 32, 32), (LAYERS, 32)))
    return TunedLens(0.1 * weights, 0.3 * biases, "tiny")


def last_states(loaded, ask) -> torch.Tensor:
    """*Shape:* (items, layers + 1, hidden)."""
    batches = run(loaded.model, ask(loaded, ("de",))["de"].rows, tokens=(), last_states=True)
    return torch.cat([batch.last_states for batch in batches]).clone()


def assert_reads_alike(theirs, ours: TunedLens, loaded, states) -> None:
    """Check translated states and distributions, layer by layer; the last layer has no translator on either side."""
    translated = ours.translate(states)
    found = distributions(loaded.model, translated, VOCABULARY).log_probabilities
    plain = distributions(loaded.model, states, VOCABULARY).log_probabilities
    assert len(theirs) == LAYERS
    with torch.no_grad():
        for layer in range(LAYERS):
            torch.testing.assert_close(translated[:, layer], theirs.transform_hidden(states[:, layer], layer))
            expected = theirs(states[:, layer], layer).log_softmax(-1)
            torch.testing.assert_close(found[:, layer], expected, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(expected, plain[:, layer], atol=0.1)


@pytest.mark.parametrize("family", READ_BY_TUNED_LENS)
def test_the_plain_lens_is_tuned_lenss_logit_lens(lenses, loud, ask, family):
    loaded = loud(family)
    states, theirs = last_states(loaded, ask), lenses.LogitLens.from_model(loaded.model)
    found = distributions(loaded.model, states, VOCABULARY).log_probabilities
    for layer in range(LAYERS + 1):
        expected = theirs(states[:, layer], layer).log_softmax(-1)
        torch.testing.assert_close(found[:, layer], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", READ_BY_TUNED_LENS)
def test_tuned_lens_reads_what_is_saved_here(lenses, loud, ask, tmp_path, family):
    loaded, ours = loud(family), random_lens(1)
    save_tuned_lens(ours, tmp_path)
    theirs = lenses.TunedLens.from_model_and_pretrained(loaded.model, str(tmp_path))
    assert_reads_alike(theirs, ours, loaded, last_states(loaded, ask))


@pytest.mark.parametrize("family", READ_BY_TUNED_LENS)
def test_what_tuned_lens_saves_is_read_here(lenses, loud, ask, tmp_path, family):
    loaded, random = loud(family), random_lens(2)
    theirs = lenses.TunedLens.from_model(loaded.model)
    for translator, weight, offset in zip(theirs, random.weights, random.biases, strict=True):
        translator.weight.data.copy_(weight)
        translator.bias.data.copy_(offset)
    theirs.save(tmp_path)
    assert_reads_alike(theirs, load_tuned_lens(tmp_path, loaded), loaded, last_states(loaded, ask))


def test_both_warn_where_the_output_matrix_is_another(lenses, loud, tmp_path, caplog):
    """Each knows the other's digest of it."""
    of_llama, of_gpt2 = loud("llama"), loud("gpt2")
    lenses.TunedLens.from_model(of_llama.model).save(tmp_path / "theirs")
    save_tuned_lens(load_tuned_lens(tmp_path / "theirs", of_llama), tmp_path / "ours")
    caplog.set_level(logging.WARNING)
    lenses.TunedLens.from_model_and_pretrained(of_llama.model, str(tmp_path / "ours"))
    assert not caplog.messages
    lenses.TunedLens.from_model_and_pretrained(of_gpt2.model, str(tmp_path / "ours"))
    load_tuned_lens(tmp_path / "theirs", of_gpt2)
    assert [record.name for record in caplog.records] == ["root", "glotlift"]
    assert "hash does not match" in caplog.messages[0] and "another output matrix" in caplog.messages[1]
