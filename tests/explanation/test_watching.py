"""Lens and geometry out of the pass that scores answers: the same numbers, and scores that do not notice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from glotlift.errors import ModelError, RunError
from glotlift.evaluation.predict import score_batches, scored_tokens
from glotlift.explanation import collect, lens_pass
from glotlift.explanation.subject import LensOptions, Subject
from glotlift.explanation.watching import LookWitnesses
from glotlift.models.forward import run
from glotlift.runs import read_parquet

KINDS = ("lens", "geometry")


@pytest.fixture
def subject(adapted, ask, words, tmp_path):
    """What is looked into: four questions in two languages."""
    return Subject(adapted, ask(adapted, limit=4), tmp_path / "watched", **words("en", "de"))


@pytest.fixture
def asked(adapted, ask):
    """What is scored: those questions and three more."""
    return ask(adapted, limit=7)


def score(subject, asked, variant, code, watcher=None):
    """Return the scores of a pass in batches of five, so that some hold questions and other rows."""
    found = {}
    for batch in score_batches(subject.loaded, asked[code], variant, batch_size=5, watcher=watcher):
        found |= batch
    return found


def witness(subject, asked, variant="base", code="de", task="sentiment", kinds=KINDS, rows=None):
    """Return who watches a pass."""
    tokens = scored_tokens(asked[code]) if code in asked else []
    rows = asked[code].rows if rows is None else rows
    return LookWitnesses(lambda: subject, kinds).of(
        variant=variant, task_key=task, language=code, rows=rows, tokens=tokens
    )


def watched(subject, asked):
    """Let a pass over all variants and languages be watched."""
    witnesses = LookWitnesses(lambda: subject, KINDS)
    for variant in ("base", "tuned"):
        for code, prompts in asked.items():
            about = {"language": code, "rows": prompts.rows, "tokens": scored_tokens(prompts)}
            watcher = witnesses.of(variant=variant, task_key="sentiment", **about)
            assert watcher is not None
            score(subject, asked, variant, code, watcher)
            watcher.write()


def frames(folder):
    return {str(p.relative_to(folder)): read_parquet(p) for p in folder.rglob("*.parquet")}


def states(folder):
    return {str(p.relative_to(folder)): load_file(p)["states"] for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("pooling", ["question", "whole"])
def test_a_watcher_sees_what_a_pass_of_its_own_sees(subject, asked, tmp_path, pooling, monkeypatch):
    subject = replace(subject, pooling=pooling, lens=LensOptions(paper=True))
    own = replace(subject, folder=tmp_path / "own")
    collect.explain(own, KINDS, n_permutations=20)
    watched(subject, asked)
    expected, found = states(own.folder), states(subject.folder)
    assert expected.keys() == found.keys() and len(found) == 4
    for name, of_own in expected.items():
        np.testing.assert_allclose(found[name], of_own, rtol=1e-3, atol=1e-4, err_msg=name)
    lens = {name: each for name, each in frames(own.folder).items() if name.split("/")[1] in ("base", "tuned")}
    assert {name.split("/")[0] for name in lens} == {"lens", "paper_lens"}
    for name, (frame, about) in lens.items():
        seen, said = frames(subject.folder)[name]
        assert said == about  # with the fingerprint, by which `explain` finds it
        assert seen["id"].tolist() == frame["id"].tolist()
        numbers = frame.select_dtypes("number").columns
        np.testing.assert_allclose(seen[numbers], frame[numbers], rtol=2e-3, atol=1e-4, err_msg=name)

    def never(*_args, **_options):
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(collect, "run", never)
    done: list[int] = []
    collect.explain(replace(subject, progress=done.append), KINDS, n_permutations=20)
    assert sum(done) == 2 * 2 * 4
    assert frames(subject.folder).keys() == frames(own.folder).keys()


@pytest.mark.parametrize(
    ("pooling", "kinds"), [("question", KINDS), ("whole", KINDS), ("position-weighted", ("lens",))]
)
@pytest.mark.parametrize("variant", ["base", "tuned"])
def test_scores_are_the_same_with_a_watcher(subject, asked, variant, pooling, kinds):
    watcher = witness(replace(subject, pooling=pooling), asked, variant, kinds=kinds)
    assert watcher is not None
    assert score(subject, asked, variant, "de", watcher) == score(subject, asked, variant, "de")


def test_what_is_written_is_not_watched_again(subject, asked):
    watched(subject, asked)
    assert witness(subject, asked) is None
    watcher = witness(replace(subject, states_dtype="float16"), asked)
    assert watcher is not None and watcher.taps == {"pooled_states": True}  # the lens is there


def test_what_a_watcher_cannot_see_is_left_to_a_pass_of_its_own(subject, asked, ask, adapted):
    assert witness(subject, asked).n_rows == 4
    for lens in (LensOptions(sequences=True), LensOptions(components=True)):
        assert witness(replace(subject, lens=lens), asked) is None
    weighted = replace(subject, pooling="position-weighted")  # whose rows share a shorter prefix
    assert witness(weighted, asked) is None
    arbitrary = ask(adapted, limit=7, answers="arbitrary")  # by whose tokens no lens of the real ones is checked
    of_arbitrary = replace(subject, prompts=ask(adapted, limit=4, answers="arbitrary"))
    assert witness(of_arbitrary, arbitrary) is None
    assert witness(of_arbitrary, arbitrary, kinds=("geometry",)) is not None
    assert witness(subject, asked, kinds=("patching",)) is None
    assert witness(subject, asked, task="nli") is None
    assert witness(subject, asked, code="th", rows=[]) is None
    assert witness(subject, asked, rows=asked["de"].rows[:3]) is None
    assert witness(subject, asked, rows=asked["de"].rows[::-1]) is None
    assert witness(subject, asked, rows=asked["en"].rows) is None


@pytest.mark.parametrize("fault", [RunError("the lens cannot read this model"), RuntimeError("out of memory")])
def test_a_look_that_fails_leaves_the_scores_alone_and_is_the_last(subject, asked, monkeypatch, caplog, fault):
    expected = score(subject, asked, "base", "de")

    def wrong(*_args, **_options):
        raise fault

    witnesses = LookWitnesses(lambda: subject, KINDS)
    about = {"variant": "base", "task_key": "sentiment", "language": "de", "rows": asked["de"].rows}
    about |= {"tokens": scored_tokens(asked["de"])}
    with monkeypatch.context() as patch:
        patch.setattr(lens_pass, "check_last_layer", wrong)
        watcher = witnesses.of(**about)
        assert score(subject, asked, "base", "de", watcher) == expected
        watcher.write()
    assert not subject.folder.exists()
    assert caplog.messages.count(f"explain: cannot watch the pass of eval and makes its own: {fault}") == 1
    assert witnesses.of(**about) is None
    monkeypatch.setattr(collect, "self_test", wrong)
    assert witness(subject, asked) is None
    with pytest.raises(type(fault), match=str(fault)):
        collect.explain(subject, KINDS)


def test_a_subject_that_cannot_be_made_leaves_the_pass_alone(subject, asked, caplog):
    def fault():
        raise ModelError("no tuned lens")

    witnesses = LookWitnesses(fault, KINDS)
    for _ in range(2):
        assert (
            witnesses.of(variant="base", task_key="sentiment", language="de", rows=asked["de"].rows, tokens=[1]) is None
        )
    assert len(caplog.messages) == 1 and "no tuned lens" in caplog.text


def test_a_pass_by_which_the_lens_cannot_be_checked_is_not_believed(subject, asked, caplog):
    watcher = witness(subject, asked)
    rows = watcher.rows(asked["de"].rows)
    for batch in run(subject.loaded.model, rows, tokens=[1], **watcher.taps):
        watcher.see(subject.loaded.model, batch, [1])
    watcher.write()
    assert not subject.folder.exists()
    assert "no logit of a token of the lens" in caplog.text


def test_what_was_seen_is_let_go_of_where_the_look_fails(subject, asked):
    import gc
    import weakref

    watcher = witness(subject, asked)
    look = weakref.ref(watcher._look)
    watcher.give_up(MemoryError("full"))
    gc.collect()
    assert look() is None and watcher.rows(asked["de"].rows) is asked["de"].rows
