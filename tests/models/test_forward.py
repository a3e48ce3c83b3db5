"""The cached, packed, batched pass against the plain Hugging Face forward."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from glotlift.data.read import read_items
from glotlift.errors import ModelError
from glotlift.evaluation.predict import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.anatomy import decoder_layers, final_norm
from glotlift.models.forward import run
from glotlift.models.packing import Row, plan_batches, shared_length
from glotlift.tasks.load import load_task
from tests.conftest import FAMILIES, SCALED


def _prompts(loaded, task="sentiment", language="en", answers="own", limit=7, num_fewshot=None):
    definition = load_task(task)
    if task == "sentiment":
        items = read_items(definition, "sample", (language,), limit=limit)[language]
    else:
        from glotlift.tasks.task import Item

        shown = definition.pack(language).demonstrations
        items = [Item(str(i), dict(d.fields), d.label) for i, d in enumerate(shown[:limit])]
    return prepare(
        loaded, definition, language, items, EvalTask(task=definition.name, answers=answers, num_fewshot=num_fewshot)
    )


def _scores(frame):
    return frame[[column for column in frame if column.startswith(("sequence_", "prefix_mass_"))]].to_numpy()


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
@pytest.mark.parametrize(("task", "language"), [("sentiment", "en"), ("nli", "th")])
def test_equals_plain_forward(tiny, family, task, language):
    loaded = tiny(family)
    prompts = _prompts(loaded, task, language, limit=4)
    cached = predict(loaded, prompts, "base", token_budget=200)
    plain = predict(loaded, prompts, "base", prefix_cache=False)
    assert list(cached["predicted"]) == list(plain["predicted"])
    np.testing.assert_allclose(_scores(cached), _scores(plain), atol=2e-4, rtol=2e-4)
    assert np.ptp(_scores(plain), axis=0).max() > 5e-3  # the model does tell items apart, so equality says something


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_batching_and_order_do_not_matter(tiny, family):
    loaded = tiny(family)
    prompts = _prompts(loaded, language="de")
    together = _scores(predict(loaded, prompts, "base", token_budget=100_000))
    alone = _scores(predict(loaded, prompts, "base", token_budget=1))
    np.testing.assert_allclose(together, alone, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "gpt_neox"])
def test_taps_equal_hidden_states(tiny, family):
    loaded = tiny(family)
    rows = _prompts(loaded).rows
    spans = [Row(row.prompt, row.trie, row.root, (3, len(row.prompt) - 1)) for row in rows]
    for batch in run(loaded.model, spans, token_budget=300, last_states=True, pooled_states=True):
        for k, index in enumerate(batch.rows):
            row = spans[index]
            with torch.inference_mode():
                out = loaded.model(torch.tensor([row.prompt]), output_hidden_states=True)
            states = torch.stack(out.hidden_states)[:, 0]  # (layers + 1, length, hidden); the last one is normed
            last, pooled = batch.last_states[k], batch.pooled_states[k]
            torch.testing.assert_close(last[:-1], states[:-1, -1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                pooled[:-1], states[:-1, row.span[0] : row.span[1]].mean(1), atol=1e-4, rtol=1e-4
            )
            with torch.inference_mode():
                torch.testing.assert_close(final_norm(loaded.model)(last[-1]), states[-1, -1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(batch.logits[batch.prompt_end[k]], out.logits[0, -1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("start", [0, 3, None])  # in front of, inside and behind the prefix that all rows share
def test_states_are_averaged_by_position(tiny, start):
    loaded = tiny("gemma3")
    rows = _prompts(loaded).rows
    start = rows[0].span[0] + 1 if start is None else start
    spans = [Row(row.prompt, row.trie, row.root, (start, len(row.prompt) - 1), by_position=True) for row in rows]
    for batch in run(loaded.model, spans, token_budget=300, pooled_states=True):
        for k, index in enumerate(batch.rows):
            row = spans[index]
            with torch.inference_mode():
                states = loaded.model(torch.tensor([row.prompt]), output_hidden_states=True).hidden_states
            of_span = torch.stack(states)[:-1, 0, row.span[0] : row.span[1]]
            weights = torch.arange(of_span.shape[1]) + 1.0
            expected = (of_span * weights[:, None]).sum(1) / weights.sum()
            torch.testing.assert_close(batch.pooled_states[k][:-1], expected, atol=1e-4, rtol=1e-4)


def test_boundary_merge_scores_the_merged_token(tiny):
    """A trie that continues before the end of the prompt is scored from there."""
    loaded = tiny("llama")
    prompts = _prompts(loaded, limit=3)
    for row in prompts.rows:
        early = Row(row.prompt, row.trie, len(row.prompt) - 2, row.span)
        batch = next(iter(run(loaded.model, [early])))
        for steps in row.trie.steps:
            tokens = [*row.prompt[: early.root], *(token for _, token in steps)]
            with torch.inference_mode():
                logits = loaded.model(torch.tensor([tokens])).logits[0]
            for depth, (node, _) in enumerate(steps):
                got = batch.logits[batch.nodes[0][node]]
                torch.testing.assert_close(got, logits[early.root - 1 + depth], atol=1e-3, rtol=1e-4)


def test_head_and_block_hooks_are_removed(tiny):
    loaded = tiny("gemma3")
    before = loaded.model(torch.tensor([[1, 5, 9]])).logits.shape
    list(run(loaded.model, _prompts(loaded, limit=2).rows, last_states=True))
    assert loaded.model(torch.tensor([[1, 5, 9]])).logits.shape == before == (1, 3, 600)


def test_shared_length_leaves_every_row_a_token():
    assert shared_length([Row((1, 2, 3)), Row((1, 2, 4, 5))]) == 2
    assert shared_length([Row((1, 2, 3)), Row((1, 2, 3))]) == 2
    assert shared_length([Row((1, 2)), Row((3, 4))]) == 0


def test_too_long_prompt_is_refused(tiny):
    loaded = tiny("gpt2")
    with pytest.raises(ModelError, match=r"1025 tokens, the model's window 1024"):
        list(run(loaded.model, [Row((5,) * 1025)]))


def test_unknown_layer_type_is_refused(tiny):
    config = tiny("llama").model.config
    config.layer_types = ["chunked_attention"] * 3
    try:
        with pytest.raises(ModelError, match="chunked_attention"):
            list(run(tiny("llama").model, [Row((5, 6, 7))]))
    finally:
        del config.layer_types


# --- memory


@contextmanager
def _memory_for(model, n_tokens, fault):
    """Let the model run out of memory with more tokens than that; yields how many it was given, call by call."""
    sizes = []

    def refuse(_module, _args, kwargs):
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > n_tokens:
            raise fault

    handle = model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


FAULTS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_batch_that_does_not_fit_is_halved_and_so_are_later_ones(tiny, fault, caplog):
    model, tokenizer = tiny("llama").model, tiny("llama").tokenizer
    texts = ["A" + " good day" * n for n in range(1, 20)]
    rows = [Row(tuple(tokenizer(text)["input_ids"])) for text in texts]
    expected = {i: b.logits[k] for b in run(model, rows) for i, k in zip(b.rows, b.prompt_end, strict=True)}
    with caplog.at_level("WARNING", "glotlift"), _memory_for(model, 150, fault) as sizes:
        batches = list(run(model, rows, token_budget=300))
    found = {i: b.logits[k] for b in batches for i, k in zip(b.rows, b.prompt_end, strict=True)}
    assert sorted(i for b in batches for i in b.rows) == list(range(len(rows)))
    refused = [position for position, size in enumerate(sizes) if size > 150]
    assert refused  # the budget was too large, and what followed a refusal was smaller
    assert all(sizes[position + 1] < sizes[position] for position in refused)
    assert sizes[-1] <= 150
    assert len(caplog.messages) == len(refused)
    for index, logits in expected.items():
        torch.testing.assert_close(found[index], logits, atol=1e-4, rtol=1e-4)
    assert "out of memory with" in caplog.text


@pytest.mark.parametrize("start", [(), (1, 5)], ids=["row", "prefix"])
def test_one_row_that_does_not_fit_is_refused(tiny, start):
    model = tiny("llama").model
    rows = [Row((*start, 7 + n, 8)) for n in range(4)]
    with _memory_for(model, 0, FAULTS["cuda"]), pytest.raises(ModelError, match="2 tokens does not fit in memory"):
        list(run(model, rows))


def test_other_faults_of_a_batch_are_not_taken_for_memory(tiny):
    rows = [Row((1, 5, 7 + n)) for n in range(4)]
    with _memory_for(tiny("llama").model, 0, RuntimeError("size mismatch")), pytest.raises(RuntimeError, match="size"):
        list(run(tiny("llama").model, rows))


def test_the_plan_depends_on_tokens_not_on_order():
    rows = [Row((1, *range(5, 6 + n % 7), 9 + n)) for n in range(40)]
    plan = [{rows[i].prompt for i in batch} for batch in plan_batches(rows, token_budget=30)]
    turned = list(reversed(rows))
    assert [{turned[i].prompt for i in batch} for batch in plan_batches(turned, token_budget=30)] == plan
    assert all(len(batch) <= 2 for batch in plan_batches(rows, batch_size=2))
    assert sorted(i for batch in plan_batches(rows, batch_size=2) for i in batch) == list(range(40))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("until", [1, 2])
def test_a_pass_that_ends_early_has_the_same_states(tiny, family, until):
    loaded = tiny(family)
    rows = _prompts(loaded).rows
    ran = []
    handles = [layer.register_forward_hook(lambda *_, n=n: ran.append(n))
               for n, layer in enumerate(decoder_layers(loaded.model), 1)]  # fmt: skip
    short = list(run(loaded.model, rows, last_states=True, pooled_states=True, until=until))
    for handle in handles:
        handle.remove()
    assert set(ran) == set(range(1, until + 1))
    whole = list(run(loaded.model, rows, last_states=True, pooled_states=True))
    for some, every in zip(short, whole, strict=True):
        assert some.rows == every.rows and not some.logits.numel()
        torch.testing.assert_close(some.last_states, every.last_states[:, : until + 1])
        torch.testing.assert_close(some.pooled_states, every.pooled_states[:, : until + 1])
