"""Writes JSON files completely or not at all."""

import json
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file. After a kill the older content, or no file, is there; never a part of the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    # A half of a surrogate pair, which a reject may quote, is no UTF-8, but its escape is JSON.
    temporary.write_bytes(text.encode(errors="backslashreplace"))
    temporary.replace(path)
