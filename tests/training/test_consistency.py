"""Consistency: label scores with gradients equal evaluation's; it moves a language to its teacher and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from glotlift.errors import DataError
from glotlift.evaluation.predict import predict
from glotlift.evaluation.prompts import prepare
from glotlift.evaluation.settings import EvalTask
from glotlift.models.together import lay_together, states_together
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Item
from glotlift.training.consistency import Consistency, ScoreRow, consistency_part, label_scores, score_rows
from glotlift.training.contrastive import contrastive_part
from glotlift.training.replay import Replay, replay_rows
from glotlift.training.settings import TrainSettings
from glotlift.training.teacher import Answers, teacher_targets
from glotlift.training.tune import tune
from tests.conftest import FAMILIES, SCALED, random_model

TEXTS = ("It is good.", "Not at all what we had hoped for, sadly.", "Fine", "A kettle that boils and boils and boils.")
SETTINGS = {
    "rank": 4, "alpha": 8, "learning_rate": 5e-3, "batch_size": 4, "micro_batch_size": 2, "epochs": 12.0,
    "warmup_fraction": 0.0, "scheduler": "constant",
}  # fmt: skip


def asked(loaded, codes=("en", "de"), answers="own"):
    task = load_task("sentiment")
    items = [Item(str(number), {"text": text}, "") for number, text in enumerate(TEXTS)]
    return {code: prepare(loaded, task, code, items, EvalTask(task="sentiment", answers=answers)) for code in codes}


def answers(scores):
    return {code: Answers(names := [str(n) for n in range(len(each))], names, each) for code, each in scores.items()}


def scores_of(loaded, prompts, variant="base"):
    frame = predict(loaded, prompts, variant)
    scores = frame[[f"sequence_{label}" for label in prompts.labels]].to_numpy()
    return scores - scores.mean(1, keepdims=True)


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_scores_with_gradients_are_those_of_evaluation(tiny, family):
    """Words of several tokens, sliding windows, a soft-cap: in one sequence as in the cached pass."""
    loaded = tiny(family)
    for code in ("de", "th"):
        prompts = asked(loaded, (code,))[code]
        rows = [row for row in prompts.rows]
        given, places = lay_together(loaded.model, rows)
        with torch.no_grad():
            states = states_together(loaded.model, given)
            found = label_scores(loaded.model, states, places.nodes, [row.trie.steps for row in rows])
        np.testing.assert_allclose(found.numpy(), scores_of(loaded, prompts), atol=2e-4)


def test_an_adapter_on_the_head_and_labels_with_a_common_beginning_count(tiny):
    loaded = tiny("qwen2")
    model = get_peft_model(random_model("qwen2"), LoraConfig(r=2, target_modules=["lm_head", "q_proj"])).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    tuned = dataclasses.replace(loaded, model=model, adapter_fingerprint="x")
    prompts = asked(loaded, ("ja",))["ja"]
    assert all(row.trie.steps[0][0] == row.trie.steps[1][0] for row in prompts.rows)  # one first token
    given, places = lay_together(model, prompts.rows)
    states = states_together(model, given)
    found = label_scores(model, states, places.nodes, [row.trie.steps for row in prompts.rows])
    np.testing.assert_allclose(found.detach().numpy(), scores_of(tuned, prompts, "tuned"), atol=2e-4)
    found.sum().backward()


def test_loss_and_gradients_do_not_depend_on_the_micro_batch(tiny):
    loaded = tiny("gemma3")
    model = get_peft_model(random_model("gemma3"), LoraConfig(r=2, target_modules="all-linear"))
    rows = [ScoreRow(str(n), "de", row, (0.3, -0.3)) for n, row in enumerate(asked(loaded)["de"].rows)]
    objective = Consistency(model)

    def gradients(size):
        model.zero_grad()
        for start in range(0, len(rows), size):
            objective.loss(model, objective.collate(rows[start : start + size])).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients(4)
    assert any(gradient.abs().max() > 0 for gradient in whole.values())
    for size in (1, 2):
        for name, gradient in gradients(size).items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=name)


def taught(tiny, folder, control="none", **changes):
    loaded = dataclasses.replace(tiny("llama"), model=random_model("llama"))
    prompts = asked(loaded, answers="english")
    scores = {code: scores_of(loaded, each) for code, each in prompts.items()}
    targets = teacher_targets(answers(scores), ["de"], control=control)
    settings = TrainSettings(objective="consistency", **{**SETTINGS, **changes})
    rows = score_rows(prompts, answers(scores), targets)
    part, held_out = consistency_part(loaded.model, rows, ["3"], settings)
    assert [row.id for row in held_out] == ["de:3"]
    model, history = tune(loaded, [part], held_out, folder, settings, seed=1)
    after = scores_of(dataclasses.replace(loaded, model=model, adapter_fingerprint="x"), prompts["de"], "tuned")
    return scores["de"], targets["de"], after, history


def test_what_is_taught_is_learned_and_held_out_questions_are_measured(tiny, tmp_path):
    before, target, after, history = taught(tiny, tmp_path)
    learned = slice(0, 3)
    assert np.abs(after - target)[learned].mean() < 0.5 * np.abs(before - target)[learned].mean()
    assert set(history["validation_loss"]) == {"de"}
    assert history["parts"]["consistency"] == {"rows": 3, "rows_seen": 36, "weight": 1.0}


def test_its_own_answers_teach_a_language_nothing(tiny, tmp_path):
    before, target, after, _ = taught(tiny, tmp_path, control="own-language-teacher")
    np.testing.assert_allclose(target, before, atol=1e-6)
    assert np.abs(after - before).mean() < 0.1  # Adam makes steps of rounding errors, too


@pytest.mark.parametrize("family", ["llama", "gemma2", "minicpm3"])
def test_replay_starts_at_no_divergence_and_then_is_that_of_the_models_own_logits(tiny, family):
    loaded = dataclasses.replace(tiny(family), model=random_model(family))
    rows = asked(loaded)["en"].rows
    held = replay_rows(loaded.model, list("abcd"), ["en"] * 4, rows, 3)
    objective = Replay(loaded.model)
    batch = objective.collate(held)
    assert objective.loss(loaded.model, batch).item() == pytest.approx(0, abs=1e-4)
    assert batch["states"].shape == (sum(row.weight for row in held), 32)

    def own():
        with torch.no_grad():
            return loaded.model(**batch["given"], use_cache=False).logits[0, batch["columns"]].log_softmax(-1)

    before = own()
    next(iter(loaded.model.model.layers)).mlp.gate_proj.weight.data.mul_(1.5)
    apart = torch.nn.functional.kl_div(own(), before, reduction="sum", log_target=True).item()
    assert apart > 1e-3
    assert objective.loss(loaded.model, batch).item() == pytest.approx(apart, rel=1e-3)


def test_contrastive_draws_questions_to_their_english_version(tiny, tmp_path):
    loaded = dataclasses.replace(tiny("llama"), model=random_model("llama"))
    settings = TrainSettings(objective="contrastive", **SETTINGS)
    names = [str(n) for n in range(4)]
    part, _ = contrastive_part(loaded, asked(loaded), names, [], settings, 0)
    _, history = tune(loaded, [part], part.rows, tmp_path, settings, seed=1)
    losses = [entry["loss"] for entry in history["log"]]
    assert losses[-1] < losses[0] - 0.1
    mixed, _ = contrastive_part(
        loaded, asked(loaded), names, [], settings.model_copy(update={"control": "shuffled-pairs"}), 0
    )
    assert [row.english for row in mixed.rows] != [row.english for row in part.rows]


def test_targets_keep_a_language_s_own_preference():
    rng = np.random.default_rng(0)
    scores = {code: rng.normal(size=(6, 2)) + shift for code, shift in (("en", (3, 0)), ("de", (0, 1)), ("sw", (5, 0)))}
    own = {code: each - each.mean(1, keepdims=True) for code, each in scores.items()}
    targets = teacher_targets(answers(scores), ["de", "sw"])
    for code, target in targets.items():
        np.testing.assert_allclose(target.mean(0), own[code].mean(0))
        np.testing.assert_allclose(target - target.mean(0), own["en"] - own["en"].mean(0))
    np.testing.assert_allclose(teacher_targets(answers(scores), ["de"], center="zero")["de"].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(
        teacher_targets(answers(scores), ["de"], center="prior")["de"].mean(0), own["en"].mean(0)
    )
    ensemble = teacher_targets(answers(scores), ["de", "sw"], teacher="ensemble", center="zero")["de"]
    without_mean = [each - each.mean(0) for each in own.values()]
    np.testing.assert_allclose(ensemble, np.mean(without_mean, 0))


def test_controls_and_the_ceiling():
    scores = {"en": np.array([[2.0, 0], [0, 1], [3, 0], [0, 4]]), "de": np.ones((4, 2))}
    constant = teacher_targets(answers(scores), ["de"], control="constant-teacher")["de"]
    assert np.ptp(constant, 0).max() == 0
    plain = teacher_targets(answers(scores), ["de"])["de"]
    mixed = teacher_targets(answers(scores), ["de"], control="shuffled-teacher", seed=3)["de"]
    assert sorted(mixed[:, 0]) == pytest.approx(sorted(plain[:, 0])) and not np.allclose(mixed, plain)
    gold = teacher_targets(answers(scores), ["de"], control="gold", gold=dict(zip("0123", [1, 1, 0, 0], strict=True)))[
        "de"
    ]
    assert (gold.argmax(1) == [1, 1, 0, 0]).all()
    with pytest.raises(DataError, match="no right answers"):
        teacher_targets(answers(scores), ["de"], control="gold")
    with pytest.raises(DataError, match="got 1 question .*, expected at least 2"):
        teacher_targets(answers({"en": np.ones((1, 2)), "de": np.ones((1, 2))}), ["de"])


def test_what_sentences_say_adds_up_whatever_their_preference():
    english = np.array([[1.0, 0], [0, 1], [2, 0]])
    said = np.array([[3.0, 0], [4, 0], [5, 0], [0, 0], [3, 0]])  # of q0: 3, 4, 5; of q1: 0, 3; q2 is one sentence
    parts = Answers(["0#1", "0#2", "0#3", "1#1", "1#2"], ["0", "0", "0", "1", "1"], said)
    found = teacher_targets(answers({"en": english, "de": english * 0}), ["de"], teacher="sentences",
                            english_sentences=parts)["de"]  # fmt: skip
    moved = teacher_targets(answers({"en": english, "de": english * 0}), ["de"], teacher="sentences",
                            english_sentences=Answers(parts.names, parts.questions, said + [7, 0]))["de"]  # fmt: skip
    np.testing.assert_allclose(found, moved)
    odds = found[:, 0] - found[:, 1]
    assert odds[0] > 0 > odds[1]  # a sentence says 3 on average: q0's are above it, q1's below
    assert odds[0] + odds[1] + odds[2] == pytest.approx(0)
    whole = teacher_targets(answers({"en": english, "de": english * 0}), ["de"])["de"]
    empty = Answers([], [], np.zeros((0, 2)))
    none = teacher_targets(answers({"en": english, "de": english * 0}), ["de"], teacher="sentences",
                           english_sentences=empty)["de"]  # fmt: skip
    np.testing.assert_allclose(none, whole)
