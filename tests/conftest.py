"""Tiny random models and tokenizers, built in code; nothing is downloaded."""

from __future__ import annotations

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, too: bytes are compared at one thread count

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from transformers import (  # noqa: E402
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MiniCPM3Config,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM  # noqa: E402

from glotlift.models.load import LoadedModel  # noqa: E402
from glotlift.tasks.load import load_task, sample_pattern  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in a shell's background ignores
torch.set_num_threads(1)  # tiny matrices: a second thread only costs

_SHAPE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
FAMILIES = {
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**{k: v for k, v in _GROUPED.items() if k != "head_dim"}),
    "qwen3": Qwen3Config(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=24),
    "gemma2": Gemma2Config(**_GROUPED, sliding_window=24, query_pre_attn_scalar=8, final_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(
        **_GROUPED,
        sliding_window=24,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),  # fmt: skip
    "gpt2": GPT2Config(
        vocab_size=600, n_embd=32, n_layer=3, n_head=4, n_positions=1024, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
    ),  # fmt: skip
    "gpt_neox": GPTNeoXConfig(**_SHAPE, intermediate_size=48),
}
_TIED = {**_SHAPE, "num_key_value_heads": 4, "intermediate_size": 48, "tie_word_embeddings": True}
# what these do to states or logits around the head is in no config key that two of them read alike
SCALED = {
    "cohere": CohereConfig(**_TIED, logit_scale=0.25, pad_token_id=0),
    "granite": GraniteConfig(**_TIED, logits_scaling=4.0),
    "minicpm3": MiniCPM3Config(
        **_TIED,
        dim_model_base=8,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
}


def _corpus() -> list[str]:
    texts = []
    for name in ("sentiment", "nli"):
        task = load_task(name)
        for code in ("en", "de", "zh", "th", "bn"):
            blank = {field: "" for field in task.fields}
            texts += [task.preamble(code, "own"), task.preamble(code, "english"), task.question(code, blank)]
    pattern = sample_pattern("sentiment", "items")
    assert pattern is not None
    return texts + [Path(pattern.replace("{lang}", code)).read_text(encoding="utf-8") for code in ("en", "de")]


def _wrap(tokenizer: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        number = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (as GPT-2, Qwen), without a first token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _wrap(tokenizer, bos=False)


@pytest.fixture(scope="session")
def sentencepiece_style() -> PreTrainedTokenizerFast:
    """A SentencePiece-style BPE tokenizer with byte fallback (as Llama 2, Gemma), with a first token."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", *bytes_],
        limit_alphabet=120,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _wrap(tokenizer, bos=True)


def random_model(family: str) -> torch.nn.Module:
    """Return a random model whose outputs are far from uniform, so that a wrong mask or position shows."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config((FAMILIES | SCALED)[family]).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(2.0 if "embed" in name or "wte" in name else 6.0)
    return model


@pytest.fixture(scope="session")
def tiny(byte_level, sentencepiece_style):
    """Return a function: family -> `LoadedModel`."""
    made: dict[str, LoadedModel] = {}

    def make(family: str) -> LoadedModel:
        if family not in made:
            tokenizer = sentencepiece_style if family in ("llama", "gemma2", "gemma3") else byte_level
            made[family] = LoadedModel(f"tiny-{family}", random_model(family), tokenizer, f"fingerprint-{family}")
        return made[family]

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory) -> Path:
    """A local model folder: a tiny random Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    loaded = tiny("llama")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder
