"""scores.json: lm-eval's schema, the groups, and a sentence that claims no more than the intervals do."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest

from glotlift.errors import DataError
from glotlift.evaluation.compare import Change, group_mean, holm
from glotlift.evaluation.consistency import consistency
from glotlift.evaluation.gain import change_sentence, gain_parts
from glotlift.evaluation.predictions import Predictions, read_predictions
from glotlift.evaluation.scores import MEASURES, build_scores
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
}


def words(code: str) -> dict[str, str]:
    """Return the answer words of a language: each has its own."""
    return {label: f"{label} ({code})" for label in LABELS}


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
    codes = languages.split()
    return Predictions(
        key, frames, METADATA, dict.fromkeys(codes, 2), label_words={code: words(code) for code in codes}
    )


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


@pytest.mark.peers
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
    assert (task["chance"], task["labels"]) == (0.5, LABELS)
    assert task["label_words"] == {code: words(code) for code in ("en", "zh", "de", "sw", "th")}
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
    with pytest.raises(DataError, match="mood, sw: item '3' has two gold labels"):
        build(given)


# --- the sentence


def sentence(base, tuned, **options) -> str:
    return build(predictions(base, tuned), **options)["glotlift"]["tasks"]["mood"]["sentence"]


def test_a_pure_bias_is_called_a_preference():
    """The same margins, moved: raw accuracy rises by a lot, and the model has learned nothing."""
    text = sentence((1.5, 4), (1.5, 0), seen=["zh"])
    assert "raw accuracy rises from" in text
    assert "taken out (batch calibration), accuracy stays at " in text
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
    assert "raw accuracy stays at 50.0% (no item moved)" in text
    assert "So the tuned model tells the items apart better, which raw accuracy alone does not show." in text


def test_nothing_changed_and_nothing_is_claimed():
    text = sentence((1, 0), (1, 0))
    assert not re.search(r"\b(rises|falls|better|worse|prefers)\b", text)
    assert "raw accuracy stays at" in text and text.count("no item moved") == 2 and "interval" not in text


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
            write_parquet(path, found, {**METADATA, "label_words": words(code), "num_fewshot": 2})
    back = read_predictions(tmp_path, "mood", ("base", "tuned"), ["de", "sw"])
    assert back.num_fewshot == {"de": 2, "sw": 2}
    assert back.label_words == {"de": words("de"), "sw": words("sw")}  # not those of the file read last
    found = build(back, seen=["de"])
    assert found == build(given, seen=["de"])
    write_json(tmp_path / "scores.json", found)


# --- every measure is compared


FREE = [{"sequence": [-1.0, -2.0], "prefix_mass": [0.3, 0.1], "first_token": [-0.5, -1.0]}] * 3


def with_free(given: Predictions, codes=None) -> Predictions:
    """Return predictions whose files have content-free inputs, in some languages."""
    free = {v: {c: FREE if codes is None or c in codes else None for c in given.languages} for v in given.frames}
    return dataclasses.replace(given, content_free=free)


def task_of(*sets: Predictions, **options) -> dict:
    """Return what scores.json holds of the first test set."""
    return build(*sets, **options)["glotlift"]["tasks"][sets[0].key]


def about(given: Predictions, key: str | None = None, **metadata) -> Predictions:
    return dataclasses.replace(given, key=key or given.key, metadata={**given.metadata, **metadata})


GROUPS = {measure: f"{measure}_groups" for measure in MEASURES}


def test_each_measure_has_a_change_a_p_value_and_groups():
    task = task_of(with_free(predictions((0.5, 1), (1, 0))), seen=["de", "zh"])
    languages = task["languages"]
    by_measure = {
        "raw": "accuracy_raw",
        "calibrated": "accuracy_calibrated",
        "contextual": "accuracy_contextual",
        "auroc": "auroc",
        "ece": "ece",
    }
    assert tuple(by_measure) == MEASURES
    for measure, name in by_measure.items():
        for code, entry in languages.items():
            change = entry["changes"][measure]
            assert (change["name"], change["n"]) == (code, N)
            assert change["a"] == pytest.approx(entry["base"][name]), measure
            assert change["b"] == pytest.approx(entry["tuned"][name]), measure
            assert change["change"] == pytest.approx(change["b"] - change["a"])
            assert change["low"] <= change["high"]
            assert 0 < change["p"] <= change["p_holm"] <= 1
        corrected = [entry["changes"][measure]["p_holm"] for entry in languages.values()]
        assert corrected == holm([entry["changes"][measure]["p"] for entry in languages.values()])
        groups = task[GROUPS[measure]]
        assert list(groups) == ["all", "seen", "unseen"]
        assert groups["unseen"]["change"] == pytest.approx(
            np.mean([languages[code]["changes"][measure]["change"] for code in ("sw", "th")])
        )
        assert groups["all"]["p"] is None
        assert task["means"]["tuned"][name] == pytest.approx(groups["all"]["b"])
    for entry in languages.values():
        assert entry["change"] == entry["changes"]["raw"]
    assert task["groups"] == task["raw_groups"]


def test_contextual_needs_content_free_inputs_in_every_file():
    given = predictions((0.5, 1), (1, 0), "de sw")
    for some in (given, with_free(given, ["de"])):
        task = task_of(some)
        assert task["contextual_groups"] == {}
        assert all("contextual" not in entry["changes"] for entry in task["languages"].values())
        assert task["means"]["base"]["accuracy_contextual"] is None
    assert task["languages"]["de"]["base"]["accuracy_contextual"] is not None
    assert task["languages"]["sw"]["base"]["accuracy_contextual"] is None


def deciding(given: Predictions, calibration: str) -> Predictions:
    """Return predictions as files hold them that decide by a calibration."""
    frames = {v: {c: given.decided(v, c, calibration) for c in given.languages} for v in given.frames}
    return about(dataclasses.replace(given, frames=frames), calibration=calibration)


@pytest.mark.parametrize(
    ("calibration", "measure"), [("none", "raw"), ("batch", "calibrated"), ("contextual", "contextual")]
)
def test_all_that_has_no_measure_in_its_name_is_of_what_decides(calibration, measure):
    """Once `accuracy`, `means` and `rollups` were, and `change` and `groups` were of raw accuracy all the same."""
    task = task_of(deciding(with_free(predictions((1, 2), (0.5, 0), "de sw")), calibration), seen=["de"])
    assert task["calibration"] == calibration
    key = f"accuracy_{measure}"
    for entry in task["languages"].values():
        for variant in ("base", "tuned"):
            assert entry[variant]["accuracy"] == entry[variant][key]
        assert entry["change"] == entry["changes"][measure]
        assert entry["change"]["change"] == pytest.approx(entry["tuned"][key] - entry["base"][key])
    assert task["groups"] == task[f"{measure}_groups"]
    assert task["groups"]["all"]["a"] == pytest.approx(task["means"]["base"]["accuracy"])
    assert task["groups"]["seen"]["b"] == task["languages"]["de"]["tuned"]["accuracy"]
    family = task["rollups"]["family"]["Germanic"]
    assert family["base"]["accuracy"] == task["languages"]["de"]["base"]["accuracy"]
    assert family["change"]["change"] == task["groups"]["seen"]["change"]
    assert len({task[f"{each}_groups"]["all"]["a"] for each in ("raw", "calibrated", "contextual")}) == 3


def test_what_has_a_measure_in_its_name_is_of_it_whatever_decides():
    given = with_free(predictions((1, 2), (0.5, 0), "de sw"))
    raw, batch = (task_of(deciding(given, calibration)) for calibration in ("none", "batch"))
    for key in (*GROUPS.values(), "sentence"):
        assert raw[key] == batch[key]
    for code, entry in raw["languages"].items():
        assert entry["changes"] == batch["languages"][code]["changes"]
    assert "raw accuracy" in batch["sentence"]
    assert f"{batch['raw_groups']['all']['a']:.1%}" in batch["sentence"]


def test_consistency_and_means_have_intervals_over_source_items():
    given = predictions((0.5, 0), (1, 0), "de sw th")
    task = task_of(given, seed=3)
    for variant in ("base", "tuned"):
        right = given.right(variant)
        mean = task["means"][variant]
        assert (mean["accuracy"], mean["low"], mean["high"]) == group_mean(right)
        assert task["consistency"][variant] == dataclasses.asdict(consistency(right, seed=3))
    assert task_of(predictions((0.5, 0), (1, 0), "de"))["consistency"] == {"base": None, "tuned": None}


# --- roll-ups


def test_rollups_are_by_family_script_and_resource_class():
    rollups = task_of(predictions((0.5, 0), (1, 0), "en de sw zh ru bg ko"))["rollups"]
    found = {kind: {name: entry["languages"] for name, entry in groups.items()} for kind, groups in rollups.items()}
    assert found["family"] == {
        "Bantu": ["sw"], "Germanic": ["en", "de"], "Sinitic": ["zh"], "Slavic": ["ru", "bg"], "unknown": ["ko"],
    }  # fmt: skip
    assert found["script"]["Cyrl"] == ["ru", "bg"]
    assert found["script"]["Latn"] == ["en", "de", "sw"]
    assert found["resource"]["unknown"] == ["ko"]
    for groups in found.values():
        assert sorted(code for codes in groups.values() for code in codes) == ["bg", "de", "en", "ko", "ru", "sw", "zh"]


def test_a_rollup_is_the_mean_of_its_languages():
    task = task_of(predictions((0.5, 0), (1, 0), "en de sw"), seed=5)
    for groups in task["rollups"].values():
        for name, entry in groups.items():
            for side, variant in (("a", "base"), ("b", "tuned")):
                mean = np.mean([task["languages"][code][variant]["accuracy"] for code in entry["languages"]])
                assert entry[variant]["accuracy"] == pytest.approx(mean)
                assert entry["change"][side] == pytest.approx(mean)
                assert entry[variant]["low"] <= mean <= entry[variant]["high"]
            assert (entry["change"]["name"], entry["change"]["languages"]) == (name, len(entry["languages"]))
    german = task["rollups"]["family"]["Germanic"]
    assert (german["change"]["low"], german["change"]["high"]) != (
        task["rollups"]["script"]["Latn"]["change"]["low"],
        task["rollups"]["script"]["Latn"]["change"]["high"],
    )
    base_only = task_of(predictions((0.5, 0), None, "en de"))["rollups"]["family"]["Germanic"]
    assert list(base_only) == ["languages", "base"]


# --- the control with arbitrary answer words


def pair_of_sets(own=(0.3, 1), languages="de sw th", control_languages="de sw th", **metadata):
    first = about(predictions(own, (1, 0), languages), task_name="sentiment", **metadata)
    second = about(predictions((0.3, 0), (0.6, 0), control_languages), "odd", task_name="sentiment",
                   answers="arbitrary", **metadata)  # fmt: skip
    return first, second


def test_parts_stand_beside_the_test_set_they_explain():
    own, control = pair_of_sets()
    tasks = build(own, control, seed=2)["glotlift"]["tasks"]
    expected = gain_parts(own.paired("none"), own.paired("batch"), control.paired("batch"), seed=2)
    assert tasks["mood"]["parts"] == {name: dataclasses.asdict(part) for name, part in expected.items()}
    assert tasks["mood"]["parts"]["gain"]["change"] == pytest.approx(tasks["mood"]["groups"]["all"]["change"])
    assert tasks["mood"]["parts_sentence"].startswith("Of the change of ")
    assert "parts" not in tasks["odd"]
    assert build(control, own, seed=2)["glotlift"]["tasks"]["mood"] == tasks["mood"]  # in any order


def test_parts_are_over_the_languages_that_both_have():
    own, control = pair_of_sets(control_languages="th de")
    task = task_of(own, control)
    assert task["parts"]["gain"]["languages"] == 2
    assert "mean over 2 languages, bias" in task["parts_sentence"]
    changes = [task["languages"][code]["changes"]["raw"]["change"] for code in ("de", "th")]
    assert task["parts"]["gain"]["change"] == pytest.approx(np.mean(changes))
    assert "parts" not in task_of(*pair_of_sets(control_languages="fr es"))


@pytest.mark.parametrize(
    "change",
    [
        lambda given: about(given, task_name="nli"),
        lambda given: about(given, task_name=None),
        lambda given: about(given, demo_seed=7),
        lambda given: about(given, answers="english"),
        lambda given: dataclasses.replace(given, num_fewshot={"de": 2, "sw": 1, "th": 2}),
        lambda given: dataclasses.replace(
            given, frames={v: {c: f.iloc[:50] for c, f in fs.items()} for v, fs in given.frames.items()}
        ),
    ],
    ids=["task", "no task", "demonstrations", "answers", "number of demonstrations", "items"],
)
def test_a_test_set_that_differs_in_more_than_its_answers_is_no_control(change):
    """And the scores are written all the same."""
    own, control = pair_of_sets()
    assert "parts" in task_of(own, control)
    assert "parts" not in task_of(own, change(control))


def test_of_several_controls_the_one_of_the_same_items_is_used():
    own, control = pair_of_sets()
    limited = dataclasses.replace(
        control, key="few", frames={v: {c: f.iloc[:50] for c, f in fs.items()} for v, fs in control.frames.items()}
    )
    expected = task_of(own, control)["parts"]
    assert task_of(own, limited, control)["parts"] == task_of(own, control, limited)["parts"] == expected


def test_base_alone_has_no_parts():
    own, control = (
        dataclasses.replace(each, frames={"base": each.frames["base"]}) for each in pair_of_sets()
    )  # fmt: skip
    assert "parts" not in task_of(own, control)


# --- several test sets of one task


def test_answers_in_other_languages_make_a_grid():
    sets = [
        about(predictions((k / 2, 0), (1, 0), "de sw"), f"in-{answer}", answers=f"in:{answer}", task_name="sentiment")
        for k, answer in enumerate(("de", "en"))
    ]
    found = build(*sets, about(predictions((1, 0), (1, 0), "de sw"), "own"))["glotlift"]
    grid = found["answer_language_grid"]
    assert list(grid) == ["sentiment"]
    assert set(grid["sentiment"]) == {"test_sets", "base", "tuned"}
    assert grid["sentiment"]["test_sets"] == {"de": ["in-de"], "en": ["in-en"]}
    for variant in ("base", "tuned"):
        for code in ("de", "sw"):
            assert grid["sentiment"][variant][code] == {
                answer: found["tasks"][f"in-{answer}"]["languages"][code][variant]["accuracy"]
                for answer in ("de", "en")
            }
    assert "answer_language_grid" not in build(predictions((1, 0), (1, 0), "de"))["glotlift"]


def test_a_grid_over_draws_of_demonstrations_is_of_their_mean():
    sets = [
        about(predictions((k / 2, 0), None, "de"), f"draw{k}", answers="in:en", task_name="sentiment", demo_seed=k)
        for k in range(3)
    ]
    found = build(*sets)["glotlift"]
    accuracies = [found["tasks"][each.key]["languages"]["de"]["base"]["accuracy"] for each in sets]
    assert len(set(accuracies)) > 1
    assert found["answer_language_grid"]["sentiment"]["base"]["de"]["en"] == pytest.approx(np.mean(accuracies))
    assert found["answer_language_grid"]["sentiment"]["test_sets"] == {"en": ["draw0", "draw1", "draw2"]}
    assert found["demonstration_spread"]["sentiment.in:en"]["test_sets"] == ["draw0", "draw1", "draw2"]


def draw(seed: int | None, languages="de sw", shots: int = 2, **metadata) -> Predictions:
    given = about(predictions((1 + (seed or 0) / 3, 0), (2, 0), languages), f"s{seed}.{languages[:2]}{shots}",
                  task_name="sentiment", demo_seed=seed, **metadata)  # fmt: skip
    return dataclasses.replace(given, num_fewshot=dict.fromkeys(languages.split(), shots))


def test_draws_of_demonstrations_have_a_spread():
    sets = [draw(0), draw(1), draw(2), draw(None)]
    found = build(*sets)["glotlift"]
    spread = found["demonstration_spread"]
    assert list(spread) == ["sentiment.own"]
    entry = spread["sentiment.own"]
    keys = [each.key for each in sets[:3]]
    assert entry["test_sets"] == keys
    for variant in ("base", "tuned"):
        means = [found["tasks"][key]["means"][variant]["accuracy"] for key in keys]
        assert entry[variant]["mean"] == pytest.approx(
            {"mean": np.mean(means), "sd": np.std(means, ddof=1), "min": min(means), "max": max(means)}
        )
        german = [found["tasks"][key]["languages"]["de"][variant]["accuracy"] for key in keys]
        assert entry[variant]["languages"]["de"]["sd"] == pytest.approx(np.std(german, ddof=1))
        assert list(entry[variant]["languages"]) == ["de", "sw"]
    assert "demonstration_spread" not in build(draw(0), draw(None))["glotlift"]


def test_draws_of_other_languages_or_numbers_of_demonstrations_are_not_mixed():
    """They were once: a KeyError where the first draw had a language more, one spread over 2 and 4 shots."""
    spread = build(draw(0), draw(1), draw(2, "sw"), draw(3, "sw"), draw(4, shots=4))["glotlift"]["demonstration_spread"]
    assert [entry["test_sets"] for entry in spread.values()] == [["s0.de2", "s1.de2"], ["s2.sw2", "s3.sw2"]]
    assert list(spread) == ["sentiment.own", "sentiment.own.s2.sw2"]


# --- edges


def tiny_set(n: int, labels: list[str], gold: list[str], languages="de", variants=("base", "tuned")) -> Predictions:
    random = np.random.default_rng(n)
    frames = {
        variant: {code: frame(random.normal(size=(n, len(labels))), np.array(gold), labels)
                  for code in languages.split()}
        for variant in variants
    }  # fmt: skip
    return Predictions("mood", frames, {**METADATA, "labels": labels})


LETTERS = list("abcdefghijklmnopqrst")


EDGES = {
    "1 item": tiny_set(1, LABELS, ["yes"]),
    "1 item, base": tiny_set(1, LABELS, ["yes"], variants=("base",)),
    "2 items": tiny_set(2, LABELS, ["yes", "no"], "de sw ko"),
    "1 label": tiny_set(9, LABELS, ["yes"] * 9, "de ko"),
    "1 item of a label": tiny_set(9, LABELS, ["yes"] * 8 + ["no"]),
    "20 labels": tiny_set(20, LETTERS, LETTERS),
    "20 labels, 3 each": tiny_set(60, LETTERS, LETTERS * 3, "de sw"),
    "free": with_free(tiny_set(3, LABELS, ["yes", "no", "no"])),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges_are_json(edge, tmp_path):
    given = EDGES[edge]
    found = build(given, seen=["de"])
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found  # nothing but what JSON has
    write_json(tmp_path / "scores.json", found)
    task = found["glotlift"]["tasks"]["mood"]
    for key in ("task", "answers", "scoring", "calibration", "labels", "label_words", "chance", "languages", "means",
                "collapsed", "consistency", "rollups", "sentence"):  # fmt: skip
        assert key in task
    if "tuned" in given.frames:
        assert {"groups", *GROUPS.values()} <= set(task)


@pytest.mark.peers
@pytest.mark.parametrize("edge", EDGES)
def test_edges_are_tables(edge):
    make_table = pytest.importorskip("lm_eval.utils").make_table
    assert "mood_de" in make_table(build(EDGES[edge], seen=["de"]))


def test_one_label_alone_has_no_auroc_anywhere():
    task = task_of(tiny_set(9, LABELS, ["yes"] * 9, "de ko"))
    assert task["auroc_groups"] == {}
    assert task["means"]["tuned"]["auroc"] is None
    assert all("auroc" not in entry["changes"] for entry in task["languages"].values())
    assert "AUROC goes from undefined to undefined" in task["sentence"]
    assert "(AUROC undefined)" in task_of(tiny_set(9, LABELS, ["yes"] * 9, variants=("base",)))["sentence"]


def test_the_mean_auroc_is_over_the_languages_that_have_one():
    given = predictions((1, 0), (1, 0), "de sw")
    for variant in ("base", "tuned"):
        given.frames[variant]["sw"]["gold"] = "yes"
    task = task_of(given)
    assert task["languages"]["sw"]["base"]["auroc"] is None
    assert task["means"]["base"]["auroc"] == task["languages"]["de"]["base"]["auroc"]
    assert task["auroc_groups"]["all"]["languages"] == 1


def test_one_item_proves_nothing():
    """From wrong to right in all languages, and yet one source item; a sentence calls it no change."""
    frames = {
        variant: {code: frame(np.array([scored]), np.array(["yes"]), LABELS) for code in ("de", "sw")}
        for variant, scored in (("base", [0.0, 1.0]), ("tuned", [1.0, 0.0]))
    }
    task = task_of(Predictions("mood", frames, METADATA))
    assert task["groups"]["all"]["change"] == 1.0
    assert not re.search(r"\b(rises|falls|better|worse|prefers)\b", task["sentence"])


def test_the_version_is_the_task_files():
    found = build(about(predictions((1, 0), None, "de"), version=3), predictions((1, 0), None, "de", "old"))
    assert found["versions"] == {"mood_de": 3, "old_de": 1}


def test_demonstrations_are_counted_by_language():
    given = dataclasses.replace(predictions((1, 0), None, "de sw"), num_fewshot={"de": 4})
    assert build(given)["n-shot"] == {"mood_de": 4, "mood_sw": None}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """Whatever was computed before, and in whatever order rows of the tuned file stand."""
    given = with_free(predictions((0.5, 1), (1, 0), "de sw"))
    written = []
    for name, options in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        build(predictions((1, 0), (1, 0), "th"), seed=9)
        write_json(tmp_path / name, build(given, seen=["sw"], **options))
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] != written[2]
    mixed = {code: each.sample(frac=1, random_state=0) for code, each in given.frames["tuned"].items()}
    other = dataclasses.replace(given, frames={"base": given.frames["base"], "tuned": mixed})
    first, again = (task_of(each) for each in (given, other))
    for measure, key in GROUPS.items():
        assert first[key]["all"] == pytest.approx(again[key]["all"]), measure


def test_rows_of_base_and_tuned_are_paired_by_id():
    """Scores too, not only decisions: a shuffled file is the same file."""
    given = predictions((0.5, 1), (1, 0), "de")
    mixed = given.frames["tuned"]["de"].sample(frac=1, random_state=1).reset_index(drop=True)
    shuffled = dataclasses.replace(given, frames={"base": given.frames["base"], "tuned": {"de": mixed}})
    pair, same = given.paired_scores()["de"], shuffled.paired_scores()["de"]
    np.testing.assert_array_equal(pair.b, same.b)
    assert list(pair.ids) == list(same.ids)
    pd.testing.assert_frame_equal(given.paired("batch")["de"], shuffled.paired("batch")["de"])


def test_content_free_scores_are_read_from_the_files(tmp_path):
    given = with_free(predictions((1, 2), (1.5, 0), "de"))
    for variant, frames in given.frames.items():
        path = tmp_path / "predictions" / variant / "mood" / "de.parquet"
        write_parquet(path, frames["de"], {**METADATA, "label_words": words("de"), "content_free": FREE, "version": 2})
    back = read_predictions(tmp_path, "mood", ("base", "tuned"), ["de"])
    assert build(back)["versions"] == {"mood_de": 2}
    contextual = build(back)["glotlift"]["tasks"]["mood"]["contextual_groups"]["all"]
    assert contextual == task_of(given)["contextual_groups"]["all"]
    assert contextual["change"] != task_of(given)["groups"]["all"]["change"]
