"""All kinds of explanation of a subject, those of one module in one pass.

Enters: a subject, names of kinds. Leaves: a folder a kind in the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from glotlift.explanation.settings import KINDS
from glotlift.explanation.subject import Subject


def explain_kinds(subject: Subject, kinds: Sequence[str]) -> None:
    """Write every kind that is asked for.

    Args:
        subject: what is looked into.
        kinds: names, of `glotlift.explanation.settings.KINDS`.

    Raises:
        UserError: one of the kinds cannot be had of this subject; none is begun then.
    """
    homes = {
        import_module(f"glotlift.explanation.{home}"): [kind for kind in kinds if KINDS[kind] == home]
        for home in dict.fromkeys(KINDS[kind] for kind in kinds)
    }
    for module, its_kinds in homes.items():
        module.check(subject, its_kinds)
    for module, its_kinds in homes.items():
        module.explain(subject, its_kinds)
