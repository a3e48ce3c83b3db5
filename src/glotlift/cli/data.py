"""`glotlift data`: question pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from glotlift.cli.flags import OutputPath, RecipePath

app = typer.Typer(help="Question pairs: build, audit and export.", no_args_is_help=True)


@app.command("build")
def data_build(recipe: RecipePath, output_path: OutputPath = None) -> None:
    """Build the question pairs of a recipe and audit them."""
    from glotlift.stages.data import build_data

    typer.echo(build_data(recipe, output_path))


@app.command("audit")
def data_audit(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="A pairs.jsonl.")],
    task: Annotated[
        str | None, typer.Option("--task", help="Also look for answers of this task: name or file.")
    ] = None,
) -> None:
    """Print the audit of a file of question pairs as JSON."""
    from glotlift.data.audit import audit_pairs
    from glotlift.data.questions import load_pairs
    from glotlift.tasks.load import load_task

    found = audit_pairs(load_pairs(pairs), task=load_task(task) if task else None)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


@app.command("export")
def data_export(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="A pairs.jsonl, or a run folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go.")],
    format: Annotated[str, typer.Option("--format", help="llama-factory, trl or hub.")] = "trl",
    name: Annotated[str, typer.Option("--name", help="Of the data set.")] = "questions",
    about: Annotated[str, typer.Option("--about", help="Where the questions are from, for the dataset card.")] = "",
) -> None:
    """Write question pairs as LLaMA-Factory, TRL or the Hugging Face hub read them."""
    from glotlift.data.export_pairs import export_pairs
    from glotlift.data.questions import load_pairs

    file = pairs / "data" / "pairs.jsonl" if pairs.is_dir() else pairs
    audit = file.with_name("audit.json")
    known = _read_json(audit) if audit.is_file() else None
    typer.echo(export_pairs(load_pairs(file), folder, format, name=name, about=about, audit=known))


def _read_json(file: Path) -> Any:
    from glotlift.errors import DataError

    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise DataError(
            f"{file}: cannot be read as JSON ({fault}), expected what `glotlift data build` wrote"
        ) from None
