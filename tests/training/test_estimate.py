"""What training will take: counts are exact, the rest is in proportion."""

import pytest
import torch

from glotlift.data.questions import read_pairs
from glotlift.tasks.load import load_task
from glotlift.training.estimate import estimate
from glotlift.training.rows import tokenize_pairs
from glotlift.training.settings import TrainSettings

SETTINGS = {
    "method": "lora", "rank": 4, "target_modules": "all-linear", "quantization": "none", "batch_size": 4,
    "micro_batch_size": 2, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def estimated(tiny, tiny_folder):
    pairs = read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=6)
    rows = tokenize_pairs(tiny("llama").tokenizer, pairs, TrainSettings())

    def make(dtype=torch.float32, **changes):
        settings = TrainSettings(**{**SETTINGS, **changes})
        return estimate(str(tiny_folder), rows, len(rows) // 4, settings, dtype=dtype, device=torch.device("cpu"))

    return rows, make


def test_counts_are_those_of_model_and_rows(tiny, estimated):
    rows, make = estimated
    found = make()
    assert found.parameters == sum(p.numel() for p in tiny("llama").model.parameters())
    assert found.weights == 4 * found.parameters
    assert (found.steps, found.tokens) == (3, sum(len(row.input_ids) for row in rows))
    assert found.target_tokens == sum(row.n_targets for row in rows)
    assert found.seconds > 0
    # three blocks: q 32x32, k and v 16x32, o 32x32, three of 48x32; rank x (inputs + outputs), 16 bytes each
    assert found.optimizer == 16 * 4 * 3 * (64 + 48 + 48 + 64 + 3 * 80)


def test_what_costs_more_is_said_to_cost_more(estimated):
    _, make = estimated
    plain = make()
    assert make(method="full").operations > plain.operations
    assert make(method="full").optimizer == 16 * plain.parameters
    assert make(gradient_checkpointing=True).operations > plain.operations
    assert make(gradient_checkpointing=True).activations < plain.activations
    assert make(micro_batch_size=4).activations == 2 * plain.activations
    assert make(dtype=torch.bfloat16).weights == plain.weights / 2
    assert make(quantization="4bit").weights < plain.weights
    assert make(target_modules=["q_proj"]).optimizer == 16 * 4 * 3 * 64


def test_the_sentence_has_units(estimated):
    sentence = estimated[1]().sentence()
    assert sentence.startswith("3 steps, ")
    assert " s and 0.0 GB (0.0 weights, 0.0 activations, 0.0 optimizer)" in sentence
