"""`compare`: two evaluations of the same items, paired. No stage of a run: it reads what two of them left.

Reads: `<language>.parquet` prediction files of two folders. Writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glotlift.errors import DataError
from glotlift.languages import in_order, members


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare two evaluations of the same items, language by language.

    Args:
        a: a folder with `<language>.parquet` prediction files.
        b: another one; languages that both have are compared.
        seed: of the bootstraps.

    Returns:
        Name -> `glotlift.evaluation.compare.Change` for every language, for `all`, and for every family, script and
        resource class that some but not all of the languages are of, as in `script Latn`.

    Raises:
        DataError: there is no common language, a file holds no predictions, or the items or their gold labels differ.
    """
    from glotlift.evaluation.compare import compare_group, compare_languages
    from glotlift.evaluation.pairing import correctness
    from glotlift.runs import read_parquet

    files = [{path.stem: path for path in Path(folder).glob("*.parquet")} for folder in (a, b)]
    for folder, found in zip((a, b), files, strict=True):
        if not found:
            raise DataError(
                f"{folder}: got no prediction files, expected <language>.parquet, as in RUN/predictions/base/TASK"
            )
    common = in_order(code for code in files[0] if code in files[1])
    if not common:
        raise DataError(f"{a} and {b} have no language in common: {' '.join(files[0])} and {' '.join(files[1])}")
    paired = {}
    for code in common:
        both = files[0][code], files[1][code]
        frames = [read_parquet(path)[0] for path in both]
        paired[code] = correctness(*frames, where=f"{code}, A {both[0]} and B {both[1]}")
    changes = [*compare_languages(paired, seed=seed), compare_group("all", paired, seed=seed)]
    for kind in ("family", "script", "resource"):
        for name, codes in sorted(members(common, kind).items()):
            if len(codes) < len(common):
                group = {code: paired[code] for code in codes}
                changes.append(compare_group(f"{kind} {name}", group, seed=seed))
    return {change.name: vars(change) for change in changes}
