"""Stage `merge`: the adapter of a run merged into its base model, with a certificate of what merging changed.

Reads: `adapter/`, `data/pairs.jsonl` (held-out pairs for the certificate), the base model. Writes: `merged/`,
`merge.json`. Fingerprint: the weights of base and adapter, the base's name, dtype.
"""

from __future__ import annotations

import logging
from pathlib import Path

from glotlift.data.questions import split_validation
from glotlift.names import READOUT, STEERING
from glotlift.runs import write_json
from glotlift.stages.data import DATA, pairs_of
from glotlift.stages.stage import OpenRun, Stage, open_run, walk
from glotlift.stages.train import ADAPTER, TRAIN
from glotlift.tasks.load import load_task
from glotlift.tasks.markup import layout_text

log = logging.getLogger("glotlift")

MERGED = "merged"

_N_PAIRS = 16
"""Question pairs that adapter and merged model are compared on."""


def merge(run_path: str | Path, *, strength: float | None = None) -> Path:
    """Merge the adapter of a run into its base model; return the folder of the merged model.

    Args:
        run_path: the run folder.
        strength: what a LoRA adapter is multiplied by; what the recipe says by default.
    """
    settings = () if strength is None else (f"merge.strength={strength}",)
    run = open_run(Path(run_path) / "recipe.yaml", run_path, settings)
    walk(run, MERGE)
    return run.path / MERGED


def _fingerprint(run: OpenRun) -> str:
    from glotlift.models.load import digest, weights_fingerprint

    weights = run.base_fingerprint, weights_fingerprint(str(run.path / ADAPTER))
    strength = run.recipe.merge.strength
    return digest(weights, run.recipe.model, run.recipe.dtype, *([strength] if strength != 1 else []))


def _do(run: OpenRun) -> None:
    from glotlift.training.merge import merge_adapter

    recipe, pairs = run.recipe, pairs_of(run)
    _, held_out = split_validation(pairs, recipe.data.validation_fraction, recipe.seed)
    certificate = merge_adapter(
        recipe.model, str(run.path / ADAPTER), run.path / MERGED, (held_out or pairs)[:_N_PAIRS], recipe.train,
        layout=layout_text(load_task(recipe.data.task)), dtype=recipe.dtype, device=recipe.device,
        strength=recipe.merge.strength,
    )  # fmt: skip
    write_json(run.path / "merge.json", certificate | {"strength": recipe.merge.strength})
    log.info(
        "merge: largest logit difference to the adapter %.2g, accuracy on %d target tokens %.4f and %.4f",
        *(certificate[key] for key in ("max_logit_difference", "n_targets", "accuracy_adapter", "accuracy_merged")),
    )


def _is_needless(run: OpenRun) -> bool:
    adapter = run.path / ADAPTER
    is_whole_model = (adapter / "config.json").is_file()
    if is_whole_model:
        log.info("merge: nothing to do, all weights were tuned; the model is %s", adapter)
    for file, what in ((READOUT, "a readout"), (STEERING, "steering")):
        if (adapter / file).is_file():
            log.info("merge: nothing to do, %s is no part of the model's weights; it stays in %s", what, adapter)
            return True
    return is_whole_model


MERGE = Stage(
    "merge",
    "glotlift merge",
    inputs=(DATA, TRAIN),
    outputs=(f"{MERGED}/config.json", "merge.json"),
    fingerprint=_fingerprint,
    do=_do,
    needless=_is_needless,
)
