"""glotlift's lens and geometry against what people would use instead: same prompts, the demo model, in one run.

    python benchmarks/explain.py [--quick] [--items 8] [--repeats 3]

    plain      the plain loop: batch 1, `output_hidden_states`, every state of every layer and position through norm and
               head, entropy and label mass of the last one; mean states of the question
    nnsight    the logit-lens recipe of nnsight's tutorials, a trace a prompt, last position only; left out where the
               package is not installed
    evaluate   the pass of `glotlift eval` alone: every answer word scored
    glotlift   the same pass with the taps of lens and geometry, read as `glotlift explain` reads them

Each runs in a process of its own, in turns, so that peak memory is its own and a slow moment of the machine hits all.
Times are medians. Peak memory is that of the whole process once the model is loaded. Prints a table and how far the
entropies of the engines are apart; the last line is JSON: `over_plain` and `over_nnsight` (their time over that of
glotlift, scoring included), `added_to_eval` (share of time that lens and geometry add), `peak_over_eval`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ENGINES = ("plain", "nnsight", "evaluate", "glotlift")
LANGUAGES = ("en", "de", "th")


# --- in a worker


def _prepared(n):
    from glotlift.data.read import read_items
    from glotlift.evaluation.prompts import prepare
    from glotlift.evaluation.settings import EvalTask
    from glotlift.models.load import load_model
    from glotlift.tasks.load import load_task

    loaded, task = load_model("demo"), load_task("sentiment")
    items = read_items(task, "sample", LANGUAGES, limit=n)
    entry = EvalTask(task="sentiment")
    return loaded, task, {code: prepare(loaded, task, code, rows, entry) for code, rows in items.items()}


def _sets(loaded, task, code):
    from glotlift.explanation.token_sets import token_sets

    return token_sets(loaded.tokenizer, task.answers("en", "own"), task.answers(code, "own"))


def _entropy(logits):
    import torch

    logs = logits.float().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1) / torch.log(torch.tensor(2.0))


def _plain(loaded, task, prompts):
    import torch

    entropies = []
    model = loaded.model
    for code, asked in prompts.items():
        tokens = torch.tensor(_sets(loaded, task, code).tokens)
        for row in asked.rows:
            with torch.no_grad():
                states = model(input_ids=torch.tensor([row.prompt]), output_hidden_states=True).hidden_states
                for layer, state in enumerate(states):
                    normed = state if layer + 1 == len(states) else model.model.norm(state)
                    logits = model.lm_head(normed)[0]
                    _ = logits[-1].softmax(-1)[tokens].sum(), state[0, slice(*row.span)].mean(0)
                    entropies.append(_entropy(logits[-1]).item())
    return entropies


def _nnsight(loaded, task, prompts):
    import torch
    from nnsight import LanguageModel

    model = LanguageModel(loaded.model, tokenizer=loaded.tokenizer)
    entropies = []
    for code, asked in prompts.items():
        tokens = torch.tensor(_sets(loaded, task, code).tokens)
        for row in asked.rows:
            with torch.no_grad(), model.trace(torch.tensor([row.prompt])):
                kept = [model.model.embed_tokens.output[:, -1].save()]
                for layer in model.model.layers:
                    output = layer.output
                    hidden = output[0] if isinstance(output, tuple) else output
                    kept.append(hidden[:, -1].save())
            with torch.no_grad():
                logits = loaded.model.lm_head(loaded.model.model.norm(torch.cat(list(kept))))
                _ = logits.softmax(-1)[:, tokens].sum(-1)
                entropies += _entropy(logits).tolist()
    return entropies


def _glotlift(loaded, task, prompts, with_taps):
    """Score all answer words; with taps, also read every layer and pool the questions' states."""
    from glotlift.explanation.lens import MEASURES, read_layers
    from glotlift.models.forward import run

    entropies = []
    for code, asked in prompts.items():
        sets = _sets(loaded, task, code)
        of_words = {token for row in asked.rows for path in row.trie.steps for _, token in path}
        of_sets = [token for tokens in asked.prefix_sets for token in tokens]
        tokens = list(dict.fromkeys([*sorted(of_words), *of_sets, *(sets.tokens if with_taps else ())]))
        found = {}
        with loaded.as_variant("base") as model:
            for batch in run(model, asked.rows, tokens=tokens, last_states=with_taps, pooled_states=with_taps):
                (batch.logits - batch.normalizer[:, None]).tolist()
                if with_taps:
                    read = read_layers(model, batch.last_states, sets)
                    values = read.measures[..., MEASURES.index("entropy_bits")].tolist()
                    found |= dict(zip(batch.rows, values, strict=True))
        entropies += [value for index in sorted(found) for value in found[index]]
    return entropies


def _memory(name):
    """Return a size of this process in bytes, as Linux counts it."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def _worker(engine, n):
    loaded, task, prompts = _prepared(n)
    first = {code: prompts[code] for code in LANGUAGES[:1]}
    look = {
        "plain": _plain,
        "nnsight": _nnsight,
        "evaluate": lambda *given: _glotlift(*given, with_taps=False),
        "glotlift": lambda *given: _glotlift(*given, with_taps=True),
    }[engine]
    if engine in ("evaluate", "glotlift"):
        look(loaded, task, first)  # reads all weights
    else:
        import torch

        with torch.no_grad():
            loaded.model(input_ids=torch.tensor([first["en"].rows[0].prompt]))  # reads all weights
    Path("/proc/self/clear_refs").write_text("5")
    print(json.dumps({"resident": _memory("VmRSS")}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        entropies = look(loaded, task, prompts)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "entropies": entropies, "peak": _memory("VmHWM")}), flush=True)


# --- in the process that asks


class _Engine:
    def __init__(self, name, n):
        command = [sys.executable, "-W", "ignore", __file__, "--worker", name, "--items", str(n)]
        pipe = subprocess.PIPE
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.seconds, self.entropies, self.peak = [], [], 0
        self.resident = self._answer()["resident"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended before it answered")
        return json.loads(line)

    def ask(self):
        print("go", file=self.process.stdin, flush=True)
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.entropies, self.peak = answer["entropies"], max(self.peak, answer["peak"])

    @property
    def median(self):
        return statistics.median(self.seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8, help="a language")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1 item a language, once")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _worker(options.worker, options.items)
    n, repeats = (1, 1) if options.quick else (options.items, options.repeats)
    has_nnsight = importlib.util.find_spec("nnsight") is not None
    engines = {name: _Engine(name, n) for name in ENGINES if name != "nnsight" or has_nnsight}
    for _ in range(repeats):
        for engine in engines.values():
            engine.ask()
    ours, alone = engines["glotlift"], engines["evaluate"]
    n_prompts = n * len(LANGUAGES)
    print(f"{'engine':10} {'s/prompt':>9} {'slower':>8} {'peak GiB':>9} {'entropy off by':>15}")
    for name, engine in engines.items():
        pairs = zip(engine.entropies, ours.entropies, strict=False)
        off = max((abs(a - b) for a, b in pairs), default=float("nan"))
        slower = engine.median / ours.median
        print(f"{name:10} {engine.median / n_prompts:9.3f} {slower:8.2f} {engine.peak / 2**30:9.2f} {off:15.1e}")
    result = {
        "over_plain": round(engines["plain"].median / ours.median, 2),
        "over_nnsight": round(engines["nnsight"].median / ours.median, 2) if has_nnsight else None,
        "added_to_eval": round(ours.median / alone.median - 1, 3),
        "peak_over_eval": round(ours.peak / alone.peak, 3),
    }
    print(json.dumps(result))
    for engine in engines.values():
        engine.process.stdin.close()
        engine.process.wait()
    return None


if __name__ == "__main__":
    main()
