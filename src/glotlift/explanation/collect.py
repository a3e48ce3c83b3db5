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
from glotlift.explanation.tuned_lens import TunedLens, load_tuned_lens
from glotlift.models.forward import Batch, run
from glotlift.models.load import LoadedModel, digest
from glotlift.models.packing import TOKEN_BUDGET, Row
from glotlift.models.watching import Taps
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
    """Write `lens`, `geometry`, `item-link` or several of a subject; arguments and errors as `explain_languages`.

    What a watcher of evaluation's pass has written, see `glotlift.explanation.watching`, is not computed again.
    """
    say_what_is_left_out(subject.loaded)
    looks = Looks(subject, kinds)
    states: dict[str, dict[str, PooledStates]] = {}
    for variant, (language, questions) in product(looked_into(subject.loaded), subject.prompts.items()):
        look = looks.of(variant, language)
        states.setdefault(variant, {})[language] = PooledStates(look.states_path)
        if look.is_written:
            subject.progress(len(questions.rows))
            continue
        try:
            looks.test(variant, language)
            look.run()
            look.write()
        except (ModelError, RunError) as fault:
            raise type(fault)(f"task {subject.task_key!r}, {language}: {fault}") from None
    if "lens" in kinds:
        write_pivots(subject)
    if "geometry" in kinds:
        target = subject.folder / "geometry" / subject.task_key
        write_geometry(target, states, seed=subject.seed, n_permutations=n_permutations)
    if "item-link" in kinds:
        write_link(subject, states, with_lens="lens" in kinds)


def identity(loaded: LoadedModel, variant: str, language: str, questions: Questions) -> list[Any]:
    """Return what the states of questions depend on."""
    rows = [(row.prompt, row.span) for row in questions.rows]
    by_language = [language] if loaded.steering is not None and variant == "tuned" else []
    return [loaded.variant_fingerprint(variant), rows, [item.id for item in questions.items], *by_language]


class Look:
    """Lens and geometry of a variant and language: what they ask of a pass, see of it and write.

    Args:
        subject: what is looked into.
        variant: `base` or `tuned`.
        language: of the prompts.
        kinds: `lens`, `geometry` or both; others are not looked at.
        translators: a tuned lens; None for none.

    Attributes:
        states_path: of the pooled states.
    """

    def __init__(
        self, subject: Subject, variant: str, language: str, kinds: Sequence[str], translators: TunedLens | None
    ) -> None:
        self._subject, self._variant, self._language = subject, variant, language
        self._questions = subject.prompts[language]
        target = subject.folder / "geometry" / subject.task_key
        self.states_path = target / "states" / variant / f"{language}.safetensors"
        asked = [name for name in (subject.pooling, subject.states_dtype) if name not in ("question", "float32")]
        self._of_states = digest(identity(subject.loaded, variant, language, self._questions), *asked)
        is_kept = PooledStates(self.states_path).metadata.get("fingerprint") == self._of_states
        self._wants_states = "geometry" in kinds and not is_kept
        self._lens: LensPass | None = None
        if "lens" in kinds:
            sets = token_sets(subject.loaded.tokenizer, subject.english_words, subject.own_words[language])
            lens = LensPass(subject, variant, language, self._questions, sets, translators)
            self._lens = None if lens.is_written else lens
        self._indexes: list[int] = []
        self._pooled: list[torch.Tensor] = []

    @property
    def is_written(self) -> bool:
        """Whether there is nothing left to look at."""
        return not self._wants_states and self._lens is None

    def can_be_checked(self, tokens: Sequence[int]) -> bool:
        """Return whether a pass that gives the probabilities of these tokens tells if the lens reads the model."""
        return self._lens is None or not self._lens.tokens or not set(tokens).isdisjoint(self._lens.tokens)

    @property
    def taps(self) -> Taps:
        """Taps that the pass needs."""
        pooled: Taps = {"pooled_states": self._wants_states}
        return pooled | self._lens.taps if self._lens else pooled

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of a pass, where states are wanted with the spans that are pooled over."""
        return pooled_rows(rows, self._subject.pooling) if self._wants_states else list(rows)

    def see(self, model: Any, batch: Batch, tokens: Sequence[int]) -> None:
        """Look at those of a batch that are among the questions; `tokens` are the columns of its logits."""
        seen = batch.of_first(len(self._questions.rows))
        if not seen.rows:
            return
        if self._lens is not None:
            self._lens.see(model, seen, tokens)
        if self._wants_states:
            assert seen.pooled_states is not None
            self._pooled.append(seen.pooled_states)
        self._indexes += seen.rows

    def run(self) -> None:
        """Make a pass of its own over the questions."""
        rows = self._lens.rows if self._lens else [LensPass.bare(row) for row in self._questions.rows]
        tokens = self._lens.tokens if self._lens else ()
        subject = self._subject
        with subject.loaded.as_variant(self._variant, self._language) as model:
            for batch in run(model, self.rows(rows), token_budget=subject.token_budget, tokens=tokens, **self.taps):
                self.see(model, batch, tokens)
                subject.progress(len(batch.rows))
            if self._lens is not None:
                self._lens.see_components(model)

    def write(self) -> None:
        """Write what was seen.

        Raises:
            ModelError: a state has no number in the type that states are written in.
        """
        questions, subject = self._questions, self._subject
        if self._pooled:
            in_order = torch.cat(self._pooled)[torch.tensor(self._indexes).argsort()].transpose(0, 1)
            lengths = [end - start for start, end in (row.span for row in self.rows(questions.rows))]
            about = {
                "fingerprint": self._of_states, "ids": [item.id for item in questions.items], "lengths": lengths,
                "pooling": subject.pooling,
            }  # fmt: skip
            write_states(self.states_path, in_type(in_order, subject.states_dtype), about)
        if self._lens is not None:
            self._lens.write()


class Looks:
    """The looks into all variants and languages of a subject.

    Args:
        subject: what is looked into, kept as `subject`.
        kinds: of explanation.
    """

    def __init__(self, subject: Subject, kinds: Sequence[str]) -> None:
        self.subject, self._kinds = subject, kinds
        self._tested: set[str] = set()
        loaded, folder = subject.loaded, subject.lens.tuned_lens
        self._translators = load_tuned_lens(folder, loaded) if folder else None

    def of(self, variant: str, language: str) -> Look:
        """Return the look into a variant and language."""
        return Look(self.subject, variant, language, self._kinds, self._translators)

    def test(self, variant: str, language: str) -> None:
        """Try the variant on two short texts, if it has not been, see `glotlift.explanation.self_test`."""
        if variant not in self._tested:
            self_test(self.subject.loaded, variant, language)
            self._tested.add(variant)
