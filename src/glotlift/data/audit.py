"""The audit of question pairs: what is checked, and the reasons every flagged row keeps.

Enters: question pairs, and the texts of the evaluation items. Leaves: the content of `data/audit.json`. Nothing is
dropped here; a reader of the report sees what the model was tuned on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from glotlift.data.questions import QuestionPair

LONG_RATIO = 3.0
"""A target this many times longer or shorter than is usual for its language is flagged."""


def audit_pairs(pairs: Sequence[QuestionPair], evaluation_texts: Iterable[str] = ()) -> dict[str, Any]:
    """Return counts a language, and every flagged pair with its reasons.

    Reasons: `duplicate` (the same input stands twice), `untranslated` (the longest text of the target, without the
    name of its field, stands in the input), `length` (see `LONG_RATIO`), `in evaluation` (an evaluation text of 20
    characters or more stands in input or target).

    Args:
        pairs: the question pairs.
        evaluation_texts: fields of the items that will be evaluated.
    """
    usual = _usual_ratio(pairs)
    texts = {text.strip() for text in evaluation_texts if len(text.strip()) >= 20}
    seen: set[str] = set()
    reasons: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if pair.input in seen:
            reasons[pair.id].append("duplicate")
        seen.add(pair.input)
        if _longest_text(pair.target) in pair.input:
            reasons[pair.id].append("untranslated")
        ratio = len(pair.target) / len(pair.input) / usual[pair.source]
        if not 1 / LONG_RATIO <= ratio <= LONG_RATIO:
            reasons[pair.id].append("length")
        if any(text in pair.input or text in pair.target for text in texts):
            reasons[pair.id].append("in evaluation")
    return {
        "pairs": len(pairs),
        "languages": dict(Counter(pair.source for pair in pairs)),
        "target": pairs[0].target_language if pairs else None,
        "evaluation_texts_compared": len(texts),
        "flags": dict(Counter(reason for found in reasons.values() for reason in found)),
        "flagged": dict(reasons),
    }


def _longest_text(question: str) -> str:
    return max((re.split("[:：]", line, maxsplit=1)[-1].strip() for line in question.splitlines()), key=len)


def _usual_ratio(pairs: Sequence[QuestionPair]) -> dict[str, float]:
    ratios: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        ratios[pair.source].append(len(pair.target) / len(pair.input))
    return {code: sorted(values)[len(values) // 2] for code, values in ratios.items()}
