"""Tuned lens: a translator a layer, so that early layers can be read as well as late ones.

Enters: a model and unlabelled text, or the folder of a tuned lens. Leaves: a `TunedLens`, and how close each layer's
reading is to the last layer's with and without it.

A translator is an affine map that is added to a layer's state, `h + W h + b`, and trained so that the model's own norm
and head read from it what they read from the last layer: by the Kullback-Leibler divergence KL(last || this). The last
layer has none. Source: Belrose et al. 2023, arXiv 2303.08112; folders are those of their package `tuned-lens`
(`config.json`, `params.pt`), which loads what is saved here and the other way round.

To train in about a minute on two CPU cores, the divergence is taken over the tokens that are likely at any position of
the batch, one by one, and all others together, whose mass is estimated from a random sample of them. It is never more
than the divergence over the whole vocabulary; the numbers that are reported are over the whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from glotlift.errors import ModelError
from glotlift.explanation.self_test import self_test
from glotlift.explanation.unembedding import distributions, normed
from glotlift.models.anatomy import text_config
from glotlift.models.control import encode, quoter
from glotlift.models.head import language_model_head, token_logits
from glotlift.models.load import LoadedModel, digest
from glotlift.models.taps import block_outputs
from glotlift.names import published_name
from glotlift.runs import write_atomic, write_json

log = logging.getLogger("glotlift")

CONFIG, PARAMETERS = "config.json", "params.pt"

LONGEST = 128
"""Tokens of a text that are read."""

N_LIKELY = 16
"""Most likely tokens of every position that are taken one by one."""


@dataclass(frozen=True)
class TunedLens:
    """Translators of all layers but the last.

    Attributes:
        weights: *Shape:* (layers, hidden, hidden), fp32.
        biases: *Shape:* (layers, hidden), fp32.
        base_model: name of the model they were trained on.
        unembed_hash: tuned-lens's digest of its output matrix.
    """

    weights: Tensor
    biases: Tensor
    base_model: str
    unembed_hash: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of all numbers."""
        parts = [each.contiguous().numpy().tobytes() for each in (self.weights, self.biases)]
        return digest([hashlib.sha256(part).hexdigest() for part in parts])

    def translate(self, states: Tensor) -> Tensor:
        """Return states as the last layer would have them.

        Args:
            states: of all layers, embedding output first. *Shape:* (items, layers + 1, hidden).

        Returns:
            *Shape:* as `states`; the last layer's are unchanged.
        """
        moved = _moved(states[:, :-1].float().cpu(), self.weights, self.biases)
        return torch.cat([moved, states[:, -1:].float().cpu()], 1)


def _moved(states: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    return states + torch.einsum("plh,lkh->plk", states, weights) + biases


@dataclass(frozen=True)
class TunedLensTraining:
    """How translators are trained.

    Attributes:
        n_positions: tokens whose states are kept, of which a tenth, of texts of their own, only tests.
        batch_size: of them in a step.
        n_steps: of the optimizer.
        learning_rate: of Adam, at the beginning; falls linearly to 0.
        n_sampled: tokens by which the mass of the unlikely ones is estimated.
        seed: of texts, positions and samples.
    """

    n_positions: int = 4096
    batch_size: int = 192
    n_steps: int = 80
    learning_rate: float = 1e-3
    n_sampled: int = 1024
    seed: int = 0


def fit_tuned_lens(
    loaded: LoadedModel,
    texts: Sequence[str],
    *,
    training: TunedLensTraining | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[TunedLens, pd.DataFrame]:
    """Train the translators of the base model.

    Args:
        loaded: the model.
        texts: unlabelled; a lens reads best what is like them.
        training: how.
        progress: called with the number of steps done.

    Returns:
        The lens, and one row a layer: `layer`, `kl_bits_plain` and `kl_bits_tuned`, the divergence from the last layer
        over the whole vocabulary at positions it was not trained on, and `n` of these.

    Raises:
        ModelError: the texts hold too few tokens, or the model cannot be looked into.
        RunError: the model is read wrongly, see `glotlift.explanation.self_test`.
    """
    self_test(loaded, "base")
    how, advance = training or TunedLensTraining(), progress or (lambda _n: None)
    generator = torch.Generator().manual_seed(how.seed)
    with loaded.as_variant("base") as model:
        states, is_test = _states(model, loaded, texts, how, generator)
        seen, tested = states[~is_test], states[is_test]
        likely = _likely(model, seen[:, -1])
        weights, biases = _train(model, seen, likely, how, generator, advance)
        lens = TunedLens(weights, biases, published_name(loaded.name), _unembed_hash(model))
        plain, tuned = (_divergence(model, each) for each in (tested, lens.translate(tested)))
    layers = np.arange(len(plain))
    columns = {"layer": layers, "kl_bits_plain": plain, "kl_bits_tuned": tuned, "n": len(tested)}
    return lens, pd.DataFrame(columns)


def _states(
    model: nn.Module, loaded: LoadedModel, texts: Sequence[str], how: TunedLensTraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return states, *shape* (positions, layers + 1, hidden), and which of them only test; the first token has none."""
    quote = quoter(loaded.tokenizer)
    order = torch.randperm(len(texts), generator=generator).tolist()
    parts, tests, count = [], [], 0
    device = next(model.parameters()).device
    with torch.no_grad():
        for place, index in enumerate(order):
            (tokens,) = encode(loaded.tokenizer, [quote(str(texts[index]))])
            if len(tokens) < 2:
                continue
            found: list[Tensor] = []
            with block_outputs(model, found, lambda hidden: hidden[0, 1:].float().cpu()):
                model(input_ids=torch.tensor([tokens[:LONGEST]], device=device), use_cache=False, logits_to_keep=1)
            parts.append(torch.stack(found, 1))
            tests += [place % 10 == 0] * len(parts[-1])
            count += len(parts[-1])
            if count >= how.n_positions:
                break
    is_test = torch.tensor(tests, dtype=torch.bool)
    if not parts or is_test.all() or not is_test.any():
        raise ModelError(f"got {len(texts)} texts to train a tuned lens on, expected several with two tokens or more")
    return torch.cat(parts), is_test


def _likely(model: nn.Module, last: Tensor) -> Tensor:
    """Return the most likely tokens of every position. *Shape:* (positions, up to 16)."""
    found = [distributions(model, part[:, None], (), n_top=N_LIKELY).top_tokens[:, 0] for part in last.split(256)]
    return torch.cat(found)


def _train(
    model: nn.Module,
    states: Tensor,
    likely: Tensor,
    how: TunedLensTraining,
    generator: torch.Generator,
    advance: Callable[[int], Any],
) -> tuple[Tensor, Tensor]:
    """Return weights and biases.

    What is stepped is in units of each feature's and each layer's own size, since some features are a thousand times as
    large as others.
    """
    inputs = states[:, :-1]
    feature = inputs.square().mean(0).sqrt().clamp(min=1e-6)  # (layers, hidden)
    size = inputs.square().mean((0, 2)).sqrt()[:, None]
    n_layers, hidden = feature.shape
    steps = [torch.zeros(n_layers, hidden, hidden, requires_grad=True), torch.zeros_like(feature, requires_grad=True)]
    optimizer = torch.optim.Adam(steps, lr=how.learning_rate, amsgrad=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, how.n_steps)

    def mapped() -> tuple[Tensor, Tensor]:
        return steps[0] * size[:, :, None] / feature[:, None, :], steps[1] * size

    for _ in range(how.n_steps):
        chosen = torch.randint(len(states), (how.batch_size,), generator=generator)
        tokens, sampled = _tokens(likely[chosen], _vocabulary_size(model), how.n_sampled, generator)
        target = _coarse(model, states[chosen, -1], tokens, sampled).detach()
        moved = _moved(inputs[chosen], *mapped())
        read = _coarse(model, moved.flatten(0, 1), tokens, sampled).unflatten(0, moved.shape[:2])
        loss = (target.exp()[:, None] * (target[:, None] - read)).sum(-1).mean(0).sum()
        for parameter, gradient in zip(steps, torch.autograd.grad(loss, steps), strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
        advance(1)
    weights, biases = mapped()
    return weights.detach(), biases.detach()


def _vocabulary_size(model: nn.Module) -> int:
    head: Any = language_model_head(model)
    return int(head.weight.shape[0])


def _tokens(likely: Tensor, n_all: int, n_sampled: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Return the tokens that are taken one by one, and a sample of the others; all one by one where they are few."""
    listed = torch.unique(likely)
    if n_all <= len(listed) + n_sampled:
        return list(range(n_all)), []
    others = torch.ones(n_all, dtype=torch.bool)
    others[listed] = False
    rest = others.nonzero()[:, 0]
    drawn = rest[torch.randint(len(rest), (n_sampled,), generator=generator)]
    return listed.tolist(), drawn.tolist()


def _coarse(model: nn.Module, states: Tensor, tokens: list[int], sampled: list[int]) -> Tensor:
    """Return log-probabilities of the tokens, and behind them of all others together, estimated from a sample.

    *Shape:* (states, hidden) -> (states, tokens + 1), or (states, tokens) where there are no others.
    """
    logits = token_logits(model, normed(model, states), [*tokens, *sampled]).cpu()
    if not sampled:
        return logits.log_softmax(-1)
    n_others = _vocabulary_size(model) - len(tokens)
    rest = logits[:, len(tokens) :].logsumexp(-1, keepdim=True) + np.log(n_others / len(sampled))
    return torch.cat([logits[:, : len(tokens)], rest], 1).log_softmax(-1)


def _divergence(model: nn.Module, states: Tensor) -> np.ndarray:
    """Return the mean divergence of every layer but the last from the last, in bits. *Shape:* (layers,)."""
    step = max(1, 512 // states.shape[1])
    found = torch.cat([distributions(model, part, ()).divergence for part in states.split(step)])
    return found.double().mean(0)[:-1].numpy() / np.log(2)


def save_tuned_lens(lens: TunedLens, folder: Path) -> None:
    """Write a lens as the package tuned-lens does.

    Args:
        lens: the lens.
        folder: gets `config.json` and `params.pt`.
    """
    content: dict[str, Tensor] = {}
    for layer, (weight, bias) in enumerate(zip(lens.weights, lens.biases, strict=True)):
        content |= {f"{layer}.weight": weight.clone(), f"{layer}.bias": bias.clone()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / PARAMETERS, lambda file: torch.save(content, file))
    n_layers, hidden = lens.biases.shape
    write_json(
        folder / CONFIG,
        {
            "base_model_name_or_path": lens.base_model, "d_model": hidden, "num_hidden_layers": n_layers, "bias": True,
            "base_model_revision": None, "unembed_hash": lens.unembed_hash, "lens_type": "linear_tuned_lens",
        },
    )  # fmt: skip


def load_tuned_lens(folder: str | Path, loaded: LoadedModel) -> TunedLens:
    """Return the lens of a folder; its tensors are read without running code of the file.

    Args:
        folder: that holds `config.json` and `params.pt`.
        loaded: the model that it is to read.

    Raises:
        ModelError: a file is missing or damaged, or the lens is of a model of another shape.
    """
    path = Path(folder)
    config = text_config(loaded.model)
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        content = torch.load(path / PARAMETERS, map_location="cpu", weights_only=True)
        n_layers = int(about["num_hidden_layers"])
        weights = torch.stack([content[f"{layer}.weight"].float() for layer in range(n_layers)])
        zero = weights.new_zeros(weights.shape[-1])
        biases = torch.stack([content.get(f"{layer}.bias", zero).float() for layer in range(n_layers)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as fault:
        text = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise ModelError(f"{path}: cannot be read as a tuned lens ({text})") from None
    if weights.shape[:2] != (config.num_hidden_layers, config.hidden_size):
        got = f"got a tuned lens of {weights.shape[0]} layers, hidden size {weights.shape[1]}"
        raise ModelError(
            f"{path}: {got}, expected {config.num_hidden_layers} and {config.hidden_size}: it is of another model"
        )
    if about.get("unembed_hash") not in (None, _unembed_hash(loaded.model)):
        log.warning("%s: the tuned lens was trained with another output matrix than that of %s", path, loaded.name)
    return TunedLens(weights, biases, str(about.get("base_model_name_or_path")), about.get("unembed_hash"))


def _unembed_hash(model: nn.Module) -> str:
    """Return tuned-lens's digest of the output matrix: of its corners, printed with one decimal."""
    head: Any = language_model_head(model)
    matrix = head.weight.detach().float().cpu().numpy()
    return hashlib.sha256(np.array_str(matrix, precision=1).encode()).hexdigest()
