"""scores.json: what the prediction files of a run say, in lm-evaluation-harness' result schema.

Enters: a run folder with predictions. Leaves: a dict. `results` and its neighbours hold what lm-eval's readers expect,
for the tuned model where there is one, else for the base; all else stands under the one key `glotlift`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glotlift.evaluation.compare import Change, compare_group, compare_languages, correctness
from glotlift.evaluation.metrics import LanguageScore, batch_calibrated, label_log_probabilities, score_language
from glotlift.runs import read_parquet, versions


@dataclass(frozen=True)
class Predictions:
    """The prediction files of one test set.

    Attributes:
        key: what the test set is called.
        frames: variant -> language -> frame.
        metadata: of any one of the files: `labels`, `answers`, `scoring` and more.
        num_fewshot: language -> demonstrations of a prompt, None where a file does not say.
    """

    key: str
    frames: Mapping[str, Mapping[str, pd.DataFrame]]
    metadata: Mapping[str, Any]
    num_fewshot: Mapping[str, int | None] = field(default_factory=dict)


def read_predictions(folder: Path, key: str, variants: Sequence[str], languages: Sequence[str]) -> Predictions:
    """Return the prediction files of a test set from `<folder>/predictions`."""
    frames: dict[str, dict[str, pd.DataFrame]] = {}
    metadata: dict[str, Any] = {}
    num_fewshot: dict[str, int | None] = {}
    for variant in variants:
        frames[variant] = {}
        for code in languages:
            path = folder / "predictions" / variant / key / f"{code}.parquet"
            frames[variant][code], metadata = read_parquet(path)
            num_fewshot[code] = metadata.get("num_fewshot")
    return Predictions(key, frames, metadata, num_fewshot)


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
    variants = list(test_sets[0].frames)
    tasks = {each.key: _task_scores(each, seen, pivot, seed) for each in test_sets}
    flat = {
        f"{key}_{code}": (code, entry[variants[-1]])
        for key, task in tasks.items()
        for code, entry in task["languages"].items()
    }
    shots = {f"{each.key}_{code}": count for each in test_sets for code, count in each.num_fewshot.items()}
    return {
        "results": {name: _lm_eval_row(name, score) for name, (_, score) in flat.items()},
        "group_subtasks": {key: [f"{key}_{code}" for code in task["languages"]] for key, task in tasks.items()},
        "configs": {name: {"task": name, "num_fewshot": shots.get(name)} for name in flat},
        "versions": {name: 1 for name in flat},
        "n-shot": shots,
        "higher_is_better": {name: {"acc": True} for name in flat},
        "n-samples": {name: {"original": score["n"], "effective": score["n"]} for name, (_, score) in flat.items()},
        "config": {"model": "hf", "model_args": f"pretrained={model}", **config},
        "glotlift": {
            "model": model,
            "variants": variants,
            "seen": list(seen),
            "pivot": pivot,
            "versions": versions(),
            "tasks": tasks,
        },
    }


def _lm_eval_row(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, n = score["accuracy"], score["n"]
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / (n - 1))) if n > 1 else "N/A"
    return {"alias": name, "acc,none": accuracy, "acc_stderr,none": stderr}


def _task_scores(test_set: Predictions, seen: Sequence[str], pivot: str, seed: int) -> dict[str, Any]:
    labels, scoring = test_set.metadata["labels"], test_set.metadata["scoring"]
    by_variant = {
        variant: {code: score_language(frame, labels, code, scoring) for code, frame in frames.items()}
        for variant, frames in test_set.frames.items()
    }
    languages: dict[str, dict[str, Any]] = {code: {} for code in next(iter(test_set.frames.values()))}
    for variant, scores in by_variant.items():
        for code, score in scores.items():
            languages[code][variant] = asdict(score)
    out: dict[str, Any] = {
        "task": test_set.metadata["task"],
        "answers": test_set.metadata["answers"],
        "scoring": scoring,
        "labels": labels,
        "label_words": test_set.metadata["label_words"],
        "chance": 1 / len(labels),
        "languages": languages,
        "means": {variant: _means(list(scores.values())) for variant, scores in by_variant.items()},
    }
    if set(test_set.frames) != {"base", "tuned"}:
        out["sentence"] = _base_sentence(test_set.key, out["means"]["base"], len(languages))
        return out
    raw = _paired(test_set, calibrated=False)
    calibrated = _paired(test_set, calibrated=True)
    for change in compare_languages(raw, seed=seed):
        languages[change.name]["change"] = asdict(change)
    members = _groups(list(languages), seen, pivot)
    groups = {name: compare_group(name, {c: raw[c] for c in codes}, seed=seed) for name, codes in members.items()}
    fair = {name: compare_group(name, {c: calibrated[c] for c in codes}, seed=seed) for name, codes in members.items()}
    out["groups"] = {name: asdict(change) for name, change in groups.items()}
    out["calibrated_groups"] = {name: asdict(change) for name, change in fair.items()}
    out["sentence"] = change_sentence(test_set.key, groups, fair, out["means"])
    return out


def _means(scores: Sequence[LanguageScore]) -> dict[str, float | int | None]:
    areas = [score.auroc for score in scores if score.auroc is not None]
    return {
        "accuracy": float(np.mean([score.accuracy for score in scores])),
        "accuracy_calibrated": float(np.mean([score.accuracy_calibrated for score in scores])),
        "auroc": float(np.mean(areas)) if areas else None,
        "collapsed_languages": sum(score.collapsed is not None for score in scores),
    }


def _groups(languages: Sequence[str], seen: Sequence[str], pivot: str) -> dict[str, list[str]]:
    groups = {"all": list(languages)}
    if seen:  # else nothing is known of what the adapter was tuned on
        groups["seen"] = [code for code in languages if code in seen]
        groups["unseen"] = [code for code in languages if code not in seen and code != pivot]
    return {name: codes for name, codes in groups.items() if codes}


def _paired(test_set: Predictions, *, calibrated: bool) -> dict[str, pd.DataFrame]:
    pairs = {}
    for code, base in test_set.frames["base"].items():
        both = [base, test_set.frames["tuned"][code]]
        if calibrated:
            both = [_calibrated(frame, test_set.metadata) for frame in both]
        pairs[code] = correctness(*both, where=f"{test_set.key}, {code}")
    return pairs


def _calibrated(frame: pd.DataFrame, metadata: Mapping[str, Any]) -> pd.DataFrame:
    labels = metadata["labels"]
    scores = batch_calibrated(label_log_probabilities(frame, labels, metadata["scoring"]))
    return frame.assign(predicted=np.array(labels)[scores.argmax(1)])


def _base_sentence(key: str, means: Mapping[str, Any], n_languages: int) -> str:
    return (
        f"On {key}, the model is right on {means['accuracy']:.1%} of the items, mean over {n_languages} languages; "
        f"after batch calibration on {means['accuracy_calibrated']:.1%} (AUROC {_auroc(means)})."
    )


def change_sentence(
    key: str, groups: Mapping[str, Change], calibrated: Mapping[str, Change], means: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return what tuning changed, in words; nothing is called a change whose interval crosses zero."""
    parts = [
        f"On {key}, {_change_words('raw accuracy', groups['all'])}, mean over {groups['all'].languages} languages."
    ]
    if "unseen" in groups:
        parts.append(
            f"On the {groups['unseen'].languages} languages never tuned on, {_change_words('it', groups['unseen'])}."
        )
    fair = calibrated["all"]
    parts.append(
        f"With the preference for a label taken out (batch calibration), {_change_words('accuracy', fair)}; "
        f"AUROC goes from {_auroc(means['base'])} to {_auroc(means['tuned'])}."
    )
    raw = groups["all"]
    if raw.is_clear and not fair.is_clear:
        parts.append(
            "So what changed is above all which label the model prefers, not how well it tells the items apart."
        )
    elif raw.is_clear and fair.is_clear and raw.change * fair.change > 0:
        direction = "better" if fair.change > 0 else "worse"
        parts.append(f"So the tuned model tells the items apart {direction}, beyond a shift of preference.")
    elif fair.is_clear:
        direction = "better" if fair.change > 0 else "worse"
        parts.append(f"So the tuned model tells the items apart {direction}, which raw accuracy alone does not show.")
    return " ".join(parts)


def _change_words(what: str, change: Change) -> str:
    interval = f"95 % interval {change.low * 100:+.1f} to {change.high * 100:+.1f}"
    if not change.is_clear:
        return f"{what} does not clearly change ({change.a:.1%} to {change.b:.1%}, {interval} points)"
    verb = "rises" if change.change > 0 else "falls"
    return f"{what} {verb} from {change.a:.1%} to {change.b:.1%} ({change.change * 100:+.1f} points, {interval})"


def _auroc(means: Mapping[str, Any]) -> str:
    return "undefined" if means["auroc"] is None else f"{means['auroc']:.3f}"
