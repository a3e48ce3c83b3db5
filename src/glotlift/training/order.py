"""In which order pairs are learned: steps of like length, the same whatever the machine cuts them into.

Enters: lengths. Leaves: row numbers, `batch_size` to an optimizer step. The order is laid out before training, so it
depends on the seed alone: not on micro-batches, processes, or where a run was continued.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

WINDOW = 16
"""Steps whose rows are sorted by length together: more pad less, and mix less."""


def step_order(lengths: Sequence[int], *, epochs: float, batch_size: int, seed: int) -> list[int]:
    """Return row numbers, step by step; every step is whole, so the last one may begin another pass.

    Args:
        lengths: tokens of every row; at least one row.
        epochs: passes over the rows.
        batch_size: rows of an optimizer step.
        seed: of the shuffles.

    Returns:
        `ceil(rows x epochs / batch_size)` steps of `batch_size` row numbers, the longest of a step first.
    """
    draw = random.Random(seed)
    n_steps = math.ceil(len(lengths) * epochs / batch_size)
    steps: list[list[int]] = []
    left: list[int] = []  # of a pass, not enough for a step: the next one fills it up
    while len(steps) < n_steps:
        rows = draw.sample(range(len(lengths)), len(lengths))
        if left:
            missing = batch_size - len(left)
            steps.append(sorted(left + rows[:missing], key=lambda row: -lengths[row]))
            rows = rows[missing:]
        whole = len(rows) - len(rows) % batch_size
        left = rows[whole:]
        for start in range(0, whole, WINDOW * batch_size):
            window = sorted(rows[start : min(start + WINDOW * batch_size, whole)], key=lambda row: -lengths[row])
            cut = [window[k : k + batch_size] for k in range(0, len(window), batch_size)]
            draw.shuffle(cut)
            steps += cut
    return [row for step in steps[:n_steps] for row in step]
