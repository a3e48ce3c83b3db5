"""Parts of benchmarks/gpu.py that train: against the CPU, with less memory, in four bits, sharded; merging; speed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from glotlift.models.anatomy import decoder_layers
from glotlift.models.load import load_model
from glotlift.models.together import to_device
from glotlift.training.merge import merge_adapter
from glotlift.training.objective import in_order
from glotlift.training.shards import whole
from glotlift.training.translation import target_loss, translation_part
from glotlift.training.tune import tune
from gpu_bench import SAME, Bench, Figure, Skipped, at_least, at_most
from gpu_models import LARGE, SMALL, WINDOWED, load, pairs_of, random_model, settings_of, sizes

ROOT = Path(__file__).resolve().parent.parent
FSDP = ROOT / "docs" / "accelerate" / "fsdp.yaml"


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
    yield Figure("GiB beside the model, with", taken[False])
    if bench.on_gpu:  # of a toy on a CPU, memory is mostly that of the libraries
        yield at_most("memory with it over that without", taken[False] / taken[True], 0.7)


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
    loaded = load(WINDOWED, bench.device, torch.float32, toy=bench.toy, n_layers=3)
    part = translation_part(loaded, pairs_of(n_pairs), settings)
    _, model = losses(bench, loaded, "fsdp", settings, n_pairs)  # from here on both of LoRA's factors matter
    batch = to_device(part.objective.collate(part.rows), bench.device)
    model.train()

    loss, gradient = loss_and_gradient(model, batch)
    torch.distributed.init_process_group(
        "nccl" if bench.on_gpu else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for block in decoder_layers(model):
            fully_shard(block)
        fully_shard(model)
        sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
        loss_sharded, gradient_sharded = loss_and_gradient(model, batch)
    finally:
        torch.distributed.destroy_process_group()
    del loaded, model
    yield at_least("sharded: share of the tensors", sum(sharded) / len(sharded), 1)
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


def loss_and_gradient(model, batch):
    """Return the loss of a batch, and the gradient of all that is trained, as one tensor on the CPU."""
    model.zero_grad()
    loss = target_loss(model, batch)
    loss.backward()
    return loss.item(), torch.cat([whole(p.grad).flatten() for p in model.parameters() if p.grad is not None])


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

    def work():
        device, target = str(bench.device), bench.scratch / "merged"
        found = merge_adapter(folder, str(adapter), target, pairs_of(8), settings, dtype="float32", device=device)
        certificate.update(found)

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
    for shape in bench.some((SMALL, LARGE)):
        loaded = load(shape, bench.device, torch.bfloat16, toy=bench.toy)
        n_pairs, n_steps = bench.size(192 if shape == SMALL else 96, 4), bench.size(6, 2)
        micro = bench.size(16 if shape == SMALL else 8, 2)
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
