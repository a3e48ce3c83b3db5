"""Whole words, components and the paper's quantities, against plain loops over hidden states."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from glotlift.errors import ModelError, RunError
from glotlift.explanation import self_test as tested
from glotlift.explanation.collect import explain
from glotlift.explanation.components import COMPONENTS
from glotlift.explanation.lens_summary import read_lens
from glotlift.explanation.paper_lens import QUANTITIES, paper_frame, paper_sets, summarise_paper_lens
from glotlift.explanation.self_test import self_test
from glotlift.explanation.subject import LensOptions, Subject
from glotlift.explanation.unembedding import normed
from glotlift.models.anatomy import decoder_layers
from glotlift.models.head import head_logits
from glotlift.models.labels import released_tokens
from glotlift.runs import parquet_metadata
from tests.conftest import FAMILIES, SCALED
from tests.explanation.test_lens import plain


@pytest.fixture
def look(ask, words, tmp_path):
    """Return a function: model, what the lens reads -> prompts, and the folder."""

    def make(loaded, *, limit: int = 3, **options):
        prompts = ask(loaded, limit=limit)
        explain(Subject(loaded, prompts, tmp_path, **words("en", "de"), lens=LensOptions(**options)), ["lens"])
        return prompts, tmp_path

    return make


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_whole_word_is_the_product_over_its_tokens(loud, look, task, family):
    loaded = loud(family)
    prompts, folder = look(loaded, sequences=True)
    frame = read_lens(folder)
    words = {f"{whose}_sequence_{label}": word for whose, code in (("english", "en"), ("own", "de"))
             for label, word in task.answers(code, "own").items()}  # fmt: skip
    here, lengths = frame[frame["language"] == "de"], []
    for item, row, text in zip(prompts["de"].items, prompts["de"].rows, prompts["de"].texts, strict=False):
        wholes = {column: loaded.tokenizer(text + word)["input_ids"] for column, word in words.items()}
        starts = [len(os.path.commonprefix([list(row.prompt), whole])) for whole in wholes.values()]
        for column, whole in wholes.items():
            ends = range(min(starts), len(whole))
            lengths.append(len(ends))
            expected = np.sum([np.log(plain(loaded, whole[:end])[:, whole[end]]) for end in ends], 0)
            found = here.loc[here["id"] == item.id, column]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)
    assert max(lengths) > 1


def test_in_english_there_is_one_set_of_words(loud, look):
    _, folder = look(loud("llama"), sequences=True)
    english = read_lens(folder).query("language == 'en'")
    assert english["english_sequence_positive"].notna().all() and english["own_sequence_positive"].isna().all()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_components_are_what_attention_and_mlp_add(loud, look, family):
    loaded = loud(family)
    prompts, folder = look(loaded, components=True)
    frame = read_lens(folder, lens="components").query("language == 'de'")
    assert len(frame) == 3 * 3 * len(COMPONENTS)
    frame = frame.set_index(["id", "layer", "component"])
    for item, row in zip(prompts["de"].items, prompts["de"].rows, strict=True):
        before, added, behind = block_parts(loaded.model, row.prompt, family)
        for layer in range(3):
            middle = before[layer] + added[layer]
            for name, state in zip(COMPONENTS, (added[layer], middle, behind[layer] - middle), strict=True):
                with torch.inference_mode():
                    p = head_logits(loaded.model, normed(loaded.model, state[None]))[0].double().softmax(-1)
                found = frame.loc[(item.id, layer + 1, name)]
                assert found["entropy_bits"] == pytest.approx(-(p * p.log2()).nansum().item(), rel=2e-3, abs=1e-3)
                assert found["top_probabilities"][0] == pytest.approx(p.max().item(), rel=5e-3)


def block_parts(model, prompt, family) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Return the last token's state before every block, what attention adds to it, and the state behind."""
    before, added, behind, handles = [], [], [], []

    def given(_module, args, kwargs):
        before.append((args[0] if args else kwargs["hidden_states"])[0, -1])

    def keep(into):
        return lambda _module, _args, out: into.append((out[0] if isinstance(out, tuple) else out)[0, -1])

    for block in decoder_layers(model):
        attention = block.attn if family == "gpt2" else block.self_attn
        adds = block.post_attention_layernorm if family.startswith("gemma") else attention
        handles += [block.register_forward_pre_hook(given, with_kwargs=True)]
        handles += [adds.register_forward_hook(keep(added)), block.register_forward_hook(keep(behind))]
    with torch.inference_mode():
        model(input_ids=torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return before, added, behind


@pytest.mark.parametrize("family", ["gpt_neox", "cohere"])
def test_blocks_that_run_attention_and_mlp_side_by_side_have_no_components(loud, look, family):
    with pytest.raises(ModelError, match="expected one"):
        look(loud(family), components=True)


def test_the_papers_quantities_are_sums_over_its_sets(loud, look, task):
    loaded = loud("gemma2")
    prompts, folder = look(loaded, paper=True)
    english = read_lens(folder, lens="paper_lens").query("language == 'en'")
    words = task.answers("en", "own")
    sets = {label: released_tokens(loaded.tokenizer, word) for label, word in words.items()}
    everything = sorted(frozenset().union(*sets.values()))
    for k, item in enumerate(prompts["en"].items):
        p = plain(loaded, prompts["en"].rows[k].prompt)[1:]
        of_item = english[english["id"] == item.id]
        assert of_item["layer"].tolist() == [1, 2, 3]
        for name in ("latent", "out"):
            np.testing.assert_allclose(of_item[name], p[:, sorted(sets[item.gold])].sum(1), rtol=2e-3)
        np.testing.assert_allclose(of_item["all_out"], p[:, everything].sum(1), rtol=2e-3)
        np.testing.assert_allclose(of_item["entropy_bits"], -(p * np.log2(p)).sum(1), rtol=1e-3)
    german = folder / "paper_lens" / "base" / "sentiment" / "de.parquet"  # `positiv` begins as `positive` does
    assert (parquet_metadata(german)["n_kept"], parquet_metadata(german)["n_items"]) == (0, 3)
    summary = summarise_paper_lens(folder)
    row = summary.query("layer == 2 and quantity == 'latent' and language == 'en'").iloc[0]
    values = english.loc[english["layer"] == 2, "latent"]
    half = 1.96 * values.std() / np.sqrt(3)
    assert [row["mean"], row["low"], row["high"]] == pytest.approx(
        [values.mean(), values.mean() - half, values.mean() + half]
    )
    assert (row["n"], row["n_items"]) == (3, 3)
    assert set(summary["quantity"]) == set(QUANTITIES)


def test_an_item_is_left_out_where_its_own_two_sets_share_a_token(sentencepiece_style):
    english, own = {"good": "nice", "bad": "ill"}, {"good": "gut", "bad": "ib"}
    sets = paper_sets(sentencepiece_style, english, own)
    logs = np.log(np.full((3, 2, len(sets.tokens)), 0.01))
    frame = paper_frame(["a", "b", "c"], ["good", "bad", "good"], logs, sets.tokens, np.ones((3, 2)), sets, "xx")
    assert frame["id"].tolist() == ["a", "c"]
    np.testing.assert_allclose(frame["out"], 0.01 * len(sets.out["good"]))
    np.testing.assert_allclose(frame["all_latent"], 0.01 * len(sets.latent["good"] | sets.latent["bad"]))


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_models_that_can_be_read_pass(loud, family):
    self_test(loud(family), "base")


def test_a_model_that_is_read_wrongly_is_refused(loud, monkeypatch):
    loaded = loud("llama")
    with monkeypatch.context() as patch:
        patch.setattr(tested, "normed", lambda model, states: 1.1 * normed(model, states))
        with pytest.raises(RunError, match="LlamaForCausalLM: got a last layer that deviates"):
            self_test(loaded, "base")
    run = tested.run

    def moved(*arguments, **options):
        for batch in run(*arguments, **options):
            batch.last_states.mul_(1.01)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(tested, "run", moved)
        with pytest.raises(RunError, match="change by a share of 0.01 when a longer text is in the batch"):
            self_test(loaded, "base")
    with monkeypatch.context() as patch:
        patch.setattr(tested, "head_logits", lambda *_: {}["missing"])
        with pytest.raises(ModelError, match="LlamaForCausalLM: cannot be looked into \\('missing'\\), expected"):
            self_test(loaded, "base")


def test_a_model_that_gives_nan_is_refused(loud):
    import copy
    from dataclasses import replace

    loaded = replace(loud("llama"), model=copy.deepcopy(loud("llama").model))
    decoder_layers(loaded.model)[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        self_test(loaded, "base")
