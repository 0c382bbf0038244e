"""Reads and writes one shard file of a top-k store: a safetensors file, which any reader of that format opens.

Its tensors:

    data          the sequences as `star.topk.codec` encodes them, one after another
    ends [S]      where each sequence ends in `data`
    table [S, 3]  per sequence: where its id ends in `names`, its number of tokens, the crc32 of its encoded bytes
    names         the ids in UTF-8, one after another

The metadata entry "topk" is the header, which all shard files of a store share.

Shapes: S sequences, T tokens of a sequence, K ids per token.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from star.errors import InputError
from star.topk.codec import STEP

VERSION = 2


def encode_shard_file(sequences: dict[str, tuple[int, bytes]], header: dict[str, Any]) -> bytes:
    """Makes the content of a shard file.

    Args:
        sequences: id -> number of tokens and encoded bytes; at least one sequence.
        header: what `make_header` made.
    """
    names = [name.encode() for name in sequences]
    tokens, blobs = zip(*sequences.values(), strict=True)
    name_ends = np.cumsum([len(name) for name in names])
    tensors: dict[str, np.ndarray] = {
        "data": np.frombuffer(b"".join(blobs), np.uint8),
        "ends": np.cumsum([len(blob) for blob in blobs]).astype(np.uint64),
        # A copy, because safetensors writes the memory as it lies and a transposed array is only a view.
        "table": np.array([name_ends, tokens, [zlib.crc32(blob) for blob in blobs]], np.uint32).T.copy(),
        "names": np.frombuffer(b"".join(names), np.uint8),
    }
    # One metadata entry only: safetensors writes several in an order that changes from run to run.
    return save(tensors, {"topk": _to_json(header).decode()})


class ShardFile:
    """One memory-mapped shard file. Sequences are read by their row, from 0.

    Raises:
        InputError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise file_error(path, "missing")
        try:
            tensors = safe_open(path, framework="np")
            self.header: dict[str, Any] = json.loads(tensors.metadata()["topk"])
            self._data = tensors.get_slice("data")
            self._ends, self._table = tensors.get_tensor("ends"), tensors.get_tensor("table")
            self._names = tensors.get_tensor("names").tobytes()
            (size,) = self._data.get_shape()
            # Each tensor may be valid alone, but `read` relies on their sizes to agree.
            whole = len(self._ends) == len(self._table) and int(self._ends[-1]) == size
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            # A damaged file may fail at any of these steps, so all of their errors mean the same.
            whole = False
        if not whole:
            raise file_error(path, "damaged")

    @property
    def names(self) -> list[str]:
        """The ids of all sequences, in the order of their rows."""
        return [self.name(row) for row in range(len(self._table))]

    def name(self, row: int) -> str:
        """The id of one sequence."""
        begin = int(self._table[row - 1, 0]) if row else 0
        return self._names[begin : int(self._table[row, 0])].decode()

    def entry(self) -> dict[str, Any]:
        """The entry of this file in the store's index."""
        content = self.path.read_bytes()
        return index_entry(self.path.name, content, sequences=len(self._table), tokens=int(self._table[:, 1].sum()))

    def check_header(self, expected: dict[str, Any]) -> None:
        """Raises InputError when the file was written with other settings or from another teacher."""
        for name, value in expected.items():
            if self.header.get(name) != value:
                found = f"{name} {self.header.get(name)} where {value} is wanted"
                raise InputError(f"{self.path} has {found}: use the same settings, or another folder")

    def check_sequences(self) -> None:
        """Raises InputError when the bytes of any sequence do not match their crc32."""
        for row in range(len(self._table)):
            self.read(row)

    def tokens(self, row: int) -> int:
        """The number of tokens of one sequence."""
        return int(self._table[row, 1])

    def read(self, row: int) -> bytes:
        """One sequence, as `star.topk.codec` encoded it.

        Raises:
            InputError: the bytes do not match their crc32.
        """
        begin = int(self._ends[row - 1]) if row else 0
        data = self._data[begin : int(self._ends[row])].tobytes()
        # Compared at every read: a resumed writer has no sha256 yet, and a reader compares that only once.
        if zlib.crc32(data) != self._table[row, 2]:
            raise file_error(self.path, "damaged")
        return data


def make_header(top_k: int, vocab_size: int, provenance: dict[str, str]) -> dict[str, Any]:
    """Makes the header: the settings and the provenance that all files of one store have in common."""
    return {
        "format": "star-topk",
        "version": VERSION,
        "top_k": min(top_k, vocab_size),
        "vocab_size": vocab_size,
        "step": STEP,
        "provenance": provenance,
    }


def index_entry(name: str, content: bytes, **counts: int) -> dict[str, Any]:
    """Makes the entry of a file in the store's index: name, size, sha256 and what it counts."""
    return {"file": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **counts}


def file_error(path: Path, problem: str) -> InputError:
    """The error about a file of the store. `problem` completes the sentence "FILE is ..."."""
    return InputError(f"{path} is {problem}: restore it, or delete {path.parent} and extract the top-k again")


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that after a crash it is either complete under its name or missing."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        # The content must be on disk before its name is, or a crash could leave an empty file under that name.
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    # The rename itself is durable only once the folder is synced.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
