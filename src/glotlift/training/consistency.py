"""Consistency: the model answers in every language as it does in English (self-distillation without labels).

Enters: the same questions in several languages, and for each the label scores that are its target (see
`glotlift.training.teacher`). Leaves: the loss of a batch.

The student is the model with its adapter, asked in language X. What is learned are its label scores, the exact
log-probabilities of whole answer words over the label trie, less their mean over the labels: for two labels, half
their log-odds to either side. The distance to the target is Huber's, so a question that the teacher finds extreme does
not outweigh the others. Nothing but label positions is learned, and the head is needed at label tokens only; behind
the first token of a longer word it is run whole, because there the words' normalizers differ.

Sources: self-distillation from the adapter switched off, as in arXiv 2605.09548, with label log-odds as in contrastive
consistency (arXiv 2603.04678), each language's mean taken off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from glotlift.models.head import head_logits, token_logits
from glotlift.models.packing import Row
from glotlift.models.together import lay_together, states_together
from glotlift.training.objective import Part
from glotlift.training.settings import TrainSettings
from glotlift.training.teacher import Answers


class Questions(Protocol):
    """Questions in one language, as tokens; `glotlift.evaluation.prompts.Prompts` is one."""

    @property
    def rows(self) -> Sequence[Row]:
        """Their prompts, with the label words behind them."""
        ...


@dataclass(frozen=True)
class ScoreRow:
    """A question in a language, and the label scores it should get.

    Attributes:
        id: `<code>:<name>`.
        language: code of the language it is asked in.
        row: the prompt, and the label words as a trie.
        target: a score a label, in nats, summing to 0.
        question: name of the question that it is, or is a sentence of.
    """

    id: str
    language: str
    row: Row
    target: tuple[float, ...]
    question: str = ""

    @property
    def length(self) -> int:
        """Tokens that run, demonstrations that are shared included."""
        return len(self.row.prompt) + self.row.n_nodes

    @property
    def weight(self) -> int:
        """Every question counts the same."""
        return 1


@dataclass(frozen=True)
class Consistency:
    """Label scores drawn to their targets.

    Attributes:
        model: whose masks the batches are made for.
        threshold: distance in nats up to which the loss is squared, and linear behind it (Huber).
    """

    model: nn.Module
    threshold: float = 1.0

    def collate(self, rows: Sequence[ScoreRow]) -> dict[str, Any]:
        """Return rows in one sequence: inputs of the model, places, tries and targets."""
        given, places = lay_together(self.model, [row.row for row in rows])
        return {
            "given": given,
            "nodes": places.nodes,
            "steps": [row.row.trie.steps for row in rows if row.row.trie],
            "targets": torch.tensor([row.target for row in rows]),
            "ids": [row.id for row in rows],
        }

    def loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the summed Huber distance in nats, a mean over the labels for every row."""
        states = states_together(model, inputs["given"])
        scores = label_scores(model, states, inputs["nodes"], inputs["steps"])
        distance = nn.functional.huber_loss(
            scores, inputs["targets"].to(scores), reduction="none", delta=self.threshold
        )
        return distance.mean(1).sum()


def label_scores(
    model: nn.Module,
    states: Tensor,
    nodes: Sequence[Sequence[int]],
    steps: Sequence[Sequence[Sequence[tuple[int, int]]]],
) -> Tensor:
    """Return the log-probabilities of label words, less their mean over the labels, with gradients.

    Args:
        model: whose head is used.
        states: behind the final norm. *Shape:* (length, hidden).
        nodes: for every row, the columns of its trie nodes, root first.
        steps: for every row, `LabelTrie.steps`.

    Returns:
        *Shape:* (rows, labels), in nats.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    tokens = sorted({token for paths in steps for path in paths for _, token in path})
    column = {token: index for index, token in enumerate(tokens)}
    roots = token_logits(inner, states[[each[0] for each in nodes]], tokens)
    deep = [place for each in nodes for place in each[1:]]
    # a root's normalizer is common to all labels and goes with their mean; deeper ones are not
    below = head_logits(inner, states[deep]).float().log_softmax(-1)[:, tokens] if deep else None
    found, first = [], 0
    for index, (own, paths) in enumerate(zip(nodes, steps, strict=True)):
        scores = []
        for path in paths:
            parts = [
                roots[index, column[token]] if node == 0 or below is None else below[first + node - 1, column[token]]
                for node, token in path
            ]
            scores.append(torch.stack(parts).sum())
        found.append(torch.stack(scores))
        first += len(own) - 1
    scores = torch.stack(found)
    return scores - scores.mean(1, keepdim=True)


def score_rows(
    prompts: Mapping[str, Questions], answers: Mapping[str, Answers], targets: Mapping[str, np.ndarray]
) -> list[ScoreRow]:
    """Return the rows of the languages that have targets.

    Args:
        prompts: language -> its questions as tokens.
        answers: language -> their names, in the same order.
        targets: language -> target scores, see `teacher_targets`.
    """
    return [
        ScoreRow(f"{code}:{name}", code, row, tuple(map(float, target)), question)
        for code, scores in targets.items()
        for name, question, row, target in zip(
            answers[code].names, answers[code].questions, prompts[code].rows, scores, strict=True
        )
    ]


def consistency_part(
    model: nn.Module, rows: Sequence[ScoreRow], held_out: Collection[str], settings: TrainSettings
) -> tuple[Part, list[ScoreRow]]:
    """Return the part of a training that learns consistency, and the rows that validate it.

    Args:
        model: the base model.
        rows: from `score_rows`.
        held_out: names of the questions that validate, their sentences with them.
        settings: `batch_size`.
    """
    learned, validating = [], []
    for row in rows:
        (validating if row.question in held_out else learned).append(row)
    part = Part("consistency", Consistency(model), learned, 1.0, settings.batch_size, by_language=True)
    return part, validating
