"""The lookup of a top-k store: finds a sequence's file and row by its id without reading the ids of all files.

`lookup.npy` is [2, S] uint64: 64-bit hashes of the sequence ids, ascending, and the place of each sequence: number of
the file << 32 | row in it.

Shapes: S sequences.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from star.errors import InputError
from star.topk.shard_file import ShardFile, file_error, index_entry, write_atomically


def make_lookup(files: list[Path]) -> np.ndarray:
    """Makes the lookup [2, S] of the shard files of a store: the sorted hashes of all ids, and the place of each sequence.

    The names of one file at a time are in memory.

    Raises:
        InputError: an id occurs twice, or a file is damaged.
    """
    lookup = np.concatenate([np.zeros((2, 0), np.uint64), *(_entries(file, n) for n, file in enumerate(files))], axis=1)
    # Row by row in memory, as in the file.
    lookup = np.ascontiguousarray(lookup[:, np.lexsort(lookup[::-1])])
    # Different ids can have the same hash, so the ids themselves are compared.
    for index in np.flatnonzero(lookup[0, 1:] == lookup[0, :-1]):
        name, other = (
            ShardFile(files[place >> 32]).name(place & 0xFFFFFFFF) for place in lookup[1, index : index + 2].tolist()
        )
        if name == other:
            raise InputError(
                f"sequence {name!r} is in {files[0].parent} twice: merge only parts of one extraction, each once"
            )
    return lookup


def _entries(file: Path, number: int) -> np.ndarray:
    """The hashes and places of the sequences of one file."""
    names = ShardFile(file).names
    places = np.arange(len(names), dtype=np.uint64) | np.uint64(number << 32)
    return np.array([np.fromiter(map(hash_of, names), np.uint64, len(names)), places])


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
