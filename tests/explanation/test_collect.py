from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from scipy.stats import entropy

from glotlift.errors import ModelError, RunError
from glotlift.explanation import collect, lens_pass
from glotlift.explanation.collect import explain_languages
from glotlift.explanation.geometry import FRAMES, PooledStates
from glotlift.explanation.lens import MASSES, MEASURES
from glotlift.explanation.lens_summary import read_lens, summarise_lens
from glotlift.explanation.subject import LensOptions, Subject
from glotlift.models.anatomy import final_norm
from glotlift.models.readout import Readout
from glotlift.models.steering import Steering
from glotlift.models.taps import block_outputs
from glotlift.models.token_bytes import readable
from glotlift.runs import read_parquet


@pytest.fixture
def passes(monkeypatch):
    """Record for every pass how many rows it had."""
    seen: list[int] = []

    def counted(model, rows, **options):
        seen.append(len(rows))
        return run(model, rows, **options)

    run = collect.run
    monkeypatch.setattr(collect, "run", counted)
    return seen


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_item_and_layer_of_every_variant_is_written(adapted, ask, words, tmp_path):
    prompts = ask(adapted, ("en", "de", "th"), 7)
    done: list[int] = []
    explain_languages(adapted, prompts, tmp_path, **words("en", "de", "th"), progress=done.append)
    assert sum(done) == 2 * 3 * 7
    assert set(contents(tmp_path)) == {
        *(f"lens/{v}/sentiment/{c}.parquet" for v in ("base", "tuned") for c in ("en", "de", "th")),
        "lens/sentiment/pivot.parquet",
        *(f"geometry/sentiment/states/{v}/{c}.safetensors" for v in ("base", "tuned") for c in ("en", "de", "th")),
        *(f"geometry/sentiment/{name}.parquet" for name in FRAMES),
    }
    for code, questions in prompts.items():
        frame, metadata = read_parquet(tmp_path / "lens" / "tuned" / "sentiment" / f"{code}.parquet")
        assert frame["id"].tolist() == [item.id for item in questions.items for _ in range(4)]
        assert np.isfinite(frame[list(MEASURES)]).all(axis=None)
        assert (frame[list(MASSES)].sum(axis=1) <= 1 + 1e-5).all()
        assert (metadata["variant"], metadata["language"], metadata["task"]) == ("tuned", code, "sentiment")
    english, _ = read_parquet(tmp_path / "lens" / "base" / "sentiment" / "en.parquet")
    assert (english["english_mass"] > 0).any()
    assert (english[["own_mass", "shared_mass"]] == 0).all(axis=None)
    pca, _ = read_parquet(tmp_path / "geometry" / "sentiment" / "pca.parquet")
    assert len(pca) == 2 * 4 * 3 * 7
    correlation, _ = read_parquet(tmp_path / "geometry" / "sentiment" / "correlation.parquet")
    assert correlation["language"].unique().tolist() == ["de", "th"]
    assert correlation["p_permutation"].between(0, 1).all()
    assert len(summarise_lens(tmp_path)) == 2 * 3 * 4 * len(MEASURES)


def test_base_is_the_model_without_its_adapter(adapted, loud, ask, words, tmp_path):
    prompts = ask(adapted)
    explain_languages(adapted, prompts, tmp_path / "adapted", **words("en", "de"))
    explain_languages(loud("gemma2"), prompts, tmp_path / "plain", **words("en", "de"))
    plain, base, tuned = (
        read_parquet(tmp_path / of / "lens" / variant / "sentiment" / "de.parquet")[0]
        for of, variant in (("plain", "base"), ("adapted", "base"), ("adapted", "tuned"))
    )
    np.testing.assert_allclose(base["entropy_bits"], plain["entropy_bits"], rtol=1e-5)
    last = base["layer"] == 3
    assert not np.allclose(base.loc[last, "entropy_bits"], tuned.loc[last, "entropy_bits"], rtol=1e-3)
    first = base["layer"] == 0  # the adapter is on the blocks
    np.testing.assert_allclose(base.loc[first, "entropy_bits"], tuned.loc[first, "entropy_bits"], rtol=1e-5)


# one item is its own prefix, so it is pooled over cached tokens
@pytest.mark.parametrize(("family", "limit"), [("gemma3", 1), ("gemma3", 3), ("mistral", 4)])
def test_the_numbers_of_every_item_are_its_own(loud, ask, words, tmp_path, family, limit):
    loaded = loud(family)
    prompts = ask(loaded, limit=limit)
    explain_languages(loaded, prompts, tmp_path, **words("en", "de"), token_budget=400)
    kept = PooledStates(tmp_path / "geometry" / "sentiment" / "states" / "base" / "de.safetensors")
    assert kept.n_states == 4
    frame, _ = read_parquet(tmp_path / "lens" / "base" / "sentiment" / "de.parquet")
    for k, row in enumerate(prompts["de"].rows):
        start, end = row.span
        assert kept.metadata["lengths"][k] == end - start
        states: list[torch.Tensor] = []
        with torch.inference_mode(), block_outputs(loaded.model, states, lambda hidden: hidden[0]):
            loaded.model(input_ids=torch.tensor([row.prompt]))
        for layer in range(4):
            expected = states[layer][start:end].mean(0)
            np.testing.assert_allclose(kept.layer(layer)[k], expected, rtol=1e-3, atol=1e-4)
        with torch.inference_mode():
            last = final_norm(loaded.model)(torch.stack([state[-1] for state in states]))
            logits = loaded.model.get_output_embeddings()(last)
        of_item = frame.iloc[4 * k : 4 * k + 4]
        np.testing.assert_allclose(of_item["entropy_bits"], entropy(logits.softmax(-1), axis=1, base=2), rtol=1e-4)
        assert of_item["top_token"].tolist() == [readable(loaded.tokenizer, t) for t in logits.argmax(-1).tolist()]


def test_a_run_that_was_killed_goes_on(adapted, ask, words, tmp_path, passes, monkeypatch):
    prompts = ask(adapted, ("en", "de"))
    explain_languages(adapted, prompts, tmp_path / "whole", **words("en", "de"))
    passes.clear()

    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_geometry", killed)
        with pytest.raises(KeyboardInterrupt):
            explain_languages(adapted, prompts, tmp_path / "run", **words("en", "de"))
    assert len(passes) == 4
    (tmp_path / "run" / "lens" / "tuned" / "sentiment" / "de.parquet").unlink()
    explain_languages(adapted, prompts, tmp_path / "run", **words("en", "de"))
    assert len(passes) == 5
    done: list[int] = []
    explain_languages(adapted, prompts, tmp_path / "run", **words("en", "de"), progress=done.append)
    assert len(passes) == 5 and sum(done) == 2 * 2 * 3
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_other_weights_words_or_items_are_computed_anew(loud, ask, words, tmp_path, passes):
    loaded = loud("llama")
    given = words("en", "de")
    explain_languages(loaded, ask(loaded), tmp_path, **given)
    assert len(passes) == 2
    explain_languages(replace(loaded, fingerprint="other"), ask(loaded), tmp_path, **given)
    assert len(passes) == 4
    given["own_words"] = given["own_words"] | {"de": {"positive": "gut", "negative": "schlecht"}}
    explain_languages(replace(loaded, fingerprint="other"), ask(loaded), tmp_path, **given)
    assert len(passes) == 5
    explain_languages(replace(loaded, fingerprint="other"), ask(loaded, limit=2), tmp_path, **given)
    assert len(passes) == 7


def test_an_error_names_task_and_language(loud, ask, words, tmp_path, monkeypatch):
    loaded, read_layers = loud("llama"), lens_pass.read_layers

    def off(*arguments, **options):
        found = read_layers(*arguments, **options)
        return replace(found, log_probabilities=found.log_probabilities + 0.01)

    monkeypatch.setattr(lens_pass, "read_layers", off)
    with pytest.raises(RunError, match="task 'sentiment', de: logit lens of LlamaForCausalLM"):
        explain_languages(loaded, ask(loaded, ("de",), 1), tmp_path, **words("de"))
    assert contents(tmp_path) == {}


def test_a_readout_changes_nothing_inside_and_is_not_run(loud, ask, words, tmp_path, passes, caplog, monkeypatch):
    loaded = loud("llama")
    readout = Readout(2, ("positive", "negative"), torch.zeros(32), torch.zeros(32, 2))
    with_readout = replace(loaded, adapter_fingerprint="readout", readout=readout)
    monkeypatch.setattr(logging.getLogger("glotlift"), "propagate", True)
    with caplog.at_level(logging.INFO, "glotlift"):
        explain_languages(with_readout, ask(loaded), tmp_path, **words("en", "de"))
    assert len(passes) == 2 and set(read_lens(tmp_path)["variant"]) == {"base"}
    assert [line for line in caplog.messages if "a readout changes no state" in line]


def test_steering_is_seen_in_the_languages_that_have_an_offset(loud, ask, words, tmp_path):
    loaded = loud("llama")
    steering = Steering(1, 3, 1.0, {"de": torch.randn(32, generator=torch.Generator().manual_seed(1))}, "")
    steered = replace(loaded, adapter_fingerprint="steering", steering=steering)
    explain_languages(steered, ask(loaded), tmp_path, **words("en", "de"))
    frame = read_lens(tmp_path).set_index(["variant", "language", "id", "layer"])["entropy_bits"]
    changed = (frame["base"] - frame["tuned"]).abs().groupby(["language", "layer"]).max()
    assert (changed["en"] < 1e-4).all()
    assert (changed["de"] > 1e-3).tolist() == [False, True, True, True]


def test_lens_and_geometry_can_be_had_alone(loud, ask, words, tmp_path):
    loaded, given = loud("llama"), words("en", "de")
    both, lens, geometry = (tmp_path / name for name in ("both", "lens", "geometry"))
    explain_languages(loaded, ask(loaded), both, **given)
    for folder, kind in ((lens, "lens"), (geometry, "geometry")):
        subject = Subject(loaded, ask(loaded), folder, **given)
        collect.explain(subject, [kind])
    assert {**contents(lens), **contents(geometry)} == contents(both)
    assert {path.split("/")[0] for path in contents(lens)} == {"lens"}


def test_what_the_lens_is_asked_for_beside_is_added_without_changing_the_rest(loud, ask, words, tmp_path):
    loaded, given = loud("gemma2"), words("en", "de")
    explain_languages(loaded, ask(loaded), tmp_path, **given)
    before = read_lens(tmp_path)
    options = LensOptions(sequences=True, components=True, paper=True)
    explain_languages(loaded, ask(loaded), tmp_path, **given, lens=options)
    after = read_lens(tmp_path)
    pd.testing.assert_frame_equal(after[before.columns], before, rtol=1e-4, atol=1e-6)
    assert set(after.columns) - set(before.columns) == {
        f"{whose}_sequence_{label}" for whose in ("english", "own") for label in ("positive", "negative")
    }
    assert {path.parts[-4] for path in tmp_path.glob("*/*/*/*.parquet")} == {"lens", "components", "paper_lens"}


def test_states_are_written_in_half_the_bytes_for_the_same_geometry(loud, ask, words, tmp_path):
    loaded, given = loud("llama"), words("en", "de", "th")
    prompts, frames, files = ask(loaded, ("en", "de", "th"), 8), {}, {}
    for dtype in ("float32", "float16"):  # what is there is of the other type
        subject = Subject(loaded, prompts, tmp_path, **given, states_dtype=dtype)
        collect.explain(subject, ["geometry"], n_permutations=20)
        files[dtype] = tmp_path / "geometry" / "sentiment" / "states" / "base" / "de.safetensors"
        with safe_open(files[dtype], "pt") as file:
            assert file.get_tensor("states").dtype == getattr(torch, dtype)
        assert PooledStates(files[dtype]).layer(1).dtype == np.float64
        frames[dtype] = read_parquet(tmp_path / "geometry" / "sentiment" / "similarity.parquet")[0]
    whole, half = frames.values()
    assert not whole["value"].equals(half["value"])
    smooth = whole["measure"].isin(["cka", "pc1_r", "pc1_r_partial"])
    assert set(whole.loc[smooth, "measure"]) == {"cka", "pc1_r", "pc1_r_partial"}
    np.testing.assert_allclose(half.loc[smooth, "value"], whole.loc[smooth, "value"], atol=5e-3)


def test_states_too_large_for_half_are_refused(loud, ask, words, tmp_path):
    loaded = replace(loud("llama"), model=copy.deepcopy(loud("llama").model))
    loaded.model.get_input_embeddings().weight.data.mul_(1e9)
    subject = Subject(loaded, ask(loaded), tmp_path, **words("en", "de"), states_dtype="float16")
    expected = r"task 'sentiment', en: got a state of .*e\+\d\d, expected at most 65504 for states_dtype float16"
    with pytest.raises(ModelError, match=expected):
        collect.explain(subject, ["geometry"])
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("pooling", ["question", "position-weighted", "whole"])
def test_states_are_pooled_as_asked(loud, ask, words, tmp_path, pooling):
    loaded, given = loud("llama"), words("en", "de")
    collect.explain(Subject(loaded, ask(loaded), tmp_path, **given), ["geometry"])  # what is there is of another
    collect.explain(Subject(loaded, ask(loaded), tmp_path, **given, pooling=pooling), ["lens", "geometry"])
    kept = PooledStates(tmp_path / "geometry" / "sentiment" / "states" / "base" / "de.safetensors")
    for k, row in enumerate(ask(loaded)["de"].rows):
        start, end = (0, len(row.prompt)) if pooling == "whole" else row.span
        weights = torch.arange(1.0, end - start + 1) if pooling == "position-weighted" else torch.ones(end - start)
        with torch.inference_mode():
            embedded = loaded.model.get_input_embeddings()(torch.tensor(row.prompt[start:end]))
        expected = (weights[:, None] * embedded).sum(0) / weights.sum()
        np.testing.assert_allclose(kept.layer(0)[k], expected, rtol=1e-3, atol=1e-4)
        assert kept.lengths[k] == end - start
    assert kept.metadata["pooling"] == pooling
    for name in ("similarity", "probe"):
        assert read_parquet(tmp_path / "geometry" / "sentiment" / f"{name}.parquet")[1]["pooling"] == pooling
