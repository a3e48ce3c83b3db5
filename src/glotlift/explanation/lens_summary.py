"""What the lens files of a run say together: means over items, English-pivot share, crossover layer.

Enters: `lens/` of a run folder, see `glotlift.explanation.lens`. Leaves: data frames with intervals, of which
`glotlift.explanation.pivot_file` writes one.

A layer answers in English when English words have more mass than own ones, and at least `FLOOR`: below, both are
noise. An item **pivots through English** when the first of its layers that answers in either answers in English. Its
**crossover layer** is the first layer from which on own words have at least the mass of English ones up to the last
layer, where English led before; an item in which English never leads, or still leads at the end, has none. Shares are
of all items; how many have a reading at all is given beside them. Tokens that begin words of both languages, or of two
labels, count for neither side.

Source: the reading of arXiv 2402.10588 (Wendler et al.: do Llamas work in English?) and 2405.13816, as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

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

PIVOT_COLUMNS = ("variant", "task", "language", "measure", "layer", "value", "low", "high", "n", "n_read")


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
    """Return how far English comes first in all lens files of a run, see `pivot_frame`.

    Args:
        folder: see `read_lens`.
        lens: see `read_lens`.
        floor: see `crossover`.
        seed: of the bootstrap over items.
    """
    return pivot_frame(read_lens(folder, lens=lens), floor=floor, seed=seed)


def pivot_frame(frame: pd.DataFrame, *, floor: float = FLOOR, seed: int = 0) -> pd.DataFrame:
    """Return how far English comes first, for every variant, task and language of lens files but English itself.

    Args:
        frame: from `read_lens`.
        floor: see `crossover`.
        seed: of the bootstrap over items.

    Returns:
        Columns as `PIVOT_COLUMNS`. `variant` is also `difference`: tuned less base, on the items that both have, and
        none where they have none in common. `language` is also `all`: the mean over languages, of the items that all of
        them have, where an item and its translations count once. Measures:

            english_share     share of the items that a layer (`layer`, from 0; else NA) answers in English
            pivot_share       share of the items that answer in English first
            crossover_share   share of the items that have a crossover layer
            crossover_layer   of the mean curves over items; NaN where they do not cross

        `low` and `high` are the ends of a 95 % bootstrap interval over items, of the crossover layer over the resamples
        that have one (NaN where fewer than half do); `n` items, `n_read` of them with a reading. All are NaN where no
        token begins an own word alone, as where own words are spelled like the English ones; `all` goes without such a
        language.
    """
    parts = []
    foreign = frame.loc[frame["language"] != "en"] if len(frame) else frame
    for _, of_task in foreign.groupby("task", sort=False) if len(foreign) else ():
        curves = {
            variant: _curves_of_languages(part, floor) for variant, part in of_task.groupby("variant", sort=False)
        }
        for code in dict.fromkeys(code for of in curves.values() for code in of):
            of_language = {str(variant): of[code] for variant, of in curves.items() if code in of}
            for variant, rows in _of_variants(of_language, floor, seed):
                parts.append(rows.assign(variant=variant, task=of_task["task"].iloc[0], language=code))
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(PIVOT_COLUMNS))
    return whole.loc[:, list(PIVOT_COLUMNS)]


_SHARES = ("pivot_share", "crossover_share", "english_share")


@dataclass(frozen=True)
class _Curves:
    """What the lens shows of the items of a variant and language; of `all`, their means over languages.

    Attributes:
        ids: of the items.
        english: mass of English words. *Shape:* (items, layers + 1).
        own: mass of own words. *Shape:* as `english`.
        shares: whether an item answers in English first, crosses over, and is answered in English by each layer.
            *Shape:* (items, 2 + layers + 1).
        is_read: whether any layer answers. *Shape:* (items,).
    """

    ids: Sequence[str]
    english: np.ndarray
    own: np.ndarray
    shares: np.ndarray
    is_read: np.ndarray

    @property
    def has_own(self) -> bool:
        """Whether there is anything to hold English words against."""
        return bool(self.own.any())

    def of(self, ids: Sequence[str]) -> _Curves:
        """Return those of some items, in their order."""
        place = {item: index for index, item in enumerate(self.ids)}
        rows = [place[item] for item in ids]
        return _Curves(ids, self.english[rows], self.own[rows], self.shares[rows], self.is_read[rows])


def _curves_of_languages(frame: pd.DataFrame, floor: float) -> dict[str, _Curves]:
    """Return language -> its curves, from the rows of a variant, and those of `all` where a language has any."""
    found = {}
    for code, part in frame.groupby("language", sort=False):
        wide = part.pivot(index="id", columns="layer", values=["english_mass", "own_mass"])
        english, own = wide["english_mass"].to_numpy(), wide["own_mass"].to_numpy()
        is_pivot, is_crossed = pivots(english, own, floor=floor), np.isfinite(crossover(english, own, floor=floor))
        leads = (english > own) & (english >= floor)
        shares = np.column_stack([np.nan_to_num(is_pivot), is_crossed, leads]).astype(float)
        found[str(code)] = _Curves(list(wide.index), english, own, shares, np.isfinite(is_pivot))
    compared = [curves for curves in found.values() if curves.has_own]
    if compared and (ids := _common(compared)):
        same = [curves.of(ids) for curves in compared]
        english, own, shares = (
            np.mean([getattr(each, name) for each in same], 0) for name in ("english", "own", "shares")
        )
        found["all"] = _Curves(ids, english, own, shares, np.any([each.is_read for each in same], 0))
    return found


def _common(curves: Sequence[_Curves]) -> list[str]:
    """Return the items that all have, in the order of the first."""
    shared = reduce(set.intersection, (set(each.ids) for each in curves))
    return [item for item in curves[0].ids if item in shared]


def _of_variants(curves: dict[str, _Curves], floor: float, seed: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of every variant of a language, then those of the difference on the items in common."""
    for variant, of in curves.items():
        yield variant, _bounded(_draws(of, floor, seed), [of], SHARE)
    if not {"base", "tuned"} <= set(curves):
        return
    ids = _common([curves["base"], curves["tuned"]])
    base, tuned = (curves[variant].of(ids) for variant in ("base", "tuned"))
    if ids and base.shares.shape == tuned.shares.shape:  # a tuned model of an earlier run may be another one
        change = _draws(tuned, floor, seed) - _draws(base, floor, seed)
        yield "difference", _bounded(change, [base, tuned], DIFFERENCE)


def _draws(curves: _Curves, floor: float, seed: int) -> np.ndarray:
    """Return the shares, then the crossover layer of the mean curves: of all items, then of every resample.

    *Shape:* (1 + resamples, cells + 1); NaN where there is nothing to compare.
    """
    n_items = len(curves.ids)
    counts = resamples(n_items, seed)
    shares, english, own = (
        np.vstack([of.mean(0), counts @ of / n_items]) for of in (curves.shares, curves.english, curves.own)
    )
    drawn = np.column_stack([shares, crossover(english, own, floor=floor)])
    return drawn if curves.has_own else np.full_like(drawn, np.nan)


def _bounded(drawn: np.ndarray, of: Sequence[_Curves], ends: tuple[float, float]) -> pd.DataFrame:
    """Return value and interval of every cell of `_draws`."""
    n_items, n_read = len(of[0].ids), int(np.all([each.is_read for each in of], 0).sum())
    n_states = drawn.shape[1] - 3
    names = [*_SHARES[:2], *[_SHARES[2]] * n_states, "crossover_layer"]
    layers = pd.array([pd.NA, pd.NA, *range(n_states), pd.NA], "Int64")
    rows = []
    for name, (value, *rest) in zip(names, drawn.T, strict=True):
        known = np.array(rest)[np.isfinite(rest)]
        low = high = np.nan
        if np.isfinite(value) and len(known) >= len(rest) / 2:
            low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            if name in _SHARES:
                low, high = bounds(low, high, n_items, ends)
        rows.append((name, value, low, high, n_items, n_read))
    frame = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "n", "n_read"])
    return frame.assign(layer=layers)
