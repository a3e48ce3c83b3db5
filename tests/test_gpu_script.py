"""benchmarks/gpu.py at toy size on the CPU: every part runs, and one that fails is told."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
ON_A_CPU = ("parity", "batches", "memory", "train", "checkpointing", "merge", "evaluate", "throughput")


@pytest.fixture(scope="module")
def gpu():
    """The script as a module; its neighbours are beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu

        yield gpu
    finally:
        sys.path.remove(str(BENCHMARKS))


def run(gpu, capsys, *arguments):
    """Return the exit code, the Markdown and the JSON of a toy run."""
    code = gpu.main(["--device", "cpu", "--toy", *arguments])
    *lines, last = capsys.readouterr().out.splitlines()
    return code, "\n".join(lines), json.loads(last)


def test_every_part_runs_and_what_needs_cuda_says_so(gpu, capsys):
    code, table, found = run(gpu, capsys)
    assert found["parts"] == {
        **dict.fromkeys(gpu.PARTS, "passed"), "quantization": "skipped", "fsdp": "skipped",
    }, found["why"]  # fmt: skip
    assert set(ON_A_CPU) == {name for name, state in found["parts"].items() if state == "passed"}
    assert code == 0
    assert "| quantization | skipped: needs CUDA |" in table
    assert "| fsdp | skipped: accelerate shards on CUDA only; what is above ran |" in table
    with_figures = {name.split(":")[0] for name in found["figures"]}
    assert with_figures == {*ON_A_CPU, "fsdp"}, "a part that passed found something"
    assert None not in found["figures"].values()
    assert found["figures"]["memory: with half of that: times a batch was halved"] >= 1
    assert table.count("| at most") + table.count("| at least") >= 20


def test_a_part_runs_alone(gpu, capsys):
    _, _, found = run(gpu, capsys, "--parts", "batches")
    assert list(found["parts"]) == ["batches"]


def test_a_part_that_fails_is_told_and_the_others_run(gpu, capsys, monkeypatch):
    bench_module = sys.modules["gpu_bench"]

    def breaks(_bench):
        yield bench_module.Figure("before", 1.0)
        raise RuntimeError("CUDA error: first line\nsecond line")

    def is_wrong(_bench):
        yield bench_module.at_most("difference", float("nan"), 0.1)
        yield bench_module.at_least("steps", 1, 2)

    def is_fine(_bench):
        yield bench_module.at_most("difference", 0.1, 0.1)

    def takes_long(_bench):
        yield bench_module.Figure("before", 2.0)
        time.sleep(30)

    parts = {each.__name__: each for each in (breaks, is_wrong, takes_long, is_fine)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "SHARES", dict.fromkeys(parts.values(), 0.01))
    begin = time.monotonic()
    code, table, found = run(gpu, capsys, "--parts", ",".join(parts), "--minutes", "0.06")
    assert time.monotonic() - begin < 15
    assert code == 1
    assert found["parts"] == {"breaks": "failed", "is_wrong": "failed", "takes_long": "failed", "is_fine": "passed"}
    assert found["why"]["breaks"] == "RuntimeError: CUDA error: first line"
    assert found["why"]["is_wrong"] == "not as expected: difference, steps"
    assert "share of --minutes" in found["why"]["takes_long"]
    assert found["figures"] == {
        "breaks: before": 1.0, "is_wrong: difference": None, "is_wrong: steps": 1.0, "takes_long: before": 2.0,
        "is_fine: difference": 0.1,
    }  # fmt: skip
    assert "| is_wrong | difference | **nan** | at most 0.1 |" in table
    assert "| is_fine | difference | 0.1 | at most 0.1 |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--parts", "parity,tain"], "got part 'tain', expected some of parity, batches"),
        (["--device", "cuda"], "got device cuda where torch sees none"),
    ],
)
def test_bad_arguments_are_refused(gpu, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        gpu.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_shapes_are_those_of_their_names(gpu):
    models = sys.modules["gpu_models"]
    for shape, billions in {models.SMALL: 1.236, models.LARGE: 6.738, models.WINDOWED: 1.0}.items():
        with torch.device("meta"):
            model = models.AutoModelForCausalLM.from_config(models.config_of(shape, toy=False))
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.001)
        body, head = models.sizes(model)
        assert head == model.config.vocab_size * model.config.hidden_size
        assert body == pytest.approx(sum(p.numel() for p in model.parameters()) - head * (1 + (shape == models.LARGE)))
    kinds = models.config_of(models.WINDOWED, toy=False).layer_types
    assert [k for k, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23]


def test_prompts_are_longer_than_the_window(gpu):
    """Only then do sliding windows show; the demonstrations are the prefix that items share."""
    models = sys.modules["gpu_models"]
    loaded = models.load(models.WINDOWED, "cpu", torch.float32, toy=True)
    prompts = models.prompts_of(loaded, 64)
    assert len(set(prompts.texts[:64])) == 64
    assert min(len(row.prompt) for row in prompts.rows) > models.SHAPES[models.WINDOWED].sliding_window
    assert min(len(row.prompt) for row in models.prompts_of(loaded, 2, 1).rows) > loaded.model.config.sliding_window


def test_parity_runs_the_plain_forward_too(gpu):
    models, parts = sys.modules["gpu_models"], sys.modules["gpu_scores"]
    loaded = models.load(models.SMALL, "cpu", torch.float32, toy=True)
    widths = []
    loaded.model.register_forward_pre_hook(lambda _m, _a, given: widths.append(given["input_ids"].shape[1]),
                                           with_kwargs=True)  # fmt: skip
    prompts = models.prompts_of(loaded, 2, 1)
    parts.scores(loaded, prompts)
    widths.clear()
    cached, plain = parts.both_ways(loaded, prompts, "eager")
    whole = [width for width in widths if width >= min(len(row.prompt) for row in prompts.rows)]
    assert len(whole) >= 2 * 3, "every item and label alone, without the cached prefix"
    assert loaded.model.config._attn_implementation == "eager"
    assert cached.shape == plain.shape == (2, 6)


def test_parity_tells_a_window_that_is_one_token_off(gpu):
    bench_module, models, parts = (sys.modules[name] for name in ("gpu_bench", "gpu_models", "gpu_scores"))
    bench = bench_module.Bench(torch.device("cpu"), toy=True, scratch=Path())
    loaded = models.load(models.WINDOWED, "cpu", torch.float32, toy=True)
    prompts = models.prompts_of(loaded, 2, 1)
    _, plain = parts.both_ways(loaded, prompts, "sdpa")
    loaded.model.config.sliding_window += 1  # what the packed masks go by; transformers' own masks do as well
    cached, _ = parts.both_ways(loaded, prompts, "sdpa")
    assert abs(cached - plain).max() > bench_module.SAME
    assert bench.shown == 1


def test_the_wheels_that_docs_name_are_pinned():
    names = (BENCHMARKS / "gpu-wheels.txt").read_text().splitlines()[1:]
    pinned = {line.split("==")[0] for line in (BENCHMARKS.parent / "requirements.lock").read_text().splitlines()[1:]}
    assert len(names) > 30
    assert set(names) <= pinned
