"""Answers under an intervention: what is asked, and which items are right.

Enters: prompts with answer words, or a frame with the scores of these. Leaves: right or wrong, an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from glotlift.explanation.subject import Questions
from glotlift.measures import batch_calibrated
from glotlift.tasks.task import AnswerSet

CALIBRATIONS = ("none", "batch")
"""What is taken off the scores before the best label is chosen: nothing, or each label's mean over the items."""


class Asked(Questions, Protocol):
    """Questions whose rows have the answer words; `glotlift.evaluation.prompts.Prompts` is one."""

    @property
    def labels(self) -> Sequence[str]:
        """Label ids, in the order of the words of a row's trie."""
        ...

    @property
    def words(self) -> AnswerSet:
        """Label id -> answer word."""
        ...

    @property
    def language(self) -> str:
        """Code of the prompt language."""
        ...


def right_answers(scores: np.ndarray, gold: np.ndarray, calibration: str) -> np.ndarray:
    """Return which items are right, as evaluation decides it: the best label, of equal ones the first.

    Args:
        scores: log-probabilities of the label words. *Shape:* (items, labels).
        gold: number of each item's right label. *Shape:* (items,).
        calibration: one of `CALIBRATIONS`.

    Returns:
        *Shape:* (items,), booleans.
    """
    decisive = batch_calibrated(log_softmax(scores, axis=1)) if calibration == "batch" else scores
    return decisive.argmax(1) == gold


def scores_in(frame: pd.DataFrame, name: str) -> tuple[list[str], np.ndarray]:
    """Return the labels of a frame and its columns `<name>_<label>`. *Shape:* (rows, labels)."""
    columns = [column for column in frame if str(column).startswith(f"{name}_")]
    return [str(column).removeprefix(f"{name}_") for column in columns], frame[columns].to_numpy(float)
