"""What a recipe's objectives learn from: parts of a training, made of the run's files and the base model's answers.

Reads: `data/pairs.jsonl`, `data/questions.jsonl`, the base model. Writes: `teacher/<language>.parquet`, label scores
that the base model gives the questions, computed once through the cached forward pass and kept by fingerprint. No right
answer is read, but for the control `gold`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glotlift.data.parallel import load_questions
from glotlift.data.questions import QuestionPair
from glotlift.data.read import read_items
from glotlift.evaluation.settings import EvalTask
from glotlift.recipe import Recipe
from glotlift.stages.data import QUESTIONS
from glotlift.stages.stage import OpenRun
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item, Task

if TYPE_CHECKING:
    import numpy as np

    from glotlift.evaluation.prompts import Prompts
    from glotlift.models.load import LoadedModel
    from glotlift.models.readout import Readout
    from glotlift.training.objective import LearnedRow, Part

log = logging.getLogger("glotlift")

TEACHER = "teacher"


@dataclass(frozen=True)
class Asked:
    """The questions of a run, asked of the base model.

    Attributes:
        names: of the questions, in order; those of every language are the same.
        held_out: names that validate.
        prompts: language -> prompts, English first.
        scores: language -> the base model's label log-probabilities. *Shape:* (questions, labels).
    """

    names: list[str]
    held_out: frozenset[str]
    prompts: dict[str, Prompts]
    scores: dict[str, np.ndarray]

    @property
    def languages(self) -> list[str]:
        """Those beside English."""
        return [code for code in self.prompts if code != "en"]


def parts_of(
    run: OpenRun, loaded: LoadedModel, training: Sequence[QuestionPair], validation: Sequence[QuestionPair]
) -> tuple[list[Part], list[LearnedRow]]:
    """Return the parts of a run's training, and the rows that validate the first one.

    Args:
        run: the run.
        loaded: the base model.
        training: question pairs that are learned from.
        validation: question pairs that are not.
    """
    from glotlift.tasks.markup import layout_text
    from glotlift.training.consistency import consistency_part
    from glotlift.training.contrastive import contrastive_part
    from glotlift.training.replay import replay_part
    from glotlift.training.rows import tokenize_pairs
    from glotlift.training.translation import translation_part

    recipe, settings = run.recipe, run.recipe.train
    asked = ask(run, loaded, validation) if settings.asks_questions else None
    parts: list[Part] = []
    held_out: list[LearnedRow] = []
    for name, weight in settings.objective.items():
        rows: Sequence[LearnedRow] = ()
        if name == "translation":
            layout = layout_text(load_task(recipe.data.task))
            pairs = shuffled(training, recipe.seed) if settings.control == "shuffled-pairs" else training
            parts.append(translation_part(loaded, pairs, settings, layout, weight))
            rows = tokenize_pairs(loaded.tokenizer, validation, settings, layout)
        elif asked is not None and name == "consistency":
            targets = targets_of(recipe, asked)
            part, rows = consistency_part(loaded.model, asked.prompts, asked.names, asked.held_out, targets, settings)
            parts.append(replace(part, weight=weight))
        elif asked is not None and name == "contrastive":
            part, rows = contrastive_part(loaded, asked.prompts, asked.names, asked.held_out, settings, recipe.seed)
            parts.append(replace(part, weight=weight))
        held_out = held_out or list(rows)
    if asked is not None and settings.replay:
        parts.append(replay_part(loaded.model, asked.prompts["en"].rows, asked.names, settings))
    return parts, held_out


def ask(run: OpenRun, loaded: LoadedModel, validation: Sequence[QuestionPair]) -> Asked:
    """Return the questions of a run with the base model's answers, which are kept in the run folder."""
    from glotlift.evaluation.prompts import prepare

    recipe, settings = run.recipe, run.recipe.train
    task = load_task(recipe.data.task)
    entry = EvalTask(task=recipe.data.task, answers=settings.answers, num_fewshot=settings.num_fewshot,
                     apply_chat_template=settings.prompt_format == "chat")  # fmt: skip
    questions = load_questions(run.path / QUESTIONS)
    names = list(questions["en"])
    items = {code: [Item(name, fields[name], "") for name in names] for code, fields in questions.items()}
    prompts = {code: prepare(loaded, task, code, each, entry) for code, each in items.items()}
    scores = {code: _base_scores(run, loaded, each) for code, each in prompts.items()}
    held_out = frozenset(pair.id.split(":", 1)[1] for pair in validation)
    return Asked(names, held_out, prompts, scores)


def _base_scores(run: OpenRun, loaded: LoadedModel, prompts: Prompts) -> np.ndarray:
    from functools import partial

    from glotlift.evaluation.predict import PredictionFile, prediction_fingerprint, score_batches
    from glotlift.processes import processes
    from glotlift.runs import read_parquet

    group = processes()
    path = run.path / TEACHER / f"{prompts.language}.parquet"
    fingerprint = prediction_fingerprint(loaded.variant_fingerprint("base"), prompts)
    file = PredictionFile(path, prompts, fingerprint, scoring="sequence", calibration="none",
                          metadata={"task": prompts.task, "variant": "base"}, process=group.index)  # fmt: skip
    share = {"process": group.index, "n_processes": group.count}
    file.score(partial(score_batches, loaded, prompts, "base", **share))
    group.wait()
    if group.is_first:
        file.finish()
    group.wait()
    return read_parquet(path)[0][[f"sequence_{label}" for label in prompts.labels]].to_numpy()


def readout_of(run: OpenRun, loaded: LoadedModel, validation: Sequence[QuestionPair]) -> tuple[Readout, dict[str, Any]]:
    """Return the readout of a run's questions, and what chose it; arguments as `parts_of`."""
    from glotlift.training.readout import fit_readout

    asked = ask(run, loaded, validation)
    recipe = run.recipe
    codes = ["en", *asked.languages]
    taught = targets_of(recipe, asked, codes)
    states = {code: _states(loaded, asked.prompts[code]) for code in codes}
    readout, found = fit_readout(states, {code: asked.scores[code] for code in codes}, taught,
                                 asked.prompts["en"].labels)  # fmt: skip
    log.info("train: readout at layer %d of %d, strength %g: its scores and the model's own agree with the teacher at "
             "%.3f where they were not fitted, the model's own alone at %.3f", readout.layer,
             states["en"].shape[1] - 1, found["chosen"]["strength"], found["chosen"]["agreement"],
             found["without"])  # fmt: skip
    return readout, found


def _states(loaded: LoadedModel, prompts: Prompts) -> np.ndarray:
    """Return the base model's states at the last prompt token. *Shape:* (questions, layers + 1, hidden), fp32."""
    import numpy as np

    from glotlift.models.forward import run as run_rows

    found: dict[int, Any] = {}
    with loaded.as_variant("base") as model:
        bare = [replace(row, trie=None, root=0) for row in prompts.rows]
        for batch in run_rows(model, bare, tokens=[0], last_states=True):
            assert batch.last_states is not None
            found |= dict(zip(batch.rows, batch.last_states.numpy(), strict=True))
    return np.stack([found[index] for index in range(len(found))])


def targets_of(recipe: Recipe, asked: Asked, languages: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return what the teacher says: language -> target scores, *shape* (questions, labels); of all but English, or of
    the languages given."""
    from glotlift.training.teacher import teacher_targets

    settings = recipe.train
    gold = _gold(recipe, asked.names) if settings.control == "gold" else None
    return teacher_targets(
        asked.scores, languages or asked.languages, teacher=settings.teacher, center=settings.center,
        control=settings.control, gold=gold, seed=recipe.seed,
    )  # fmt: skip


def _gold(recipe: Recipe, names: Sequence[str]) -> list[int]:
    """Return the number of every question's right label; the only place of training that reads one."""
    task: Task = load_task(recipe.data.task)
    items = read_items(task, recipe.data.source, ("en",), columns=recipe.data.columns)["en"]
    gold: Mapping[str, Any] = {item.id: item.gold for item in items}
    return [task.labels.index(gold[name]) for name in names]


def shuffled(pairs: Sequence[QuestionPair], seed: int) -> list[QuestionPair]:
    """Return pairs whose targets are those of other questions of the same language: a control."""
    order = list(range(len(pairs)))
    draw = random.Random(seed)
    by_language: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_language.setdefault(pair.language, []).append(index)
    for indexes in by_language.values():
        mixed = draw.sample(indexes, len(indexes))
        for index, other in zip(indexes, mixed, strict=True):
            order[index] = other
    return [replace(pair, target=pairs[order[index]].target) for index, pair in enumerate(pairs)]
