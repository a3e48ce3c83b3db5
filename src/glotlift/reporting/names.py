"""How the report speaks of languages: their order, their groups, their names.

Enters: the codes of a run. Leaves: the order that every table and figure follows, tuned on, pivot, never tuned on, and
within these the order of `glotlift.languages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glotlift.errors import LanguageError
from glotlift.languages import LANGUAGES, Language
from glotlift.languages import language as find

SEEN, PIVOT, UNSEEN = "Tuned on", "Pivot", "Never tuned on"
"""Titles of the groups."""


def language(code: str) -> Language:
    """Return a language; one that glotlift does not know is called by its code."""
    try:
        return find(code)
    except LanguageError:
        return Language(code, code, code, code, code, "", "", None)


def ordered(codes: Iterable[str]) -> list[str]:
    """Return codes in the order of `LANGUAGES`, those it does not know last and sorted."""
    rank = {code: position for position, code in enumerate(LANGUAGES)}
    return sorted(set(codes), key=lambda code: (rank.get(code, len(rank)), code))


def grouped(scores: Mapping[str, Any], codes: Iterable[str]) -> dict[str, list[str]]:
    """Return title -> codes; one group without a title where nothing is known of what the model was tuned on.

    Args:
        scores: what scores.json holds under `glotlift`.
        codes: languages to sort into groups.
    """
    listed = ordered(codes)
    seen, pivot = scores.get("seen") or [], scores.get("pivot")
    if not seen:
        return {"": listed}
    groups = {
        SEEN: [code for code in listed if code in seen],
        PIVOT: [code for code in listed if code == pivot and code not in seen],
        UNSEEN: [code for code in listed if code not in seen and code != pivot],
    }
    return {title: members for title, members in groups.items() if members}


def listing(codes: Iterable[str]) -> str:
    """Return English names as `German, Chinese and Swahili`, in the order given."""
    return series([language(code).name for code in codes])


def series(texts: Sequence[str], most: int = 0) -> str:
    """Return texts as `a, b and c`; where there are more than `most`, as `a, b and 5 more` with one less than that.

    Args:
        texts: at least one.
        most: how many are named; 0 for all.
    """
    if most and len(texts) > most:
        texts = [*texts[: most - 1], f"{len(texts) - most + 1} more"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def counted(number: int, thing: str) -> str:
    """Return `1 language`, `2 languages`, `1,024 languages`."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def guarantee(audit: Mapping[str, Any]) -> str:
    """Return what an audit says of answers and test items among the question pairs, empty where it says nothing.

    Args:
        audit: from `glotlift.data.audit.audit_pairs`.
    """
    if not audit.get("pairs") or "overlap" not in audit:
        return ""
    answered = audit["flags"].get("answer", 0)
    answers = {True: "No pair holds an answer of the task", False: f"{answered} pairs hold an answer of the task",
               None: "Answers were not looked for"}[audit["question_only"]]  # fmt: skip
    overlap = audit["overlap"]
    if not overlap["of"]:
        return f"{answers}; there were no evaluation texts to compare with."
    shared = f"{overlap['n']} tokens in a row in common with"
    if not overlap["items"]:
        return f"{answers}; none of {overlap['of']:,} evaluation texts has {shared} a pair."
    texts = f"{overlap['items']:,} of {overlap['of']:,} evaluation texts"
    return f"{answers}; {texts} have {shared} {overlap['pairs']:,} pairs."
