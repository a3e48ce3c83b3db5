"""Settings of explanation: the part `explain` of a recipe, and what `glotlift explain` asks for.

A kind of explanation is an entry in `KINDS`: a name, and the module of this wing whose `check(subject, kinds)` refuses
what it cannot do before anything runs, and whose `explain(subject, kinds)` writes it, into the folder of its name.
Kinds of one module are handed over together and share a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator

from glotlift.errors import LanguageError, one_of
from glotlift.fields import Codes, Count, Location, Names, Natural, default_of
from glotlift.languages import resolve
from glotlift.models.settings import ModelSettings
from glotlift.schema import Frozen

KINDS = {
    "lens": "collect",
    "geometry": "collect",
    "patching": "causes",
    "switch-off": "causes",
    "item-link": "collect",
}
"""Kind of explanation -> module of `glotlift.explanation` that writes it."""

Pooling = Literal["question", "position-weighted", "whole"]
"""Which tokens of a prompt the geometry's state of an item is the mean of, see `glotlift.explanation.pooling`."""

StatesType = Literal["float32", "float16"]
"""In which type the geometry's states are written; `float16` takes half the disk."""

CONTROL = "random_adapter"
"""Folder, in that of an explanation, of the same explanation with a random adapter."""


def folder_of(kind: str) -> str:
    """Return the folder of a run that a kind is written to."""
    return kind.replace("-", "_")


PATCHED_FROM = "en"
"""Language whose states are put into the others'."""


def check_languages(kinds: Sequence[str], languages: Iterable[str]) -> None:
    """Refuse to patch without English or without another language; needs no model.

    Raises:
        LanguageError: there is no English to patch with, or nothing beside it.
    """
    codes = list(languages)
    if "patching" in kinds and (PATCHED_FROM not in codes or len(codes) < 2):
        raise LanguageError(
            f"patching: got the languages {' '.join(codes)}, expected English, whose states it puts into the others, "
            "and at least one other"
        )


BESIDE_LENS = {"components": "components", "paper_lens": "paper", "tuned_lens": "tuned_lens"}
"""Folder of a run, beside `lens/`, that a setting of the lens has written -> that setting."""


def _kinds(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in KINDS]:
        raise ValueError(f"got {unknown[0]!r}, expected {one_of(KINDS)}")
    if not names:
        raise ValueError(f"got nothing to explain, expected {one_of(KINDS)}")
    if "item-link" in names and "geometry" not in names:
        raise ValueError("got item-link without geometry, expected both: it compares the geometry's states")
    return tuple(kind for kind in KINDS if kind in names)


Kinds = Annotated[Names, AfterValidator(_kinds)]
"""Kinds of explanation; a text holds them separated by commas."""


class LensSettings(Frozen):
    """What the lens reads beside the plain reading of every layer.

    Attributes:
        sequences: also the probability of whole answer words on every layer.
        components: also what attention and MLP of every block add.
        paper: also the quantities of arXiv 2405.13816.
        tuned_lens: folder of a tuned lens that reads beside the plain one.
    """

    sequences: bool = False
    components: bool = False
    paper: bool = False
    tuned_lens: Location | None = None


class ExplainSettings(LensSettings):
    """What is looked into, on the items of one test set of `eval`; attributes as `Explanation`."""

    task: str | None = None
    languages: Codes | None = None
    limit: Count = 100
    what: Kinds = ("lens", "geometry")
    pooling: Pooling = "question"
    states_dtype: StatesType = "float32"
    random_adapter: bool = False


def beside_lens(settings: ExplainSettings) -> list[str]:
    """Return the folders of `BESIDE_LENS` that are asked for."""
    return [folder for folder, name in BESIDE_LENS.items() if "lens" in settings.what and getattr(settings, name)]


class Explanation(ModelSettings, LensSettings):
    """What `glotlift explain` looks at.

    Attributes:
        task: name of a bundled task, or path of a task file.
        languages: codes, or `all` for those the task has prompts in.
        source: where the items are, see `glotlift.data.read`.
        answers: answer words of the demonstrations.
        limit: items a language.
        what: kinds of explanation.
        pooling: tokens that the geometry's state of an item is the mean of.
        states_dtype: type in which these states are written.
        random_adapter: also look into a random adapter of the same norm, the control of all that an adapter changes.
        seed: of the permutations, and of the random adapter.
    """

    task: Location = "sentiment"
    languages: Codes = resolve("all")
    source: Location | None = None
    answers: str = "own"
    limit: Count | None = default_of(ExplainSettings, "limit")
    what: Kinds = default_of(ExplainSettings, "what")
    pooling: Pooling = default_of(ExplainSettings, "pooling")
    states_dtype: StatesType = default_of(ExplainSettings, "states_dtype")
    random_adapter: bool = default_of(ExplainSettings, "random_adapter")
    seed: Natural = 0


class TextLens(ModelSettings):
    """What `glotlift explain lens` looks at.

    Attributes:
        text: the prompt.
        language: of the prompt, which an adapter that steers goes by; None for no steering.
        tokens: last tokens of the prompt that are shown.
        tuned_lens: folder of a tuned lens that reads instead of the plain one.
    """

    text: str
    language: str | None = None
    tokens: Count = 5
    tuned_lens: Location | None = None


class LensTraining(ModelSettings):
    """What `glotlift explain tuned-lens` trains on.

    Attributes:
        texts: file of unlabelled text, one a line; or `sample`, the bundled questions in all languages.
        steps: of the optimizer.
        seed: of all draws.
    """

    texts: Location = "sample"
    steps: Count = 80
    seed: Natural = 0
