"""The first paragraph of a report: the whole truth of a run in plain words, and its verdict.

Enters: the files of a run. Leaves: an `Opening`, which stands first on the page, in the model card and in the terminal:
what was done, what it changed, and all that a reader must not overlook. Nothing is called a rise or a fall whose
interval holds zero. Texts from files are as they are; who shows them escapes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glotlift.reporting.names import counted, language, listing, series
from glotlift.reporting.read import RunFiles
from glotlift.reporting.table import FEWEST_ITEMS, decided, group_changes, is_clear, percent, points
from glotlift.reporting.verdict import (
    MEASURE_NAMES,
    Verdict,
    collapsed,
    counting_test_sets,
    fallen,
    measures_of,
    newly_collapsed,
    over,
    verdict,
)

_TEST_SETS, _LANGUAGES, _WARNINGS = 4, 8, 6
"""So many are named each; of more, one less, and how many more there are."""

_MANY_TIES = 0.01
"""From this share of the items on, ties are spoken of."""


@dataclass(frozen=True)
class Opening:
    """What a reader must know first.

    Attributes:
        paragraph: plain text.
        verdict: on the tuned model, None where nothing was tuned.
    """

    paragraph: str
    verdict: Verdict | None


def opening(run: RunFiles) -> Opening:
    """Return the first paragraph of a run, and its verdict."""
    sentences = [_done(run), _with_labels(run), _centered(run), _without_weight(run), *_results(run), *_cautions(run)]
    return Opening(" ".join(filter(None, sentences)), verdict(run))


def translated(run: RunFiles) -> str:
    """Return from which languages into which the model learned to translate, as `from German into English`."""
    seen, common = listing(run.seen), language(run.pivot).name
    if (run.recipe.get("data") or {}).get("direction") == "from-english":
        return f"from {common} into {seen}" if seen else f"from {common}"
    return f"from {seen} into {common}" if seen else f"into {common}"


def learned(run: RunFiles) -> str:
    """Return what the model learned, to stand behind `was tuned`: `to translate questions from German into English`."""
    said = [_LEARNED[name].format(translated=translated(run), seen=listing(run.seen)) for name in run.objective
            if name in _LEARNED]  # fmt: skip
    return series(said) if said else "on questions without answers"


_LEARNED = {
    "translation": "to translate questions {translated}",
    "consistency": "to answer questions in {seen} as it answers them in English",
    "contrastive": "to represent questions in {seen} as it represents them in English",
    "readout": "on questions in {seen} to say what the model says in English",
    "steering": "on questions in {seen} and their English versions",
}
"""Objective -> what is learned by it; none of them learns from an answer."""

_CLOSED = {
    "readout": ("got a readout of a middle layer, fitted",),
    "steering": ("got its states of a language steered to the English ones, by offsets computed",),
}
"""Objective that tunes no weight -> what was done."""

# --- what was done


def _done(run: RunFiles) -> str:
    tested = _tested(counting_test_sets(run.scores) or run.scores.get("tasks", {}))
    model = run.model or "A model"
    if not run.is_tuned:
        return f"{model} was evaluated on {tested}; nothing was tuned." if tested else ""
    if run.seen:
        pairs = counted(run.audit["pairs"], "pair") if run.audit else ""
        how = "in all its weights" if run.is_full else "with LoRA" if run.recipe else ""
        done = next((_CLOSED[name] for name in run.objective if name in _CLOSED), ("was tuned", how))
        tuned = " ".join(filter(None, (*done, learned(run))))
        done = f"{model} {tuned}{f' ({pairs})' if pairs else ''}"
    else:
        done = f"An adapter was put on {model}"
    if run.control != "none":
        answers = ", which reads right answers: a ceiling, no result without labels" if run.control == "gold" else ""
        done = f"{done}, under the control {run.control}{answers}"
    if "tuned" not in run.scores.get("variants", ()) or not tested:
        return f"{done}; it was not evaluated, so what tuning changed is not known."
    return f"{done}, and evaluated before and after on {tested}."


def _with_labels(run: RunFiles) -> str:
    """Return what a probe makes of a result, as `_done` says it of the control `gold`."""
    if not run.is_probed:
        return ""
    return "Its weights were chosen by a probe, which reads right answers: no result without labels."


def _centered(run: RunFiles) -> str:
    """Return what tells a preference that was trained away from a gain in telling items apart."""
    if run.center == "language":
        return ""
    held = {"zero": "none", "prior": "that of English"}.get(run.center, run.center)
    return (
        f"The mean label score of a language was held to {held} (center {run.center}), not to its own, so a gain in "
        "raw accuracy may be a shifted preference for a label."
    )


def _without_weight(run: RunFiles) -> str:
    """Return what explains that nothing changes, where a readout was found and is not used."""
    if run.has_weight:
        return ""
    return (
        "The readout agreed with what the model says in English no better than the model itself did, so it has no "
        "weight: the tuned model answers as the base does."
    )


def _tested(tasks: Mapping[str, Any]) -> str:
    return series([f"{key} ({_extent(task)})" for key, task in tasks.items()], _TEST_SETS) if tasks else ""


def _extent(task: Mapping[str, Any]) -> str:
    """Return `20 languages, 100 items each`."""
    sizes = sorted({entry["base"]["n"] for entry in task["languages"].values()})
    languages = counted(len(task["languages"]), "language")
    if len(sizes) > 1:
        return f"{languages}, {sizes[0]:,} to {sizes[-1]:,} items each"
    return f"{languages}, {counted(sizes[0], 'item')}{' each' * (len(task['languages']) > 1)}"


# --- what came out


def _results(run: RunFiles) -> Iterator[str]:
    tasks = counting_test_sets(run.scores)
    shown = list(tasks)[: _TEST_SETS if len(tasks) <= _TEST_SETS else _TEST_SETS - 1]
    for key in shown:
        yield _changed(key, tasks[key]) if "tuned" in run.scores["variants"] else _level(key, tasks[key])
    if len(tasks) > len(shown):
        yield f"The numbers of {len(tasks) - len(shown)} more test sets stand below."


def _level(key: str, task: Mapping[str, Any]) -> str:
    mean, n = task["means"]["base"], len(task["languages"])
    interval = ""
    if mean.get("low") is not None and mean.get("high") is not None:
        interval = f"95 % interval {percent(mean['low'])} to {percent(mean['high'])}, "
    over = "in the one language tested" if n == 1 else f"mean over {n} languages"
    text = f"On {key}, {MEASURE_NAMES[decided(task)]} is {percent(mean['accuracy'])} %, {over}"
    return f"{text} ({interval}chance {percent(task['chance'])} %)."


def _changed(key: str, task: Mapping[str, Any]) -> str:
    measure = decided(task)
    changes = group_changes(task, measure)
    named = [(name, changes[name]) for name in ("unseen", "seen") if name in changes] or [
        (name, change) for name, change in changes.items() if name == "all"
    ]
    what = [f"mean {MEASURE_NAMES[measure]}", *["it"] * len(named)]
    parts = [f"{over(name, change)}, {it} {_moved(change)}" for it, (name, change) in zip(what, named, strict=False)]
    other = "raw" if measure == "calibrated" else "calibrated"
    if beside := group_changes(task, other).get("all"):
        after = "without calibration" if other == "raw" else "after batch calibration"
        parts.append(f"{after}, {over('all', beside)}, it {_moved(beside)}")
    return f"On {key}, {'; '.join(parts)}."


def _moved(change: Mapping[str, Any]) -> str:
    """Return `rises from 50.0 to 62.5 % (+12.5 points, 95 % interval +2.5 to +22.5)`."""
    if not change.get("moved", True):
        return f"stays at {percent(change['b'])} % (no item moved)"
    ends = f"95 % interval {points(change['low'])} to {points(change['high'])}"
    before, after = percent(change["a"]), percent(change["b"])
    if not is_clear(change):
        return f"does not clearly change ({before} to {after} %, {ends} points)"
    verb = "rises" if change["change"] > 0 else "falls"
    return f"{verb} from {before} to {after} % ({points(change['change'])} points, {ends})"


# --- what must not be overlooked


def _cautions(run: RunFiles) -> Iterator[str]:
    scores, tasks = run.scores, counting_test_sets(run.scores)
    variants = scores.get("variants", ())
    is_paired = "tuned" in variants
    if scores.get("tasks") and not tasks:
        yield "All answer words are arbitrary, so nothing here is evidence on the task."
    if is_paired and tasks:
        falls = [_fall(scores, key, task) for key, task in tasks.items()]
        yield from _first(falls) if any(falls) else ["In no single language does accuracy clearly fall."]
    for found in (_few_items, _collapses, _ties):
        yield from _first([found(key, task, variants[-1]) for key, task in tasks.items()])
    yield from _training_data(run)
    yield from _warnings(scores)
    if is_paired and tasks and not any(task.get("parts") for task in tasks.values()):
        yield (
            "No control with arbitrary answer words was evaluated, so how much of a change is reading the answer "
            "format is not known."
        )


def _first(of_test_sets: Sequence[str]) -> list[str]:
    """Return what is said of test sets, one kind of thing; of many only the first, and how many more there are."""
    said = [text for text in of_test_sets if text]
    if len(said) <= _TEST_SETS:
        return said
    return [*said[: _TEST_SETS - 1], f"The like holds of {len(said) - _TEST_SETS + 1} more test sets, see below."]


def _fall(scores: Mapping[str, Any], key: str, task: Mapping[str, Any]) -> str:
    total, parts, said = len(task["languages"]), [], set()
    for measure in measures_of(task):
        codes = fallen(scores, key, measure)
        if not set(codes) <= said:
            what = MEASURE_NAMES[measure]
            parts.append(f"{what} clearly falls in {len(codes)} of {counted(total, 'language')}: {_named(codes)}")
        said |= set(codes)
    return f"On {key}, {'; '.join(parts)} (each by its own test, Holm p < 0.05)." if parts else ""


def _named(codes: Sequence[str]) -> str:
    return series([language(code).name for code in codes], _LANGUAGES)


def _few_items(key: str, task: Mapping[str, Any], variant: str) -> str:
    most = max(entry[variant]["n"] for entry in task["languages"].values())
    return f"With {counted(most, 'item')} a language, {key} can show no change." if most < FEWEST_ITEMS else ""


def _collapses(key: str, task: Mapping[str, Any], variant: str) -> str:
    found, total = collapsed(task, variant), len(task["languages"])
    if not found:
        return ""
    named = series([f"{language(code).name} ({label})" for code, label in found.items()], _LANGUAGES)
    where = f"{len(found)} of {counted(total, 'language')}, where its accuracy says little: {named}"
    model = "tuned model" if variant == "tuned" else "model"
    text = f"On {key}, the {model} gives one label 95 % or more of the time in {where}"
    if variant == "base":
        return f"{text}."
    if not newly_collapsed(task):
        return f"{text}; so does the base model."
    return f"{text}; the base model does in {len(collapsed(task, 'base')) or 'none'}."


def _ties(key: str, task: Mapping[str, Any], variant: str) -> str:
    scores = [entry[variant] for entry in task["languages"].values()]
    tied, total = sum(score.get("tied", 0) for score in scores), sum(score["n"] for score in scores)
    if tied < max(1, _MANY_TIES * total):
        return ""
    are = "is a tie" if tied == 1 else "are ties"
    return f"On {key}, {tied:,} of {counted(total, 'prediction')} {are}, which the first label wins."


def _training_data(run: RunFiles) -> Iterator[str]:
    if not run.is_tuned:
        return
    if not run.audit:
        yield "What it was trained on was not audited here, nor compared with the test items."
        return
    if run.audit.get("question_only") is False:
        held = run.audit.get("flags", {}).get("answer", 0)
        yield f"{counted(held, 'training pair')} {'holds' if held == 1 else 'hold'} an answer of the task."
    overlap = run.audit.get("overlap")
    if overlap and overlap["items"]:
        share = "shares" if overlap["items"] == 1 else "share"
        with_pairs = f"{overlap['n']} words in a row with {counted(overlap['pairs'], 'training pair')}"
        yield f"{overlap['items']:,} of {counted(overlap['of'], 'test text')} {share} {with_pairs}."


def _warnings(scores: Mapping[str, Any]) -> Iterator[str]:
    texts = list(dict.fromkeys(_sentence(warning) for warning in scores.get("warnings", ())))
    yield from texts[:_WARNINGS]
    if len(texts) > _WARNINGS:
        more = counted(len(texts) - _WARNINGS, "more warning")
        yield f"{more} {'stands' if len(texts) - _WARNINGS == 1 else 'stand'} in scores.json."


def _sentence(warning: Mapping[str, Any]) -> str:
    """Return a warning as a sentence, with the test set and languages that its text does not name."""
    text = " ".join(warning["text"].split()).rstrip(".")
    where = [f"on {name}" for name in [warning.get("test_set")] if name and name not in text]
    if codes := [code for code in warning.get("languages", ()) if language(code).name not in text]:
        where.append(f"in {_named(codes)}")
    text = f"{text[:1].upper()}{text[1:]}"
    return f"{text} ({', '.join(where)})." if where else f"{text}."
