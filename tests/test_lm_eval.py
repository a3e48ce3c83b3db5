"""The exported tasks in lm-evaluation-harness itself: the same prompts, scores and choices as glotlift's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.peers
lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from glotlift.data.export import export_lm_eval  # noqa: E402
from glotlift.data.read import read_items  # noqa: E402
from glotlift.evaluation.predict import predict  # noqa: E402
from glotlift.evaluation.prompts import prepare  # noqa: E402
from glotlift.evaluation.settings import EvalTask  # noqa: E402
from glotlift.models.labels import encode  # noqa: E402
from glotlift.tasks.load import load_task  # noqa: E402
from tests.data.test_export import HARD_ITEMS, HARD_TASK, LM_EVAL, expected  # noqa: E402

LANGUAGES = ("en", "th", "bn")


def manager(folder: Path) -> TaskManager:
    """Return lm-eval's index of a folder; that of its own 14,000 files takes 10 seconds."""
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(loaded, path: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"pretrained": loaded.model, "tokenizer": loaded.tokenizer, "batch_size": 4}
    group = path.stem.removeprefix("_")
    return lm_eval.simple_evaluate(HFLM(**options), tasks=[group], task_manager=manager(path.parent), bootstrap_iters=0)


def log_probability(loaded, tokens: list[int], continuation: list[int]) -> float:
    """Return ln p(continuation | tokens), by one plain forward pass."""
    with torch.inference_mode():
        scores = loaded.model(torch.tensor([tokens + continuation])).logits[0].log_softmax(-1)
    return sum(scores[len(tokens) - 1 + step, token].item() for step, token in enumerate(continuation))


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # a SentencePiece-style tokenizer with BOS; byte-level without
@pytest.mark.parametrize(("answers", "num_fewshot"), [("own", None), ("arbitrary", None), ("own", 0)])
def test_lm_eval_agrees(tmp_path, tiny, family, answers, num_fewshot):
    task, loaded = load_task("sentiment"), tiny(family)
    items = read_items(task, None, LANGUAGES, limit=4)
    path = export_lm_eval(task, items, tmp_path, answers=answers, num_fewshot=num_fewshot)
    found = evaluated(loaded, path)
    group = path.stem.removeprefix("_")
    agreed = 0
    for code in LANGUAGES:
        words = list(task.answers(code, answers).values())
        prompts = prepare(
            loaded, task, code, items[code], EvalTask(task=task.name, answers=answers, num_fewshot=num_fewshot)
        )
        frame = predict(loaded, prompts, "base", scoring="sequence").to_dict("records")
        samples = found["samples"][f"{group}_{code}"]
        assert [sample["doc"]["id"] for sample in samples] == [row["id"] for row in frame]
        starts = {row.prompt[0] == loaded.tokenizer.bos_token_id for row in prompts.rows}
        assert starts == {family == "llama"}
        for sample, item, row, ours in zip(samples, items[code], prompts.rows, frame, strict=True):
            prompt = task.prompt(code, answers, item.fields, num_fewshot)
            assert sample["arguments"] == [(prompt, word) for word in words]
            assert sample["target"] == task.labels.index(item.gold)
            theirs = [score for score, _ in sample["filtered_resps"]]
            if row.root == len(row.prompt):  # no token spans prompt and word
                assert theirs == pytest.approx([ours[f"sequence_{label}"] for label in task.labels], abs=1e-3)
                assert task.labels[theirs.index(max(theirs))] == ours["predicted"]
                assert sample["acc"] == float(ours["predicted"] == item.gold)
                agreed += 1
            else:  # lm-eval puts what is left of the word behind the prompt's tokens; the spanning token is lost
                head, *whole = encode(loaded.tokenizer, [prompt, *(prompt + word for word in words)])
                rest = [log_probability(loaded, head, tokens[len(head) :]) for tokens in whole]
                assert theirs == pytest.approx(rest, abs=1e-3)
    spanning = family == "llama" and answers == "own"  # there `"posi` and `"nega` are tokens
    assert agreed == (8 if spanning else 12)
    accuracies = [found["results"][f"{group}_{code}"]["acc,none"] for code in LANGUAGES]
    assert found["groups"][group]["acc,none"] == pytest.approx(sum(accuracies) / len(LANGUAGES))
    assert found["n-shot"] == dict.fromkeys((group, *(f"{group}_{code}" for code in LANGUAGES)), 0)
    assert found["versions"][f"{group}_th"] == task.version


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("cue", ["Sentiment: ", "Sentiment:\n", "Sentiment: \n "])
def test_blanks_at_the_end_cost_all_words_the_same(tmp_path, tiny, family, cue):
    """lm-eval moves them to the word and scores them, too; glotlift leaves out what all words share."""
    task, loaded = load_task("sentiment"), tiny(family)
    pack = task.pack("en").model_copy(
        update={"cue": cue, "answer_sets": {"own": {"positive": "good", "negative": "bad"}}}
    )
    task = task.model_copy(update={"languages": {"en": pack}})
    items = read_items(task, None, ("en",), limit=4)
    samples = evaluated(loaded, export_lm_eval(task, items, tmp_path))["samples"]["glotlift_sentiment_en"]
    frame = predict(
        loaded, prepare(loaded, task, "en", items["en"], EvalTask(task=task.name)), "base", scoring="sequence"
    )
    for sample, ours in zip(samples, frame.to_dict("records"), strict=True):
        (good, _), (bad, _) = sample["filtered_resps"]
        cost = good - ours["sequence_positive"]
        assert cost == pytest.approx(bad - ours["sequence_negative"], abs=1e-3)
        assert cost < 1e-3


@pytest.mark.parametrize("code", ["en", "de", "zh"])
def test_lm_eval_reads_hard_texts_as_they_are(tmp_path, code):
    export_lm_eval(HARD_TASK, HARD_ITEMS, tmp_path)
    task = manager(tmp_path).load([f"glotlift_hard_{code}"])["tasks"][f"glotlift_hard_{code}"]
    task.build_all_requests()
    wanted = [(prompt, word) for prompt, words, _ in expected(HARD_TASK, code, HARD_ITEMS[code]) for word in words]
    assert [request.args for request in task.instances] == wanted
    targets = [target for _, _, target in expected(HARD_TASK, code, HARD_ITEMS[code])]
    assert [task.doc_to_target(row) for row in task.eval_docs] == targets


def test_the_export_tests_read_jinja_as_lm_eval_does():
    from lm_eval.utils import env

    settings = [
        key for key in vars(LM_EVAL) if key.endswith(("_string", "_prefix", "_blocks", "_sequence", "_newline"))
    ]
    assert len(settings) > 8
    assert {key: getattr(env, key) for key in settings} == {key: getattr(LM_EVAL, key) for key in settings}
    assert env.undefined is LM_EVAL.undefined
