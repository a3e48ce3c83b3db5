"""A small run folder with made-up numbers, whole or with stages left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from glotlift.languages import LANGUAGES

STAGES = ("data", "train", "merge", "scores", "lens", "geometry")
N_ITEMS, N_LAYERS = 40, 6


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that builds a run folder; see `build_run`."""
    return lambda **options: build_run(tmp_path / "run", **options)


def build_run(
    path: Path,
    *,
    tasks: Sequence[str] = ("sentiment",),
    labels: Sequence[str] = ("positive", "negative"),
    languages: Sequence[str] = ("en", "de", "sw", "zh"),
    model: str = "demo",
    tuned: bool = True,
    stages: Sequence[str] = STAGES,
    n_items: int = N_ITEMS,
    n_layers: int = N_LAYERS,
    seed: int = 0,
) -> Path:
    """Write a run folder with the files of some stages; the numbers are random, and consistent with each other."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    variants = ["base", "tuned"] if tuned else ["base"]
    _write_recipe_and_manifest(path, model, tasks, languages, stages)
    if "data" in stages:
        audit = {
            "pairs": 80,
            "languages": {"zh": 40, "de": 40},
            "flags": {"length": 2},
            "flagged": {"zh:3": ["length"]},
        }
        write(path / "data" / "audit.json", audit)
    if "train" in stages and tuned:
        write(path / "adapter" / "history.json", _history(rng))
    if "merge" in stages and tuned:
        certificate = {"max_logit_difference": 3.1e-5, "argmax_agreement": 1.0, "n_prompts": 16}
        write(path / "merge.json", certificate | {"dtype": "float32", "tolerance": 0.01})
    if "scores" in stages:
        extras = {"model": model, "variants": variants, "seen": ["zh", "de"] if tuned else [], "pivot": "en"}
        entries = {key: _task_entry(rng, key, labels, languages, variants, n_items * 10) for key in tasks}
        write(path / "scores.json", {"results": {}, "glotlift": {**extras, "tasks": entries}})
    for key in tasks[:1]:
        if "lens" in stages:
            _write_lens(rng, path / "lens", key, languages, variants, n_items, n_layers)
        if "geometry" in stages:
            _write_geometry(rng, path / "geometry" / key, languages, variants, n_items, n_layers)
    return path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_recipe_and_manifest(
    path: Path, model: str, tasks: Sequence[str], languages: Sequence[str], stages: Sequence[str]
) -> None:
    recipe = {
        "name": "demo",
        "model": model,
        "data": {"task": tasks[0], "source": "sample", "languages": ["zh", "de"], "target": "en"},
        "train": {"rank": 16, "alpha": 32, "learning_rate": 2e-4, "epochs": 1.0},
        "eval": {"tasks": [{"task": key} for key in tasks], "languages": list(languages)},
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    entry = {"status": "done", "finished": "2026-01-31T12:00:00Z", "versions": {"python": "3.12.1", "torch": "2.9.0"}}
    write(path / "manifest.json", {"stages": {name: {**entry, "seconds": 61.5} for name in stages}})


def _history(rng: np.random.Generator) -> dict[str, Any]:
    losses = 1.2 + 1.6 * np.exp(-np.arange(60) / 15) + 0.08 * rng.normal(size=60)
    log = [
        {"loss": float(loss), "grad_norm": 1.0, "learning_rate": 2e-4, "epoch": (step + 1) / 60, "step": step + 1}
        for step, loss in enumerate(losses)
    ]
    counts = {"target_tokens": 12_345, "tokens": 45_678, "trainable_parameters": 3_796_992}
    return {"log": log, "validation_loss": {"zh": 1.31, "de": 1.12}, "seen": ["zh", "de"], "pivot": "en", **counts}


def _score(rng: np.random.Generator, labels: Sequence[str], code: str, n: int, skill: float) -> dict[str, Any]:
    bias = 0.0 if rng.random() > 0.15 else 1.0
    first = n if bias else int(n * rng.uniform(0.3, 0.8))
    rest = rng.multinomial(n - first, np.full(len(labels) - 1, 1 / (len(labels) - 1)))
    accuracy = round(n * (1 / len(labels) if bias else skill)) / n
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "language": code,
        "n": n,
        "accuracy": accuracy,
        "low": accuracy - half,
        "high": min(1.0, accuracy + half),
        "accuracy_calibrated": min(1.0, skill + 0.02),
        "auroc": min(1.0, skill + 0.05),
        "predicted": dict(zip(labels, [first, *map(int, rest)], strict=True)),
        "tied": 0,
    }


def _change(name: str, a: float, b: float, n: int, half: float, languages: int = 1) -> dict[str, Any]:
    p = 0.0004 if abs(b - a) > half else 0.31
    ends = {"low": b - a - half, "high": b - a + half}
    single = languages == 1
    return {
        "name": name, "n": n, "a": a, "b": b, "change": b - a, **ends, "p": p if single else None,
        "p_holm": min(1.0, 3 * p) if single else None, "languages": languages,
    }  # fmt: skip


def _task_entry(
    rng: np.random.Generator, key: str, labels: Sequence[str], languages: Sequence[str], variants: Sequence[str], n: int
) -> dict[str, Any]:
    entries: dict[str, dict[str, Any]] = {}
    for code in languages:
        skill = rng.uniform(0.5, 0.75)
        gain = rng.normal(0.06, 0.05)
        entries[code] = {
            variant: _score(rng, labels, code, n, float(min(0.97, skill + gain * (variant == "tuned"))))
            for variant in variants
        }
        if "tuned" in variants:
            a, b = (entries[code][variant]["accuracy"] for variant in variants)
            entries[code]["change"] = _change(code, a, b, n, 0.045)
    measures = ("accuracy", "accuracy_calibrated", "auroc")
    means = {
        variant: {m: float(np.mean([entry[variant][m] for entry in entries.values()])) for m in measures}
        for variant in variants
    }
    common = {"task": key, "answers": "own", "scoring": "sequence", "labels": list(labels), "chance": 1 / len(labels)}
    out = {**common, "languages": entries, "means": means, "sentence": f"On {key}, this many items are right."}
    if "tuned" in variants:
        members = {
            "all": list(languages),
            "seen": [code for code in languages if code in ("zh", "de")],
            "unseen": [code for code in languages if code not in ("zh", "de", "en")],
        }
        members = {name: codes for name, codes in members.items() if codes}
        out["groups"] = {name: _group(name, codes, entries, "accuracy", n) for name, codes in members.items()}
        out["calibrated_groups"] = {
            name: _group(name, codes, entries, "accuracy_calibrated", n) for name, codes in members.items()
        }
    return out


def _group(name: str, codes: Sequence[str], entries: dict[str, Any], measure: str, n: int) -> dict[str, Any]:
    a, b = (float(np.mean([entries[code][variant][measure] for code in codes])) for variant in ("base", "tuned"))
    return _change(name, a, b, n, 0.02, languages=len(codes) + (len(codes) == 1))


def _write_lens(
    rng: np.random.Generator,
    folder: Path,
    key: str,
    languages: Sequence[str],
    variants: Sequence[str],
    n_items: int,
    n_layers: int,
) -> None:
    depth = np.linspace(0, 1, n_layers)[None]
    for variant in variants:
        for code in languages:
            noise = rng.uniform(0.5, 1.5, size=(n_items, 1))
            peak = noise * (0.25 + 0.1 * (variant == "tuned")) * np.exp(-((depth - 0.75) ** 2) / 0.02)
            own = noise * 0.35 * np.clip((depth - 0.7) / 0.3, 0, 1)
            grid = {
                "id": np.repeat([f"i{k}" for k in range(n_items)], n_layers),
                "layer": np.tile(np.arange(n_layers), n_items),
                "english_mass": peak.ravel(),
                "own_mass": own.ravel() * (code != "en"),
                "shared_mass": own.ravel() * (code == "sw"),
                "ambiguous_mass": np.zeros(n_items * n_layers),
                "entropy_bits": (14 - 9 * depth**2 + noise).ravel(),
                "top_token": ["x"] * (n_items * n_layers),
            }
            target = folder / variant / key / f"{code}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(grid).to_parquet(target)


def _write_geometry(
    rng: np.random.Generator,
    folder: Path,
    languages: Sequence[str],
    variants: Sequence[str],
    n_items: int,
    n_layers: int,
) -> None:
    folder.mkdir(parents=True)
    items = rng.normal(size=(n_items, 2))
    points, correlations, explained = [], [], []
    for variant in variants:
        for layer in range(n_layers):
            spread = 3 * (1 - 0.7 * layer / max(1, n_layers - 1)) * (0.7 if variant == "tuned" else 1.0)
            explained.append({"variant": variant, "layer": layer, "pc1": 0.31, "pc2": 0.12})
            for code in languages:
                angle = 2 * np.pi * list(LANGUAGES).index(code) / len(LANGUAGES)
                center = spread * np.array([np.cos(angle), np.sin(angle)])
                where = center + 0.5 * items + 0.3 * rng.normal(size=items.shape)
                ids = [f"i{k}" for k in range(n_items)]
                frame = pd.DataFrame({"id": ids, "pc1": where[:, 0], "pc2": where[:, 1]})
                points.append(frame.assign(variant=variant, layer=layer, language=code))
                if code == "en":
                    continue
                r = float(np.tanh(layer / n_layers + 0.2 * (variant == "tuned")))
                correlations.append(
                    {"variant": variant, "layer": layer, "language": code, "n": n_items, "r": r, "r_partial": r - 0.2,
                     "null_low": -0.3, "null_high": 0.3, "p_permutation": 0.01}
                )  # fmt: skip
    pd.concat(points, ignore_index=True).to_parquet(folder / "pca.parquet")
    pd.DataFrame(explained).to_parquet(folder / "explained.parquet")
    pd.DataFrame(correlations).to_parquet(folder / "correlation.parquet")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole run of two tasks whose report has been written; not to be changed."""
    from glotlift.reporting.page import write_report

    run = build_run(tmp_path_factory.mktemp("written") / "run", tasks=("sentiment", "nli"))
    write_report(run)
    return run
