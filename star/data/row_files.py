"""Finds the files with the kept rows of a folder that `star data` or `star synthesize` wrote."""

from pathlib import Path

KEPT = (("rows.jsonl",), ("train.jsonl", "heldout.jsonl"))


def row_files(path: Path) -> list[Path]:
    """The files with the kept rows where a path is a set's folder, without its rejects; any other path as it is."""
    # A folder as such would be read with every .jsonl file in it, and so with its rejects.
    for names in KEPT:
        if all((path / name).is_file() for name in names):
            return [path / name for name in names]
    return [path]
