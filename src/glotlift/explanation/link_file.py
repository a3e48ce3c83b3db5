"""The item link of a subject: do the items that tuning puts right move differently inside? See `.item_link`.

Enters: pooled states and lens files of base and tuned, and the predictions that evaluation left in the same folder, so
that right and wrong are what scores.json counts, without calibration and after it. Leaves:
`item_link/<task>/summary.parquet`, columns as in `glotlift.explanation.item_link`, of the quantities

    towards_pivot        how much nearer an item comes to its English translation on a layer, cosine
    towards_pivot_mean   its mean over layers: the one to test
    earlier_crossover    layers by which own words take over from English ones earlier; where the lens is read, too
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import pandas as pd

from glotlift.errors import DataError, ModelError
from glotlift.explanation.answers import Asked
from glotlift.explanation.item_link import LINK_COLUMNS, earlier_crossover, item_link, movement
from glotlift.explanation.outcomes import read_outcomes
from glotlift.explanation.states import PooledStates, pivot_of
from glotlift.explanation.subject import Subject, looked_into
from glotlift.models.fingerprints import digest, file_digest
from glotlift.runs import parquet_metadata, write_parquet

log = logging.getLogger("glotlift")


def check_outcomes(subject: Subject) -> None:
    """Refuse a subject without a tuned model or without predictions of its items, before anything runs.

    Raises:
        ModelError: base and tuned do not differ inside, or there is no tuned model.
        DataError: a file of predictions is missing, or not of what is looked into, see `read_outcomes`.
    """
    if "tuned" not in looked_into(subject.loaded):
        raise ModelError("item-link: got no tuned model to look into, expected an adapter that changes states")
    if missing := [file for file in _predictions(subject) if not file.is_file()]:
        raise DataError(
            f"item-link: got no {missing[0]}, expected the predictions of base and tuned, which `glotlift eval` or "
            "`glotlift run` writes into the same folder"
        )
    _outcomes(subject)


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
    fingerprint = digest(sources, read, subject.seed, LINK_COLUMNS)
    if parquet_metadata(target).get("fingerprint") == fingerprint:
        return
    quantities = [movement(states)] + ([earlier_crossover(folder, key, _foreign(subject))] if with_lens else [])
    outcomes = _outcomes(subject)
    n_items = sum(len(subject.prompts[code].items) for code in _foreign(subject))
    n_known = len(outcomes) // len(set(outcomes["calibration"]))
    if n_known < n_items:
        log.warning("item link: %d of %d items have no predictions and are left out", n_items - n_known, n_items)
    found = item_link(outcomes, pd.concat(quantities, ignore_index=True), seed=subject.seed)
    write_parquet(target, found, {"fingerprint": fingerprint, "pooling": subject.pooling})
    for row in found.loc[(found["language"] == "all") & found["layer"].isna()].to_dict("records"):
        if not row["n_flipped"] or not row["n_stayed"]:
            log.info("item link, %s, calibration %s: %d items flip and %d stay wrong, expected some of both to compare",
                     *(row[name] for name in ("quantity", "calibration", "n_flipped", "n_stayed")))  # fmt: skip
            continue
        said = "item link, %s, calibration %s: %+.4f, %d items that flip less %d that stay wrong; "
        numbers = (row[name] for name in ("quantity", "calibration", "value", "n_flipped", "n_stayed"))
        log.info(said + "95 %% interval %+.4f to %+.4f, p %.3f", *numbers, row["low"], row["high"], row["p"])


def _outcomes(subject: Subject) -> pd.DataFrame:
    prompts = {code: cast(Asked, subject.prompts[code]) for code in _foreign(subject)}
    fingerprints = {variant: subject.loaded.variant_fingerprint(variant) for variant in ("base", "tuned")}
    return read_outcomes(subject.folder / "predictions", subject.task_key, prompts, fingerprints)


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
