"""What a diagnosis says: a table, a sentence a language, a figure.

Enters: the content of diagnosis.json. Leaves: a table for the terminal, as CSV, Markdown and LaTeX; sentences; a chart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from glotlift.reporting.names import language, ordered
from glotlift.reporting.table import Cell, Column, ResultTable, Row, area, percent, points, signed
from glotlift.reporting.tables import latex_text, markdown_text
from glotlift.reporting.theme import INK, MUTED, SHADE, TUNED, finished, panel_title, save, to_svg
from glotlift.runs import write_json, write_text

PREDICTOR_TITLES = {
    "agreement": "agreement",
    "agreement_centred": "agreement, centred",
    "correlation": "correlation of label scores",
    "token_ratio": "tokens against the pivot",
    "mexa_best": "MEXA, best layer",
}

GAPS = {"auroc": "AUROC", "accuracy_calibrated": "calibrated accuracy"}
"""What a language may lack against the pivot, where right labels are given."""

_ROOM = {
    "bias": "a preference for a label costs it agreement, which calibration takes off",
    "alignment": "the model tells its translations apart and still answers otherwise: there is room for alignment",
    "reading": "the model hardly tells its translations apart, so alignment has little to work with",
    "tokenizer": "it takes {ratio:.1f} times the tokens",
}


def write_diagnosis(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `diagnosis.json`, `.csv`, `.md`, `.tex` and the figure into a folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    table = diagnosis_table(content)
    write_text(folder / "diagnosis.csv", diagnosis_csv(content))
    write_text(
        folder / "diagnosis.md", markdown_text(table) + "\n" + "\n".join(f"- {s}" for s in sentences(content)) + "\n"
    )
    write_text(folder / "diagnosis.tex", latex_text(table))
    svg = to_svg(diagnosis_chart(content), "how every language stands against the pivot, without labels")
    for ending in ("svg", "png", "pdf"):
        save(svg, folder / "figures" / f"diagnosis.{ending}")
    write_json(folder / "diagnosis.json", content)


def diagnosis_table(content: Mapping[str, Any]) -> ResultTable:
    """Return the table: a row a language, the pivot first; measures that need no label first, and with labels at last
    what a language lacks against the pivot."""
    found, pivot = content["languages"], content["pivot"]
    is_labelled = any(each["accuracy"] is not None for each in found.values())
    columns = (
        Column("language", "language", is_number=False),
        Column("n", "n"),
        Column("agreement", "agreement", "%"),
        Column("centred", "centred", "%"),
        Column("correlation", "correlation", "95\u00a0% interval"),
        Column("tokens", "tokens"),
        Column("mexa", "MEXA (layer)"),
        *(_LABELLED if is_labelled else ()),
        Column("room", "room", is_number=False),
    )
    codes = [pivot, *(code for code in ordered(found) if code != pivot)]
    rows = [Row(_cells(found[code], found[pivot]), language(code)) for code in codes]
    title = (
        f"{content['task']}, {content['model']}: answers in every language against those in {language(pivot).name}, "
        f"{content['answers']} answers"
    )
    return ResultTable(title, columns, {"": rows}, [])


_LABELLED = (
    Column("raw", "raw"),
    Column("calibrated", "calibrated"),
    Column("auroc", "AUROC"),
    Column("gap_accuracy_calibrated", "gap, calibrated", "points"),
    Column("gap_auroc", "gap, AUROC", "points"),
)


def gaps(found: Mapping[str, Any], pivot: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what a language lacks against the pivot: `auroc` and `accuracy_calibrated`, the pivot's less its own.

    -1 to 1; None where one of the two is not known.

    Args:
        found: the diagnosis of the language.
        pivot: that of the pivot.
    """
    return {name: None if pivot[name] is None or found[name] is None else pivot[name] - found[name] for name in GAPS}


def _cells(found: Mapping[str, Any], pivot: Mapping[str, Any]) -> dict[str, Cell]:
    best, is_pivot = found["mexa_best"], found["language"] == pivot["language"]
    cells = {
        "language": Cell(language(found["language"]).name),
        "n": Cell(str(found["n"])),
        "tokens": Cell(f"{found['token_ratio']:.2f}"),
        "room": Cell(", ".join(found["room"])),
    }
    if not is_pivot:
        cells |= {
            "agreement": Cell(percent(found["agreement"])),
            "centred": Cell(percent(found["agreement_centred"])),
            "correlation": Cell(_correlation(found)),
            "mexa": Cell(f"{best:.2f} ({found['mexa'].index(best)})"),
        }
    if found["accuracy"] is not None:
        cells |= {
            "raw": Cell(percent(found["accuracy"])),
            "calibrated": Cell(percent(found["accuracy_calibrated"])),
            "auroc": Cell(area(found["auroc"])),
        }
        lacks = {} if is_pivot else gaps(found, pivot)
        cells |= {f"gap_{name}": Cell("–" if gap is None else points(gap)) for name, gap in lacks.items()}
    return cells


def _correlation(found: Mapping[str, Any]) -> str:
    if found["correlation"] is None:
        return "–"
    return f"{found['correlation']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def sentences(content: Mapping[str, Any]) -> list[str]:
    """Return a sentence a language beside the pivot, and one on what the measures predict where labels tell."""
    pivot = language(content["pivot"]).name
    found = content["languages"]
    said = [_sentence(found[code], pivot) for code in ordered(found) if code != content["pivot"]]
    return [*said, *([told] if (told := prediction_sentence(content)) else [])]


def _sentence(found: Mapping[str, Any], pivot: str) -> str:
    name = language(found["language"]).name
    first = (
        f"{name}: the same answer as in {pivot} for {percent(found['agreement'])} % of the questions, "
        f"{percent(found['agreement_centred'])} % without preferences for a label"
    )
    why = [_ROOM[each].format(ratio=found["token_ratio"]) for each in found["room"]]
    return f"{first}; {'; '.join(why) if why else f'it is answered much as {pivot} is'}."


def prediction_sentence(content: Mapping[str, Any]) -> str:
    """Return how well measures without labels went with what languages lack; "" where it is not known."""
    told = content["predicts"]
    known = {gap: title for gap, title in GAPS.items() if any(gap in each for each in told.values())}
    parts = [
        f"{title} " + " and ".join(signed(told[name][gap]) if gap in told[name] else "–" for gap in known)
        for name, title in PREDICTOR_TITLES.items()
        if name in told
    ]
    if not parts:
        return ""
    n_languages = len(content["languages"]) - 1
    return (
        f"How well these measures, which need no labels, tell the {' and the '.join(known.values())} that a language "
        f"lacks (Spearman over {n_languages} languages): {', '.join(parts)}."
    )


def diagnosis_csv(content: Mapping[str, Any]) -> str:
    """Return all numbers as CSV, a row a language; MEXA a layer in columns `mexa_0`, `mexa_1`, ..."""
    rows = list(_numbers(content))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for code in ordered(content["languages"]):
        found = dict(content["languages"][code])
        found |= {f"gap_{name}": gap for name, gap in gaps(found, content["languages"][content["pivot"]]).items()}
        layers = {name: found.pop(name) for name in ("mexa", "mexa_raw")}
        found["room"] = " ".join(found["room"])
        yield found | {f"{name}_{layer}": value for name, each in layers.items() for layer, value in enumerate(each)}


def diagnosis_chart(content: Mapping[str, Any]) -> Any:
    """Return agreement and correlation a language, and MEXA a layer."""
    found, pivot = content["languages"], content["pivot"]
    codes = [code for code in ordered(found) if code != pivot]
    names = [language(code).name for code in codes]
    frame = pd.DataFrame([
        {"language": language(code).name, "raw": found[code]["agreement"] * 100,
         "centred": found[code]["agreement_centred"] * 100, "correlation": found[code]["correlation"],
         "low": found[code]["low"], "high": found[code]["high"]}
        for code in codes
    ])  # fmt: skip
    bare = alt.Axis(grid=True, ticks=False, domain=False, labels=False)
    y = alt.Y("language:N", sort=names, title=None, axis=alt.Axis(grid=True, ticks=False, domain=False, labelColor=INK))
    quiet = alt.Y("language:N", sort=names, title=None, axis=bare)
    base = alt.Chart(frame).properties(height=alt.Step(18), width=260)

    def share(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="% of the questions", scale=alt.Scale(zero=False))

    agreement = alt.layer(
        base.mark_rule(color=SHADE, strokeWidth=2.5).encode(x=share("raw"), x2="centred:Q", y=y),
        base.mark_point(filled=False, stroke=MUTED, size=46, strokeWidth=1.8).encode(x=share("raw"), y=y),
        base.mark_point(filled=True, color=TUNED, size=46, opacity=1).encode(x=share("centred"), y=y),
    ).properties(title=panel_title("The same answer", "hollow: raw; filled: preferences for a label taken off"))
    low, r = (alt.X(f"{end}:Q", title="Pearson's r", scale=alt.Scale(zero=False)) for end in ("low", "correlation"))
    correlation = alt.layer(
        base.mark_rule(color=TUNED, strokeWidth=1.2).encode(
            x=alt.X("low:Q", title="Pearson's r"), x2="high:Q", y=quiet
        ),
        base.mark_point(filled=True, color=TUNED, size=46, opacity=1).encode(x=r, y=quiet),
    ).properties(title=panel_title("Label scores go together", "95 % interval"))
    layers = pd.DataFrame([
        {"language": language(code).name, "layer": layer, "mexa": value}
        for code in codes for layer, value in enumerate(found[code]["mexa"])
    ])  # fmt: skip
    mexa = (
        alt.Chart(layers)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=quiet,
            color=alt.Color("mexa:Q", title=None, scale=alt.Scale(scheme="blues", domain=[0, 1])),
        )
        .properties(height=alt.Step(18), width=300, title=panel_title("Translations found by their states (MEXA)"))
    )
    name = language(pivot).name
    return finished(
        alt.hconcat(agreement, correlation, mexa, spacing=24),
        f"{content['task']}: every language against {name}, without labels",
        f"{content['model']}, {content['answers']} answers",
    )
