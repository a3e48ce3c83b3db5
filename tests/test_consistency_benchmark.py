"""What `benchmarks/consistency.py` compares with: the plain way in few passes, and a fair share of the time."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from glotlift.evaluation.predict import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("consistency")


@pytest.mark.parametrize(("words", "passes"), [(("x", "y"), 1), (("x", "a strange longer word"), 2)])
def test_labels_of_one_token_take_one_pass_and_longer_ones_one_each(benchmark, tiny, tmp_path, words, passes):
    loaded = tiny("llama")
    pack = {"template": "{text}\nA: ", "answer_sets": {"own": dict(zip(("yes", "no"), words, strict=True))}}
    (tmp_path / "two.yaml").write_text(
        str({"name": "two", "fields": ["text"], "labels": ["yes", "no"], "languages": {"en": pack}})
    )
    items = [Item(str(n), {"text": "Is it? " * (n + 1)}, "yes") for n in range(3)]
    prompts = prepare(loaded, load_task(str(tmp_path / "two.yaml")), "en", items, EvalTask(task="two"))
    assert (max(len(path) for path in prompts.rows[0].trie.steps) == 1) == (passes == 1)
    ran = []
    handle = loaded.model.register_forward_pre_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        found = benchmark.label_log_probabilities(loaded.model, prompts.rows)
    handle.remove()
    assert len(ran) == passes
    expected = predict(loaded, prompts, "base")[["sequence_yes", "sequence_no"]].to_numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_step_has_its_share_of_the_teacher_that_ran_once(benchmark):
    plain = [{"seconds": [9.0, 2.0, 4.0, 3.0]}]
    ours = [{"seconds": [9.0, 1.0, 1.0, 1.0], "teacher": 8.0}]
    assert benchmark.seconds_a_step(plain, 3) == 3.0
    assert benchmark.seconds_a_step(ours, 3) == 1.0 + 8.0 / 4
