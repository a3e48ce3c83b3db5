"""The language table, and codes as people write them."""

import pytest

from glotlift.errors import LanguageError
from glotlift.languages import LANGUAGES, language, resolve

ORDER = "en zh de fr es it nl ja ru sv sl pl bg no ms is hi th sw bn"


def test_twenty_languages_in_the_papers_order():
    assert " ".join(LANGUAGES) == ORDER
    assert all(code == entry.code for code, entry in LANGUAGES.items())


@pytest.mark.parametrize("field", ["code", "iso639_3", "flores", "name", "endonym"])
def test_every_name_of_a_language_finds_it_and_only_it(field):
    for entry in LANGUAGES.values():
        assert language(getattr(entry, field)) is entry
        assert language(f" {getattr(entry, field).upper()} ") is entry


def test_the_columns_agree():
    for entry in LANGUAGES.values():
        assert entry.flores.startswith(f"{entry.iso639_3}_")
        assert entry.flores.endswith(entry.script)
        assert 0 <= entry.resource <= 5
        assert entry.direction == "ltr"
        assert all(code in LANGUAGES and code != entry.code for code in entry.confusable)


def test_an_unknown_language_gets_the_nearest_one():
    with pytest.raises(
        LanguageError, match=r"unknown language 'swahilli' \(did you mean 'swahili'\?\); expected one of"
    ):
        language("swahilli")


def test_several_codes():
    assert resolve("all") == tuple(ORDER.split())
    assert resolve("de, sw") == resolve(["deu", "Swahili", "de"]) == ("de", "sw")  # order kept, repeats dropped
    assert resolve("zho_Hans") == ("zh",)


def test_all_unknown_codes_are_named_together():
    with pytest.raises(LanguageError) as caught:
        resolve("de,xx,germn")
    text = str(caught.value)
    assert "'xx'" in text
    assert "'germn' (did you mean 'german'?)" in text
    assert "'de'" not in text
    assert text.endswith(ORDER)


@pytest.mark.parametrize("nothing", ["", " , ", [], ()])
def test_no_language_at_all(nothing):
    with pytest.raises(LanguageError, match="no language was given"):
        resolve(nothing)
