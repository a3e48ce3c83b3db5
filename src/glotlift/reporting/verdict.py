"""Whether a tuned model may be shipped, as far as the scores say: one word, and the reason.

Enters: the files of a run. Leaves: a `Verdict`, by this rule.

    what counts     test sets whose answer words mean something; `arbitrary` ones are controls. The accuracy of a test
                    set is the one its calibration decides; beside it stand raw and batch-calibrated accuracy.
    do not ship     in a test set that counts, in its accuracy, raw or batch-calibrated: a language falls clearly (exact
                    McNemar test, Holm's p below 0.05), or a mean over languages does (all, tuned on, never tuned on;
                    95 % interval below zero); or the tuned model gives one label 95 % or more of the predictions in a
                    language in which the base does not give it that
    ship            none of this, nothing that puts the numbers in doubt, and in a test set that counts the mean over
                    the languages never tuned on (over all, where it is not known which these are) rises clearly both in
                    its accuracy and after batch calibration
    no evidence     all else

An alarm is raised as soon as one table raises it. The claim of a rise must hold for all that was looked at: its
interval is widened to one of 1 - 0.05 / (test sets that count), columns of a grid and draws of demonstrations each.
Those of one grid or spread are many tables of one thing, so a fall there needs a p below 0.05 / (columns or draws).
Nothing is called clear on fewer than six items. In doubt are numbers of a foreign adapter, with demonstrations that
show test items, with answers among the training pairs, or with more than a tenth of the test texts in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scipy.stats import norm

from glotlift.reporting.across import grids, spreads
from glotlift.reporting.names import counted, language, ordered, series
from glotlift.reporting.read import RunFiles
from glotlift.reporting.table import (
    FEWEST_ITEMS,
    SIGNIFICANT,
    collapse,
    decided,
    group_changes,
    is_clear,
    language_change,
    points,
)

SHIP, DO_NOT_SHIP, NO_EVIDENCE = "ship", "do not ship", "no evidence"

MUCH_OVERLAP = 0.1
"""More than this share of the test texts among the training questions puts a gain in doubt."""

MEASURE_NAMES = {
    "raw": "accuracy",
    "calibrated": "accuracy after batch calibration",
    "contextual": "accuracy after contextual calibration",
}

_DOUBTS = {
    "foreign-adapter": "the adapter was made for another base",
    "leakage": "demonstrations show the model test items",
}
"""Kinds of warnings in the scores that put its numbers in doubt -> how."""

_SHOWN = 3
"""So many languages are named in a reason."""


@dataclass(frozen=True)
class Verdict:
    """`ship`, `do not ship` or `no evidence`, with its reason."""

    word: str
    reason: str

    @property
    def line(self) -> str:
        """The verdict as a line: `Verdict: do not ship, because accuracy on nli falls clearly in German.`"""
        return f"Verdict: {self.word}, because {self.reason}."


def verdict(run: RunFiles) -> Verdict | None:
    """Return the verdict on a run's tuned model, None where nothing was tuned."""
    if not run.is_tuned:
        return None
    scores = run.scores
    if "tuned" not in scores.get("variants", ()) or not scores.get("tasks"):
        return Verdict(NO_EVIDENCE, "the tuned model was not evaluated")
    if against := list(_against(scores)):
        return Verdict(DO_NOT_SHIP, _joined(against))
    counting = counting_test_sets(scores)
    if not counting:
        return Verdict(NO_EVIDENCE, "every test set has arbitrary answer words, which say nothing of the task")
    if doubts := list(_doubts(run)):
        return Verdict(NO_EVIDENCE, _joined(doubts))
    rises = [_rise(key, task, len(counting)) for key, task in counting.items()]
    for reason in filter(None, (rise.reason for rise in rises if rise.is_clear)):
        return Verdict(SHIP, f"{reason}, and no language clearly falls")
    return Verdict(NO_EVIDENCE, next((rise.reason for rise in rises if rise.reason), "no mean clearly rises"))


def _joined(reasons: list[str]) -> str:
    more = f"; and for {counted(len(reasons) - _SHOWN, 'more reason')}" if len(reasons) > _SHOWN else ""
    return "; ".join(reasons[:_SHOWN]) + more


def counting_test_sets(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test sets that are no controls, by key.

    Args:
        scores: what scores.json holds under `glotlift`.
    """
    return {key: task for key, task in scores.get("tasks", {}).items() if task["answers"] != "arbitrary"}


def families(scores: Mapping[str, Any]) -> list[list[str]]:
    """Return the keys of test sets that count: those of a grid or a spread together, each other one alone."""
    counting = counting_test_sets(scores)
    together = [[key for keys in grid.test_sets.values() for key in keys] for grid in grids(scores)]
    together += [list(spread.test_sets) for spread in spreads(scores)]
    found: list[list[str]] = []
    for keys in [*together, *([key] for key in counting)]:
        taken = {key for family in found for key in family}
        if new := [key for key in dict.fromkeys(keys) if key in counting and key not in taken]:
            found.append(new)
    return found


def fallen(scores: Mapping[str, Any], key: str, measure: str) -> list[str]:
    """Return the languages of a test set in which a measure falls clearly, in the order of the report.

    Args:
        scores: what scores.json holds under `glotlift`.
        key: of the test set.
        measure: `raw`, `calibrated` or `contextual`.
    """
    looks = next((len(family) for family in families(scores) if key in family), 1)
    found = []
    for code, entry in scores["tasks"][key]["languages"].items():
        change = language_change(entry, measure)
        if change and change["change"] < 0 and change["n"] >= FEWEST_ITEMS:
            p = change.get("p_holm")
            if p is not None and p < SIGNIFICANT / looks:
                found.append(code)
    return ordered(found)


def collapsed(task: Mapping[str, Any], variant: str) -> dict[str, str]:
    """Return the languages in which one label has nearly all predictions -> which, as `all positive`.

    A task of one label, and fewer than six items, say nothing.
    """
    labels = task["labels"]
    found = {code: collapse(entry[variant], labels) for code, entry in task["languages"].items()
             if len(labels) > 1 and entry[variant]["n"] >= FEWEST_ITEMS}  # fmt: skip
    return {code: found[code] for code in ordered(found) if found[code]}


def newly_collapsed(task: Mapping[str, Any]) -> list[str]:
    """Return the languages in which the tuned model, unlike the base, gives a label nearly every time."""
    before, after = collapsed(task, "base"), collapsed(task, "tuned")
    return [code for code, label in after.items() if _label(before.get(code, "")) != _label(label)]


def _label(collapse_text: str) -> str:
    return collapse_text.removeprefix("all ").split(" % ", 1)[-1]


def measures_of(task: Mapping[str, Any]) -> list[str]:
    """Return the accuracies of a test set that are looked at: the one that is decided first, raw and calibrated."""
    return list(dict.fromkeys([decided(task), "raw", "calibrated"]))


def _against(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield what speaks against shipping: falls in single languages, in means, and new collapses."""
    counting = counting_test_sets(scores)
    for key, task in counting.items():
        for measure in measures_of(task):
            if codes := fallen(scores, key, measure):
                names = series([language(code).name for code in codes], _SHOWN)
                yield f"{MEASURE_NAMES[measure]} on {key} clearly falls in {names}"
                break
    for key, task in counting.items():
        falls = [
            (measure, group, change)
            for measure in measures_of(task)
            for group in ("all", "seen", "unseen")
            if (change := group_changes(task, measure).get(group)) and is_clear(change) and change["high"] < 0
        ]
        for measure, group, change in falls[:1]:
            mean = f"mean {MEASURE_NAMES[measure]} on {key} {over(group, change)}"
            yield f"{mean} clearly falls ({points(change['change'])} points)"
    for key, task in counting.items():
        if codes := newly_collapsed(task):
            names = series([language(code).name for code in codes], _SHOWN)
            yield f"the tuned model gives nearly one label only on {key} in {names}"


def over(group: str, change: Mapping[str, Any]) -> str:
    """Return `over the 17 languages never tuned on`, `over all 20 languages` or `in the one language tested`.

    Args:
        group: `all`, `seen` or `unseen`.
        change: of the group.
    """
    n = change["languages"]
    which = {"unseen": " never tuned on", "seen": " tuned on"}.get(group, "")
    if n == 1:
        return f"in the one language{which or ' tested'}"
    return f"over the {n} languages{which}" if which else f"over all {n} languages"


def _doubts(run: RunFiles) -> Iterator[str]:
    kinds = {warning["kind"] for warning in run.scores.get("warnings", ())}
    yield from (reason for kind, reason in _DOUBTS.items() if kind in kinds)
    if run.audit.get("question_only") is False:
        yield "training pairs hold answers of the task"
    overlap = run.audit.get("overlap") or {"items": 0, "of": 0}
    if overlap["items"] > MUCH_OVERLAP * overlap["of"]:
        yield f"{overlap['items']:,} of {overlap['of']:,} test texts stand among the training questions"


@dataclass(frozen=True)
class _Rise:
    is_clear: bool
    reason: str


def _rise(key: str, task: Mapping[str, Any], n_test_sets: int) -> _Rise:
    """Return whether accuracy on a test set rises clearly, and the reason for either."""
    group = "unseen" if "unseen" in group_changes(task, decided(task)) else "all"
    change = group_changes(task, decided(task)).get(group)
    if change is None:
        return _Rise(False, "")
    mean = f"mean {MEASURE_NAMES[decided(task)]} on {key} {over(group, change)}"
    if change["n"] < FEWEST_ITEMS:
        return _Rise(False, f"{counted(change['n'], 'item')} on {key} cannot show a change")
    if not (is_clear(change) and _widened(change, n_test_sets) > 0):
        return _Rise(False, f"{mean} does not clearly rise ({points(change['change'])} points)")
    fair = group_changes(task, "calibrated").get(group)
    if fair is None or not (is_clear(fair) and _widened(fair, n_test_sets) > 0):
        return _Rise(False, f"{mean} rises, but not after batch calibration: what changed is which label is preferred")
    return _Rise(True, f"{mean} clearly rises ({points(change['change'])} points), also after batch calibration")


def _widened(change: Mapping[str, Any], n_test_sets: int) -> float:
    """Return the lower end of an interval at 1 - 0.05 / test sets, as if of a normal distribution."""
    scale = norm.ppf(1 - SIGNIFICANT / (2 * n_test_sets)) / norm.ppf(1 - SIGNIFICANT / 2)
    return float(change["change"] - scale * (change["change"] - change["low"]))
