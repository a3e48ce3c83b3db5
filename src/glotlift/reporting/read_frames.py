"""What an explanation left in a folder, as frames for the charts.

Enters: the folder. Leaves: task key -> a tidy frame. What is not there is empty; a file that cannot be read, or lacks a
column, is an error that names it.

A folder may hold files of an earlier explanation beside those of the last one. Base, tuned and random adapter are shown
together, so what is of other items or of another model than the base is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from glotlift.errors import DataError, OutputError
from glotlift.reporting.shapes import checked_frame
from glotlift.runs import read_parquet

MEASURES = ("english_mass", "own_mass", "shared_mass", "entropy_bits")
"""Columns of a lens file that are averaged over the items."""

PAPER = ("latent", "out", "all_latent", "all_out", "entropy_bits")
"""Columns of a file of `paper_lens`, whose band is the original's: mean +- 1.96 standard errors."""

RANDOM = "random adapter"
"""Variant of the control: a random adapter of the same norm."""

CONTROL = "random_adapter"
"""Folder of the control's own explanation, in which it is called `tuned`."""


@dataclass(frozen=True)
class _Columns:
    """Columns of a file: texts, numbers without which a row says nothing, and numbers that may be missing."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    optional: tuple[str, ...] = ()


_BOUNDS = ("low", "high")
_PIVOT = _Columns(("variant", "language", "measure"), ("value",), ("layer", *_BOUNDS))
_COLUMNS = {
    "lens/*/pivot": _PIVOT,
    "tuned_lens/*/pivot": _PIVOT,
    "geometry/*/pca": _Columns(("variant", "language", "id"), ("layer", "pc1", "pc2")),
    "geometry/*/explained": _Columns(("variant",), ("layer", "pc1", "pc2")),
    "geometry/*/correlation": _Columns(("variant", "language"), ("layer", "r", "r_partial", "null_low", "null_high")),
    "geometry/*/similarity": _Columns(
        ("variant", "measure", "language", "other"), ("layer", "value", *_BOUNDS, "null_low", "null_high")
    ),
    "geometry/*/specificity": _Columns(("variant", "measure", "language"), ("layer", "value", *_BOUNDS)),
    "geometry/*/probe": _Columns(("variant", "language"), ("layer", "value", *_BOUNDS, "chance")),
    "patching/*/summary": _Columns(
        ("variant", "language", "site", "source", "calibration", "measure"), ("layer", "value", *_BOUNDS, "n")
    ),
    "switch_off/*/summary": _Columns(
        ("language", "group", "mode", "measure"), ("layer", "change", *_BOUNDS, "n")
    ),
    "item_link/*/summary": _Columns(
        ("quantity", "language", "calibration"), ("n_flipped", "n_stayed", "value"), ("layer", *_BOUNDS, "p")
    ),
}  # fmt: skip
"""Where files lie in the folder, a task a folder -> their columns."""


def read_tables(folder: Path | None, place: str, *, control: Path | None = None) -> dict[str, pd.DataFrame]:
    """Return task key -> frame, with the `pivot` and the `pooling` that the file's metadata name.

    Args:
        folder: of the explanation; None for nothing.
        place: which files, a key of `_COLUMNS`.
        control: folder of the same explanation with a random adapter, whose rows are added as the variant `RANDOM`;
            with it, the rows of `difference` are left out.

    Raises:
        OutputError: a file cannot be read or lacks a column.
    """
    found = {}
    for path in sorted(folder.glob(f"{place}.parquet")) if folder else ():
        frame = _read_table(path, _COLUMNS[place])
        if control is not None:
            frame = _with_control(frame, control / path.relative_to(folder or path), _COLUMNS[place])
        if len(frame):
            found[path.parent.name] = frame
    return found


def _read_table(path: Path, columns: _Columns) -> pd.DataFrame:
    frame, metadata = _read_frame(path, columns)
    named = {name: str(metadata.get(name, default)) for name, default in (("pivot", "en"), ("pooling", "question"))}
    return frame.assign(**named)


def _with_control(frame: pd.DataFrame, path: Path, columns: _Columns) -> pd.DataFrame:
    parts = [frame.loc[frame["variant"] != "difference"]]
    if path.is_file():
        control = _read_table(path, columns)
        if _is_same(*(each.loc[each["variant"] == "base"].reset_index(drop=True) for each in (frame, control))):
            parts.append(control.loc[control["variant"] == "tuned"].assign(variant=RANDOM))
    return pd.concat(parts, ignore_index=True)


def _is_same(base: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two explanations have the same base, on the same items."""
    if base.shape != other.shape:
        return False
    numbers = base.select_dtypes("number").columns
    is_near = np.allclose(base[numbers], other[numbers], atol=1e-6, equal_nan=True)
    return is_near and base.drop(columns=numbers).equals(other.drop(columns=numbers))


def read_lens(
    folder: Path | None,
    place: str,
    *,
    measures: Sequence[str] = MEASURES,
    parts_of_layer: tuple[str, ...] = (),
    control: Path | None = None,
) -> dict[str, pd.DataFrame]:
    """Return task key -> means over the items.

    Args:
        folder: of the explanation; None for nothing.
        place: of the lens's files in it.
        measures: columns that are averaged.
        parts_of_layer: columns beside `layer` that tell rows apart.
        control: folder of the same explanation with a random adapter, which is added as the variant `RANDOM`.

    Raises:
        OutputError: a file cannot be read or lacks a column.
    """
    files = [(path.parts[-3], path) for path in sorted(folder.glob(f"{place}/*/*/*.parquet"))] if folder else []
    if control is not None:
        files += [(RANDOM, path) for path in sorted(control.glob(f"{place}/tuned/*/*.parquet"))]
    frames: dict[str, list[pd.DataFrame]] = {}
    of_base: dict[tuple[str, str], tuple[frozenset[str], Any]] = {}
    for variant, path in files:  # the base before all others
        key, code = path.parent.name, path.stem
        frame, about = _read_frame(path, _Columns(("id", *parts_of_layer), ("layer", *measures)))
        of = frozenset(frame["id"]), about.get("model")
        if variant == "base":
            of_base[key, code] = of
        elif of != of_base.get((key, code), of):
            continue
        if len(frame):
            means = mean_over_items(frame, ("layer", *parts_of_layer), measures)
            frames.setdefault(key, []).append(means.assign(variant=variant, language=code))
    return {key: pd.concat(parts, ignore_index=True) for key, parts in frames.items()}


def mean_over_items(
    frame: pd.DataFrame, keys: tuple[str, ...] = ("layer",), measures: Sequence[str] = MEASURES
) -> pd.DataFrame:
    """Return one row a measure and whatever the keys tell apart: mean over the items and its 95 % interval.

    The interval is Student's t, cut to what a mean can be; that of `PAPER` is 1.96 standard errors, not cut, as in the
    original. One item has none, and neither have items that are all the same.
    """
    tidy = frame.melt(list(keys), list(measures), var_name="measure", value_name="value")
    out = tidy.groupby(["measure", *keys])["value"].agg(["mean", "sem", "count"]).reset_index()
    is_paper = measures == PAPER
    half = out["sem"].where(out["sem"] > 0) * (1.96 if is_paper else student.ppf(0.975, out["count"] - 1))
    low, high = out["mean"] - half, out["mean"] + half
    if not is_paper:
        low, high = low.clip(lower=0.0), np.minimum(high, np.where(out["measure"] == "entropy_bits", np.inf, 1.0))
    return out.assign(low=low, high=high).drop(columns=["sem", "count"])


def _read_frame(path: Path, columns: _Columns) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return columns of a Parquet file, and the file's metadata; see `checked_frame` for the rows."""
    names, numbers, optional = columns.names, columns.numbers, columns.optional
    try:
        frame, metadata = read_parquet(path)
    except DataError as fault:
        raise OutputError(f"{fault}, expected columns {', '.join((*names, *numbers, *optional))}") from None
    return checked_frame(frame, names, numbers, path, optional), metadata
