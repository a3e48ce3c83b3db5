"""glotlift's consistency training against the plain way, on the demo model and the same question rows, in one run.

    python benchmarks/consistency.py [--quick] [--steps 4]

    plain       every optimizer step: the teacher is run anew with the adapter off, prompt and label word once a label;
                the student likewise; logits of the whole vocabulary at every position
    glotlift    what `glotlift train` does: teacher scores once through the cached pass, demonstrations once a
                micro-batch, labels as a trie, the head at label tokens only

Both take the same 16 questions a step in micro-batches of 4, the same LoRA and Huber loss, with AdamW. The loss of the
first step must agree to 1e-3. Each engine is a process of its own, in turns, twice each; the first step warms up.
`teacher_seconds` is what glotlift's teacher scores took, once for all steps. Prints a table; the last line is JSON:
`over_plain` (how much longer a step of the plain way takes, the median) and `peak_over_plain`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from evaluate import _memory

BATCH_SIZE, MICRO_BATCH_SIZE, SEED = 16, 4, 0
SAME_LOSS = 1e-3


def questions(loaded, steps):
    """Return task, prompts of English and German questions, and the names that each step takes."""
    from glotlift.data.parallel import read_questions
    from glotlift.evaluation.prompts import prepare
    from glotlift.evaluation.settings import EvalTask
    from glotlift.tasks.load import load_task
    from glotlift.tasks.task import Item

    task = load_task("sentiment")
    files = read_questions(task, "sample", ("en", "de"))
    names = list(files["en"].rows)[: BATCH_SIZE * (steps + 1)]
    entry = EvalTask(task="sentiment", answers="english")
    prompts = {
        code: prepare(loaded, task, code, [Item(name, files[code].rows[name], "") for name in names], entry)
        for code in ("en", "de")
    }
    return names, prompts


def with_lora(loaded):
    """Return the demo model with LoRA on all linear layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(SEED)
    return get_peft_model(loaded.model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).train()


def plain(steps):
    """Yield the loss of every step."""
    import torch

    from glotlift.models.load import load_model

    loaded = load_model("demo", dtype="float32")
    names, prompts = questions(loaded, steps)
    model = with_lora(loaded)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)

    def scores(rows):
        """Return log-probabilities of the labels. *Shape:* (rows, labels)."""
        paths = [[token for _, token in path] for path in rows[0].trie.steps]
        columns = []
        for number in range(len(paths)):
            words = [[token for _, token in row.trie.steps[number]] for row in rows]
            whole = [list(row.prompt[: row.root]) + word for row, word in zip(rows, words, strict=True)]
            width = max(map(len, whole))
            ids = torch.tensor([each + [0] * (width - len(each)) for each in whole])
            mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in whole])
            log_p = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
            columns.append(torch.stack([
                sum(log_p[index, len(each) - len(word) + k - 1, token] for k, token in enumerate(word))
                for index, (each, word) in enumerate(zip(whole, words, strict=True))
            ]))  # fmt: skip
        found = torch.stack(columns, 1)
        return found - found.mean(1, keepdim=True)

    for step in range(steps + 1):
        total = 0.0
        for start in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE, MICRO_BATCH_SIZE):
            part = slice(start, start + MICRO_BATCH_SIZE)
            with torch.no_grad(), model.disable_adapter():
                target = scores(prompts["en"].rows[part])
            loss = torch.nn.functional.huber_loss(scores(prompts["de"].rows[part]), target, reduction="none")
            loss = loss.mean(1).sum() / BATCH_SIZE
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield total


def glotlift(steps):
    """Yield the loss of every step; first the teacher's seconds."""
    import torch

    from glotlift.evaluation.predict import predict
    from glotlift.models.linear import fast_linear
    from glotlift.models.load import load_model
    from glotlift.training.consistency import Consistency, ScoreRow

    loaded = load_model("demo", dtype="float32")
    names, prompts = questions(loaded, steps)
    begin = time.perf_counter()
    frame = predict(loaded, prompts["en"], "base")
    yield time.perf_counter() - begin
    taught = frame[[f"sequence_{label}" for label in prompts["en"].labels]].to_numpy()
    taught -= taught.mean(1, keepdims=True)
    rows = [
        ScoreRow(name, "de", row, tuple(map(float, target)))
        for name, row, target in zip(names, prompts["de"].rows, taught, strict=True)
    ]
    model = with_lora(loaded)
    objective = Consistency(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)
    with fast_linear(model):
        for step in range(steps + 1):
            total = 0.0
            for start in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE, MICRO_BATCH_SIZE):
                batch = objective.collate(rows[start : start + MICRO_BATCH_SIZE])
                loss = objective.loss(model, batch) / BATCH_SIZE
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield total


def worker(engine, steps):
    """Run an engine and print what it took as JSON."""
    found = {"seconds": [], "losses": []}
    run = {"plain": plain, "glotlift": glotlift}[engine](steps)
    if engine == "glotlift":
        found["teacher"] = next(run)
    for _ in range(steps + 1):
        Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        found["losses"].append(next(run))
        found["seconds"].append(time.perf_counter() - begin)
        found["peak"] = max(found.get("peak", 0), _memory("VmHWM"))
    print(json.dumps(found))


def measure(steps, turns):
    """Return engine -> what its processes took, in turns."""
    found = {"plain": [], "glotlift": []}
    for _ in range(turns):
        for engine, runs in found.items():
            command = [sys.executable, __file__, "--worker", engine, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def result(steps, turns):
    """Print the table and return the numbers of the last line."""
    found = measure(steps, turns)
    medians = {name: statistics.median(s for run in runs for s in run["seconds"][1:]) for name, runs in found.items()}
    peaks = {name: max(run["peak"] for run in runs) for name, runs in found.items()}
    losses = {name: runs[0]["losses"] for name, runs in found.items()}
    print(f"{'engine':10} {'examples/s':>10} {'s a step':>9} {'peak GiB':>9} {'first loss':>11}")
    for name in found:
        print(f"{name:10} {BATCH_SIZE / medians[name]:10.2f} {medians[name]:9.2f} {peaks[name] / 2**30:9.2f} "
              f"{losses[name][0]:11.6f}")  # fmt: skip
    print(f"glotlift's teacher took {found['glotlift'][0]['teacher']:.1f} s, once")
    apart = abs(losses["plain"][0] - losses["glotlift"][0])
    if apart > SAME_LOSS:
        print(f"losses of the first step differ by {apart:.2g}, expected at most {SAME_LOSS}: not the same work")
    return {
        "over_plain": round(medians["plain"] / medians["glotlift"], 2),
        "peak_over_plain": round(peaks["glotlift"] / peaks["plain"], 3),
        "same_loss": apart <= SAME_LOSS,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps behind the one that warms up")
    parser.add_argument("--quick", action="store_true", help="one step, one turn")
    parser.add_argument("--worker", choices=("plain", "glotlift"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.steps)
    found = result(1 if options.quick else options.steps, 1 if options.quick else 2)
    print(json.dumps(found))
    return int(not found["same_loss"])


if __name__ == "__main__":
    sys.exit(main())
