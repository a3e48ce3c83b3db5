from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from glotlift.explanation import unembedding
from glotlift.explanation.unembedding import distributions, normed
from glotlift.models import head
from glotlift.models.anatomy import base_model, final_norm
from glotlift.models.head import head_logits, token_logits
from glotlift.models.taps import block_outputs

ENDS = {
    "llama": lambda logits: logits,
    "gpt2": lambda logits: logits,
    "gemma2": lambda logits: 5.0 * torch.tanh(logits / 5.0),
    "gemma3": lambda logits: logits,
    "cohere": lambda logits: 0.25 * logits,
    "granite": lambda logits: logits / 4.0,
}
OTHERS = ("minicpm3", "qwen3", "gpt_neox", "mistral")


def plain_states(model, prompt: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of the last token, *shape* (layers + 1, hidden), and the model's own logits there."""
    states: list[torch.Tensor] = []
    with torch.inference_mode(), block_outputs(model, states, lambda hidden: hidden[0, -1]):
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    return torch.stack(states), logits


@pytest.mark.parametrize("family", [*ENDS, *OTHERS])
def test_a_state_is_read_as_by_the_plain_loop_over_hidden_states(loud, ask, family):
    loaded = loud(family)
    prompt = ask(loaded, ("en",), 1)["en"].rows[0].prompt
    states, own = plain_states(loaded.model, prompt)
    with torch.inference_mode():
        hidden = loaded.model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        logits = head_logits(loaded.model, normed(loaded.model, states))
        if family in ENDS:
            matrix = base_model(loaded.model).get_output_embeddings()
            torch.testing.assert_close(
                logits, ENDS[family](matrix(final_norm(loaded.model)(states))), atol=1e-5, rtol=1e-5
            )
    torch.testing.assert_close(logits[-1], own, atol=1e-4, rtol=1e-4)
    for layer, of_library in enumerate(hidden[:-1]):  # the library's last one is behind the norm
        torch.testing.assert_close(states[layer], of_library[0, -1])


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize("tile", [2**20, 700])
def test_numbers_of_a_distribution_are_those_of_scipy(loud, ask, monkeypatch, family, tile):
    loaded = loud(family)
    monkeypatch.setitem(head._TILE, "cpu", tile)
    rows = ask(loaded, ("de",), 2)["de"].rows
    states = torch.stack([plain_states(loaded.model, row.prompt)[0] for row in rows])
    with torch.inference_mode():
        logits = head_logits(loaded.model, normed(loaded.model, states.flatten(0, 1))).double().unflatten(0, (2, 4))
    p = logits.softmax(-1).numpy()
    tokens = [7, 300, 599, 42]
    found = distributions(loaded.model, states, tokens, ranked=3)
    np.testing.assert_allclose(found.log_probabilities.exp(), p[..., tokens], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.entropy, entropy(p, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.divergence, entropy(p[:, -1:], p, axis=-1), rtol=1e-3, atol=1e-4)
    assert (found.divergence[:, -1] == 0).all()
    best = p[..., [7, 300, 599]].max(-1)
    np.testing.assert_array_equal(found.rank, 1 + (p > best[..., None] * (1 + 1e-6)).sum(-1))
    np.testing.assert_array_equal(found.top_tokens, np.argsort(-p, -1)[..., :5])
    np.testing.assert_allclose(found.top_probabilities, -np.sort(-p, -1)[..., :5], rtol=1e-3)


def test_the_most_likely_tokens_are_found_among_blocks_and_behind_them():
    tile = torch.randn(30, 64 * 40 + 17, generator=torch.Generator().manual_seed(2))
    tile[0, 64 * 40 + 3] = 9.0
    tile[1, 128:133] = torch.arange(5.0) + 20  # all in one block
    values, places = unembedding._most_likely(tile, 5)
    expected = tile.topk(5)
    torch.testing.assert_close(values, expected.values)
    torch.testing.assert_close(places, expected.indices)


def test_nothing_is_nan_where_probabilities_underflow(loud):
    model = loud("llama").model
    states = torch.zeros(1, 2, 32)
    states[0, 0, 0], states[0, 1, 3] = 1.0, -1.0
    matrix = base_model(model).get_output_embeddings().weight
    kept = matrix.data.clone()
    try:
        matrix.data.mul_(1e4)
        found = distributions(model, states, [3], ranked=1)
    finally:
        matrix.data.copy_(kept)
    assert all(torch.isfinite(values.double()).all() for values in vars(found).values())
    assert (found.entropy < 1e-3).all() and found.divergence[0, 0] > 1e3 and found.divergence[0, 1] == 0


def test_without_ranked_tokens_there_is_no_rank(loud, ask):
    loaded = loud("llama")
    states = plain_states(loaded.model, ask(loaded, ("en",), 1)["en"].rows[0].prompt)[0][None]
    assert distributions(loaded.model, states, [5], ranked=0).rank.isnan().all()
    assert distributions(loaded.model, states, []).log_probabilities.shape == (1, 4, 0)


def test_no_more_than_a_tile_of_logits_is_held(loud, ask, monkeypatch):
    loaded = loud("llama")
    states = plain_states(loaded.model, ask(loaded, ("en",), 1)["en"].rows[0].prompt)[0][None]
    monkeypatch.setitem(head._TILE, "cpu", 400)
    held: list[int] = []
    tiles = head.logit_tiles

    def counted(model, final):
        for start, tile in tiles(model, final):
            held.append(tile.numel())
            yield start, tile

    monkeypatch.setattr(unembedding, "logit_tiles", counted)
    distributions(loaded.model, states, [5])
    assert max(held) <= 400 and sum(held) == 4 * 600


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_logits_of_some_tokens_are_those_of_all(loud, family):
    model = loud(family).model
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(token_logits(model, states, [5, 1, 77]), head_logits(model, states)[:, [5, 1, 77]])
