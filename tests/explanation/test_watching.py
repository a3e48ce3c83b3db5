"""Lens and geometry out of the pass that scores answers: the same numbers, and scores that do not notice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from glotlift.errors import RunError
from glotlift.evaluation.predict import score_batches
from glotlift.explanation import collect, lens_pass
from glotlift.explanation.subject import LensOptions, Subject
from glotlift.explanation.watching import watch
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


def watched(subject, asked, kinds=KINDS):
    """Let a pass over all variants and languages be watched."""
    watching = watch(subject, kinds)
    for variant in ("base", "tuned"):
        for code, prompts in asked.items():
            watcher = watching(variant, "sentiment", code, prompts.rows)
            assert watcher is not None
            score(subject, asked, variant, code, watcher)
            watcher.write()


def frames(folder):
    return {str(p.relative_to(folder)): read_parquet(p) for p in folder.rglob("*.parquet")}


def states(folder):
    return {str(p.relative_to(folder)): load_file(p)["states"] for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("pooling", ["question", "position-weighted"])
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


@pytest.mark.parametrize("variant", ["base", "tuned"])
def test_scores_are_the_same_with_a_watcher(subject, asked, variant):
    watcher = watch(subject, KINDS)(variant, "sentiment", "de", asked["de"].rows)
    assert score(subject, asked, variant, "de", watcher) == score(subject, asked, variant, "de")


def test_what_is_written_is_not_watched_again(subject, asked):
    watched(subject, asked)
    assert watch(subject, KINDS)("base", "sentiment", "de", asked["de"].rows) is None
    watcher = watch(replace(subject, states_dtype="float16"), KINDS)("base", "sentiment", "de", asked["de"].rows)
    assert watcher is not None and watcher.taps == {"pooled_states": True}  # the lens is there


def test_what_a_watcher_cannot_see_is_left_to_a_pass_of_its_own(subject, asked, ask, adapted):
    def watcher(of=subject, kinds=KINDS, task="sentiment", code="de", rows=asked["de"].rows, variant="base"):
        return watch(of, kinds)(variant, task, code, rows)

    assert watcher() is not None
    for lens in (LensOptions(sequences=True), LensOptions(components=True)):
        assert watcher(replace(subject, lens=lens)) is None
    assert watcher(kinds=("patching",)) is None
    assert watcher(task="nli") is None
    assert watcher(code="th") is None
    assert watcher(rows=asked["de"].rows[:3]) is None
    assert watcher(rows=asked["de"].rows[::-1]) is None
    assert watcher(rows=asked["en"].rows) is None


def test_a_look_that_fails_leaves_the_scores_alone(subject, asked, monkeypatch):
    expected = score(subject, asked, "base", "de")

    def wrong(*_args):
        raise RunError("the lens cannot read this model")

    watching = watch(subject, KINDS)
    with monkeypatch.context() as patch:
        patch.setattr(lens_pass, "check_last_layer", wrong)
        watcher = watching("base", "sentiment", "de", asked["de"].rows)
        assert score(subject, asked, "base", "de", watcher) == expected
        watcher.write()
    assert not subject.folder.exists()
    monkeypatch.setattr(collect, "self_test", wrong)
    assert watch(subject, KINDS)("base", "sentiment", "de", asked["de"].rows) is None
    with pytest.raises(RunError, match="cannot read"):
        collect.explain(subject, KINDS)
