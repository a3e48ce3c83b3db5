"""Correlation of PC1 between every two languages, as it is and with the length of the questions held fixed.

Enters: the first principal component of parallel items in several languages, and the token lengths of these items.
Leaves: Pearson's r and partial r of every pair of languages, their draws over bootstrap resamples of the items, and
their draws under shuffled pairs.

A question that is long in one language is long in all, so length confounds `r` (arXiv 2405.13816 reports it alone):
`r_partial` is what is left when the token lengths in both languages are held fixed. Under the null an item's value and
length in one language stay together and lose their partner in the other.

All follows from the correlations among values and lengths of all languages, so no draw looks at an item again: least
squares residuals enter by their inner products only, which a Schur complement gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glotlift.explanation.resampling import MIN_ITEMS

_LEFT = 1e-9
"""Share of PC1's variance that the lengths must leave; less is rounding."""

_SAME = 1e-10
"""Share of one length's variance that the other must leave to be a control of its own."""


@dataclass(frozen=True)
class Correlations:
    """Correlations of all pairs of languages, NaN where undefined.

    Attributes:
        r: Pearson's correlation, -1 to 1. *Shape:* (pairs,).
        r_partial: with the token lengths in both languages held fixed, -1 to 1. *Shape:* (pairs,).
        r_draws: over bootstrap resamples. *Shape:* (resamples, pairs).
        r_partial_draws: likewise.
        r_null: under shuffled pairs. *Shape:* (permutations, pairs).
        r_partial_null: likewise.
    """

    r: np.ndarray
    r_partial: np.ndarray
    r_draws: np.ndarray
    r_partial_draws: np.ndarray
    r_null: np.ndarray
    r_partial_null: np.ndarray


def correlations(
    values: np.ndarray, lengths: np.ndarray, pairs: list[tuple[int, int]], *, counts: np.ndarray, orders: np.ndarray
) -> Correlations:
    """Return the correlations of pairs of languages over parallel items.

    Args:
        values: of one variant and layer. *Shape:* (languages, items).
        lengths: tokens of the questions. *Shape:* (languages, items).
        pairs: of places of languages; in the null, the items of the first are shuffled.
        counts: how often each resample draws each item. *Shape:* (resamples, items).
        orders: permutations of the items. *Shape:* (permutations, items).

    Returns:
        NaN with fewer than 6 items, or where a value does not vary (`r_partial`: does not vary beside the lengths).
    """
    n_languages, n_items = values.shape
    a, b = np.array(pairs, int).reshape(-1, 2).T
    sizes = (1, len(counts), len(orders))
    if n_items < MIN_ITEMS:
        empty = [np.full((size, len(pairs)), np.nan) for size in sizes for _ in range(2)]
        return Correlations(empty[0][0], empty[1][0], *empty[2:])
    rows = standardised(np.concatenate([values, lengths]))
    products = (rows[:, None] * rows[None]).reshape(-1, n_items)

    def weighted(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = weights @ rows.T / n_items
        moments = (weights @ products.T / n_items).reshape(-1, len(rows), len(rows))
        matrix = _scaled(moments - means[:, :, None] * means[:, None])
        return _pairwise(matrix, matrix, a, b, n_languages)

    r, partial = weighted(np.ones((1, n_items)))
    r_draws, partial_draws = weighted(counts)
    matrix = rows @ rows.T / n_items
    shuffled = rows[:, orders].transpose(1, 0, 2) @ rows.T / n_items
    within = np.broadcast_to(matrix, shuffled.shape)
    r_null, partial_null = _pairwise(within, shuffled, a, b, n_languages)
    return Correlations(r[0], partial[0], r_draws, partial_draws, r_null, partial_null)


def standardised(rows: np.ndarray) -> np.ndarray:
    """Return the rows with mean 0 and variance 1; zero where constant, NaN where not finite. *Shape:* (rows, items)."""
    centred = rows - rows.mean(1, keepdims=True)
    scale = np.sqrt((centred**2).mean(1, keepdims=True))
    constant = scale <= 1e-12 * np.sqrt((rows**2).mean(1, keepdims=True))
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def _scaled(covariance: np.ndarray) -> np.ndarray:
    """Return correlations, zero with what does not vary. *Shape:* (draws, rows, rows)."""
    variance = np.einsum("drr->dr", covariance)
    scale = np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), np.inf)
    scale = np.where(np.isnan(variance), np.nan, scale)
    return covariance / scale[:, :, None] / scale[:, None]


def _pairwise(
    within: np.ndarray, across: np.ndarray, a: np.ndarray, b: np.ndarray, n_languages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return r and partial r of pairs of languages, draw by draw.

    Args:
        within: correlations of rows of one language: values first, then lengths. *Shape:* (draws, rows, rows).
        across: correlations of rows of the first language of a pair (upright) with those of the second. *Shape:* same.
        a: first languages of the pairs. *Shape:* (pairs,).
        b: second languages. *Shape:* (pairs,).
        n_languages: half the rows.

    Returns:
        Two arrays of *shape* (draws, pairs).
    """
    a_length, b_length = a + n_languages, b + n_languages
    r, between = across[:, a, b], across[:, a_length, b_length]
    # x and y on the two lengths, first that of x's language
    x_on = within[:, a, a_length], across[:, a, b_length]
    y_on = across[:, a_length, b], within[:, b, b_length]
    varies = (np.abs(within[:, a, a]) > 0.5) & (np.abs(within[:, b, b]) > 0.5)

    def explained(u: tuple[np.ndarray, np.ndarray], v: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        left = 1 - between**2
        beside = (u[1] - between * u[0]) * (v[1] - between * v[0])
        # two lengths in one proportion are one control; which of the two is left makes no difference
        both = np.where(left > _SAME, beside / np.where(left > _SAME, left, 1.0), 0.0)
        return u[0] * v[0] + both

    x_left, y_left = 1 - explained(x_on, x_on), 1 - explained(y_on, y_on)
    is_left = varies & (x_left > _LEFT) & (y_left > _LEFT)
    product = np.where(is_left, x_left * y_left, np.nan)
    partial = np.clip((r - explained(x_on, y_on)) / np.sqrt(product), -1, 1)
    return np.where(varies, r, np.nan), partial
