"""Merging: the merged folder is a plain model of the base's dtype that gives what the adapter gave, or is not there."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glotlift.data.questions import read_pairs
from glotlift.errors import DataError, ModelError, OutputError, RunError
from glotlift.models.load import load_model
from glotlift.tasks.load import load_task
from glotlift.training import merge as module
from glotlift.training.merge import merge_adapter, merge_tolerance
from glotlift.training.rows import IGNORED, tokenize_pairs
from glotlift.training.settings import TrainSettings
from tests.conftest import FAMILIES, SCALED

TIED = LlamaConfig(**{**FAMILIES["llama"].to_dict(), "tie_word_embeddings": True})

pytestmark = pytest.mark.filterwarnings(  # peft, whenever an adapter touches head or embedding
    "ignore:Model has .tie_word_embeddings=True:UserWarning",
    "ignore:Setting .save_embedding_layers. to:UserWarning",
    "ignore:fan_in_fan_out is set to False:UserWarning",
)


@pytest.fixture(scope="module")
def pairs():
    return read_pairs(load_task("sentiment"), "sample", ("de", "zh"), limit=3)


def random_base(folder, tokenizer, config, dtype=torch.float32):
    """Save a random model whose most likely tokens are clear, and return its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # saving writes the dtype into it
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(3.0)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(base, folder, **settings):
    """Save a LoRA adapter that changes every layer it is on, and return its folder."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tuned = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 1, "init_lora_weights": False, **settings}))
        for name, parameter in tuned.named_parameters():
            if "modules_to_save" in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path, sentencepiece_style):
    return random_base(tmp_path / "base", sentencepiece_style, FAMILIES["llama"])


@pytest.fixture
def adapter(tmp_path, base):
    return random_adapter(base, tmp_path / "adapter", target_modules="all-linear")


def merged(base, adapter, folder, pairs, **options):
    settings = TrainSettings(**{name: options.pop(name) for name in ("max_length", "prompt_format") if name in options})
    return merge_adapter(str(base), str(adapter), folder, pairs, settings, **options)


def plain_logits(model, folder, pairs):
    """Return logits that predict target tokens, and these. *Shapes:* (targets, vocabulary), (targets,)."""
    rows = tokenize_pairs(AutoTokenizer.from_pretrained(folder), pairs, TrainSettings())
    logits, tokens = [], []
    with torch.inference_mode():
        for row in rows:
            labels = torch.tensor(row.labels)
            places = (labels != IGNORED).nonzero()[:, 0]
            logits.append(model.eval()(torch.tensor([row.input_ids])).logits[0, places - 1].float())
            tokens.append(labels[places])
    return torch.cat(logits), torch.cat(tokens)


def adapter_logits(base, adapter, pairs):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return plain_logits(PeftModel.from_pretrained(model, str(adapter)), base, pairs)


def folder_logits(folder, pairs):
    """As anyone would load it, in fp32: weights are what is compared."""
    return plain_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder, pairs)


def stored_kinds(folder):
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "minicpm3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_plain_transformers_gives_the_certificates_logits(tmp_path, sentencepiece_style, pairs, family, dtype):
    kind = getattr(torch, dtype)
    base = random_base(tmp_path / "base", sentencepiece_style, (FAMILIES | SCALED)[family], kind)
    adapter = random_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    certificate = merged(base, adapter, tmp_path / "merged", pairs)
    assert stored_kinds(tmp_path / "merged") == stored_kinds(base)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == kind
    (before, tokens), (after, _) = adapter_logits(base, adapter, pairs), folder_logits(tmp_path / "merged", pairs)
    right = [(logits.argmax(-1) == tokens).double().mean().item() for logits in (before, after)]
    assert certificate == {
        "max_logit_difference": pytest.approx((before - after).abs().max().item(), abs=2e-4),
        "argmax_agreement": pytest.approx((before.argmax(-1) == after.argmax(-1)).double().mean().item()),
        "accuracy_adapter": pytest.approx(right[0]),
        "accuracy_merged": pytest.approx(right[1]),
        "accuracy_difference": pytest.approx(right[1] - right[0]),
        "n_prompts": len(pairs),
        "n_targets": len(tokens),
        "dtype": dtype,
        "tolerance": pytest.approx(merge_tolerance(kind, 3, before.abs().max().item()), rel=1e-4),
    }
    unmoved, _ = folder_logits(base, pairs)
    assert (unmoved - before).abs().max() > 2 * certificate["tolerance"]  # so the adapter does something
    assert (certificate["max_logit_difference"] > 1e-4) == (dtype != "float32")  # rounding is part of what is measured
    json.dumps(certificate, allow_nan=False)


def test_accuracy_is_the_share_of_target_tokens_that_are_right(tmp_path, base, adapter, pairs, monkeypatch):
    """Random models get nearly nothing right, so here the targets are what the adapter finds most likely."""
    logits, _ = adapter_logits(base, adapter, pairs)
    likely = iter(logits.argmax(-1).tolist())
    rows = tokenize_pairs(AutoTokenizer.from_pretrained(base), pairs, TrainSettings())
    told = [replace(row, labels=[IGNORED if n == IGNORED else next(likely) for n in row.labels]) for row in rows]
    monkeypatch.setattr(module, "tokenize_pairs", lambda *_arguments, **_options: told)
    certificate = merged(base, adapter, tmp_path / "merged", pairs, dtype="bfloat16")
    assert certificate["accuracy_adapter"] == 1.0
    assert certificate["accuracy_merged"] == certificate["argmax_agreement"] < 1.0
    assert certificate["accuracy_difference"] == certificate["accuracy_merged"] - 1.0


def test_a_named_dtype_wins(tmp_path, base, adapter, pairs):
    assert merged(base, adapter, tmp_path / "merged", pairs, dtype="bfloat16")["dtype"] == "bfloat16"
    assert set(stored_kinds(tmp_path / "merged").values()) == {"BF16"}


def test_a_tensor_that_the_base_keeps_wider_stays_so(tmp_path, sentencepiece_style, pairs):
    base = random_base(tmp_path / "base", sentencepiece_style, FAMILIES["llama"], torch.bfloat16)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    adapter = random_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    assert merged(base, adapter, tmp_path / "merged", pairs)["dtype"] == "bfloat16"
    kinds = stored_kinds(tmp_path / "merged")
    assert kinds.pop("model.norm.weight") == "F32"
    assert set(kinds.values()) == {"BF16"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("settings", "stays_tied"),
    [
        ({"target_modules": "all-linear"}, True),  # which leaves the head out
        ({"target_modules": ["lm_head"]}, False),
        ({"target_modules": ["embed_tokens"]}, False),
        ({"target_modules": ["embed_tokens", "lm_head"]}, False),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, None),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
    ],
)
def test_head_and_embedding_that_were_one_tensor(tmp_path, sentencepiece_style, pairs, settings, stays_tied, dtype):
    base = random_base(tmp_path / "base", sentencepiece_style, TIED, getattr(torch, dtype))
    assert "lm_head.weight" not in stored_kinds(base)
    adapter = random_adapter(base, tmp_path / "adapter", **settings)
    certificate = merged(base, adapter, tmp_path / "merged", pairs)
    (before, _), (after, _) = adapter_logits(base, adapter, pairs), folder_logits(tmp_path / "merged", pairs)
    assert (before - after).abs().max() <= certificate["tolerance"]
    unmoved, _ = folder_logits(base, pairs)
    assert (before - unmoved).abs().max() > 2 * certificate["tolerance"]
    kinds = stored_kinds(tmp_path / "merged")
    is_tied = json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
    assert is_tied == ("lm_head.weight" not in kinds)
    assert stays_tied is None or is_tied == stays_tied
    assert len(set(kinds.values())) == 1


def nothing_left(folder):
    return [path.name for path in folder.iterdir() if path.name not in ("base", "adapter")] == []


@pytest.mark.parametrize(
    ("dtype", "share", "said"),
    [
        ("float32", 0.9, r"in float32, expected at most 0\.01; use the adapter unmerged$"),
        ("bfloat16", 0.0, "in bfloat16, expected at most .*; use the adapter unmerged or merge into float32$"),
    ],
)
def test_a_damaged_merge_is_refused_and_leaves_nothing(tmp_path, base, adapter, pairs, monkeypatch, dtype, share, said):
    whole = LoraLinear.get_delta_weight
    monkeypatch.setattr(LoraLinear, "get_delta_weight", lambda layer, name: share * whole(layer, name))
    with pytest.raises(RunError, match=said) as caught:
        merged(base, adapter, tmp_path / "merged", pairs, dtype=dtype)
    assert str(caught.value).startswith("merging changes logits by ")
    assert nothing_left(tmp_path)


def test_weights_lost_in_saving_are_seen(tmp_path, base, adapter, pairs, monkeypatch):
    """What is compared is what lies on the disk."""
    save = LlamaForCausalLM.save_pretrained

    def lose(model, folder):
        save(model, folder)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][7] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", lose)
    with pytest.raises(RunError, match="merging changes logits by"):
        merged(base, adapter, tmp_path / "merged", pairs)
    assert nothing_left(tmp_path)


def test_a_refused_merge_leaves_an_earlier_one_as_it_was(tmp_path, base, adapter, pairs, monkeypatch):
    merged(base, adapter, tmp_path / "merged", pairs)
    earlier = (tmp_path / "merged" / "model.safetensors").read_bytes()
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="merging changes logits by"):
        merged(base, adapter, tmp_path / "merged", pairs)
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == earlier


def test_numbers_that_fp16_cannot_hold_are_refused(tmp_path, base, adapter, pairs):
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1e6
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="merging changes logits by nan in float16"):
        merged(base, adapter, tmp_path / "merged", pairs, dtype="float16")
    assert nothing_left(tmp_path)


def test_a_tokenizer_that_is_not_saved_as_it_was_is_refused(tmp_path, base, adapter, pairs, byte_level, monkeypatch):
    save = PreTrainedTokenizerFast.save_pretrained
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda _self, folder: save(byte_level, folder))
    with pytest.raises(RunError, match="the saved tokenizer makes other tokens"):
        merged(base, adapter, tmp_path / "merged", pairs)
    assert nothing_left(tmp_path)


def test_the_sentencepiece_file_of_the_base_goes_along(tmp_path, base, adapter, pairs):
    """llama.cpp's converter reads it; the tokenizer does not save it again."""
    (base / "tokenizer.model").write_bytes(b"as it was")
    merged(base, adapter, tmp_path / "merged", pairs)
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == b"as it was"


def test_the_tolerance_follows_from_the_dtype():
    assert merge_tolerance(torch.float32, 100, 1e6) == 0.01
    assert merge_tolerance(torch.bfloat16, 16, 20.0) == pytest.approx(0.01 + 2**-7 * 4 * 20)
    assert merge_tolerance(torch.float16, 16, 20.0) == pytest.approx(0.01 + 2**-10 * 4 * 20)


def test_pairs_longer_than_allowed_are_cut(tmp_path, base, adapter, pairs):
    whole = merged(base, adapter, tmp_path / "merged", pairs)
    rows = tokenize_pairs(AutoTokenizer.from_pretrained(base), pairs, TrainSettings())
    most = max(len(row.input_ids) for row in rows)
    cut = merged(base, adapter, tmp_path / "merged", pairs, max_length=most - 5)
    assert whole["n_targets"] - 5 * len(rows) <= cut["n_targets"] <= whole["n_targets"] - 5


def test_the_prompt_format_is_that_of_training(tmp_path, base, adapter, pairs):
    plain = merged(base, adapter, tmp_path / "merged", pairs)
    alpaca = merged(base, adapter, tmp_path / "merged", pairs, prompt_format="alpaca")
    assert alpaca["max_logit_difference"] != plain["max_logit_difference"]
    with pytest.raises(ModelError, match="without a chat template"):
        merged(base, adapter, tmp_path / "merged", pairs, prompt_format="chat")


def test_no_pairs_are_refused(tmp_path, base, adapter):
    with pytest.raises(DataError, match="got no question pairs to compare"):
        merged(base, adapter, tmp_path / "merged", [])


def test_an_unknown_dtype_is_refused(tmp_path, base, adapter, pairs):
    with pytest.raises(ModelError, match="got dtype 'int8', expected one of auto, float32, bfloat16, float16"):
        merged(base, adapter, tmp_path / "merged", pairs, dtype="int8")


def test_a_quantized_base_is_refused(tmp_path, base, adapter, pairs):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="got weights quantized by gptq, expected plain ones"):
        merged(base, adapter, tmp_path / "merged", pairs)


def test_a_base_of_another_dtype_is_refused_until_one_is_named(tmp_path, base, adapter, pairs):
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor.double() for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="got weights stored as F64, expected F32, BF16 or F16; name a dtype"):
        merged(base, adapter, tmp_path / "merged", pairs)
    assert merged(base, adapter, tmp_path / "merged", pairs, dtype="float32")["dtype"] == "float32"


def test_a_damaged_base_is_named(tmp_path, base, adapter, pairs):
    (base / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read as safetensors \("):
        merged(base, adapter, tmp_path / "merged", pairs)


def test_an_adapter_that_is_not_in_the_weights_is_refused(tmp_path, base, pairs):
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="adapter .* cannot be merged: ") as caught:
        merged(base, tmp_path / "adapter", tmp_path / "merged", pairs)
    assert "\n" not in str(caught.value)
    assert nothing_left(tmp_path)


def test_a_device_that_is_too_small_hands_over_to_the_cpu(tmp_path, base, adapter, pairs, monkeypatch):
    asked = []

    def load(*arguments, device, **options):
        asked.append(device)
        if device != "cpu":
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except RuntimeError as fault:
                raise ModelError("the model cannot be put on the device") from fault
        return load_model(*arguments, device=device, **options)

    monkeypatch.setattr(module, "load_model", load)
    assert merged(base, adapter, tmp_path / "merged", pairs, device="cuda")["n_prompts"] == len(pairs)
    assert asked == ["cuda", "cpu"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, base, adapter, pairs):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        merged(base, adapter, tmp_path / "file" / "merged", pairs)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lm_eval_gives_the_adapters_log_likelihoods(tmp_path, sentencepiece_style, pairs, dtype):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: `make test-peers` has it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    base = random_base(tmp_path / "base", sentencepiece_style, FAMILIES["llama"], getattr(torch, dtype))
    adapter = random_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    certificate = merged(base, adapter, tmp_path / "merged", pairs)
    asked = [(pair.input.rstrip("\n"), "\n" + pair.target) for pair in pairs]  # lm-eval moves blanks at the end
    harness = HFLM(pretrained=str(tmp_path / "merged"), device="cpu", dtype="float32", batch_size=2)
    found = harness.loglikelihood(
        [Instance("loglikelihood", doc={}, arguments=each, idx=k) for k, each in enumerate(asked)]
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    for (score, _), (prompt, text) in zip(found, asked, strict=True):
        own, n_scored = log_likelihood(tuned, sentencepiece_style, prompt, text)
        other, _ = log_likelihood(tuned.get_base_model(), sentencepiece_style, prompt, text + "!")
        bound = 1e-3 if dtype == "float32" else certificate["max_logit_difference"] * n_scored
        assert score == pytest.approx(own, abs=bound)
        assert abs(score - other) > bound


def log_likelihood(model, tokenizer, prompt, text):
    """Return ln p(text | prompt) by one plain forward pass, and the number of its tokens."""
    head, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    with torch.inference_mode():
        scores = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return sum(scores[k - 1, whole[k]].item() for k in range(len(head), len(whole))), len(whole) - len(head)


def test_an_adapter_of_another_model_is_refused(base, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(ModelError, match="cannot be put on the model"):
        load_model(str(base), adapter=str(adapter))


def test_base_and_tuned_have_different_fingerprints(base, adapter):
    loaded = load_model(str(base), adapter=str(adapter))
    assert loaded.variants == ("base", "tuned")
    assert loaded.variant_fingerprint("base") != loaded.variant_fingerprint("tuned")
    without = load_model(str(base))
    assert without.variants == ("base",)
    assert without.variant_fingerprint("base") == loaded.variant_fingerprint("base")
    half = load_model(str(base), dtype="bfloat16")
    assert half.variant_fingerprint("base") != without.variant_fingerprint("base")


def test_control_strings_of_the_layouts_are_tokens_in_the_pairs_as_in_training(tmp_path, base, adapter, pairs):
    said = [replace(pair, target=f"{pair.target}</s>") for pair in pairs[:1]]
    as_text, as_token = (
        merged(base, adapter, tmp_path / name, said, layout=name)["n_targets"] for name in ("text", "{text}</s>")
    )
    assert as_text == as_token + 3  # `<`, `/`, `s`, `>`


def test_a_strength_is_between_base_and_adapter_in_evaluation_and_merged(tmp_path, tiny_folder, pairs):
    """Half a strength is half of LoRA's update; merged so, it is the model that evaluation saw."""
    adapter = random_adapter(str(tiny_folder), tmp_path / "adapter")
    loaded = replace(load_model(str(tiny_folder), adapter=str(adapter)), strength=0.5)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with loaded.as_variant("tuned") as model:
            half = model(ids).logits
        with replace(loaded, strength=1.0).as_variant("tuned") as model:
            whole = model(ids).logits
        with loaded.as_variant("base") as model:
            base = model(ids).logits
    assert not torch.allclose(half, whole, atol=1e-3) and not torch.allclose(half, base, atol=1e-3)
    prints = {each.variant_fingerprint("tuned") for each in (loaded, replace(loaded, strength=1.0))}
    assert len(prints) == 2
    merge_adapter(str(tiny_folder), str(adapter), tmp_path / "merged", pairs, TrainSettings(), strength=0.5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, half, atol=1e-4, rtol=1e-4)
