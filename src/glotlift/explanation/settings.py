"""Settings of explanation: the part `explain` of a recipe, and what `glotlift explain` asks for."""

from __future__ import annotations

from glotlift.fields import Codes, Count, Location, Natural, default_of
from glotlift.languages import resolve
from glotlift.models.settings import ModelSettings
from glotlift.schema import Frozen


class ExplainSettings(Frozen):
    """Logit lens and geometry, on the items of one test set of `eval`."""

    task: str | None = None
    languages: Codes | None = None
    limit: Count = 100


class Explanation(ModelSettings):
    """What `glotlift explain` looks at.

    Attributes:
        task: name of a bundled task, or path of a task file.
        languages: codes, or `all` for those the task has prompts in.
        source: where the items are, see `glotlift.data.read`.
        answers: answer words of the demonstrations.
        limit: items a language.
        seed: of the permutations.
    """

    task: Location = "sentiment"
    languages: Codes = resolve("all")
    source: Location | None = None
    answers: str = "own"
    limit: Count | None = default_of(ExplainSettings, "limit")
    seed: Natural = 0
