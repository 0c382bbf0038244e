"""The lookup of a top-k store: finds a sequence's file and row by its id without reading the ids of all files.

`lookup.npy` is [2, S] uint64: 64-bit hashes of the sequence ids, ascending, and the place of each sequence: number of
the file << 32 | row in it.

Shapes: S sequences.
"""

import hashlib
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from star.errors import InputError
from star.topk.shard_file import file_error, index_entry, write_atomically


def make_lookup(names_by_file: list[list[str]], folder: Path) -> np.ndarray:
    """Makes the lookup [2, S]: the sorted hashes of all ids, and the place of each sequence.

    Raises:
        InputError: an id occurs twice.
    """
    found = [
        (hash_of(name), number << 32 | row, name)
        for number, names in enumerate(names_by_file)
        for row, name in enumerate(names)
    ]
    found.sort()
    for (key, _, name), (next_key, _, next_name) in pairwise(found):
        if key == next_key and name == next_name:
            raise InputError(f"sequence {name!r} is in {folder} twice: merge only parts of one extraction, each once")
    return np.array([[key for key, _, _ in found], [place for _, place, _ in found]], np.uint64)


def write_lookup(path: Path, lookup: np.ndarray) -> dict[str, Any]:
    """Writes the lookup and returns its entry in the index."""
    buffer = io.BytesIO()
    np.save(buffer, lookup, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    return index_entry(path.name, buffer.getvalue())


def map_lookup(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Memory-maps the two rows of the lookup: hashes and places."""
    try:
        hashes, places = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise file_error(path, "missing") from None
    except (ValueError, OSError, EOFError):
        raise file_error(path, "damaged") from None
    return hashes, places


def hash_of(sequence_id: str) -> np.uint64:
    """The first 64 bits of an id's BLAKE2b hash, the same on every machine."""
    return np.uint64(int.from_bytes(hashlib.blake2b(sequence_id.encode(), digest_size=8).digest(), "little"))
