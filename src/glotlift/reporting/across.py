"""What several test sets of one task say together: other answer languages, other demonstrations.

Enters: scores. Leaves: `Grid`s (prompt language x answer language) and `Spread`s (over draws of demonstrations), each
with a sentence. The sentences only describe: cells of a grid have no interval, and a spread is no interval either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from glotlift.reporting.names import ordered
from glotlift.reporting.table import points


@dataclass(frozen=True)
class Grid:
    """Accuracy by language of the prompt and language of the answer words.

    Attributes:
        name: of the task.
        prompts: codes, in the report's order.
        answers: codes, in the report's order.
        cells: variant -> prompt -> answer -> accuracy, 0 to 1; a cell may be missing.
        test_sets: answer -> keys of the test sets that its cells are of, or the mean of; empty where scores name none.
    """

    name: str
    prompts: Sequence[str]
    answers: Sequence[str]
    cells: Mapping[str, Mapping[str, Mapping[str, float]]]
    test_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """How often the model is right with answer words in the prompt's language, and in others."""
        parts = []
        for variant, rows in self.cells.items():
            same = [row[prompt] for prompt, row in rows.items() if prompt in row]
            other = [value for prompt, row in rows.items() for answer, value in row.items() if answer != prompt]
            if same and other:
                parts.append(f"{mean(same):.1%} and {mean(other):.1%} ({variant}, {len(same)} and {len(other)} cells)")
        if not parts:
            return ""
        return (
            f"Mean accuracy on {self.name} with answer words in the language of the prompt, and in another one: "
            f"{'; '.join(parts)}."
        )


@dataclass(frozen=True)
class Spread:
    """Accuracy over draws of demonstrations.

    Attributes:
        name: of the task and its answers.
        test_sets: key of the test set of each draw.
        summaries: variant -> `""` for the mean over languages, or code -> `mean`, `sd` (n - 1), `min`, `max`, 0 to 1.
        draws: variant -> the same keys -> accuracy of each draw; empty where the scores do not hold the test sets.
    """

    name: str
    test_sets: Sequence[str]
    summaries: Mapping[str, Mapping[str, Mapping[str, float]]]
    draws: Mapping[str, Mapping[str, Sequence[float]]]

    @property
    def languages(self) -> list[str]:
        """Codes, in the report's order."""
        return ordered(code for rows in self.summaries.values() for code in rows if code)

    @property
    def sentence(self) -> str:
        """How far accuracy, mean over languages, moves from draw to draw."""
        of = {variant: rows[""] for variant, rows in self.summaries.items()}
        parts = [
            f"{row['mean']:.1%} ± {row['sd'] * 100:.1f} ({variant}, from {row['min']:.1%} to {row['max']:.1%})"
            for variant, row in of.items()
        ]
        text = (
            f"Over {len(self.test_sets)} draws of demonstrations, accuracy on {self.name}, mean over "
            f"{len(self.languages)} languages, is {' and '.join(parts)}; ± is the standard deviation."
        )
        if not {"base", "tuned"} <= set(self.draws):
            return text
        pairs = zip(self.draws["base"][""], self.draws["tuned"][""], strict=True)
        changes = [tuned - base for base, tuned in pairs]
        above = sum(change > 0 for change in changes)
        return (
            f"{text} Tuned less base, draw by draw: {points(mean(changes))} ± {stdev(changes) * 100:.1f} points, "
            f"above zero in {above} of {len(changes)}."
        )


def grids(scores: Mapping[str, Any]) -> list[Grid]:
    """Return the grids that have two answer languages or more.

    Args:
        scores: what scores.json holds under `glotlift`.
    """
    found = []
    for name, entry in (scores.get("answer_language_grid") or {}).items():
        by_variant = {variant: rows for variant, rows in entry.items() if variant != "test_sets"}
        prompts = ordered(code for rows in by_variant.values() for code in rows)
        answers = ordered(code for rows in by_variant.values() for row in rows.values() for code in row)
        if len(answers) > 1:
            found.append(Grid(name, prompts, answers, by_variant, entry.get("test_sets") or {}))
    return found


def spreads(scores: Mapping[str, Any]) -> list[Spread]:
    """Return the spreads over draws of demonstrations.

    Args:
        scores: what scores.json holds under `glotlift`.
    """
    found = []
    for name, entry in (scores.get("demonstration_spread") or {}).items():
        keys = entry["test_sets"]
        variants = [variant for variant in scores["variants"] if variant in entry]
        summaries = {variant: {"": entry[variant]["mean"], **entry[variant]["languages"]} for variant in variants}
        tasks = [scores["tasks"][key] for key in keys if key in scores["tasks"]]
        draws = {variant: _draws(tasks, variant, summaries[variant]) for variant in variants if len(tasks) == len(keys)}
        found.append(Spread(name, keys, summaries, draws))
    return found


def _draws(tasks: Sequence[Mapping[str, Any]], variant: str, codes: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        code: [(task["languages"][code] if code else task["means"])[variant]["accuracy"] for task in tasks]
        for code in codes
    }


def members(scores: Mapping[str, Any]) -> set[str]:
    """Return the keys of the test sets that a grid or a spread shows already."""
    in_grids = [keys for grid in grids(scores) for keys in grid.test_sets.values()]
    return set().union(*in_grids, *(spread.test_sets for spread in spreads(scores)))
