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

A part has its share of `--minutes`, and what those before it left over; one that fails or takes longer is reported with
its error, and the others still run. Prints Markdown for docs/gpu.md; the last line is JSON. Exit code 1 where a part
failed, 0 else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import accelerate
import peft
import torch
import transformers

from gpu_bench import FAILED, Bench, Part, as_json, markdown, matrix_rate, run_part
from gpu_scores import batches, evaluate, memory, parity
from gpu_training import checkpointing, fsdp, merge, quantization, throughput, train

SHARES: dict[Part, float] = {
    parity: 0.2, batches: 0.06, memory: 0.06, train: 0.12, checkpointing: 0.06, quantization: 0.08, fsdp: 0.16,
    merge: 0.1, evaluate: 0.08, throughput: 0.08,
}  # fmt: skip
"""Part -> its share of the time that is left."""

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
        results, end = [], time.monotonic() + 60 * options.minutes
        for k, name in enumerate(names):
            print(f"{name} ...", file=sys.stderr, flush=True)
            share = SHARES[PARTS[name]] / sum(SHARES[PARTS[other]] for other in names[k:])
            results.append(run_part(name, PARTS[name], bench, share * max(end - time.monotonic(), 1)))
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
