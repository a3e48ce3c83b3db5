"""The audit of question pairs: what is checked, and the reasons every flagged row keeps.

Enters: question pairs, the texts of the evaluation items, and the task. Leaves: the content of `data/audit.json`.
Nothing is dropped here; a reader of the report sees what the model was tuned on.

Two of the checks carry the claim that the model never saw an answer or a test item: `answer` and `overlap`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from glotlift.data.questions import QuestionPair
from glotlift.tasks.markup import known_control, layout_text
from glotlift.tasks.task import Task
from glotlift.text import caseless

LONG_RATIO = 3.0
"""A target this many times longer or shorter than is usual for its language is flagged."""

N_GRAM = 8
"""Tokens in a row (see `text_tokens`) that a pair and an evaluation text must share to overlap."""

SHORTEST = 4
"""Evaluation texts of fewer tokens are not compared: they say what many texts say."""

LETTERS_A_WORD = 2
"""Tokens that stand for one word where a token is a letter.

A word of the SNLI texts is 1.5 letters in Chinese, 2.2 in Japanese and 3.2 in Thai. Eight letters in a row are a phrase
such as "a man in a black shirt": 21 % of the Chinese items have some in common with the paper's Chinese pairs, and 1 %
sixteen; 2 % of the German items have eight words in common with the German ones.
"""


def audit_pairs(
    pairs: Sequence[QuestionPair], evaluation_texts: Iterable[str] = (), task: Task | None = None
) -> dict[str, Any]:
    """Return counts a language, and every flagged pair with its reasons.

    Reasons: `answer` (see `find_answers`; only where the task is given), `overlap` (see `find_overlap`), `duplicate`
    (the same input stands twice), `untranslated` (the longest text of the target, without the name of its field,
    stands in the input), `length` (see `LONG_RATIO`), `control` (see `known_control`; such strings are kept as text
    where the tokenizer can do that, and `glotlift train --inspect` counts the pairs where it cannot).

    Args:
        pairs: the question pairs.
        evaluation_texts: fields of the items that will be evaluated, without prompt around them.
        task: the task whose questions they are.

    Returns:
        `pairs`: their number. `languages`: `QuestionPair.language` -> pairs. `target`: codes of the target languages,
        None without pairs. `question_only`: whether no pair has the reason `answer`, None where no task was given.
        `overlap`: `n` tokens, `items` evaluation texts that overlap `of` so many different ones that were compared,
        `pairs` concerned. `flags`: reason -> pairs. `flagged`: id -> reasons.
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    answered = find_answers(pairs, task) if task else set()
    overlapping, overlap = find_overlap(pairs, evaluation_texts)
    found = {"answer": answered, "overlap": overlapping, **_faulty(pairs, layout_text(task) if task else "")}
    for index, pair in enumerate(pairs):
        for reason, rows in found.items():
            if index in rows:
                reasons[pair.id].append(reason)
    return {
        "pairs": len(pairs),
        "languages": dict(Counter(pair.language for pair in pairs)),
        "target": " ".join(dict.fromkeys(pair.target_language for pair in pairs)) or None,
        "question_only": not answered if task else None,
        "overlap": overlap,
        "flags": {reason: len(rows) for reason, rows in found.items() if rows},
        "flagged": dict(reasons),
    }


def _faulty(pairs: Sequence[QuestionPair], layout: str) -> dict[str, set[int]]:
    """Return the rows that are poor training data: reason -> indexes."""
    usual = _usual_ratio(pairs)
    found: dict[str, set[int]] = {"duplicate": set(), "untranslated": set(), "length": set(), "control": set()}
    seen: set[str] = set()
    for index, pair in enumerate(pairs):
        if pair.input in seen:
            found["duplicate"].add(index)
        seen.add(pair.input)
        if _longest_text(pair.target) in pair.input:
            found["untranslated"].add(index)
        ratio = len(pair.target) / len(pair.input) / usual[pair.language]
        if not 1 / LONG_RATIO <= ratio <= LONG_RATIO:
            found["length"].add(index)
        if known_control(f"{pair.input}\n{pair.target}", layout):
            found["control"].add(index)
    return found


def _longest_text(question: str) -> str:
    return max((_value(line) for line in question.splitlines()), key=len)


def _value(line: str) -> str:
    """Return what stands behind the name of a field."""
    return re.split("[:：]", line, maxsplit=1)[-1].strip()


def _usual_ratio(pairs: Sequence[QuestionPair]) -> dict[str, float]:
    ratios: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        ratios[pair.language].append(len(pair.target) / len(pair.input))
    return {code: sorted(values)[len(values) // 2] for code, values in ratios.items()}


# --- answers

_OPENER = '[:"“”„‟«»‹›「『]'
"""What a cue may end in, before the answer word; NFKC has made a colon of the wide one."""

_CLOSER = "[\"'”“»«›’‘」』]?[.。।]?"
"""What may follow an answer word."""

_INSTRUCTION = re.compile(r"\n?Translate the input from [^\n]+ to [^\n]+:\s*\Z")


def find_answers(pairs: Sequence[QuestionPair], task: Task) -> set[int]:
    """Return the indexes of pairs that hold an answer of the task.

    An answer is a label id, or a word of any answer set in any language, in the target or in the question of the input:
    behind an opening quote or a colon where the text ends, whosever cue that is, or behind a cue of the task at the
    end of any line. Letter case is ignored. Words that the task does not know are not found.

    Args:
        pairs: the question pairs.
        task: the task whose answers they must not hold.
    """
    answer = _answer_pattern(task)
    holds = cache(lambda text: answer.search(caseless(text)) is not None)  # many pairs have the same target
    return {index for index, pair in enumerate(pairs) if holds(pair.target) or holds(_INSTRUCTION.sub("", pair.input))}


def _answer_pattern(task: Task) -> re.Pattern[str]:
    sets = [task.answer_sets, *(pack.answer_sets for pack in task.languages.values())]
    words = {word for named in sets for answers in named.values() for word in answers.values()}
    word = rf"\s*['‘’‚]?\s*{_any_of({*task.labels, *words})}{_CLOSER}\s*"
    cues = [caseless(cue) for code in task.languages if (cue := _cue(task, code))]
    telling = [cue for cue in cues if any(character.isalpha() for character in cue)]
    where = [rf"(?:{_OPENER}|{_any_of(cues)}){word}\Z", rf"{_any_of(telling)}{word}$"]
    return re.compile("|".join(where), re.MULTILINE)


def _cue(task: Task, code: str) -> str:
    """Return the last line of what a language writes behind the fields."""
    tail = task.question(code, dict.fromkeys(task.fields, "\0")).rpartition("\0")[2].strip()
    return tail.splitlines()[-1] if tail else ""


def _any_of(texts: Iterable[str]) -> str:
    """Return a pattern of any of the texts, the longest first; of none it matches nothing."""
    return f"(?:{'|'.join(sorted((re.escape(caseless(text)) for text in texts), key=len, reverse=True)) or '(?!)'})"


# --- overlap


def find_overlap(
    pairs: Sequence[QuestionPair], evaluation_texts: Iterable[str], n: int = N_GRAM
) -> tuple[set[int], dict[str, int]]:
    """Return the indexes of pairs that share text with the evaluation, and the counts of `overlap` in `audit_pairs`.

    An evaluation text overlaps where `n` of its tokens in a row stand in a row in an input or a target. One of fewer
    than `n` tokens overlaps where it is all that a line of a pair says behind the name of its field: as a part of
    longer texts it would be everyday language. One of fewer than `SHORTEST` is not compared. Texts that are mostly in
    a script without blanks between words need `LETTERS_A_WORD` times as many tokens for all of this. Texts that are
    equal count once. Time and memory are linear in the length of all texts.

    Args:
        pairs: the question pairs.
        evaluation_texts: fields of items.
        n: tokens in a row, 2 or more.
    """
    compared = [marks for text in {caseless(text) for text in evaluation_texts} if (marks := _marks(text, n))]
    wanted = set().union(*compared)
    hits: dict[str, set[tuple[str, ...]]] = {}  # many pairs have the same target
    rows = set()
    for index, pair in enumerate(pairs if wanted else ()):
        for text in (pair.input, pair.target):
            if text not in hits:
                hits[text] = wanted.intersection(_candidates(text, n))
            if hits[text]:
                rows.add(index)
    found = set().union(*hits.values())
    items = sum(not marks.isdisjoint(found) for marks in compared)
    return rows, {"n": n, "items": items, "of": len(compared), "pairs": len(rows)}


def _marks(text: str, n: int) -> set[tuple[str, ...]]:
    """Return the token sequences of an evaluation text that are looked for."""
    tokens = text_tokens(text)
    is_unspaced = sum(_is_unspaced(token[0]) for token in tokens) > len(tokens) / 2
    scale = LETTERS_A_WORD if is_unspaced else 1
    if len(tokens) < scale * n:
        return {tuple(tokens)} if len(tokens) >= scale * SHORTEST else set()
    return set(_n_grams(tokens, scale * n))


def _candidates(prompt: str, n: int) -> Iterator[tuple[str, ...]]:
    """Yield the token sequences of a question: all of `n`, longer ones where it may need them, and short lines."""
    longest = n if prompt.isascii() else LETTERS_A_WORD * n
    lines = [(line, text_tokens(line)) for line in prompt.splitlines()]
    tokens = [token for _, some in lines for token in some]
    for length in {n, longest}:
        yield from _n_grams(tokens, length)
    for line, some in lines:
        yield tuple(some[:longest])
        if ":" in line or "：" in line:
            yield tuple(text_tokens(_value(line))[:longest])


def _n_grams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def text_tokens(text: str) -> list[str]:
    """Return the tokens of a text: its words in NFKC without letter case, and without what is no letter or digit.

    Combining marks (Mn, Mc, Me) belong to the word they stand in. In scripts that put no blanks between words (Han,
    kana, Thai, Lao, Khmer, Burmese) every letter with its marks is a token.
    """
    return caseless(text).translate(_SPACED).replace(f" {_GLUE}", "").replace(_GLUE, "").split()


_GLUE = "\b"
"""Stands before a mark that belongs to the letter before it; no text holds it, since it is a control character."""

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x312F),  # Han, kana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),  # old kana
    (0x20000, 0x3FFFF),
)


@cache
def _is_unspaced(character: str) -> bool:
    """Return whether a letter or mark is of a script that puts no blanks between words."""
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


class _Spaced(dict[int, str]):
    """Code point -> what `str.translate` writes for it; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        is_mark = category.startswith("M")
        if category == "Cf":  # joiners and soft hyphens
            written = ""
        elif not is_mark and category[0] not in "LN":
            written = " "
        elif _is_unspaced(character):
            written = f"{_GLUE}{character} " if is_mark else f" {character} "
        else:
            written = character
        self[code] = written
        return written


_SPACED = _Spaced()
