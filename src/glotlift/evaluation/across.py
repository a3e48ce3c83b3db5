"""What several test sets say together.

Enters: predictions of several test sets, and the scores of each. Leaves: what `glotlift` of scores.json holds of them:

    parts                  of a gain, from a test set and its sibling with arbitrary answer words
    answer_language_grid   accuracy by prompt language and answer language
    demonstration_spread   over drawn demonstrations
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from glotlift.evaluation.gain import gain_parts, parts_sentence
from glotlift.evaluation.predictions import Predictions
from glotlift.tasks.task import ANSWERS_IN


def parts_by_test_set(test_sets: Sequence[Predictions], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return `parts` and `parts_sentence` of every test set of base and tuned that has a sibling, empty of others.

    A sibling has the same task, demonstrations and items, and `arbitrary` answers.

    Args:
        test_sets: predictions of every test set.
        seed: of the bootstrap.
    """
    controls = [each for each in test_sets if each.metadata["answers"] == "arbitrary"]
    found: dict[str, dict[str, Any]] = {}
    for control in controls:
        for own in test_sets:
            if own.metadata["answers"] != "arbitrary" and own.key not in found and _is_control(control, own):
                found[own.key] = _parts(own, control, seed)
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


def _parts(own: Predictions, control: Predictions, seed: int) -> dict[str, Any]:
    if set(own.frames) != {"base", "tuned"}:
        return {}
    common = _common(own, control)
    raw, fair, arbitrary = own.paired("none"), own.paired("batch"), control.paired("batch")
    parts = gain_parts(*({code: each[code] for code in common} for each in (raw, fair, arbitrary)), seed=seed)
    sentence = parts_sentence(own.key, parts)
    return {"parts": {name: asdict(part) for name, part in parts.items()}, "parts_sentence": sentence}


def over_test_sets(test_sets: Sequence[Predictions], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the language grid and the spread over demonstrations, each where there is one.

    Args:
        test_sets: predictions of every test set.
        tasks: name of a test set -> its scores, see `glotlift.evaluation.scores`.
    """
    grids: dict[str, dict[str, list[Predictions]]] = {}
    draws: dict[tuple[Any, ...], list[str]] = {}
    for each in test_sets:
        name, answers = each.metadata.get("task_name", each.key), each.metadata["answers"]
        if answers.startswith(ANSWERS_IN):
            grids.setdefault(name, {}).setdefault(answers.removeprefix(ANSWERS_IN), []).append(each)
        if each.metadata.get("demo_seed") is not None:  # draws are of the same languages and number of demonstrations
            shots = [(code, each.num_fewshot.get(code)) for code in each.languages]
            draws.setdefault((f"{name}.{answers}", *shots), []).append(each.key)
    out: dict[str, Any] = {}
    if grids:
        out["answer_language_grid"] = {name: _grid(by_answers, tasks) for name, by_answers in grids.items()}
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
