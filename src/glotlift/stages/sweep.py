"""`sweep`: several runs of one recipe, trained and evaluated, in one table. No stage of a run: it walks many.

Reads: a sweep (`glotlift.sweeps`) and its recipe. Writes: a run folder a run and seed, `<sweep>/<run>/seed<n>/`, and
beside them `sweep.json`, `sweep.csv`, `sweep.md` and `sweep.tex`. What a run has computed of the base model, its
predictions and what it teaches, is handed on to the next, where fingerprints say whether it can be used; so the base is
evaluated once. Started again, a sweep goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from shutil import copyfile
from typing import Any

from glotlift.evaluation.compare import holm
from glotlift.evaluation.predictions import Predictions, read_predictions
from glotlift.evaluation.scores import language_groups
from glotlift.evaluation.seeds import MEASURES, seeds_gain
from glotlift.reporting.sweep import write_sweep
from glotlift.runs import RunFolder, write_atomic
from glotlift.stages.data import DATA
from glotlift.stages.evaluate import EVALUATE
from glotlift.stages.objectives import TEACHER
from glotlift.stages.stage import open_run, walk
from glotlift.stages.train import ADAPTER, TRAIN
from glotlift.strict_json import read_json
from glotlift.sweeps import PlannedRun, load_sweep

log = logging.getLogger("glotlift")

OF_BASE = ("predictions/base", TEACHER)
"""Folders of a run that depend on the base model only."""


def sweep(path: str | Path, output_path: str | Path | None = None) -> Path:
    """Train and evaluate every run of a sweep, and write the table; return the sweep's folder.

    Args:
        path: of the sweep (YAML), see `glotlift.sweeps.Sweep`.
        output_path: the sweep's folder; `runs/<name>` by default.

    Raises:
        UserError: something in the sweep, the recipe or the files they name is at fault.
        RunError: a run failed.
    """
    asked, planned = load_sweep(path)
    folder = RunFolder(Path(output_path) if output_path else Path("runs") / asked.name)
    places = [folder.path / each.place for each in planned]
    _ = open_run(planned[0].recipe, places[0]).test_sets  # faults in test data show before hours of training
    states: dict[str, Any] = {}
    with folder.lock():
        for number, (each, place) in enumerate(zip(planned, places, strict=True)):
            log.info("sweep: run %d of %d, %s", number + 1, len(planned), each.place)
            _hand_on(places[:number], place)
            run = replace(open_run(each.recipe, place), states=states)  # opened here, so that one model is held at once
            walk(run, DATA, TRAIN, EVALUATE)
            del run
        write_sweep(folder.path, sweep_scores(asked.name, planned, places))
    return folder.path


def _hand_on(sources: Sequence[Path], target: Path) -> None:
    """Copy what other runs hold of the base model and is not there yet; fingerprints say whether it can be used."""
    for source in sources:
        files = [file for part in OF_BASE for file in sorted((source / part).rglob("[!.]*.parquet"))]
        for file in files:
            place = target / file.relative_to(source)
            if not place.exists():
                write_atomic(place, partial(copyfile, file))


def sweep_scores(name: str, planned: Sequence[PlannedRun], places: Sequence[Path]) -> dict[str, Any]:
    """Return the content of sweep.json.

    Args:
        name: of the sweep.
        planned: its runs, evaluated.
        places: their folders.

    Returns:
        `sweep`; `seen`, languages that some run was tuned on; `pivot`; `runs`: name -> `control`, `seeds`, and for
        every seed `seconds` of training and `tokens` that went through it, None where they are not counted; `tasks`:
        test set -> `groups` (name -> codes) and `gains` (run -> group -> measure -> a `SeedsGain`, with `p_holm` over
        the runs).
    """
    from glotlift.errors import ModelError

    seen: dict[str, None] = {}
    runs: dict[str, dict[str, Any]] = {}
    pivot = "en"
    done = [(each, open_run(each.recipe, place)) for each, place in zip(planned, places, strict=True)]
    for each, opened in done:
        history = read_json(opened.path / ADAPTER / "history.json", ModelError)
        seen |= dict.fromkeys(history["seen"])
        pivot = history["pivot"]
        run = runs.setdefault(each.name, {"control": history["control"], "seeds": [], "seconds": [], "tokens": []})
        run["seeds"].append(each.seed)
        run["seconds"].append(opened.folder.manifest()["stages"][TRAIN.name].get("seconds"))
        run["tokens"].append(history.get("tokens"))
    tasks = {}
    for key, test_set in done[0][1].test_sets.items():
        codes = list(test_set.items)
        groups = language_groups(codes, list(seen), pivot) | ({"pivot": [pivot]} if pivot in codes else {})
        by_run: dict[str, list[Predictions]] = {name: [] for name in runs}
        for each, opened in done:
            by_run[each.name].append(read_predictions(opened.path, key, ("base", "tuned"), codes))
        tasks[key] = {"groups": groups, "gains": _gains(by_run, groups)}
    return {"sweep": name, "seen": list(seen), "pivot": pivot, "runs": runs, "tasks": tasks}


def _gains(by_run: Mapping[str, Sequence[Predictions]], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    gains: dict[str, dict[str, dict[str, Any]]] = {name: {group: {} for group in groups} for name in by_run}
    for (group, codes), measure in product(groups.items(), MEASURES):
        found = {name: seeds_gain(measure, by_seed, codes) for name, by_seed in by_run.items()}
        defined = {name: gain for name, gain in found.items() if gain is not None}
        corrected = holm([gain.p for gain in defined.values()])
        for (name, gain), p in zip(defined.items(), corrected, strict=True):
            gains[name][group][measure] = asdict(gain) | {"p_holm": p}
    return gains
