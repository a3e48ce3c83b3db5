"""How alike the spaces of two languages are: debiased CKA, MEXA and retrieval of parallel items, on one layer.

Enters: states of parallel items in several languages. Leaves: each measure for every pair of languages, with its draws
over bootstrap resamples of the items and under shuffled pairs.

    cka                centred kernel alignment, linear (Kornblith et al. 2019, arXiv 1905.00414), from the unbiased
                       HSIC of Song et al. 2012: do the same items lie close to each other in both languages? 1 for
                       the same space; about 0 for unrelated ones however few the items, where plain CKA is near 1
                       when items are fewer than dimensions. Unchanged by rotation, offset and scale of a language
    mexa               share of items whose translation is nearer than any other item, looked for from both sides
                       (cosine; arXiv 2410.05873), 0 to 1
    mexa_centred       the same with the mean of each language taken out: a direction that all items of a language
                       share hides what tells them apart
    retrieval          precision at 1 (cosine): share of items whose translation is found, mean of the two directions,
                       0 to 1
    retrieval_centred  the same with the mean of each language taken out

Everything follows from the inner products of items (Gram matrices), so a resample costs nothing in the hidden size. An
item that a resample draws twice is no pair with itself: CKA's sums run over different items, weighted by how often each
is drawn. For the other measures a resample draws the items that are asked for, among all items there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glotlift.explanation.resampling import MIN_ITEMS

SIMILARITIES = ("cka", "mexa", "mexa_centred", "retrieval", "retrieval_centred")

N_SHUFFLES = 200
"""Draws of the null; each costs items² a language."""


@dataclass(frozen=True)
class Measured:
    """A measure of every pair of languages, NaN where undefined.

    Attributes:
        value: *Shape:* (pairs,).
        draws: over bootstrap resamples. *Shape:* (resamples, pairs).
        null: under shuffled pairs. *Shape:* (permutations, pairs).
    """

    value: np.ndarray
    draws: np.ndarray
    null: np.ndarray


def similarities(
    states: np.ndarray, pairs: list[tuple[int, int]], *, counts: np.ndarray, orders: np.ndarray
) -> dict[str, Measured]:
    """Return all measures of `SIMILARITIES` for pairs of languages.

    Args:
        states: of one variant and layer. *Shape:* (languages, items, hidden).
        pairs: of places of languages; in the null, the items of the first are shuffled.
        counts: how often each resample draws each item. *Shape:* (resamples, items).
        orders: permutations of the items. *Shape:* (permutations, items).
    """
    n_items = states.shape[1]
    if n_items < MIN_ITEMS or not pairs:
        shapes = (len(pairs),), (len(counts), len(pairs)), (len(orders), len(pairs))
        return {name: Measured(*(np.full(shape, np.nan) for shape in shapes)) for name in SIMILARITIES}
    centred = states - states.mean(1, keepdims=True)
    is_rounding = _norms(centred) <= 1e-12 * _norms(states)
    centred[is_rounding[..., 0]] = 0
    found = {"cka": _cka(centred, pairs, counts, orders)}
    hits: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in SIMILARITIES[1:]}
    own = np.arange(n_items)
    for suffix, each in (("", states), ("_centred", centred)):
        units = unit(each)
        defined = np.where(each.any(-1).all(-1), 1.0, np.nan)
        for a, b in pairs:
            forth, back = _nearest(units[a] @ units[b].T)
            # under an order, item i of b is paired with item order[i] of a
            for name, both in {
                f"mexa{suffix}": ((forth == own) & (back == own), (forth[orders] == own) & (back == orders)),
                f"retrieval{suffix}": (_mean(forth == own, back == own), _mean(forth[orders] == own, back == orders)),
            }.items():
                hits[name].append((defined[a] * defined[b] * both[0], defined[a] * defined[b] * both[1].mean(1)))
    for name, of_pairs in hits.items():
        items, null = np.stack([own for own, _ in of_pairs], 1), np.stack([null for _, null in of_pairs], 1)
        found[name] = Measured(items.mean(0), counts @ items / n_items, null)
    return found


def unit(states: np.ndarray) -> np.ndarray:
    """Return the states with length 1, zero where they are zero; inner products are then cosines.

    *Shape:* (..., hidden).
    """
    norms = _norms(states)
    return states / np.where(norms > 0, norms, 1.0)


def _norms(states: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states, axis=-1, keepdims=True)


def _mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first.astype(float) + second) / 2


def _nearest(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for every row the column of its largest value, and for every column the row; -1 where two are as large."""

    def best(rows: np.ndarray) -> np.ndarray:
        first = rows.argmax(1)
        is_alone = (rows >= rows[np.arange(len(rows)), first][:, None]).sum(1) == 1
        return np.where(is_alone, first, -1)

    return best(cosines), best(cosines.T)


def _cka(centred: np.ndarray, pairs: list[tuple[int, int]], counts: np.ndarray, orders: np.ndarray) -> Measured:
    """Return debiased CKA; centring changes nothing but the rounding. *Shape:* (languages, items, hidden)."""
    n_languages, n_items, _ = centred.shape
    a, b = np.array(pairs, int).reshape(-1, 2).T
    grams = centred @ centred.transpose(0, 2, 1)
    scale = np.linalg.norm(grams, axis=(1, 2), keepdims=True) / n_items
    grams = grams / np.where(scale > 0, scale, 1.0)
    flat = u_centred(grams).reshape(n_languages, -1)
    products = flat @ flat.T
    norms = np.sqrt(np.maximum(np.diag(products), 0))
    size = np.where(norms > 1e-9 * n_items, norms, np.nan)
    value = (products / size[:, None] / size)[a, b]
    square, null = flat.astype(np.float32).reshape(-1, n_items, n_items), np.empty((len(orders), len(pairs)))
    for draw, order in enumerate(orders):
        shuffled = square[:, order[:, None], order].reshape(n_languages, -1)
        null[draw] = ((shuffled @ square.reshape(n_languages, -1).T) / size[:, None] / size)[a, b]
    np.einsum("lii->li", grams)[:] = 0
    return Measured(value, _cka_draws(grams.astype(np.float32), pairs, counts.astype(np.float32)), null)


def u_centred(grams: np.ndarray) -> np.ndarray:
    """Return Gram matrices with diagonal and rows of sum zero, so that their inner products estimate HSIC without bias.

    That is n (n - 3) times the estimator of Song et al. 2012 (in the form of Székely and Rizzo 2014).
    *Shape:* (..., items, items).
    """
    n_items = grams.shape[-1]
    off_diagonal = 1 - np.eye(n_items)
    hollow = grams * off_diagonal
    rows = hollow.sum(-1, keepdims=True) / (n_items - 2)
    whole = hollow.sum((-2, -1), keepdims=True) / ((n_items - 1) * (n_items - 2))
    return (hollow - rows - rows.swapaxes(-2, -1) + whole) * off_diagonal


def _cka_draws(grams: np.ndarray, pairs: list[tuple[int, int]], counts: np.ndarray) -> np.ndarray:
    """Return CKA over resamples. *Shapes:* (languages, items, items), (resamples, items) -> (resamples, pairs)."""
    sums = WeightedSums(grams, counts)
    own = [sums.hsic(k, k) for k in range(len(grams))]
    draws = np.empty((len(counts), len(pairs)))
    for column, (a, b) in enumerate(pairs):
        product = own[a] * own[b]
        defined = (own[a] > 0) & (own[b] > 0)
        draws[:, column] = np.where(defined, sums.hsic(a, b) / np.sqrt(np.where(defined, product, 1.0)), np.nan)
    return draws


class WeightedSums:
    """The unbiased HSIC of weighted items: a mean of products of Gram entries over different items.

    With K and L the Gram matrices and i, j, q, r different items,

        HSIC = mean K_ij L_ij + mean K_ij L_qr - 2 mean K_ij L_iq

    where a tuple of items weighs the product of their counts. What two items have in common is subtracted, so that an
    item that is drawn twice is never taken for two. All counts 1 give Song et al. 2012.

    Args:
        grams: with zero diagonals, of entries about 1. *Shape:* (languages, items, items).
        counts: *Shape:* (resamples, items).
    """

    def __init__(self, grams: np.ndarray, counts: np.ndarray) -> None:
        self._grams, self._counts, self._squares = grams, counts, counts**2
        self._reach = (
            counts @ grams
        )  # symmetric, so this is each item's weighted row sum: (languages, resamples, items)
        self._once = counts * self._reach
        self._twice = self._squares * self._reach
        self._whole = self._once.sum(2, dtype=np.float64)
        powers = [(counts.astype(np.float64) ** power).sum(1) for power in (1, 2, 3, 4)]
        one, two, three, four = powers
        quadruples = one**4 - 6 * one**2 * two + 3 * two**2 + 8 * one * three - 6 * four
        self._quadruples = np.where(quadruples > 0.5, quadruples, np.nan)
        self._triples = np.where(quadruples > 0.5, one**3 - 3 * one * two + 2 * three, np.nan)
        self._pairs = np.where(quadruples > 0.5, one**2 - two, np.nan)

    def hsic(self, a: int, b: int) -> np.ndarray:
        """Return HSIC between two languages, NaN where fewer than four items are drawn. *Shape:* (resamples,)."""
        common = self._grams[a] * self._grams[b]
        reach = self._counts @ common
        same = _dot(reach, self._counts)
        same_once, same_twice = _dot(reach, self._squares), _dot(self._squares @ common, self._squares)
        meeting = _dot(self._once[a], self._reach[b]) - same_once
        apart = self._whole[a] * self._whole[b] - 4 * (_dot(self._twice[a], self._reach[b]) - same_twice)
        return same / self._pairs + (apart - 2 * same_twice) / self._quadruples - 2 * meeting / self._triples


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.einsum("bi,bi->b", x, y)
