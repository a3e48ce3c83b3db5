"""CSV and TSV as RFC 4180 has them: what is not written so is an error with its line, never a row less.

Enters: text. Leaves: rows by column. Python's own reader is lenient: a quote that nothing closes takes all rows behind
it into one cell, and of two columns of one name the last wins.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glotlift.errors import DataError


def read_delimited(text: str, where: str, delimiter: str) -> list[dict[str, Any]]:
    """Return the rows of CSV (`,`) or TSV (tab) text.

    Args:
        text: header and rows.
        where: what it is from, at the head of an error.
        delimiter: between cells.

    Raises:
        DataError: a quote is not closed, or text follows one that is; a row has not as many cells as the header; the
            header names a column twice or not at all. The line is that in which the row begins.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows = []
    with _cells_of_any_size():
        for line, cells in _numbered(reader, where):
            if not header:
                header = _header(cells, f"{where}, line {line}")
            elif cells:  # an empty line is none
                if len(cells) != len(header):
                    expected = f"expected {len(header)} cells as in the header"
                    raise DataError(f"{where}, line {line}: got {len(cells)} cells, {expected}")
                rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _numbered(reader: Any, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line in which a row begins, and its cells."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            is_open = "unexpected end" in str(fault)
            problem = (
                "got a quote that is never closed, expected another one behind the cell" if is_open else str(fault)
            )
            raise DataError(f"{where}, line {line}: not valid CSV: {problem}") from None
        yield line, cells


def _header(cells: list[str], where: str) -> list[str]:
    if empty := [number for number, name in enumerate(cells, 1) if not name.strip()]:
        raise DataError(f"{where}: got no name for column {empty[0]}, expected one in the header")
    if twice := [name for name in cells if cells.count(name) > 1]:
        raise DataError(f"{where}: got two columns {twice[0]!r}, expected distinct names")
    return cells


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Lift the limit of 131,072 characters a cell, which is the process's own."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
