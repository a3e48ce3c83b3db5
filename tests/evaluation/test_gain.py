"""Parts of a gain: on made data of which the truth is known, and in words."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from glotlift.errors import DataError
from glotlift.evaluation.compare import Change
from glotlift.evaluation.gain import PARTS, change_sentence, gain_parts, n_languages, parts_sentence, percent_points
from glotlift.evaluation.metrics import decide
from glotlift.evaluation.pairing import correctness
from tests.evaluation.test_metrics import frame

LABELS = ["yes", "no"]
N = 200
GOLD = np.array(LABELS * (N // 2))
CODES = ("de", "sw", "th")


def margins(seed: int, signal: float, bias: float = 0.0) -> pd.DataFrame:
    """Return a prediction frame: how well it tells gold labels apart, and how much it prefers `yes`."""
    noise = np.random.default_rng(seed).normal(0, 1, N)
    margin = signal * np.where(GOLD == "yes", 1, -1) + noise + bias
    return frame(np.stack([margin / 2 - 3, -margin / 2 - 3], 1), GOLD, LABELS)


def rights(base: tuple[float, float], tuned: tuple[float, float], calibration: str, codes=CODES, start: int = 0):
    """Return language -> which items base and tuned have right; each is (signal, bias)."""

    def decided(seed: int, settings: tuple[float, float]) -> pd.DataFrame:
        found = margins(seed, *settings)
        return found.assign(predicted=decide(found, LABELS, "sequence", calibration)[0])

    return {
        code: correctness(decided(start + k, base), decided(start + k, tuned), code) for k, code in enumerate(codes)
    }


def parts_of(base, tuned, arbitrary_base, arbitrary_tuned, **options) -> dict[str, Change]:
    """Return the parts where the control has a noise of its own; each argument is (signal, bias)."""
    control = rights(arbitrary_base, arbitrary_tuned, "batch", start=50)
    return gain_parts(rights(base, tuned, "none"), rights(base, tuned, "batch"), control, **options)


# --- the definition


def random_rights(seed: int, n: int = 40) -> dict[str, pd.DataFrame]:
    random = np.random.default_rng(seed)
    index = [f"i{k}" for k in range(n)]
    return {code: pd.DataFrame(random.random((n, 2)) < 0.6, columns=["a", "b"], index=index) for code in CODES}


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_their_definition_and_add_up(seed):
    raw, fair, control = (random_rights(seed * 3 + k) for k in range(3))

    def gain(tables) -> float:
        return float(np.mean([table["b"].mean() - table["a"].mean() for table in tables.values()]))

    parts = gain_parts(raw, fair, control)
    assert tuple(parts) == PARTS == ("gain", "bias", "format", "understanding")
    assert parts["gain"].change == pytest.approx(gain(raw))
    assert parts["bias"].change == pytest.approx(gain(raw) - gain(fair))
    assert parts["format"].change == pytest.approx(gain(control))
    assert parts["understanding"].change == pytest.approx(gain(fair) - gain(control))
    assert sum(parts[name].change for name in PARTS[1:]) == pytest.approx(parts["gain"].change, abs=1e-12)
    for part in parts.values():
        assert part.low <= part.change <= part.high
        assert (part.n, part.languages) == (40, 3)


def test_items_are_matched_by_id_within_a_language():
    """The order of the rows says nothing: a part's interval knows that base and control are of one item."""
    raw, fair, control = (random_rights(k) for k in range(3))
    order = np.random.default_rng(0).permutation(40)
    shuffled = [{code: table.iloc[order] for code, table in each.items()} for each in (fair, control)]
    assert gain_parts(raw, *shuffled) == gain_parts(raw, fair, control)


def test_parts_that_cancel_item_by_item_are_known_as_far_as_forty_items_tell():
    """The same change raw, calibrated and with arbitrary words: another item might move each part by 2."""
    raw = random_rights(0)
    parts = gain_parts(raw, raw, raw)
    for name in ("bias", "understanding"):
        half = 2 * (1 - 0.025 ** (1 / 40))
        assert (parts[name].change, parts[name].low, parts[name].high) == pytest.approx((0.0, -half, half))
    assert parts["format"].low == parts["gain"].low < parts["gain"].high


def test_intervals_are_clustered_by_source_item():
    one = {"de": random_rights(0)["de"]}
    many = {f"c{k}": one["de"] for k in range(9)}
    alone, copies = gain_parts(one, one, one), gain_parts(many, many, many)
    assert (copies["gain"].low, copies["gain"].high) == pytest.approx((alone["gain"].low, alone["gain"].high))
    mixed = random_rights(1) | random_rights(0)
    assert gain_parts(mixed, mixed, mixed, seed=1)["gain"] != gain_parts(mixed, mixed, mixed, seed=2)["gain"]


def test_other_items_are_refused():
    raw, control = random_rights(0), random_rights(1)
    control["sw"] = control["sw"].iloc[1:]
    with pytest.raises(DataError, match="sw: the items with arbitrary answers are other ones, expected the same items"):
        gain_parts(raw, raw, control)
    control["sw"] = random_rights(1)["sw"].rename(index={"i0": "x0"})
    with pytest.raises(DataError, match="sw: the items with arbitrary"):
        gain_parts(raw, raw, control)


def test_languages_of_the_control_that_are_not_asked_for_are_not_used():
    raw, fair, control = (random_rights(k) for k in range(3))
    fewer = {code: raw[code] for code in ("de", "th")}
    assert gain_parts(fewer, fair, control) == gain_parts(fewer, fewer | fair, {"th": control["th"], **control})
    assert gain_parts(fewer, fair, control)["gain"].languages == 2


# --- what is known of made data


def clear(parts: dict[str, Change]) -> set[str]:
    return {name for name in PARTS if parts[name].is_clear}


def test_a_shift_of_preference_alone_is_bias_alone():
    parts = parts_of((1, 4), (1, 0), (1, 0), (1, 0))
    assert clear(parts) == {"gain", "bias"}
    assert parts["bias"].change == pytest.approx(parts["gain"].change, abs=0.02)
    assert parts["bias"].change > 0.2
    assert "only bias is clear of zero" in parts_sentence("mood", parts)


def test_a_gain_that_arbitrary_words_have_too_is_format_alone():
    parts = parts_of((0.2, 0), (1.2, 0), (0.2, 0), (1.2, 0))
    assert clear(parts) == {"gain", "format"}
    assert parts["format"].change == pytest.approx(parts["gain"].change, abs=0.07)
    assert "only format is clear of zero" in parts_sentence("mood", parts)


def test_a_gain_that_needs_the_words_meaning_is_understanding_alone():
    parts = parts_of((0.2, 0), (1.2, 0), (0.2, 0), (0.2, 0))
    assert clear(parts) == {"gain", "understanding"}
    assert parts["understanding"].change == pytest.approx(parts["gain"].change, abs=0.02)
    assert "only understanding is clear of zero" in parts_sentence("mood", parts)


def test_understanding_that_is_lost_is_negative():
    """The control gains what the meaning loses: nothing is gained, and two parts are told."""
    parts = parts_of((0.7, 0), (0.7, 0), (0.1, 0), (1.5, 0))
    assert clear(parts) == {"format", "understanding"}
    assert parts["understanding"].high < 0 < parts["format"].low
    assert "only format and understanding are clear of zero" in parts_sentence("mood", parts)


def test_nothing_changed_and_no_part_is_called_a_change():
    parts = parts_of((1, 0.5), (1, 0.5), (0.5, 0), (0.5, 0))
    assert clear(parts) == set()
    text = parts_sentence("mood", parts)
    assert text.endswith("and understanding +0.0 [no item moved] (the rest): none of them is clear of zero.")


def true_parts() -> dict[str, float]:
    """Return the parts of endless items, in closed form: a margin is normal about its signal and bias."""

    def accuracy(signal: float, bias: float = 0.0) -> float:
        return (norm.cdf(signal + bias) + norm.cdf(signal - bias)) / 2

    gain, fair = accuracy(1, 0.3) - accuracy(0.5, 1.5), accuracy(1) - accuracy(0.5)
    control = accuracy(0.6) - accuracy(0.3)
    return {"gain": gain, "bias": gain - fair, "format": control, "understanding": fair - control}


def test_intervals_of_parts_hold_the_truth():
    held = []
    for seed in range(12):
        raw, fair = (rights((0.5, 1.5), (1, 0.3), how, start=10 * seed) for how in ("none", "batch"))
        parts = gain_parts(raw, fair, rights((0.3, 1), (0.6, 0), "batch", start=1000 + 10 * seed))
        held += [parts[name].low <= value <= parts[name].high for name, value in true_parts().items()]
    assert np.mean(held) >= 0.85


# --- in words


def part(middle: float, is_clear: bool, languages: int = 20) -> Change:
    half = abs(middle) / 2 if is_clear else abs(middle) + 0.01
    return Change("x", 100, 0.0, middle, middle, middle - half, middle + half, languages=languages)


@pytest.mark.parametrize(
    ("which", "verdict"),
    [
        ("", "none of them is clear of zero."),
        ("bias", "only bias is clear of zero."),
        ("understanding", "only understanding is clear of zero."),
        ("bias format", "only bias and format are clear of zero."),
        ("bias understanding", "only bias and understanding are clear of zero."),
        ("bias format understanding", "all three are clear of zero."),
    ],
)
def test_the_sentence_names_the_parts_that_are_clear(which, verdict):
    values = {"gain": 0.06, "bias": 0.1, "format": -0.06, "understanding": 0.02}
    parts = {name: part(value, name in which.split()) for name, value in values.items()}
    text = parts_sentence("mood", parts)
    assert text.endswith(f"(the rest): {verdict}")
    assert text.count(".") == text.count(".0") + 1  # one sentence
    numbers = re.findall(r"[+-]\d+\.\d", text)
    shown = [parts[name] for name in PARTS]
    assert numbers == [f"{100 * x:+.1f}" for each in shown for x in (each.change, each.low, each.high)]
    assert "] in raw accuracy on mood, mean over 20 languages, bias " in text
    one = parts_sentence("mood", {name: part(value, True, 1) for name, value in values.items()})
    assert "mean over 1 language, bias" in one


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "+0.0"), (-0.0, "+0.0"), (-0.0004, "+0.0"), (0.0004, "+0.0"), (-0.0006, "-0.1"), (-0.1, "-10.0"),
     (0.123, "+12.3"), (-1.0, "-100.0"), (-0.2004, "-20.0")],
)  # fmt: skip
def test_points_have_a_sign_and_no_negative_zero(value, text):
    assert percent_points(value) == text


def test_one_language_is_not_languages():
    assert [n_languages(n) for n in (1, 2, 20)] == ["1 language", "2 languages", "20 languages"]
    means = {"base": {"auroc": 0.5}, "tuned": {"auroc": 0.6}}
    changed = {name: part(0.1, True, 1) for name in ("all", "unseen")}
    text = change_sentence("mood", changed, changed, means)
    assert "mean over 1 language. On the 1 language never tuned on, it rises" in text
