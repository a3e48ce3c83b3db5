"""The model card of a run and of its `adapter/` and `merged/`, README.md in each, as the Hugging Face hub reads it.

Enters: the files of a run. Leaves: Markdown with YAML front matter. Every text from a file is escaped.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from glotlift.names import published_name
from glotlift.reporting.across import grids, members, spreads
from glotlift.reporting.figures import Figure, slug
from glotlift.reporting.names import guarantee, listing, ordered
from glotlift.reporting.opening import learned, opening, translated
from glotlift.reporting.read import RunFiles
from glotlift.reporting.table import beside, build_table, markdown_rows

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|!~])")


LICENCES = {
    re.compile(r"google/gemma-(?:[27]b|1\.1|2|3n?)(?:-.*)?"): ("gemma", "https://ai.google.dev/gemma/terms"),
}
"""Pattern of hub ids -> licence of their weights as the hub names it, and where its terms stand; later Gemmas have
another one."""


def model_card(run: RunFiles, figures: Sequence[Figure], folder: str = "") -> str:
    """Return the model card of a run, or of a folder in it that is published by itself.

    Args:
        run: the files of a run.
        figures: the figures that stand in `figures/`; none are shown in a folder's own card.
        folder: `adapter` or `merged` for the card in it; "" for that of the run.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown: `finalize` escapes instead
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scores = {"glotlift": run.scores}
    elsewhere = members(run.scores)
    across = [
        {
            "sentence": each.sentence,
            "figure": next((figure for figure in figures if figure.name == f"{kind}-{slug(each.name)}"), None),
        }
        for kind, found in (("grid", grids(run.scores)), ("spread", spreads(run.scores)))
        for each in found
    ]
    tasks = [
        {
            "key": key,
            "sentence": task.get("sentence", ""),
            "parts_sentence": task.get("parts_sentence", ""),
            "table": Markup(_table(markdown_rows(build_table(scores, key)))),
            "figure": next((figure for figure in figures if figure.section == "results" and figure.task == key), None),
            "collapsed": _collapsed(scores, key),
        }
        for key, task in run.scores.get("tasks", {}).items()
        if key not in elsewhere
    ]
    return environment.get_template("card.md.jinja").render(
        front_matter=Markup(front_matter(run, folder)),
        folder=folder,
        licence=licence(run.model),
        run=run,
        opening=opening(run),
        base_model=base_model(run.model),
        seen=listing(run.seen),
        translated=translated(run),
        learned=learned(run),
        data=run.recipe.get("data") or {},
        settings=_settings(run),
        command=_command(run, "." if folder else "adapter"),
        is_full=run.is_full,
        guarantee=guarantee(run.audit),
        versions=", ".join(f"{package} {version}" for package, version in run.versions.items()),
        tasks=tasks,
        across=across,
        measures=_measures(run.scores),
    )


def _measures(scores: dict[str, Any]) -> set[str]:
    """Return the measures that any table has beside accuracy."""
    tasks = scores.get("tasks", {}).values()
    return {measure for task in tasks for measure in beside(task, scores["variants"])}


def front_matter(run: RunFiles, folder: str = "") -> str:
    """Return the YAML that the hub reads; see `model_card` for `folder`."""
    codes = {code for task in run.scores.get("tasks", {}).values() for code in task["languages"]}
    content: dict[str, Any] = {}
    if name := base_model(run.model):
        content["base_model"] = name
    if terms := licence(run.model):
        content["license"] = terms[0]
    if run.is_tuned:
        library = "transformers" if run.is_full or folder == "merged" else "peft"
        content["library_name"] = "glotlift" if run.is_closed_form else library
    content["pipeline_tag"] = "text-generation"
    if languages := ordered([*codes, *run.seen]):
        content["language"] = languages
    learned = ["question-alignment" if name == "translation" else name for name in run.objective]
    is_adapter = not (run.is_closed_form or run.is_full or folder == "merged")
    tuned = [*learned, *(["lora"] if is_adapter else [])]
    content["tags"] = ["glotlift", "multilingual", "cross-lingual-transfer", *(tuned if run.is_tuned else [])]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def base_model(name: str) -> str:
    """Return the hub id of a model name, an empty string where it is not one (a local folder or file)."""
    name = published_name(name)
    return name if _HUB_ID.fullmatch(name) and not name.endswith(".gguf") and not Path(name).exists() else ""


def licence(model: str) -> tuple[str, str] | None:
    """Return the licence of a base model and where its terms stand, None where glotlift does not know it."""
    name = base_model(model)
    return next((terms for pattern, terms in LICENCES.items() if pattern.fullmatch(name)), None)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line and inside a table cell too."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _settings(run: RunFiles) -> str:
    """Return what a run says of how it learned; of tuning only where weights were tuned."""
    train = run.recipe.get("train") or {}
    shares = run.history.get("objective") or {}
    objective = next(iter(shares)) if len(shares) == 1 else ", ".join(f"{shares[name]:g} {name}" for name in shares)
    told = {"preset": train.get("preset"), "objective": objective, "teacher": run.teacher, "answers": run.answers}
    named: tuple[str, ...] = ()
    if not run.is_closed_form:
        of_lora = () if run.is_full else ("rank", "alpha", "rslora", "dora", "target_modules")
        named = ("method", *of_lora, "prompt_format", "learning_rate", "epochs", "batch_size")
    told |= {name: train[name] for name in named if name in train}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items() if value not in (None, ""))


def _command(run: RunFiles, adapter: str) -> Markup:
    """Return the command that evaluates a readout or steering on the task that it is of."""
    data = run.recipe.get("data") or {}
    words = ["glotlift", "eval", "--model", base_model(run.model) or run.model, "--adapter", adapter]
    for flag, value in (("--tasks", data.get("task")), ("--answers", run.answers)):
        words += [flag, str(value)] if value else []
    return Markup(" ".join(shlex.join(words).split()))


def _table(rows: list[list[str]]) -> str:
    head, *body = [" | ".join(map(escape_markdown, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in (head, " | ".join(["---"] * len(rows[0])), *body))


def _collapsed(scores: dict[str, Any], key: str) -> str:
    rows = [row for group in build_table(scores, key).groups.values() for row in group]
    last = scores["glotlift"]["variants"][-1]
    return ", ".join(
        f"{row.language.name} ({row.collapsed[last]})" for row in rows if row.language and last in row.collapsed
    )
