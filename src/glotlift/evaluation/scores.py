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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glotlift.evaluation.compare import (
    Change,
    Paired,
    compare_auroc,
    compare_ece,
    compare_group,
    compare_languages,
    consistency,
    correctness,
    group_auroc,
    group_ece,
    group_mean,
)
from glotlift.evaluation.gain import change_sentence, gain_parts, n_languages, parts_sentence
from glotlift.evaluation.metrics import LanguageScore, decide, label_log_probabilities, score_language
from glotlift.languages import members
from glotlift.runs import read_parquet, versions
from glotlift.tasks.task import ANSWERS_IN

MEASURES = ("raw", "calibrated", "contextual", "auroc", "ece")
"""What is compared between base and tuned: three accuracies, AUROC, expected calibration error."""

_CALIBRATION = {"raw": "none", "calibrated": "batch", "contextual": "contextual"}
_DECIDED = {calibration: measure for measure, calibration in _CALIBRATION.items()}


@dataclass(frozen=True)
class Predictions:
    """The prediction files of one test set.

    Attributes:
        key: what the test set is called.
        frames: variant -> language -> frame.
        metadata: of any one of the files: `labels`, `answers`, `scoring` and more.
        num_fewshot: language -> demonstrations of a prompt, None where a file does not say.
        content_free: variant -> language -> scores of content-free inputs, see `metrics.decide`.
        label_words: language -> label id -> the answer word that was scored.
    """

    key: str
    frames: Mapping[str, Mapping[str, pd.DataFrame]]
    metadata: Mapping[str, Any]
    num_fewshot: Mapping[str, int | None] = field(default_factory=dict)
    content_free: Mapping[str, Mapping[str, Sequence[Mapping[str, Sequence[float]]]]] = field(default_factory=dict)
    label_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        """Codes."""
        return list(next(iter(self.frames.values())))

    def ids(self, code: str) -> set[str]:
        """Return the ids of a language's items."""
        return set(next(iter(self.frames.values()))[code]["id"])

    def free(self, variant: str, code: str) -> Sequence[Mapping[str, Sequence[float]]]:
        """Return the scores of the content-free inputs of a file, empty where none were run."""
        return self.content_free.get(variant, {}).get(code) or ()

    def decided(self, variant: str, code: str, calibration: str) -> pd.DataFrame:
        """Return a frame with `predicted` as a calibration decides."""
        frame, about = self.frames[variant][code], self.metadata
        chosen, _ = decide(frame, about["labels"], about["scoring"], calibration, self.free(variant, code))
        return frame.assign(predicted=chosen)

    def paired(self, calibration: str) -> dict[str, pd.DataFrame]:
        """Return language -> which items base (`a`) and tuned (`b`) have right under a calibration."""
        return {
            code: correctness(*(self.decided(variant, code, calibration) for variant in ("base", "tuned")),
                              where=f"{self.key}, {code}, A base and B tuned")
            for code in self.languages
        }  # fmt: skip

    def paired_scores(self) -> dict[str, Paired]:
        """Return language -> log-probabilities of base and tuned, item by item."""
        labels, scoring = self.metadata["labels"], self.metadata["scoring"]
        found = {}
        for code in self.languages:
            base, tuned = (self.frames[variant][code].set_index("id") for variant in ("base", "tuned"))
            both = [label_log_probabilities(each, labels, scoring) for each in (base, tuned.loc[base.index])]
            found[code] = Paired(list(base.index), base["gold"].to_numpy(), labels, *both)
        return found

    def right(self, variant: str) -> dict[str, pd.Series]:
        """Return language -> whether each item is right, indexed by id."""
        return {
            code: pd.Series((frame["predicted"] == frame["gold"]).to_numpy(), index=frame["id"])
            for code, frame in self.frames[variant].items()
        }


def read_predictions(folder: Path, key: str, variants: Sequence[str], languages: Sequence[str]) -> Predictions:
    """Return the prediction files of a test set from `<folder>/predictions`."""
    frames: dict[str, dict[str, pd.DataFrame]] = {}
    metadata: dict[str, Any] = {}
    num_fewshot: dict[str, int | None] = {}
    content_free: dict[str, dict[str, Any]] = {}
    label_words: dict[str, dict[str, str]] = {}
    for variant in variants:
        frames[variant], content_free[variant] = {}, {}
        for code in languages:
            path = folder / "predictions" / variant / key / f"{code}.parquet"
            frames[variant][code], metadata = read_parquet(path)
            num_fewshot[code] = metadata.get("num_fewshot")
            content_free[variant][code] = metadata.get("content_free")
            label_words[code] = metadata["label_words"]
    return Predictions(key, frames, metadata, num_fewshot, content_free, label_words)


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
    for key, sibling in _arbitrary_siblings(test_sets).items():
        tasks[key] |= _parts(key, test_sets, sibling, seed)
    flat = {
        f"{key}_{code}": (each, code, tasks[key]["languages"][code][variants[-1]])
        for key, each in {each.key: each for each in test_sets}.items()
        for code in each.languages
    }
    shots = {name: each.num_fewshot.get(code) for name, (each, code, _) in flat.items()}
    scored = {name: score for name, (_, _, score) in flat.items()}
    return {
        "results": {name: _lm_eval_row(name, score) for name, score in scored.items()},
        "group_subtasks": {key: [f"{key}_{code}" for code in task["languages"]] for key, task in tasks.items()},
        "configs": {name: {"task": name, "num_fewshot": shots[name]} for name in flat},
        "versions": {name: each.metadata.get("version", 1) for name, (each, _, _) in flat.items()},
        "n-shot": shots,
        "higher_is_better": {name: {"acc": True} for name in flat},
        "n-samples": {name: {"original": score["n"], "effective": score["n"]} for name, score in scored.items()},
        "config": {"model": "hf", "model_args": f"pretrained={model}", **config},
        "glotlift": {
            "model": model,
            "variants": variants,
            "seen": list(seen),
            "pivot": pivot,
            "versions": versions(),
            "tasks": tasks,
            **_over_test_sets(test_sets, tasks),
        },
    }


def _lm_eval_row(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, n = score["accuracy"], score["n"]
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / (n - 1))) if n > 1 else "N/A"
    return {"alias": name, "acc,none": accuracy, "acc_stderr,none": stderr}


def _task_scores(test_set: Predictions, seen: Sequence[str], pivot: str, seed: int) -> dict[str, Any]:
    labels, scoring = test_set.metadata["labels"], test_set.metadata["scoring"]
    by_variant = {
        variant: {
            code: score_language(frame, labels, code, scoring, test_set.free(variant, code))
            for code, frame in frames.items()
        }
        for variant, frames in test_set.frames.items()
    }
    languages: dict[str, dict[str, Any]] = {code: {} for code in test_set.languages}
    for variant, scores in by_variant.items():
        for code, score in scores.items():
            languages[code][variant] = asdict(score)
    right = {variant: test_set.right(variant) for variant in test_set.frames}
    out: dict[str, Any] = {
        "task": test_set.metadata["task"],
        "answers": test_set.metadata["answers"],
        "scoring": scoring,
        "calibration": test_set.metadata.get("calibration", "none"),
        "labels": labels,
        "label_words": {code: dict(words) for code, words in test_set.label_words.items()},
        "chance": 1 / len(labels),
        "languages": languages,
        "means": {variant: _means(list(scores.values()), right[variant]) for variant, scores in by_variant.items()},
        "collapsed": {
            variant: {code: score.collapsed for code, score in scores.items() if score.collapsed is not None}
            for variant, scores in by_variant.items()
        },
        "consistency": {variant: _as_dict(consistency(each, seed=seed)) for variant, each in right.items()},
    }
    out["rollups"] = _rollups(test_set.languages, right, seed)
    if set(test_set.frames) != {"base", "tuned"}:
        out["sentence"] = _base_sentence(test_set.key, out["means"]["base"], len(languages))
        return out
    groups = _groups(list(languages), seen, pivot)
    for measure in MEASURES:
        by_language, grouped = _compared(test_set, measure, seed)
        for change in by_language:
            languages[change.name].setdefault("changes", {})[measure] = asdict(change)
        out[f"{measure}_groups"] = {
            name: asdict(change) for name, codes in groups.items() if (change := grouped(name, codes)) is not None
        }
    decided = _DECIDED[out["calibration"]]
    out["groups"] = out[f"{decided}_groups"]
    for entry in languages.values():
        entry["change"] = entry["changes"][decided]
    raw, fair = ({name: Change(**change) for name, change in out[f"{each}_groups"].items()}
                    for each in ("raw", "calibrated"))  # fmt: skip
    out["sentence"] = change_sentence(test_set.key, raw, fair, out["means"])
    return out


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


def _groups(languages: Sequence[str], seen: Sequence[str], pivot: str) -> dict[str, list[str]]:
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


def _arbitrary_siblings(test_sets: Sequence[Predictions]) -> dict[str, str]:
    """Return test set -> the test set of the same task, demonstrations and items with `arbitrary` answers."""
    controls = [each for each in test_sets if each.metadata["answers"] == "arbitrary"]
    others = [each for each in test_sets if each.metadata["answers"] != "arbitrary"]
    found: dict[str, str] = {}
    for control in controls:
        for own in others:
            if _is_control(control, own):
                found.setdefault(own.key, control.key)
    return found


def _is_control(control: Predictions, own: Predictions) -> bool:
    about = [(each.metadata.get("task_name"), each.metadata.get("demo_seed")) for each in (control, own)]
    if about[0] != about[1] or about[0][0] is None:
        return False
    common = _common(own, control)
    return bool(common) and all(
        control.num_fewshot.get(code) == own.num_fewshot.get(code) and control.ids(code) == own.ids(code)
        for code in common
    )


def _common(one: Predictions, other: Predictions) -> list[str]:
    return [code for code in one.languages if code in other.languages]


def _parts(key: str, test_sets: Sequence[Predictions], control: str, seed: int) -> dict[str, Any]:
    by_key = {each.key: each for each in test_sets}
    if set(by_key[key].frames) != {"base", "tuned"}:
        return {}
    own, other = by_key[key], by_key[control]
    common = _common(own, other)
    raw, fair, arbitrary = own.paired("none"), own.paired("batch"), other.paired("batch")
    parts = gain_parts(*({code: each[code] for code in common} for each in (raw, fair, arbitrary)), seed=seed)
    return {"parts": {name: asdict(part) for name, part in parts.items()}, "parts_sentence": parts_sentence(key, parts)}


def _over_test_sets(test_sets: Sequence[Predictions], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several test sets of one task say together: the language grid, the spread over demonstrations."""
    in_language: dict[str, dict[str, list[Predictions]]] = {}
    draws: dict[tuple[Any, ...], list[str]] = {}
    for each in test_sets:
        name, answers = each.metadata.get("task_name", each.key), each.metadata["answers"]
        if answers.startswith(ANSWERS_IN):
            in_language.setdefault(name, {}).setdefault(answers.removeprefix(ANSWERS_IN), []).append(each)
        if each.metadata.get("demo_seed") is not None:  # draws are of the same languages and number of demonstrations
            shots = [(code, each.num_fewshot.get(code)) for code in each.languages]
            draws.setdefault((f"{name}.{answers}", *shots), []).append(each.key)
    grid = {name: _grid(by_answers, tasks) for name, by_answers in in_language.items()}
    out: dict[str, Any] = {"answer_language_grid": grid} if grid else {}
    spread: dict[str, dict[str, Any]] = {}
    for (name, *_), keys in draws.items():
        if len(keys) > 1:
            spread[f"{name}.{keys[0]}" if name in spread else name] = _spread(keys, tasks)
    return out | ({"demonstration_spread": spread} if spread else {})


def _grid(
    by_answers: Mapping[str, Sequence[Predictions]], tasks: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the grid of a task: `test_sets` (answer language -> keys), and variant -> prompt language -> accuracies.

    The accuracies are by answer language; where it has several test sets, as with drawn demonstrations, of their mean.
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for answers, test_sets in by_answers.items():
        for variant in test_sets[0].frames:
            for code in dict.fromkeys(code for each in test_sets for code in each.languages):
                having = [tasks[each.key]["languages"][code] for each in test_sets if code in each.languages]
                accuracy = float(np.mean([entry[variant]["accuracy"] for entry in having]))
                cells.setdefault(variant, {}).setdefault(code, {})[answers] = accuracy
    return {"test_sets": {answers: [each.key for each in found] for answers, found in by_answers.items()}, **cells}


def _spread(keys: Sequence[str], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first = tasks[keys[0]]
    out: dict[str, Any] = {"test_sets": list(keys)}
    for variant in first["means"]:
        overall = [tasks[key]["means"][variant]["accuracy"] for key in keys]
        by_language = {
            code: [tasks[key]["languages"][code][variant]["accuracy"] for key in keys] for code in first["languages"]
        }
        languages = {code: _summary(row) for code, row in by_language.items()}
        out[variant] = {"mean": _summary(overall), "languages": languages}
    return out


def _summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation (n - 1), minimum and maximum of accuracies over draws of demonstrations."""
    array = np.array(values)
    return {"mean": float(array.mean()), "sd": float(array.std(ddof=1)), "min": float(array.min()),
            "max": float(array.max())}  # fmt: skip


def _base_sentence(key: str, means: Mapping[str, Any], number: int) -> str:
    area = "undefined" if means["auroc"] is None else f"{means['auroc']:.3f}"
    return (
        f"On {key}, the model is right on {means['accuracy_raw']:.1%} of the items, mean over {n_languages(number)}; "
        f"after batch calibration on {means['accuracy_calibrated']:.1%} (AUROC {area})."
    )
