"""scores.json: lm-eval's schema, the groups, and a sentence that claims no more than the intervals do."""

import json
import re

import numpy as np
import pytest

from glotlift.evaluation.compare import Change
from glotlift.evaluation.scores import Predictions, build_scores, change_sentence, read_predictions
from glotlift.runs import write_json, write_parquet
from tests.evaluation.test_metrics import frame

LABELS = ["yes", "no"]
N = 60
GOLD = np.array(LABELS * (N // 2))
METADATA = {
    "task": "mood",
    "answers": "own",
    "scoring": "sequence",
    "labels": LABELS,
    "label_words": {"yes": "ja", "no": "nein"},
}


def scores(seed: int, signal: float, bias: float = 0.0):
    """Return a prediction frame: how well it tells gold labels apart, and how much it prefers `yes`."""
    random = np.random.default_rng(seed)
    margin = signal * np.where(GOLD == "yes", 1, -1) + random.normal(0, 1, N) + bias
    return frame(np.stack([margin / 2 - 3, -margin / 2 - 3], 1), GOLD, LABELS)


def predictions(base: tuple[float, float], tuned: tuple[float, float] | None, languages="en zh de sw th", key="mood"):
    """Return predictions of several languages; base and tuned are (signal, bias) and share each item's noise."""
    variants = {"base": base} | ({"tuned": tuned} if tuned else {})
    frames = {
        variant: {code: scores(seed, *settings) for seed, code in enumerate(languages.split())}
        for variant, settings in variants.items()
    }
    return Predictions(key, frames, METADATA, dict.fromkeys(languages.split(), 2))


def build(*sets: Predictions, **options):
    return build_scores(sets, model="tiny", config={"random_seed": 0}, **options)


# --- lm-eval's schema


def test_what_readers_of_lm_eval_look_for():
    found = build(predictions((0.5, 0), (1, 0)), predictions((0.5, 0), (1, 0), "en de", key="other"))
    names = [f"mood_{code}" for code in ("en", "zh", "de", "sw", "th")] + ["other_en", "other_de"]
    for key in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert list(found[key]) == names, key
    assert found["group_subtasks"] == {"mood": names[:5], "other": names[5:]}
    assert found["n-shot"]["mood_de"] == found["configs"]["mood_de"]["num_fewshot"] == 2
    assert found["n-samples"]["mood_de"] == {"original": N, "effective": N}
    assert found["higher_is_better"]["mood_de"] == {"acc": True}
    assert found["config"] == {"model": "hf", "model_args": "pretrained=tiny", "random_seed": 0}
    assert "glotlift" in found
    json.dumps(found, allow_nan=False)


def test_lm_evals_own_table_reads_it():
    make_table = pytest.importorskip("lm_eval.utils").make_table
    found = build(predictions((0.5, 0), (1, 0)))
    assert "mood_de" in make_table(found)


def test_results_are_of_the_tuned_model_where_there_is_one():
    given = predictions((0.2, 0), (1, 0))
    row = build(given)["results"]["mood_de"]
    tuned = given.frames["tuned"]["de"]
    accuracy = (tuned["predicted"] == tuned["gold"]).mean()
    assert row["acc,none"] == pytest.approx(accuracy)
    assert 0.5 < accuracy < 1
    # lm-eval's standard error of a mean: the sample's standard deviation over the root of n
    assert row["acc_stderr,none"] == pytest.approx((tuned["predicted"] == tuned["gold"]).std(ddof=1) / np.sqrt(N))
    base_only = predictions((0.2, 0), None)
    base = base_only.frames["base"]["de"]
    assert build(base_only)["results"]["mood_de"]["acc,none"] == pytest.approx(
        (base["predicted"] == base["gold"]).mean()
    )


def test_one_item_has_no_standard_error():
    given = predictions((0.2, 0), None, "en")
    given = Predictions("mood", {"base": {"en": given.frames["base"]["en"].iloc[:1]}}, METADATA)
    assert build(given)["results"]["mood_en"]["acc_stderr,none"] == "N/A"


# --- what stands under `glotlift`


def test_groups_are_seen_unseen_and_all_and_the_pivot_is_neither():
    task = build(predictions((0.5, 0), (1.5, 0)), seen=["zh", "de"], pivot="en")["glotlift"]["tasks"]["mood"]
    assert {name: group["languages"] for name, group in task["groups"].items()} == {"all": 5, "seen": 2, "unseen": 2}
    assert task["calibrated_groups"].keys() == task["groups"].keys()
    unseen = [task["languages"][code] for code in ("sw", "th")]
    assert task["groups"]["unseen"]["b"] == pytest.approx(np.mean([entry["tuned"]["accuracy"] for entry in unseen]))
    seen = [task["languages"][code] for code in ("zh", "de")]
    assert task["groups"]["seen"]["a"] == pytest.approx(np.mean([entry["base"]["accuracy"] for entry in seen]))


def test_groups_without_languages_are_left_out():
    task = build(predictions((0.5, 0), (1.5, 0), "de zh"), seen=["zh", "de"])["glotlift"]["tasks"]["mood"]
    assert list(task["groups"]) == ["all", "seen"]
    unknown = build(predictions((0.5, 0), (1.5, 0)))["glotlift"]["tasks"]["mood"]
    assert list(unknown["groups"]) == ["all"]  # an adapter of unknown origin: no language is called unseen
    assert "never tuned on" not in unknown["sentence"]
    other_pivot = build(predictions((0.5, 0), (1.5, 0), "en zh"), seen=["en"], pivot="zh")["glotlift"]["tasks"]["mood"]
    assert list(other_pivot["groups"]) == ["all", "seen"]


def test_base_alone_has_no_change():
    found = build(predictions((1, 0), None))["glotlift"]
    task = found["tasks"]["mood"]
    assert found["variants"] == ["base"]
    assert "groups" not in task
    assert "change" not in task["languages"]["de"]
    assert task["sentence"].startswith("On mood, the model is right on ")
    assert f"{task['means']['base']['accuracy']:.1%}" in task["sentence"]


def test_what_each_language_and_the_means_hold():
    task = build(predictions((1, 9), (1, 0)))["glotlift"]["tasks"]["mood"]
    assert (task["chance"], task["labels"], task["label_words"]) == (0.5, LABELS, {"yes": "ja", "no": "nein"})
    entry = task["languages"]["de"]
    assert entry["base"]["predicted"] == {"yes": N, "no": 0}
    assert entry["change"]["change"] == pytest.approx(entry["tuned"]["accuracy"] - entry["base"]["accuracy"])
    assert 0 <= entry["change"]["p"] <= entry["change"]["p_holm"] <= 1
    means = task["means"]
    assert (means["base"]["collapsed_languages"], means["tuned"]["collapsed_languages"]) == (5, 0)
    areas = [task["languages"][code]["base"]["auroc"] for code in task["languages"]]
    assert means["base"]["auroc"] == pytest.approx(np.mean(areas))


def test_items_must_be_the_same_in_base_and_tuned():
    given = predictions((1, 0), (1, 0))
    given.frames["tuned"]["sw"].loc[3, "gold"] = "no" if GOLD[3] == "yes" else "yes"
    from glotlift.errors import DataError

    with pytest.raises(DataError, match="mood, sw: item '3' has two gold labels"):
        build(given)


# --- the sentence


def sentence(base, tuned, **options) -> str:
    return build(predictions(base, tuned), **options)["glotlift"]["tasks"]["mood"]["sentence"]


def test_a_pure_bias_is_called_a_preference():
    """The same margins, moved: raw accuracy rises by a lot, and the model has learned nothing."""
    text = sentence((1.5, 4), (1.5, 0), seen=["zh"])
    assert "raw accuracy rises from" in text
    assert "taken out (batch calibration), accuracy does not clearly change" in text
    assert "above all which label the model prefers, not how well it tells the items apart" in text
    areas = re.search(r"AUROC goes from (\S+) to (\d\.\d+)", text)
    assert areas is not None
    assert areas[1] == areas[2]


def test_a_model_that_learned_is_said_to_tell_items_apart_better_or_worse():
    assert "So the tuned model tells the items apart better, beyond a shift of preference." in sentence(
        (0.3, 0), (2, 0)
    )
    assert "So the tuned model tells the items apart worse, beyond a shift of preference." in sentence((2, 0), (0.3, 0))


def test_learning_that_raw_accuracy_hides_is_told():
    text = sentence((0.3, 9), (2, 9))
    assert "raw accuracy does not clearly change" in text
    assert "So the tuned model tells the items apart better, which raw accuracy alone does not show." in text


def test_nothing_changed_and_nothing_is_claimed():
    text = sentence((1, 0), (1, 0))
    assert not re.search(r"\b(rises|falls|better|worse|prefers)\b", text)
    assert text.count("does not clearly change") == 2


def change(low: float, high: float, middle: float | None = None) -> Change:
    middle = (low + high) / 2 if middle is None else middle
    return Change("all", 100, 0.5, 0.5 + middle, middle, low, high, languages=7)


MEANS = {"base": {"auroc": 0.7}, "tuned": {"auroc": None}}


@pytest.mark.parametrize("seed", range(40))
def test_no_interval_across_zero_is_ever_called_a_change(seed):
    random = np.random.default_rng(seed)

    def draw() -> Change:
        return change(*sorted(random.uniform(-0.2, 0.2, 2)))

    groups = {"all": draw(), "unseen": draw()}
    fair = {"all": draw()}
    text = change_sentence("mood", groups, fair, MEANS)
    raw, unseen, calibrated = re.split(r"(?<=[.;]) (?=On the|With|AUROC)", text)[:3]
    for part, of in ((raw, groups["all"]), (unseen, groups["unseen"]), (calibrated, fair["all"])):
        if of.is_clear:
            assert ("rises" if of.change > 0 else "falls") in part
            assert f"{of.low * 100:+.1f} to {of.high * 100:+.1f}" in part
        else:
            assert "does not clearly change" in part
            assert not re.search(r"\b(rises|falls)\b", part)
    assert ("apart better" in text) == (fair["all"].low > 0)
    assert ("apart worse" in text) == (fair["all"].high < 0)
    assert "to undefined" in text


def test_raw_and_calibrated_accuracy_that_go_opposite_ways_are_not_one_story():
    text = change_sentence("mood", {"all": change(0.05, 0.1)}, {"all": change(-0.1, -0.05)}, MEANS)
    assert "raw accuracy rises" in text
    assert "accuracy falls" in text
    assert "beyond a shift of preference" not in text


# --- from files


def test_prediction_files_are_read_from_the_run_folder(tmp_path):
    given = predictions((1, 0), (1.5, 0), "de sw")
    for variant, frames in given.frames.items():
        for code, found in frames.items():
            path = tmp_path / "predictions" / variant / "mood" / f"{code}.parquet"
            write_parquet(path, found, {**METADATA, "num_fewshot": 2})
    back = read_predictions(tmp_path, "mood", ("base", "tuned"), ["de", "sw"])
    assert back.num_fewshot == {"de": 2, "sw": 2}
    found = build(back, seen=["de"])
    assert found == build(given, seen=["de"])
    write_json(tmp_path / "scores.json", found)
