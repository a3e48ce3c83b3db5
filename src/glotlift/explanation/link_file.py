"""The item link of a subject: do the items that tuning puts right move differently inside? See `.item_link`.

Enters: pooled states and lens files of base and tuned, and the predictions that evaluation left in the same folder, so
that right and wrong are what scores.json counts. Leaves: `item_link/<task>/summary.parquet`, columns as in
`glotlift.explanation.item_link`, of the quantities

    towards_pivot        how much nearer an item comes to its English translation on a layer, cosine
    towards_pivot_mean   its mean over layers: the one to test
    earlier_crossover    layers by which own words take over from English ones earlier; where the lens is read, too
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from glotlift.errors import DataError, ModelError
from glotlift.explanation.item_link import earlier_crossover, item_link, movement, read_outcomes
from glotlift.explanation.states import PooledStates, pivot_of
from glotlift.explanation.subject import Subject, looked_into
from glotlift.models.fingerprints import digest, file_digest
from glotlift.runs import parquet_metadata, write_parquet

log = logging.getLogger("glotlift")


def check_outcomes(subject: Subject) -> None:
    """Refuse a subject without a tuned model or without predictions, before anything runs.

    Raises:
        ModelError: base and tuned do not differ inside, or there is no tuned model.
        DataError: a file of predictions is missing.
    """
    if "tuned" not in looked_into(subject.loaded):
        raise ModelError("item-link: got no tuned model to look into, expected an adapter that changes states")
    if missing := [file for file in _predictions(subject) if not file.is_file()]:
        raise DataError(
            f"item-link: got no {missing[0]}, expected the predictions of base and tuned, which `glotlift eval` or "
            "`glotlift run` writes into the same folder"
        )


def write_link(subject: Subject, states: dict[str, dict[str, PooledStates]], *, with_lens: bool) -> None:
    """Write the file of the module's head unless it is there for the same states, lens and predictions.

    Args:
        subject: what is looked into.
        states: variant -> language -> states.
        with_lens: whether the lens files of the subject are there, too.
    """
    folder, key = subject.folder, subject.task_key
    lens = sorted(folder.glob(f"lens/*/{key}/*.parquet")) if with_lens else []
    target = folder / "item_link" / key / "summary.parquet"
    sources = [source.metadata["fingerprint"] for of in states.values() for source in of.values()]
    read = [file_digest(file) for file in (*_predictions(subject), *lens)]
    fingerprint = digest(sources, read, subject.seed)
    if parquet_metadata(target).get("fingerprint") == fingerprint:
        return
    quantities = [movement(states)] + ([earlier_crossover(folder, key, _foreign(subject))] if with_lens else [])
    outcomes = read_outcomes(folder / "predictions", key, _foreign(subject))
    found = item_link(outcomes, pd.concat(quantities, ignore_index=True), seed=subject.seed)
    write_parquet(target, found, {"fingerprint": fingerprint, "pooling": subject.pooling})
    for row in found.loc[(found["language"] == "all") & found["layer"].isna()].to_dict("records"):
        said = "item link, %s: %+.3f, %d items that flip less %d that stay wrong; 95 %% interval %.3f to %.3f, p %.3f"
        numbers = (row[name] for name in ("value", "n_flipped", "n_stayed", "low", "high", "p"))
        log.info(said, row["quantity"], *numbers)


def _foreign(subject: Subject) -> list[str]:
    codes = list(subject.prompts)
    return [code for code in codes if code != pivot_of(codes)]


def _predictions(subject: Subject) -> list[Path]:
    folder = subject.folder / "predictions"
    return [
        folder / variant / subject.task_key / f"{code}.parquet"
        for variant in ("base", "tuned")
        for code in _foreign(subject)
    ]
