"""What a run folder holds, for the report.

Enters: the folder. Leaves: `RunFiles`. What a run does not have (yet) is empty; a file that cannot be read, or is not
of the shape of `glotlift.reporting.shapes`, is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from glotlift.errors import DataError, OutputError
from glotlift.reporting.shapes import Kind, checked, checked_frame
from glotlift.runs import read_parquet
from glotlift.schema import read_yaml
from glotlift.strict_json import read_json

MEASURES = ("english_mass", "own_mass", "shared_mass", "entropy_bits")
"""Columns of a lens file that are averaged over the items."""

RANDOM = "random adapter"
"""Variant of the control: a random adapter of the same norm."""

_EXPLAINED = ("variant",), ("layer", "pc1", "pc2")
_PCA = ("variant", "language", "id"), ("layer", "pc1", "pc2")
_CORRELATION = ("variant", "language"), ("layer", "r", "r_partial", "null_low", "null_high")
_SIMILARITY = (
    ("variant", "measure", "language", "other"), ("layer", "value", "low", "high", "null_low", "null_high")
)  # fmt: skip
_PROBE = ("variant", "language"), ("layer", "value", "low", "high", "chance")
_PATCHING = (
    ("variant", "language", "site", "source", "calibration", "measure"), ("layer", "value", "low", "high", "n")
)  # fmt: skip
_SWITCH_OFF = ("language", "group", "mode", "measure"), ("layer", "change", "low", "high", "n")
"""Of a file of geometry: columns of texts, columns of numbers."""


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
        similarity: task key -> one row a variant, layer, measure and pair of languages, with the `pivot`; where the
            control was asked for, it is the variant `RANDOM` here and in `probe`.
        probe: task key -> one row a variant, layer and language, and `all`: accuracy of the language probe.
        components: task key -> as `lens`, and `component`.
        patching: task key -> one row a share that English states repair or break, see docs/explain.md.
        switch_off: task key -> one row a configuration of the adapter and measure, likewise.
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
    similarity: dict[str, pd.DataFrame]
    probe: dict[str, pd.DataFrame]
    components: dict[str, pd.DataFrame]
    patching: dict[str, pd.DataFrame]
    switch_off: dict[str, pd.DataFrame]

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
    def seen(self) -> list[str]:
        """Codes of the languages the model was tuned on, empty where no file tells."""
        return self.scores.get("seen") or self.history.get("seen") or []

    @property
    def pivot(self) -> str:
        """Code of the language it learned to translate into, or from."""
        return self.scores.get("pivot") or self.history.get("pivot") or "en"

    @property
    def is_full(self) -> bool:
        """Whether all weights were tuned, so that there is no adapter."""
        return (self.recipe.get("train") or {}).get("method") == "full"

    @property
    def objective(self) -> tuple[str, ...]:
        """What the model learned; translation where nothing says so, as in glotlift 0.1."""
        return tuple(self._learned.get("objective") or ("translation",))

    @property
    def control(self) -> str:
        """The control it was trained under, `none` for none."""
        return self._learned.get("control") or "none"

    @property
    def teacher(self) -> str:
        """Whose answers it took over, empty where it has no teacher or nothing says so."""
        return self._learned.get("teacher") or ""

    @property
    def center(self) -> str:
        """What a language's mean label score was held to; its own, `language`, where nothing says so."""
        return self._learned.get("center") or "language"

    @property
    def answers(self) -> str:
        """Answer words of the prompts that were learned from, empty where none were or nothing says so."""
        return self._learned.get("answers") or ""

    @property
    def is_probed(self) -> bool:
        """Whether right answers chose the weights."""
        return bool(self.history.get("probes")) if self.history else self._learned.get("is_probed", False)

    @property
    def is_closed_form(self) -> bool:
        """Whether no weight was tuned: what was learned stands beside the model."""
        return not {"readout", "steering"}.isdisjoint(self.objective)

    @property
    def has_weight(self) -> bool:
        """Whether what was learned is used: a readout that agrees no better than the model is not."""
        if self.history:
            return (self.history.get("readout") or {}).get("is_used", True)
        return self._learned.get("is_used", True)

    @property
    def _learned(self) -> dict[str, Any]:
        """What training says of itself; of an adapter from elsewhere, as its evaluation took it down."""
        return self.history or self.scores.get("training") or {}

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version; all versions where stages ran with different ones."""
        found: dict[str, dict[str, None]] = {}
        for versions in (entry.get("versions", {}) for entry in (*self.stages.values(), self.scores)):
            for package, version in versions.items():
                found.setdefault(package, {})[version] = None
        return {package: ", ".join(versions) for package, versions in found.items()}


def read_run(path: Path, *, with_frames: bool = True, adapter: Path | None = None) -> RunFiles:
    """Return what a run folder holds.

    Args:
        path: the folder.
        adapter: where the adapter lies; None for in the folder.
        with_frames: False leaves out what is known of the inside of the model.

    Raises:
        OutputError: there is no such folder, or a file in it cannot be read or lacks a part.
    """
    if not path.is_dir():
        raise OutputError(f"{path}: no such folder, expected a run folder")
    recipe = path / "recipe.yaml"
    geometry = path / "geometry" if with_frames else None
    content = checked(read_yaml(recipe, OutputError), "recipe", recipe) if recipe.is_file() else {}
    return RunFiles(
        path=path,
        recipe=content,
        recipe_text=_as_text(content) if content else "",
        stages=_stages(path / "manifest.json"),
        scores=_read_json(path / "scores.json", "scores").get("glotlift", {}),
        history=_read_json((adapter or path / "adapter") / "history.json", "history"),
        certificate=_read_json(path / "merge.json", "certificate"),
        audit=_read_json(path / "data" / "audit.json", "audit"),
        lens=_read_lens(path / "lens") if with_frames else {},
        pca=_read_geometry(geometry, "pca.parquet", *_PCA),
        explained=_read_geometry(geometry, "explained.parquet", *_EXPLAINED),
        correlation=_read_geometry(geometry, "correlation.parquet", *_CORRELATION),
        similarity=_with_control(geometry, "similarity.parquet", *_SIMILARITY),
        probe=_with_control(geometry, "probe.parquet", *_PROBE),
        components=_read_lens(path / "components", ("component",)) if with_frames else {},
        patching=_read_geometry(path / "patching" if with_frames else None, "summary.parquet", *_PATCHING),
        switch_off=_read_geometry(path / "switch_off" if with_frames else None, "summary.parquet", *_SWITCH_OFF),
    )


def _stages(manifest: Path) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of the stages that a report tells of: all but its own."""
    stages = _read_json(manifest, "manifest").get("stages", {})
    return {name: entry for name, entry in stages.items() if name != "report"}


def _as_text(recipe: Any) -> str:
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _read_json(path: Path, kind: Kind) -> dict[str, Any]:
    return checked(read_json(path, OutputError), kind, path) if path.exists() else {}


def _read_frame(path: Path, names: tuple[str, ...], numbers: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return columns of a Parquet file, rows with numbers that are not finite left out, and the file's metadata."""
    try:
        frame, metadata = read_parquet(path)
    except DataError as fault:
        raise OutputError(f"{fault}, expected columns {', '.join((*names, *numbers))}") from None
    return checked_frame(frame, names, numbers, path), metadata


def _read_lens(folder: Path, parts_of_layer: tuple[str, ...] = ()) -> dict[str, pd.DataFrame]:
    """Return task key -> means over the items; `parts_of_layer` names columns beside `layer` that tell rows apart."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for path in sorted(folder.glob("*/*/*.parquet")):
        variant, key = path.parts[-3:-1]
        frame, _ = _read_frame(path, parts_of_layer, ("layer", *MEASURES))
        if len(frame):
            means = _mean_over_items(frame, ("layer", *parts_of_layer))
            frames.setdefault(key, []).append(means.assign(variant=variant, language=path.stem))
    return {key: pd.concat(parts, ignore_index=True) for key, parts in frames.items()}


def _mean_over_items(frame: pd.DataFrame, keys: tuple[str, ...]) -> pd.DataFrame:
    """Return one row a measure and whatever the keys tell apart: mean over the items and its 95 % interval, in bounds.

    The interval is Student's t. One item has none, and neither have items that are all the same.
    """
    tidy = frame.melt(list(keys), list(MEASURES), var_name="measure", value_name="value")
    out = tidy.groupby(["measure", *keys])["value"].agg(["mean", "sem", "count"]).reset_index()
    half = out["sem"].where(out["sem"] > 0) * student.ppf(0.975, out["count"] - 1)
    most = np.where(out["measure"] == "entropy_bits", np.inf, 1.0)
    out = out.assign(low=(out["mean"] - half).clip(lower=0.0), high=np.minimum(out["mean"] + half, most))
    return out.drop(columns=["sem", "count"])


def _read_geometry(
    folder: Path | None, name: str, names: tuple[str, ...], numbers: tuple[str, ...]
) -> dict[str, pd.DataFrame]:
    """Return task key -> frame, with the pivot language that the file's metadata name, English where they name none."""
    frames = {}
    for path in sorted(folder.glob(f"*/{name}")) if folder else ():
        frame, metadata = _read_frame(path, names, numbers)
        if len(frame):
            frames[path.parent.name] = frame.assign(pivot=str(metadata.get("pivot", "en")))
    return frames


def _with_control(
    folder: Path | None, name: str, names: tuple[str, ...], numbers: tuple[str, ...]
) -> dict[str, pd.DataFrame]:
    """Return the rows of base and tuned, not those of their difference, and those of a random adapter as `RANDOM`."""
    frames = _read_geometry(folder, name, names, numbers)
    control = _read_geometry(folder.parent / "random_adapter" / "geometry" if folder else None, name, names, numbers)
    found = {}
    for key, frame in frames.items():
        parts = [frame.loc[frame["variant"] != "difference"]]
        if key in control:
            random = control[key].loc[control[key]["variant"] == "tuned"]
            parts.append(random.assign(variant=RANDOM))
        found[key] = pd.concat(parts, ignore_index=True)
    return found
