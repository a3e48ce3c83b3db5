"""Sample logs: prompts and scores of every item, in the format of lm-evaluation-harness' `--log_samples`.

Enters: prompts and their predictions. Leaves: `samples_<task>_<language>.jsonl`, a line an item, of the tuned model
where there is one; those of the base are then in `samples_<task>_<language>.base.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glotlift.evaluation.metrics import stored_name
from glotlift.evaluation.predictions import Predictions
from glotlift.evaluation.prompts import Prompts
from glotlift.runs import write_text


def write_samples(folder: Path, key: str, prompts: Prompts, predictions: Predictions) -> None:
    """Write the sample logs of a test set in one language, one a variant.

    Args:
        folder: where they go.
        key: what the test set is called.
        prompts: of the language.
        predictions: of the test set.
    """
    variants = list(predictions.frames)
    for variant in variants:
        ending = ".base.jsonl" if variant != variants[-1] else ".jsonl"
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in _samples(prompts, predictions, variant))
        write_text(folder / f"samples_{key}_{prompts.language}{ending}", "".join(lines))


def _samples(prompts: Prompts, predictions: Predictions, variant: str) -> Iterator[dict[str, Any]]:
    frame = predictions.frames[variant][prompts.language]
    scoring = predictions.metadata["scoring"]
    columns = [stored_name(scoring, frame.columns, f"_{label}") for label in prompts.labels]
    rows = frame.to_dict("records")
    for number, (item, text, row) in enumerate(zip(prompts.items, prompts.texts, rows, strict=False)):
        document = {"id": item.id, **item.fields, "label": item.gold}
        target = str(prompts.labels.index(item.gold))
        # an answer's log-likelihood, and whether greedy decoding gives it, which is not known here
        responses = [[str(row[column]), "None"] for column in columns]
        yield {
            "doc_id": number,
            "doc": document,
            "target": target,
            "arguments": {
                f"gen_args_{index}": {"arg_0": text, "arg_1": ending} for index, ending in enumerate(prompts.endings)
            },
            "resps": [[response] for response in responses],
            "filtered_resps": responses,
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": _hash(json.dumps(document, indent=2, ensure_ascii=False)),
            "prompt_hash": _hash(text),
            "target_hash": _hash(target),
            "acc": float(row["predicted"] == item.gold),
            "predicted": row["predicted"],
        }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
