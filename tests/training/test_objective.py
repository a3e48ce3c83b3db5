"""The loss: target tokens only, whatever the micro-batch."""

import copy

import pytest
import torch

from glotlift.data.questions import read_pairs
from glotlift.errors import DataError
from glotlift.tasks.load import load_task
from glotlift.training.objective import IGNORED, Collator, target_loss, tokenize_pair


def _rows(loaded, n=6):
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=n // 2)
    return [tokenize_pair(loaded.tokenizer, pair, 1024) for pair in pairs]


def test_a_pair_is_read_up_to_the_target_and_the_target_is_learned_with_its_end(tiny):
    loaded = tiny("llama")
    pair = read_pairs(load_task("sentiment"), "sample", ("de",), limit=1)[0]
    row = tokenize_pair(loaded.tokenizer, pair, 1024)
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert learned[-1] == loaded.tokenizer.eos_token_id
    assert loaded.tokenizer.decode(learned[:-1]).strip() == pair.target.strip()
    n_read = len(row["input_ids"]) - len(learned)
    assert row["labels"] == [IGNORED] * n_read + learned
    assert row["input_ids"][0] == loaded.tokenizer.bos_token_id
    assert loaded.tokenizer.decode(row["input_ids"][1:n_read]) == pair.input


def test_too_long_pair_is_refused_by_name(tiny):
    pair = read_pairs(load_task("sentiment"), "sample", ("de",), limit=1)[0]
    with pytest.raises(DataError, match=r"'de:q001' has \d+ tokens, expected at most 9"):
        tokenize_pair(tiny("llama").tokenizer, pair, 9)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_loss_and_gradients_equal_the_models_own_in_fp64(tiny, family):
    loaded = tiny(family)
    model = copy.deepcopy(loaded.model).double().eval()
    batch = Collator(0)(_rows(loaded))
    own = model(**batch).loss
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # logits are compared in fp32 (the contract's softmax precision), hence the tolerance of the gradients
    ours = target_loss(model, batch)
    ours.backward()
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_loss_does_not_depend_on_the_micro_batch(tiny):
    loaded = tiny("gemma3")
    model = copy.deepcopy(loaded.model).double().eval()
    rows = _rows(loaded, 8)
    n_targets = sum(label != IGNORED for row in rows for label in row["labels"])
    collate = Collator(0)
    losses = [
        sum(target_loss(model, collate(rows[i : i + size]), n_targets).item() for i in range(0, len(rows), size))
        for size in (1, 3, 8)
    ]
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    unequal = sum(target_loss(model, collate(rows[i : i + 1])).item() for i in range(8)) / 8
    assert abs(unequal - losses[2]) > 1e-4  # a mean of means would differ on these rows
