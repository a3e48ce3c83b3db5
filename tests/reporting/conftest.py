"""A small run folder with made-up numbers, whole or with stages left out.

Its scores come out of `glotlift.evaluation.scores.build_scores`, from made-up predictions.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml

from glotlift import intervals
from glotlift.evaluation.scores import Predictions, build_scores
from glotlift.languages import LANGUAGES
from tests.evaluation.test_metrics import frame

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
        sets = [predictions(key, labels, languages, variants, n_items, seed=seed) for key in tasks]
        write(path / "scores.json", make_scores(sets, model=model, seen=["zh", "de"] if tuned else []))
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


def predictions(
    key: str,
    labels: Sequence[str],
    languages: Sequence[str],
    variants: Sequence[str],
    n: int,
    *,
    task: str | None = None,
    answers: str = "own",
    demo_seed: int | None = None,
    calibration: str = "none",
    contextual: bool = True,
    seed: int = 0,
) -> Predictions:
    """Return predictions in which tuning helps, and the first two languages of the base prefer a label."""
    gold = np.array([labels[item % len(labels)] for item in range(n)])
    hit = gold[:, None] == np.array(labels)
    frames: dict[str, dict[str, pd.DataFrame]] = {variant: {} for variant in variants}
    free: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
    for position, code in enumerate(languages):
        rng = np.random.default_rng([seed, position, *key.encode()])
        skill, noise = rng.uniform(0.4, 1.5), rng.normal(0, 0.8, (n, len(labels)))
        for variant in variants:
            gain = 0.1 if answers == "arbitrary" else 0.5
            scores = noise + (skill + gain * (variant == "tuned")) * hit - 3
            bias = (9.0 if position == 0 else 1.0) if variant == "base" and position < 2 else 0.2
            scores[:, 0] += bias
            frames[variant][code] = frame(scores, gold, list(labels))
            prior = [bias, *[0.0] * (len(labels) - 1)]
            free[variant][code] = [{"sequence": prior, "prefix_mass": list(np.exp(prior))}] if contextual else None
    metadata = {
        "task": key, "task_name": task or key, "answers": answers, "demo_seed": demo_seed, "scoring": "sequence",
        "labels": list(labels), "calibration": calibration,
    }  # fmt: skip
    words = {code: {label: label for label in labels} for code in languages}
    raw = Predictions(key, frames, metadata, dict.fromkeys(languages, 2), free, words)
    decided = {variant: {code: raw.decided(variant, code, calibration) for code in languages} for variant in variants}
    return dataclasses.replace(raw, frames=decided)


def make_scores(test_sets: Sequence[Predictions], *, model: str = "demo", seen: Sequence[str] = ()) -> dict[str, Any]:
    """Return what scores.json holds, with few resamples."""
    intervals.resamples.cache_clear()
    try:
        with mock.patch.object(intervals, "N_RESAMPLES", 200):
            return build_scores(test_sets, model=model, config={}, seen=seen, pivot="en")
    finally:
        intervals.resamples.cache_clear()


@pytest.fixture(scope="session")
def many() -> dict[str, Any]:
    """Return scores of base and tuned with a control, a grid and draws of demonstrations; not to be changed."""
    labels, codes, variants = ("positive", "negative"), ("en", "de", "sw", "zh"), ("base", "tuned")

    def one(key: str, **options: Any) -> Predictions:
        return predictions(key, labels, codes, variants, 40, **options)

    return make_scores(
        [
            one("mood.own", task="mood"),
            one("mood.arbitrary", task="mood", answers="arbitrary"),
            *(one(f"nli.in-{code}", task="nli", answers=f"in:{code}") for code in codes),
            *(one(f"para.seed{draw}", task="para", demo_seed=draw) for draw in range(3)),
        ],
        seen=("zh", "de"),
    )


_OLD_SCORE = ("language", "n", "accuracy", "low", "high", "accuracy_calibrated", "auroc", "predicted", "tied")
_OLD_TASK = ("task", "answers", "scoring", "labels", "label_words", "chance", "groups", "calibrated_groups", "sentence")
_OLD_MEAN = ("accuracy", "accuracy_calibrated", "auroc", "collapsed_languages")


def as_in_0_1(scores: dict[str, Any]) -> dict[str, Any]:
    """Return scores with the keys that scores.json had in glotlift 0.1 only."""
    scores = copy.deepcopy(scores)
    extras = scores["glotlift"]
    for key, task in extras["tasks"].items():
        languages = {
            code: {
                name: {k: value[k] for k in _OLD_SCORE} if name in extras["variants"] else value
                for name, value in entry.items()
                if name != "changes"
            }
            for code, entry in task["languages"].items()
        }
        means = {variant: {k: row[k] for k in _OLD_MEAN} for variant, row in task["means"].items()}
        kept = {k: task[k] for k in _OLD_TASK if k in task}
        extras["tasks"][key] = {**kept, "languages": languages, "means": means}
    extras.pop("answer_language_grid", None)
    extras.pop("demonstration_spread", None)
    return scores


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
