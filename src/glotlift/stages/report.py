"""Stage `report`: figures, page and model card of a run.

Reads: every file the stages before it left, the manifest too. Writes: `figures/`, `tables/`, `report.html`, and the
model card, `README.md`, also in `adapter/` and `merged/`. Fingerprint: the bytes of all it reads, glotlift's version.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from glotlift.errors import DataError
from glotlift.runs import RunFolder, versions
from glotlift.stages.evaluate import EVALUATE
from glotlift.stages.stage import OpenRun, Stage

_READ = ("recipe.yaml", "scores.json", "merge.json", "adapter/*.json", "data/audit.json", "lens/**/*.parquet",
         "tuned_lens/**/*.parquet", "paper_lens/**/*.parquet", "components/**/*.parquet", "geometry/**/*.parquet",
         "patching/**/*.parquet", "switch_off/**/*.parquet", "item_link/**/*.parquet",
         "random_adapter/**/*.parquet")  # fmt: skip


def report(run_path: str | Path) -> Path:
    """Write figures, report.html and the model card of a run; return the run folder."""
    path = Path(run_path)
    if not (path / "scores.json").is_file():
        raise DataError(f"{path}: got no scores.json, expected a folder that `glotlift run` or `eval` wrote")
    folder = RunFolder(path)
    with folder.lock():
        _write(folder.path)
    return path


def _write(path: Path) -> None:
    from glotlift.reporting.page import write_report

    write_report(path)


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest

    files = sorted(file for pattern in _READ for file in run.path.glob(pattern) if file.is_file())
    read = [(str(file.relative_to(run.path)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    stages = {name: entry for name, entry in run.folder.manifest()["stages"].items() if name != REPORT.name}
    return digest(read, stages, versions()["glotlift"])


REPORT = Stage(
    "report",
    "glotlift report",
    inputs=(EVALUATE,),
    outputs=("figures", "tables", "report.html", "README.md"),
    fingerprint=_fingerprint,
    do=lambda run: _write(run.path),
)
