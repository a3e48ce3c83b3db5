"""glotlift's lens and geometry against what people would use instead: same prompts, the demo model, in one run.

    python benchmarks/explain.py [--quick] [--items 8] [--repeats 3] [--data 'amazon/test_{lang}.jsonl']
                                 [--engines explain]

    plain           the plain loop: batch 1, `output_hidden_states`, every state of every layer and position through
                    norm and head; entropy and label mass of the last one, mean states of the question
    plain-batch     the same by someone who minds the time: eight prompts as one batch padded on the left, only their
                    last states through norm and head, all at once
    nnsight         the logit lens of nnsight's documentation (docs/patterns/logit-lens.md of 0.8): a trace a prompt,
                    norm and head called on every block's output, the last position taken of the logits; no geometry
    nnsight-batch   the same with its documentation's advice for speed: one trace for eight prompts, and only their last
                    states through norm and head, all at once
    evaluate        the pass of `glotlift eval` alone: every answer word scored
    glotlift        the same pass with the taps of lens and geometry, and the lens read of every layer: what a run does
                    in the pass that scores its answers, but for the check of the last layer, the content-free inputs
                    and the files; without what geometry makes of its states afterwards
    explain         what `glotlift explain --what lens,geometry` runs by itself: no answer scored; the self-test, the
                    pass, the files of lens and states written into an empty folder, geometry's measures with their
                    intervals

Each runs in a process of its own, in turns, so that peak memory is its own and a slow moment of the machine hits all;
each has read a prompt before the first turn. nnsight is left out where it is not installed; `--engines` names those
that run beside `evaluate` and `glotlift`. Times are medians. Peak memory is that of the whole process once the model is
loaded. What lens and geometry add is the same for every prompt, so their share is less the longer prompts are:
`--data` takes other items than the short ones of the bundled sample. Prints a table and how far the
entropies of the engines are apart; the last line is JSON: `over_plain`, `over_nnsight`, `over_plain_batch` and
`over_nnsight_batch` (their time over that of glotlift, scoring included), `added_to_eval` (share of time that lens and
geometry add to the pass), `peak_over_eval`, both of `glotlift`; and `explain_over_eval`, the time of `explain` over
that of `evaluate`.
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
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

ENGINES = ("plain", "plain-batch", "nnsight", "nnsight-batch", "evaluate", "glotlift", "explain")
LANGUAGES = ("en", "de", "th")
BATCH = 8  # prompts of one language that the engines `-batch` run together; glotlift has its own batches


# --- in a worker


def _prepared(n, source):
    from glotlift.data.read import read_items
    from glotlift.evaluation.prompts import prepare
    from glotlift.evaluation.settings import EvalTask
    from glotlift.models.load import load_model
    from glotlift.tasks.load import load_task

    loaded, task = load_model("demo"), load_task("sentiment")
    items = read_items(task, source, LANGUAGES, limit=n)
    entry = EvalTask(task="sentiment")
    return loaded, task, {code: prepare(loaded, task, code, rows, entry) for code, rows in items.items()}


def _sets(loaded, task, code):
    from glotlift.explanation.token_sets import token_sets

    return token_sets(loaded.tokenizer, task.answers("en", "own"), task.answers(code, "own"))


def _read(logits, tokens):
    """Return entropies in bits; take the mass of the sets' tokens, too. *Shape:* (..., vocabulary) -> (...)."""
    import torch

    logs = logits.float().log_softmax(-1)
    _ = logs[..., tokens].exp().sum(-1)
    return -(logs.exp() * logs).sum(-1) / torch.log(torch.tensor(2.0))


def _plain(loaded, task, prompts):
    import torch

    entropies, model = [], loaded.model
    for code, asked in prompts.items():
        tokens = list(_sets(loaded, task, code).tokens)
        for row in asked.rows:
            with torch.inference_mode():
                found = model(input_ids=torch.tensor([row.prompt]), output_hidden_states=True)
                *inner, _ = found.hidden_states  # the last one is behind the norm, and its logits are there
                logits = (model.lm_head(model.model.norm(state)) for state in inner)
                entropies += [_read(each[0, -1], tokens).item() for each in (*logits, found.logits)]
                _ = [state[0, slice(*row.span)].mean(0) for state in found.hidden_states]
    return entropies


def _batches(rows):
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def _padded(rows):
    """Return token ids and mask of prompts as one batch, padded on the left. *Shape:* (prompts, longest)."""
    import torch

    longest = max(len(row.prompt) for row in rows)
    empty = [longest - len(row.prompt) for row in rows]
    ids = [[0] * n + list(row.prompt) for n, row in zip(empty, rows, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in empty]
    return torch.tensor(ids), torch.tensor(mask)


def _plain_batch(loaded, task, prompts):
    import torch

    entropies, model = [], loaded.model
    for code, asked in prompts.items():
        tokens = list(_sets(loaded, task, code).tokens)
        for rows in _batches(asked.rows):
            ids, mask = _padded(rows)
            with torch.inference_mode():
                found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, logits_to_keep=1)
                last = torch.stack([state[:, -1] for state in found.hidden_states[:-1]], 1)
                logits = torch.cat([model.lm_head(model.model.norm(last)), found.logits], 1)
                entropies += _read(logits, tokens).flatten().tolist()
                for k, row in enumerate(rows):
                    begin, end = (place - len(row.prompt) or None for place in row.span)
                    _ = [state[k, begin:end].mean(0) for state in found.hidden_states]
    return entropies


@cache
def _traced(model, tokenizer):
    from nnsight import TransformersModel

    return TransformersModel(model, tokenizer=tokenizer, task="text-generation")


def _nnsight(loaded, task, prompts):
    import nnsight
    import torch

    entropies, model = [], _traced(loaded.model, loaded.tokenizer)
    for code, asked in prompts.items():
        tokens = list(_sets(loaded, task, code).tokens)
        for row in asked.rows:
            with torch.no_grad(), model.trace(list(row.prompt)):
                found = nnsight.save([])
                embedded = model.model.layers[0].input
                found.append(_read(model.lm_head(model.model.norm(embedded))[0, -1], tokens))
                for block in model.model.layers:
                    logits = model.lm_head(model.model.norm(block.output))
                    found.append(_read(logits[0, -1], tokens))
            entropies += [each.item() for each in found]
    return entropies


def _nnsight_batch(loaded, task, prompts):
    import nnsight
    import torch

    entropies, model = [], _traced(loaded.model, loaded.tokenizer)
    for code, asked in prompts.items():
        tokens = list(_sets(loaded, task, code).tokens)
        for rows in _batches(asked.rows):
            with torch.no_grad(), model.trace([list(row.prompt) for row in rows], logits_to_keep=1):
                last = nnsight.save([])
                last.append(model.model.layers[0].input[:, -1])
                for block in model.model.layers:
                    last.append(block.output[:, -1])
            with torch.no_grad():
                logits = loaded.model.lm_head(loaded.model.model.norm(torch.stack(list(last), 1)))
                entropies += _read(logits, tokens).flatten().tolist()
    return entropies


def _glotlift(loaded, task, prompts, with_taps):
    """Score all answer words; with taps, also read every layer and pool the questions' states."""
    from glotlift.explanation.lens import MEASURES, read_layers
    from glotlift.models.forward import run

    entropies = []
    for code, asked in prompts.items():
        sets = _sets(loaded, task, code) if with_taps else None
        of_words = {token for row in asked.rows for path in row.trie.steps for _, token in path}
        of_sets = [token for tokens in asked.prefix_sets for token in tokens]
        tokens = list(dict.fromkeys([*sorted(of_words), *of_sets, *(sets.tokens if sets else ())]))
        found = {}
        with loaded.as_variant("base") as model:
            for batch in run(model, asked.rows, tokens=tokens, last_states=with_taps, pooled_states=with_taps):
                (batch.logits - batch.normalizer[:, None]).tolist()
                if sets:
                    read = read_layers(model, batch.last_states, sets)
                    values = read.measures[..., MEASURES.index("entropy_bits")].tolist()
                    found |= dict(zip(batch.rows, values, strict=True))
        entropies += [value for index in sorted(found) for value in found[index]]
    return entropies


def _explain(loaded, task, prompts):
    """Run what `glotlift explain` runs, with all that it writes."""
    from glotlift.explanation.collect import explain_languages
    from glotlift.runs import read_parquet

    own = {code: task.answers(code, "own") for code in prompts}
    words = {"english_words": task.answers("en", "own"), "own_words": own}
    with TemporaryDirectory() as folder:
        explain_languages(loaded, prompts, Path(folder), task_key=task.name, **words)
        files = [Path(folder) / "lens" / "base" / task.name / f"{code}.parquet" for code in prompts]
        return [value for file in files for value in read_parquet(file)[0]["entropy_bits"]]


def _memory(name):
    """Return a size of this process in bytes, as Linux counts it."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def _worker(engine, n, source):
    loaded, task, prompts = _prepared(n, source)
    look = {
        "plain": _plain,
        "plain-batch": _plain_batch,
        "nnsight": _nnsight,
        "nnsight-batch": _nnsight_batch,
        "evaluate": partial(_glotlift, with_taps=False),
        "glotlift": partial(_glotlift, with_taps=True),
        "explain": _explain,
    }[engine]
    code = LANGUAGES[0]
    first = replace(prompts[code], rows=prompts[code].rows[:1], items=prompts[code].items[:1])
    look(loaded, task, {code: first})  # weights read, code compiled
    Path("/proc/self/clear_refs").write_text("5")
    print(json.dumps({"resident": _memory("VmRSS")}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        entropies = look(loaded, task, prompts)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "entropies": entropies, "peak": _memory("VmHWM")}), flush=True)


# --- in the process that asks


class _Engine:
    def __init__(self, name, n, source):
        command = [sys.executable, "-W", "ignore", __file__, "--worker", name, "--items", str(n), "--data", source]
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
    """Ask every engine in turns; print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8, help="a language")
    parser.add_argument("--data", default="sample", help="test rows of sentiment, see `glotlift eval --data`")
    parser.add_argument("--engines", default=",".join(ENGINES), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1 item a language, once")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _worker(options.worker, options.items, options.data)
    n, repeats = (1, 1) if options.quick else (options.items, options.repeats)
    has_nnsight = importlib.util.find_spec("nnsight") is not None
    if unknown := set(options.engines.split(",")) - set(ENGINES):
        parser.error(f"--engines: got {', '.join(sorted(unknown))}, expected some of {', '.join(ENGINES)}")
    asked = {"evaluate", "glotlift", *options.engines.split(",")}
    chosen = [name for name in ENGINES if name in asked and (has_nnsight or "nnsight" not in name)]
    engines = {name: _Engine(name, n, options.data) for name in chosen}
    for _ in range(repeats):
        for engine in engines.values():
            engine.ask()
    ours, alone = engines["glotlift"], engines["evaluate"]
    n_prompts = n * len(LANGUAGES)
    print(f"{'engine':13} {'s/prompt':>9} {'slower':>8} {'peak GiB':>9} {'entropy off by':>15}")
    for name, engine in engines.items():
        pairs = zip(engine.entropies, ours.entropies, strict=False)
        off = max((abs(a - b) for a, b in pairs), default=float("nan"))
        slower = engine.median / ours.median
        print(f"{name:13} {engine.median / n_prompts:9.3f} {slower:8.2f} {engine.peak / 2**30:9.2f} {off:15.1e}")
    result = {
        f"over_{name.replace('-', '_')}": round(engines[name].median / ours.median, 2) if name in engines else None
        for name in ENGINES[:4]
    }
    result["added_to_eval"] = round(ours.median / alone.median - 1, 3)
    result["peak_over_eval"] = round(ours.peak / alone.peak, 3)
    if "explain" in engines:
        result["explain_over_eval"] = round(engines["explain"].median / alone.median, 3)
    print(json.dumps(result))
    for engine in engines.values():
        engine.process.stdin.close()
        engine.process.wait()
    return None


if __name__ == "__main__":
    main()
