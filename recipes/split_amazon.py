"""Amazon Reviews Polarity in the paper's layout -> questions without answers, and other items as test.

    python recipes/split_amazon.py paper-data amazon

Rows are parallel in all languages. Every second one goes into `questions_<lang>.jsonl`, without its answer, in English
and the languages named; the others are `test_<lang>.jsonl` in all languages, with English labels. The questions with
their answers are `labelled_<lang>.jsonl`, which no run reads but the control `gold`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

QUESTIONS_IN = ("en", "zh", "de", "es", "ru")


def split(source: Path, target: Path) -> None:
    """Write the files of every language that is in `source/ap_emotion`."""
    files = {re.split("[_0-9]", file.stem)[1]: file for file in sorted((source / "ap_emotion").glob("emotion_*.json"))}
    rows = {code: json.loads(file.read_text(encoding="utf-8")) for code, file in files.items()}
    gold = [row["answer"] for row in rows["en"]]
    target.mkdir(parents=True, exist_ok=True)
    for code, texts in rows.items():
        if len(texts) != len(gold):
            raise SystemExit(f"{files[code]}: got {len(texts)} rows, expected the {len(gold)} of English")
        labelled = [{"id": str(n), "text": row["input"], "gold": gold[n]} for n, row in enumerate(texts)]
        _write(target / f"test_{code}.jsonl", labelled[::2])
        if code in QUESTIONS_IN:
            questions = [{"id": row["id"], "text": row["text"]} for row in labelled[1::2]]
            _write(target / f"questions_{code}.jsonl", questions)
            _write(target / f"labelled_{code}.jsonl", labelled[1::2])


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    split(Path(sys.argv[1]), Path(sys.argv[2]))
