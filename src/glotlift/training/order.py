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


def language_order(
    languages: Sequence[str], epochs: float, batch_size: int, micro_batch_size: int, seed: int
) -> list[int]:
    """Return row numbers, step by step, the rows of a micro-batch of one language: they share its demonstrations.

    A pass is cut, language by language, into micro-batches of rows drawn at random; what is left of a language, fewer
    than a micro-batch, is filled up from its next pass. Micro-batches come in random order.

    Args:
        languages: of every row; at least one row.
        epochs: passes over the rows.
        batch_size: rows of an optimizer step, a multiple of `micro_batch_size`.
        micro_batch_size: rows of a forward pass.
        seed: of the shuffles.

    Returns:
        `ceil(rows x epochs / batch_size)` steps of `batch_size` row numbers.
    """
    draw = random.Random(seed)
    n_batches = math.ceil(len(languages) * epochs / batch_size) * (batch_size // micro_batch_size)
    own = {code: [row for row, each in enumerate(languages) if each == code] for code in dict.fromkeys(languages)}
    left: dict[str, list[int]] = {code: [] for code in own}
    batches: list[list[int]] = []
    while len(batches) < n_batches:
        drawn = []
        for code, rows in own.items():
            waiting = left[code] + draw.sample(rows, len(rows))
            whole = len(waiting) - len(waiting) % micro_batch_size
            drawn += [waiting[start : start + micro_batch_size] for start in range(0, whole, micro_batch_size)]
            left[code] = waiting[whole:]
        draw.shuffle(drawn)
        batches += drawn
    return [row for batch in batches[:n_batches] for row in batch]
