"""What a run folder holds, for the report.

Enters: the folder. Leaves: `RunFiles`. What a run does not have (yet) is empty; a file that cannot be read is an error
that names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from glotlift.errors import OutputError
from glotlift.runs import parquet_metadata
from glotlift.schema import read_yaml

MEASURES = ("english_mass", "own_mass", "shared_mass", "entropy_bits")
"""Columns of a lens file that are averaged over the items."""

_EXPLAINED = ("variant", "layer", "pc1", "pc2")
_PCA = ("variant", "layer", "language", "id", "pc1", "pc2")
_CORRELATION = ("variant", "layer", "language", "r", "r_partial", "null_low", "null_high")


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Attributes:
        path: the run folder.
        recipe: what recipe.yaml holds.
        recipe_text: the same, as text.
        stages: stage -> its entry in the manifest.
        scores: what scores.json holds under `glotlift`.
        history: of training.
        certificate: of merging.
        audit: of the question pairs.
        lens: task key -> one row a variant, language, layer and measure: `mean`, `low`, `high` over the items.
        pca: task key -> one row a variant, layer, language and item: `pc1`, `pc2`.
        explained: task key -> one row a variant and layer: share of the variance that `pc1` and `pc2` hold.
        correlation: task key -> one row a variant, layer and language, with the `pivot` it is held against.
    """

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    stages: dict[str, dict[str, Any]]
    scores: dict[str, Any]
    history: dict[str, Any]
    certificate: dict[str, Any]
    audit: dict[str, Any]
    lens: dict[str, pd.DataFrame]
    pca: dict[str, pd.DataFrame]
    explained: dict[str, pd.DataFrame]
    correlation: dict[str, pd.DataFrame]

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.recipe.get("name") or self.path.resolve().name)

    @property
    def model(self) -> str:
        """Name of the base model, empty where no file tells."""
        return str(self.scores.get("model") or self.recipe.get("model") or "")

    @property
    def is_tuned(self) -> bool:
        """Whether the run has a tuned model, trained or only evaluated."""
        return bool(self.history) or "tuned" in self.scores.get("variants", ())

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version; all versions where stages ran with different ones."""
        found: dict[str, dict[str, None]] = {}
        for versions in (entry.get("versions", {}) for entry in (*self.stages.values(), self.scores)):
            for package, version in versions.items():
                found.setdefault(package, {})[version] = None
        return {package: ", ".join(versions) for package, versions in found.items()}


def read_run(path: Path) -> RunFiles:
    """Return what a run folder holds.

    Raises:
        OutputError: there is no such folder, or a file in it cannot be read.
    """
    if not path.is_dir():
        raise OutputError(f"{path}: no such folder, expected a run folder")
    recipe = path / "recipe.yaml"
    content = read_yaml(recipe, OutputError) if recipe.is_file() else {}
    return RunFiles(
        path=path,
        recipe=content if isinstance(content, dict) else {},
        recipe_text=_as_text(content) if content else "",
        stages=_stages(path / "manifest.json"),
        scores=_read_json(path / "scores.json").get("glotlift", {}),
        history=_read_json(path / "adapter" / "history.json"),
        certificate=_read_json(path / "merge.json") or _read_json(path / "merged" / "merge.json"),
        audit=_read_json(path / "data" / "audit.json"),
        lens=_read_lens(path / "lens"),
        pca=_read_geometry(path / "geometry", "pca.parquet", _PCA),
        explained=_read_geometry(path / "geometry", "explained.parquet", _EXPLAINED),
        correlation=_read_geometry(path / "geometry", "correlation.parquet", _CORRELATION),
    )


def _stages(manifest: Path) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of the stages that a report tells of: all but its own."""
    return {name: entry for name, entry in _read_json(manifest).get("stages", {}).items() if name != "report"}


def _as_text(recipe: Any) -> str:
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as fault:
        raise OutputError(f"{path}: cannot be read as UTF-8 text ({fault})") from None
    except json.JSONDecodeError as fault:
        raise OutputError(f"{path}, line {fault.lineno}: not valid JSON ({fault.msg})") from None
    if not isinstance(content, dict):
        raise OutputError(f"{path}: got a {type(content).__name__}, expected an object")
    return content


def _read_frame(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError) as fault:  # pyarrow's errors are ValueErrors
        raise OutputError(f"{path}: cannot be read, expected Parquet with {', '.join(columns)} ({fault})") from None


def _read_lens(folder: Path) -> dict[str, pd.DataFrame]:
    frames: dict[str, list[pd.DataFrame]] = {}
    for path in sorted(folder.glob("*/*/*.parquet")):
        variant, key = path.parts[-3:-1]
        means = _mean_over_items(_read_frame(path, ("layer", *MEASURES)))
        frames.setdefault(key, []).append(means.assign(variant=variant, language=path.stem))
    return {key: pd.concat(parts, ignore_index=True) for key, parts in frames.items()}


def _mean_over_items(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a layer and measure: mean over the items and its 95 % interval (Student's t), within bounds."""
    tidy = frame.melt("layer", list(MEASURES), var_name="measure", value_name="value")
    out = tidy.groupby(["measure", "layer"])["value"].agg(["mean", "sem", "count"]).reset_index()
    half = (out["sem"] * student.ppf(0.975, out["count"] - 1)).fillna(0.0)
    most = np.where(out["measure"] == "entropy_bits", np.inf, 1.0)
    out = out.assign(low=(out["mean"] - half).clip(lower=0.0), high=np.minimum(out["mean"] + half, most))
    return out.drop(columns=["sem", "count"])


def _read_geometry(folder: Path, name: str, columns: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Return task key -> frame, with the pivot language that the file's metadata name, English where they name none."""
    frames = {}
    for path in sorted(folder.glob(f"*/{name}")):
        frame = _read_frame(path, columns).dropna()
        if len(frame):
            frames[path.parent.name] = frame.assign(pivot=parquet_metadata(path).get("pivot", "en"))
    return frames
