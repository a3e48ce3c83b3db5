"""A random adapter of the same size: the control for what an adapter changes inside.

Enters: the folder of a LoRA adapter. Leaves: a folder that peft loads like it, in which every module's update has the
singular values of the given one, so every norm of it, between random directions. What such an adapter changes too,
moving the weights this far changes, wherever to.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glotlift.errors import ModelError
from glotlift.models.fingerprints import model_files, weights_fingerprint
from glotlift.runs import write_folder

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_FIRST = re.compile(r"(.+\.lora_(?:embedding_)?)A((?:\.weight)?)")
"""The name of the matrix that a LoRA update applies first; the other one has B in place of A."""


def write_random_adapter(adapter: str, target: Path, *, seed: int = 0) -> dict[str, float]:
    """Write a random adapter of the same size.

    Args:
        adapter: folder or hub id of a LoRA adapter.
        target: a folder, in place of what stands there; `random_adapter.json` in it says of which adapter and seed.
        seed: of the directions.

    Returns:
        Module -> Frobenius norm of its update B A, without LoRA's scaling, which both adapters share.

    Raises:
        ModelError: there is no adapter, or it holds other tensors than pairs of LoRA matrices.
        OutputError: the folder cannot be written.
    """
    source = model_files(adapter)
    for name in (_CONFIG, _WEIGHTS):
        if not (source / name).is_file():
            raise ModelError(f"{adapter}: got a folder without {name}, expected a peft adapter")
    try:
        tensors = load_file(source / _WEIGHTS)
    except SafetensorError as fault:
        raise ModelError(f"{source / _WEIGHTS}: cannot be read ({fault}), expected safetensors") from None
    drawn, norms = _redrawn(tensors, adapter, torch.Generator().manual_seed(seed))
    about = {"random_adapter_of": weights_fingerprint(adapter), "seed": seed, "norms": norms}

    def write(folder: Path) -> None:
        shutil.copyfile(source / _CONFIG, folder / _CONFIG)
        save_file(drawn, folder / _WEIGHTS, {"format": "pt"})
        (folder / "random_adapter.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    write_folder(target, write)
    return norms


def _redrawn(
    tensors: Mapping[str, Tensor], adapter: str, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return tensors with random directions, and the norm of every module's update."""
    firsts = {name: found for name in sorted(tensors) if (found := _FIRST.fullmatch(name))}
    pairs = {name: f"{found[1]}B{found[2]}" for name, found in firsts.items()}
    other = sorted(set(tensors) - {*pairs, *pairs.values()})
    missing = [second for second in pairs.values() if second not in tensors]
    if not pairs or other or missing or any(tensors[name].ndim != 2 for name in tensors):
        got = f"without {missing[0]}" if missing else f"with {other[0]}" if other else "with other shapes"
        raise ModelError(f"{adapter}: got an adapter {got}, expected pairs of LoRA matrices and nothing else")
    drawn, norms = {}, {}
    for first, second in pairs.items():
        sizes = _singular_values(tensors[first], tensors[second])
        norms[re.sub(r"\.lora_(embedding_)?$", "", firsts[first][1])] = float(sizes.norm())
        for name, matrix in (
            (first, sizes.sqrt()[:, None] * _directions(tensors[first].shape[1], len(sizes), generator).T),
            (second, _directions(tensors[second].shape[0], len(sizes), generator) * sizes.sqrt()),
        ):
            padded = torch.zeros(tensors[name].shape, dtype=torch.float64)
            padded[: matrix.shape[0], : matrix.shape[1]] = matrix
            drawn[name] = padded.to(tensors[name].dtype)
    return drawn, norms


def _singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Return those of B A that may differ from zero, fp64. *Shapes:* (rank, in), (out, rank)."""
    rank = min(*a.shape, *b.shape)
    small = torch.linalg.qr(b.double()).R @ torch.linalg.qr(a.double().T).R.T
    return torch.linalg.svdvals(small)[:rank]


def _directions(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Return random orthonormal columns, fp64. *Shape:* (size, count)."""
    return torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64)).Q
