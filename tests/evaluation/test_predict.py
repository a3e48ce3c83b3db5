"""Scorings against brute force, reuse by fingerprint, and what must not change a result."""

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from glotlift.data.read import read_items
from glotlift.errors import ModelError
from glotlift.evaluation import predict as predict_module
from glotlift.evaluation.journal import Journal, LabelScores
from glotlift.evaluation.pairing import text_digest
from glotlift.evaluation.predict import (
    predict,
    score_batches,
)
from glotlift.evaluation.prediction_file import PredictionFile, prediction_fingerprint
from glotlift.evaluation.prompts import CONTENT_FREE, prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.anatomy import decoder_layers
from glotlift.models.labels import prefix_tokens
from glotlift.models.packing import plan_batches
from glotlift.models.readout import Readout
from glotlift.runs import read_parquet, write_parquet
from glotlift.tasks.load import load_task


def _prepare(loaded, language="de", limit=5, answers="own", **options):
    task = load_task("sentiment")
    items = read_items(task, "sample", (language,), limit=limit)[language]
    return prepare(loaded, task, language, items, EvalTask(task=task.name, answers=answers, **options))


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


def test_the_released_rule_on_byte_level_bpe_by_hand(tiny):
    """Softmax of the last position, and the sum over the tokens that the released code counts."""
    loaded = tiny("qwen2")
    prompts = _prepare(loaded, "en", limit=6)
    task = load_task("sentiment")
    vocabulary = loaded.tokenizer.get_vocab()
    frame = predict(loaded, prompts, "base", scoring="prefix-mass-released")
    for index, item in enumerate(prompts.items):
        ids = loaded.tokenizer(task.prompt("en", "own", item.fields))["input_ids"]
        with torch.inference_mode():
            following = loaded.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        masses = []
        for word in prompts.words.values():
            prefixes = [word[:end] for end in range(1, len(word) + 1)]
            counted = {vocabulary[prefix] for prefix in prefixes if prefix in vocabulary}
            counted |= {loaded.tokenizer(prefix)["input_ids"][0] for prefix in prefixes}
            masses.append(sum(following[token].item() for token in counted))
        stored = [frame.loc[index, f"prefix_mass_released_{label}"] for label in prompts.labels]
        assert stored == pytest.approx(masses, abs=1e-6)
        assert frame.loc[index, "predicted"] == prompts.labels[int(np.argmax(masses))]
    columns = [[f"{name}_{label}" for label in prompts.labels] for name in ("prefix_mass", "prefix_mass_released")]
    assert (frame[columns[0]].to_numpy() >= frame[columns[1]].to_numpy()).all()
    assert (frame[columns[0]].to_numpy() > frame[columns[1]].to_numpy()).any()


def test_where_both_rules_count_the_same_tokens_one_is_stored(tiny):
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=4)
    assert prompts.released_sets == []
    as_released, as_described = (
        predict(loaded, prompts, "base", scoring=scoring) for scoring in ("prefix-mass-released", "prefix-mass")
    )
    assert not any("released" in column for column in as_released)
    assert as_released.equals(as_described)


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
        prepare(loaded, task, "en", items, EvalTask(task=task.name, answers="odd"))


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


def _file(path, loaded, prompts, variant="base", scoring="sequence", calibration="none", process=0):
    return PredictionFile(
        path,
        prompts,
        prediction_fingerprint(loaded.variant_fingerprint(variant), prompts),
        scoring=scoring,
        calibration=calibration,
        metadata={"task": "sentiment", "answers": "own"},
        process=process,
    )


def _to_file(path, loaded, prompts, variant="base", scoring="sequence", calibration="none", **options):
    """Write a prediction file; return whether anything had to be scored."""
    file = _file(path, loaded, prompts, variant, scoring, calibration)
    was_scored = file.is_scored
    file.score(partial(score_batches, loaded, prompts, variant, **{"batch_size": 3, **options}))
    file.finish()
    return not was_scored


def test_rows_that_somebody_else_has_to_see_run_again_and_no_others(tiny, tmp_path):
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=9)
    ran: list[list[int]] = []

    def batches(done, stop=None):
        for found in score_batches(loaded, prompts, "base", batch_size=3, done=done):
            if len(ran) == stop:
                raise KeyboardInterrupt
            ran.append(sorted(found))
            yield found

    whole, path = tmp_path / "whole.parquet", tmp_path / "de.parquet"
    _to_file(whole, loaded, prompts)
    with pytest.raises(KeyboardInterrupt):
        _file(path, loaded, prompts).score(partial(batches, stop=3), again=2)
    before = [batch for batch in ran]
    ran.clear()
    file = _file(path, loaded, prompts)
    file.score(batches, again=2)
    file.finish()
    seen = [batch for batch in before if batch in ran]
    assert seen == [batch for batch in before if min(batch) < 2] and 0 < len(seen) < len(before) < len(ran) + len(
        before
    )
    assert sorted(index for batch in ran for index in batch if index < 2) == [0, 1]
    assert path.read_bytes() == whole.read_bytes()


def test_file_is_used_again_only_with_the_same_fingerprint(tiny, tmp_path):
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=3)
    path = tmp_path / "de.parquet"
    assert _to_file(path, loaded, prompts)
    first = path.read_bytes()
    assert not _to_file(path, loaded, prompts)
    other = dataclasses.replace(loaded, fingerprint="other weights")
    assert _to_file(path, other, prompts)
    assert _to_file(path, loaded, prompts)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["de.parquet"]
    frame, metadata = read_parquet(path)
    assert len(frame) == 3
    assert metadata["labels"] == ["positive", "negative"]
    assert len(metadata["content_free"]) == 3
    assert np.isfinite(frame["sequence_positive"]).all()


def test_a_file_says_what_its_items_are(tiny, tmp_path):
    prompts = _prepare(tiny("llama"), limit=3)
    path = tmp_path / "de.parquet"
    _to_file(path, tiny("llama"), prompts)
    frame, metadata = read_parquet(path)
    assert list(frame["text"]) == [item.fields["text"] for item in prompts.items]
    assert list(frame["text_digest"]) == [text_digest(item) for item in prompts.items]
    assert len(metadata["texts"]) == 16


def test_a_file_of_glotlift_0_1_is_kept_and_gets_the_texts_of_its_items(tiny, tmp_path):
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=3)
    path = tmp_path / "de.parquet"
    _to_file(path, loaded, prompts)
    whole = path.read_bytes()
    frame, metadata = read_parquet(path)
    del metadata["texts"]
    write_parquet(path, frame.drop(columns=["text", "text_digest"]), metadata)
    assert not _to_file(path, loaded, prompts)
    assert path.read_bytes() == whole


def test_a_damaged_file_is_scored_anew(tiny, tmp_path):
    loaded = tiny("llama")
    prompts = _prepare(loaded, limit=3)
    path = tmp_path / "de.parquet"
    _to_file(path, loaded, prompts)
    whole = path.read_bytes()
    for at in (5, len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        assert _to_file(path, loaded, prompts)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("scoring", ["prefix-mass", "prefix-mass-released", "first-token"])
@pytest.mark.parametrize("calibration", ["batch", "contextual"])
def test_another_decision_needs_no_model(tiny, tmp_path, scoring, calibration):
    loaded = tiny("qwen2")
    prompts = _prepare(loaded, limit=9)
    asked = tmp_path / "asked.parquet", tmp_path / "changed.parquet"
    assert _to_file(asked[0], loaded, prompts, scoring=scoring, calibration=calibration)
    assert _to_file(asked[1], loaded, prompts)
    assert not _to_file(asked[1], loaded, prompts, scoring=scoring, calibration=calibration)
    assert asked[0].read_bytes() == asked[1].read_bytes()


def test_fingerprint_sees_prompt_words_variant_and_demonstrations(tiny):
    loaded = dataclasses.replace(tiny("llama"), adapter_fingerprint="adapter")
    seen = {
        prediction_fingerprint(loaded.variant_fingerprint(variant), _prepare(loaded, language, 2, answers, **options))
        for language in ("en", "de")
        for answers in ("own", "english", "arbitrary")
        for variant in ("base", "tuned")
        for options in ({}, {"demo_seed": 3}, {"num_fewshot": 1}, {"closing_quote": True})
    }
    assert len(seen) == 40  # own and english words are the same in English prompts


# --- what must not change a result


def test_results_do_not_depend_on_batches_order_or_cache(tiny):
    """Decisions are the same, and scores to fp32's accuracy; with the same batches, to the last bit."""
    loaded = tiny("gemma3")
    prompts = _prepare(loaded, "de", 12)
    expected = predict(loaded, prompts, "base", token_budget=512)
    scores = [column for column in expected if "_" in column and column != "n_tokens"]
    for options in ({"token_budget": 1}, {"token_budget": 4096}, {"batch_size": 3}, {"prefix_cache": False}):
        found = predict(loaded, prompts, "base", **options)
        assert list(found["predicted"]) == list(expected["predicted"])
        np.testing.assert_allclose(found[scores], expected[scores], atol=1e-4)
    order = np.random.default_rng(0).permutation(12)
    shuffled = dataclasses.replace(
        prompts, items=[prompts.items[i] for i in order], rows=[prompts.rows[i] for i in order]
    )
    found = predict(loaded, shuffled, "base", token_budget=512)
    assert found.equals(expected.iloc[order].reset_index(drop=True))


@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_share_the_batches_and_give_the_same_bytes(tiny, tmp_path, n_processes):
    """Each process journals its share; the first writes the file when all have."""
    loaded = tiny("llama")
    prompts = _prepare(loaded, "de", 12)
    _to_file(tmp_path / "one.parquet", loaded, prompts)
    path = tmp_path / "several.parquet"
    files = [_file(path, loaded, prompts, process=process) for process in range(n_processes)]
    for process, file in reversed(list(enumerate(files))):
        share = {"process": process, "n_processes": n_processes}
        counted = []
        file.score(partial(score_batches, loaded, prompts, "base", batch_size=3, **share), counted.append)
        assert 0 < sum(counted) <= 12
    assert len(list(tmp_path.iterdir())) == 1 + n_processes
    files[0].finish()
    assert path.read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # no journal is left


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("n_done", [0, 1, 3])
def test_goes_on_behind_the_last_batch_with_the_same_bytes(tiny, tmp_path, monkeypatch, n_done):
    loaded = tiny("llama")
    prompts = _prepare(loaded, "de", 12)
    _to_file(tmp_path / "whole.parquet", loaded, prompts)
    path = tmp_path / "stopped.parquet"
    append, written = Journal.append, []

    def killed(journal, scores):
        if len(written) == n_done:
            raise _Killed
        append(journal, scores)
        written.extend([scores])

    monkeypatch.setattr(Journal, "append", killed)
    with pytest.raises(_Killed):
        _to_file(path, loaded, prompts)
    monkeypatch.undo()
    for journal in tmp_path.glob(".*.jsonl"):  # and the last line is torn
        journal.write_bytes(journal.read_bytes() + b'{"7": [[0.1')
    ran = []
    run = predict_module.run
    monkeypatch.setattr(
        predict_module,
        "run",
        lambda *args, batches, **options: ran.extend(batches) or run(*args, batches=batches, **options),
    )
    _to_file(path, loaded, prompts)
    n_batches = len(plan_batches([*prompts.rows, *prompts.content_free], batch_size=3))
    assert n_batches > 4
    assert len(ran) == n_batches - n_done
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_journal_of_another_model_is_not_read(tiny, tmp_path):
    path = tmp_path / "de.parquet"
    scores = LabelScores((-1.0, -2.0), (0.25, 0.5), (-0.5, -1 / 3))
    Journal(path, "one").append({4: scores})
    assert Journal(path, "one").read() == {4: scores}
    assert Journal(path, "two").read() == {}
    Journal(path, "two").append({1: scores})
    assert Journal(path, "two").read() == {1: scores}
    assert Journal(path, "one").read() == {}


# --- the other ways to ask


def test_first_token_is_the_first_step_of_the_word(tiny):
    loaded = tiny("qwen2")
    prompts = _prepare(loaded, "th", 3)
    frame = predict(loaded, prompts, "base", scoring="first-token")
    for index, row in enumerate(prompts.rows):
        with torch.inference_mode():
            following = loaded.model(torch.tensor([row.prompt[: row.root]])).logits[0, -1].log_softmax(-1)
        for label, path in zip(prompts.labels, row.trie.steps, strict=True):
            assert frame.loc[index, f"first_token_{label}"] == pytest.approx(following[path[0][1]].item(), abs=2e-4)


def test_closing_quote_is_scored_with_the_word(tiny):
    """What stops one word from being the beginning of another."""
    loaded = tiny("llama")
    task = load_task("sentiment").model_copy(update={"answer_sets": {"odd": {"positive": "good", "negative": "goods"}}})
    items = read_items(task, "sample", ("en",), limit=2)["en"]
    frame = predict(loaded, prepare(loaded, task, "en", items, EvalTask(task=task.name, answers="odd")), "base")
    assert set(frame["predicted"]) == {"positive"}  # a word is never less likely than a longer one it begins
    closed = predict(
        loaded, prepare(loaded, task, "en", items, EvalTask(task=task.name, answers="odd", closing_quote=True)), "base"
    )
    text = task.prompt("en", "odd", items[0].fields) + 'goods"'
    ids = loaded.tokenizer(text)["input_ids"]
    start = len(loaded.tokenizer(task.prompt("en", "odd", items[0].fields))["input_ids"])
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(logits[i - 1, ids[i]].item() for i in range(start, len(ids)))
    assert closed.loc[0, "sequence_negative"] == pytest.approx(expected, abs=2e-4)


TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


def test_chat_template_puts_the_cue_into_the_assistants_turn(tiny):
    plain = tiny("llama")
    tokenizer = copy.deepcopy(plain.tokenizer)
    tokenizer.chat_template = TEMPLATE
    loaded = dataclasses.replace(plain, tokenizer=tokenizer)
    prompts = _prepare(loaded, "de", 2, apply_chat_template=True)
    shown = load_task("sentiment").preamble("de", "own")
    item = prompts.items[0].fields["text"]
    assert prompts.texts[0] == f'<s><user>{shown}Rezension: {item}</user>\n<assistant>Bewertung: "'
    start, end = prompts.rows[0].span
    assert tokenizer.decode(prompts.rows[0].prompt[start:end]).startswith("Rezension: ")
    assert prompts.rows[0].prompt.count(tokenizer.bos_token_id) == 1
    assert len(predict(loaded, prompts, "base")) == 2
    with pytest.raises(ModelError, match="without a chat template"):
        _prepare(plain, "de", 2, apply_chat_template=True)


def test_content_free_inputs_are_not_items(tiny):
    loaded = tiny("llama")
    prompts = _prepare(loaded, "de", 2)
    assert [text.removeprefix(load_task("sentiment").preamble("de", "own")) for text in prompts.texts[2:]] == [
        f'Rezension: {text}\nBewertung: "' for text in CONTENT_FREE
    ]
    assert list(predict(loaded, prompts, "base")["id"]) == [item.id for item in prompts.items]


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_readout_adds_to_the_models_scores_or_stands_alone(tiny, own):
    """Alone, the blocks behind its layer do not run; scores are what the whole pass and its tap give."""
    base = tiny("gemma3")
    prompts = _prepare(base)
    torch.manual_seed(0)
    readout = Readout(1, ("positive", "negative"), torch.randn(32), torch.randn(32, 2), own)
    loaded = dataclasses.replace(base, readout=readout, adapter_fingerprint="readout")
    ran = []
    hook = decoder_layers(base.model)[-1].register_forward_hook(lambda *_: ran.append(True))
    tuned = predict(loaded, prompts, "tuned")
    assert bool(ran) == bool(own)
    hook.remove()
    plain = predict(loaded, prompts, "base")
    for index, row in enumerate(prompts.rows):
        with torch.inference_mode():
            states = base.model(torch.tensor([row.prompt]), output_hidden_states=True).hidden_states
        read = (states[1][0, -1] - readout.mean) @ readout.direction
        for position, label in enumerate(prompts.labels):
            expected = own * plain.loc[index, f"sequence_{label}"] + read[position].item()
            assert tuned.loc[index, f"sequence_{label}"] == pytest.approx(expected, abs=2e-4)
            mass = plain.loc[index, f"prefix_mass_{label}"] ** own * read[position].exp().item()
            assert tuned.loc[index, f"prefix_mass_{label}"] == pytest.approx(mass, rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_readout_without_weight_runs_nothing_where_the_bases_scores_are_known(tiny, weight):
    base = tiny("llama")
    prompts = _prepare(base)
    readout = Readout(1, ("positive", "negative"), torch.zeros(32), torch.full((32, 2), weight))
    loaded = dataclasses.replace(base, readout=readout, adapter_fingerprint="readout")
    known = {index: scores for batch in score_batches(base, prompts, "base") for index, scores in batch.items()}
    ran = []
    hook = decoder_layers(base.model)[0].register_forward_hook(lambda *_: ran.append(True))
    batches = list(score_batches(loaded, prompts, "tuned", of_base=known))
    hook.remove()
    found = {index: scores for batch in batches for index, scores in batch.items()}
    assert (found == known) == (not ran) == (weight == 0.0)
    assert found.keys() == known.keys()
