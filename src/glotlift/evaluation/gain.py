"""What a gain is made of, in numbers and in words.

Enters: which items base and tuned have right, raw, batch-calibrated, and with arbitrary answer words. Leaves: the parts

    bias            what batch calibration takes off the gain: a shift in which label the model prefers
    format          the calibrated gain with arbitrary answer words ("ox"/"horse"), which the words' meaning cannot
                    explain: reading the answer format off the demonstrations (`irrelevant` in arXiv 2405.13816)
    understanding   the rest of the calibrated gain

They add up to the raw gain. Each has an interval clustered by source item. A sentence calls nothing a change whose
interval crosses zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from glotlift.errors import DataError
from glotlift.evaluation.compare import Change, compare_group

PARTS = ("gain", "bias", "format", "understanding")

_ENDS = {"gain": (-1.0, 1.0), "bias": (-2.0, 2.0), "format": (-1.0, 1.0), "understanding": (-2.0, 2.0)}
"""The least and the most that an item can add to a part; two are differences of two changes."""


def gain_parts(
    raw: Mapping[str, pd.DataFrame],
    calibrated: Mapping[str, pd.DataFrame],
    arbitrary: Mapping[str, pd.DataFrame],
    *,
    seed: int = 0,
) -> dict[str, Change]:
    """Return the raw gain and its parts, mean over languages, as accuracy (0 to 1).

    Args:
        raw: language -> which items base (`a`) and tuned (`b`) have right, indexed by item.
        calibrated: the same after batch calibration.
        arbitrary: the same after batch calibration, with arbitrary answer words.
        seed: of the bootstrap.

    Raises:
        DataError: the control does not hold the same items.
    """
    tables: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in PARTS}
    for code in raw:
        if set(arbitrary[code].index) != set(raw[code].index):
            raise DataError(f"{code}: the items with arbitrary answers are other ones, expected the same items")
        gains = [frame[code].loc[raw[code].index].astype(float) for frame in (raw, calibrated, arbitrary)]
        whole, fair, control = (each["b"] - each["a"] for each in gains)
        values = {"gain": whole, "bias": whole - fair, "format": control, "understanding": fair - control}
        for name, value in values.items():
            tables[name][code] = pd.DataFrame({"a": 0.0, "b": value})
    return {name: compare_group(name, table, seed=seed, ends=_ENDS[name]) for name, table in tables.items()}


def parts_sentence(key: str, parts: Mapping[str, Change]) -> str:
    """Return what the gain is made of, in one sentence."""
    gain = parts["gain"]
    listed = [f"{name} {_points(parts[name])}" for name in PARTS[1:]]
    clear = [name for name in PARTS[1:] if parts[name].is_clear]
    verdict = (
        f"only {' and '.join(clear)} {'is' if len(clear) == 1 else 'are'} clear of zero"
        if clear
        else ("none of them is clear of zero")
    )
    if len(clear) == 3:
        verdict = "all three are clear of zero"
    return (
        f"Of the change of {_points(gain, ' points')} in raw accuracy on {key}, "
        f"mean over {n_languages(gain.languages)}, {listed[0]} (which label the model prefers), "
        f"{listed[1]} (also there with arbitrary answer words) and {listed[2]} (the rest): {verdict}."
    )


def _points(change: Change, unit: str = "") -> str:
    interval = f"{percent_points(change.low)}, {percent_points(change.high)}" if change.moved else "no item moved"
    return f"{percent_points(change.change)}{unit} [{interval}]"


def percent_points(value: float) -> str:
    """Return a share as signed percentage points, `+0.0` for what rounds to nothing."""
    return f"{value * 100 + 0:+.1f}".replace("-0.0", "+0.0")


def n_languages(number: int) -> str:
    """Return `1 language`, `2 languages` and so on."""
    return f"{number} language{'s' * (number != 1)}"


def change_sentence(
    key: str, groups: Mapping[str, Change], calibrated: Mapping[str, Change], means: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return what tuning changed, in words; nothing is called a change whose interval crosses zero."""
    parts = [
        f"On {key}, {_change_words('raw accuracy', groups['all'])}, mean over {n_languages(groups['all'].languages)}."
    ]
    if "unseen" in groups:
        parts.append(
            f"On the {n_languages(groups['unseen'].languages)} never tuned on, {_change_words('it', groups['unseen'])}."
        )
    fair = calibrated["all"]
    parts.append(
        f"With the preference for a label taken out (batch calibration), {_change_words('accuracy', fair)}; "
        f"AUROC goes from {_auroc(means['base'])} to {_auroc(means['tuned'])}."
    )
    raw = groups["all"]
    if raw.is_clear and not fair.is_clear:
        parts.append(
            "So what changed is above all which label the model prefers, not how well it tells the items apart."
        )
    elif raw.is_clear and fair.is_clear and raw.change * fair.change > 0:
        direction = "better" if fair.change > 0 else "worse"
        parts.append(f"So the tuned model tells the items apart {direction}, beyond a shift of preference.")
    elif fair.is_clear:
        direction = "better" if fair.change > 0 else "worse"
        parts.append(f"So the tuned model tells the items apart {direction}, which raw accuracy alone does not show.")
    return " ".join(parts)


def _change_words(what: str, change: Change) -> str:
    if not change.moved:
        return f"{what} stays at {change.b:.1%} (no item moved)"
    interval = f"95 % interval {change.low * 100:+.1f} to {change.high * 100:+.1f}"
    if not change.is_clear:
        return f"{what} does not clearly change ({change.a:.1%} to {change.b:.1%}, {interval} points)"
    verb = "rises" if change.change > 0 else "falls"
    return f"{what} {verb} from {change.a:.1%} to {change.b:.1%} ({change.change * 100:+.1f} points, {interval})"


def _auroc(means: Mapping[str, Any]) -> str:
    return "undefined" if means["auroc"] is None else f"{means['auroc']:.3f}"
