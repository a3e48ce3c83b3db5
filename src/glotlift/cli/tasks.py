"""`glotlift tasks`, `languages` and `models`: what there is to work with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glotlift.cli.flags import Languages, Limit, NumFewshot, Source, given, listed

app = typer.Typer(help="Tasks: list, show, check.", no_args_is_help=True)


@app.command("list")
def tasks_list() -> None:
    """List the bundled tasks."""
    from glotlift.tasks.load import builtin_tasks, load_task

    for name in builtin_tasks():
        task = load_task(name)
        typer.echo(f"{name:12} {len(task.languages)} languages, {' / '.join(task.labels)}: {task.description}")


@app.command("show")
def tasks_show(
    task: Annotated[str, typer.Argument(help="Name or file.")],
    languages: Annotated[str, typer.Option("--languages", help="Codes such as `de,sw`, or `all`.")] = "en",
    answers: Annotated[str, typer.Option("--answers", help="Answer set.")] = "own",
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the task file itself, to begin your own task with.")
    ] = False,
) -> None:
    """Print the prompt of a task in some languages, or its file."""
    from glotlift.tasks.load import load_task, show_task, task_file

    if yaml:
        typer.echo(task_file(task).read_text(encoding="utf-8"), nl=False)
        return
    for code, prompt in show_task(task, languages, answers).items():
        typer.echo(f"--- {load_task(task).name}, {code}\n{prompt}\n")


@app.command("check")
def tasks_check(
    task: Annotated[str, typer.Argument(help="Name or file.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Also audit the label words under its tokenizer.")
    ] = None,
    data: Source = None,
    languages: Annotated[str | None, typer.Option("--languages", help="Codes; all of the task by default.")] = None,
) -> None:
    """Check a task file, its prompts, its rows and, with --model, whether tokens separate its classes."""
    from glotlift.evaluation.check import check_task
    from glotlift.languages import resolve

    found = check_task(task, model, source=data, languages=resolve(languages) if languages else None)
    for line in found.lines():
        typer.echo(line)
    if found.faults:
        raise typer.Exit(2)


@app.command("export")
def tasks_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the task group goes.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Names or files, separated by commas.")] = "sentiment",
    format: Annotated[str, typer.Option("--format", help="lm-eval.")] = "lm-eval",
    languages: Languages = None,
    data: Source = None,
    answers: Annotated[str | None, given("--answers", "Answer set.", "own")] = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
) -> None:
    """Write tasks as a group that lm-evaluation-harness runs as it is."""
    from glotlift.errors import UserError
    from glotlift.stages.export import export_tasks

    if format != "lm-eval":
        raise UserError(f"--format: got {format!r}, expected lm-eval")
    for group in export_tasks(
        listed(tasks),
        folder,
        languages=languages or "all",
        source=data,
        answers=answers,
        limit=limit,
        num_fewshot=num_fewshot,
    ):
        typer.echo(f"lm_eval --include_path {folder} --tasks {group}")


def languages() -> None:
    """List the languages glotlift knows."""
    from glotlift.languages import LANGUAGES

    for entry in LANGUAGES.values():
        typer.echo(
            f"{entry.code}  {entry.flores}  {entry.name:10} {entry.endonym:14} {entry.family}, class {entry.resource}"
        )


def models(name: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or `demo`.")] = "demo") -> None:
    """Show what a model name stands for, converting a GGUF file when first asked."""
    from glotlift.models.describe import describe_model

    found = describe_model(name)
    typer.echo(f"{name}: {found['architecture']}, {found['parameters'] / 1e6:.0f} M parameters, {found['dtype']}")
    typer.echo(f"{found['layers']} layers, width {found['width']}, {found['tokens']:,} tokens")
    typer.echo(f"window {found['window']:,} tokens, fingerprint {found['fingerprint']}")
