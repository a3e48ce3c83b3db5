"""Matrix products of linear layers by oneDNN in place of MKL, on CPUs in fp32.

torch carries both libraries and sends fp32 linear layers to MKL, which leaves half of an AMD CPU unused: it takes AVX2
kernels where the CPU has AVX-512. oneDNN reads the same weights where they lie, without a copy, and is measured to be
faster there with AVX2 alone too. On an Intel CPU with AVX-512 they are equal, and with AVX2 alone MKL is ahead by a
tenth, so there it stays (docs/LOG.md). Both add in fp32 in an order of their own, so results differ by rounding; which
one runs depends on the CPU alone, so that a run that goes on there ends in the same bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def fast_linear(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model run through oneDNN, forward and backward, and put them back at the end.

    Layers that are not plain `nn.Linear` with contiguous fp32 weights on an x86 CPU stay as they are, and so do those
    whose forward someone else has replaced.
    """
    changed: list[Any] = [module for module in model.modules() if _is_plain(module)] if _has_onednn() else []
    for module in changed:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _has_onednn() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        torch.backends.mkldnn.is_available()
        and (capability == "AVX512" or capability == "AVX2" and not _is_intel())
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@cache
def _is_intel() -> bool:
    """Return whether MKL knows the CPU as its own; elsewhere it takes slower kernels."""
    about = Path("/proc/cpuinfo")
    return "GenuineIntel" in (about.read_text() if about.is_file() else platform.processor())


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _forward(module: nn.Linear, states: Tensor) -> Tensor:
    if states.dtype != torch.float32 or states.numel() == 0:
        return nn.functional.linear(states, module.weight, module.bias)
    if torch.is_grad_enabled() and (states.requires_grad or module.weight.requires_grad):
        return _Linear.apply(states, module.weight, module.bias)  # pyright: ignore[reportReturnType]
    return product(states, module.weight, module.bias)


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `states @ weight.T + bias`, in fp32 by oneDNN where there is one; no gradient runs through it.

    Args:
        states: *Shape:* (..., inputs).
        weight: *Shape:* (outputs, inputs); a transposed view is read as it lies.
        bias: *Shape:* (outputs,), or None.

    Returns:
        *Shape:* (..., outputs).
    """
    if states.dtype == torch.float32 and states.device.type == "cpu" and states.numel() and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return nn.functional.linear(states, weight, bias)


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass goes through oneDNN too."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states if weight.requires_grad else None, weight)
        ctx.has_bias = bias is not None
        return product(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        states, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_states = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = flat.t() @ states.flatten(0, -2) if ctx.needs_input_grad[1] else None
        of_bias = flat.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return of_states, of_weight, of_bias
