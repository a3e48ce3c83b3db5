"""The languages glotlift knows, and what it knows of them.

Enters: a code as people write it (`de`, `deu`, `deu_Latn`, `German`). Leaves: a `Language`. Of the twenty languages of
the table everything is known; of any other BCP-47 code what `langcodes` knows: names and script, no family or class.
`resource` is the class of Joshi et al. 2020 ("The State and Fate of Linguistic Diversity"), 0 (none) to 5 (most).
`confusable` lists languages that a language identifier commonly takes for this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from glotlift.errors import LanguageError, nearest


@dataclass(frozen=True)
class Language:
    """One language: codes, names, script (ISO 15924), direction, family (`""` unknown), resource class."""

    code: str
    iso639_3: str
    flores: str
    name: str
    endonym: str
    script: str
    family: str
    resource: int | None
    confusable: tuple[str, ...] = ()
    direction: str = "ltr"


_TABLE = (
    Language("en", "eng", "eng_Latn", "English", "English", "Latn", "Germanic", 5),
    Language("zh", "zho", "zho_Hans", "Chinese", "中文", "Hans", "Sinitic", 5, ("ja",)),
    Language("de", "deu", "deu_Latn", "German", "Deutsch", "Latn", "Germanic", 5, ("nl",)),
    Language("fr", "fra", "fra_Latn", "French", "français", "Latn", "Romance", 5),
    Language("es", "spa", "spa_Latn", "Spanish", "español", "Latn", "Romance", 5, ("it",)),
    Language("is", "isl", "isl_Latn", "Icelandic", "íslenska", "Latn", "Germanic", 2),
    Language("it", "ita", "ita_Latn", "Italian", "italiano", "Latn", "Romance", 4, ("es",)),
    Language("nl", "nld", "nld_Latn", "Dutch", "Nederlands", "Latn", "Germanic", 4, ("de",)),
    Language("ja", "jpn", "jpn_Jpan", "Japanese", "日本語", "Jpan", "Japonic", 5, ("zh",)),
    Language("ru", "rus", "rus_Cyrl", "Russian", "русский", "Cyrl", "Slavic", 4, ("bg",)),
    Language("sv", "swe", "swe_Latn", "Swedish", "svenska", "Latn", "Germanic", 4, ("no",)),
    Language("sl", "slv", "slv_Latn", "Slovene", "slovenščina", "Latn", "Slavic", 3),
    Language("pl", "pol", "pol_Latn", "Polish", "polski", "Latn", "Slavic", 4),
    Language("bg", "bul", "bul_Cyrl", "Bulgarian", "български", "Cyrl", "Slavic", 3, ("ru",)),
    Language("no", "nob", "nob_Latn", "Norwegian", "norsk", "Latn", "Germanic", 1, ("sv",)),
    Language("ms", "zsm", "zsm_Latn", "Malay", "bahasa Melayu", "Latn", "Austronesian", 3),
    Language("hi", "hin", "hin_Deva", "Hindi", "हिन्दी", "Deva", "Indo-Aryan", 4),
    Language("th", "tha", "tha_Thai", "Thai", "ไทย", "Thai", "Kra-Dai", 3),
    Language("sw", "swh", "swh_Latn", "Swahili", "Kiswahili", "Latn", "Bantu", 2),
    Language("bn", "ben", "ben_Beng", "Bengali", "বাংলা", "Beng", "Indo-Aryan", 3),
)
# The order of the paper's tables; every listing of languages follows it.
_ORDER = ("en", "zh", "de", "fr", "es", "it", "nl", "ja", "ru", "sv")
_ORDER += ("sl", "pl", "bg", "no", "ms", "is", "hi", "th", "sw", "bn")
LANGUAGES: dict[str, Language] = {code: next(x for x in _TABLE if x.code == code) for code in _ORDER}


def language(code: str) -> Language:
    """Return the language of a BCP-47, ISO 639-3 or FLORES code, English name or endonym.

    Raises:
        LanguageError: it is none of the known languages, nor a BCP-47 code.
    """
    wanted = str(code).strip().casefold()
    for entry in LANGUAGES.values():
        names = (entry.code, entry.iso639_3, entry.flores, entry.name, entry.endonym)
        if wanted in (name.casefold() for name in names):
            return entry
    if is_code(str(code).strip()):
        return _other(str(code).strip())
    hint = nearest(wanted, [*LANGUAGES, *(entry.name.casefold() for entry in LANGUAGES.values())])
    expected = f"expected one of: {' '.join(LANGUAGES)}, or another BCP-47 code"
    raise LanguageError(f"unknown language {code!r}{hint}; {expected}")


def is_code(code: str) -> bool:
    """Return whether a text is a valid BCP-47 code, in the usual spelling (`pt-BR`, not `PT_br`)."""
    import langcodes

    return langcodes.tag_is_valid(code) and langcodes.standardize_tag(code) == code


@cache
def _other(code: str) -> Language:
    """Return what is known of a language that is not in the table."""
    import langcodes

    tag = langcodes.Language.get(code)
    script = tag.maximize().script or ""
    try:
        iso639_3 = tag.to_alpha3()
    except LookupError:
        iso639_3 = ""
    direction = "rtl" if script in _RIGHT_TO_LEFT else "ltr"
    names = tag.display_name("en"), tag.autonym()
    return Language(code, iso639_3, f"{iso639_3}_{script}", *names, script, "", None, direction=direction)


_RIGHT_TO_LEFT = ("Arab", "Hebr", "Syrc", "Thaa", "Nkoo", "Adlm", "Rohg")


def in_order(codes: Iterable[str]) -> list[str]:
    """Return codes in the order of the table, others behind it in their own order."""
    rank = {code: position for position, code in enumerate(LANGUAGES)}
    return sorted(codes, key=lambda code: rank.get(code, len(rank)))


def resolve(codes: str | Iterable[str]) -> tuple[str, ...]:
    """Return the codes of several languages, without repeats; `all` means every language.

    Args:
        codes: `"all"`, `"de,sw"`, or an iterable of codes.

    Raises:
        LanguageError: naming every code that is not known.
    """
    if isinstance(codes, str):
        codes = list(LANGUAGES) if codes.strip() == "all" else [c for c in codes.replace(",", " ").split() if c]
    found: dict[str, None] = {}
    faults = []
    for code in codes:
        try:
            found[language(code).code] = None
        except LanguageError as error:
            faults.append(str(error).split(";")[0])
    if faults:
        raise LanguageError(f"{'; '.join(faults)}; expected BCP-47 codes such as: {' '.join(LANGUAGES)}")
    if not found:
        raise LanguageError("no language was given; expected codes such as `de sw` or `all`")
    return tuple(found)


def members(codes: Iterable[str], kind: str) -> dict[str, list[str]]:
    """Return the languages of every group of a kind.

    Args:
        codes: of the languages.
        kind: `family`, `script` or `resource`.

    Returns:
        Name of a family, script or resource class -> codes; `unknown` for languages of which it is not known.
    """
    found: dict[str, list[str]] = {}
    for code in codes:
        value = getattr(language(code), kind)
        found.setdefault("unknown" if value in ("", None) else str(value), []).append(code)
    return found
