"""Which model an adapter was made for, how strongly it works, and where.

Enters: the folders of an adapter and of the model that it is put on. Leaves: a sentence where it was made for another;
or the model with its adapter turned down, or switched off in some of its layers.

An adapter's matrices fit every model of the same widths, so nothing fails when they are put on the wrong one. Training
leaves a digest of the base's weights in `history.json`, which decides. Adapters of other tools only name their base, by
a hub id or by the folder in which it stood: these are compared by what is left of a name wherever its model stands, and
a folder called `merged` is no evidence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer

from glotlift.errors import ModelError
from glotlift.models.anatomy import base_model, decoder_layers


@contextmanager
def at_strength(model: Any, strength: float) -> Iterator[None]:
    """Multiply what LoRA layers add to a model while inside.

    Args:
        model: a peft model.
        strength: 1 is the adapter as it was trained, 0 the base.

    Raises:
        ModelError: the model has no LoRA layers, which alone have a strength.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers and strength != 1:
        raise ModelError(f"got adapter strength {strength:g} for a model without LoRA layers, expected 1")
    with _scaled(layers, strength):
        yield


@contextmanager
def _scaled(layers: Sequence[LoraLayer], strength: float) -> Iterator[None]:
    kept = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling = {name: scale * strength for name, scale in layer.scaling.items()}
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling = scaling


@dataclass(frozen=True)
class AdapterPart:
    """A LoRA layer of an adapter, and where it stands.

    Attributes:
        layer: number of the block that it is in, from 1; one more than there are blocks for the head, 0 for all else
            outside of blocks (embedding).
        group: `attention` or `mlp`; `other` outside of blocks.
        module: the layer.
    """

    layer: int
    group: str
    module: LoraLayer


def adapter_parts(model: Any) -> list[AdapterPart]:
    """Return the LoRA layers of a peft model, in the order of its blocks.

    Raises:
        ModelError: it has none.
    """
    blocks = list(decoder_layers(model))
    parts, inside = [], set()
    for number, block in enumerate(blocks, 1):
        for name, module in block.named_modules():
            if isinstance(module, LoraLayer):
                group = "attention" if "att" in name.split(".")[0] else "mlp"
                parts.append(AdapterPart(number, group, module))
                inside.add(module)
    head = base_model(model).get_output_embeddings()
    for module in model.modules():
        if isinstance(module, LoraLayer) and module not in inside:
            parts.append(AdapterPart(len(blocks) + 1 if module is head else 0, "other", module))
    if not parts:
        raise ModelError("got a model without LoRA layers, expected a LoRA adapter: it alone has layers to switch off")
    return sorted(parts, key=lambda part: part.layer)


@contextmanager
def switched_off(parts: Sequence[AdapterPart]) -> Iterator[None]:
    """Let parts of an adapter add nothing while inside."""
    with _scaled([part.module for part in parts], 0.0):
        yield


def foreign_adapter(adapter: Path, model: str, folder: Path, tensors: str) -> str | None:
    """Return a sentence where an adapter was made for another model than it is used on, None where nothing says so.

    Args:
        adapter: folder of the adapter, or of a model whose weights were all tuned.
        model: the model's name, as it was asked for.
        folder: its files.
        tensors: its `glotlift.models.load.tensors_fingerprint`.

    Raises:
        ModelError: a JSON file of theirs cannot be read.
    """
    history = _json(adapter / "history.json")
    if made_on := history.get("base_fingerprint"):
        base = history.get("base_model")
        made_for = f"other weights of {model!r}" if base == model else repr(base)
        return None if made_on == tensors else f"the adapter was made for {made_for}, and is used on {model!r}{_DOUBT}"
    stated = _json(adapter / "adapter_config.json").get("base_model_name_or_path")
    asked = [_plain(name) for name in (model, str(folder), _json(folder / "config.json").get("_name_or_path"))]
    if _plain(stated) is None or not any(asked) or _plain(stated) in asked:
        return None
    return f"the adapter was made for {stated!r}, and is used on {model!r}{_DOUBT}, unless both are the same weights"


_DOUBT = ": the numbers of the tuned model are not those of what was trained"

_PLACE = re.compile(r"(?:.*[/\\])?models--(?:[^/\\]+--)?([^/\\]+?)(?:[/\\].*)?")
"""A model in the hub cache: `.../models--owner--name/snapshots/<commit>`."""

_STORED = re.compile(
    r"(?:\.gguf|[-_.](?:[0-9a-f]{12}|i?q\d\w*|bf16|fp?16|fp?32|[48]bit|bnb|awq|gptq|int[48]|fp8|gguf|hf|unsloth))$"
)
"""At the end of a model's name: how its weights are stored, not which they are. Twelve hexadecimal digits stand behind
the names of converted GGUF files (`glotlift.models.load`)."""

_GENERIC = frozenset(
    ["adapter", "base", "best", "checkpoint", "epoch", "final", "finetuned", "hf", "last", "local", "main", "merged",
     "model", "models", "new", "old", "out", "output", "result", "results", "run", "snapshot", "step", "tmp",
     "tuned", "weights"]
)  # fmt: skip


def _plain(name: Any) -> str | None:
    """Return what a model is called wherever it stands and however it is stored, None for a name that says nothing."""
    if not isinstance(name, str):
        return None
    place = _PLACE.fullmatch(name)
    plain = (place[1] if place else re.split(r"[/\\]", name.rstrip("/\\"))[-1]).casefold()
    while (shorter := _STORED.sub("", plain)) != plain:
        plain = shorter
    words = re.findall(r"[^\W\d_]+", plain)
    return plain if any(word not in _GENERIC for word in words) else None


def _json(file: Path) -> dict[str, Any]:
    """Return what a file holds, `{}` where there is none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ModelError(f"{file}: got no valid JSON ({fault}), expected what was written with the model") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: got {type(content).__name__}, expected a mapping")
    return content
