"""Filters rows by their length and by the language of the user, on request of `star data check` or the section `data`."""

import json

from star.config.data import Data
from star.data.cleaning import Check
from star.errors import InputError

MIN_LETTERS = 24  # a shorter text is too short for its language to be recognised
CHARACTERS_PER_TOKEN, CHARACTERS_PER_MESSAGE = 3, 10  # the paper's estimate where there is no tokenizer
MIN_PROBABILITY = 0.9  # a text counts as another language from this probability on


def at_most_words(words: int) -> Check:
    """Returns a check that rejects (`too_long`) rows with more words than this in all messages together."""

    def check(row: dict) -> tuple[str, str] | None:
        count = sum(len((message.get("content") or "").split()) for message in row["messages"])
        return ("too_long", f"{count} words; at most {words} are wanted") if count > words else None

    return check


def at_most_prompt_tokens(tokens: int) -> Check:
    """Returns a check that rejects (`too_long`) rows whose prompt has about more tokens than this."""

    def check(row: dict) -> tuple[str, str] | None:
        count = estimate_prompt_tokens(row)
        return (
            ("too_long", f"about {count} tokens in the prompt; at most {tokens} are wanted") if count > tokens else None
        )

    return check


def checks_of(settings: Data) -> tuple[Check, ...]:
    """Returns the checks that the section `data` asks for."""
    return () if settings.max_prompt_tokens is None else (at_most_prompt_tokens(settings.max_prompt_tokens),)


def estimate_prompt_tokens(row: dict) -> int:
    """Estimates the tokens of a row's prompt by its characters, as the paper's script does without a tokenizer."""
    characters = len(json.dumps(row["tools"], ensure_ascii=False))
    for message in row["messages"][:-1]:
        texts = (message["role"], message.get("content") or "", message.get("reasoning_content") or "")
        characters += sum(map(len, texts)) + CHARACTERS_PER_MESSAGE
        if calls := message.get("tool_calls"):
            characters += len(json.dumps(calls, ensure_ascii=False))
    return characters // CHARACTERS_PER_TOKEN


def in_languages(wanted: list[str]) -> Check:
    """Returns a check that rejects (`other_language`) rows whose user surely writes in none of these languages. Short texts pass.

    Args:
        wanted: ISO 639-1 codes, such as en.

    Raises:
        InputError: a language is not known.
    """
    from py3langid.langid import (  # imported here because its model takes a second to load
        MODEL_FILE,
        LanguageIdentifier,
    )

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(identifier.nb_classes) if hasattr(identifier, "nb_classes") else set(identifier.labels)
    if unknown := sorted(set(wanted) - known):
        raise InputError(f"there is no language {unknown[0]!r}: use codes such as en, de, zh")

    def check(row: dict) -> tuple[str, str] | None:
        said = " ".join(message.get("content") or "" for message in row["messages"] if message["role"] == "user")
        if sum(letter.isalpha() for letter in said) < MIN_LETTERS:
            return None
        language, probability = identifier.classify(said[:4000])
        if language in wanted or probability < MIN_PROBABILITY:
            return None
        return "other_language", f"the user writes in {language} (probability {probability:.2f})"

    return check
