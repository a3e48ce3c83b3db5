"""`compare`: two evaluations of the same items, paired. No stage of a run: it reads what two of them left.

Reads: `<language>.parquet` prediction files of two folders. Writes tables where they are asked for.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from glotlift.errors import DataError, one_of

log = logging.getLogger("glotlift")


def compare(
    a: str | Path,
    b: str | Path,
    *,
    variant_a: str | None = None,
    variant_b: str | None = None,
    scoring: str | None = None,
    calibration: str | None = None,
    seed: int = 0,
    tables: str | Path | None = None,
) -> dict[str, Any]:
    """Compare two evaluations of the same items, as base and tuned are compared.

    Args:
        a: a run or evaluation folder, whose test sets that B has too are compared; or a folder of `<language>.parquet`
            prediction files.
        b: another one, or the same one with another variant.
        variant_a: `base` or `tuned` of a run or evaluation folder; None for tuned where there is one.
        variant_b: likewise.
        scoring: by which both are decided; None for that of the files, which must then be one.
        calibration: likewise.
        seed: of the bootstraps.
        tables: folder for the tables as CSV, Markdown and LaTeX, see `glotlift.reporting.tables`; None for none.

    Returns:
        What scores.json holds, with A in the place of `base` and B in that of `tuned`, so that what reads a run's
        scores reads these; `glotlift.differences` says how the two were made in different ways, by test set.

    Raises:
        DataError: there is no common test set or language, a file holds no predictions or is damaged, the two were
            decided in different ways and nothing is asked for, or the items, their texts or their gold labels differ.
    """
    from glotlift.evaluation.scores import build_scores
    from glotlift.evaluation.versus import NAMES, read_versus

    sides = [_test_sets(Path(a), variant_a, "A"), _test_sets(Path(b), variant_b, "B")]
    if all(len(side) == 1 for side in sides):  # the two may be asked in different ways, as with other answer words
        pairs = {next(iter(sides[0])): tuple(next(iter(side.values())) for side in sides)}
    else:
        pairs = {key: (sides[0][key], sides[1][key]) for key in sides[0] if key in sides[1]}
    if not pairs:
        raise DataError(f"{a} and {b} have no test set in common: {' '.join(sides[0])} and {' '.join(sides[1])}")
    found = {key: read_versus(key, *both, scoring=scoring, calibration=calibration) for key, both in pairs.items()}
    for key, each in found.items():
        if each.differences:
            log.warning("%s: A and B differ in %s", key, ", ".join(each.differences))
    scores = build_scores([each.predictions for each in found.values()], model=f"{a} and {b}", config={}, seed=seed)
    scores["glotlift"] |= {"names": NAMES, "differences": {key: list(each.differences) for key, each in found.items()}}
    if tables is not None:
        from glotlift.reporting.tables import write_tables

        write_tables(Path(tables), scores)
    return scores


def _test_sets(folder: Path, variant: str | None, name: str) -> dict[str, dict[str, Path]]:
    """Return the prediction files of a side: test set -> language -> file."""
    if files := _files(folder):
        return {folder.name: files}
    inside = folder / "predictions"
    has = [each for each in ("tuned", "base") if (inside / each).is_dir()]
    if variant is not None and variant not in has:
        raise DataError(f"{name}, {folder}: got variant {variant!r}, expected {one_of(has) or 'a run folder'}")
    root = inside / (variant or has[0]) if has else folder
    found = {path.name: files for path in sorted(root.glob("*")) if (files := _files(path))}
    if not found:
        expected = "expected a run or evaluation folder, or one of <language>.parquet, as in RUN/predictions/base/TASK"
        raise DataError(f"{name}, {folder}: got no prediction files, {expected}")
    return found


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.parquet"))}
