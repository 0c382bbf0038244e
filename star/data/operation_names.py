"""Names tools after operations of an OpenAPI document, in the characters that every API accepts: letters, digits, `_` and `-`.

    tool_name("trackShipment", "get", "/shipments/{id}")    # "trackShipment"
    tool_name("größenÄndern", "put", "/sizes")              # "groessenAendern"
    tool_name("список заказов", "get", "/orders")           # "spisok_zakazov"
    tool_name("查询订单", "get", "/orders/{id}")             # "get_orders_id": the id's letters have no Latin reading here

Names are stable: they depend on nothing but the operation.
"""

import re
import unicodedata

MAX_LENGTH = 64  # the longest name that OpenAI's API accepts
READ_CHARACTERS = 2000  # of an id or a path: what follows is in no name
LATIN = {"ß": "ss", "æ": "ae", "ø": "o", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue"}
CYRILLIC = {
    "а": "a", "б": "b", "в": "v", "г": "g", "ґ": "g", "д": "d", "е": "e", "є": "ie", "ж": "zh", "з": "z", "и": "i", "і": "i",
    "к": "k", "л": "l", "м": "m", "н": "n", "о": "o", "п": "p", "р": "r", "с": "s", "т": "t", "у": "u", "ф": "f", "х": "kh",
    "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ы": "y", "ь": "", "э": "e", "ю": "yu", "я": "ya", "ј": "j", "љ": "lj",
    "њ": "nj", "ћ": "c", "ђ": "dj", "џ": "dz",
}  # fmt: skip
GREEK = {
    "α": "a", "β": "v", "γ": "g", "δ": "d", "ε": "e", "ζ": "z", "η": "i", "θ": "th", "ι": "i", "κ": "k", "λ": "l", "μ": "m",
    "ν": "n", "ξ": "x", "ο": "o", "π": "p", "ρ": "r", "σ": "s", "ς": "s", "τ": "t", "υ": "y", "φ": "f", "χ": "ch", "ψ": "ps",
    "ω": "o",
}  # fmt: skip
READINGS = {**LATIN, **UMLAUTS, **CYRILLIC, **GREEK}
# Their names in Unicode end in how they sound: HANGUL SYLLABLE HAN, HIRAGANA LETTER KA.
NAMED_BY_SOUND = re.compile(r"(?:HANGUL SYLLABLE|(?:HIRAGANA|KATAKANA) LETTER(?: SMALL)?) ([A-Z]+)")


def tool_name(given: object, method: str, path: str) -> str:
    """Returns the operation's id as a name; where its letters have no Latin reading, or it has none, method and path."""
    given = given[:READ_CHARACTERS] if isinstance(given, str) else ""
    if (name := _name(in_latin(given))) and not is_unreadable(given):
        return name
    # A letter without a reading becomes its number: the name tells two paths apart, and stays the same.
    numbered = "".join(
        f"u{ord(letter):x}" if is_unreadable(letter) else in_latin(letter)
        for letter in _composed(path.strip("/")[:READ_CHARACTERS])
    )
    return _name(f"{method}_{numbered}") or method


def unused_name(name: str, taken: dict[str, int]) -> str:
    """Returns the name, with a number where it is taken, and adds it to those that are, which have the last number that was tried."""
    free = name
    number = taken.get(name, 1)
    # Different ids become one name when their characters are replaced or cut.
    while free in taken:
        number += 1
        free = f"{name[: MAX_LENGTH - 4]}_{number}"
    taken[name] = number
    taken.setdefault(free, 1)
    return free


def in_latin(text: str) -> str:
    """Returns the text with other letters as they are read in Latin ones; those without a reading stay."""
    return "".join(_reading(letter) for letter in _composed(text))


def is_unreadable(text: str) -> bool:
    """Whether a letter or number of the text would be missing in the name."""
    return any(letter.isalnum() and not letter.isascii() for letter in in_latin(text))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _reading(letter: str) -> str:
    if letter.isascii():
        return letter
    small = letter.lower()
    base = unicodedata.normalize("NFD", small)[0]
    read = READINGS.get(small, READINGS.get(base, base if base.isascii() else None))
    if read is None:
        found = NAMED_BY_SOUND.fullmatch(unicodedata.name(letter, ""))
        return found[1].lower() if found else letter
    return read[:1].upper() + read[1:] if letter != small else read


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:MAX_LENGTH]
