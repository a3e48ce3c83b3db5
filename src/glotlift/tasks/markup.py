"""Control strings in the text of a task, as far as text alone tells: what layouts write, and what data hold.

Enters: a task, texts. Leaves: strings such as `</s>`. What a tokenizer really makes of them is told by
`glotlift.models.control`; here are those that the models of our time know, for where there is no tokenizer to ask.
"""

from __future__ import annotations

import re

from glotlift.tasks.task import Task

_KNOWN = re.compile(
    r"</?s>"  # Llama 2, Mistral, BLOOM, T5
    r"|<(?:unk|pad|bos|eos|mask|sep|cls)>"  # Gemma, Command R and most others
    r"|<\|[^|<>\s]+\|>"  # GPT-2, Llama 3, Qwen, Phi: <|endoftext|>, <|eot_id|>, <|im_end|>
    r"|<\uff5c[^\uff5c<>\s]+\uff5c>"  # DeepSeek, with wide bars
    r"|</?(?:start|end)_of_(?:turn|image)>"  # Gemma
    r"|\[/?INST\]|\[(?:CLS|SEP|PAD|MASK|UNK|BOS|EOS|gMASK)\]"  # Mistral; encoders, GLM
    r"|</?think>"  # Qwen 3, DeepSeek R1
)


def layout_text(task: Task) -> str:
    """Return all that the layouts of a task write around the fields; control strings in it are meant as tokens."""
    blank = dict.fromkeys(task.fields, "\n")
    return "\n".join(task.question(code, blank) for code in task.languages)


def known_control(text: str, written: str = "") -> list[str]:
    """Return the strings in a text, each once, that well-known tokenizers read as control tokens.

    Args:
        text: data: a row, an example, a question pair.
        written: from `layout_text`; strings in it are meant, and not returned.
    """
    return [string for string in dict.fromkeys(_KNOWN.findall(text)) if string not in written]
