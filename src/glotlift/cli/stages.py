"""The commands that do a stage of a run, or all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glotlift.cli.flags import (
    Adapter,
    Answers,
    Columns,
    Device,
    Dtype,
    EvalModel,
    Gold,
    GoldMap,
    Languages,
    Limit,
    Model,
    NumFewshot,
    OutputPath,
    RecipePath,
    RunPath,
    Seed,
    Settings,
    Source,
    given,
    settings_of,
)
from glotlift.cli.output import console, finish, print_diagnosis, print_paragraphs, print_run, print_sweep, print_tables
from glotlift.processes import prints


def demo(output_path: OutputPath = None) -> None:
    """Do everything on a real small model and the bundled sample: minutes on a CPU."""
    from glotlift.stages.run import demo as run_demo

    finish(run_demo(output_path))


def run(recipe: RecipePath, output_path: OutputPath = None, settings: Settings = None) -> None:
    """Do every stage of a recipe into a run folder; started again, go on where it stopped."""
    from glotlift.stages.run import run as run_recipe

    finish(run_recipe(recipe, output_path, settings=settings or ()))


def sweep(
    sweep_path: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep (YAML): a recipe, runs, seeds.")],
    output_path: Annotated[
        Path | None, typer.Option("--output-path", "-o", help="Folder of the sweep; runs/<name> by default.")
    ] = None,
) -> None:
    """Train and evaluate several runs of a recipe, the base once, into one table; started again, go on."""
    from glotlift.stages.sweep import sweep as run_sweep

    folder = run_sweep(sweep_path, output_path)
    if prints():
        print_sweep(folder)


def train(
    recipe: RecipePath,
    output_path: OutputPath = None,
    settings: Settings = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Show what is read and learned, a language at a time; train nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what training would take in time and memory; train nothing.")
    ] = False,
) -> None:
    """Tune the model of a recipe on its question pairs."""
    from glotlift.stages.train import inspect_training
    from glotlift.stages.train import train as train_recipe

    if not inspect and not dry_run:
        adapter = train_recipe(recipe, output_path, settings=settings or ())
        if prints():
            typer.echo(adapter)
        return
    found = inspect_training(recipe, settings=settings or ())
    if inspect:
        from glotlift.reporting.terminal import inspection

        print_paragraphs(console(), inspection(found["languages"], found["audit"]))
    no_step = "no weight is tuned: every row runs through the model once, without gradients"
    typer.echo(found["estimate"].sentence() if found["estimate"] else no_step)


def merge(
    run_path: RunPath,
    strength: Annotated[float | None, given("--strength", "What a LoRA adapter is multiplied by.", "1.0")] = None,
) -> None:
    """Merge the adapter of a run into a plain model folder."""
    from glotlift.stages.merge import merge as merge_run

    typer.echo(merge_run(run_path, strength=strength))


def evaluate(
    context: typer.Context,
    model: EvalModel = None,
    adapter: Adapter = None,
    tasks: Annotated[str | None, given("--tasks", "Names or files, separated by commas.", "sentiment")] = None,
    languages: Languages = None,
    source: Source = None,
    gold: Gold = None,
    columns: Columns = None,
    gold_map: GoldMap = None,
    answers: Answers = None,
    answer_languages: Annotated[
        str | None, given("--answer-languages", "Grid of prompt language x answer language: codes or `all`.")
    ] = None,
    adapter_strength: Annotated[
        str | None, given("--adapter-strength", "Further strengths of a LoRA adapter, as 0.25,0.5.")
    ] = None,
    baselines: Annotated[
        str | None, given("--baselines", "Other ways to ask the base: english-demos, oracle, by commas.")
    ] = None,
    translated: Annotated[
        str | None, given("--translated", "Items translated into English, a path with {lang}: a baseline.")
    ] = None,
    scoring: Annotated[
        str | None, given("--scoring", "sequence, prefix-mass, prefix-mass-released or first-token.", "sequence")
    ] = None,
    calibration: Annotated[str | None, given("--calibration", "none, contextual or batch.", "none")] = None,
    closing_quote: Annotated[bool | None, given("--closing-quote", "Score the quote behind the word.")] = None,
    apply_chat_template: Annotated[
        bool | None, given("--apply-chat-template", "Write prompts with the model's chat template.")
    ] = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    demo_seeds: Annotated[
        int | None, given("--demo-seeds", "Draw so many demonstration sets and report the spread.", "0")
    ] = None,
    output_path: Annotated[Path, typer.Option("--output-path", "-o", help="Folder for predictions and scores.")] = Path(
        "runs/eval"
    ),
    log_samples: Annotated[bool | None, given("--log-samples", "Write samples_*.jsonl.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: Annotated[str | None, given("--batch-size", "Items of a batch, or `auto`.", "auto")] = None,
    token_budget: Annotated[int | None, given("--token-budget", "Tokens of a batch.", "1024")] = None,
    prefix_cache: Annotated[
        bool | None, given("--prefix-cache/--no-prefix-cache", "Run what all prompts share once.", "prefix-cache")
    ] = None,
    num_concurrent: Annotated[int | None, given("--num-concurrent", "Of a server: requests at once.", "8")] = None,
    max_retries: Annotated[int | None, given("--max-retries", "Of a server: further attempts.", "5")] = None,
    requests_per_second: Annotated[
        float | None, given("--requests-per-second", "Of a server: at most so many.")
    ] = None,
    timeout: Annotated[float | None, given("--timeout", "Of a server: seconds to wait for an answer.", "60.0")] = None,
    seed: Seed = None,
) -> None:
    """Evaluate a model by constrained decoding; with --adapter, base and tuned in one load."""
    from glotlift.evaluation.settings import Evaluation
    from glotlift.stages.evaluate import evaluate as evaluate_model

    if evaluate_model(settings_of(Evaluation, context), output_path=output_path):
        print_run(output_path)  # the first of several processes does
        typer.echo(f"{output_path / 'scores.json'}")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run or evaluation folder, or one of prediction files.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same items.")],
    variant_a: Annotated[str | None, given("--variant-a", "base or tuned of A.", "tuned where there is one")] = None,
    variant_b: Annotated[str | None, given("--variant-b", "base or tuned of B.", "tuned where there is one")] = None,
    scoring: Annotated[str | None, given("--scoring", "By which both are decided.", "that of the files")] = None,
    calibration: Annotated[
        str | None, given("--calibration", "By which both are decided.", "that of the files")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstraps.")] = 0,
    tables: Annotated[
        Path | None, typer.Option("--tables", metavar="DIR", help="Folder for the tables as CSV, Markdown and LaTeX.")
    ] = None,
) -> None:
    """Compare two evaluations of the same items with paired statistics."""
    from glotlift.stages.compare import compare as compare_folders

    scores = compare_folders(
        a, b, variant_a=variant_a, variant_b=variant_b, scoring=scoring, calibration=calibration, seed=seed,
        tables=tables,
    )  # fmt: skip
    print_tables(scores, with_rollups=True)
    console().print(f"A: {a}; B: {b}.", markup=False, highlight=False)


def diagnose(
    context: typer.Context,
    model: Model = None,
    task: Annotated[str | None, given("--task", "Name or file.", "sentiment")] = None,
    languages: Languages = None,
    source: Source = None,
    gold: Gold = None,
    columns: Columns = None,
    gold_map: GoldMap = None,
    answers: Annotated[str | None, given("--answers", "Answer words.", "own")] = None,
    num_fewshot: NumFewshot = None,
    limit: Annotated[int | None, given("--limit", "Questions a language.", "200")] = None,
    output_path: Annotated[Path, typer.Option("--output-path", "-o", help="Folder for the table and figure.")] = Path(
        "runs/diagnose"
    ),
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Say, before tuning and without labels, whether there is room for alignment in each language."""
    from glotlift.evaluation.settings import Diagnosing
    from glotlift.stages.diagnose import diagnose as diagnose_model

    print_diagnosis(diagnose_model(settings_of(Diagnosing, context), output_path=output_path))
    typer.echo(f"figure: {output_path / 'figures' / 'diagnosis.png'}")


def report(run_path: RunPath) -> None:
    """Write the figures, the HTML page and the model card of a run."""
    from glotlift.stages.report import report as report_run

    finish(report_run(run_path))
