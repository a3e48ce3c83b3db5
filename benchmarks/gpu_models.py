"""Random models at real size with a tokenizer made in code, and what they are asked, for benchmarks/gpu.py.

Nothing is downloaded or read from a cache. Weights are drawn so that every layer keeps the size of its input: outputs
are then far from uniform, and a wrong mask or position shows in every score.
"""

from __future__ import annotations

from math import sqrt

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedTokenizerFast

from glotlift.data.questions import read_pairs
from glotlift.data.read import read_items
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.head import language_model_head
from glotlift.models.load import LoadedModel
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item
from glotlift.training.settings import TrainSettings

LANGUAGES = ("de", "zh")
SMALL, LARGE, WINDOWED = "llama-1b", "llama-7b", "gemma3-1b"

_GEMMA_LAYERS = {"layer_types": [("full" if k % 6 == 5 else "sliding") + "_attention" for k in range(26)]}
SHAPES = {
    SMALL: LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
    LARGE: LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096,
    ),
    WINDOWED: Gemma3TextConfig(
        vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512, max_position_embeddings=8192, **_GEMMA_LAYERS,
    ),
}  # fmt: skip
"""Name -> config: of Llama 3.2 1B, Llama 2 7B, Gemma 3 1B."""

_N_TOKENS = 320
"""Tokens that the tokenizer knows: so few that a prompt is longer than the sliding window of Gemma 3."""

_TOY = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
_TOY_GEMMA = {"sliding_window": 24, "query_pre_attn_scalar": 8}
_TOY_LAYERS = 2


def config_of(shape, *, toy, n_layers=None):
    """Return a shape's config: as it is, or at toy size; with only its first layers where their number is given."""
    config = type(SHAPES[shape])(**SHAPES[shape].to_dict())
    changes = {**_TOY, **(_TOY_GEMMA if shape == WINDOWED else {})} if toy else {}
    n_layers = n_layers or (_TOY_LAYERS if toy else None)
    if toy:
        heads = 2 if config.num_key_value_heads < config.num_attention_heads else 4
        changes |= {"num_attention_heads": 4, "num_key_value_heads": heads}
    if n_layers is not None:
        changes["num_hidden_layers"] = n_layers
        if shape == WINDOWED:
            changes["layer_types"] = ["sliding_attention", "full_attention", *["sliding_attention"] * (n_layers - 2)]
    for name, value in changes.items():
        setattr(config, name, value)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0  # of `tokenizer`
    return config


def random_model(config, device, dtype, seed=0):
    """Return a causal language model with random weights, made where it stays."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1 / sqrt(parameter.shape[1]), generator=generator)
    return model


def tokenizer():
    """Return a byte-level BPE tokenizer, trained on prompts that come with glotlift."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_N_TOKENS, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    task = load_task("sentiment")
    made.train_from_iterator([task.preamble(code, "own") for code in ("en", *LANGUAGES)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def load(shape, device, dtype, *, toy, n_layers=None):
    """Return a random model and the tokenizer as `glotlift.models.load.load_model` would."""
    model = random_model(config_of(shape, toy=toy, n_layers=n_layers), device, dtype)
    return LoadedModel(f"random-{shape}", model, tokenizer(), f"random-{shape}")


def prompts_of(loaded, n_items, num_fewshot=None):
    """Return prompts of `nli` in English, demonstrations in front; premises and hypotheses are any two reviews."""
    task = load_task("nli")
    texts = [item.fields["text"] for item in read_items(load_task("sentiment"), "sample", ("en",))["en"]]
    chosen = [(texts[k % len(texts)], texts[(7 * k + k // len(texts) + 1) % len(texts)]) for k in range(n_items)]
    items = [Item(str(k), {"premise": a, "hypothesis": b}, "neutral") for k, (a, b) in enumerate(chosen)]
    return prepare(loaded, task, "en", items, EvalTask(task=task.name, num_fewshot=num_fewshot))


def pairs_of(n_pairs):
    """Return bundled question pairs, German and Chinese to English."""
    return read_pairs(load_task("sentiment"), "sample", LANGUAGES, limit=n_pairs // len(LANGUAGES))


def settings_of(n_pairs, n_steps, micro_batch_size=4, **others):
    """Return settings of training in which the loss moves within a few steps, and nothing is saved on the way."""
    fixed = {"objective": "translation", "learning_rate": 2e-3, "scheduler": "constant", "warmup_fraction": 0.0,
             "max_length": 2048, "save_steps": 10**6}  # fmt: skip
    size = n_pairs // n_steps
    return TrainSettings(batch_size=size, micro_batch_size=min(size, micro_batch_size), **fixed, **others)


def sizes(model):
    """Return the parameters behind every token, and those of the head."""
    head = sum(parameter.numel() for parameter in language_model_head(model).parameters())
    embedding = model.get_input_embeddings().weight.numel()
    is_tied = model.config.tie_word_embeddings
    return sum(p.numel() for p in model.parameters()) - embedding - (0 if is_tied else head), head
