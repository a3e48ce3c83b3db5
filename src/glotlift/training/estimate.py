"""What training will take, said before any weights are loaded.

Enters: a model's config and token rows. Leaves: seconds and bytes, as estimates: floating-point operations over the
rate of a matrix product measured now, and the parts that memory is made of.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from glotlift.models.head import language_model_head
from glotlift.models.linear import product
from glotlift.training.objective import LearnedRow
from glotlift.training.settings import TrainSettings

_SHARE = 0.6
"""Share of the rate of a large matrix product that training reaches; measured on the demo model, see docs/LOG.md."""

_KEPT = 18
"""Numbers of hidden size that a block keeps a token for its backward pass, beside 4 of the size of its MLP."""


@dataclass(frozen=True)
class Estimate:
    """What training will take.

    Attributes:
        parameters: of the model.
        steps: optimizer steps.
        tokens: that run, of all steps.
        target_tokens: that are learned, of all steps.
        operations: floating-point operations.
        seconds: at the rate measured on this machine.
        weights: bytes of the model's weights.
        activations: bytes kept for the backward pass of a micro-batch.
        optimizer: bytes of trained weights' gradients and optimizer states.
    """

    parameters: int
    steps: int
    tokens: int
    target_tokens: int
    operations: float
    seconds: float
    weights: int
    activations: int
    optimizer: int

    @property
    def memory(self) -> int:
        """Bytes in all, besides Python and its libraries."""
        return self.weights + self.activations + self.optimizer

    def sentence(self) -> str:
        """Return the estimate as one line."""
        minutes = self.seconds / 60
        took = (
            f"{self.seconds:.0f} s"
            if minutes < 2
            else f"{minutes:.0f} min"
            if minutes < 120
            else f"{minutes / 60:.1f} h"
        )
        gigabytes = [f"{part / 1e9:.1f}" for part in (self.memory, self.weights, self.activations, self.optimizer)]
        return (
            f"{self.steps} steps, {self.tokens:,} tokens of which {self.target_tokens:,} are learned: about {took} and "
            f"{gigabytes[0]} GB ({gigabytes[1]} weights, {gigabytes[2]} activations, {gigabytes[3]} optimizer)"
        )


def estimate(
    source: str,
    rows: Sequence[LearnedRow],
    steps: int,
    settings: TrainSettings,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Estimate:
    """Return what training will take; the model is built without weights.

    Args:
        source: what transformers loads, see `glotlift.models.load.model_source`.
        rows: of all steps, see `glotlift.training.objective.in_order`.
        steps: optimizer steps.
        settings: of training.
        dtype: of the weights.
        device: that trains.
    """
    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = language_model_head(model)
    blocks = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    in_blocks = sum(m.weight.numel() for m in blocks)
    in_head = sum(p.numel() for p in head.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    tokens, targets = sum(row.length for row in rows), sum(row.weight for row in rows)
    is_full = settings.method == "full"
    # forward, gradient of the inputs, with all weights tuned theirs too, and forward once more
    passes = 2 + 2 + (2 if is_full else 0) + (2 if settings.gradient_checkpointing else 0)
    keys = 4 * text.hidden_size * text.num_hidden_layers * sum(row.length**2 for row in rows) * passes / 4
    operations = passes * in_blocks * tokens + 4 * in_head * targets + keys
    chosen = [] if is_full else _chosen(model, head, settings.target_modules)
    trained = parameters if is_full else settings.rank * sum(sum(m.weight.shape) for m in chosen)
    longest = max(row.length for row in rows) * settings.micro_batch_size
    kept = 1 if settings.gradient_checkpointing else _KEPT + 4 * text.intermediate_size / text.hidden_size
    width = torch.empty(0, dtype=dtype).element_size()
    return Estimate(
        parameters,
        steps,
        tokens,
        targets,
        operations,
        operations / (_rate(dtype, device) * _SHARE),
        int(parameters * (0.6 if settings.quantization == "4bit" else width)),
        int(longest * text.num_hidden_layers * text.hidden_size * kept * width),
        int(trained * 16),
    )


def _chosen(model: torch.nn.Module, head: torch.nn.Module, targets: str | Sequence[str]) -> list[torch.nn.Linear]:
    names = None if targets == "all-linear" else ([targets] if isinstance(targets, str) else list(targets))
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and (names is None or name.rsplit(".", 1)[-1] in names)
    ]


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations a second of a large matrix product here, the best of five."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        result = product(a, a)
        if device.type != "cpu":
            result.sum().item()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)
