"""Two evaluations of the same items, item by item.

Enters: the frames of two prediction files. Leaves: which items each has right, or the scores of each, paired by id.
Items that are not the same data are refused: other ids, other gold labels, other texts under one id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from glotlift.errors import DataError, one_of
from glotlift.tasks.task import Item


def text_of(item: Item) -> str:
    """Return the text of an item: its fields in order, a line each."""
    return "\n".join(item.fields.values())


def text_digest(item: Item) -> str:
    """Return what tells an item's text from any other: a digest of its fields and their names."""
    return hashlib.sha256(json.dumps(dict(item.fields), sort_keys=True).encode()).hexdigest()[:16]


def correctness(a: pd.DataFrame, b: pd.DataFrame, where: str, names: Sequence[str] = ("A", "B")) -> pd.DataFrame:
    """Return which items A and B have right, paired by id.

    Args:
        a: `id`, `gold` and `predicted` of every item, and `text_digest` where it is known.
        b: the same of the other evaluation.
        where: language and source, for messages.
        names: of the two, likewise.

    Returns:
        A frame indexed by id with boolean columns `a` and `b`.

    Raises:
        DataError: a column is missing, an id stands twice, or the two do not hold the same items with the same texts
            and gold labels.
    """
    for name, frame in zip(names, (a, b), strict=True):
        if lacking := [column for column in ("id", "gold", "predicted") if column not in frame]:
            has = ", ".join(map(str, frame.columns))
            raise DataError(f"{where}: got no {one_of(lacking)} in {name}, which has {has}, expected predictions")
        if twice := list(frame.loc[frame["id"].duplicated(), "id"]):
            raise DataError(f"{where}: got the id {twice[0]!r} twice in {name}, expected every item once")
    left, right = a.set_index("id"), b.set_index("id")
    only = dict(zip(names, (left.index.difference(right.index, sort=False),
                            right.index.difference(left.index, sort=False)), strict=True))  # fmt: skip
    if any(map(len, only.values())):
        got = " and ".join(f"{_ids(list(ids))} in {name} only" for name, ids in only.items() if len(ids))
        raise DataError(f"{where}: got {got}, expected the same items in both")
    right = right.loc[left.index]
    for column, what in (("gold", "gold labels"), ("text_digest", "texts")):
        if column in left and column in right and (differs := left[column] != right[column]).any():
            item = left.index[differs][0]
            raise DataError(f"{where}: item {item!r} has two {what}, expected the same data in both")
    return pd.DataFrame({"a": left["predicted"] == left["gold"], "b": right["predicted"] == right["gold"]})


def _ids(names: Sequence[str]) -> str:
    """Return `1 item ('s04')`, or how many there are with the first three."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} item{'s' * (len(names) > 1)} ({', '.join(map(repr, names[:3]))}{more})"


@dataclass(frozen=True)
class Paired:
    """The scores of one language in A and B, item by item.

    Attributes:
        ids: of the items.
        gold: their labels. *Shape:* (items,).
        labels: label ids, in the order of the columns.
        a: log-probabilities of A, renormalised over the labels. *Shape:* (items, labels).
        b: those of B.
    """

    ids: Sequence[str]
    gold: np.ndarray
    labels: Sequence[str]
    a: np.ndarray
    b: np.ndarray
