"""`glotlift data`: question pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

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
    from glotlift.stages.export import audit_data

    typer.echo(json.dumps(audit_data(pairs, task), indent=2, ensure_ascii=False))


@app.command("export")
def data_export(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="A pairs.jsonl, or a run folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go.")],
    format: Annotated[str, typer.Option("--format", help="llama-factory, trl or hub.")] = "trl",
    name: Annotated[str, typer.Option("--name", help="Of the data set.")] = "questions",
    about: Annotated[str, typer.Option("--about", help="Where the questions are from, for the dataset card.")] = "",
) -> None:
    """Write question pairs as LLaMA-Factory, TRL or the Hugging Face hub read them."""
    from glotlift.stages.export import export_data

    typer.echo(export_data(pairs, folder, format=format, name=name, about=about))
