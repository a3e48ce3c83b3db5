"""Parts of benchmarks/gpu.py that ask for label scores: the cached pass, batches, memory, speed.

In bf16, where every kernel rounds in its own way, what is compared is the error: of a score against the same in fp32,
the root mean square over items and labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from evaluate import _plain
from glotlift.evaluation.predict import predict
from glotlift.models.packing import shared_length
from gpu_bench import SAME, Bench, Figure, at_least, at_most, heard
from gpu_models import LARGE, SMALL, WINDOWED, load, prompts_of, sizes


def scores(loaded, prompts, **options):
    """Return log-probabilities of every label word and of its first token. *Shape:* (items, 2 x labels)."""
    frame = predict(loaded, prompts, "base", **options)
    return frame[[f"{kind}_{label}" for kind in ("sequence", "first_token") for label in prompts.labels]].to_numpy()


def first(prompts, n_items):
    """Return the prompts of the first items alone."""
    kept = {name: getattr(prompts, name)[:n_items] for name in ("items", "texts", "rows")}
    return replace(prompts, **kept, content_free=[])


def both_ways(loaded, prompts, attention):
    """Return the scores of the cached pass and of transformers' own forward."""
    loaded.model.set_attn_implementation(attention)
    return scores(loaded, prompts), scores(loaded, prompts, prefix_cache=False)


def error(found, exact):
    """Return the root mean square difference."""
    return float(np.sqrt(np.square(found - exact).mean()))


def parity(bench: Bench) -> Iterator[Figure]:
    """The cached pass against transformers' own forward, on the same weights in both dtypes."""
    for shape in (WINDOWED, *bench.some((SMALL, LARGE))):
        loaded = load(shape, bench.device, torch.bfloat16, toy=bench.toy)
        prompts = prompts_of(loaded, bench.size(8 if shape == LARGE else 24, 3), bench.shown)
        kinds = ("sdpa",) if shape == LARGE else ("sdpa", "eager")
        rounded = {kind: both_ways(loaded, prompts, kind) for kind in kinds}
        loaded.model.float()
        exact = {kind: both_ways(loaded, prompts, kind) for kind in kinds}
        truth = exact["sdpa"][1]
        for kind in kinds:
            cached, plain = exact[kind]
            what = f"{shape}, fp32, {kind}: largest difference of a log-probability"
            yield at_most(what, np.abs(cached - plain).max(), SAME)
            cached, plain = rounded[kind]
            yield Figure(f"{shape}, bf16, {kind}: error of the plain forward", error(plain, truth))
            what = f"{shape}, bf16, {kind}: error of the cached pass over that"
            yield at_most(what, error(cached, truth) / error(plain, truth), 2)
        del loaded
        bench.free()


def batches(bench: Bench) -> Iterator[Figure]:
    """Label scores at several batch sizes against those of items that run alone."""
    loaded = load(SMALL, bench.device, torch.bfloat16, toy=bench.toy)
    prompts = prompts_of(loaded, bench.size(48, 4), bench.shown)
    several = {str(size): {"batch_size": size} for size in (2, 16)} | {"as the budget allows": {}}
    rounded = {name: scores(loaded, prompts, **how) for name, how in several.items()}
    alone_rounded = scores(loaded, prompts, batch_size=1)
    loaded.model.float()
    alone = scores(loaded, prompts, batch_size=1)
    for name, how in several.items():
        apart = np.abs(scores(loaded, prompts, **how) - alone).max()
        yield at_most(f"fp32, batch {name}: largest difference to batch 1", apart, SAME)
        ratio = error(rounded[name], alone) / error(alone_rounded, alone)
        yield at_most(f"bf16, batch {name}: error over that of batch 1", ratio, 2)


@contextmanager
def short_of_memory(bench, model, n_bytes, n_tokens):
    """Leave `n_bytes` more than is in use; on a CPU pretend that more than `n_tokens` tokens do not fit."""
    if bench.on_gpu:
        bench.free()
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + n_bytes) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def refuse(_module, _args, given):
        if given["input_ids"].numel() > n_tokens:
            raise torch.OutOfMemoryError("out of memory, pretended")

    handle = model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def memory(bench: Bench) -> Iterator[Figure]:
    """A batch that does not fit is halved, and scores stay."""
    loaded = load(SMALL, bench.device, torch.float32, toy=bench.toy)
    prompts = prompts_of(loaded, bench.size(96, 4), bench.shown)
    rows = [*prompts.rows, *prompts.content_free]
    shared = shared_length(rows)
    budget = sum(len(row.prompt) - shared + row.n_nodes for row in rows)
    bench.free()
    before = bench.used()
    whole = scores(loaded, prompts, token_budget=budget)
    taken = bench.most() - before
    yield Figure("batches as they come: GiB beside the model", taken / 2**30)
    with short_of_memory(bench, loaded.model, taken / 2, max(shared, budget // 2)), heard("out of memory") as said:
        halved = scores(loaded, prompts, token_budget=budget)
    yield at_least("with half of that: times a batch was halved", len(said), 1)
    yield at_most("largest difference of a log-probability", np.abs(halved - whole).max(), SAME)


def evaluate(bench: Bench) -> Iterator[Figure]:
    """Items and tokens a second, against the plain loop of benchmarks/evaluate.py: batch 1, nothing cached."""
    for shape in bench.some((SMALL, LARGE)):
        loaded = load(shape, bench.device, torch.bfloat16, toy=bench.toy)
        n_items = bench.size(256 if shape == SMALL else 96, 4)
        prompts = prompts_of(loaded, n_items, bench.shown)
        few = first(prompts, bench.size(32, 2))
        _plain(loaded, first(few, 2))
        bench.free()
        plain = bench.seconds(_plain, loaded, few) / len(few.rows)
        yield Figure(f"{shape}: items/s of the plain loop", 1 / plain)
        yield Figure(f"{shape}: peak GiB of the plain loop", bench.most() / 2**30)
        rows = [*prompts.rows, *prompts.content_free]
        shared = shared_length(rows)
        tokens = sum(len(row.prompt) - shared + row.n_nodes for row in rows)
        body, head = sizes(loaded.model)
        operations = 2 * (body * tokens + head * sum(1 + row.n_nodes for row in rows))
        for budget in bench.some((1024, 4096, 16384)):
            scores(loaded, few, token_budget=budget)
            bench.free()
            seconds = bench.seconds(scores, loaded, prompts, token_budget=budget)
            name = f"{shape}, {budget} tokens at once"
            yield Figure(f"{name}: items/s", n_items / seconds)
            yield Figure(f"{name}: tokens/s, without those that items share", tokens / seconds)
            yield Figure(f"{name}: times faster than the plain loop", plain * n_items / seconds)
            yield Figure(f"{name}: share of the bf16 peak", operations / seconds / bench.peak)
            yield Figure(f"{name}: peak GiB", bench.most() / 2**30)
        del loaded
        bench.free()
