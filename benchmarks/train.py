"""glotlift against what people would use instead to LoRA-tune the demo model on the same question pairs, in one run.

    python benchmarks/train.py [--quick] [--steps 6] [--data ../path/snli] [--llama-factory]

    trl-default     TRL 1.16, `SFTTrainer` with its defaults (gradient checkpointing among them), in fp32
    trl-tuned       the same without checkpointing, with micro-batches of like length, and with an allocator that keeps
                    what was freed; micro-batches of 1, 2 or 16 and eager attention were slower for it. torch.compile
                    would take 2 to 6 % off its steps, but needs three minutes before, so it is not used
    llama-factory   LLaMA-Factory 0.9.5 with its defaults, in fp32, in an environment of its own that `--llama-factory`
                    makes; left out without it
    glotlift        `tune`, as `glotlift train` calls it

The work is the same: token ids and labels are glotlift's, every optimizer step has the same 16 pairs in every engine
(glotlift's order, whose steps are of like length; that spares TRL's defaults most of the padding that they would have),
the loss is the mean over the step's target tokens, LoRA has rank 16 on all linear layers. LoRA starts at zero, so the
loss of the first step is that of the base model and must agree to 1e-4; that of later steps stands beside it.

Each engine runs in a process of its own and stops behind every optimizer step, so that they take steps in turns: a slow
moment of the machine hits all, and nothing else works while one is timed. The first step warms up. Speeds are of all
steps behind it, and how much slower an engine is, is the median over steps. Peak memory is that of the whole process
once the model is loaded; what it was then stands beside it. `peak_over_trl` takes TRL's defaults, which need less than
TRL tuned. The floor is 4 x non-embedding parameters for every token (forward, and the gradient of what enters a layer)
and 4 x vocabulary x hidden for every target, at the rate of a large fp32 matrix product as torch runs it (`a @ b`); the
share at oneDNN's own rate stands beside it. Prints a table, then that of consistency training against the plain way
(`benchmarks/consistency.py`); the last line is JSON with both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import consistency
from evaluate import _memory, _rate

ENGINES = ("trl-default", "trl-tuned", "llama-factory", "glotlift")
LANGUAGES = ("de", "zh")
BATCH_SIZE, MICRO_BATCH_SIZE = 16, 4
KEEPING_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
RANK, ALPHA, LEARNING_RATE, SEED, MAX_LENGTH = 16, 32, 2e-4, 0, 1024
SAME_LOSS = 1e-4

ROOT = Path(__file__).resolve().parent.parent
LLAMA_FACTORY = ROOT / ".venv-llama-factory"
LLAMA_FACTORY_VERSION = "0.9.5"


# --- in a worker


class _Turns:
    """Stops behind every optimizer step until the parent asks for the next one."""

    def __init__(self, answers):
        self.answers = answers
        self.begin = 0.0
        self.resident = 0

    def start(self, model):
        """Begin with the first step: from here on memory counts."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        for parameter in model.parameters():
            parameter.detach().sum()  # weights that are mapped from a file count as resident once they were read
        self.resident = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        register_optimizer_step_post_hook(lambda *_: self._stop())
        self.begin = time.perf_counter()

    def _stop(self):
        seconds = time.perf_counter() - self.begin
        self.say(seconds=seconds, peak=_memory("VmHWM"), resident=self.resident)
        self.wait()
        self.begin = time.perf_counter()

    def say(self, **answer):
        print(json.dumps(answer), file=self.answers, flush=True)

    def wait(self):
        while (asked := sys.stdin.readline()) == "rate\n":
            import torch

            from glotlift.models.linear import product

            self.say(rate=_rate(torch.matmul), onednn_rate=_rate(product))
        if not asked:
            raise SystemExit("the benchmark ended")


def _worker(engine, options):
    # libraries print to standard output; the answers keep it for themselves
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    turns = _Turns(answers)
    scratch = Path(options.scratch)
    run = {"glotlift": _glotlift, "llama-factory": _llama_factory}.get(engine, _trl)
    losses = run(turns, scratch, options, engine)
    turns.say(losses=losses)


def _glotlift(turns, scratch, options, _engine):
    from glotlift.data.questions import read_pairs
    from glotlift.models.load import load_model, model_source
    from glotlift.tasks.load import load_task
    from glotlift.training.order import step_order
    from glotlift.training.settings import TrainSettings
    from glotlift.training.translation import translation_part
    from glotlift.training.tune import tune

    batch_size, n_steps = options.batch_size, options.steps + 1
    task, source = load_task("nli" if options.data else "sentiment"), options.data or "sample"
    pairs = read_pairs(task, source, LANGUAGES, limit=n_steps * batch_size // len(LANGUAGES))
    if len(pairs) < n_steps * batch_size:
        raise SystemExit(f"got {len(pairs)} pairs for {n_steps} steps, expected {n_steps * batch_size}; lower --steps")
    loaded = load_model("demo", dtype="float32")
    settings = TrainSettings(
        rank=RANK, alpha=ALPHA, learning_rate=LEARNING_RATE, scheduler="linear", warmup_fraction=0.0, cue="kept",
        batch_size=batch_size, micro_batch_size=min(MICRO_BATCH_SIZE, batch_size), max_length=MAX_LENGTH,
        save_steps=10**6,
    )  # fmt: skip
    part = translation_part(loaded, pairs, settings)
    rows = part.rows
    order = step_order([row.length for row in rows], epochs=1, batch_size=batch_size, seed=SEED)
    in_order = [{"input_ids": rows[index].input_ids, "labels": rows[index].labels} for index in order]
    file = {"model": model_source("demo"), "rows": in_order}
    (scratch / "rows.json").write_text(json.dumps(file))
    embedding = loaded.model.get_input_embeddings().weight
    parameters = sum(p.numel() for p in loaded.model.parameters()) - embedding.numel()
    turns.say(parameters=parameters, head=embedding.numel())
    turns.wait()
    turns.start(loaded.model)
    _, history = tune(loaded, [part], [], scratch / "glotlift", settings, seed=SEED)
    return [entry["loss"] for entry in history["log"]]


def _trl(turns, scratch, options, engine):
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from glotlift.models.load import model_source

    disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(model_source("demo"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    turns.say()
    turns.wait()
    turns.start(model)
    is_tuned = engine == "trl-tuned"
    micro_batch_size = min(MICRO_BATCH_SIZE, options.batch_size)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(_rows(scratch, options.batch_size, by_length=is_tuned)),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=str(scratch / engine),
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=options.batch_size // micro_batch_size,
            learning_rate=LEARNING_RATE,
            num_train_epochs=1,
            max_length=None,
            bf16=False,
            use_cpu=True,
            train_sampling_strategy="sequential",  # the rows lie in their order
            seed=SEED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **({"gradient_checkpointing": False} if is_tuned else {}),
        ),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _rows(scratch, batch_size, *, by_length):
    """Return the token rows, step by step; within a step the longest first, or as a sampler would draw them."""
    rows = json.loads((scratch / "rows.json").read_text())["rows"]
    draw = random.Random(SEED)
    steps = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if not by_length:
        steps = [draw.sample(step, len(step)) for step in steps]
    return [row for step in steps for row in step]


def _llama_factory_run():
    """Return what LLaMA-Factory trains with. Of torchaudio, which it imports, a text model needs nothing."""
    import importlib.machinery
    import types

    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    from llamafactory.train.tuner import run_exp

    return run_exp


def _llama_factory(turns, scratch, options, _engine):
    run_exp = _llama_factory_run()
    from datasets import Dataset, DatasetDict, disable_progress_bars
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        losses: list[float] = []

        def on_train_begin(self, args, state, control, model=None, **_):
            turns.start(model)

        def on_log(self, args, state, control, logs=None, **_):
            self.losses += [logs["loss"]] if "loss" in logs else []

    disable_progress_bars()
    turns.say()
    turns.wait()
    rows = _rows(scratch, options.batch_size, by_length=False)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(scratch / "tokenized")
    micro_batch_size = min(MICRO_BATCH_SIZE, options.batch_size)
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": json.loads((scratch / "rows.json").read_text())["model"],
        "dataset": "tokenized",  # asked for, but `tokenized_path` goes before
        "tokenized_path": str(scratch / "tokenized"),
        "template": "empty",
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "disable_shuffling": True,  # the rows lie in their order
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": options.batch_size // micro_batch_size,
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": 1.0,
        "seed": SEED,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(scratch / "llama-factory"),
    }
    watch = Watch()
    run_exp(settings, [watch])
    return watch.losses


# --- in the process that asks


def _make_llama_factory():
    """Make LLaMA-Factory's environment where there is none; return why it cannot be made, None if it can."""
    if (LLAMA_FACTORY / "installed").exists():
        return None
    print(f"making {LLAMA_FACTORY.name}: 2 GB, a few minutes", file=sys.stderr)
    python, constraints = LLAMA_FACTORY / "bin" / "python", LLAMA_FACTORY / "constraints.txt"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", LLAMA_FACTORY],
        [*pip, "install", "-c", constraints, f"llamafactory=={LLAMA_FACTORY_VERSION}"],
        [*pip, "uninstall", "--yes", "torchvision", "torchaudio"],  # made for CUDA; see `_llama_factory_run`
        [python, "-W", "ignore", "-c", "import train; train._llama_factory_run()"],
    ]
    for step in steps:
        made = subprocess.run(step, capture_output=True, text=True, cwd=Path(__file__).parent)
        if made.returncode:
            lines = [line for line in made.stderr.splitlines() if line.strip()] or ["no reason was given"]
            return next((line for line in lines if line.startswith("ERROR")), lines[-1])
        if not constraints.exists():
            # our torch, so that both run on the same one, and no other build of it is fetched
            lock = (ROOT / "requirements.lock").read_text().splitlines()
            constraints.write_text(next(line for line in lock if line.startswith("torch==")) + "\n")
            (LLAMA_FACTORY / ".gitignore").write_text("*\n")
    (LLAMA_FACTORY / "installed").touch()
    return None


class _Engine:
    def __init__(self, name, options, scratch):
        python = LLAMA_FACTORY / "bin" / "python" if name == "llama-factory" else sys.executable
        command = [str(python), "-W", "ignore", __file__, "--worker", name, "--scratch", scratch]
        command += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
        command += ["--data", options.data] if options.data else []
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment |= KEEPING_ALLOCATOR if name == "trl-tuned" else {}
        pipe = subprocess.PIPE
        self.name, self.log = name, Path(scratch) / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peak = self.resident = 0
        self.rates: dict[str, float] = {"rate": 0, "onednn_rate": 0}
        self.about: dict[str, int] = {}

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.log.read_text()[-3000:]}\n{self.name} ended before it answered")
        answer = json.loads(line)
        self.resident = answer.pop("resident", self.resident)
        self.peak = answer.pop("peak", self.peak)
        self.losses = answer.pop("losses", self.losses)
        if "seconds" in answer:
            self.seconds.append(answer.pop("seconds"))
        for name in self.rates.keys() & answer:
            self.rates[name] = max(self.rates[name], answer.pop(name))
        self.about |= answer

    def ask(self, what):
        print(what, file=self.process.stdin, flush=True)
        self.answer()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps behind the one that warms up")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one step of 4 pairs, in under 90 seconds")
    parser.add_argument("--data", help="a folder of the paper's SNLI pairs; by default bundled ones")
    parser.add_argument("--llama-factory", action="store_true", help="make LLaMA-Factory's environment and run it too")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _worker(options.worker, options)
    if options.quick:
        options.steps, options.batch_size = 1, 4
    with tempfile.TemporaryDirectory(prefix="glotlift-bench-") as scratch:
        return _measure(options, scratch)


def _measure(options, scratch):
    names = list(ENGINES)
    fault = _make_llama_factory() if options.llama_factory else "not asked for, see --llama-factory"
    if fault:
        names.remove("llama-factory")
    engines = {name: _Engine(name, options, scratch) for name in names}
    for engine in engines.values():
        engine.answer()
    ours = engines["glotlift"]
    for _ in range(options.steps + 1):
        ours.ask("rate")  # every time: the best is that of a moment in which the machine had nothing else to do
        for engine in engines.values():
            engine.ask("step")
    for engine in engines.values():
        engine.ask("end")
        engine.process.stdin.close()
        engine.process.wait()
    rows = json.loads((Path(scratch) / "rows.json").read_text())["rows"]
    size = options.batch_size
    steps = [rows[start : start + size] for start in range(size, len(rows), size)]
    tokens = [sum(len(row["input_ids"]) for row in step) for step in steps]
    targets = [sum(label >= 0 for row in step for label in row["labels"]) for step in steps]
    if fault:
        print(f"llama-factory {LLAMA_FACTORY_VERSION} is left out: {fault}")
    return _report(engines, tokens, targets, options.quick)


def _report(engines, tokens, targets, quick):
    ours = engines["glotlift"]
    slower = {name: _ratio(engine.seconds[1:], ours.seconds[1:]) for name, engine in engines.items()}
    print(
        f"{'engine':14} {'targets/s':>9} {'tokens/s':>9} {'slower':>7} {'peak GiB':>9} {'loaded':>7} {'first loss':>11}"
    )
    for name, engine in engines.items():
        seconds = sum(engine.seconds[1:])
        line = f"{name:14} {sum(targets) / seconds:9.1f} {sum(tokens) / seconds:9.1f} {slower[name]:7.2f}"
        line += f" {engine.peak / 2**30:9.2f} {engine.resident / 2**30:7.2f} {engine.losses[0]:11.6f}"
        later = max(abs(a - b) for a, b in zip(engine.losses, ours.losses, strict=True))
        print(f"{line}  (over all steps within {later:.1e} of glotlift's)")
    operations = [
        4 * (ours.about["parameters"] * n + ours.about["head"] * m) for n, m in zip(tokens, targets, strict=True)
    ]
    rate, onednn_rate = ours.rates["rate"], ours.rates["onednn_rate"]
    floors = [number / rate for number in operations]
    share = 1 / _ratio(ours.seconds[1:], floors)
    at_onednn = share * rate / onednn_rate
    print(f"floor          {sum(targets) / sum(floors):9.1f} {sum(tokens) / sum(floors):9.1f} ", end="")
    print(f"({share:.0%} of glotlift's time, {at_onednn:.0%} at oneDNN's rate;", end=" ")
    print(f"{rate / 1e9:.0f} and {onednn_rate / 1e9:.0f} GFLOP/s)")
    n_steps = len(tokens)
    print(f"{n_steps} steps of {sum(tokens) / n_steps:.0f} tokens, {sum(targets) / n_steps:.0f} of them targets")
    firsts = [engine.losses[0] for engine in engines.values()]
    apart = max(firsts) - min(firsts)
    if apart > SAME_LOSS:
        print(f"losses of the first step differ by {apart:.2g}, expected at most {SAME_LOSS}: not the same work")
    result = {
        "over_trl_default": round(slower["trl-default"], 2),
        "over_trl_tuned": round(slower["trl-tuned"], 2),
        "over_llama_factory": round(slower["llama-factory"], 2) if "llama-factory" in slower else None,
        "peak_over_trl": round(ours.peak / engines["trl-default"].peak, 3),
        "working_over_trl": round(_added(ours) / _added(engines["trl-default"]), 3),
        "floor_share": round(share, 3),
    }
    taught = consistency.result(1, 1) if quick else consistency.result(4, 2)
    result |= {"consistency_over_plain": taught["over_plain"], "consistency_peak_over_plain": taught["peak_over_plain"]}
    print(json.dumps(result))
    return int(apart > SAME_LOSS or not taught["same_loss"])


def _added(engine):
    """Return the bytes that training added to the loaded model."""
    return engine.peak - engine.resident


def _ratio(theirs, ours):
    """Return how much longer `theirs` takes, the median over steps."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    sys.exit(main())
