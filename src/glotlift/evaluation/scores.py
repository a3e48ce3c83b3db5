"""scores.json: what the prediction files of a run say, in lm-evaluation-harness' result schema.

Enters: a run folder with predictions. Leaves: a dict. `results` and its neighbours hold what lm-eval's readers expect,
for the tuned model where there is one, else for the base; all else stands under the one key `glotlift`.

What has no measure in its name follows the calibration that decides, as `acc,none` does: `accuracy`, `change`,
`groups`, `means`, `rollups`, `consistency`, the grid and the spread. Under `changes` and in `raw_groups`,
`calibrated_groups`, `contextual_groups`, `auroc_groups` and `ece_groups` stands the measure of the name, whatever
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from glotlift.evaluation.across import over_test_sets, parts_by_test_set
from glotlift.evaluation.baselines import beside_base, ensemble
from glotlift.evaluation.compare import (
    Change,
    compare_auroc,
    compare_ece,
    compare_group,
    compare_languages,
    group_auroc,
    group_ece,
    group_mean,
)
from glotlift.evaluation.consistency import consistency
from glotlift.evaluation.gain import change_sentence, n_languages
from glotlift.evaluation.metrics import LanguageScore, score_language
from glotlift.evaluation.predictions import Predictions, read_predictions
from glotlift.languages import members
from glotlift.runs import versions

MEASURES = ("raw", "calibrated", "contextual", "auroc", "ece")
"""What is compared between base and tuned: three accuracies, AUROC, expected calibration error."""

_CALIBRATION = {"raw": "none", "calibrated": "batch", "contextual": "contextual"}
_DECIDED = {calibration: measure for measure, calibration in _CALIBRATION.items()}


def build_scores(
    test_sets: Sequence[Predictions],
    *,
    model: str,
    config: Mapping[str, Any],
    seen: Sequence[str] = (),
    pivot: str = "en",
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of scores.json.

    Args:
        test_sets: predictions of every test set.
        model: name of the model.
        config: settings to keep under `config`.
        seen: languages the adapter was tuned on; empty where they are not known.
        pivot: language it translates into; neither seen nor unseen.
        seed: of the bootstraps.
    """
    tasks = {each.key: _task_scores(each, seen, pivot, seed) for each in test_sets}
    for key, parts in parts_by_test_set(test_sets, seed=seed).items():
        tasks[key] |= parts
    return {
        **_lm_eval(test_sets, tasks),
        "config": {"model": "hf", "model_args": f"pretrained={model}", **config},
        "glotlift": {
            "model": model,
            "variants": list(test_sets[0].frames),
            "seen": list(seen),
            "pivot": pivot,
            "versions": versions(),
            "tasks": tasks,
            **over_test_sets(test_sets, tasks),
        },
    }


def _lm_eval(test_sets: Sequence[Predictions], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what lm-eval's readers look for, of the last variant; its tasks are called `<test set>_<language>`."""
    flat = {f"{each.key}_{code}": (each, code) for each in test_sets for code in each.languages}
    shots = {name: each.num_fewshot.get(code) for name, (each, code) in flat.items()}
    scored = {name: tasks[each.key]["languages"][code][list(each.frames)[-1]] for name, (each, code) in flat.items()}
    return {
        "results": {name: _lm_eval_row(name, score) for name, score in scored.items()},
        "group_subtasks": {key: [f"{key}_{code}" for code in task["languages"]] for key, task in tasks.items()},
        "configs": {name: {"task": name, "num_fewshot": shots[name]} for name in flat},
        "versions": {name: each.metadata.get("version", 1) for name, (each, _) in flat.items()},
        "n-shot": shots,
        "higher_is_better": {name: {"acc": True} for name in flat},
        "n-samples": {name: {"original": score["n"], "effective": score["n"]} for name, score in scored.items()},
    }


def _lm_eval_row(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, n = score["accuracy"], score["n"]
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / (n - 1))) if n > 1 else "N/A"
    return {"alias": name, "acc,none": accuracy, "acc_stderr,none": stderr}


def _task_scores(test_set: Predictions, seen: Sequence[str], pivot: str, seed: int) -> dict[str, Any]:
    about, labels = test_set.metadata, test_set.metadata["labels"]
    by_variant = {
        variant: {
            code: score_language(frame, labels, code, about["scoring"], test_set.free(variant, code))
            for code, frame in frames.items()
        }
        for variant, frames in test_set.frames.items()
    }
    right = {variant: test_set.right(variant) for variant in test_set.frames}
    out: dict[str, Any] = {
        "task": about["task"],
        "answers": about["answers"],
        "scoring": about["scoring"],
        "calibration": about.get("calibration", "none"),
        "labels": labels,
        "label_words": {code: dict(words) for code, words in test_set.label_words.items()},
        "chance": 1 / len(labels),
        "languages": {
            code: {variant: asdict(scores[code]) for variant, scores in by_variant.items()}
            for code in test_set.languages
        },
        "means": {variant: _means(list(scores.values()), right[variant]) for variant, scores in by_variant.items()},
        "collapsed": {
            variant: {code: score.collapsed for code, score in scores.items() if score.collapsed is not None}
            for variant, scores in by_variant.items()
        },
        "consistency": {variant: _as_dict(consistency(each, seed=seed)) for variant, each in right.items()},
        "rollups": _rollups(test_set.languages, right, seed),
    }
    if set(test_set.frames) == {"base", "tuned"}:
        _add_changes(out, test_set, language_groups(test_set.languages, seen, pivot), seed)
    else:
        out["sentence"] = _base_sentence(test_set.key, out["means"]["base"], len(out["languages"]))
    return out


def _add_changes(scores: dict[str, Any], test_set: Predictions, groups: Mapping[str, Sequence[str]], seed: int) -> None:
    """Add what tuning changed to the scores of a test set: by language, by group, and in words."""
    languages = scores["languages"]
    for measure in MEASURES:
        by_language, grouped = _compared(test_set, measure, seed)
        for change in by_language:
            languages[change.name].setdefault("changes", {})[measure] = asdict(change)
        scores[f"{measure}_groups"] = {
            name: asdict(change) for name, codes in groups.items() if (change := grouped(name, codes)) is not None
        }
    decided = _DECIDED[scores["calibration"]]
    scores["groups"] = scores[f"{decided}_groups"]
    for entry in languages.values():
        entry["change"] = entry["changes"][decided]
    raw, fair = ({name: Change(**change) for name, change in scores[f"{each}_groups"].items()}
                 for each in ("raw", "calibrated"))  # fmt: skip
    scores["sentence"] = change_sentence(test_set.key, raw, fair, scores["means"])


BASELINE_MEASURES = ("raw", "calibrated", "auroc")
"""What baselines are told in."""


def baseline_scores(
    direct: Predictions, baselines: Mapping[str, Predictions], seen: Sequence[str], pivot: str, *, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what every baseline changes against direct answers: baseline -> measure -> group -> a `Change`.

    Args:
        direct: predictions of the base model, asked in the languages' own prompts.
        baselines: name -> predictions; an `ensemble` of the direct answers and `translated`, else `oracle`, is added.
        seen: see `build_scores`.
        pivot: likewise.
        seed: of the bootstrap.
    """
    other = next((name for name in ("translated", "oracle") if name in baselines), None)
    together = {"ensemble": ensemble(direct, baselines[other])} if other else {}
    return beside_scores(direct, {**baselines, **together}, seen, pivot, seed=seed)


def beside_scores(
    direct: Predictions, others: Mapping[str, Predictions], seen: Sequence[str], pivot: str, *, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what other ways to ask, or other models, change: name -> measure -> group -> a `Change`.

    Args:
        direct: predictions of the base model.
        others: name -> predictions on the same items, of one variant each.
        seen: see `build_scores`.
        pivot: likewise.
        seed: of the bootstrap.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, each in others.items():
        paired = beside_base(direct, each)
        groups = language_groups(paired.languages, seen, pivot)
        for measure in BASELINE_MEASURES:
            _, grouped = _compared(paired, measure, seed)
            changes = {group: grouped(group, codes) for group, codes in groups.items()}
            found.setdefault(name, {})[measure] = {
                group: asdict(change) for group, change in changes.items() if change is not None
            }
    return found


GroupChange = Callable[[str, Sequence[str]], Change | None]


def _compared(test_set: Predictions, measure: str, seed: int) -> tuple[list[Change], GroupChange]:
    """Return the change of a measure in every language, and how to get it over a group of them."""
    if measure == "contextual" and not all(test_set.free(v, c) for v in test_set.frames for c in test_set.languages):
        return [], lambda _name, _codes: None
    if measure in _CALIBRATION:
        right = test_set.paired(_CALIBRATION[measure])
        return compare_languages(right, seed=seed), lambda name, codes: compare_group(
            name, {code: right[code] for code in codes}, seed=seed
        )
    scores = test_set.paired_scores()
    if measure == "auroc":
        return compare_auroc(scores), lambda name, codes: group_auroc(name, {code: scores[code] for code in codes})
    return compare_ece(scores, seed=seed), lambda name, codes: group_ece(
        name, {code: scores[code] for code in codes}, seed=seed
    )


def _as_dict(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _means(scores: Sequence[LanguageScore], right: Mapping[str, pd.Series]) -> dict[str, float | int | None]:
    areas = [score.auroc for score in scores if score.auroc is not None]
    contextual = [score.accuracy_contextual for score in scores if score.accuracy_contextual is not None]
    mean, low, high = group_mean(right)
    return {
        "accuracy": mean,
        "low": low,
        "high": high,
        "accuracy_raw": float(np.mean([score.accuracy_raw for score in scores])),
        "accuracy_calibrated": float(np.mean([score.accuracy_calibrated for score in scores])),
        "accuracy_contextual": float(np.mean(contextual)) if len(contextual) == len(scores) else None,
        "auroc": float(np.mean(areas)) if areas else None,
        "ece": float(np.mean([score.ece for score in scores])),
        "collapsed_languages": sum(score.collapsed is not None for score in scores),
    }


def language_groups(languages: Sequence[str], seen: Sequence[str], pivot: str) -> dict[str, list[str]]:
    """Return `all`, `seen` (tuned on) and `unseen` languages, those that are not empty; the pivot is neither."""
    groups = {"all": list(languages)}
    if seen:  # else nothing is known of what the adapter was tuned on
        groups["seen"] = [code for code in languages if code in seen]
        groups["unseen"] = [code for code in languages if code not in seen and code != pivot]
    return {name: codes for name, codes in groups.items() if codes}


def _rollups(
    codes: Sequence[str], right: Mapping[str, Mapping[str, pd.Series]], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return accuracy by family, script and resource class: kind -> name -> languages, variants and change."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in ("family", "script", "resource"):
        out[kind] = {}
        for name, inside in sorted(members(codes, kind).items()):
            entry: dict[str, Any] = {"languages": inside}
            for variant, series in right.items():
                mean, low, high = group_mean({code: series[code] for code in inside})
                entry[variant] = {"accuracy": mean, "low": low, "high": high}
            if set(right) == {"base", "tuned"}:
                pairs = {code: pd.DataFrame({"a": right["base"][code], "b": right["tuned"][code]}) for code in inside}
                entry["change"] = asdict(compare_group(name, pairs, seed=seed))
            out[kind][name] = entry
    return out


def _base_sentence(key: str, means: Mapping[str, Any], number: int) -> str:
    area = "undefined" if means["auroc"] is None else f"{means['auroc']:.3f}"
    return (
        f"On {key}, the model is right on {means['accuracy_raw']:.1%} of the items, mean over {n_languages(number)}; "
        f"after batch calibration on {means['accuracy_calibrated']:.1%} (AUROC {area})."
    )


__all__ = ["MEASURES", "Predictions", "build_scores", "read_predictions"]
