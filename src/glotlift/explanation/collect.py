"""The one pass that feeds lens and geometry.

Enters: a subject. Leaves: `lens/` and `geometry/` of the run folder, what else the lens was asked for, and the item
link that is made of both, see `glotlift.explanation.lens`, `.geometry` and `.link_file`. A language's files carry the
fingerprint of all their numbers depend on and are written as soon as they are computed, so a run that was killed goes
on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from glotlift.errors import ModelError, RunError
from glotlift.explanation.geometry import N_PERMUTATIONS, PooledStates, write_geometry, write_states
from glotlift.explanation.lens_pass import LensPass
from glotlift.explanation.link_file import check_outcomes, write_link
from glotlift.explanation.pivot_file import write_pivots
from glotlift.explanation.pooling import pooled_rows
from glotlift.explanation.self_test import self_test
from glotlift.explanation.states import in_type
from glotlift.explanation.subject import LensOptions, Questions, Subject, looked_into, say_what_is_left_out
from glotlift.explanation.token_sets import token_sets
from glotlift.explanation.tuned_lens import load_tuned_lens
from glotlift.models.forward import run
from glotlift.models.load import LoadedModel, digest
from glotlift.models.packing import TOKEN_BUDGET
from glotlift.tasks.task import AnswerSet

__all__ = ["Questions", "explain", "explain_languages"]


def explain_languages(
    loaded: LoadedModel,
    prompts: Mapping[str, Questions],
    folder: Path,
    *,
    task_key: str,
    english_words: AnswerSet,
    own_words: Mapping[str, AnswerSet],
    seed: int = 0,
    token_budget: int = TOKEN_BUDGET,
    n_permutations: int = N_PERMUTATIONS,
    progress: Callable[[int], Any] | None = None,
    lens: LensOptions | None = None,
) -> None:
    """Write lens and geometry of a task, for every variant of the model and every language.

    Args:
        loaded: the model.
        prompts: see `glotlift.explanation.subject.Subject`, as all the others.
        folder: likewise.
        task_key: likewise.
        english_words: likewise.
        own_words: likewise.
        seed: of the permutations.
        token_budget: tokens of a batch.
        n_permutations: draws of the null, see `glotlift.explanation.geometry`.
        progress: see `Subject`.
        lens: what the lens reads.

    Raises:
        ModelError: a prompt does not fit the model's window, or the model gives values that are not finite.
        RunError: the lens cannot read this model: its last layer is not the model's own distribution.
        OutputError: the folder cannot be written.
    """
    subject = Subject(
        loaded, prompts, folder, task_key, english_words, own_words, seed, token_budget,
        progress or (lambda _n: None), lens or LensOptions(),
    )  # fmt: skip
    explain(subject, ("lens", "geometry"), n_permutations=n_permutations)


def check(subject: Subject, kinds: Sequence[str]) -> None:
    """Refuse an item link without a tuned model or predictions, see `glotlift.explanation.link_file.check_outcomes`."""
    if "item-link" in kinds:
        check_outcomes(subject)


def explain(subject: Subject, kinds: Sequence[str], *, n_permutations: int = N_PERMUTATIONS) -> None:
    """Write `lens`, `geometry`, `item-link` or several of a subject; arguments and errors as `explain_languages`."""
    loaded, states = subject.loaded, {}
    say_what_is_left_out(loaded)
    translators = load_tuned_lens(subject.lens.tuned_lens, loaded) if subject.lens.tuned_lens else None
    target = subject.folder / "geometry" / subject.task_key
    tested: set[str] = set()
    for variant, (language, questions) in product(looked_into(loaded), subject.prompts.items()):
        sets = token_sets(loaded.tokenizer, subject.english_words, subject.own_words[language])
        pooled = PooledStates(target / "states" / variant / f"{language}.safetensors")
        states.setdefault(variant, {})[language] = pooled
        lens = LensPass(subject, variant, language, questions, sets, translators) if "lens" in kinds else None
        asked = [name for name in (subject.pooling, subject.states_dtype) if name not in ("question", "float32")]
        of_states = digest(identity(loaded, variant, language, questions), *asked)
        wants_states = "geometry" in kinds and pooled.metadata.get("fingerprint") != of_states
        if not wants_states and (lens is None or lens.is_written):
            subject.progress(len(questions.rows))
            continue
        try:
            if variant not in tested:
                self_test(loaded, variant, language)
                tested.add(variant)
            kept = _run(subject, variant, language, questions, None if lens and lens.is_written else lens, wants_states)
            kept = None if kept is None else in_type(kept, subject.states_dtype)
        except (ModelError, RunError) as fault:
            raise type(fault)(f"task {subject.task_key!r}, {language}: {fault}") from None
        if kept is not None:
            ids = [item.id for item in questions.items]
            spans = [row.span for row in pooled_rows(questions.rows, subject.pooling)]
            lengths = [end - start for start, end in spans]
            about = {"fingerprint": of_states, "ids": ids, "lengths": lengths, "pooling": subject.pooling}
            write_states(pooled.path, kept, about)
        if lens is not None:
            lens.write()
    if "lens" in kinds:
        write_pivots(subject)
    if "geometry" in kinds:
        states = {
            variant: {code: PooledStates(of.path) for code, of in each.items()} for variant, each in states.items()
        }
        write_geometry(target, states, seed=subject.seed, n_permutations=n_permutations)
    if "item-link" in kinds:
        write_link(subject, states, with_lens="lens" in kinds)


def identity(loaded: LoadedModel, variant: str, language: str, questions: Questions) -> list[Any]:
    """Return what the states of questions depend on."""
    rows = [(row.prompt, row.span) for row in questions.rows]
    by_language = [language] if loaded.steering is not None and variant == "tuned" else []
    return [loaded.variant_fingerprint(variant), rows, [item.id for item in questions.items], *by_language]


def _run(
    subject: Subject, variant: str, language: str, questions: Questions, lens: LensPass | None, wants_states: bool
) -> torch.Tensor | None:
    """Run a language once, with the taps that are asked for; *shape* of pooled states (layers + 1, items, hidden)."""
    rows = lens.rows if lens is not None else [LensPass.bare(row) for row in questions.rows]
    tokens = lens.tokens if lens is not None else ()
    indexes, pooled = [], []
    with subject.loaded.as_variant(variant, language) as model:
        batches = run(
            model, pooled_rows(rows, subject.pooling), token_budget=subject.token_budget, tokens=tokens,
            pooled_states=wants_states, asked_states=lens is not None,
        )  # fmt: skip
        for batch in batches:
            if lens is not None:
                lens.see(model, batch)
            if batch.pooled_states is not None:
                pooled.append(batch.pooled_states)
            indexes += batch.rows
            subject.progress(len(batch.rows))
        if lens is not None:
            lens.see_components(model)
    if not pooled:
        return None
    in_order = torch.cat(pooled)[torch.tensor(indexes).argsort()]
    return in_order.transpose(0, 1)
