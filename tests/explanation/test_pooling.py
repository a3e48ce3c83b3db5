from __future__ import annotations

import pytest
import torch

from glotlift.explanation.pooling import pooled_rows
from glotlift.models.forward import run


@pytest.mark.parametrize("limit", [1, 3])  # one item is its own prefix
@pytest.mark.parametrize("pooling", ["question", "position-weighted", "whole"])
def test_states_are_the_mean_that_was_asked_for(loud, ask, pooling, limit):
    loaded = loud("gemma2")
    rows = ask(loaded, ("de",), limit)["de"].rows
    seen = 0
    for batch in run(loaded.model, pooled_rows(rows, pooling), pooled_states=True):
        for k, index in enumerate(batch.rows):
            row = rows[index]
            assert 0 < row.span[0] < row.span[1] <= len(row.prompt)
            with torch.inference_mode():
                hidden = loaded.model(torch.tensor([row.prompt]), output_hidden_states=True).hidden_states
            states = torch.stack(hidden)[:-1, 0]  # the last one is behind the norm
            start, end = (0, len(row.prompt)) if pooling == "whole" else row.span
            weights = torch.arange(1.0, end - start + 1) if pooling == "position-weighted" else torch.ones(end - start)
            expected = torch.einsum("t,lth->lh", weights / weights.sum(), states[:, start:end])
            torch.testing.assert_close(batch.pooled_states[k][:-1], expected, atol=1e-3, rtol=1e-3)
            seen += 1
    assert seen == limit
