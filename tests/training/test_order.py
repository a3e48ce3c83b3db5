"""The order of rows: whole steps of like length, from the seed alone."""

import random

from glotlift.training.order import WINDOW, step_order

_DRAW = random.Random(0)
LENGTHS = [_DRAW.randrange(10, 200) for _ in range(503)]


def _steps(order, size):
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_every_row_is_seen_as_often_as_there_are_passes():
    order = step_order(LENGTHS, epochs=2, batch_size=16, seed=1)
    counts = [order.count(row) for row in range(503)]
    assert len(order) == 63 * 16
    assert set(counts) == {2, 3}
    assert counts.count(3) == 2  # the last step is filled from another pass


def test_a_step_holds_no_row_twice_but_where_passes_meet():
    steps = _steps(step_order(LENGTHS[:96], epochs=5, batch_size=16, seed=1), 16)
    assert all(len(set(step)) == 16 for step in steps)


def test_the_seed_decides():
    order = step_order(LENGTHS, epochs=1, batch_size=8, seed=1)
    assert order == step_order(LENGTHS, epochs=1, batch_size=8, seed=1)
    assert order != step_order(LENGTHS, epochs=1, batch_size=8, seed=2)


def test_steps_are_of_like_length_and_come_mixed():
    steps = _steps(step_order(LENGTHS, epochs=1, batch_size=8, seed=1), 8)
    spreads = [max(LENGTHS[r] for r in step) - min(LENGTHS[r] for r in step) for step in steps]
    assert sum(spreads) / len(spreads) < 40  # of 190, where chance gives about 150
    assert all([LENGTHS[r] for r in step] == sorted((LENGTHS[r] for r in step), reverse=True) for step in steps)
    means = [sum(LENGTHS[r] for r in step) / 8 for step in steps[:WINDOW]]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_part_of_a_pass_and_more_rows_than_pairs():
    assert len(step_order(LENGTHS, epochs=0.1, batch_size=16, seed=0)) == 4 * 16
    assert len(step_order([5, 5, 5], epochs=1, batch_size=4, seed=0)) == 4
