"""Predictions: a model, a task and a language -> one row an item.

Enters: a loaded model and items. Leaves: `predictions/<variant>/<task>/<language>.parquet` with, per item and label,
both scores of one pass:

    sequence_<label>      natural log of the probability of the whole label word behind the prompt
    prefix_mass_<label>   next-token probability of all tokens that are prefixes of the word (arXiv 2405.13816)

A file carries the fingerprint of all its numbers depend on: weights, adapter, dtype, prompt tokens, label tokens. It is
used again only when that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from glotlift.errors import ModelError
from glotlift.models.forward import TOKEN_BUDGET, Batch, Row, check_lengths, run
from glotlift.models.labels import build_trie, continuations, encode, prefix_tokens
from glotlift.models.load import LoadedModel, digest
from glotlift.runs import parquet_metadata, write_parquet
from glotlift.tasks.task import AnswerSet, Item, Task

SCORINGS = ("sequence", "prefix-mass")


@dataclass(frozen=True)
class Prompts:
    """The items of a task in one language, as tokens.

    Attributes:
        task: name of the task.
        language: code of the prompt language.
        words: label id -> answer word.
        items: the items, in the order of the rows.
        rows: what the model runs.
        prefix_sets: for every label, the tokens that `prefix-mass` counts.
        num_fewshot: demonstrations of a prompt.
    """

    task: str
    language: str
    words: AnswerSet
    items: Sequence[Item]
    rows: list[Row]
    prefix_sets: list[list[int]]
    num_fewshot: int

    @property
    def labels(self) -> list[str]:
        """Label ids, in the task's order."""
        return list(self.words)


def prepare(
    loaded: LoadedModel,
    task: Task,
    language: str,
    items: Sequence[Item],
    answers: str,
    *,
    num_fewshot: int | None = None,
) -> Prompts:
    """Tokenize the prompts of a task in one language, each as a whole string with each label word behind it.

    Raises:
        LanguageError: the task has no prompts in the language.
        TaskError: it has no such answer set.
        ModelError: a prompt is longer than the model's window, or two labels have the same tokens.
    """
    words = task.answers(language, answers)
    texts = []
    for item in items:
        prompt = task.prompt(language, answers, item.fields, num_fewshot)
        texts += [prompt, *(prompt + word for word in words.values())]
    encoded = encode(loaded.tokenizer, texts)
    preamble = encode(loaded.tokenizer, [task.preamble(language, answers, num_fewshot)])[0]
    rows = []
    for start in range(0, len(encoded), len(words) + 1):
        prompt_ids, *whole = encoded[start : start + len(words) + 1]
        root, paths = continuations(prompt_ids, whole)
        if len(set(paths)) < len(paths) or not all(paths):
            raise ModelError(
                f"task {task.name!r}, {language}: the tokenizer gives two of the words {', '.join(words.values())} "
                "the same tokens, expected different ones"
            )
        span = (_shared(preamble, prompt_ids), len(prompt_ids))
        rows.append(Row(tuple(prompt_ids), build_trie(paths), root, span))
    try:
        check_lengths(loaded.model, rows)
    except ModelError as fault:
        raise ModelError(f"task {task.name!r}, {language}: {fault}") from None
    sets = [sorted(prefix_tokens(loaded.tokenizer, word)) for word in words.values()]
    shown = len(task.pack(language).demonstrations[:num_fewshot])
    return Prompts(task.name, language, words, items, rows, sets, shown)


def _shared(preamble: Sequence[int], prompt: Sequence[int]) -> int:
    pairs = zip(preamble, prompt, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(preamble), len(prompt)))


def predict(
    loaded: LoadedModel,
    prompts: Prompts,
    variant: str,
    *,
    scoring: str = "sequence",
    token_budget: int = TOKEN_BUDGET,
    prefix_cache: bool = True,
    progress: Any = None,
) -> pd.DataFrame:
    """Score every label of every item.

    Args:
        loaded: the model.
        prompts: from `prepare`.
        variant: `base` (adapter off) or `tuned` (adapter on).
        scoring: which scores decide: one of `SCORINGS`.
        token_budget: tokens of a batch.
        prefix_cache: False runs every prompt alone and whole, as a reference.
        progress: called with the number of items done, batch by batch.

    Returns:
        A frame in the order of the items: `id`, `gold`, `predicted`, `tied` (labels that share the best score, 1 where
        none does; the first label wins), `n_tokens`, `sequence_<label>` (natural log), `prefix_mass_<label>` (0 to 1).
    """
    scores: dict[int, tuple[list[float], list[float]]] = {}
    with loaded.as_variant(variant) as model:
        passes = run(model, prompts.rows, token_budget=token_budget) if prefix_cache else _plain(model, prompts.rows)
        for batch in passes:
            scores.update(_reduce(batch, prompts))
            if progress is not None:
                progress(len(batch.rows))
    return _frame(prompts, [scores[index] for index in range(len(prompts.rows))], scoring)


def _reduce(batch: Batch, prompts: Prompts) -> dict[int, tuple[list[float], list[float]]]:
    """Return for every row its (sequence, prefix-mass) scores, one a label. Sums run in fp64 over fp32 log-softmax."""
    normalizer = batch.logits.float().logsumexp(-1)
    scores = {}
    for k, index in enumerate(batch.rows):
        trie = prompts.rows[index].trie
        assert trie is not None
        sequence = []
        for steps in trie.steps:
            positions = torch.tensor([batch.nodes[k][node] for node, _ in steps], device=normalizer.device)
            tokens = torch.tensor([token for _, token in steps], device=normalizer.device)
            log_probabilities = batch.logits[positions, tokens].float() - normalizer[positions]
            sequence.append(log_probabilities.double().sum().item())
        end = batch.prompt_end[k]
        mass = [_mass(batch.logits[end], normalizer[end], tokens) for tokens in prompts.prefix_sets]
        scores[index] = (sequence, mass)
    return scores


def _mass(logits: Tensor, normalizer: Tensor, tokens: list[int]) -> float:
    return (logits[tokens].float() - normalizer).double().exp().sum().item()


def _plain(model: Any, rows: Sequence[Row]) -> Iterator[Batch]:
    """Yield what `run` yields, by plain forward passes over whole prompts, one a label, nothing shared."""
    device = next(model.parameters()).device
    for index, row in enumerate(rows):
        assert row.trie is not None
        logits, nodes = [], [-1] * len(row.trie.tokens)
        for steps in row.trie.steps:
            tokens = [*row.prompt[: row.root], *(token for _, token in steps)]
            ids = torch.tensor([tokens], device=device)
            with torch.inference_mode():
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            for depth, (node, _) in enumerate(steps):
                nodes[node] = len(logits)
                logits.append(out[row.root - 1 + depth])
        end = nodes[0]
        if row.root < len(row.prompt):
            with torch.inference_mode():
                ids = torch.tensor([row.prompt], device=device)
                logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1])
            end = len(logits) - 1
        yield Batch([index], torch.stack(logits), [end], [nodes])


def _frame(prompts: Prompts, scores: list[tuple[list[float], list[float]]], scoring: str) -> pd.DataFrame:
    labels = prompts.labels
    deciding = [pair[SCORINGS.index(scoring)] for pair in scores]
    columns: dict[str, list] = {
        "id": [item.id for item in prompts.items],
        "gold": [item.gold for item in prompts.items],
        "predicted": [labels[row.index(max(row))] for row in deciding],
        "tied": [row.count(max(row)) for row in deciding],
        "n_tokens": [len(row.prompt) for row in prompts.rows],
    }
    for position, label in enumerate(labels):
        columns[f"sequence_{label}"] = [sequence[position] for sequence, _ in scores]
    for position, label in enumerate(labels):
        columns[f"prefix_mass_{label}"] = [mass[position] for _, mass in scores]
    if not all(math.isfinite(value) for pair in scores for values in pair for value in values):
        raise ModelError(
            f"task {prompts.task!r}, {prompts.language}: the model gives scores that are not finite; "
            "expected numbers (try --dtype float32)"
        )
    return pd.DataFrame(columns)


def prediction_fingerprint(loaded: LoadedModel, prompts: Prompts, variant: str, scoring: str) -> str:
    """Return the digest of all that a prediction file's numbers depend on."""
    rows = [(row.prompt, row.root, row.trie.steps if row.trie else None) for row in prompts.rows]
    gold = [(item.id, item.gold) for item in prompts.items]
    return digest(loaded.variant_fingerprint(variant), rows, gold, prompts.labels, prompts.prefix_sets, scoring)


def predict_to_file(
    path: Path,
    loaded: LoadedModel,
    prompts: Prompts,
    variant: str,
    *,
    task_key: str,
    answers: str,
    scoring: str,
    token_budget: int,
    prefix_cache: bool,
    progress: Any = None,
) -> bool:
    """Write a prediction file unless it is there with the same fingerprint; return whether it was computed."""
    fingerprint = prediction_fingerprint(loaded, prompts, variant, scoring)
    if parquet_metadata(path).get("fingerprint") == fingerprint:
        if progress is not None:
            progress(len(prompts.rows))
        return False
    options = {"scoring": scoring, "token_budget": token_budget, "prefix_cache": prefix_cache, "progress": progress}
    frame = predict(loaded, prompts, variant, **options)
    metadata = {
        "fingerprint": fingerprint,
        "task": task_key,
        "language": prompts.language,
        "variant": variant,
        "model": loaded.name,
        "answers": answers,
        "scoring": scoring,
        "labels": prompts.labels,
        "label_words": dict(prompts.words),
        "num_fewshot": prompts.num_fewshot,
    }
    write_parquet(path, frame, metadata)
    return True
