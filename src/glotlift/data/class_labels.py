"""Class labels of `datasets`: numbers in a column, whose names stand in the features.

Enters: rows, and the metadata of a Parquet file that `datasets` wrote. Leaves: rows with names in place of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glotlift.errors import DataError
from glotlift.strict_json import parse_json


def class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """Return column -> names of its classes, as `datasets` writes its features into a Parquet file."""
    try:
        features = parse_json((metadata or b"{}").decode(), "features", DataError)["info"]["features"]
        return {
            column: kind["names"]
            for column, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
        }
    except (DataError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return {}  # another tool's


def named(rows: list[dict[str, Any]], classes: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return rows with the names of classes in place of their numbers; None where a row has none, as SNLI's -1."""
    for column, names in classes.items():
        by_number = dict(enumerate(names))
        for row in rows:
            if isinstance(row.get(column), int):  # other tools keep the metadata of columns that they changed
                row[column] = by_number.get(row[column])
    return rows
