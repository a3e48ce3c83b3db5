"""The command line: parse, call a stage function, print.

Exit codes: 0 done, 1 a run that failed, 2 the input is at fault (one clear sentence, no traceback), 130 interrupted.
Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glotlift.errors import GlotliftError
from glotlift.processes import prints

app = typer.Typer(
    name="glotlift",
    help="Lift an LLM into languages it was never labelled in: align on translated questions, verify, explain, ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Question pairs: build, audit and export.", no_args_is_help=True)
tasks_app = typer.Typer(help="Tasks: list, show, check.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tasks_app, name="tasks")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
OutputPath = Annotated[Path | None, typer.Option("--output-path", "-o", help="Run folder; runs/<name> by default.")]
Model = Annotated[str, typer.Option("--model", help="Hub id, folder, .gguf file, or `demo`.")]
Adapter = Annotated[str | None, typer.Option("--adapter", help="A peft adapter to compare with the base.")]
Languages = Annotated[str, typer.Option("--languages", help="Codes such as `de,sw`, or `all`.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="`sample`, a folder in the paper's layout, a path with {lang}, hub:NAME; by default the task file's own.",
    ),
]
Answers = Annotated[
    str, typer.Option("--answers", help="own, english, arbitrary, in:CODE or sets of the task file, by commas.")
]
NumFewshot = Annotated[int | None, typer.Option("--num-fewshot", min=0, help="Demonstrations; the file's by default.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Items a language.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting of the recipe: train.learning_rate=1e-4.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of all draws.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")]

DEMO_RECIPE = Path(__file__).parent / "tasks" / "sample" / "demo.yaml"


@app.command()
def demo(output_path: OutputPath = None) -> None:
    """Do everything on a real small model and the bundled sample: a few minutes on a CPU."""
    from glotlift.pipeline import run as run_recipe

    _finish(run_recipe(DEMO_RECIPE, output_path))


@app.command()
def run(recipe: RecipePath, output_path: OutputPath = None, settings: Settings = None) -> None:
    """Do every stage of a recipe into a run folder; started again, go on where it stopped."""
    from glotlift.pipeline import run as run_recipe

    _finish(run_recipe(recipe, output_path, settings=settings or ()))


@data_app.command("build")
def data_build(recipe: RecipePath, output_path: OutputPath = None) -> None:
    """Build the question pairs of a recipe and audit them."""
    from glotlift.pipeline import build_data

    typer.echo(build_data(recipe, output_path))


@data_app.command("audit")
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


@data_app.command("export")
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


@app.command()
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
    from glotlift.pipeline import inspect_training
    from glotlift.pipeline import train as train_recipe

    if not inspect and not dry_run:
        adapter = train_recipe(recipe, output_path, settings=settings or ())
        if prints():
            typer.echo(adapter)
        return
    found = inspect_training(recipe, settings=settings or ())
    if inspect:
        from glotlift.reporting.terminal import inspection

        _print_paragraphs(_console(), inspection(found["languages"], found["audit"]))
    typer.echo(found["estimate"].sentence())


@app.command()
def merge(run_path: RunPath) -> None:
    """Merge the adapter of a run into a plain model folder."""
    from glotlift.pipeline import merge as merge_run

    typer.echo(merge_run(run_path))


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Option("--model", help="Hub id, folder, .gguf file, `demo`, or openai:URL#NAME.")
    ] = "demo",
    adapter: Adapter = None,
    tasks: Annotated[str, typer.Option("--tasks", help="Names or files, separated by commas.")] = "sentiment",
    languages: Languages = "all",
    data: Source = None,
    answers: Answers = "own",
    answer_languages: Annotated[
        str, typer.Option("--answer-languages", help="Grid of prompt language x answer language: codes or `all`.")
    ] = "",
    scoring: Annotated[str, typer.Option("--scoring", help="sequence, prefix-mass or first-token.")] = "sequence",
    calibration: Annotated[str, typer.Option("--calibration", help="none, contextual or batch.")] = "none",
    closing_quote: Annotated[bool, typer.Option("--closing-quote", help="Score the quote behind the word.")] = False,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Write prompts with the model's chat template.")
    ] = False,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    demo_seeds: Annotated[
        int, typer.Option("--demo-seeds", min=0, help="Draw so many demonstration sets and report the spread.")
    ] = 0,
    output_path: Annotated[Path, typer.Option("--output-path", "-o", help="Folder for predictions and scores.")] = Path(
        "runs/eval"
    ),
    log_samples: Annotated[bool, typer.Option("--log-samples", help="Write samples_*.jsonl.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: Annotated[str, typer.Option("--batch-size", help="Items of a batch, or `auto`.")] = "auto",
    token_budget: Annotated[int, typer.Option("--token-budget", min=1, help="Tokens of a batch.")] = 1024,
    prefix_cache: Annotated[bool, typer.Option(help="Run what all prompts share once.")] = True,
    num_concurrent: Annotated[int, typer.Option("--num-concurrent", min=1, help="Of a server: requests at once.")] = 8,
    max_retries: Annotated[int, typer.Option("--max-retries", min=0, help="Of a server: further attempts.")] = 5,
    requests_per_second: Annotated[
        float | None, typer.Option("--requests-per-second", help="Of a server: at most so many.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Of a server: seconds to wait for an answer.")] = 60.0,
    seed: Seed = 0,
) -> None:
    """Evaluate a model by constrained decoding; with --adapter, base and tuned in one load."""
    from glotlift.errors import UserError, one_of
    from glotlift.pipeline import evaluate as evaluate_model

    for flag, value, known in (
        ("--scoring", scoring, ("sequence", "prefix-mass", "first-token")),
        ("--calibration", calibration, ("none", "contextual", "batch")),
    ):
        if value not in known:
            raise UserError(f"{flag}: got {value!r}, expected {one_of(known)}")
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise UserError(f"--batch-size: got {batch_size!r}, expected `auto` or a number of items")
    scores = evaluate_model(
        model=model, adapter=adapter, tasks=_listed(tasks), languages=languages, source=data,
        answers=_listed(answers), answer_languages=answer_languages, scoring=scoring, calibration=calibration,
        closing_quote=closing_quote, apply_chat_template=apply_chat_template, limit=limit, num_fewshot=num_fewshot,
        demo_seeds=demo_seeds, output_path=output_path, log_samples=log_samples, dtype=dtype, device=device,
        batch_size=batch_size if batch_size == "auto" else int(batch_size), token_budget=token_budget,
        prefix_cache=prefix_cache, num_concurrent=num_concurrent, max_retries=max_retries,
        requests_per_second=requests_per_second, timeout=timeout, seed=seed,
    )  # fmt: skip
    if scores:  # the first of several processes prints
        _print_tables(scores)
        typer.echo(f"{output_path / 'scores.json'}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A folder of prediction files.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same items.")],
    seed: Seed = 0,
) -> None:
    """Compare two evaluations of the same items with paired statistics."""
    from glotlift.pipeline import compare as compare_folders
    from glotlift.reporting.terminal import change_table

    console = _console()
    console.print(change_table(compare_folders(a, b, seed=seed)))
    legend = "change in points, in colour where clear of zero; groups: means over as many languages as in brackets"
    console.print(f"A: {a}; B: {b}; {legend}.", markup=False, highlight=False)


@app.command()
def explain(
    model: Model = "demo",
    adapter: Adapter = None,
    task: Annotated[str, typer.Option("--task", help="Name or file.")] = "sentiment",
    languages: Languages = "all",
    data: Source = None,
    answers: Annotated[str, typer.Option("--answers", help="Answer words of the demonstrations.")] = "own",
    limit: Limit = 100,
    output_path: Annotated[Path, typer.Option("--output-path", "-o", help="Folder for lens/ and geometry/.")] = Path(
        "runs/explain"
    ),
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Look inside a model: logit lens and cross-lingual geometry."""
    from glotlift.pipeline import explain as explain_model

    folder = explain_model(
        model=model, adapter=adapter, task=task, languages=languages, source=data, answers=answers, limit=limit,
        output_path=output_path, dtype=dtype, device=device, seed=seed,
    )  # fmt: skip
    typer.echo(folder)


@app.command()
def report(run_path: RunPath) -> None:
    """Write the figures, the HTML page and the model card of a run."""
    from glotlift.pipeline import report as report_run

    _finish(report_run(run_path))


@tasks_app.command("list")
def tasks_list() -> None:
    """List the bundled tasks."""
    from glotlift.tasks.load import builtin_tasks, load_task

    for name in builtin_tasks():
        task = load_task(name)
        typer.echo(f"{name:12} {len(task.languages)} languages, {' / '.join(task.labels)}: {task.description}")


@tasks_app.command("show")
def tasks_show(
    task: Annotated[str, typer.Argument(help="Name or file.")],
    languages: Languages = "en",
    answers: Annotated[str, typer.Option("--answers", help="Answer set.")] = "own",
) -> None:
    """Print the prompt of a task in some languages."""
    from glotlift.languages import resolve
    from glotlift.tasks.load import load_task

    definition = load_task(task)
    blank = {field: f"<{field}>" for field in definition.fields}
    for code in resolve(languages):
        typer.echo(f"--- {definition.name}, {code}\n{definition.prompt(code, answers, blank)}\n")


@tasks_app.command("check")
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


@tasks_app.command("export")
def tasks_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the task group goes.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Names or files, separated by commas.")] = "sentiment",
    format: Annotated[str, typer.Option("--format", help="lm-eval.")] = "lm-eval",
    languages: Languages = "all",
    data: Source = None,
    answers: Annotated[str, typer.Option("--answers", help="Answer set.")] = "own",
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
) -> None:
    """Write tasks as a group that lm-evaluation-harness runs as it is."""
    from glotlift.errors import UserError
    from glotlift.pipeline import export_tasks

    if format != "lm-eval":
        raise UserError(f"--format: got {format!r}, expected lm-eval")
    for group in export_tasks(
        _listed(tasks), folder, languages=languages, source=data, answers=answers, limit=limit, num_fewshot=num_fewshot
    ):
        typer.echo(f"lm_eval --include_path {folder} --tasks {group}")


@app.command()
def languages() -> None:
    """List the languages glotlift knows."""
    from glotlift.languages import LANGUAGES

    for entry in LANGUAGES.values():
        typer.echo(
            f"{entry.code}  {entry.flores}  {entry.name:10} {entry.endonym:14} {entry.family}, class {entry.resource}"
        )


@app.command()
def models(name: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or `demo`.")] = "demo") -> None:
    """Show what a model name stands for, converting a GGUF file when first asked."""
    from glotlift.models.forward import decoder_layers
    from glotlift.models.load import load_model

    loaded = load_model(name)
    config = loaded.model.config
    parameters = sum(p.numel() for p in loaded.model.parameters())
    typer.echo(f"{name}: {type(loaded.model).__name__}, {parameters / 1e6:.0f} M parameters, {loaded.model.dtype}")
    typer.echo(f"{len(decoder_layers(loaded.model))} layers, width {config.hidden_size}, {config.vocab_size:,} tokens")
    typer.echo(f"window {config.max_position_embeddings:,} tokens, fingerprint {loaded.fingerprint}")


def _read_json(file: Path) -> Any:
    from glotlift.errors import DataError

    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise DataError(
            f"{file}: cannot be read as JSON ({fault}), expected what `glotlift data build` wrote"
        ) from None


def _finish(folder: Path) -> None:
    if not prints():
        return
    _print_tables(json.loads((folder / "scores.json").read_text(encoding="utf-8")))
    typer.echo(f"report: {folder / 'report.html'}")


def _print_tables(scores: dict) -> None:
    from glotlift.reporting.across import grids, spreads
    from glotlift.reporting.terminal import grid_table, result_table, spread_table

    console = _console()
    extras = scores.get("glotlift", {})
    for key, entry in extras.get("tasks", {}).items():
        found = [result_table(scores, key), entry["sentence"], entry.get("parts_sentence", "")]
        _print_paragraphs(console, found)
    for grid in grids(extras):
        _print_paragraphs(console, [grid_table(grid), grid.sentence])
    for spread in spreads(extras):
        _print_paragraphs(console, [spread_table(spread), spread.sentence])


def _print_paragraphs(console: Any, paragraphs: list[Any]) -> None:
    for paragraph in filter(None, paragraphs):
        console.print(paragraph, markup=False, highlight=False)
    console.print()


def _console() -> Any:
    """Return a console that does not fold tables where there is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def _listed(names: str) -> list[str]:
    return [name for name in (part.strip() for part in names.split(",")) if name]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits the process."""
    _quiet()
    try:
        app(arguments)
    except GlotliftError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(_INTERRUPTED, 130)
    except SystemExit as end:
        if end.code == 130:  # typer has seen the interrupt first, and says nothing
            _fail(_INTERRUPTED, 130)
        raise
    except OSError as error:
        if error.errno not in _WRITING_FAULTS:
            raise
        _fail(f"{error.filename or 'output'}: cannot be written ({error.strerror})", 2)


_INTERRUPTED = "interrupted; finished work is kept, start the same command again to go on"
_WRITING_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def _quiet() -> None:
    """Send our own log lines to stderr, and keep libraries from printing their own progress."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("glotlift")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if prints() else logging.ERROR)
    logger.propagate = False
    if not sys.warnoptions:
        import warnings

        warnings.filterwarnings("ignore", category=FutureWarning)
