"""Patches in the packed pass against a hook by hand on the plain forward of transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from glotlift.data.read import read_items
from glotlift.errors import DataError, ModelError
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.explanation.patching import hold, n_passes, patch_language
from glotlift.models.anatomy import decoder_layers
from glotlift.models.label_scores import label_scores
from glotlift.models.packing import Row, shared_length
from glotlift.models.patch import Patch
from glotlift.models.readout import Readout
from tests.conftest import FAMILIES

LAYERS = 3


def plain_scores(model, row: Row, layer: int | None = None, change=None) -> list[float]:
    """Return the words' log-probabilities by whole forwards, one a word; `change` alters the states of a layer."""

    def after(_module, _args, output):
        states = output[0] if isinstance(output, tuple) else output
        return (change(states), *output[1:]) if isinstance(output, tuple) else change(states)

    def before(_module, args, kwargs):
        return (change(args[0]), *args[1:]), kwargs

    layers = decoder_layers(model)
    handle = None
    if layer is not None:
        handle = (
            layers[0].register_forward_pre_hook(before, with_kwargs=True)
            if layer == 0
            else layers[layer - 1].register_forward_hook(after)
        )
    try:
        found = []
        for path in row.trie.steps:
            word = [token for _, token in path]
            with torch.inference_mode():
                logits = model(torch.tensor([[*row.prompt[: row.root], *word]])).logits[0].log_softmax(-1)
            found.append(sum(logits[row.root - 1 + k, token].item() for k, token in enumerate(word)))
        return found
    finally:
        if handle is not None:
            handle.remove()


def plain_states(model, row: Row) -> torch.Tensor:
    """Return all states of a prompt, before the final norm. *Shape:* (layers + 1, tokens, hidden)."""
    states = []
    handles = [layer.register_forward_pre_hook(lambda _m, args: states.append(args[0][0])) for layer in
               decoder_layers(model)]  # fmt: skip
    last = decoder_layers(model)[-1].register_forward_hook(
        lambda _m, _a, out: states.append((out[0] if isinstance(out, tuple) else out)[0])
    )
    try:
        with torch.inference_mode():
            model(torch.tensor([row.prompt[: row.root]]))
    finally:
        for handle in (*handles, last):
            handle.remove()
    return torch.stack(states)


def scores_of(frame: pd.DataFrame, name: str = "sequence") -> np.ndarray:
    return frame[[column for column in frame if column.startswith(f"{name}_")]].to_numpy()


def cell(frame: pd.DataFrame, site: str, source: str, layer: int) -> pd.DataFrame:
    return frame[(frame["site"] == site) & (frame["source"] == source) & (frame["layer"] == layer)]


@pytest.fixture(scope="module")
def asked(task):
    """Return a function: model, language, settings -> prompts."""

    def make(loaded, language="de", limit=3, **settings):
        items = read_items(task, "sample", (language,), limit=limit)[language]
        return prepare(loaded, task, language, items, EvalTask(task=task.name, **settings))

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", ["de", "th"])
def test_equals_a_hook_on_the_plain_forward(loud, asked, family, language):
    loaded = loud(family)
    english, prompts = asked(loaded, "en"), asked(loaded, language)
    frame = patch_language(loaded, prompts, hold(loaded, english), token_budget=400)
    of_id = {item.id: row for item, row in zip(english.items, english.rows, strict=True)}
    moved = 0.0
    for k, (item, row) in enumerate(zip(prompts.items, prompts.rows, strict=True)):
        own, end = plain_states(loaded.model, row), row.root - 1
        unpatched = plain_scores(loaded.model, row)
        for source in ("same", "other"):
            rows = cell(frame, "last", source, 0)
            assert rows["id"].iloc[k] == item.id
            donor = of_id[rows["source_id"].iloc[k]]
            given = plain_states(loaded.model, donor)

            def question_mean(states, row):
                return states[:, row.span[0] : row.root - 1].mean(1)

            shift = question_mean(given, donor) - question_mean(own, row)
            for layer in range(LAYERS + 1):

                def put_in(states, layer=layer, given=given, end=end):
                    states = states.clone()
                    states[0, end] = given[layer, -1]
                    return states

                expected = plain_scores(loaded.model, row, layer, put_in)
                got = cell(frame, "last", source, layer)
                np.testing.assert_allclose(scores_of(got)[k], expected, atol=5e-4, rtol=2e-4)
                np.testing.assert_allclose(scores_of(got, "unpatched")[k], unpatched, atol=5e-4, rtol=2e-4)
                moved = max(moved, np.abs(np.subtract(expected, unpatched)).max())
                if layer == LAYERS:
                    assert cell(frame, "question", source, layer).empty
                    continue

                def add(states, layer=layer, shift=shift, row=row, end=end):
                    states = states.clone()
                    states[0, row.span[0] : end] += shift[layer]
                    return states

                expected = plain_scores(loaded.model, row, layer, add)
                got = scores_of(cell(frame, "question", source, layer))[k]
                np.testing.assert_allclose(got, expected, atol=5e-4, rtol=2e-4)
                moved = max(moved, np.abs(np.subtract(expected, unpatched)).max())
    assert moved > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_an_items_own_states_change_nothing(loud, asked, family):
    loaded = loud(family)
    prompts = asked(loaded, "en")
    frame = patch_language(loaded, prompts, hold(loaded, prompts))
    same = frame[frame["source"] == "same"]
    np.testing.assert_allclose(scores_of(same), scores_of(same, "unpatched"), atol=5e-4, rtol=2e-4)
    other = frame[frame["source"] == "other"]
    assert np.abs(scores_of(other) - scores_of(other, "unpatched")).max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_last_layers_state_gives_the_english_scores_of_english_words(loud, asked, family):
    """One token a word: then nothing stands behind the state but the head."""
    loaded = loud(family)
    english, prompts = (asked(loaded, code, answers="english") for code in ("en", "th"))
    short = [cut_words(each) for each in (english, prompts)]
    held = hold(loaded, short[0])
    frame = patch_language(loaded, short[1], held, sites=("last",), layers=(LAYERS,))
    np.testing.assert_allclose(scores_of(cell(frame, "last", "same", LAYERS)), held.scores, atol=5e-4, rtol=2e-4)
    turned = [held.ids.index(name) for name in cell(frame, "last", "other", LAYERS)["source_id"]]
    np.testing.assert_allclose(
        scores_of(cell(frame, "last", "other", LAYERS)), held.scores[turned], atol=5e-4, rtol=2e-4
    )
    assert np.abs(scores_of(frame) - scores_of(frame, "unpatched")).max() > 1e-2


def cut_words(prompts):
    """Return prompts whose words are the first tokens of words."""
    rows = []
    for row in prompts.rows:
        first = {path[0][1]: (path[0],) for path in row.trie.steps}
        assert len(first) == len(row.trie.steps)
        trie = replace(row.trie, tokens=(-1,), parents=(-1,), steps=tuple(first.values()))
        rows.append(replace(row, trie=trie))
    return replace(prompts, rows=rows)


def test_batches_do_not_matter(loud, asked):
    loaded = loud("gemma3")
    prompts, held = asked(loaded, "de"), hold(loaded, asked(loaded, "en"))
    together = patch_language(loaded, prompts, held, token_budget=100_000)
    alone = patch_language(loaded, prompts, held, token_budget=1)
    np.testing.assert_allclose(scores_of(together), scores_of(alone), atol=5e-4, rtol=2e-4)


def test_where_a_word_takes_the_end_of_the_prompt_the_token_before_is_patched(loud, asked):
    loaded = loud("llama")
    prompts, held = asked(loaded, "de"), hold(loaded, asked(loaded, "en"))
    early = replace(prompts, rows=[replace(row, root=len(row.prompt) - 2) for row in prompts.rows])
    frame = patch_language(loaded, early, held, sites=("last",), layers=(1,))
    for k, row in enumerate(early.rows):

        def put_in(states, k=k, row=row):
            states = states.clone()
            states[0, row.root - 1] = held.last[k, 1]
            return states

        expected = plain_scores(loaded.model, row, 1, put_in)
        np.testing.assert_allclose(
            scores_of(cell(frame, "last", "same", 1))[k], expected, atol=5e-4, rtol=2e-4
        )  # fmt: skip


def test_the_other_item_is_never_the_same_and_alike_in_every_language(loud, asked):
    loaded = loud("gpt2")
    held = hold(loaded, asked(loaded, "en", limit=8))
    drawn = {}
    for code in ("de", "th"):
        frame = patch_language(loaded, asked(loaded, code, limit=8), held, sites=("last",), layers=(0,), seed=1)
        other = cell(frame, "last", "other", 0)
        assert (other["source_id"] != other["id"]).all()
        assert sorted(other["source_id"]) == sorted(held.ids)
        assert (cell(frame, "last", "same", 0)["source_id"] == cell(frame, "last", "same", 0)["id"]).all()
        drawn[code] = dict(zip(other["id"], other["source_id"], strict=True))
    assert drawn["de"] == drawn["th"]


def test_english_states_are_found_by_id(loud, asked):
    loaded = loud("gpt2")
    english, prompts = asked(loaded, "en", limit=4), asked(loaded, "de", limit=4)
    turned = replace(english, items=english.items[::-1], rows=english.rows[::-1])
    one, two = (patch_language(loaded, prompts, hold(loaded, each), layers=(2,)) for each in (english, turned))
    np.testing.assert_allclose(scores_of(one), scores_of(two), atol=1e-4)
    with pytest.raises(DataError, match="de: got item 's04' without an English version"):
        patch_language(loaded, prompts, hold(loaded, asked(loaded, "en", limit=3)))
    with pytest.raises(DataError, match="got 1 item to patch, expected at least 2"):
        patch_language(loaded, asked(loaded, "de", limit=1), hold(loaded, english))


def test_progress_counts_every_pass(loud, asked):
    loaded = loud("gpt2")
    prompts, held = asked(loaded, "de"), hold(loaded, asked(loaded, "en"))
    for options in ({}, {"sites": ("last",)}, {"layers": (1, 3), "sites": ("question",)}):
        done: list[int] = []
        patch_language(loaded, prompts, held, progress=done.append, **options)
        assert sum(done) == len(prompts.items) * n_passes(held, **options)


def test_layers_the_model_does_not_have_are_refused(loud, asked):
    loaded = loud("gpt2")
    prompts, held = asked(loaded, "de"), hold(loaded, asked(loaded, "en"))
    for layers in ((), (4,), (-1,)):
        with pytest.raises(ModelError, match="expected some from 0 to 3"):
            patch_language(loaded, prompts, held, layers=layers)


def test_a_readout_is_refused_as_tuned_variant(loud, asked):
    readout = Readout(1, ("positive", "negative"), torch.zeros(32), torch.zeros(32, 2))
    loaded = replace(loud("gpt2"), readout=readout, adapter_fingerprint="readout")
    hold(loaded, asked(loaded, "en"))
    with pytest.raises(ModelError, match="stands behind the model"):
        hold(loaded, asked(loaded, "en"), "tuned")


def test_the_tuned_variant_is_patched_with_its_own_states(adapted, asked):
    english, prompts = asked(adapted, "en"), asked(adapted, "de")
    held = {variant: hold(adapted, english, variant) for variant in adapted.variants}
    assert (held["base"].last - held["tuned"].last).abs().max() > 1e-2
    frame = patch_language(adapted, english, held["tuned"], "tuned")
    same = frame[frame["source"] == "same"]
    np.testing.assert_allclose(scores_of(same), scores_of(same, "unpatched"), atol=5e-4, rtol=2e-4)
    assert set(patch_language(adapted, prompts, held["tuned"], "tuned", layers=(1,))["variant"]) == {"tuned"}


def n_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_taken_off_after_an_error(loud, asked):
    loaded = loud("gpt2")
    (row, *_), before = asked(loaded, "de").rows, n_hooks(loaded.model)
    clean = label_scores(loaded.model, [row])
    for state in (torch.zeros(31), torch.zeros(32)):
        broken = replace(row, patches=(Patch(1, (1, 9999), state), Patch(0, (1, 2), state)))
        with pytest.raises((RuntimeError, IndexError)):
            label_scores(loaded.model, [broken])
        assert n_hooks(loaded.model) == before
    np.testing.assert_array_equal(label_scores(loaded.model, [row]), clean)


def test_patched_tokens_are_no_part_of_what_rows_share():
    rows = [Row((1, 2, 3, 4, 5)), Row((1, 2, 3, 4, 6))]
    assert shared_length(rows) == 4
    early, late = Patch(1, (1, 3), torch.zeros(2)), Patch(1, (4, 5), torch.zeros(2))
    assert shared_length([rows[0], replace(rows[1], patches=(late, early))]) == 1
    assert shared_length([replace(rows[0], patches=(late,)), rows[1]]) == 4
