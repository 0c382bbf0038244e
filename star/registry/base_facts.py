"""Finds out what a base is and under which licence it is, for the manifest of the stage that trains it and for the model card.

    base_facts(config.student)    {"kind": "hub", "name": "Qwen/Qwen3-0.6B", "revision": "c1899de...", "license": "apache-2.0"}

The licence of a folder is the one that its card names (the front matter of README.md), else that of a licence file whose text is known.
A GGUF file says its licence itself (`general.license`). What lies beside it counts only where that can be about nothing else: the folder
holds this model, its card and its licence, as after `make real`, and not the downloads of a person. These texts are others' claims. Where
nothing is found, nothing is said.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from star.config.files import GgufFile
from star.config.models import Architecture, Student, Teacher
from star.errors import InputError
from star.yaml_documents import parse_yaml

CARD = "README.md"
CARD_FIELDS = ("license", "license_name", "license_link")
LICENCE_FILE = re.compile(r"(?i)(LICEN[CS]E|COPYING)([._-].*)?")
# Words near the beginning of a licence's text -> its id on the Hugging Face hub.
LICENCE_TEXTS = {
    "Apache License Version 2.0": "apache-2.0",
    "MIT License": "mit",
    "Permission is hereby granted, free of charge": "mit",
    "LLAMA 2 COMMUNITY LICENSE": "llama2",
    "META LLAMA 3 COMMUNITY LICENSE": "llama3",
    "LLAMA 3.1 COMMUNITY LICENSE": "llama3.1",
    "LLAMA 3.2 COMMUNITY LICENSE": "llama3.2",
    "LLAMA 3.3 COMMUNITY LICENSE": "llama3.3",
    "Gemma Terms of Use": "gemma",
}
READ_BYTES = 2**18  # of a card or a licence
TEXT_LENGTH = 200  # characters that are kept of a fact


def base_facts(model: Teacher | Student) -> dict[str, Any]:
    """Returns what is known of the base of a teacher or student.

    Returns:
        `kind`: scratch, hub, folder or gguf. Of a pretrained base also its `name`, and where they are known `revision` or `sha256`,
        `license`, `license_name` and `license_link`.
    """
    base = model.base
    if isinstance(base, Architecture):
        return {"kind": "scratch"}
    if isinstance(base, str):
        revision = {"revision": model.revision} if model.revision else {}
        return {"kind": "hub", "name": base, **revision, **_facts_of_hub(base, model.revision)}
    facts = {"kind": "folder", "name": base.path.rstrip("/").rpartition("/")[2], "sha256": base.sha256}
    if isinstance(base, GgufFile):
        facts |= {"kind": "gguf", "name": base.file_name}
    # Somebody may have changed or removed it since it was loaded. That is no reason to lose the stage's work.
    with suppress(InputError, OSError):
        place = base.read_verified()
        if not isinstance(base, GgufFile):
            return facts | _facts_of_folder(place)
        said = _facts_of_gguf(place)
        return facts | (said or (_facts_of_folder(place.parent) if _has_own_folder(place) else {}))
    return facts


def _has_own_folder(file: Path) -> bool:
    """Whether nothing lies beside a model's file but a card, licences, and hidden files such as those of git."""
    others = {entry.name for entry in file.parent.iterdir()} - {file.name, CARD}
    return all(name.startswith(".") or LICENCE_FILE.fullmatch(name) for name in others)


def _facts_of_folder(folder: Path) -> dict[str, str]:
    return _facts_of_card(folder / CARD) or _facts_of_licence_file(folder)


def _facts_of_hub(model: str, revision: str | None) -> dict[str, str]:
    """The facts of a hub model's card, which was downloaded with the other small files before the model was loaded."""
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(model, CARD, revision=revision)
    return _facts_of_card(Path(card)) if isinstance(card, str) else {}


def _facts_of_card(card: Path) -> dict[str, str]:
    head = re.match(rb"---\r?\n(.*?)\r?\n---", _beginning(card), re.DOTALL)
    try:
        said = parse_yaml(head[1]) if head else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict) or not said.get("license"):
        return {}
    return {key: str(said[key])[:TEXT_LENGTH] for key in CARD_FIELDS if isinstance(said.get(key), str)}


def _facts_of_licence_file(folder: Path) -> dict[str, str]:
    names = sorted(file for file in folder.iterdir() if LICENCE_FILE.fullmatch(file.name)) if folder.is_dir() else []
    for file in names:
        text = " ".join(_beginning(file)[:2000].decode("utf-8", "replace").split()).casefold()
        for words, licence in LICENCE_TEXTS.items():
            if words.casefold() in text:
                return {"license": licence}
    return {}


def _facts_of_gguf(file: Path) -> dict[str, str]:
    from star.modeling.gguf_header import read_gguf_header

    said = read_gguf_header(file).metadata
    found = {key: said.get(f"general.{key.replace('_', '.')}") for key in CARD_FIELDS}
    return {key: text[:TEXT_LENGTH] for key, text in found.items() if isinstance(text, str) and text}


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as content:
            return content.read(READ_BYTES)
    except OSError:
        return b""
