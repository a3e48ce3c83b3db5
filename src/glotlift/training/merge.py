"""An adapter merged into its base: a plain model folder, with a certificate of what merging changed.

Enters: a base model, a peft adapter, held-out question pairs. Leaves: a Hugging Face folder in the dtype of the base,
and how far its logits are from the adapter's at every target token of the pairs.

Merging is computed in fp32 and rounded once, to be saved. What is compared is the folder as it was saved, read back
before it gets its name, and both sides run in fp32: the certificate measures the weights, not the arithmetic of a
narrower dtype, which adapter and merged model would share. Memory holds one model in fp32 and one language-model head.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from glotlift.data.questions import QuestionPair
from glotlift.errors import DataError, ModelError, RunError, one_of
from glotlift.models.adapters import at_strength
from glotlift.models.anatomy import base_model
from glotlift.models.head import final_states, head_logits, language_model_head
from glotlift.models.linear import fast_linear
from glotlift.models.load import DTYPES, load_model, load_tokenizer, model_source
from glotlift.runs import write_folder
from glotlift.strict_json import read_json
from glotlift.training.rows import IGNORED, TokenRow, tokenize_pairs
from glotlift.training.settings import TrainSettings

log = logging.getLogger(__name__)

TOLERANCE = 1e-2
"""Largest logit difference that merging may make in fp32; several hundred times what was seen on the demo model."""

_KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What safetensors calls the dtypes that a model can be saved in."""

_SENTENCEPIECE = "tokenizer.model"
"""transformers 5 does not save this file again; llama.cpp's converter wants it for a tokenizer of SentencePiece."""

_POSITIONS = 64
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class _Reference:
    """What the adapter on its base gave.

    Attributes:
        states: behind the final norm, where target tokens are predicted. *Shape:* (targets, hidden) a row.
        head: the language-model head, as it was before merging.
    """

    states: list[Tensor]
    head: nn.Module


def merge_adapter(
    model: str,
    adapter: str,
    target: Path,
    pairs: Sequence[QuestionPair],
    settings: TrainSettings,
    *,
    layout: str = "",
    dtype: str = "auto",
    device: str = "auto",
    strength: float = 1.0,
) -> dict[str, Any]:
    """Merge an adapter into its base, save the result, and certify it.

    Args:
        model: name of the base model, as in `load_model`.
        adapter: its adapter folder.
        target: folder for the merged model; it appears when it is whole and certified.
        pairs: held-out question pairs to compare adapter and merged model on.
        settings: how the adapter read its pairs; what is longer than `max_length` is cut.
        layout: see `tokenize_pairs`.
        dtype: of the saved weights; `auto` is what each tensor of the base is stored in, fp32 for a GGUF file.
        device: to merge and compare on; the CPU takes over where its memory is too small.
        strength: what the adapter is multiplied by, in the model it is compared with too.

    Returns:
        The certificate. Logits: `max_logit_difference` over the vocabulary at all target tokens, `tolerance` (see
        `merge_tolerance`). Tokens, each 0 to 1: `argmax_agreement`, the share of target tokens where both find the same
        token most likely; `accuracy_adapter` and `accuracy_merged`, the share of target tokens that each predicts
        right, the tokens before given; `accuracy_difference`, merged less adapter. Besides `n_prompts` (pairs),
        `n_targets` (tokens), `dtype`.

    Raises:
        DataError: there are no pairs, or nothing of a pair's target is left.
        ModelError: model or adapter cannot be loaded or merged, or the base is not stored in fp32, bf16 or fp16.
        RunError: the logits differ by more than the tolerance, or the saved tokenizer makes other tokens.
        OutputError: the folder cannot be written.
    """
    if not pairs:
        raise DataError("got no question pairs to compare adapter and merged model on, expected at least one")

    def tokenize(tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
        return tokenize_pairs(tokenizer, pairs, settings.model_copy(update={"too_long": "truncate"}), layout)

    rows = tokenize(load_tokenizer(model))
    kind, kinds = _kinds(model, dtype)
    certificate: dict[str, Any] = {}

    def write(place: str, folder: Path) -> None:
        reference = _save(model, adapter, folder, rows, kind, kinds, place, strength)
        gc.collect()  # peft's modules know each other in circles
        certificate.update(_certificate(folder, reference, rows, kind, tokenize))

    try:
        write_folder(target, lambda folder: write(device, folder))
    except (torch.OutOfMemoryError, ModelError) as fault:  # `load_model` makes one of the other
        if not any(isinstance(each, torch.OutOfMemoryError) for each in (fault, fault.__cause__)):
            raise
        log.warning("the memory of the device is too small to merge in fp32; merging on the CPU")
    if not certificate:
        write_folder(target, lambda folder: write("cpu", folder))
    return certificate


def merge_tolerance(dtype: torch.dtype, n_layers: int, largest_logit: float) -> float:
    """Return the largest logit difference that merging may make.

    In fp32 it is `TOLERANCE`. A narrower dtype rounds every weight by up to half its eps, relative to the weight. The
    errors of different weights are independent; those of `n_layers` layers add up as squares do: eps * sqrt(n_layers)
    of the size of the logits, for which the largest one stands.

    Args:
        dtype: of the saved weights.
        n_layers: blocks of the model.
        largest_logit: largest absolute logit of the adapter's.
    """
    if dtype == torch.float32:
        return TOLERANCE
    return TOLERANCE + torch.finfo(dtype).eps * math.sqrt(n_layers) * largest_logit


def _kinds(model: str, dtype: str) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """Return the dtype to save in, and that of each tensor by name where the base has several."""
    if dtype not in DTYPES:
        raise ModelError(f"got dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    folder = _folder(model)
    method = read_json(folder / "config.json", ModelError, infinite=True).get("quantization_config")
    if method:
        name = method.get("quant_method", "some method")
        raise ModelError(
            f"model {model!r}: got weights quantized by {name}, expected plain ones to merge an adapter into"
        )
    if dtype != "auto":
        return getattr(torch, dtype), {}
    return _stored_kinds(model, folder)


def _stored_kinds(model: str, folder: Path) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """Return the dtype that most weights of a folder are stored in, and that of each tensor by name."""
    sizes, kinds = Counter[str](), {}
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safetensors file is no dict
                    tensor = tensors.get_slice(name)
                    kinds[name] = tensor.get_dtype()
                    sizes[kinds[name]] += math.prod(tensor.get_shape())
        except (OSError, SafetensorError) as fault:
            raise ModelError(f"{file}: cannot be read as safetensors ({str(fault).splitlines()[0]})") from fault
    most = max(sizes, key=lambda name: sizes[name], default="something other than safetensors")
    if most not in _KINDS:
        raise ModelError(
            f"model {model!r}: got weights stored as {most}, expected {one_of(_KINDS)}; name a dtype to save in"
        )
    return _KINDS[most], {name: _KINDS[stored] for name, stored in kinds.items() if stored in _KINDS}


def _folder(model: str) -> Path:
    """Return the folder with the files of a model, fetched into the hub cache where they are not there yet."""
    source = model_source(model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model*.safetensors", _SENTENCEPIECE]))
    except (OSError, ValueError) as fault:
        raise ModelError(f"model {source!r} cannot be fetched: {str(fault).splitlines()[0]}") from fault


def _save(
    model: str,
    adapter: str,
    folder: Path,
    rows: Sequence[TokenRow],
    kind: torch.dtype,
    kinds: dict[str, torch.dtype],
    device: str,
    strength: float,
) -> _Reference:
    """Merge and save; return what the adapter gave before."""
    with warnings.catch_warnings():
        # peft warns of adapters on head or embedding where these are one tensor; `_merge` sees to them
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        loaded = replace(load_model(model, adapter=adapter, dtype="float32", device=device), strength=strength)
        with loaded.as_variant("tuned") as tuned:
            states = [_target_states(tuned, row) for row in rows]
        reference = _Reference(states, copy.deepcopy(language_model_head(loaded.model)))
        with at_strength(loaded.model, strength):
            merged = _merge(loaded.model, adapter)
    for name, tensor in chain(merged.named_parameters(), merged.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(kinds.get(name, kind))
    merged.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    vocabulary = _folder(model) / _SENTENCEPIECE
    if vocabulary.is_file():
        shutil.copyfile(vocabulary, folder / _SENTENCEPIECE)
    return reference


def _merge(tuned: Any, adapter: str) -> Any:
    """Return the base with the adapter in its weights; head and embedding become two tensors where they now differ."""
    head, embedding = language_model_head(tuned), base_model(tuned).get_input_embeddings()
    was_tied = _inside(head).weight is _inside(embedding).weight
    if was_tied and not (head is _inside(head) and embedding is _inside(embedding)):
        _inside(head).weight = nn.Parameter(_inside(head).weight.detach().clone(), requires_grad=False)
    try:
        merged = tuned.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise ModelError(f"adapter {adapter!r} cannot be merged: {reason}") from fault
    _settle_tie(merged, was_tied)
    return merged


def _inside(layer: Any) -> Any:
    """Return the layer that a peft layer is wrapped around, or the layer itself."""
    return getattr(layer, "base_layer", layer)


def _settle_tie(merged: Any, was_tied: bool) -> None:
    """Make head and embedding one tensor again where they are still equal; else let the config say they are two."""
    head: Any = language_model_head(merged)
    embedding = merged.get_input_embeddings()
    if was_tied and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    is_tied = head.weight is embedding.weight
    for config in (merged.config, merged.config.get_text_config()):
        config.tie_word_embeddings = is_tied


def _target_states(model: Any, row: TokenRow) -> Tensor:
    """Return the states behind the final norm from which a row's target tokens are predicted.

    *Shape:* (targets, hidden), on the CPU.
    """
    device = next(model.parameters()).device
    positions, _ = _targets(row)
    with torch.inference_mode(), final_states(model) as seen:
        model(input_ids=torch.tensor([row.input_ids], device=device), use_cache=False)
        return seen[0][0, positions.to(device)].cpu()


def _targets(row: TokenRow) -> tuple[Tensor, Tensor]:
    """Return the positions that predict a row's target tokens, and these tokens. *Shapes:* (targets,)."""
    found = [(index - 1, label) for index, label in enumerate(row.labels) if index and label != IGNORED]
    positions, tokens = torch.tensor(found, dtype=torch.long).reshape(-1, 2).unbind(1)
    return positions, tokens


def _certificate(
    folder: Path,
    reference: _Reference,
    rows: Sequence[TokenRow],
    kind: torch.dtype,
    tokenize: Callable[[PreTrainedTokenizerBase], list[TokenRow]],
) -> dict[str, Any]:
    """Return the certificate of a saved folder.

    Raises:
        RunError: it is not what the adapter was.
    """
    if tokenize(AutoTokenizer.from_pretrained(folder)) != list(rows):
        raise RunError(
            "the saved tokenizer makes other tokens of the held-out pairs than the base's, expected the same"
        )
    device = next(reference.head.parameters()).device
    saved: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    saved.to(device).eval()
    with torch.inference_mode(), fast_linear(saved), fast_linear(reference.head):
        parts = [
            _compare(saved, reference.head, states, row) for states, row in zip(reference.states, rows, strict=True)
        ]
    table = torch.cat(parts)
    difference, largest = table[:, :2].amax(0).tolist()
    agreement, adapter_right, merged_right = table[:, 2:].mean(0).tolist()
    tolerance = merge_tolerance(kind, saved.config.get_text_config().num_hidden_layers, largest)
    name = str(kind).removeprefix("torch.")
    if not difference <= tolerance:  # not a number is refused too
        raise RunError(
            f"merging changes logits by {difference:.2g} in {name}, expected at most {tolerance:.2g}; use the adapter "
            f"unmerged{'' if kind == torch.float32 else ' or merge into float32'}"
        )
    return {
        "max_logit_difference": difference,
        "argmax_agreement": agreement,
        "accuracy_adapter": adapter_right,
        "accuracy_merged": merged_right,
        "accuracy_difference": merged_right - adapter_right,
        "n_prompts": len(rows),
        "n_targets": len(table),
        "dtype": name,
        "tolerance": tolerance,
    }


def _compare(saved: Any, head: nn.Module, before: Tensor, row: TokenRow) -> Tensor:
    """Compare adapter and saved model at a row's target tokens.

    Args:
        saved: the merged model.
        head: the adapter's head.
        before: the adapter's states. *Shape:* (targets, hidden).
        row: the pair.

    Returns:
        Largest logit difference, largest absolute logit of the adapter; then as 0 or 1 whether both find the same token
        most likely, whether the adapter does the right one, whether the saved model does. *Shape:* (targets, 5).
    """
    _, tokens = _targets(row)
    pieces = zip(*(each.split(_POSITIONS) for each in (before, _target_states(saved, row), tokens)), strict=True)
    parts = []
    for old, new, right in pieces:
        with _with_head(saved, head):
            was = head_logits(saved, old.to(saved.device)).float()
        now = head_logits(saved, new.to(saved.device)).float()
        first, then, right = was.argmax(-1), now.argmax(-1), right.to(saved.device)
        columns = [(was - now).abs().amax(-1), was.abs().amax(-1), first == then, first == right, then == right]
        parts.append(torch.stack([column.double().cpu() for column in columns], 1))
    return torch.cat(parts)


@contextmanager
def _with_head(model: Any, head: nn.Module) -> Iterator[None]:
    """Give a model another language-model head for a while; what it does behind its head stays its own."""
    own = language_model_head(model)
    model.set_output_embeddings(head)
    try:
        yield
    finally:
        model.set_output_embeddings(own)
