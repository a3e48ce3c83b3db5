"""`read_explanation`: what an explanation or a run found inside a model, as one frame a kind. No stage of a run.

Reads: the Parquet files of a kind, see docs/explain.md. Writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glotlift.errors import DataError, one_of

if TYPE_CHECKING:
    import pandas as pd

READABLE = {
    "lens": ("lens/*/*/*.parquet", "--what lens"),
    "tuned_lens": ("tuned_lens/*/*/*.parquet", "--what lens --tuned-lens DIR"),
    "components": ("components/*/*/*.parquet", "--what lens --components"),
    "paper_lens": ("paper_lens/*/*/*.parquet", "--what lens --paper"),
    "pivot": ("lens/*/pivot.parquet", "--what lens"),
    "pca": ("geometry/*/pca.parquet", "--what geometry"),
    "explained": ("geometry/*/explained.parquet", "--what geometry"),
    "correlation": ("geometry/*/correlation.parquet", "--what geometry"),
    "similarity": ("geometry/*/similarity.parquet", "--what geometry"),
    "specificity": ("geometry/*/specificity.parquet", "--what geometry"),
    "probe": ("geometry/*/probe.parquet", "--what geometry"),
    "patching": ("patching/*/summary.parquet", "--what patching"),
    "switch_off": ("switch_off/*/summary.parquet", "--what switch-off"),
    "item_link": ("item_link/*/summary.parquet", "--what geometry,item-link"),
}
"""What can be read -> its files in the folder, and what `glotlift explain` writes them for."""

_LENSES = ("lens", "tuned_lens", "components", "paper_lens")


def read_explanation(folder: str | Path, kind: str) -> pd.DataFrame:
    """Return what an explanation found, of all tasks in its folder.

    Args:
        folder: what `glotlift explain` or a run wrote to; for a random adapter, its `random_adapter/`.
        kind: `lens`, `tuned_lens`, `components` or `paper_lens` (a row an item and layer); `pivot`; of the geometry
            `pca`, `explained`, `correlation`, `similarity`, `specificity` or `probe`; or `patching`, `switch_off` or
            `item_link`.

    Returns:
        The columns that docs/explain.md lists for the kind, and `task`; for those of a lens also `variant` and
        `language`.

    Raises:
        DataError: there is no such kind, the folder has no files of it, or one is damaged.
    """
    name = kind.replace("-", "_")
    if name not in READABLE:
        raise DataError(f"got the kind of explanation {kind!r}, expected {one_of(READABLE)}")
    root, (pattern, command) = Path(folder), READABLE[name]
    files = sorted(root.glob(pattern))
    if not files:
        raise DataError(f"{root}: got no {pattern}, expected what `glotlift explain {command}` writes")
    return _read(root, name, files)


def _read(root: Path, name: str, files: list[Path]) -> pd.DataFrame:
    import pandas as pd

    from glotlift.explanation.lens_summary import read_lens
    from glotlift.runs import read_parquet

    if name in _LENSES:
        return read_lens(root, lens=name)
    frames = []
    for file in files:
        frame, _ = read_parquet(file)
        frames.append(frame.assign(task=file.parent.name))
    whole = pd.concat(frames, ignore_index=True)
    return whole.loc[:, ["task", *(column for column in whole if column != "task")]]
