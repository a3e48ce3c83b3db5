"""glotlift's forward pass against the plain loop, on the same items and the demo model, in one run.

    python benchmarks/evaluate.py [--items 12] [--repeats 3]

Plain is what the original does: batch 1, nothing cached, full-vocabulary logits at every position, one pass an item
(answer words of one token) or one pass a label (longer ones). Prints a table of median seconds an item; the last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from glotlift.data.read import read_items
from glotlift.evaluation.predict import predict, prepare
from glotlift.models.load import load_model
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item


def _items(task, n):
    if task.name == "sentiment":
        return read_items(task, "sample", ("en",), limit=n)["en"]
    shown = [demonstration.fields for demonstration in task.pack("en").demonstrations]
    pairs = [(a["premise"], b["hypothesis"]) for a in shown for b in shown]
    return [Item(str(i), {"premise": a, "hypothesis": b}, "neutral") for i, (a, b) in enumerate(pairs[:n])]


def _seconds(function, n_items, repeats):
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        frame = function()
        times.append((time.perf_counter() - begin) / n_items)
    return statistics.median(times), frame


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    loaded = load_model("demo")
    results = {}
    for name in ("sentiment", "nli"):
        task = load_task(name)
        prompts = prepare(loaded, task, "en", _items(task, options.items), "english")
        n = len(prompts.rows)
        ours, cached = _seconds(lambda p=prompts: predict(loaded, p, "base"), n, options.repeats)
        plain, alone = _seconds(lambda p=prompts: predict(loaded, p, "base", prefix_cache=False), n, options.repeats)
        agreement = float((cached["predicted"] == alone["predicted"]).mean())
        results |= {f"{name}_over_plain": round(plain / ours, 2), f"{name}_agreement": agreement}
        tokens = sum(len(row.prompt) for row in prompts.rows) / n
        seconds = f"plain {plain:.3f} s, glotlift {ours:.3f} s an item"
        print(f"{name:10} {n} items of {tokens:.0f} tokens: {seconds}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
