"""`sweep`: several runs of one recipe, trained and evaluated, in one table. No stage of a run: it walks many.

Reads: a sweep (`glotlift.sweeps`) and its recipe. Writes: a run folder a run and seed, `<sweep>/<run>/seed<n>/`, and
beside them `sweep.json`, `sweep.csv`, `sweep.md` and `sweep.tex`. What a run has computed of the base model, its
predictions, those of baselines and what it teaches, is handed on to the next, where fingerprints say whether it can be
used; so the base is evaluated once. What a run cost is told as if it had run alone. Started again, a sweep goes on
where it stopped.
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

from glotlift.errors import UserError
from glotlift.evaluation.baselines import baselines_of, beside_base, ensemble
from glotlift.evaluation.compare import holm
from glotlift.evaluation.predictions import Predictions, read_predictions
from glotlift.evaluation.scores import language_groups
from glotlift.evaluation.seeds import MEASURES, seeds_gain
from glotlift.reporting.sweep import write_sweep
from glotlift.runs import RunFolder, write_atomic
from glotlift.stages.data import DATA, check_questions
from glotlift.stages.evaluate import EVALUATE
from glotlift.stages.objectives import TEACHER
from glotlift.stages.passes import add_passes, cost_of, known_passes
from glotlift.stages.stage import OpenRun, open_run, walk
from glotlift.stages.train import ADAPTER, TRAIN
from glotlift.strict_json import read_json
from glotlift.sweeps import PlannedRun, Sweep, load_sweep

log = logging.getLogger("glotlift")


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
    _ = open_run(planned[0].recipe, places[0]).test_sets  # faults of data show before hours of training
    for each in planned:
        try:
            check_questions(each.recipe)
        except UserError as fault:
            raise type(fault)(f"run {each.name!r}: {fault}") from None
    states: dict[str, Any] = {}
    with folder.lock():
        for number, (each, place) in enumerate(zip(planned, places, strict=True)):
            log.info("sweep: run %d of %d, %s", number + 1, len(planned), each.place)
            _hand_on(places[:number], place)
            run = replace(open_run(each.recipe, place), states=states)  # opened here, so that one model is held at once
            walk(run, DATA, TRAIN, EVALUATE)
            del run
        write_sweep(folder.path, sweep_scores(asked, planned, places))
    return folder.path


def _hand_on(sources: Sequence[Path], target: Path) -> None:
    """Copy what other runs hold of the base model and is not there yet; fingerprints say whether it can be used."""
    for source in sources:
        for file in _of_base(source):
            place = target / file.relative_to(source)
            if not place.exists():
                write_atomic(place, partial(copyfile, file))
        if passes := known_passes(source):
            add_passes(target, {**passes, **known_passes(target)})


def _of_base(folder: Path) -> list[Path]:
    """Return the files of a run that depend on the base model only: its predictions, those of baselines, the teacher's
    scores."""
    variants = sorted(part for part in (folder / "predictions").glob("*") if not part.name.startswith("tuned"))
    return [file for part in (*variants, folder / TEACHER) for file in sorted(part.rglob("[!.]*.parquet"))]


def sweep_scores(asked: Sweep, planned: Sequence[PlannedRun], places: Sequence[Path]) -> dict[str, Any]:
    """Return the content of sweep.json.

    Args:
        asked: the sweep.
        planned: its runs, evaluated.
        places: their folders.

    Returns:
        `sweep`; `against`; `seen`, languages that some run was tuned on; `pivot`; `runs`: name -> `control`, `seeds`,
        and for every seed `seconds` of training and `tokens` that went through the model, passes that another run made
        for it included (see `glotlift.stages.passes`), None where they are not counted; `tasks`: test set -> `groups`
        (name -> codes), `gains` (run -> group -> measure -> a `SeedsGain`, with `p_holm` over the runs),
        `gains_against` (the same of every other run over the tuned model of the run `against`; empty without one) and
        `baselines` (baseline -> group -> measure -> a `SeedsGain` over the group's languages but English, which has
        none).
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
        cost = cost_of(opened.path, opened.folder.manifest()["stages"][TRAIN.name], history)
        run["seconds"].append(cost.seconds)
        run["tokens"].append(cost.tokens)
    tasks = {}
    for key, test_set in done[0][1].test_sets.items():
        codes = list(test_set.items)
        groups = language_groups(codes, list(seen), pivot) | ({"pivot": [pivot]} if pivot in codes else {})
        by_run: dict[str, list[Predictions]] = {name: [] for name in runs}
        for each, opened in done:
            by_run[each.name].append(read_predictions(opened.path, key, ("base", "tuned"), codes))
        tasks[key] = {
            "groups": groups,
            "baselines": _baselines(done[0][1], key, groups),
            "gains": _gains(by_run, groups),
            "gains_against": _gains(_against(by_run, asked.against), groups),
        }
    return {
        "sweep": asked.name,
        "against": asked.against,
        "seen": list(seen),
        "pivot": pivot,
        "runs": runs,
        "tasks": tasks,
    }


def _against(by_run: Mapping[str, Sequence[Predictions]], name: str | None) -> dict[str, list[Predictions]]:
    """Return of every other run, a seed, the tuned model of the run that it is compared with as base, and its own."""
    if name is None:
        return {}
    return {
        other: [_beside(*pair, (name, other)) for pair in zip(by_run[name], each, strict=True)]
        for other, each in by_run.items()
        if other != name
    }


def _beside(reference: Predictions, other: Predictions, names: tuple[str, str]) -> Predictions:
    frames = {"base": reference.frames["tuned"], "tuned": other.frames["tuned"]}
    return replace(other, frames=frames, names=names)


def _gains(by_run: Mapping[str, Sequence[Predictions]], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    gains: dict[str, dict[str, dict[str, Any]]] = {name: {group: {} for group in groups} for name in by_run}
    for (group, codes), measure in product(groups.items(), MEASURES):
        found = {name: seeds_gain(measure, by_seed, codes) for name, by_seed in by_run.items()}
        defined = {name: gain for name, gain in found.items() if gain is not None}
        corrected = holm([gain.p for gain in defined.values()])
        for (name, gain), p in zip(defined.items(), corrected, strict=True):
            gains[name][group][measure] = asdict(gain) | {"p_holm": p}
    return gains


def _baselines(run: OpenRun, key: str, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return what every baseline of a test set gains over the base model; any run has their predictions."""
    direct = read_predictions(run.path, key, ("base",), list(run.test_sets[key].items))
    found = {
        each.name: read_predictions(run.path, key, (each.name,), list(each.items))
        for each in baselines_of(run.test_sets[key], run.evaluation.baselines)
    }
    if other := next((found[name] for name in ("translated", "oracle") if name in found), None):
        found["ensemble"] = ensemble(direct, other)
    gains: dict[str, Any] = {}
    for name, each in found.items():
        paired = beside_base(direct, each)
        having = {group: [code for code in codes if code in paired.languages] for group, codes in groups.items()}
        gains[name] = {
            group: {measure: asdict(gain) for measure in MEASURES if (gain := seeds_gain(measure, [paired], codes))}
            for group, codes in having.items()
            if codes
        }
    return gains
