"""SNLI in the paper's layout -> questions without answers, and other items as test.

    python recipes/split_snli.py paper-data snli

Rows are parallel in all languages, and several in a row ask about one premise. Every second premise goes with all its
rows into `questions_<lang>.jsonl`, without answers, in English and the languages named; the others are
`test_<lang>.jsonl` in all languages, with English labels. So no premise is on both sides.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

QUESTIONS_IN = ("en", "zh", "de", "es", "ru")
FIELDS = ("premise", "hypothesis")


def split(source: Path, target: Path) -> None:
    """Write the files of every language that is in `source/snli`."""
    files = {file.stem[5:7]: file for file in sorted((source / "snli").glob("snli_??600_test.json"))}
    if "en" not in files:
        raise SystemExit(f"{source / 'snli'}: got no snli_en600_test.json, expected the paper's released files")
    rows = {code: json.loads(file.read_text(encoding="utf-8")) for code, file in files.items()}
    gold = [row["answer"] for row in rows["en"]]
    premises = list(dict.fromkeys(row["premise"] for row in rows["en"]))
    asked = [premises.index(row["premise"]) % 2 == 1 for row in rows["en"]]
    target.mkdir(parents=True, exist_ok=True)
    for code, texts in rows.items():
        if len(texts) != len(gold):
            raise SystemExit(f"{files[code]}: got {len(texts)} rows, expected the {len(gold)} of English")
        found = [{"id": str(n), **{field: row[field] for field in FIELDS}} for n, row in enumerate(texts)]
        tests = [{**row, "gold": gold[n]} for n, row in enumerate(found) if not asked[n]]
        _write(target / f"test_{code}.jsonl", tests)
        if code in QUESTIONS_IN:
            _write(target / f"questions_{code}.jsonl", [row for n, row in enumerate(found) if asked[n]])


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    split(Path(sys.argv[1]), Path(sys.argv[2]))
