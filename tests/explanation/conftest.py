"""Questions of the bundled sample under tiny random models, and one with an adapter."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from glotlift.data.read import read_items
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.load import LoadedModel
from glotlift.tasks.load import load_task
from tests.conftest import SCALED


@pytest.fixture(scope="session")
def loud(tiny, byte_level):
    """Return a function: family -> `LoadedModel` where a cap, a scale or a norm too many shows in the logits."""

    def make(family: str) -> LoadedModel:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            if family in SCALED:
                model = AutoModelForCausalLM.from_config(SCALED[family]).eval()
                loaded = LoadedModel(f"tiny-{family}", model, byte_level, f"fingerprint-{family}")
            else:
                loaded = replace(tiny(family), model=copy.deepcopy(tiny(family).model))
            for name, parameter in loaded.model.named_parameters():
                if parameter.ndim == 1 and ("norm" in name or "ln_" in name):
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
        head = loaded.model.get_output_embeddings().weight
        head.data.mul_(0.6 / head.data.std())
        return loaded

    return cache(make)


@pytest.fixture
def adapted(loud):
    """A tiny random Gemma 2 with a random adapter: variants `base` and `tuned`."""
    loaded = loud("gemma2")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(copy.deepcopy(loaded.model), lora).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.5)
    return replace(loaded, model=model, adapter_fingerprint="adapter")


@pytest.fixture(scope="session")
def task():
    return load_task("sentiment")


@pytest.fixture(scope="session")
def ask(task):
    """Return a function: model, languages, number of items, answer words -> prompts a language."""

    def make(loaded: LoadedModel, languages: tuple[str, ...] = ("en", "de"), limit: int = 3, answers: str = "own"):
        items = read_items(task, "sample", languages, limit=limit)
        entry = EvalTask(task=task.name, answers=answers)
        return {code: prepare(loaded, task, code, rows, entry) for code, rows in items.items()}

    return make


@pytest.fixture(scope="session")
def words(task):
    """Return a function: languages -> keyword arguments of `explain_languages`."""

    def make(*languages: str):
        own = {code: task.answers(code, "own") for code in languages}
        return {"task_key": "sentiment", "english_words": task.answers("en", "own"), "own_words": own}

    return make
