"""The shape of every file a report reads, checked before anything is drawn.

Enters: what a JSON file of the run folder holds, or the frame of a Parquet file. Leaves: the same, or an error of one
sentence that names the file, the part of it, what was got and what was expected. Parts that a report does not read are
not looked at, and those that older versions of glotlift did not write may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from glotlift.errors import OutputError, one_of

Count = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = str
"""Of a language, label, test set, group or package."""


class _Shape(BaseModel):
    """A mapping whose known keys are checked, without turning one type into another."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Change(_Shape):
    n: Number
    a: float
    b: float
    change: float
    low: float
    high: float
    p: Share | None = None
    p_holm: Share | None = None
    languages: Number = 1
    moved: bool = True


class _Mean(_Shape):
    accuracy: Share
    low: Share | None = None
    high: Share | None = None


class _Measures(_Shape):
    accuracy: Share
    accuracy_raw: Share | None = None
    accuracy_calibrated: Share
    accuracy_contextual: Share | None = None
    auroc: Share | None = None
    ece: Share | None = None


class _MeanScore(_Mean, _Measures):
    """Means over languages, with intervals where the scores have them."""


class _Score(_Measures):
    n: Number
    low: Share
    high: Share
    predicted: dict[Name, Count]
    tied: Count = 0


class _Language(_Shape):
    base: _Score
    tuned: _Score | None = None
    change: _Change | None = None
    changes: dict[Name, _Change] = {}


class _Rollup(_Shape):
    languages: list[Name]
    base: _Mean
    tuned: _Mean | None = None
    change: _Change | None = None


class _Means(_Shape):
    base: _MeanScore
    tuned: _MeanScore | None = None


class _Consistency(_Shape):
    mean: Share
    low: Share
    high: Share
    pairs: dict[Name, dict[Name, Share | None]]


class _Task(_Shape):
    answers: str
    scoring: str
    labels: Annotated[list[Name], Field(min_length=1)]
    chance: Share
    calibration: Literal["none", "batch", "contextual"] = "none"
    sentence: str
    parts_sentence: str = ""
    languages: Annotated[dict[Name, _Language], Field(min_length=1)]
    means: _Means
    consistency: dict[Name, _Consistency | None] | None = None
    rollups: dict[Name, dict[Name, _Rollup]] = {}
    parts: dict[Name, _Change] | None = None
    groups: dict[Name, _Change] | None = None
    raw_groups: dict[Name, _Change] | None = None
    calibrated_groups: dict[Name, _Change] | None = None
    contextual_groups: dict[Name, _Change] | None = None
    auroc_groups: dict[Name, _Change] | None = None
    ece_groups: dict[Name, _Change] | None = None


class _Grid(_Shape):
    model_config = ConfigDict(extra="forbid")

    test_sets: dict[Name, list[Name]] = {}
    base: Annotated[dict[Name, dict[Name, Share]], Field(min_length=1)]
    tuned: dict[Name, dict[Name, Share]] = {}


class _Draws(_Shape):
    mean: Share
    sd: Annotated[float, Field(ge=0)]
    min: Share
    max: Share


class _DrawsOfVariant(_Shape):
    mean: _Draws
    languages: Annotated[dict[Name, _Draws], Field(min_length=1)]


class _Spread(_Shape):
    test_sets: Annotated[list[Name], Field(min_length=2)]
    base: _DrawsOfVariant
    tuned: _DrawsOfVariant | None = None


class _Warning(_Shape):
    kind: str
    text: str
    test_set: str | None = None
    languages: list[Name] = []


def _base_first(variants: list[str]) -> list[str]:
    if variants not in (["base"], ["base", "tuned"]):
        raise PydanticCustomError("variants", "Input should be ['base'] or ['base', 'tuned']")
    return variants


class _Learned(_Shape):
    objective: dict[str, float] | None = None
    control: str | None = None
    teacher: str | None = None
    center: str | None = None
    answers: str | None = None
    is_probed: bool = False
    is_used: bool = True


class _Scores(_Shape):
    model: str
    variants: Annotated[list[str], AfterValidator(_base_first)]
    seen: list[Name] | None = None
    pivot: Name | None = None
    versions: dict[Name, str] = {}
    tasks: dict[Name, _Task]
    answer_language_grid: dict[Name, _Grid] | None = None
    demonstration_spread: dict[Name, _Spread] | None = None
    training: _Learned = _Learned()
    warnings: list[_Warning] = []

    @model_validator(mode="after")
    def _is_whole(self) -> _Scores:
        if lacking := next(self._lacking(), ""):
            raise PydanticCustomError("lacking", "{part}", {"part": lacking})
        return self

    def _lacking(self) -> Iterator[str]:
        """Yield the parts that others speak of: what is there with a tuned model, and the draws of a spread."""
        for key, task in self.tasks.items() if "tuned" in self.variants else ():
            yield from (f"tasks.{key}.{part}" for part in _without_tuned(task))
        for name, spread in (self.demonstration_spread or {}).items():
            if "tuned" in self.variants and spread.tuned is None:
                yield f"demonstration_spread.{name}.tuned"
            draws = [each for each in (spread.base, spread.tuned) if each]
            for key in spread.test_sets if set(spread.test_sets) <= set(self.tasks) else ():
                for code in [code for each in draws for code in each.languages]:
                    if code not in self.tasks[key].languages:
                        yield f"tasks.{key}.languages.{code}"


def _without_tuned(task: _Task) -> Iterator[str]:
    """Yield the parts that a test set of base and tuned has and this one lacks."""
    for code, entry in task.languages.items():
        yield from (f"languages.{code}.{part}" for part in ("tuned", "change") if getattr(entry, part) is None)
    for kind, groups in task.rollups.items():
        for name, entry in groups.items():
            yield from (f"rollups.{kind}.{name}.{part}" for part in ("tuned", "change") if getattr(entry, part) is None)
    if task.means.tuned is None:
        yield "means.tuned"
    if task.groups is None:
        yield "groups"


class _ScoresFile(_Shape):
    glotlift: _Scores


class _LogEntry(_Shape):
    loss: float = 0.0
    step: Count = 0


class _Fitted(_Shape):
    is_used: bool = True


class _History(_Shape):
    log: list[_LogEntry] = []
    validation_loss: dict[Name, float] | None = None
    seen: list[Name] = []
    pivot: Name | None = None
    trainable_parameters: Count = 0
    tokens: Count = 0
    target_tokens: Count = 0
    objective: dict[str, float] | None = None
    control: str | None = None
    teacher: str | None = None
    center: str | None = None
    answers: str | None = None
    probes: list[dict[str, float]] = []
    readout: _Fitted | None = None


class _Certificate(_Shape):
    max_logit_difference: float
    tolerance: float
    argmax_agreement: Share
    dtype: str
    n_prompts: Count
    n_targets: Count = 0


class _Overlap(_Shape):
    n: Count
    items: Count
    of: Count
    pairs: Count


class _Audit(_Shape):
    pairs: Count
    languages: dict[Name, Count] = {}
    flags: dict[Name, Count] = {}
    flagged: dict[Name, list[str]] = {}
    question_only: bool | None = None
    overlap: _Overlap | None = None


class _Stage(_Shape):
    status: str = ""
    seconds: float | None = None
    finished: str = ""
    versions: dict[Name, str] = {}


class _Manifest(_Shape):
    stages: dict[Name, _Stage]


class _Recipe(_Shape):
    name: str | None = None
    model: str | None = None
    data: dict[str, Any] | None = None
    train: dict[str, Any] | None = None


Kind = Literal["scores", "history", "certificate", "audit", "manifest", "recipe"]

_KINDS: Mapping[str, tuple[type[BaseModel], str]] = {
    "scores": (_ScoresFile, "the scores that `glotlift eval` or `run` writes"),
    "history": (_History, "the history of a training"),
    "certificate": (_Certificate, "the certificate of a merge"),
    "audit": (_Audit, "the audit of question pairs"),
    "manifest": (_Manifest, "the manifest of a run"),
    "recipe": (_Recipe, "a recipe"),
}


def checked(content: Any, kind: Kind, where: str | Path) -> dict[str, Any]:
    """Return what a file holds, unchanged.

    Args:
        content: of the file.
        kind: which file of a run folder it is.
        where: its name, for the error.

    Raises:
        OutputError: it is no mapping, a part is missing or of another type, or a number cannot be (not finite, an
            accuracy above 1).
    """
    shape, expected = _KINDS[kind]
    if not isinstance(content, dict):
        raise OutputError(f"{where}: got {_got(content)}, expected {expected}")
    try:
        shape.model_validate(content)
    except ValidationError as fault:
        raise OutputError(_sentence(fault, str(where), expected)) from None
    return content


def _sentence(fault: ValidationError, where: str, expected: str) -> str:
    first, *others = fault.errors(include_url=False)
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more fault{'s' * (len(others) > 1)})" if others else ""
    if first["type"] == "missing":
        return f"{where}: got no `{place}`, expected {expected}{more}"
    if first["type"] == "lacking":
        return f"{where}: got no `{place}.{first['msg']}`, expected {expected}{more}"
    wanted = first["msg"].removeprefix("Input should ").removeprefix("be ")
    return f"{where}, `{place}`: got {_got(first['input'])}, expected {wanted}{more}"


def _got(value: Any) -> str:
    """Return a value for a message: lists and mappings by their kind, others shortened."""
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def checked_frame(
    frame: pd.DataFrame,
    names: tuple[str, ...],
    numbers: tuple[str, ...],
    where: str | Path,
    optional: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return these columns of a frame, and the rows that have all their names and numbers that are finite.

    Args:
        frame: of a Parquet file.
        names: columns of texts.
        numbers: columns of numbers.
        where: name of the file, for the error.
        optional: columns of numbers that a row may lack; they come as floats, NaN where there is none.

    Raises:
        OutputError: a column is missing or holds something else.
    """
    wanted = [*names, *numbers, *optional]
    if lacking := [name for name in wanted if name not in frame]:
        raise OutputError(f"{where}: got no column {one_of(lacking)}, expected {', '.join(wanted)}")
    if frame.empty:  # its columns have no types
        return frame.loc[:, wanted]
    for name in (*numbers, *optional):
        if not pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name]):
            raise OutputError(f"{where}, column {name}: got {frame[name].dtype}, expected numbers")
    for name in names:
        if wrong := [value for value in frame[name].dropna().unique() if not isinstance(value, str)]:
            raise OutputError(f"{where}, column {name}: got {_got(wrong[0])}, expected texts")
    finite = frame[list(numbers)].abs().lt(float("inf")).all(axis=1)
    kept = frame.loc[finite & frame[list(names)].notna().all(axis=1), wanted]
    return kept.astype(dict.fromkeys(optional, float))
