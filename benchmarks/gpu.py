"""What glotlift does on a GPU, checked and measured in one run of eight minutes; needs no network and no weights.

    python benchmarks/gpu.py [--parts parity,train] [--minutes 8] [--device cpu --toy]

Random models of real size are made in place (benchmarks/gpu_models.py), so that it runs on a machine that has torch, a
source checkout and the wheels that docs/gpu.md lists. Every part is a function of its own:

    parity          the cached pass against transformers' own forward: fp32 and bf16, sdpa and eager, sliding windows
    batches         label scores whatever the batch size
    memory          a batch that does not fit is halved, and scores stay; on a CPU the shortage is pretended
    train           a few steps against the same steps in fp32 on the CPU
    checkpointing   gradient checkpointing: the same losses, less memory
    quantization    a base in four bits, where bitsandbytes is installed
    fsdp            blocks and head sharded on one device: the same loss and gradient; then `tune` under accelerate
    merge           an adapter merged, with glotlift's own certificate
    evaluate        items/s and tokens/s against the plain loop, peak memory, share of the bf16 peak
    throughput      the same of training

In bf16, where every kernel rounds in its own way, what is compared is the error: of a score against the same in fp32,
the root mean square over items and labels; glotlift's may be twice the plain forward's. The bf16 peak is that of a
large matrix product, measured at the beginning. Operations are counted as benchmarks/evaluate.py and train.py do.

A part has its share of `--minutes`; one that fails or takes longer is reported with its error, and the others still
run. Prints Markdown for docs/gpu.md; the last line is JSON. Exit code 1 where a part failed, 0 else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import accelerate
import numpy as np
import peft
import torch
import transformers
from evaluate import _plain
from gpu_bench import (
    FAILED,
    Bench,
    Figure,
    Part,
    Skipped,
    as_json,
    at_least,
    at_most,
    heard,
    markdown,
    matrix_rate,
    run_part,
)
from gpu_models import LARGE, SMALL, WINDOWED, load, pairs_of, prompts_of, random_model, settings_of, sizes
from torch.distributed.fsdp import fully_shard

from glotlift.evaluation.predict import predict
from glotlift.models.anatomy import decoder_layers
from glotlift.models.load import load_model
from glotlift.models.packing import shared_length
from glotlift.models.together import to_device
from glotlift.training.merge import merge_adapter
from glotlift.training.objective import in_order
from glotlift.training.translation import target_loss, translation_part
from glotlift.training.tune import tune

ROOT = Path(__file__).resolve().parent.parent
FSDP = ROOT / "docs" / "accelerate" / "fsdp.yaml"
SAME = 1e-3
"""Nats by which two fp32 kernels may differ in the log-probability of a word, or in a loss."""


# --- scores


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
    for shape in (SMALL, WINDOWED, LARGE):
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
    for shape in (SMALL, LARGE):
        loaded = load(shape, bench.device, torch.bfloat16, toy=bench.toy)
        n_items = bench.size(256 if shape == SMALL else 96, 4)
        prompts = prompts_of(loaded, n_items, bench.shown)
        few = first(prompts, bench.size(32, 2))
        _plain(loaded, first(few, 2))
        bench.free()
        plain = bench.seconds(lambda few=few: _plain(loaded, few)) / len(few.rows)
        yield Figure(f"{shape}: items/s of the plain loop", 1 / plain)
        yield Figure(f"{shape}: peak GiB of the plain loop", bench.most() / 2**30)
        rows = [*prompts.rows, *prompts.content_free]
        shared = shared_length(rows)
        tokens = sum(len(row.prompt) - shared + row.n_nodes for row in rows)
        body, head = sizes(loaded.model)
        operations = 2 * (body * tokens + head * sum(1 + row.n_nodes for row in rows))
        for budget in (1024, 4096, 16384):
            scores(loaded, few, token_budget=budget)
            bench.free()
            seconds = bench.seconds(lambda budget=budget: scores(loaded, prompts, token_budget=budget))
            name = f"{shape}, {budget} tokens at once"
            yield Figure(f"{name}: items/s", n_items / seconds)
            yield Figure(f"{name}: tokens/s, without those that items share", tokens / seconds)
            yield Figure(f"{name}: times faster than the plain loop", plain * n_items / seconds)
            yield Figure(f"{name}: share of the bf16 peak", operations / seconds / bench.peak)
            yield Figure(f"{name}: peak GiB", bench.most() / 2**30)
        del loaded
        bench.free()


# --- training


def losses(bench, loaded, name, settings, n_pairs):
    """Train, and return the loss of every step and the tuned model."""
    part = translation_part(loaded, pairs_of(n_pairs), settings)
    model, history = tune(loaded, [part], [], bench.scratch / name, settings)
    return np.array([entry["loss"] for entry in history["log"]]), model


def placed(reference, device, dtype):
    """Return a model with the weights of another, elsewhere or in another dtype; what is no weight is made anew."""
    model = random_model(reference.model.config, device, dtype)
    model.load_state_dict(reference.model.state_dict())
    return replace(reference, model=model)


def train(bench: Bench) -> Iterator[Figure]:
    """The losses of a few steps against the same steps in fp32 on the CPU."""
    n_pairs, n_steps = bench.size(32, 8), 4
    settings = settings_of(n_pairs, n_steps)
    reference = load(SMALL, "cpu", torch.float32, toy=bench.toy, n_layers=2)
    tried = {
        "fp32": (placed(reference, bench.device, torch.float32), SAME),
        "bf16": (placed(reference, bench.device, torch.bfloat16), 0.05),
    }
    on_cpu, _ = losses(bench, reference, "on-cpu", settings, n_pairs)
    yield at_least("fp32 on the CPU: nats by which the loss falls", on_cpu[0] - on_cpu[-1], 0.02)
    for name, (loaded, limit) in tried.items():
        found, _ = losses(bench, loaded, f"train-{name}", settings, n_pairs)
        yield at_most(f"{name}: largest difference of a step's loss", np.abs(found - on_cpu).max(), limit)


def checkpointing(bench: Bench) -> Iterator[Figure]:
    """Gradient checkpointing: the same losses, and less memory."""
    n_pairs, n_steps = bench.size(96, 6), 3
    curves, taken = {}, {}
    for kept in (True, False):
        loaded = load(SMALL, bench.device, torch.bfloat16, toy=bench.toy)
        settings = settings_of(n_pairs, n_steps, bench.size(16, 4), gradient_checkpointing=not kept)
        bench.free()
        before = bench.used()
        curves[kept], _ = losses(bench, loaded, f"checkpointing-{kept}", settings, n_pairs)
        taken[kept] = (bench.most() - before) / 2**30
        del loaded
        bench.free()
    yield at_most("largest difference of a step's loss", np.abs(curves[False] - curves[True]).max(), 0.01)
    yield Figure("GiB beside the model, without", taken[True])
    with_it = "GiB beside the model, with"
    yield at_most(with_it, taken[False], taken[True]) if bench.on_gpu else Figure(with_it, taken[False])


def folder_of(bench):
    """Return the folder of a saved random model."""
    folder = bench.scratch / "model"
    if not folder.exists():
        loaded = load(SMALL, bench.device, torch.bfloat16, toy=bench.toy)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        del loaded
        bench.free()
    return str(folder)


def quantization(bench: Bench) -> Iterator[Figure]:
    """A base in four bits is a third of the size, and learns."""
    if not bench.on_gpu:
        raise Skipped("needs CUDA")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed")
    folder, n_pairs, n_steps = folder_of(bench), bench.size(32, 8), 4
    used = {}
    for kind in ("none", "4bit"):
        bench.free()
        before = bench.used()
        loaded = load_model(folder, dtype="bfloat16", device=str(bench.device), quantization=kind)
        used[kind] = bench.used() - before
        if kind == "none":
            del loaded
    yield at_most("weights over those in bf16", used["4bit"] / used["none"], 0.6)  # the embedding stays in bf16
    settings = settings_of(n_pairs, n_steps, quantization="4bit")
    found, _ = losses(bench, loaded, "quantization", settings, n_pairs)
    yield at_least("nats by which the loss falls", found[0] - found[-1], 0.02)


def fsdp(bench: Bench) -> Iterator[Figure]:
    """Sharded blocks and head: the same loss and gradient; then `glotlift train` under accelerate launch."""
    n_pairs = bench.size(8, 4)
    settings = settings_of(n_pairs, 1, micro_batch_size=n_pairs)
    found = {}
    torch.distributed.init_process_group(
        "nccl" if bench.on_gpu else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for sharded in (False, True):
            loaded = load(WINDOWED, bench.device, torch.float32, toy=bench.toy, n_layers=3)
            part = translation_part(loaded, pairs_of(n_pairs), settings)
            _, model = losses(bench, loaded, f"fsdp-{sharded}", settings, n_pairs)  # now both of LoRA's factors matter
            if sharded:
                for block in decoder_layers(model):
                    fully_shard(block)
                fully_shard(model)
            model.train()
            loss = target_loss(model, to_device(part.objective.collate(part.rows), bench.device))
            loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            whole = [g.full_tensor() if sharded else g for g in gradients]
            found[sharded] = loss.item(), torch.cat([g.flatten().float().cpu() for g in whole])
            del loaded, model, loss, gradients, whole
    finally:
        torch.distributed.destroy_process_group()
    (loss, gradient), (loss_sharded, gradient_sharded) = found[False], found[True]
    yield at_most("sharded: relative difference of the loss", abs(loss_sharded - loss) / loss, 1e-4)
    apart = (gradient_sharded - gradient).norm() / gradient.norm()
    yield at_most("sharded: relative difference of the gradient", apart.item(), 1e-3)
    bench.free()
    if not bench.on_gpu:
        raise Skipped("accelerate shards on CUDA only; what is above ran")
    launch = ["accelerate.commands.accelerate_cli", "launch", "--config_file", str(FSDP), "--num_processes", "1", "-m"]
    alone, under = (launched(bench, name, before) for name, before in (("alone", []), ("under", launch)))
    what = "glotlift train under docs/accelerate/fsdp.yaml: largest difference of a step's loss"
    yield at_most(what, np.abs(np.array(under) - np.array(alone)).max(), 0.05)


def launched(bench, name, launcher):
    """Run `glotlift train` in a process of its own; return the loss of every step, as the adapter's folder has it."""
    run = bench.scratch / f"run-{name}"
    recipe = {
        "name": name, "model": folder_of(bench), "dtype": "bfloat16",
        "data": {"task": "sentiment", "source": "sample", "languages": ["de"], "limit": 40,
                 "validation_fraction": 0.2},
        "train": {"objective": "translation", "batch_size": 8, "micro_batch_size": 8, "scheduler": "constant",
                  "max_length": 2048},
    }  # fmt: skip
    written = bench.scratch / f"{name}.yaml"
    written.write_text(json.dumps(recipe))  # JSON is YAML
    command = [sys.executable, "-m", *launcher, "glotlift", "train", str(written), "--output-path", str(run)]
    places = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RuntimeError(f"{name}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    if not (run / "adapter" / "adapter_model.safetensors").is_file():
        raise RuntimeError(f"{name}: there is no adapter")
    return [entry["loss"] for entry in json.loads((run / "adapter" / "history.json").read_text())["log"]]


def merge(bench: Bench) -> Iterator[Figure]:
    """Merge an adapter; glotlift compares what it saved with the adapter, and refuses what is too far.

    Into fp32: in bf16 the tolerance is for trained weights, and random ones make more of a rounding error.
    """
    folder, n_pairs, n_steps = folder_of(bench), bench.size(32, 8), 4
    settings = settings_of(n_pairs, n_steps)
    loaded = load_model(folder, dtype="bfloat16", device=str(bench.device))
    _, model = losses(bench, loaded, "merge", settings, n_pairs)
    adapter = bench.scratch / "adapter"
    model.save_pretrained(adapter, save_embedding_layers=False)
    del loaded, model
    bench.free()
    certificate = {}
    target = bench.scratch / "merged"

    def work():
        certificate.update(
            merge_adapter(
                folder, str(adapter), target, pairs_of(8), settings, dtype="float32", device=str(bench.device)
            )
        )

    yield Figure("seconds", bench.seconds(work))
    difference, tolerance = certificate["max_logit_difference"], certificate["tolerance"]
    yield at_most(f"largest logit difference, saved in {certificate['dtype']}", difference, tolerance)
    yield Figure("same most likely token, 0 to 1", certificate["argmax_agreement"])


def plain_steps(model, steps, objective, micro_batch_size):
    """Train as the plain loop does: transformers' own loss, logits at every position, micro-batches in autocast."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    model.train()
    for step in steps:
        n_targets = sum(row.weight for row in step)
        for start in range(0, len(step), micro_batch_size):
            batch = to_device(objective.collate(step[start : start + micro_batch_size]), model.device)
            given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            with torch.autocast(model.device.type, torch.bfloat16):
                loss = model(**given, num_items_in_batch=n_targets, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def throughput(bench: Bench) -> Iterator[Figure]:
    """Tokens a second of LoRA training, against the plain loop on the same micro-batches."""
    for shape in (SMALL, LARGE):
        loaded = load(shape, bench.device, torch.bfloat16, toy=bench.toy)
        n_pairs, n_steps, micro = bench.size(192 if shape == SMALL else 96, 4), bench.size(6, 2), bench.size(16, 4)
        settings = settings_of(n_pairs, n_steps, micro)
        part = translation_part(loaded, pairs_of(n_pairs), settings)
        rows = [each.row for each in in_order([part], epochs=1, micro_batch_size=micro, seed=0)]
        size = settings.batch_size
        steps = [rows[start : start + size] for start in range(0, len(rows), size)]
        tokens = sum(row.length for step in steps[1:] for row in step)  # the first step warms up
        targets = sum(row.weight for step in steps[1:] for row in step)
        body, head = sizes(loaded.model)
        bench.free()
        with bench.steps() as ends:
            _, model = losses(bench, loaded, f"throughput-{shape}", settings, n_pairs)
        seconds, peak = ends[-1] - ends[0], bench.most()
        bench.free()
        with bench.steps() as ends:
            plain_steps(model, steps, part.objective, micro)
        plain, plain_peak = ends[-1] - ends[0], bench.most()
        yield Figure(f"{shape}: tokens/s", tokens / seconds)
        yield Figure(f"{shape}: tokens/s of the plain loop", tokens / plain)
        yield Figure(f"{shape}: times faster than the plain loop", plain / seconds)
        operations = 4 * (body * tokens + head * targets)
        yield Figure(f"{shape}: share of the bf16 peak", operations / seconds / bench.peak)
        yield Figure(f"{shape}: peak GiB", peak / 2**30)
        yield Figure(f"{shape}: peak GiB of the plain loop", plain_peak / 2**30)
        del loaded, model
        bench.free()


# --- all of it

SHARES: dict[Part, float] = {
    parity: 0.2, batches: 0.06, memory: 0.06, train: 0.12, checkpointing: 0.06, quantization: 0.08, fsdp: 0.16,
    merge: 0.1, evaluate: 0.08, throughput: 0.08,
}  # fmt: skip
"""Part -> its share of the time."""

PARTS: dict[str, Part] = {part.__name__: part for part in SHARES}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, by name")
    parser.add_argument("--device", default="cuda", help="cpu with --toy tries the script itself")
    parser.add_argument("--toy", action="store_true", help="tiny models")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"got part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("got device cuda where torch sees none, expected one, or --device cpu --toy")
    os.environ["HF_HUB_OFFLINE"] = "1"
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(prefix="glotlift-gpu-") as scratch:
        bench = Bench(device, options.toy, Path(scratch))
        bench = replace(bench, peak=matrix_rate(bench))
        results = []
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(run_part(name, PARTS[name], bench, 60 * options.minutes * SHARES[PARTS[name]]))
            bench.free()
    card = torch.cuda.get_device_name(device) if bench.on_gpu else "CPU"
    versions = {each.__name__: each.__version__ for each in (torch, transformers, peft, accelerate)}
    size = "toy size" if bench.toy else "real size"
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{card}, {size}, {told}; a bf16 matrix product runs at {bench.peak / 1e12:.3g} TFLOP/s.\n")
    print(markdown(results))
    print()
    print(as_json(results, {"device": card, "toy": bench.toy, "bf16_peak": bench.peak, "versions": versions}))
    return int(any(result.state == FAILED for result in results))


if __name__ == "__main__":
    sys.exit(main())
