"""What is learned: cross entropy on the target tokens, and nothing else.

Enters: question pairs. Leaves: token rows with labels, batches, and the loss of a batch.

The prompt is read, the target with its end-of-sequence token is learned. The language-model head is applied at target
positions only, which matters with a vocabulary of 262,144. The loss of an optimizer step is the mean over all its
target tokens, so it does not depend on how the step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from glotlift.data.questions import QuestionPair
from glotlift.errors import DataError
from glotlift.models.head import base_model, head_positions
from glotlift.models.labels import continuations, encode

IGNORED = -100
"""Label of a token that is read and not learned."""


def tokenize_pair(tokenizer: PreTrainedTokenizerBase, pair: QuestionPair, max_length: int) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of a pair, both of the same length.

    Prompt and target are tokenized as one string.

    Raises:
        DataError: the pair is longer than `max_length`.
    """
    prompt, whole = encode(tokenizer, [pair.input, pair.input + pair.target])
    n_read, (target,) = continuations(prompt, [whole])
    end = tokenizer.eos_token_id
    learned = [*target, *([end] if isinstance(end, int) else [])]
    if n_read + len(learned) > max_length:
        raise DataError(
            f"pair {pair.id!r} has {n_read + len(learned)} tokens, expected at most {max_length}; "
            "raise train.max_length or drop the pair"
        )
    return {"input_ids": prompt[:n_read] + learned, "labels": [IGNORED] * n_read + learned}


@dataclass(frozen=True)
class Collator:
    """Puts rows into one batch, padded on the right.

    Attributes:
        pad: id of the token that fills; it is masked.
    """

    pad: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`. *Shapes:* (rows, length)."""
        length = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> Tensor:
            return torch.tensor([[*row[key], *[fill] * (length - len(row[key]))] for row in rows])

        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows])
        return {"input_ids": padded("input_ids", self.pad), "attention_mask": mask, "labels": padded("labels", IGNORED)}


def target_loss(model: nn.Module, inputs: dict[str, Tensor], n_targets: Tensor | int | None = None) -> Tensor:
    """Return the cross entropy of the target tokens, in nats.

    Args:
        model: the model, possibly wrapped for data-parallel training.
        inputs: from `Collator`.
        n_targets: what the sum is divided by: target tokens of the whole optimizer step; None for those of this batch.
    """
    labels = inputs["labels"]
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    with head_positions(base_model(inner), rows, columns):
        read = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**read, use_cache=False).logits[0]
    total = nn.functional.cross_entropy(logits.float(), labels[rows, columns + 1], reduction="sum")
    return total / (len(rows) if n_targets is None else n_targets)
