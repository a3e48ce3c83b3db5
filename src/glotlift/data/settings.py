"""Settings of the question pairs: the part `data` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from glotlift.fields import Codes, Columns, Count, Fraction, one_code
from glotlift.schema import Frozen


def _direction(value: Any) -> Any:
    if value in ("to-english", "from-english"):
        return value
    if not isinstance(value, str) or not value.startswith("via:"):
        raise ValueError(f"got {value!r}, expected to-english, from-english or via:<language>")
    return f"via:{one_code(value.removeprefix('via:'))}"


Direction = Annotated[str, BeforeValidator(_direction)]
"""See `glotlift.data.questions`."""


class DataSettings(Frozen):
    """The question pairs. See `glotlift.data.questions` for what `source`, `direction` and `balance` may be.

    Attributes:
        validation_fraction: share of the questions that are held out with all their translations, so that what was
            tuned can be looked at on them. `readout` and `steering` are fitted on these too: a readout leaves every
            question out in turn itself.
    """

    task: str
    source: str = "sample"
    languages: Codes
    direction: Direction = "to-english"
    limit: Count | None = None
    balance: Literal["none", "pairs", "tokens"] = "none"
    columns: Columns = {}
    validation_fraction: Fraction = 0.05
