from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from scipy.stats import t as student

from glotlift.errors import ModelError, RunError
from glotlift.explanation import lens
from glotlift.explanation.lens import (
    MEASURES,
    SUMMARY_COLUMNS,
    TokenSets,
    coverage_metadata,
    lens_frame,
    measure,
    read_layers,
    summarise_lens,
    token_sets,
    unembed,
)
from glotlift.models.anatomy import base_model, final_norm
from glotlift.models.forward import run
from glotlift.models.labels import prefix_tokens
from glotlift.models.taps import block_outputs
from glotlift.runs import write_parquet

SETS = TokenSets((1, 5), (7,), (), (9, 10, 11), {})

ENDS = {
    "llama": lambda logits: logits,
    "gpt2": lambda logits: logits,
    "gemma2": lambda logits: 5.0 * torch.tanh(logits / 5.0),
    "gemma3": lambda logits: logits,
    "cohere": lambda logits: 0.25 * logits,
    "granite": lambda logits: logits / 4.0,
}


def plain_states(model, prompt: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of the last token, *shape* (layers + 1, hidden), and the model's own logits there."""
    states: list[torch.Tensor] = []
    with torch.inference_mode(), block_outputs(model, states, lambda hidden: hidden[0, -1]):
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    return torch.stack(states), logits


@pytest.mark.parametrize("family", ENDS)
def test_every_layer_is_norm_head_and_the_models_own_end(loud, ask, family):
    loaded = loud(family)
    prompt = ask(loaded, ("en",), 1)["en"].rows[0].prompt
    states, own = plain_states(loaded.model, prompt)
    head = base_model(loaded.model).get_output_embeddings()
    with torch.inference_mode():
        expected = ENDS[family](head(final_norm(loaded.model)(states)))
        hidden = loaded.model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
    logits = unembed(loaded.model, states)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[-1], own, atol=1e-4, rtol=1e-4)
    for layer, of_library in enumerate(hidden[:-1]):  # the library's last one is behind the norm
        torch.testing.assert_close(states[layer], of_library[0, -1])


@pytest.mark.parametrize("family", [*ENDS, "minicpm3", "qwen3", "gpt_neox", "mistral"])
def test_the_last_layer_is_the_models_own_distribution(loud, ask, family):
    loaded = loud(family)
    prompts = ask(loaded)["de"]
    for batch in run(loaded.model, prompts.rows, token_budget=2048, last_states=True):
        values, top = read_layers(loaded.model, batch.last_states, batch.logits[batch.prompt_end], SETS)
        for k, index in enumerate(batch.rows):
            own = plain_states(loaded.model, prompts.rows[index].prompt)[1].double().softmax(-1).numpy()
            masses = [own[list(tokens)].sum() for tokens in SETS.by_name.values()]
            np.testing.assert_allclose(values[k, -1], [*masses, entropy(own, base=2)], rtol=1e-3, atol=1e-6)
            assert top[k, -1] == own.argmax()


def test_a_model_that_the_lens_cannot_read_is_refused(loud, ask):
    loaded = loud("llama")
    states, own = plain_states(loaded.model, ask(loaded, ("en",), 1)["en"].rows[0].prompt)
    read_layers(loaded.model, states[None], own[None], SETS)
    with pytest.raises(RunError, match="deviates from the model's own logits by 0.0"):
        read_layers(loaded.model, states[None], own[None] + 0.01, SETS)
    with pytest.raises(ModelError, match="not finite"):
        read_layers(loaded.model, states[None], own[None] * float("nan"), SETS)


def test_half_precision_is_allowed_its_rounding_only(loud, ask):
    import copy

    loaded = loud("llama")
    model = copy.deepcopy(loaded.model).bfloat16()
    states, own = plain_states(model, ask(loaded, ("en",), 1)["en"].rows[0].prompt)
    rounded = own.float().abs().max() * torch.finfo(torch.bfloat16).eps
    read_layers(model, states[None].float(), own[None].float() + rounded, SETS)
    with pytest.raises(RunError):
        read_layers(model, states[None].float(), own[None].float() + 4 * rounded, SETS)


def test_chunks_do_not_change_the_numbers(loud, ask):
    loaded = loud("gemma2")
    batch = next(run(loaded.model, ask(loaded, limit=4)["en"].rows, token_budget=9999, last_states=True))
    assert len(batch.rows) == 4
    whole, parts = (
        read_layers(loaded.model, batch.last_states, batch.logits[batch.prompt_end], SETS, logits_budget=budget)
        for budget in (10**9, 1)
    )
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(whole[1], parts[1])
    assert whole[0].shape == (4, 4, len(MEASURES))


def test_no_more_logits_are_held_than_the_budget_allows(loud, ask, monkeypatch):
    loaded = loud("llama")
    batch = next(run(loaded.model, ask(loaded, limit=4)["en"].rows, token_budget=9999, last_states=True))
    held: list[int] = []

    def counted(model, states):
        logits = unembed(model, states)
        held.append(logits.numel())
        return logits

    monkeypatch.setattr(lens, "unembed", counted)
    budget = 2 * 4 * 600  # items x states x vocabulary
    read_layers(loaded.model, batch.last_states, batch.logits[batch.prompt_end], SETS, logits_budget=budget)
    assert held == [budget, budget]


def test_measures_agree_with_scipy():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 4
    probabilities = logits.double().softmax(-1).numpy()
    values = measure(logits.clone(), SETS).numpy()
    for column, tokens in enumerate(SETS.by_name.values()):
        np.testing.assert_allclose(values[:, column], probabilities[:, list(tokens)].sum(1), rtol=1e-5)
    np.testing.assert_allclose(values[:, -1], entropy(probabilities, axis=1, base=2), rtol=1e-5)


def test_the_entropy_is_finite_where_probabilities_underflow():
    certain = torch.zeros(1, 50)
    certain[0, 5] = 3e4
    values = measure(torch.cat([certain, torch.full((1, 50), -3e4)]), SETS)
    np.testing.assert_allclose(values[:, -1], [0.0, np.log2(50)], atol=1e-5)
    assert values[0, 0] == 1.0


def pieces(tokenizer, sets: TokenSets) -> dict[str, set[str]]:
    return {name: set(tokenizer.convert_ids_to_tokens(list(tokens))) for name, tokens in sets.by_name.items()}


def test_token_sets_are_disjoint_and_lose_no_token(sentencepiece_style):
    english, own = {"good": "apple", "bad": "beer"}, {"good": "apfel", "bad": "bad"}
    sets = token_sets(sentencepiece_style, english, own)
    found = pieces(sentencepiece_style, sets)
    assert "a" in found["shared"] and "b" in found["shared"]
    assert found["ambiguous"] == set()
    whole = [prefix_tokens(sentencepiece_style, word) for word in (*english.values(), *own.values())]
    listed = [token for tokens in sets.by_name.values() for token in tokens]
    assert len(listed) == len(set(listed)) and set(listed) == frozenset().union(*whole)
    assert set(sets.english) <= whole[0] | whole[1] and set(sets.own) <= whole[2] | whole[3]


def test_tokens_of_two_labels_are_ambiguous_across_languages_too(sentencepiece_style):
    sets = token_sets(sentencepiece_style, {"good": "nice", "bad": "ill"}, {"good": "gut", "bad": "nein"})
    found = pieces(sentencepiece_style, sets)
    assert "n" in found["ambiguous"]
    assert "n" not in found["english"] | found["own"] | found["shared"]
    assert "g" in found["own"] and "i" in found["english"]
    both = token_sets(sentencepiece_style, {"good": "nice", "bad": "ill"}, {"good": "neat", "bad": "nil"})
    assert "n" in pieces(sentencepiece_style, both)["ambiguous"]
    assert "n" not in pieces(sentencepiece_style, both)["shared"]
    thai = token_sets(sentencepiece_style, {"good": "nice", "bad": "ill"}, {"good": "บวก", "bad": "ลบ"})
    assert "<0xE0>" in pieces(sentencepiece_style, thai)["ambiguous"]


def test_in_english_all_is_english(sentencepiece_style):
    same = {"good": "nice", "bad": "ill"}
    sets = token_sets(sentencepiece_style, same, dict(same))
    assert sets.english and not sets.own and not sets.shared


def test_coverage_counts_each_set_and_label(sentencepiece_style):
    sets = token_sets(sentencepiece_style, {"good": "nice", "bad": "ill"}, {"good": "gut", "bad": "nein"})
    coverage = coverage_metadata(sentencepiece_style, sets)
    assert coverage["n_tokens"] == {name: len(tokens) for name, tokens in sets.by_name.items()}
    assert sum(coverage["share"].values()) == pytest.approx(1)
    for label in ("good", "bad"):
        assert coverage["per_label"][label]["ambiguous"] >= 1  # `n` counts for both
    assert coverage["per_label"]["good"]["own"] + coverage["per_label"]["bad"]["own"] == len(sets.own)
    assert {len(found) for found in coverage["pieces"].values()} == {len(t) for t in sets.by_name.values()}


def test_a_frame_has_a_row_an_item_and_layer(sentencepiece_style):
    values = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    top = sentencepiece_style.convert_tokens_to_ids(["a", "b", "c", "d", "e", "f"])
    frame = lens_frame(["x", "y"], values, np.array(top).reshape(2, 3), sentencepiece_style)
    assert frame["id"].tolist() == ["x"] * 3 + ["y"] * 3
    assert frame["layer"].tolist() == [0, 1, 2, 0, 1, 2]
    assert frame["top_token"].tolist() == ["a", "b", "c", "d", "e", "f"]
    np.testing.assert_array_equal(frame[list(MEASURES)].to_numpy(), values.reshape(6, 5))


def write_lens(folder, language: str, entropies: list[list[float]]) -> None:
    """Write a lens file from entropies, an inner list an item."""
    values = np.zeros((len(entropies), len(entropies[0]), 5))
    values[..., -1] = entropies
    values[..., 0] = 0.99
    values[0, :, 0] = 0.5
    frame = pd.DataFrame(
        [(str(i), layer, *row, "x") for i, item in enumerate(values) for layer, row in enumerate(item)],
        columns=["id", "layer", *MEASURES, "top_token"],
    )
    sizes = {"english": 3, "own": 0, "shared": 1, "ambiguous": 2}
    about = {"variant": "base", "task": "t", "language": language, "coverage": {"n_tokens": sizes}}
    write_parquet(folder / "lens" / "base" / "t" / f"{language}.parquet", frame, about)


def test_the_summary_has_means_with_their_bands(tmp_path):
    write_lens(tmp_path, "de", [[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]])
    summary = summarise_lens(tmp_path)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    assert len(summary) == 2 * len(MEASURES)
    bits = summary[summary["measure"] == "entropy_bits"].set_index("layer")
    low, high = student.interval(0.95, 2, 3.0, np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    assert bits.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([3.0, max(low, 0), high])
    assert bits.loc[1, ["mean", "low", "high", "n"]].tolist() == [4.0, 4.0, 4.0, 3]
    english = summary[summary["measure"] == "english_mass"].iloc[0]
    assert english["high"] == 1.0 and english["n_tokens"] == 3  # a mass is at most 1
    assert set(summary.loc[summary["measure"] == "own_mass", "n_tokens"]) == {0}


def test_the_summary_of_one_item_has_no_band_and_of_no_file_no_rows(tmp_path):
    assert summarise_lens(tmp_path).empty
    write_lens(tmp_path, "de", [[1.0]])
    summary = summarise_lens(tmp_path)
    assert summary["low"].isna().all() and summary["mean"].notna().all()
