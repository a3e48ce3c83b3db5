"""The flags that commands share, and the way from flags to the settings that functions take.

Enters: what stands on the command line. Leaves: a settings object. A flag that is not given has no value here: what it
then means is written once, in the settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from glotlift.errors import UserError


def given(flag: str, help: str, default: str | None = None, *, alias: tuple[str, ...] = ()) -> Any:
    """Return an option whose value is None where it is not given; `default` is what `--help` says it then means."""
    return typer.Option(flag, *alias, help=help, show_default=default or False)


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
OutputPath = Annotated[Path | None, typer.Option("--output-path", "-o", help="Run folder; runs/<name> by default.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting of the recipe: train.learning_rate=1e-4.")
]
Model = Annotated[str | None, given("--model", "Hub id, folder, .gguf file, or `demo`.", "demo")]
EvalModel = Annotated[str | None, given("--model", "Hub id, folder, .gguf file, `demo`, or openai:URL#NAME.", "demo")]
Adapter = Annotated[
    str | None,
    given(
        "--adapter",
        "What to compare with the base: a peft adapter, a whole tuned model, a readout or steering.",
        alias=("--steering",),
    ),
]
Languages = Annotated[str | None, given("--languages", "Codes such as `de,sw`, or `all`.", "all")]
Source = Annotated[
    str | None,
    given(
        "--data", "`sample`, a folder in the paper's layout, a path with {lang}, hub:NAME; else the task file's own."
    ),
]
Gold = Annotated[str | None, given("--gold", "The column with the right label.")]
Columns = Annotated[str | None, given("--columns", "Columns of fields: text=review, also question=question_{lang}.")]
GoldMap = Annotated[str | None, given("--gold-map", "What gold values mean: 0=negative,1=positive.")]
Answers = Annotated[
    str | None, given("--answers", "own, english, arbitrary, in:CODE or sets of the task file, by commas.", "own")
]
NumFewshot = Annotated[int | None, given("--num-fewshot", "Demonstrations; the file's by default.")]
Limit = Annotated[int | None, given("--limit", "Items a language.")]
Seed = Annotated[int | None, given("--seed", "Of all draws.", "0")]
Dtype = Annotated[str | None, given("--dtype", "auto, float32, bfloat16 or float16.", "auto")]
Device = Annotated[str | None, given("--device", "auto, cpu, cuda, ...", "auto")]

M = TypeVar("M")


def settings_of(model: type[M], context: typer.Context) -> M:
    """Return the settings that the flags of a command give.

    Args:
        model: of the settings; its fields have the names of the command's parameters.
        context: of the command.

    Raises:
        UserError: a value is at fault; the sentence names the flag.
    """
    from glotlift.schema import validate

    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    fields: Any = model
    given = {name: value for name, value in context.params.items() if name in fields.model_fields and value is not None}
    return validate(fields, given, "", UserError, place=lambda name: flags.get(name.split(".")[0], name))


def listed(names: str) -> list[str]:
    """Return names that a flag holds, separated by commas."""
    return [name for name in (part.strip() for part in names.split(",")) if name]
