"""When two texts count as the same: what is left of one without what a reader does not see.

Enters: text. Leaves: text to compare, never to show and never for a model. Source: Unicode Standard 3.13,
`toNFKC_Casefold`, and UAX 44's categories.
"""

from __future__ import annotations

import unicodedata


def caseless(text: str) -> str:
    """Return text in NFKC, without letter case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def folded(text: str) -> str:
    """Return text without letter case, Unicode form, invisible characters, and differences in white space.

    Texts are the same to a reader where this is equal: `Ａ  cat\\u200b` and `a\\ncat` both become `a cat`. Diacritics
    and punctuation stay. Invisible are the characters of category Cf: joiners, soft hyphens, byte order marks.
    """
    seen = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return " ".join(caseless(seen).split())
