"""glotlift's consistency training against the plain way, on the demo model and the same question rows, in one run.

    python benchmarks/consistency.py [--quick] [--steps 4] [--batch-size 16]

    plain       every optimizer step: the teacher is run anew with the adapter off, a prompt once where every label is
                one token, else prompt and label word once a label; the student likewise; logits of the whole vocabulary
                at every position
    glotlift    what `glotlift train` does: teacher scores once through the cached pass, demonstrations once a
                micro-batch, labels as a trie, the head at label tokens only

Both take the same 16 questions a step in micro-batches of 4, the same LoRA and Huber loss, with AdamW, and every
question once. The loss of the first step must agree to 1e-3. Each engine is a process of its own, in turns, twice each;
the first step warms up. A step of glotlift has its share of the teacher's time added: its seconds over all steps, the
first included. More passes over the questions than this one would make that share less. Prints a table; the last line
is JSON: `over_plain` (how much longer a step of the plain way takes, the median, the teacher in both),
`teacher_seconds` (what glotlift's teacher scores took, once for all steps) and `peak_over_plain`.
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

MICRO_BATCH_SIZE, SEED = 4, 0
SAME_LOSS = 1e-3


def questions(loaded, n_questions):
    """Return names of questions, in the order in which steps take them, and their prompts in English and German."""
    from glotlift.data.parallel import read_questions
    from glotlift.evaluation.prompts import prepare
    from glotlift.evaluation.settings import EvalTask
    from glotlift.tasks.load import load_task
    from glotlift.tasks.task import Item

    task = load_task("sentiment")
    files = read_questions(task, "sample", ("en", "de"))
    names = list(files["en"].rows)[:n_questions]
    if len(names) < n_questions:
        raise SystemExit(f"got {n_questions} questions for all steps, expected at most the {len(names)} of the sample")
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


def label_log_probabilities(model, rows):
    """Return log-probabilities of the labels, the plain way. *Shape:* (rows, labels).

    Labels of one token are read behind one forward pass over the prompt; longer ones stand behind it, once a label.
    """
    import torch

    paths = [[[token for _, token in path] for path in row.trie.steps] for row in rows]
    prompts = [list(row.prompt[: row.root]) for row in rows]
    is_one_token = all(len(word) == 1 for words in paths for word in words)
    ends = [[]] if is_one_token else zip(*[[word[:-1] for word in words] for words in paths], strict=True)
    columns = []
    for number, endings in enumerate(ends):
        endings = endings or [[]] * len(rows)
        whole = [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)]
        width = max(map(len, whole))
        ids = torch.tensor([each + [0] * (width - len(each)) for each in whole])
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in whole])
        log_p = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        for word_number in range(len(paths[0])) if is_one_token else (number,):
            columns.append(torch.stack([
                sum(log_p[index, len(prompt) - 1 + k, token] for k, token in enumerate(words[word_number]))
                for index, (prompt, words) in enumerate(zip(prompts, paths, strict=True))
            ]))  # fmt: skip
    return torch.stack(columns, 1)


def plain(steps, batch_size):
    """Yield the loss of every step."""
    import torch

    from glotlift.models.load import load_model

    loaded = load_model("demo", dtype="float32")
    names, prompts = questions(loaded, batch_size * (steps + 1))
    model = with_lora(loaded)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)

    def scores(rows):
        found = label_log_probabilities(model, rows)
        return found - found.mean(1, keepdim=True)

    for step in range(steps + 1):
        total = 0.0
        for start in range(step * batch_size, (step + 1) * batch_size, MICRO_BATCH_SIZE):
            part = slice(start, start + MICRO_BATCH_SIZE)
            with torch.no_grad(), model.disable_adapter():
                target = scores(prompts["en"].rows[part])
            loss = torch.nn.functional.huber_loss(scores(prompts["de"].rows[part]), target, reduction="none")
            loss = loss.mean(1).sum() / batch_size
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield total


def glotlift(steps, batch_size):
    """Yield the loss of every step; first the teacher's seconds."""
    import torch

    from glotlift.evaluation.predict import predict
    from glotlift.models.linear import fast_linear
    from glotlift.models.load import load_model
    from glotlift.training.consistency import Consistency, ScoreRow

    loaded = load_model("demo", dtype="float32")
    names, prompts = questions(loaded, batch_size * (steps + 1))
    begin = time.perf_counter()
    frame = predict(loaded, prompts["en"], "base")
    yield time.perf_counter() - begin
    taught = frame[[f"sequence_{label}" for label in prompts["en"].labels]].to_numpy()
    taught = taught - taught.mean(1, keepdims=True)  # frames lend their numbers read-only
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
            for start in range(step * batch_size, (step + 1) * batch_size, MICRO_BATCH_SIZE):
                batch = objective.collate(rows[start : start + MICRO_BATCH_SIZE])
                loss = objective.loss(model, batch) / batch_size
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield total


def worker(engine, steps, batch_size):
    """Run an engine and print what it took as JSON."""
    found = {"seconds": [], "losses": []}
    run = {"plain": plain, "glotlift": glotlift}[engine](steps, batch_size)
    if engine == "glotlift":
        found["teacher"] = next(run)
    for _ in range(steps + 1):
        Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        found["losses"].append(next(run))
        found["seconds"].append(time.perf_counter() - begin)
        found["peak"] = max(found.get("peak", 0), _memory("VmHWM"))
    print(json.dumps(found))


def measure(steps, turns, batch_size):
    """Return engine -> what its processes took, in turns."""
    found = {"plain": [], "glotlift": []}
    for _ in range(turns):
        for engine, runs in found.items():
            command = [sys.executable, __file__, "--worker", engine, "--steps", str(steps),
                       "--batch-size", str(batch_size)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def seconds_a_step(runs, steps):
    """Return the median seconds of a step behind the first, its share of a teacher that ran once for all included."""
    return statistics.median(s + run.get("teacher", 0.0) / (steps + 1) for run in runs for s in run["seconds"][1:])


def result(steps, turns, batch_size=16):
    """Print the table and return the numbers of the last line."""
    found = measure(steps, turns, batch_size)
    medians = {name: seconds_a_step(runs, steps) for name, runs in found.items()}
    peaks = {name: max(run["peak"] for run in runs) for name, runs in found.items()}
    losses = {name: runs[0]["losses"] for name, runs in found.items()}
    print(f"{'engine':10} {'examples/s':>10} {'s a step':>9} {'peak GiB':>9} {'first loss':>11}")
    for name in found:
        print(f"{name:10} {batch_size / medians[name]:10.2f} {medians[name]:9.2f} {peaks[name] / 2**30:9.2f} "
              f"{losses[name][0]:11.6f}")  # fmt: skip
    teacher = statistics.median(run["teacher"] for run in found["glotlift"])
    print(f"glotlift's teacher took {teacher:.1f} s, once; a share of it is in every step")
    apart = abs(losses["plain"][0] - losses["glotlift"][0])
    if apart > SAME_LOSS:
        print(f"losses of the first step differ by {apart:.2g}, expected at most {SAME_LOSS}: not the same work")
    return {
        "over_plain": round(medians["plain"] / medians["glotlift"], 2),
        "teacher_seconds": round(teacher, 2),
        "peak_over_plain": round(peaks["glotlift"] / peaks["plain"], 3),
        "same_loss": apart <= SAME_LOSS,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps behind the one that warms up")
    parser.add_argument(
        "--batch-size", type=int, default=16, help=f"questions a step, a multiple of {MICRO_BATCH_SIZE}"
    )
    parser.add_argument("--quick", action="store_true", help="one step, one turn")
    parser.add_argument("--worker", choices=("plain", "glotlift"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.steps, options.batch_size)
    found = result(1 if options.quick else options.steps, 1 if options.quick else 2, options.batch_size)
    print(json.dumps(found))
    return int(not found["same_loss"])


if __name__ == "__main__":
    sys.exit(main())
