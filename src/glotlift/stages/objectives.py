"""What a recipe's objectives learn from: parts of a training, made of the run's files and the base model's answers.

Reads: `data/pairs.jsonl`, `data/questions.jsonl`, the base model. Writes: `teacher/<language>.parquet` and
`teacher/<language>.sentences.parquet`, label scores that the base model gives the questions and their sentences,
computed once through the cached forward pass and kept by fingerprint; what each pass cost, `teacher/passes.json`. No
right answer is read here, but for the control `gold`; a probe, which reads those of its items to choose weights, is
made in `stages/train.py`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glotlift.data.parallel import load_questions
from glotlift.data.questions import QuestionPair
from glotlift.data.sentences import sentences_of
from glotlift.evaluation.settings import EvalTask
from glotlift.recipe import Recipe
from glotlift.stages.data import QUESTIONS, right_answers
from glotlift.stages.passes import counted_pass
from glotlift.stages.stage import OpenRun
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item
from glotlift.training.settings import TAUGHT

if TYPE_CHECKING:
    import numpy as np

    from glotlift.evaluation.prompts import Prompts
    from glotlift.models.load import LoadedModel
    from glotlift.models.readout import Readout
    from glotlift.models.steering import Steering
    from glotlift.training.objective import LearnedRow, Part
    from glotlift.training.teacher import Answers

log = logging.getLogger("glotlift")

TEACHER = "teacher"


@dataclass(frozen=True)
class Asked:
    """Questions of a run, or sentences of them, asked of the base model.

    Attributes:
        prompts: language -> prompts, English first.
        answers: language -> what the base model says, row by row.
    """

    prompts: dict[str, Prompts]
    answers: dict[str, Answers]

    @property
    def languages(self) -> list[str]:
        """Those beside English."""
        return [code for code in self.prompts if code != "en"]


@dataclass(frozen=True)
class AskedRun:
    """All that a run asks of the base model.

    Attributes:
        whole: the questions, the same in every language.
        sentences: their sentences, in a language those of the questions whose translation has as many as the English
            one; in English all. None where none are asked.
        held_out: names of the questions that validate.
    """

    whole: Asked
    sentences: Asked | None
    held_out: frozenset[str]

    @property
    def names(self) -> Sequence[str]:
        """Of the questions."""
        return self.whole.answers["en"].names


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
    from glotlift.training.consistency import consistency_part, score_rows
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
            pairs = training
            if settings.control == "shuffled-pairs":
                pairs = shuffled(training, recipe.seed)
            elif settings.control == "copied-pairs":
                pairs = [copied(pair) for pair in training]
            parts.append(translation_part(loaded, pairs, settings, layout, weight))
            rows = tokenize_pairs(loaded.tokenizer, validation, settings, layout)
        elif asked is not None and name == "consistency":
            taught = [
                row
                for each, targets in targets_of(recipe, asked, asked.whole.languages)
                for row in score_rows(each.prompts, each.answers, targets)
            ]
            part, rows = consistency_part(loaded.model, taught, asked.held_out, settings)
            parts.append(replace(part, weight=weight))
        elif asked is not None and name == "contrastive":
            prompts = asked.whole.prompts
            part, rows = contrastive_part(loaded, prompts, asked.names, asked.held_out, settings, recipe.seed)
            parts.append(replace(part, weight=weight))
        held_out = held_out or list(rows)
    if asked is not None and settings.replay:
        parts.append(replay_part(loaded.model, asked.whole.prompts["en"].rows, asked.names, settings))
    return parts, held_out


def ask(run: OpenRun, loaded: LoadedModel, validation: Sequence[QuestionPair]) -> AskedRun:
    """Return the questions of a run with the base model's answers, which are kept in the run folder."""
    settings = run.recipe.train
    questions = load_questions(run.path / QUESTIONS)
    names = list(questions["en"])
    whole = {code: [_Row(name, name, fields[name]) for name in names] for code, fields in questions.items()}
    sentences = None
    if TAUGHT & set(settings.objective) and (settings.sentences or settings.teacher == "sentences"):
        split = _sentence_rows(questions if settings.sentences else {"en": questions["en"]})
        is_enough = set(settings.objective) == {"readout"} and settings.teacher != "ensemble"
        codes = ["en"] if is_enough and settings.control != "own-language-teacher" else list(split)
        is_several = len({row.question for row in split["en"]}) > 1
        sentences = _ask(run, loaded, split, codes, ".sentences") if is_several else None
    held_out = frozenset(pair.id.split(":", 1)[1] for pair in validation)
    return AskedRun(_ask(run, loaded, whole, list(whole), ""), sentences, held_out)


@dataclass(frozen=True)
class _Row:
    """A question or a sentence of one: its name, that of the question, its fields."""

    name: str
    question: str
    fields: Mapping[str, str]


def _sentence_rows(questions: Mapping[str, Mapping[str, Mapping[str, str]]]) -> dict[str, list[_Row]]:
    """Return the sentences of every language, English first; a language that has none is left out."""
    english = {name: sentences_of(fields) for name, fields in questions["en"].items()}
    found: dict[str, list[_Row]] = {}
    for code, by_name in {"en": questions["en"], **questions}.items():
        parts = {name: english[name] if code == "en" else sentences_of(fields) for name, fields in by_name.items()}
        rows = [
            _Row(f"{name}#{number}", name, part)
            for name, each in parts.items()
            if len(each) == len(english[name])
            for number, part in enumerate(each, 1)
        ]
        if rows or code == "en":
            found[code] = rows
    return found


def asked_as(recipe: Recipe) -> EvalTask:
    """Return how the questions of a recipe are asked: as its task is first evaluated, where the settings leave it open.

    What is learned about one way to ask, a readout above all, is of little use for another.
    """
    settings, tasks = recipe.train, recipe.eval.tasks if recipe.eval else ()
    first = next((each for each in tasks if each.task == recipe.data.task), EvalTask(task=recipe.data.task))
    return EvalTask(
        task=recipe.data.task,
        answers=settings.answers or first.answers,
        num_fewshot=first.num_fewshot if settings.num_fewshot is None else settings.num_fewshot,
        closing_quote=first.closing_quote,
        apply_chat_template=first.apply_chat_template or settings.prompt_format == "chat",
    )


def _ask(
    run: OpenRun, loaded: LoadedModel, rows: Mapping[str, Sequence[_Row]], scored: Sequence[str], ending: str
) -> Asked:
    """Return prompts of all rows, and what the base model says in the languages that are scored."""
    from glotlift.evaluation.prompts import prepare
    from glotlift.training.teacher import Answers

    task, entry = load_task(run.recipe.data.task), asked_as(run.recipe)
    prompts, answers = {}, {}
    for code in ("en", *(code for code in rows if code != "en")):
        items = [Item(row.name, row.fields, "") for row in rows[code]]
        prompts[code] = prepare(loaded, task, code, items, entry)
        file = run.path / TEACHER / f"{code}{ending}.parquet"
        scores = _base_scores(run, loaded, prompts[code], file) if code in scored else None
        answers[code] = Answers([row.name for row in rows[code]], [row.question for row in rows[code]], scores)
    return Asked(prompts, answers)


def _base_scores(run: OpenRun, loaded: LoadedModel, prompts: Prompts, path: Path) -> np.ndarray:
    from functools import partial

    import numpy as np

    from glotlift.evaluation.predict import score_batches
    from glotlift.evaluation.prediction_file import PredictionFile, prediction_fingerprint
    from glotlift.models.watching import LastStates
    from glotlift.processes import processes
    from glotlift.runs import read_parquet

    group = processes()
    fingerprint = prediction_fingerprint(loaded.variant_fingerprint("base"), prompts)
    file = PredictionFile(path, prompts, fingerprint, scoring="sequence", calibration="none",
                          metadata={"task": prompts.task, "variant": "base"}, process=group.index)  # fmt: skip
    share: dict[str, Any] = {"process": group.index, "n_processes": group.count}
    kept = LastStates()
    if "readout" in run.recipe.train.objective:  # which reads them, see `_states`
        share["watcher"] = kept
    rows = [*prompts.rows, *prompts.content_free]
    with counted_pass(run, fingerprint, path.stem, rows, is_kept=file.is_scored):
        file.score(partial(score_batches, loaded, prompts, "base", **share))
    if kept.found.keys() >= set(range(len(prompts.rows))):  # not where some were scored before, or by another process
        run.states[fingerprint] = np.stack([kept.found[index] for index in range(len(prompts.rows))])
    group.wait()
    if group.is_first:
        file.finish()
    group.wait()
    return read_parquet(path)[0][[f"sequence_{label}" for label in prompts.labels]].to_numpy()


def readout_of(run: OpenRun, loaded: LoadedModel, validation: Sequence[QuestionPair]) -> tuple[Readout, dict[str, Any]]:
    """Return the readout of a run's questions, and what chose it; arguments as `parts_of`."""
    from glotlift.training.readout import Stated, fit_readout

    asked = ask(run, loaded, validation)
    stated = [
        Stated(code, each.answers[code].questions, _states(run, loaded, each, code), each.answers[code].scores, taught,
               is_whole=each is asked.whole)
        for each, targets in targets_of(run.recipe, asked, ["en", *asked.whole.languages])
        for code, taught in targets.items()
    ]  # fmt: skip
    readout, found = fit_readout(stated, asked.whole.prompts["en"].labels)
    chosen = found["chosen"]
    log.info("train: readout at layer %d of %d, strength %g, %s: agrees with the teacher at %.3f where it was not "
             "fitted, the model's own scores at %.3f (%+.3f to %+.3f)", readout.layer, stated[0].states.shape[1] - 1,
             chosen["strength"], "added to the model's own scores" if chosen["own"] else "alone", found["agreement"],
             found["without"], *found["better"])  # fmt: skip
    if not found["is_used"]:
        log.warning("train: the readout agrees with the teacher no better than the model itself: it gets no weight, "
                    "and the tuned model answers as the base does")  # fmt: skip
    return readout, found


def _states(run: OpenRun, loaded: LoadedModel, asked: Asked, code: str) -> np.ndarray:
    """Return the base model's states at the last prompt token, kept from the pass that scored them where one just did.

    *Shape:* (rows, layers + 1, hidden), fp32; the same bytes whether they were kept or are computed here.
    """
    import numpy as np

    from glotlift.evaluation.predict import score_batches
    from glotlift.evaluation.prediction_file import prediction_fingerprint
    from glotlift.models.anatomy import text_config
    from glotlift.models.forward import run as run_rows
    from glotlift.models.watching import LastStates

    prompts = asked.prompts[code]
    key = prediction_fingerprint(loaded.variant_fingerprint("base"), prompts)
    with counted_pass(run, key, f"{code} states", prompts.rows, is_kept=key in run.states):
        if key in run.states:
            return run.states[key]
        found: dict[int, np.ndarray] = {}
        if asked.answers[code].scores is not None:
            kept = LastStates()
            for _ in score_batches(loaded, prompts, "base", watcher=kept):
                pass
            found = kept.found
        else:
            bare = [replace(row, trie=None, root=0) for row in prompts.rows]
            with loaded.as_variant("base") as model:
                for batch in run_rows(model, bare, last_states=True, until=text_config(model).num_hidden_layers):
                    assert batch.last_states is not None
                    found |= dict(zip(batch.rows, batch.last_states.numpy(), strict=True))
        run.states[key] = np.stack([found[index] for index in range(len(prompts.rows))])
    return run.states[key]


def steering_of(
    run: OpenRun, loaded: LoadedModel, validation: Sequence[QuestionPair]
) -> tuple[Steering, dict[str, Any]]:
    """Return the steering of a run's languages, and what chose it; arguments as `parts_of`."""
    from glotlift.evaluation.predict import predict, score_and_pool
    from glotlift.evaluation.prediction_file import prediction_fingerprint
    from glotlift.models.load import model_source, tensors_fingerprint
    from glotlift.training.steering import fit_steering

    asked = ask(run, loaded, validation)
    whole = asked.whole
    base = loaded.variant_fingerprint("base")
    states = {}
    for code, prompts in whole.prompts.items():
        with counted_pass(run, prediction_fingerprint(f"{base} pooled", prompts), f"{code} pooled", prompts.rows):
            states[code] = score_and_pool(loaded, prompts)[1]
    own = {code: each.scores for code, each in whole.answers.items() if each.scores is not None}
    ((_, taught), *_) = targets_of(run.recipe, asked, whole.languages)

    def score(steering: Steering, code: str) -> np.ndarray:
        prompts = whole.prompts[code]
        steered = replace(loaded, steering=steering, adapter_fingerprint="steered")
        which = f"steered {steering.low} to {steering.high} by {steering.strength:g}"
        rows = [*prompts.rows, *prompts.content_free]
        with counted_pass(run, prediction_fingerprint(f"{base} {which}", prompts), f"{code} {which}", rows):
            found = predict(steered, prompts, "tuned")
        return found[[f"sequence_{label}" for label in prompts.labels]].to_numpy()

    steering, found = fit_steering(states, own, taught, score, tensors_fingerprint(model_source(run.recipe.model)))
    log.info("train: steering in %s, added behind block %d and taken off behind %d, strength %g: agrees with the "
             "teacher at %.3f, the model alone at %.3f; other languages run as they are",
             " ".join(steering.offsets), steering.low, steering.high, steering.strength, found["chosen"]["agreement"],
             found["without"])  # fmt: skip
    return steering, found


def targets_of(recipe: Recipe, asked: AskedRun, languages: Sequence[str]) -> list[tuple[Asked, dict[str, np.ndarray]]]:
    """Return what the teacher says, of whole questions and of sentences: language -> target scores.

    Args:
        recipe: of the run.
        asked: what it asks.
        languages: that are taught.
    """
    from glotlift.training.teacher import teacher_targets

    settings = recipe.train
    gold = right_answers(recipe, asked.names) if settings.control == "gold" else None
    shared = {"center": settings.center, "control": settings.control, "gold": gold, "seed": recipe.seed}
    of_sentences = asked.sentences.answers["en"] if asked.sentences is not None else None
    whole = teacher_targets(asked.whole.answers, languages, teacher=settings.teacher, english_sentences=of_sentences,
                            **shared)  # fmt: skip
    found = [(asked.whole, whole)]
    if asked.sentences is not None and settings.sentences:
        having = [code for code in languages if code in asked.sentences.answers]
        teacher = "english" if settings.teacher == "sentences" else settings.teacher
        found.append((asked.sentences, teacher_targets(asked.sentences.answers, having, teacher=teacher, **shared)))
    return found


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


def copied(pair: QuestionPair) -> QuestionPair:
    """Return a pair that is copied in place of translated: a control, which reads no second language."""
    asks = pair.input[pair.input.rindex("\n", 0, -1) :]  # the last line
    return replace(pair, input=pair.target + asks)
