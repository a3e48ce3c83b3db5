"""Translation, as published (arXiv 2405.13816): cross entropy on the target tokens, and nothing else.

Enters: token rows. Leaves: the loss of a batch.

The prompt is read, the target is learned. The language-model head is applied at target positions only, which matters
with a vocabulary of 262,144. The loss of an optimizer step is the mean over all its target tokens, so it does not
depend on how the step is cut into micro-batches or over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glotlift.data.questions import QuestionPair
from glotlift.models.head import given_to_head, head_positions
from glotlift.models.load import LoadedModel
from glotlift.training.head_loss import can_stream, head_loss
from glotlift.training.objective import Part
from glotlift.training.rows import IGNORED, TokenRow, tokenize_pairs
from glotlift.training.settings import TrainSettings


@dataclass(frozen=True)
class Translation:
    """The target of a pair learned behind its input.

    Attributes:
        pad: id of the token that fills; it is masked.
    """

    pad: int

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` and `labels`, *shapes* (rows, length), and `ids`, those of the rows."""
        length = max(len(row.input_ids) for row in rows)

        def padded(values: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([[*row, *[fill] * (length - len(row))] for row in values])

        return {
            "input_ids": padded([row.input_ids for row in rows], self.pad),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
            "labels": padded([row.labels for row in rows], IGNORED),
            "ids": [row.id for row in rows],
        }

    def loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the summed cross entropy of the target tokens, in nats."""
        return target_loss(model, inputs)


def target_loss(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the summed cross entropy of the target tokens, in nats.

    Args:
        model: the model, possibly wrapped for data-parallel training.
        inputs: from `Translation.collate`.
    """
    labels = inputs["labels"]
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns + 1]
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    read = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    if can_stream(inner):
        with given_to_head(inner) as seen:
            model(**read)
        return head_loss(inner, seen[0][rows, columns], targets)
    with head_positions(inner, rows, columns):
        logits = model(**read).logits[0]
    whole = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(whole, targets, reduction="sum")


def translation_part(
    loaded: LoadedModel,
    pairs: Sequence[QuestionPair],
    settings: TrainSettings,
    layout: str = "",
    weight: float = 1.0,
) -> Part:
    """Return the part of a training that learns to translate; arguments as `tokenize_pairs`."""
    rows = tokenize_pairs(loaded.tokenizer, pairs, settings, layout)
    return Part("translation", Translation(_padding(loaded.tokenizer)), rows, weight, settings.batch_size)


def _padding(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return pad if isinstance(pad, int) else 0
