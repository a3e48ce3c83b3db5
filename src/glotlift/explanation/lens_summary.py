"""What the lens files of a run say together: means over items, English-pivot share, crossover layer.

Enters: `lens/` of a run folder, see `glotlift.explanation.lens`. Leaves: data frames with intervals.

A layer answers in English when English words have more mass than own ones, and at least `FLOOR`: below, both are
noise. An item **pivots through English** when the first of its layers that answers in either answers in English. Its
**crossover layer** is the first layer from which on own words have at least the mass of English ones up to the last
layer, where English led before; an item in which English never leads, or still leads at the end, has none. Shares are
of all items; how many have a reading at all is given beside them. Tokens that begin words of both languages, or of two
labels, count for neither side.

Source: the reading of arXiv 2402.10588 (Wendler et al.: do Llamas work in English?) and 2405.13816, as numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from glotlift.explanation.lens import MEASURES
from glotlift.intervals import DIFFERENCE, SHARE, bounds, resamples
from glotlift.measures import LEVEL
from glotlift.runs import read_parquet

FLOOR = 0.01
"""Mass from which on a layer is taken to answer with label words."""

SUMMARY_COLUMNS = ("variant", "task", "language", "layer", "measure", "mean", "low", "high", "n", "n_tokens")

PIVOT_COLUMNS = ("variant", "task", "language", "measure", "value", "low", "high", "n", "n_read")


def read_lens(folder: Path, *, lens: str = "lens") -> pd.DataFrame:
    """Return all lens files of a run as one frame, with the columns `variant`, `task` and `language` before the others.

    Args:
        folder: the run folder.
        lens: folder of the files in it: `lens`, or `tuned_lens`.
    """
    parts = []
    for path in sorted(folder.glob(f"{lens}/*/*/*.parquet")):
        frame, about = read_parquet(path)
        for place, name in enumerate(("variant", "task", "language")):
            frame.insert(place, name, about[name])
        if len(frame):
            parts.append(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summarise_lens(folder: Path, *, lens: str = "lens") -> pd.DataFrame:
    """Return means over items of all lens files of a run; arguments as `read_lens`.

    Returns:
        One row a variant, task, language, measure and layer, columns as `SUMMARY_COLUMNS`: `mean` with the ends `low`
        and `high` of its 95 % band (Student's t over items, cut to the measure's range; NaN for one item), `n` items,
        and `n_tokens` in the measure's token set (NaN where the measure has none), where 0 means that the mass says
        nothing.
    """
    parts = [_summary(path) for path in sorted(folder.glob(f"{lens}/*/*/*.parquet"))]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SUMMARY_COLUMNS))


def _summary(path: Path) -> pd.DataFrame:
    frame, about = read_parquet(path)
    sizes = {f"{name}_mass": float(size) for name, size in about["coverage"]["n_tokens"].items()}
    long = frame.melt(["id", "layer"], list(MEASURES), "measure", "value")
    groups = long.groupby(["measure", "layer"])["value"]
    rows = groups.agg(mean="mean", sem="sem", n="count").reset_index()
    half = rows["sem"] * student.ppf((1 + LEVEL) / 2, (rows["n"] - 1).clip(lower=0))
    is_mass = rows["measure"].isin(list(sizes))
    rows["low"] = (rows["mean"] - half).clip(lower=np.where(rows["measure"] == "label_rank", 1.0, 0.0))
    rows["high"] = (rows["mean"] + half).clip(upper=np.where(is_mass, 1.0, np.inf))
    rows["n_tokens"] = rows["measure"].map(sizes)
    rows = rows.assign(variant=about["variant"], task=about["task"], language=about["language"])
    return rows.loc[:, list(SUMMARY_COLUMNS)]


def crossover(english: np.ndarray, own: np.ndarray, *, floor: float = FLOOR) -> np.ndarray:
    """Return the crossover layer of each curve, see the module's head; NaN where there is none.

    Args:
        english: mass of English words on every layer. *Shape:* (curves, layers + 1).
        own: mass of own words. *Shape:* as `english`.
        floor: mass from which on a layer is taken to answer.

    Returns:
        *Shape:* (curves,), 1 to the last layer.
    """
    has_led = ((english > own) & (english >= floor)).any(1)
    n_settled = np.cumprod((own >= english)[:, ::-1], 1).sum(1)  # last layers on which own words lead
    is_crossed = has_led & (n_settled > 0) & (own[:, -1] >= floor)
    return np.where(is_crossed, english.shape[1] - n_settled, np.nan)


def pivots(english: np.ndarray, own: np.ndarray, *, floor: float = FLOOR) -> np.ndarray:
    """Return of each curve whether it answers in English first; arguments as `crossover`.

    Returns:
        1 for English first, 0 for own words first, NaN where no layer answers. *Shape:* (curves,).
    """
    answers = np.maximum(english, own) >= floor
    first = answers.argmax(1)[:, None]
    is_english = np.take_along_axis(english > own, first, 1)[:, 0]
    return np.where(answers.any(1), is_english.astype(float), np.nan)


def pivot_summary(folder: Path, *, lens: str = "lens", floor: float = FLOOR, seed: int = 0) -> pd.DataFrame:
    """Return how far English comes first, for every variant, task and language of a run but English itself.

    Args:
        folder: see `read_lens`.
        lens: see `read_lens`.
        floor: see `crossover`.
        seed: of the bootstrap over items.

    Returns:
        Columns as `PIVOT_COLUMNS`; `variant` is also `difference`: tuned less base on the same items. Measures:

            pivot_share       share of the items that answer in English first
            crossover_share   share of the items that have a crossover layer
            crossover_layer   of the mean curves over items; NaN where they do not cross

        `low` and `high` are the ends of a 95 % bootstrap interval over items, of the crossover layer over the resamples
        that have one (NaN where fewer than half do); `n` items, `n_read` of them with a reading. All are NaN where no
        token begins an own word alone, as where own words are spelled like the English ones.
    """
    frame = read_lens(folder, lens=lens)
    if frame.empty:
        return pd.DataFrame(columns=list(PIVOT_COLUMNS))
    rows = []
    for _, part in frame.groupby(["task", "language"], sort=False):
        task, language = part["task"].iloc[0], part["language"].iloc[0]
        curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for variant in dict.fromkeys(part["variant"]):
            wide = part.loc[part["variant"] == variant].pivot(
                index="id", columns="layer", values=["english_mass", "own_mass"]
            )
            curves[variant] = (wide["english_mass"].to_numpy(), wide["own_mass"].to_numpy())
        if language == "en":
            continue
        found = {variant: _draws(english, own, floor, seed) for variant, (english, own) in curves.items()}
        if set(found) == {"base", "tuned"}:
            found["difference"] = _difference(found["base"], found["tuned"])
        for variant, measured in found.items():
            rows += [(variant, task, language, name, *values) for name, values in _bounded(measured, variant)]
    return pd.DataFrame(rows, columns=list(PIVOT_COLUMNS))


def _draws(english: np.ndarray, own: np.ndarray, floor: float, seed: int) -> dict[str, Any]:
    """Return the measures of a language and variant: the value, then its values in the resamples."""
    n_items = len(english)
    counts = resamples(n_items, seed)
    is_pivot, at = pivots(english, own, floor=floor), crossover(english, own, floor=floor)
    shares = np.stack([np.nan_to_num(is_pivot), np.isfinite(at)])
    of_mean = crossover(*(np.concatenate([c.mean(0)[None], counts @ c / n_items]) for c in (english, own)),
                        floor=floor)  # fmt: skip
    drawn = np.concatenate([shares.mean(1)[None], counts @ shares.T / n_items]).T
    if not own.any():
        drawn, of_mean = np.full_like(drawn, np.nan), np.full_like(of_mean, np.nan)
    values = {"pivot_share": drawn[0], "crossover_share": drawn[1], "crossover_layer": of_mean}
    return {"values": values, "n": n_items, "n_read": int(np.isfinite(is_pivot).sum())}


def _difference(base: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    values = {name: tuned["values"][name] - base["values"][name] for name in base["values"]}
    return {"values": values, "n": base["n"], "n_read": min(base["n_read"], tuned["n_read"])}


def _bounded(measured: dict[str, Any], variant: str) -> list[tuple[str, tuple[float, float, float, int, int]]]:
    rows = []
    for name, (value, *drawn) in measured["values"].items():
        known = np.array(drawn)[np.isfinite(drawn)]
        low = high = np.nan
        if np.isfinite(value) and len(known) >= len(drawn) / 2:
            low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            if name != "crossover_layer":
                low, high = bounds(low, high, measured["n"], DIFFERENCE if variant == "difference" else SHARE)
        rows.append((name, (float(value), float(low), float(high), measured["n"], measured["n_read"])))
    return rows
