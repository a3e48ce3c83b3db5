"""The error tree as drawn, its exit codes, and the two helpers of messages."""

import inspect

import pytest

from glotlift import errors
from glotlift.errors import GlotliftError, Interrupted, RunError, UserError, nearest, one_of


def test_every_error_is_in_the_drawing_and_exits_as_drawn():
    classes = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, GlotliftError)]
    assert len(classes) == 10
    for found in classes:
        assert found.__name__ in errors.__doc__
        assert found.exit_code == (2 if issubclass(found, UserError) else 130 if found is Interrupted else 1)
    assert not issubclass(RunError, UserError)


def test_nearest():
    assert nearest("lerning_rate", ["rank", "learning_rate"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zebra", ["rank", "learning_rate"]) == ""


@pytest.mark.parametrize(("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a or b"), ("abc", "a, b or c")])
def test_one_of(words, text):
    assert one_of(words) == text
