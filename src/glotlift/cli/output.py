"""What commands print: tables of a run, one paragraph after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from glotlift.processes import prints


def finish(folder: Path) -> None:
    """Print what a run found and where its report is; the first of several processes does."""
    if not prints():
        return
    print_run(folder)
    typer.echo(f"report: {folder / 'report.html'}")


def print_run(folder: Path) -> None:
    """Print the first paragraph of a run's report, its verdict, then tables and sentences of all test sets.

    Args:
        folder: of the run, or of an evaluation.
    """
    from glotlift.reporting.opening import opening
    from glotlift.reporting.read import read_run

    run = read_run(folder, with_frames=False)
    first = opening(run)
    print_paragraphs(console(), [first.paragraph, first.verdict and first.verdict.line])
    print_tables({"glotlift": run.scores})


def print_tables(scores: dict[str, Any], *, with_rollups: bool = False) -> None:
    """Print the tables and sentences of all test sets; on request also by family, script and resource class."""
    from glotlift.reporting.across import grids, spreads
    from glotlift.reporting.baselines import baseline_table, strength_table
    from glotlift.reporting.terminal import fitted, grid_table, result_table, rollups, spread_table

    screen = console()
    extras = scores.get("glotlift", {})
    for key, entry in extras.get("tasks", {}).items():
        found = [result_table(scores, key), entry["sentence"], entry.get("parts_sentence", "")]
        beside = [strength_table(entry, key), baseline_table(entry, key)]
        found += [*(fitted(each) for each in beside if each), rollups(scores, key) if with_rollups else None]
        print_paragraphs(screen, found)
    for grid in grids(extras):
        print_paragraphs(screen, [grid_table(grid), grid.sentence])
    for spread in spreads(extras):
        print_paragraphs(screen, [spread_table(spread), spread.sentence])


def print_sweep(folder: Path) -> None:
    """Print the tables of a sweep, and where they stand as files."""
    from glotlift.errors import OutputError
    from glotlift.reporting.sweep import sweep_table
    from glotlift.reporting.terminal import fitted
    from glotlift.strict_json import read_json

    scores = read_json(folder / "sweep.json", OutputError)
    print_paragraphs(console(), [fitted(sweep_table(scores, key)) for key in scores["tasks"]])
    typer.echo(f"tables: {folder / 'sweep.csv'}, .md, .tex")


def print_diagnosis(content: dict[str, Any]) -> None:
    """Print the table of a diagnosis, and its sentences."""
    from glotlift.reporting.diagnosis import diagnosis_table, sentences
    from glotlift.reporting.terminal import fitted

    print_paragraphs(console(), [fitted(diagnosis_table(content)), *sentences(content)])


def print_paragraphs(screen: Any, paragraphs: list[Any]) -> None:
    """Print tables and texts that are not empty."""
    for paragraph in filter(None, paragraphs):
        screen.print(paragraph, markup=False, highlight=False)
    screen.print()


def console() -> Any:
    """Return a console that does not fold tables where there is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)
