"""Patching and switch-off as kinds of explanation: what is written, what is kept, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from glotlift.errors import LanguageError, ModelError, RunError
from glotlift.explanation import causes
from glotlift.explanation.carriers import summarise_switch_off
from glotlift.explanation.kinds import explain_kinds
from glotlift.explanation.patching import hold, patch_language
from glotlift.explanation.repairs import summarise_patching
from glotlift.explanation.subject import Subject
from glotlift.models.readout import Readout
from glotlift.runs import read_parquet

BOTH = ("patching", "switch-off")


@pytest.fixture
def subject(adapted, ask, words, tmp_path):
    """Return a function that makes a subject of languages, and the list that its progress goes to."""

    def make(*codes, loaded=adapted, **changes):
        done = []
        made = Subject(loaded, ask(adapted, codes, 5), tmp_path, progress=done.append, **words(*codes), **changes)
        return made, done

    return make


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def test_a_file_a_language_and_a_summary_of_all(subject, tmp_path):
    made, done = subject("en", "de", "th")
    explain_kinds(made, BOTH)
    assert files(tmp_path) == sorted([
        *(f"patching/sentiment/{variant}/{code}.parquet" for variant in ("base", "tuned") for code in ("de", "th")),
        *(f"switch_off/sentiment/{code}.parquet" for code in ("en", "de", "th")),
        "patching/sentiment/summary.parquet", "switch_off/sentiment/summary.parquet",
    ])  # fmt: skip
    assert sum(done) == 2 * 3 * 5 + 3 * 5
    english = hold(made.loaded, made.prompts["en"], "tuned")
    expected = patch_language(made.loaded, made.prompts["th"], english, "tuned")
    found, _ = read_parquet(tmp_path / "patching/sentiment/tuned/th.parquet")
    pd.testing.assert_frame_equal(found, expected, check_exact=False, atol=1e-5)
    for part, summarise in (("patching", summarise_patching), ("switch_off", summarise_switch_off)):
        rows = [read_parquet(tmp_path / file)[0] for file in files(tmp_path) if part in file and "summary" not in file]
        kept, _ = read_parquet(tmp_path / f"{part}/sentiment/summary.parquet")
        keys = [name for name in kept if name not in ("value", "low", "high", "change")]
        again = summarise(pd.concat(rows, ignore_index=True))
        assert len(again) == len(kept) and set(keys) <= set(again)
        assert kept["value"].sum() == pytest.approx(again["value"].sum())


def test_what_is_there_is_kept_and_what_changed_is_made_again(subject, monkeypatch, tmp_path):
    explain_kinds(subject("en", "de")[0], BOTH)
    before = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    made = []
    for name in ("hold", "patch_language", "switch_off_language"):
        monkeypatch.setattr(causes, name, lambda *_, name=name, **__: made.append(name))
    explain_kinds(subject("en", "de")[0], BOTH)
    assert not made and before == {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    monkeypatch.undo()
    explain_kinds(subject("en", "de", seed=1)[0], ["patching"])
    other = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    assert {file for file in before if before[file] != other[file]} == {
        *(f"patching/sentiment/{variant}/de.parquet" for variant in ("base", "tuned")),
        "patching/sentiment/summary.parquet",
    }


def test_a_readout_leaves_the_base_to_be_patched(subject, adapted, tmp_path):
    readout = Readout(1, ("positive", "negative"), torch.zeros(32), torch.zeros(32, 2))
    loaded = replace(adapted, readout=readout)
    explain_kinds(subject("en", "de", loaded=loaded)[0], ["patching"])
    assert files(tmp_path) == ["patching/sentiment/base/de.parquet", "patching/sentiment/summary.parquet"]


@pytest.mark.parametrize("codes", [("de", "th"), ("en",)])
def test_patching_needs_english_and_another_language_and_says_so_before_anything_runs(subject, codes, tmp_path):
    with pytest.raises(LanguageError, match=f"patching: got the languages {' '.join(codes)}, expected English"):
        explain_kinds(subject(*codes)[0], ["lens", "geometry", "patching"])
    assert not list(tmp_path.iterdir())


def test_switch_off_needs_a_lora_adapter_and_says_so_before_anything_runs(subject, loud, tmp_path):
    with pytest.raises(ModelError, match="without LoRA layers, expected a LoRA adapter"):
        explain_kinds(subject("en", "de", loaded=loud("gemma2"))[0], ["lens", "patching", "switch-off"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "variants"), [("patching", {"base", "tuned"}), ("switch-off", {"base", "tuned"})])
def test_each_variant_is_tried_before_its_states_are_put_anywhere(subject, monkeypatch, tmp_path, kind, variants):
    tried = []

    def fails(_loaded, variant, _language):
        tried.append(variant)
        if set(tried) == variants:
            raise RunError("the taps cannot read this model")

    monkeypatch.setattr(causes, "self_test", fails)
    with pytest.raises(RunError, match="the taps cannot read this model"):
        explain_kinds(subject("en", "de", "th")[0], [kind])
    assert tried == ["base", "tuned"]  # once each
    assert not [file for file in files(tmp_path) if "tuned" in file or "switch_off" in file]
