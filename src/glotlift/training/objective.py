"""What is learned: cross entropy on the target tokens, and nothing else.

Enters: token rows. Leaves: batches, and the loss of a batch.

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

from glotlift.models.head import final_states, head_positions
from glotlift.training.head_loss import can_stream, head_loss
from glotlift.training.rows import IGNORED, TokenRow


@dataclass(frozen=True)
class Collator:
    """Puts rows into one batch, padded on the right.

    Attributes:
        pad: id of the token that fills; it is masked.
    """

    pad: int

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
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


def target_loss(model: nn.Module, inputs: dict[str, Any], n_targets: Tensor | int | None = None) -> Tensor:
    """Return the cross entropy of the target tokens, in nats.

    Args:
        model: the model, possibly wrapped for data-parallel training.
        inputs: from `Collator`.
        n_targets: what the sum is divided by: target tokens of the whole optimizer step; None for those of this batch.
    """
    labels = inputs["labels"]
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns + 1]
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    read = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    if can_stream(inner):
        with final_states(inner) as seen:
            model(**read)
        total = head_loss(inner, seen[0][rows, columns], targets)
    else:
        with head_positions(inner, rows, columns):
            logits = model(**read).logits[0]
        whole = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = nn.functional.cross_entropy(whole, targets, reduction="sum")
    return total / (len(rows) if n_targets is None else n_targets)
