"""Question pairs as token rows: what is read, what is learned, and an X-ray of both before the first step.

Enters: question pairs, a tokenizer, a prompt format. Leaves: `input_ids` and `labels`. Prompt and target are tokenized
as one string; the target's end-of-sequence (or end-of-turn) token is learned too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from glotlift.data.questions import QuestionPair
from glotlift.errors import DataError, ModelError
from glotlift.models.chat import answer_end, question_turn
from glotlift.models.control import encode, quoter, read_as_control
from glotlift.models.labels import continuations
from glotlift.training.settings import TrainSettings

IGNORED = -100
"""Label of a token that is read and not learned."""

PROMPT_FORMATS = ("plain", "alpaca", "chat")
"""`plain`: the pair as it is; `alpaca`: between the headings of Stanford Alpaca; `chat`: the model's chat template."""

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)


@dataclass(frozen=True)
class TokenRow:
    """A pair as the model sees it.

    Attributes:
        id: of the pair.
        language: of the pair, see `QuestionPair.language`.
        input_ids: prompt and target.
        labels: as long; the target's tokens where they are learned, `IGNORED` before.
        n_cut: tokens at the end that did not fit into `max_length`.
        control: control strings in the pair's text that the tokenizer cannot read as text.
    """

    id: str
    language: str
    input_ids: list[int]
    labels: list[int]
    n_cut: int = 0
    control: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens that run."""
        return len(self.input_ids)

    @property
    def n_targets(self) -> int:
        """Tokens that are learned."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def weight(self) -> int:
        """Every learned token counts the same."""
        return self.n_targets


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[QuestionPair],
    settings: TrainSettings,
    layout: str = "",
) -> list[TokenRow]:
    """Return pairs as token rows.

    Control strings in a pair (`</s>`) are read as text, as evaluation reads those of a test row.

    Args:
        tokenizer: of the model.
        pairs: the pairs.
        settings: `prompt_format`, one of `PROMPT_FORMATS`; `max_length`, tokens a row may have; `too_long`, `error`
            refuses a longer row, `truncate` cuts its end off; `cue`, what becomes of the answer cue, see `cue_of`.
        layout: from `glotlift.tasks.markup.layout_text`; control strings in it are tokens in the pairs too.

    Raises:
        DataError: a target is empty, is cut away whole, a row is too long, or its first target token would be scored
            by nothing; all such rows are named.
        ModelError: `chat` for a tokenizer without a chat template, or with one that `glotlift.models.chat` refuses;
            another format for a tokenizer without an end-of-sequence token.
    """
    if not pairs:
        return []
    prompt_format, max_length = settings.prompt_format, settings.max_length
    end = _end(tokenizer, prompt_format)
    quoted = _quoted(tokenizer, pairs, layout)
    control = _control(tokenizer, pairs, quoted)
    cues = [cue_of(pair.target, layout) if settings.cue != "kept" else "" for pair in pairs]
    if settings.cue == "stripped":
        quoted = [replace(pair, target=pair.target.removesuffix(cue)) for pair, cue in zip(quoted, cues, strict=True)]
    texts = [_texts(tokenizer, pair, prompt_format) for pair in quoted]
    special = prompt_format != "chat"  # a chat template writes the start token itself
    encoded = encode(tokenizer, [part for text in texts for part in (text[0], text[0] + text[1])], special=special)
    rows, faults = [], []
    for index, pair in enumerate(pairs):
        prompt, whole = encoded[2 * index : 2 * index + 2]
        try:
            n_read, (target,) = continuations(prompt, [whole])
        except ModelError as fault:
            faults.append(f"row {index + 1} ({pair.id}): {fault}")
            continue
        learned = [*target, *end]
        tokens, labels = prompt[:n_read] + learned, [IGNORED] * n_read + learned
        if settings.cue == "masked" and cues[index]:
            labels = _masked(tokenizer, texts[index], cues[index], tokens, labels, special)
        n_cut = max(len(tokens) - max_length, 0)
        row = TokenRow(pair.id, pair.language, tokens[:max_length], labels[:max_length], n_cut, control.get(index, ()))
        if fault := _fault(row, pair, len(tokens), max_length, settings.too_long):
            faults.append(f"row {index + 1} ({pair.id}): {fault}")
        rows.append(row)
    if faults:
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise DataError(
            f"{len(faults)} of {len(pairs)} pairs cannot be trained on:\n  " + "\n  ".join(faults[:10]) + more
        )
    return rows


def cue_of(target: str, layout: str) -> str:
    """Return the answer cue that a target ends in, line break and all; "" where its last line is none.

    It is a line of the task's own layout, or one of an opening quote or colon at its end, as in the paper's files.

    Args:
        target: a question with its cue.
        layout: see `tokenize_pairs`.
    """
    before, line_break, last = target.rpartition("\n")
    is_cue = last in layout.split("\n") or last.rstrip(' "„“«「').endswith((":", "："))
    return line_break + last if before.strip() and last and is_cue else ""


def _masked(
    tokenizer: PreTrainedTokenizerBase,
    text: tuple[str, str],
    cue: str,
    tokens: list[int],
    labels: list[int],
    special: bool,
) -> list[int]:
    """Return labels without those of the cue, of what is behind it, and of a token that spans its beginning."""
    (kept,) = encode(tokenizer, [text[0] + text[1][: text[1].rindex(cue)]], special=special)
    n_same = next((i for i, (a, b) in enumerate(zip(kept, tokens, strict=False)) if a != b), len(kept))
    return [label if position < n_same else IGNORED for position, label in enumerate(labels)]


def _fault(row: TokenRow, pair: QuestionPair, length: int, max_length: int, too_long: str) -> str | None:
    if not pair.target.strip():
        return "got an empty target, expected a question"
    if row.n_cut and too_long == "error":
        return (
            f"got {length} tokens, expected at most {max_length}; raise train.max_length, drop the pair, or set "
            "train.too_long to truncate"
        )
    if not row.n_targets:
        return f"got a prompt of {max_length} tokens or more, so nothing of the target is left to learn; expected some"
    return None


def _end(tokenizer: PreTrainedTokenizerBase, prompt_format: str) -> list[int]:
    """Return the token that is learned behind a target; none under a chat template, which writes it itself."""
    if prompt_format == "chat":
        return []
    if not isinstance(tokenizer.eos_token_id, int):
        raise ModelError(
            f"got train.prompt_format {prompt_format} for a tokenizer without an end-of-sequence token, expected one; "
            "the model would not learn to stop"
        )
    return [tokenizer.eos_token_id]


def _quoted(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[QuestionPair], layout: str) -> list[QuestionPair]:
    quote = quoter(tokenizer, layout)
    return [replace(pair, input=quote(pair.input), target=quote(pair.target)) for pair in pairs]


def _control(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[QuestionPair], quoted: Sequence[QuestionPair]
) -> dict[int, tuple[str, ...]]:
    """Return index -> the control strings of a pair that the tokenizer cannot read as text."""
    holding = [index for index, pair in enumerate(pairs) if pair != quoted[index]]
    found = read_as_control(tokenizer, [f"{pairs[index].input}\n{pairs[index].target}" for index in holding])
    return {index: tuple(strings) for index, strings in zip(holding, found, strict=True) if strings}


def _texts(tokenizer: PreTrainedTokenizerBase, pair: QuestionPair, prompt_format: str) -> tuple[str, str]:
    """Return prompt and target of a pair as text."""
    if prompt_format == "plain":
        return pair.input, pair.target
    if prompt_format == "alpaca":
        return _ALPACA.format(pair.input.rstrip("\n")), pair.target
    return question_turn(tokenizer, pair.input.rstrip("\n")).prompt, pair.target + answer_end(tokenizer)


def inspect_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], n_shown: int = 2
) -> dict[str, Mapping[str, object]]:
    """Return what a model reads and learns, a language at a time.

    Args:
        tokenizer: of the model.
        rows: from `tokenize_pairs`.
        n_shown: rows a language that are decoded.

    Returns:
        Language -> `rows`, `tokens` (fewest, mean, most a row), `targets` (the same of learned tokens), `truncated`
        (number of rows), `control` (number of rows whose text is read with control tokens), `ends` (decoded tokens that
        end the targets which are not truncated), `shown` (decoded `id`, `prompt`, `target` of the first rows).
    """
    found = {}
    for code in dict.fromkeys(row.language for row in rows):
        own = [row for row in rows if row.language == code]
        found[code] = {
            "rows": len(own),
            "tokens": _span([len(row.input_ids) for row in own]),
            "targets": _span([row.n_targets for row in own]),
            "truncated": sum(row.n_cut > 0 for row in own),
            "control": sum(bool(row.control) for row in own),
            "ends": [str(tokenizer.decode([end])) for end in dict.fromkeys(_ends(own))],
            "shown": [_decoded(tokenizer, row) for row in own[:n_shown]],
        }
    return found


def _ends(rows: Sequence[TokenRow]) -> list[int]:
    return [row.labels[-1] for row in rows if row.n_targets and not row.n_cut]


def _span(counts: Sequence[int]) -> tuple[int, float, int]:
    return min(counts), round(sum(counts) / len(counts), 1), max(counts)


def _decoded(tokenizer: PreTrainedTokenizerBase, row: TokenRow) -> dict[str, str]:
    n_read = len(row.labels) - row.n_targets
    prompt, target = row.input_ids[:n_read], row.input_ids[n_read:]
    return {"id": row.id, "prompt": str(tokenizer.decode(prompt)), "target": str(tokenizer.decode(target))}
