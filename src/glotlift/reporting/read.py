"""What a run folder holds, for the report.

Enters: the folder. Leaves: `RunFiles`. What a run does not have (yet) is empty; a file that cannot be read, or is not
of the shape of `glotlift.reporting.shapes`, is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from glotlift.errors import OutputError
from glotlift.reporting.read_frames import CONTROL, PAPER, read_lens, read_tables
from glotlift.reporting.shapes import Kind, checked
from glotlift.schema import read_yaml
from glotlift.strict_json import read_json


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
        lens: task key -> one row a variant, language, layer and measure: `mean`, `low`, `high` over the items. Where
            the control was asked for, it is the variant `glotlift.reporting.read_frames.RANDOM` here and in
            `tuned_lens`, `english_first`, `tuned_english_first`, `similarity`, `specificity` and `probe`.
        tuned_lens: task key -> as `lens`, read through the translators of a tuned lens.
        english_first: task key -> one row a variant, language and measure of how far English comes first in `lens`, see
            docs/explain.md; those without a `layer` (NaN) are of all layers.
        tuned_english_first: task key -> the same of `tuned_lens`.
        paper_lens: task key -> as `lens`, the measures of arXiv 2405.13816.
        pca: task key -> one row a variant, layer, language and item: `pc1`, `pc2`, and the `pooling` of the states.
        explained: task key -> one row a variant and layer: share of the variance that `pc1` and `pc2` hold.
        correlation: task key -> one row a variant, layer and language, with the `pivot` it is held against.
        similarity: task key -> one row a variant, layer, measure and pair of languages, with the `pivot`.
        specificity: task key -> one row a variant, layer, measure and language: how much nearer to the pivot than to
            other languages.
        probe: task key -> one row a variant, layer and language, and `all`: accuracy of the language probe.
        components: task key -> as `lens`, and `component`.
        patching: task key -> one row a share that English states repair or break, see docs/explain.md.
        switch_off: task key -> one row a configuration of the adapter and measure, likewise.
        item_link: task key -> one row a quantity, language and layer (NaN for none), likewise.
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
    tuned_lens: dict[str, pd.DataFrame]
    english_first: dict[str, pd.DataFrame]
    tuned_english_first: dict[str, pd.DataFrame]
    paper_lens: dict[str, pd.DataFrame]
    pca: dict[str, pd.DataFrame]
    explained: dict[str, pd.DataFrame]
    correlation: dict[str, pd.DataFrame]
    similarity: dict[str, pd.DataFrame]
    specificity: dict[str, pd.DataFrame]
    probe: dict[str, pd.DataFrame]
    components: dict[str, pd.DataFrame]
    patching: dict[str, pd.DataFrame]
    switch_off: dict[str, pd.DataFrame]
    item_link: dict[str, pd.DataFrame]

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
    inside = path if with_frames else None
    control = path / CONTROL if with_frames else None
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
        lens=read_lens(inside, "lens", control=control),
        tuned_lens=read_lens(inside, "tuned_lens", control=control),
        english_first=read_tables(inside, "lens/*/pivot", control=control),
        tuned_english_first=read_tables(inside, "tuned_lens/*/pivot", control=control),
        paper_lens=read_lens(inside, "paper_lens", measures=PAPER),
        pca=read_tables(inside, "geometry/*/pca"),
        explained=read_tables(inside, "geometry/*/explained"),
        correlation=read_tables(inside, "geometry/*/correlation"),
        similarity=read_tables(inside, "geometry/*/similarity", control=control),
        specificity=read_tables(inside, "geometry/*/specificity", control=control),
        probe=read_tables(inside, "geometry/*/probe", control=control),
        components=read_lens(inside, "components", parts_of_layer=("component",)),
        patching=read_tables(inside, "patching/*/summary"),
        switch_off=read_tables(inside, "switch_off/*/summary"),
        item_link=read_tables(inside, "item_link/*/summary"),
    )


def _stages(manifest: Path) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of the stages that a report tells of: all but its own."""
    stages = _read_json(manifest, "manifest").get("stages", {})
    return {name: entry for name, entry in stages.items() if name != "report"}


def _as_text(recipe: Any) -> str:
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _read_json(path: Path, kind: Kind) -> dict[str, Any]:
    return checked(read_json(path, OutputError), kind, path) if path.exists() else {}
