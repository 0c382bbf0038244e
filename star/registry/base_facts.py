"""Finds out what a base is and under which licence it is, for the manifest of the stage that trains it and for the model card.

    base_facts(config.student)    {"kind": "hub", "name": "Qwen/Qwen3-0.6B", "revision": "c1899de...", "license": "apache-2.0"}

The licence is the one that the base's card names (the front matter of README.md), else the `general.license` of a GGUF file, else that of
a licence file whose text is known. These texts are others' claims. Where nothing is found, nothing is said.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.config.files import GgufFile, ModelFolder
from star.config.models import Architecture, Student, Teacher
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
READ_BYTES = 2**18  # of a card or a licence; a GGUF file's general facts are at its beginning
TEXT_LENGTH = 200  # characters that are kept of a fact
GGUF_SIZES = dict(zip(range(8), (1, 1, 2, 2, 4, 4, 4, 1), strict=True)) | {10: 8, 11: 8, 12: 8}  # value type -> bytes
GGUF_TEXT, GGUF_LIST = 8, 9


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
    place = Path(base.path)
    facts = {"kind": "folder", "name": base.path.rstrip("/").rpartition("/")[2], "sha256": base.sha256}
    if isinstance(base, GgufFile):
        facts |= {"kind": "gguf", "name": base.file_name}
        said = _facts_of_card(place.parent / CARD) or _facts_of_gguf(place)
        return facts | (said or _facts_of_licence_file(place.parent))
    assert isinstance(base, ModelFolder)  # noqa: S101 - there is no other kind
    return facts | (_facts_of_card(place / CARD) or _facts_of_licence_file(place))


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
    said = {}
    try:
        for key, value in _general_texts(memoryview(_beginning(file))):
            said[key.removeprefix("general.").replace(".", "_")] = value[:TEXT_LENGTH]
    # The file is another's: it may end early, or name types that there are not.
    except (struct.error, KeyError):
        return {}
    return {key: said[key] for key in CARD_FIELDS if key in said}


def _general_texts(content: memoryview) -> Iterator[tuple[str, str]]:
    """The texts among a GGUF file's `general.` entries, which come first."""
    magic, _, _, entries = struct.unpack_from("<4sIQQ", content)
    place = struct.calcsize("<4sIQQ")
    if magic != b"GGUF":
        return

    def number(form: str) -> int:
        nonlocal place
        (found,) = struct.unpack_from(form, content, place)
        place += struct.calcsize(form)
        return found

    def text() -> str:
        nonlocal place
        length = number("<Q")
        start, place = place, place + length
        return bytes(content[start:place]).decode("utf-8", "replace")

    for _ in range(entries):
        key, kind = text(), number("<I")
        if not key.startswith("general."):
            return
        if kind == GGUF_TEXT:
            yield key, text()
            continue
        of, count = (number("<I"), number("<Q")) if kind == GGUF_LIST else (kind, 1)
        if of == GGUF_TEXT:
            for _ in range(min(count, READ_BYTES)):
                text()
        else:
            place += GGUF_SIZES[of] * count


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as content:
            return content.read(READ_BYTES)
    except OSError:
        return b""
