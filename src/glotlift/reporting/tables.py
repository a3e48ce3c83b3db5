"""The results tables as files: CSV for reading on, Markdown and LaTeX for papers.

Enters: scores. Leaves: `results.csv`, numbers of all test sets in full precision, a row a language and a row a mean;
and for every test set `<name>.md` and `<name>.tex`, the cells of the report's own table. LaTeX needs the package
`booktabs`, and for names in scripts beyond Latin a Unicode engine (XeLaTeX, LuaLaTeX).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glotlift.reporting.baselines import baseline_table, strength_table
from glotlift.reporting.card import escape_markdown
from glotlift.reporting.figures import slug
from glotlift.reporting.names import language, ordered
from glotlift.reporting.table import (
    SCORE_KEYS,
    ResultTable,
    all_rows,
    build_table,
    decided,
    group_changes,
    language_change,
    markdown_rows,
)
from glotlift.runs import write_text

_INTERVAL = ("low", "high")
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\to$", "−": r"$-$", "⚠": "(!)", "<": r"$<$",
    ">": r"$>$", "\u00a0": "~",
}  # fmt: skip


def write_tables(folder: Path, scores: Mapping[str, Any]) -> list[Path]:
    """Write the tables of scores into a folder; return the files.

    Args:
        folder: made where it is not there.
        scores: the content of scores.json, or what `glotlift.compare` returns.

    Raises:
        OutputError: the folder cannot be written.
    """
    files = {folder / "results.csv": csv_text(scores)}
    for key in scores["glotlift"]["tasks"]:
        table = build_table(scores, key)
        files[folder / f"{slug(key)}.md"] = markdown_text(table)
        files[folder / f"{slug(key)}.tex"] = latex_text(table)
        task = scores["glotlift"]["tasks"][key]
        for name, beside in {"baselines": baseline_table(task, key), "strengths": strength_table(task, key)}.items():
            if beside is not None:
                files[folder / f"{slug(key)}-{name}.md"] = markdown_text(beside)
                files[folder / f"{slug(key)}-{name}.tex"] = latex_text(beside)
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def csv_text(scores: Mapping[str, Any]) -> str:
    """Return all test sets as CSV.

    Columns: `test_set`, `language` (a code, or `mean`, `mean of seen`, `mean of unseen`), `name`, `n`, `calibration`;
    of every variant `<variant>_accuracy` as the file decides, with `_low` and `_high` of its 95 % interval, and
    `<variant>_<measure>`; and with two variants `change`, `change_low`, `change_high`, `p_mcnemar`, `p_holm` of what
    the file decides, and `<measure>_change` with its interval. Shares are 0 to 1; an empty cell is not known.
    """
    rows = list(_numbers(scores["glotlift"]))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, task in scores["tasks"].items():
        measure = decided(task)
        about = {"test_set": key, "calibration": task.get("calibration", "none")}
        for code in ordered(task["languages"]):
            entry = task["languages"][code]
            yield {
                **about,
                "language": code,
                "name": language(code).name,
                "n": entry[scores["variants"][0]]["n"],
                **_of_variants(scores["variants"], entry),
                **_of_changes({each: language_change(entry, each) for each in SCORE_KEYS}, measure),
            }
        groups = {each: group_changes(task, each) for each in SCORE_KEYS}
        for name, title in {"all": "mean", "seen": "mean of seen", "unseen": "mean of unseen"}.items():
            changes = {each: found.get(name) for each, found in groups.items()}
            of_means = _of_variants(scores["variants"], task.get("means", {})) if name == "all" else {}
            if of_means or changes[measure]:
                change = changes[measure]
                n = {"n": change["n"]} if change else {}
                yield {**about, "language": title, "name": title, **n, **of_means, **_of_changes(changes, measure)}


def _of_variants(variants: Sequence[str], entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for variant in variants:
        score = entry.get(variant) or {}
        found[f"{variant}_accuracy"] = score.get("accuracy")
        found |= {f"{variant}_{end}": score.get(end) for end in _INTERVAL}
        found |= {f"{variant}_{measure}": score.get(key) for measure, key in SCORE_KEYS.items()}
    return found


def _of_changes(changes: Mapping[str, Mapping[str, Any] | None], measure: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if change := changes[measure]:
        found["change"] = change["change"]
        found |= {f"change_{end}": change[end] for end in _INTERVAL}
        found |= {"p_mcnemar": change.get("p"), "p_holm": change.get("p_holm")}
    for other, moved in changes.items():
        if other != measure and moved:
            found[f"{other}_change"] = moved["change"]
            found |= {f"{other}_change_{end}": moved[end] for end in _INTERVAL}
    return found


def markdown_text(table: ResultTable) -> str:
    """Return a table as Markdown, its title as a caption below it."""
    head, *body = [" | ".join(map(escape_markdown, row)) for row in markdown_rows(table)]
    align = " | ".join("---:" if column.is_number else ":---" for column in table.columns)
    return "\n".join([*(f"| {line} |" for line in (head, align, *body)), "", escape_markdown(table.title), ""])


def latex_text(table: ResultTable) -> str:
    """Return a table as LaTeX with booktabs' rules; what sums up stands below a rule."""
    head, *body = markdown_rows(table)
    n_summary = len(table.summary)
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in body]
    cut = len(all_rows(table)) - n_summary
    align = "".join("r" if column.is_number else "l" for column in table.columns)
    return "\n".join([
        f"% {' '.join(table.title.split())}",
        f"\\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(map(escape_latex, head)) + r" \\",
        r"\midrule",
        *lines[:cut],
        *([r"\midrule", *lines[cut:]] if n_summary else []),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ])  # fmt: skip


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is, on one line."""
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.splitlines()))
