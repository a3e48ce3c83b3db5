"""Question pairs as files that other trainers and the hub read.

Enters: question pairs. Leaves: a folder with, by format,

    llama-factory    <name>.json, and its entry in dataset_info.json; train with `template: empty`, which adds nothing
    trl              <name>.jsonl of `prompt` and `completion`, TRL's standard prompt-completion format
    hub              data/train-<lang>.jsonl a language and README.md, the dataset card; `load_dataset(folder)` reads it

Prompt and completion are `QuestionPair.input` and `.target` to the character in all three. No file holds an
end-of-sequence token: TRL adds one to the completion, the template `empty` of LLaMA-Factory adds none.

Sources: the alpaca converter of LLaMA-Factory (src/llamafactory/data/converter.py), "Dataset formats" of TRL's
documentation, and the hub's documentation of dataset cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from glotlift.data.audit import LETTERS_A_WORD, audit_pairs
from glotlift.data.questions import QuestionPair, dump_pairs
from glotlift.errors import DataError, OutputError, nearest, one_of
from glotlift.languages import language
from glotlift.names import name_fault
from glotlift.runs import write_json, write_text
from glotlift.strict_json import read_json

FORMATS = ("llama-factory", "trl", "hub")
"""What pairs can be exported as."""


def export_pairs(
    pairs: Sequence[QuestionPair],
    folder: Path,
    format: str,
    *,
    name: str = "questions",
    about: str = "",
    audit: Mapping[str, Any] | None = None,
) -> Path:
    """Write question pairs for another trainer or for the hub.

    Args:
        pairs: the pairs; their order is kept, in `hub` within a language.
        folder: where to; made when missing. Files of the same names are replaced, others stay.
        format: one of `FORMATS`.
        name: of the data set.
        about: where the questions are from and who translated them, as Markdown for the dataset card.
        audit: what `audit_pairs` found in these pairs, for the card; None to audit them here, without a task or
            evaluation texts, so that the card says that answers were not looked for.

    Returns:
        The path of the file with the pairs; of the card in `hub`.

    Raises:
        DataError: there are no pairs, or the audit is of other pairs.
        LanguageError: a pair, for the card, is in an unknown language.
        OutputError: there is no such format, the name cannot be a file's, or the folder cannot be written or holds
            something else under a name that is needed.
    """
    if format not in FORMATS:
        raise OutputError(f"got the format {format!r}{nearest(format, FORMATS)}, expected {one_of(FORMATS)}")
    if fault := name_fault(name):
        raise OutputError(fault)
    if name == "dataset_info":
        raise OutputError("got the name 'dataset_info', expected another one, since that file lists the data sets")
    if not pairs:
        raise DataError("got no question pairs to export, expected at least one")
    if audit is not None:
        _check_audit(audit, len(pairs))
    if format == "llama-factory":
        return _llama_factory(pairs, folder, name)
    if format == "trl":
        return _trl(pairs, folder, name)
    return _hub(pairs, folder, name, about, audit or audit_pairs(pairs))


def _check_audit(audit: Mapping[str, Any], count: int) -> None:
    if missing := [key for key in ("pairs", "flags", "overlap", "question_only") if key not in audit]:
        raise DataError(f"got an audit without {' and '.join(missing)}, expected what `audit_pairs` returns")
    if audit["pairs"] != count:
        raise DataError(f"got an audit of {audit['pairs']} pairs, expected one of these {count}")


def _llama_factory(pairs: Sequence[QuestionPair], folder: Path, name: str) -> Path:
    """Write alpaca rows and name them in `dataset_info.json`, which may name other data sets, too.

    The prompt is what LLaMA-Factory makes of a row: `instruction`, and behind a newline `input` unless it is empty. So
    `instruction` is the whole input of a pair and `input` is empty: nothing is joined, nothing can get lost.
    """
    index = folder / "dataset_info.json"
    known = _known(index)
    path = folder / f"{name}.json"
    if name in known and known[name].get("file_name") != path.name:
        raise OutputError(f"{index}: got a data set {name!r} that is not in {path.name}, expected another name")
    write_json(path, [{"instruction": pair.input, "input": "", "output": pair.target} for pair in pairs])
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    entry = {"file_name": path.name, "formatting": "alpaca", "columns": columns}
    write_json(index, {**known, name: entry})  # last: it names no file that is not there
    return path


def _known(index: Path) -> dict[str, Any]:
    """Return the entries of a `dataset_info.json`."""
    if not index.exists():
        return {}
    known = read_json(index, OutputError)
    if not isinstance(known, dict) or not all(isinstance(entry, dict) for entry in known.values()):
        raise OutputError(f"{index}: got JSON of another shape, expected an object with an object a data set")
    return known


def _trl(pairs: Sequence[QuestionPair], folder: Path, name: str) -> Path:
    """Write `prompt` and `completion` as JSONL."""
    rows = ({"prompt": pair.input, "completion": pair.target} for pair in pairs)
    path = folder / f"{name}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


# --- the hub


def _hub(pairs: Sequence[QuestionPair], folder: Path, name: str, about: str, audit: Mapping[str, Any]) -> Path:
    """Write a file a language, then the card that names them."""
    by_language: dict[str, list[QuestionPair]] = {}
    for pair in pairs:
        by_language.setdefault(pair.language, []).append(pair)
    files = {code: f"data/train-{code}.jsonl" for code in by_language}
    others = sorted(path.name for path in folder.glob("data/train-*") if f"data/{path.name}" not in files.values())
    if others:
        raise OutputError(f"{folder}: got a folder that holds data/{others[0]}, expected one for these pairs alone")
    card = _card(by_language, files, name, about, audit)
    for code, rows in by_language.items():
        write_text(folder / files[code], dump_pairs(rows))
    write_text(folder / "README.md", card)
    return folder / "README.md"


def _card(
    by_language: Mapping[str, Sequence[QuestionPair]],
    files: Mapping[str, str],
    name: str,
    about: str,
    audit: Mapping[str, Any],
) -> str:
    """Return the dataset card: YAML front matter and Markdown."""
    every = [pair for rows in by_language.values() for pair in rows]
    front = {
        "pretty_name": name,
        "language": sorted({code for pair in every for code in (pair.source, pair.target_language)}),
        "task_categories": ["translation"],
        "size_categories": [_size(len(every))],
        "configs": [_config("default", list(files.values())), *(_config(code, [files[code]]) for code in files)],
    }
    blocks = (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"{len(every):,} question pairs: {_WHAT}",
        about.strip(),
        _table(by_language),
        _COLUMNS,
        "## How it was made",
        "Built or read as pairs by glotlift, which reads no labels to do so. No pair was left out for what the audit "
        "found.",
        "## What was checked",
        _checked(audit),
    )
    return "\n\n".join(block for block in blocks if block) + "\n"


_WHAT = (
    "a question of a task as a prompt in one language, and the same question in another. Tuned to translate the one "
    "into the other, a model learns to understand the task's questions without seeing an answer (question alignment, "
    "arXiv 2405.13816)."
)

_COLUMNS = (
    "`input` is the question in the language `source`, in the task's prompt format with the cue behind which an answer "
    "would stand, then a line that asks for the translation; `target` is the question in `target_language`, in the "
    "same format. `id` is the language and the name of the question, the same in all languages. The configuration "
    "`default` holds all pairs."
)


def _table(by_language: Mapping[str, Sequence[QuestionPair]]) -> str:
    """Return the configurations but the default one, as a table in Markdown."""
    lines = ["| configuration | from | to | pairs |", "|---|---|---|---:|"]
    for code, rows in by_language.items():
        ends = _names(pair.source for pair in rows), _names(pair.target_language for pair in rows)
        lines.append(f"| `{code}` | {ends[0]} | {ends[1]} | {len(rows):,} |")
    return "\n".join(lines)


def _names(codes: Iterable[str]) -> str:
    return ", ".join(language(code).name for code in dict.fromkeys(codes))


def _config(name: str, paths: Sequence[str]) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": list(paths)}]}


def _size(count: int) -> str:
    """Return the hub's name for a number of rows."""
    steps = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((size for limit, size in steps.items() if count < limit), "1M<n<10M")


def _checked(audit: Mapping[str, Any]) -> str:
    """Return what an audit says, as a list in Markdown."""
    flags, overlap = audit["flags"], audit["overlap"]
    answers = {
        True: "no pair holds one. Looked for: the task's answer words in all its languages, behind the cue.",
        False: f"**{flags.get('answer', 0):,} pairs hold one.**",
        None: "not looked for.",
    }[audit["question_only"]]
    letters = LETTERS_A_WORD * overlap["n"]
    texts = (
        f"{overlap['items']:,} of {overlap['of']:,} share {overlap['n']} words in a row with a pair ({letters} letters "
        "where a script puts no blanks between words), or are shorter and the whole text of a field; "
        f"{overlap['pairs']:,} pairs are concerned."
        if overlap["of"]
        else "not looked for."
    )
    others = [f"{count:,} {reason}" for reason, count in flags.items() if reason not in ("answer", "overlap")]
    return (
        f"- Answers of the task: {answers}\n- Texts of test items: {texts}\n"
        f"- Other pairs that were flagged: {', '.join(others) or 'none'}."
    )
