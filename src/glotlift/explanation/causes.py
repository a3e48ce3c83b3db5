"""Where an answer is lost, and where a change comes from: patching and switch-off of a subject, a language at a time.

Enters: a subject. Leaves, in the run folder:

    patching/<task>/<base|tuned>/<language>.parquet   rows of `glotlift.explanation.patching`
    patching/<task>/summary.parquet                   rows of `glotlift.explanation.repairs`
    switch_off/<task>/<language>.parquet              rows of `glotlift.explanation.switch_off`
    switch_off/<task>/summary.parquet                 rows of `glotlift.explanation.carriers`

A file carries the fingerprint of all its numbers depend on and is written as soon as it is computed, so a run that was
killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pandas as pd

from glotlift.explanation.answers import Asked
from glotlift.explanation.carriers import summarise_switch_off
from glotlift.explanation.collect import identity
from glotlift.explanation.patching import Held, hold, patch_language
from glotlift.explanation.repairs import summarise_patching
from glotlift.explanation.self_test import self_test
from glotlift.explanation.settings import PATCHED_FROM, check_languages
from glotlift.explanation.subject import Subject, looked_into
from glotlift.explanation.switch_off import switch_off_language
from glotlift.models.adapters import adapter_parts
from glotlift.models.fingerprints import digest
from glotlift.runs import parquet_metadata, read_parquet, write_parquet


def check(subject: Subject, kinds: Sequence[str]) -> None:
    """Refuse what cannot be patched or switched off, before anything runs.

    Raises:
        LanguageError: see `check_languages`.
        ModelError: there is no LoRA adapter to switch off.
    """
    check_languages(kinds, subject.prompts)
    if "switch-off" in kinds:
        adapter_parts(subject.loaded.model)


def explain(subject: Subject, kinds: Sequence[str]) -> None:
    """Write `patching`, `switch-off` or both of a subject; arguments as `check`, which has let them pass.

    Raises:
        ModelError: the model cannot be looked into (see `glotlift.explanation.self_test`), patched or switched off (see
            `patch_language` and `switch_off_language`).
        RunError: see `glotlift.explanation.self_test`.
    """
    if "patching" in kinds:
        _patch(subject)
    if "switch-off" in kinds:
        _switch_off(subject)


def _patch(subject: Subject) -> None:
    others = [code for code in subject.prompts if code != PATCHED_FROM]
    folder = subject.folder / "patching" / subject.task_key
    english = cast(Asked, subject.prompts[PATCHED_FROM])
    frames, fingerprints = [], []
    for variant in looked_into(subject.loaded):
        held: list[Held] = []

        def patched(asked: Asked, variant: str = variant, held: list[Held] = held) -> pd.DataFrame:
            if not held:  # once, and not where all files are there
                self_test(subject.loaded, variant, asked.language)
                held.append(hold(subject.loaded, english, variant, token_budget=subject.token_budget))
            return patch_language(
                subject.loaded, asked, held[0], variant, seed=subject.seed, token_budget=subject.token_budget
            )

        for code in others:
            parts = [_of(subject, variant, each) for each in (code, PATCHED_FROM)]
            fingerprints.append(digest(*parts, subject.seed))
            frames.append(_kept(subject, folder / variant / f"{code}.parquet", fingerprints[-1], code, patched))
        subject.progress(len(english.rows))
    _summarised(folder, fingerprints, subject.seed, frames, summarise_patching)


def _switch_off(subject: Subject) -> None:
    folder = subject.folder / "switch_off" / subject.task_key

    tested: list[str] = []

    def switched(asked: Asked) -> pd.DataFrame:
        for variant in () if tested else subject.loaded.variants:
            self_test(subject.loaded, variant, asked.language)
            tested.append(variant)
        return switch_off_language(subject.loaded, asked, token_budget=subject.token_budget)

    frames, fingerprints = [], []
    for code in subject.prompts:
        fingerprints.append(digest(*(_of(subject, variant, code) for variant in subject.loaded.variants)))
        frames.append(_kept(subject, folder / f"{code}.parquet", fingerprints[-1], code, switched))
    _summarised(folder, fingerprints, subject.seed, frames, summarise_switch_off)


def _of(subject: Subject, variant: str, code: str) -> list[object]:
    """Return all that a variant's answers in a language depend on."""
    asked = cast(Asked, subject.prompts[code])
    words = [row.trie.steps if row.trie else None for row in asked.rows]
    gold = [item.gold for item in asked.items]
    return [identity(subject.loaded, variant, code, asked), words, gold, list(asked.labels)]


def _kept(
    subject: Subject, file: Path, fingerprint: str, code: str, make: Callable[[Asked], pd.DataFrame]
) -> pd.DataFrame:
    """Return the frame of a file, which is made where it is not there yet, or of something else."""
    asked = cast(Asked, subject.prompts[code])
    if parquet_metadata(file).get("fingerprint") != fingerprint:
        write_parquet(file, make(asked), {"fingerprint": fingerprint, "language": code})
    subject.progress(len(asked.rows))
    return read_parquet(file)[0]


def _summarised(
    folder: Path,
    fingerprints: Sequence[str],
    seed: int,
    frames: Sequence[pd.DataFrame],
    summarise: Callable[..., pd.DataFrame],
) -> None:
    fingerprint = digest(list(fingerprints), seed)
    file = folder / "summary.parquet"
    if parquet_metadata(file).get("fingerprint") != fingerprint:
        summary = summarise(pd.concat(frames, ignore_index=True), seed=seed)
        write_parquet(file, summary, {"fingerprint": fingerprint})
