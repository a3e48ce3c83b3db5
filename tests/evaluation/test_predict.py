"""Both scorings against brute force, and reuse by fingerprint."""

import dataclasses

import numpy as np
import pytest
import torch

from glotlift.data.read import read_items
from glotlift.errors import ModelError
from glotlift.evaluation.predict import predict, predict_to_file, prediction_fingerprint, prepare
from glotlift.models.labels import prefix_tokens
from glotlift.runs import read_parquet
from glotlift.tasks.load import load_task

OPTIONS = {"task_key": "sentiment", "answers": "own", "scoring": "sequence", "token_budget": 512, "prefix_cache": True}


def _prepare(loaded, language="de", limit=5, answers="own"):
    task = load_task("sentiment")
    return prepare(loaded, task, language, read_items(task, "sample", (language,), limit=limit)[language], answers)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
@pytest.mark.parametrize("language", ["en", "th"])
def test_scores_equal_brute_force(tiny, family, language):
    """Every label scored by a forward pass of its own over the whole string, in fp64 sums."""
    loaded = tiny(family)
    task = load_task("sentiment")
    prompts = _prepare(loaded, language)
    frame = predict(loaded, prompts, "base")
    for index, item in enumerate(prompts.items):
        text = task.prompt(language, "own", item.fields)
        ids = loaded.tokenizer(text)["input_ids"]
        with torch.inference_mode():
            following = loaded.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        for label, word in prompts.words.items():
            whole = loaded.tokenizer(text + word)["input_ids"]
            start = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
            with torch.inference_mode():
                logits = loaded.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected = sum(logits[i - 1, whole[i]].item() for i in range(start, len(whole)))
            assert frame.loc[index, f"sequence_{label}"] == pytest.approx(expected, abs=2e-4)
            mass = following[sorted(prefix_tokens(loaded.tokenizer, word))].sum().item()
            assert frame.loc[index, f"prefix_mass_{label}"] == pytest.approx(mass, abs=1e-5)


def test_scoring_decides_and_both_are_stored(tiny):
    loaded = tiny("qwen2")
    prompts = _prepare(loaded, limit=8)
    for scoring, prefix in (("sequence", "sequence"), ("prefix-mass", "prefix_mass")):
        frame = predict(loaded, prompts, "base", scoring=scoring)
        best = frame[[f"{prefix}_{label}" for label in prompts.labels]].to_numpy().argmax(1)
        assert [prompts.labels[i] for i in best] == list(frame["predicted"])


def test_ties_go_to_the_first_label_and_are_counted(tiny):
    """Equal prefix sets give equal mass."""
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=3)
    same = dataclasses.replace(prompts, prefix_sets=[prompts.prefix_sets[0]] * 2)
    frame = predict(loaded, same, "base", scoring="prefix-mass")
    assert list(frame["predicted"]) == ["positive"] * 3
    assert list(frame["tied"]) == [2, 2, 2]


def test_same_tokens_for_two_labels_are_refused(tiny):
    """Words that the vocabulary cannot write are both the unknown token to a tokenizer without byte fallback."""
    loaded = tiny("llama")
    task = load_task("sentiment").model_copy(update={"answer_sets": {"odd": {"positive": "good", "negative": "good"}}})
    items = read_items(task, "sample", ("en",), limit=1)["en"]
    with pytest.raises(ModelError, match="the same tokens"):
        prepare(loaded, task, "en", items, "odd")


def test_scores_that_are_not_finite_are_refused(tiny):
    loaded = tiny("gpt2")
    prompts = _prepare(loaded, limit=2)
    head = loaded.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: out * float("nan"))
    try:
        with pytest.raises(ModelError, match="not finite"):
            predict(loaded, prompts, "base")
    finally:
        handle.remove()


def test_file_is_used_again_only_with_the_same_fingerprint(tiny, tmp_path):
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=3)
    path = tmp_path / "de.parquet"
    assert predict_to_file(path, loaded, prompts, "base", **OPTIONS)
    first = path.read_bytes()
    assert not predict_to_file(path, loaded, prompts, "base", **OPTIONS)
    other = dataclasses.replace(loaded, fingerprint="other weights")
    assert predict_to_file(path, other, prompts, "base", **OPTIONS)
    assert predict_to_file(path, loaded, prompts, "base", **{**OPTIONS, "scoring": "prefix-mass"})
    assert predict_to_file(path, loaded, prompts, "base", **OPTIONS)
    assert path.read_bytes() == first
    frame, metadata = read_parquet(path)
    assert len(frame) == 3
    assert metadata["labels"] == ["positive", "negative"]
    assert np.isfinite(frame["sequence_positive"]).all()


def test_fingerprint_sees_prompt_words_variant_and_scoring(tiny):
    loaded = dataclasses.replace(tiny("llama"), adapter_fingerprint="adapter")
    seen = {
        prediction_fingerprint(loaded, _prepare(loaded, language, 2, answers), variant, scoring)
        for language in ("en", "de")
        for answers in ("own", "english", "arbitrary")
        for variant in ("base", "tuned")
        for scoring in ("sequence", "prefix-mass")
    }
    assert len(seen) == 20  # own and english words are the same in English prompts
