"""Filters that a set may be given beside the checks that every row passes: length and language of what the user says."""

from star.data.cleaning import Check
from star.errors import InputError

LEAST_LETTERS = 24  # of a text whose language can be told
SURE = 0.9  # probability from which a text counts as of another language


def longest(words: int) -> Check:
    """Rejects (`too_long`) rows with more words than this in all messages together."""

    def check(row: dict) -> tuple[str, str] | None:
        count = sum(len((message.get("content") or "").split()) for message in row["messages"])
        return ("too_long", f"{count} words; at most {words} are wanted") if count > words else None

    return check


def languages(wanted: list[str]) -> Check:
    """Rejects (`other_language`) rows whose user surely writes in none of these languages (ISO 639-1); short texts pass.

    Raises:
        InputError: a language that is not known.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # here: its model takes a second to load

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(identifier.nb_classes) if hasattr(identifier, "nb_classes") else set(identifier.labels)
    if unknown := sorted(set(wanted) - known):
        raise InputError(f"there is no language {unknown[0]!r}: use codes such as en, de, zh")

    def check(row: dict) -> tuple[str, str] | None:
        said = " ".join(message.get("content") or "" for message in row["messages"] if message["role"] == "user")
        if sum(letter.isalpha() for letter in said) < LEAST_LETTERS:
            return None
        language, probability = identifier.classify(said[:4000])
        if language in wanted or probability < SURE:
            return None
        return "other_language", f"the user writes in {language} (probability {probability:.2f})"

    return check
