"""`glotlift explain`: inside a model, on the items of a task; `explain lens`: one prompt; `explain tuned-lens`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glotlift.cli.flags import Adapter, Device, Dtype, Languages, Model, Seed, Source, given, settings_of
from glotlift.cli.output import console, print_paragraphs

app = typer.Typer(invoke_without_command=True)

TunedLens = Annotated[str | None, given("--tuned-lens", "Folder of a tuned lens, see `explain tuned-lens`.")]


@app.callback()
def explain(
    context: typer.Context,
    model: Model = None,
    adapter: Adapter = None,
    task: Annotated[str | None, given("--task", "Name or file.", "sentiment")] = None,
    languages: Languages = None,
    source: Source = None,
    answers: Annotated[str | None, given("--answers", "Answer words of the demonstrations.", "own")] = None,
    limit: Annotated[int | None, given("--limit", "Items a language.", "100")] = None,
    what: Annotated[
        str | None, given("--what", "Of lens, geometry, patching, switch-off, item-link, by commas.", "lens,geometry")
    ] = None,
    sequences: Annotated[bool | None, given("--sequences", "Read whole answer words on every layer, too.")] = None,
    components: Annotated[bool | None, given("--components", "Read what attention and MLP add, too.")] = None,
    paper: Annotated[bool | None, given("--paper", "Add the quantities of arXiv 2405.13816.")] = None,
    tuned_lens: TunedLens = None,
    pooling: Annotated[
        str | None, given("--pooling", "question, position-weighted or whole: tokens of a state.", "question")
    ] = None,
    states_dtype: Annotated[
        str | None, given("--states-dtype", "float32 or float16: type of the states on disk.", "float32")
    ] = None,
    random_adapter: Annotated[
        bool | None, given("--random-adapter", "Look into a random adapter of the same norm, too.")
    ] = None,
    output_path: Annotated[Path, typer.Option("--output-path", "-o", help="Gets a folder a kind.")] = Path(
        "runs/explain"
    ),
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Look inside a model, on the items of a task: lens, geometry, item link, patching, switch-off of an adapter."""
    if context.invoked_subcommand:
        return
    from glotlift.explanation.settings import Explanation
    from glotlift.stages.explain import explain as explain_model

    typer.echo(explain_model(settings_of(Explanation, context), output_path=output_path))


@app.command("lens")
def explain_lens(
    context: typer.Context,
    text: Annotated[str, typer.Option("--text", help="The prompt.")],
    model: Model = None,
    adapter: Adapter = None,
    language: Annotated[str | None, given("--language", "Code of the prompt's language, for steering.")] = None,
    tokens: Annotated[int | None, given("--tokens", "Last tokens of the prompt that are shown.", "5")] = None,
    tuned_lens: TunedLens = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write it as a page.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Show what every layer would say next, behind the last tokens of a prompt; with --adapter, base and tuned."""
    from glotlift.explanation.settings import TextLens
    from glotlift.reporting.one_prompt import lens_grids, write_lens_page
    from glotlift.stages.explain import explain_text

    asked = settings_of(TextLens, context)
    frame = explain_text(asked)
    print_paragraphs(console(), lens_grids(frame))
    if html is not None:
        write_lens_page(html, frame, text, asked.model, asked.adapter)
        typer.echo(f"page: {html}")


@app.command("tuned-lens")
def explain_tuned_lens(
    context: typer.Context,
    model: Model = None,
    texts: Annotated[
        str | None, given("--texts", "File of unlabelled text, one a line; or `sample`.", "sample")
    ] = None,
    steps: Annotated[int | None, given("--steps", "Of the optimizer.", "80")] = None,
    output_path: Annotated[Path, typer.Option("--output-path", "-o", help="Gets config.json and params.pt.")] = Path(
        "runs/tuned-lens"
    ),
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Train a tuned lens on unlabelled text: early layers can be read by it, as by the plain lens they cannot."""
    from glotlift.explanation.settings import LensTraining
    from glotlift.reporting.one_prompt import training_tables
    from glotlift.stages.explain import train_tuned_lens

    found = train_tuned_lens(settings_of(LensTraining, context), output_path=output_path)
    print_paragraphs(console(), training_tables(found))
    typer.echo(output_path)
