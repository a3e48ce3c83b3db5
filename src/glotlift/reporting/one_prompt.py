"""One prompt under the lens as tables of the terminal and as a page: layers by the last tokens of the prompt.

Enters: the frame of `glotlift.explanation.one_prompt`. Leaves: rich tables; an HTML page of its own, which fetches
nothing. The last layer stands at the top, as the model's own answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.table import Table
from rich.text import Text

from glotlift.runs import write_text

TEMPLATES = Path(__file__).parent / "templates"

_LONGEST = 14
"""Characters of a token in the terminal."""


@dataclass(frozen=True)
class Cell:
    """What stands at a layer and token.

    Attributes:
        text: the most likely next token.
        number: its probability, 0 to 1; in a difference what the adapter adds to it, -1 to 1.
        shown: the number as text.
        is_new: in a difference, whether the tuned model says another token than the base.
    """

    text: str
    number: float
    shown: str
    is_new: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of cells: `title`, the prompt's tokens as columns, and layers as rows, the last one first."""

    title: str
    tokens: list[str]
    rows: list[tuple[int, list[Cell]]]


def visible(token: str) -> str:
    """Return a token in which blanks at its ends and line breaks can be seen."""
    text = token.replace("\n", "⏎").replace("\t", "⇥")
    start, end = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    return "␣" * start + text[start:end] + "␣" * (len(text) - end) if text.strip(" ") else "␣" * len(text)


def grids(frame: pd.DataFrame) -> Iterator[Grid]:
    """Yield a grid for base, tuned and their difference, as far as the frame has them."""
    columns = frame.sort_values("position").drop_duplicates("position")
    tokens = [visible(token) for token in columns["token"]]
    layers = sorted(set(frame["layer"]), reverse=True)
    kinds = ["base", "tuned", "difference"] if "tuned_token" in frame else ["base"]
    for kind in kinds:
        by_layer = {layer: part.sort_values("position") for layer, part in frame.groupby("layer")}
        yield Grid(kind, tokens, [(layer, _cells(by_layer[layer], kind)) for layer in layers])


def _cells(rows: pd.DataFrame, kind: str) -> list[Cell]:
    if kind != "difference":
        found = zip(rows[f"{kind}_token"], rows[f"{kind}_probability"], strict=True)
        return [Cell(visible(token), float(share), f"{share:.2f}") for token, share in found]
    found = zip(rows["base_token"], rows["tuned_token"], rows["change"], strict=True)
    return [Cell(visible(new), float(change), f"{change:+.2f}", old != new) for old, new, change in found]


def lens_grids(frame: pd.DataFrame) -> list[Table]:
    """Return the tables of the terminal: for each layer and token the most likely next token and its probability."""
    tables = []
    for grid in grids(frame):
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=grid.title, title_justify="left"
        )
        table.add_column("layer", justify="right")
        for token in grid.tokens:
            table.add_column(Text(token[:_LONGEST]), no_wrap=True)
        for layer, cells in grid.rows:
            table.add_row(str(layer), *(_styled(cell, grid.title) for cell in cells))
        tables.append(table)
    return tables


def _styled(cell: Cell, kind: str) -> Text:
    """Return a cell as Text, not str: rich would read markup in tokens."""
    strength = abs(cell.number)
    style = "bold" if strength >= 0.5 else "dim" if strength < 0.05 else ""
    text = Text(cell.text[:_LONGEST], style=style)
    if kind == "difference" and cell.is_new:
        text.append(" *")
    return text.append(f" {cell.shown}", style="cyan" if cell.number >= 0 else "yellow")


def write_lens_page(path: Path, frame: pd.DataFrame, text: str, model: str, adapter: str | None = None) -> None:
    """Write the tables as a page.

    Args:
        path: the file.
        frame: of the lens.
        text: the prompt.
        model: name of the model.
        adapter: name of the adapter; None for none.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("lens.html.jinja")
    write_text(path, page.render(grids=list(grids(frame)), text=text, model=model, adapter=adapter))


def training_tables(frame: pd.DataFrame) -> list[str | Table]:
    """Return how far each layer's reading is from the last layer's, plain and tuned, for the terminal.

    Args:
        frame: of `glotlift.explanation.tuned_lens.fit_tuned_lens`.
    """
    title = f"KL(last layer || layer) in bits, mean of {frame['n'].iloc[0]} held-out positions"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("layer", "plain lens", "tuned lens"):
        table.add_column(name, justify="right")
    for layer, plain, tuned in zip(frame["layer"], frame["kl_bits_plain"], frame["kl_bits_tuned"], strict=True):
        table.add_row(str(layer), f"{plain:.2f}", f"{tuned:.2f}")
    return [title, table]
