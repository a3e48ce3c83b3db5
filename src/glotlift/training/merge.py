"""An adapter merged into its base: a plain model folder, with a certificate of what merging changed.

Enters: a base model and a peft adapter. Leaves: a Hugging Face folder and the largest logit difference between adapter
and merged weights on some prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glotlift.errors import RunError
from glotlift.models.labels import encode
from glotlift.models.load import load_model
from glotlift.runs import write_folder

TOLERANCE = 1e-2
"""Largest logit difference that fp32 merging may make; several hundred times what was seen on the demo model."""


def merge_adapter(
    model: str, adapter: str, target: Path, prompts: Sequence[str], *, dtype: str = "auto", device: str = "auto"
) -> dict[str, Any]:
    """Merge an adapter into its base and save the result.

    Args:
        model: name of the base model, as in `load_model`.
        adapter: its adapter folder.
        target: folder for the merged model; it appears when whole.
        prompts: texts to compare adapter and merged weights on.
        dtype: of the merged weights.
        device: to merge on.

    Returns:
        The certificate: `max_logit_difference`, `argmax_agreement` (share of prompts with the same next token),
        `n_prompts`, `dtype`, `tolerance`.

    Raises:
        RunError: the logits differ by more than `TOLERANCE` in fp32.
        OutputError: the folder cannot be written.
    """
    loaded = load_model(model, adapter=adapter, dtype=dtype, device=device)
    rows = encode(loaded.tokenizer, prompts)
    before = _last_logits(loaded.model, rows)
    merged = loaded.model.merge_and_unload()
    after = _last_logits(merged, rows)
    certificate = {
        "max_logit_difference": float((before - after).abs().max()),
        "argmax_agreement": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
        "n_prompts": len(rows),
        "dtype": str(merged.dtype).removeprefix("torch."),
        "tolerance": TOLERANCE,
    }
    if merged.dtype == torch.float32 and certificate["max_logit_difference"] > TOLERANCE:
        raise RunError(
            f"merging changes logits by {certificate['max_logit_difference']:.2g}, expected at most {TOLERANCE}; "
            "use the adapter unmerged"
        )

    def save(folder: Path) -> None:
        merged.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    write_folder(target, save)
    return certificate


def _last_logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the next-token logits behind every row. *Shape:* (rows, vocabulary)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.stack(
            [model(torch.tensor([row], device=device), logits_to_keep=1).logits[0, -1].float().cpu() for row in rows]
        )
