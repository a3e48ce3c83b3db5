from __future__ import annotations

import numpy as np
import pytest
import torch

from glotlift.errors import ModelError
from glotlift.explanation.one_prompt import COLUMNS, TUNED_COLUMNS, lens_of_text
from glotlift.models.token_bytes import readable
from tests.explanation.test_lens import plain

TEXT = "Works well and looks lovely"


def test_every_layer_and_token_is_that_of_the_plain_loop(loud):
    loaded = loud("gemma2")
    tokens = loaded.tokenizer(TEXT)["input_ids"]
    frame = lens_of_text(loaded, TEXT, n_tokens=3)
    assert tuple(frame.columns) == COLUMNS
    assert sorted(set(frame["position"])) == [len(tokens) - 3, len(tokens) - 2, len(tokens) - 1]
    for position, rows in frame.groupby("position"):
        p = plain(loaded, tokens[: position + 1])
        assert rows["layer"].tolist() == [0, 1, 2, 3]
        assert set(rows["token"]) == {readable(loaded.tokenizer, tokens[position])}
        assert rows["base_token"].tolist() == [readable(loaded.tokenizer, token) for token in p.argmax(1).tolist()]
        np.testing.assert_allclose(rows["base_probability"], p.max(1), rtol=2e-3)


def test_the_difference_is_that_of_the_tuned_models_token(adapted):
    frame = lens_of_text(adapted, TEXT, n_tokens=2)
    assert tuple(frame.columns) == (*COLUMNS, *TUNED_COLUMNS)
    tokens = adapted.tokenizer(TEXT)["input_ids"]
    found = {}
    for variant in ("base", "tuned"):
        with adapted.as_variant(variant) as model, torch.inference_mode():
            found[variant] = model(input_ids=torch.tensor([tokens])).logits[0, -1].softmax(-1).numpy()
    last = frame[(frame["layer"] == 3) & (frame["position"] == len(tokens) - 1)].iloc[0]
    said = int(found["tuned"].argmax())
    assert last["tuned_token"] == readable(adapted.tokenizer, said)
    assert last["tuned_probability"] == pytest.approx(found["tuned"][said], rel=2e-3)
    assert last["change"] == pytest.approx(found["tuned"][said] - found["base"][said], rel=1e-2, abs=1e-4)
    assert (frame.loc[frame["layer"] == 0, "change"].abs() < 1e-4).all()


def test_a_text_that_does_not_fit_is_refused(loud):
    with pytest.raises(ModelError, match="the model's window 1024"):
        lens_of_text(loud("llama"), "a " * 2000)
    with pytest.raises(ModelError, match="got a text without tokens"):
        lens_of_text(loud("gpt2"), "")
