"""The file that says how far English comes first in what a lens read, and the lines of the log that sum it up.

Enters: the lens files of a subject that have just been written. Leaves: `lens/<task>/pivot.parquet`, and
`tuned_lens/<task>/pivot.parquet` where a tuned lens read, too; columns as in
`glotlift.explanation.lens_summary.pivot_frame`. Files that an earlier explanation left, of other variants or languages,
count for nothing here.
"""

from __future__ import annotations

import logging
from itertools import product

import pandas as pd

from glotlift.explanation.lens_summary import FLOOR, PIVOT_COLUMNS, pivot_frame, read_lens
from glotlift.explanation.settings import CONTROL
from glotlift.explanation.subject import Subject, looked_into
from glotlift.models.fingerprints import digest
from glotlift.runs import parquet_metadata, write_parquet

log = logging.getLogger("glotlift")


def write_pivots(subject: Subject) -> None:
    """Write the files of the module's head unless they are there for the same readings, and log what they say.

    Raises:
        OutputError: the folder cannot be written.
    """
    for lens in ("lens", "tuned_lens") if subject.lens.tuned_lens else ("lens",):
        _write(subject, lens)


def _write(subject: Subject, lens: str) -> None:
    folder, key, variants = subject.folder / lens, subject.task_key, looked_into(subject.loaded)
    target = folder / key / "pivot.parquet"
    files = [folder / variant / key / f"{code}.parquet" for variant, code in product(variants, subject.prompts)]
    fingerprint = digest([parquet_metadata(file)["fingerprint"] for file in files], subject.seed, FLOOR, PIVOT_COLUMNS)
    if parquet_metadata(target).get("fingerprint") == fingerprint:
        return
    read = read_lens(subject.folder, lens=lens)
    ours = (read["task"] == key) & read["variant"].isin(variants) & read["language"].isin(list(subject.prompts))
    found = pivot_frame(read.loc[ours], seed=subject.seed)
    if found.empty:  # English alone: what an earlier explanation found is not of these files
        target.unlink(missing_ok=True)
        return
    write_parquet(target, found, {"fingerprint": fingerprint, "floor": FLOOR})
    _say(found, lens.replace("_", " "), is_control=subject.folder.name == CONTROL)


def _say(found: pd.DataFrame, lens: str, *, is_control: bool) -> None:
    """Log a line a variant, of all languages; of a random adapter, what it changes."""
    of_all = found.loc[(found["language"] == "all") & found["layer"].isna()]
    for variant, rows in of_all.groupby("variant", sort=False):
        if is_control and variant != "difference":
            continue
        of = {row["measure"]: _interval(row) for row in rows.to_dict("records")}
        who = "random adapter less base" if is_control else "tuned less base" if variant == "difference" else variant
        log.info(
            "%s, %s: share of %d items that answer in English first %s, that cross over %s; crossover layer %s",
            lens, who, rows["n"].iloc[0], of["pivot_share"], of["crossover_share"], of["crossover_layer"],
        )  # fmt: skip


def _interval(row: dict[str, float]) -> str:
    """Return `0.620 (95 % interval 0.500 to 0.710)`."""
    if pd.isna(row["value"]):
        return "none"
    if pd.isna(row["low"]):
        return f"{row['value']:.3f} (in fewer than half of the resamples)"
    return f"{row['value']:.3f} (95 % interval {row['low']:.3f} to {row['high']:.3f})"
