"""The top-k store: the teacher's most probable ids and their log-probabilities for each completion token, on disk.

An open container that any safetensors reader opens. A folder holds

    topk-00000.safetensors ...   ids [N, K] (uint16, or uint32 for 65536 ids or more) and logprobs [N, K] (float16) of N
                                 tokens; the metadata entry "topk" is a JSON header with, under "sequences",
                                 {sequence id: [offset, length, crc32 of its ids and then its logprobs]}
    index.json                   the same header, counts and {sequence id: [shard, offset, length, crc32]},
                                 written last by close()

Sequences lie in the order they were added. A shard is written under a temporary name and renamed, so a killed writer
leaves whole shards only, and the next writer on the folder goes on after the last one. Without index.json the store is
unfinished and is not read. A reader checks every shard's header when it opens the store, and a sequence's crc32 when it
reads the sequence. Other files in the folder are left alone. One writer at a time.

Shapes: T tokens of a sequence, N tokens of a shard, K ids a token.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from star.errors import InputError

INDEX = "index.json"
SHARD = "topk-{:05d}.safetensors"
SHARDS = "topk-*.safetensors"
UNFINISHED = "topk-*.safetensors.tmp"
LOWEST = float(np.finfo(np.float16).min)  # a probability of e^-65504 is 0 in every type we compute in
TOLERANCE = 1e-2  # how far above 0 the rounding of a half-precision log_softmax may put a log-probability


class TopKWriter:
    """Writes a top-k store, or goes on with one that an earlier writer left.

    As a context manager it closes the store, unless the block failed.

    Args:
        folder: made when missing.
        top_k: ids a token; K is this or the vocabulary's size, whichever is smaller.
        vocab_size: how many ids there are.
        tokens_per_shard: a shard holds at most this many tokens, or one longer sequence; what a kill can lose.

    Raises:
        InputError: sizes below 1, or a folder whose shards are damaged, incomplete or of other settings.
    """

    def __init__(self, folder: str | Path, top_k: int = 100, *, vocab_size: int, tokens_per_shard: int = 65536) -> None:
        if min(top_k, vocab_size, tokens_per_shard) < 1:
            sizes = f"top_k {top_k}, vocab_size {vocab_size}, tokens_per_shard {tokens_per_shard}"
            raise InputError(f"a top-k store needs sizes of at least 1, got {sizes}")
        self.folder = Path(folder)
        self.tokens_per_shard = tokens_per_shard
        self._header = _make_header(top_k, vocab_size)
        self._pending: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{self.folder} is a file: name a folder for the top-k store") from None
        for leftover in self.folder.glob(UNFINISHED):
            leftover.unlink()
        self._shards, self._sequences = self._read_earlier_shards()

    def __contains__(self, sequence_id: object) -> bool:
        """Whether the sequence was added, now or by an earlier writer whose shard is whole."""
        return sequence_id in self._sequences or sequence_id in self._pending

    def __len__(self) -> int:
        return len(self._sequences) + len(self._pending)

    def __enter__(self) -> "TopKWriter":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self.close()

    def add(self, sequence_id: str, ids_TK: Any, logprobs_TK: Any) -> None:
        """Adds one sequence; numpy arrays or torch tensors of any device.

        Args:
            sequence_id: not added before.
            ids_TK: integers in [0, vocab_size).
            logprobs_TK: natural logarithms, finite and not above 0; kept as float16.

        Raises:
            InputError: any of that does not hold, or there are no tokens.
        """
        if sequence_id in self:
            raise InputError(f"sequence {sequence_id!r} is already in {self.folder}: skip it, or give it another id")
        ids_TK, logprobs_TK = _to_numpy(ids_TK), _to_numpy(logprobs_TK)
        problem = _find_problem(ids_TK, logprobs_TK, self._header)
        if problem:
            raise InputError(f"sequence {sequence_id!r} cannot be added to {self.folder}: {problem}")
        held = sum(len(ids) for ids, _ in self._pending.values())
        if held and held + len(ids_TK) > self.tokens_per_shard:
            self._write_shard()
        logprobs_TK = np.clip(logprobs_TK, LOWEST, 0.0).astype(np.float16, order="C")
        self._pending[sequence_id] = (ids_TK.astype(self._header["ids_dtype"], order="C"), logprobs_TK)

    def close(self) -> None:
        """Writes what is held back as the last shard, then the index that makes the store readable."""
        if self._pending:
            self._write_shard()
        tokens = sum(length for _, _, length, _ in self._sequences.values())
        counts = {"tokens": tokens, "shards": self._shards}
        _write_whole(self.folder / INDEX, _to_json(self._header | counts | {"sequences": self._sequences}))

    def _write_shard(self) -> None:
        (self.folder / INDEX).unlink(missing_ok=True)  # from here to close() an index would be out of date
        places, offset = {}, 0
        for sequence_id, (ids, logprobs) in self._pending.items():
            places[sequence_id] = [offset, len(ids), _checksum(ids, logprobs)]
            offset += len(ids)
        ids, logprobs = (np.concatenate(parts) for parts in zip(*self._pending.values(), strict=True))
        # One metadata entry only: safetensors writes several in an order that changes from run to run.
        metadata = {"topk": _to_json(self._header | {"sequences": places}).decode()}
        _write_whole(self.folder / SHARD.format(self._shards), save({"ids": ids, "logprobs": logprobs}, metadata))
        self._sequences |= {sequence_id: [self._shards, *place] for sequence_id, place in places.items()}
        self._shards += 1
        self._pending = {}

    def _read_earlier_shards(self) -> tuple[int, dict[str, list[int]]]:
        count, sequences = len(list(self.folder.glob(SHARDS))), {}
        for number in range(count):
            shard = _Shard(self.folder / SHARD.format(number))
            shard.check_header(self._header)
            sequences |= {sequence_id: [number, *place] for sequence_id, place in shard.sequences.items()}
        return count, sequences


class TopKStore:
    """Reads a finished top-k store by sequence id; only the rows asked for leave the memory-mapped shards.

    Raises:
        InputError: the folder, its index or a shard is missing, damaged or does not belong to the rest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self._read_index()
        self.top_k: int = index["top_k"]
        self.vocab_size: int = index["vocab_size"]
        self._places: dict[str, list[int]] = index["sequences"]
        self._shards = [_Shard(self.folder / SHARD.format(number)) for number in range(index["shards"])]
        header, found = _make_header(self.top_k, self.vocab_size), {}
        for number, shard in enumerate(self._shards):
            shard.check_header(header)
            found |= {sequence_id: [number, *place] for sequence_id, place in shard.sequences.items()}
        if found != self._places:
            raise InputError(f"{self.folder / INDEX} does not list what the shards hold: extract the top-k again")
        self.tokens = sum(length for _, _, length, _ in found.values())

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, sequence_id: object) -> bool:
        return sequence_id in self._places

    def __getitem__(self, sequence_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids [T, K] as int32 and log-probabilities [T, K] as float32.

        Raises:
            InputError: the id is not there, or its rows are damaged.
        """
        if sequence_id not in self._places:
            raise InputError(f"sequence {sequence_id!r} is not in {self.folder}: extract the top-k of these rollouts")
        shard, offset, length, checksum = self._places[sequence_id]
        return self._shards[shard].read(offset, length, checksum)

    def _read_index(self) -> dict[str, Any]:
        path = self.folder / INDEX
        if not self.folder.is_dir():
            raise InputError(f"there is no top-k store at {self.folder}: run the extract-topk stage, or name another")
        if not path.is_file():
            raise InputError(f"{path} is missing, so the store is unfinished: run the extract-topk stage to its end")
        try:
            index = json.loads(path.read_bytes())
            header = _make_header(index["top_k"], index["vocab_size"])
            if header.items() <= index.items() and index["shards"] >= 0 and isinstance(index["sequences"], dict):
                return index
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError(f"{path} is damaged or of another format version: extract the top-k again")


class _Shard:
    """One memory-mapped shard: its header, where its sequences lie, and their rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise self._fault("missing")
        try:
            tensors = safe_open(path, framework="np")
            self.header: dict[str, Any] = json.loads(tensors.metadata()["topk"])
            self.sequences: dict[str, list[int]] = self.header.pop("sequences")
            self._ids, self._logprobs = tensors.get_slice("ids"), tensors.get_slice("logprobs")
            shape = [sum(length for _, length, _ in self.sequences.values()), self.header["top_k"]]
            whole = self._ids.get_shape() == shape == self._logprobs.get_shape()
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise self._fault("damaged")

    def check_header(self, expected: dict[str, Any]) -> None:
        for name, value in expected.items():
            if self.header.get(name) != value:
                found = f"{name} {self.header.get(name)} where {value} is wanted"
                raise InputError(f"{self.path} has {found}: use the same settings, or another folder")

    def read(self, offset: int, length: int, checksum: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(offset, offset + length)
        ids_TK, logprobs_TK = self._ids[rows], self._logprobs[rows]
        if _checksum(ids_TK, logprobs_TK) != checksum:
            raise self._fault("damaged")
        return ids_TK.astype(np.int32), logprobs_TK.astype(np.float32)

    def _fault(self, what: str) -> InputError:
        cure = f"restore it, or delete {self.path.parent} and extract the top-k again"
        return InputError(f"{self.path} is {what}: {cure}")


def _make_header(top_k: int, vocab_size: int) -> dict[str, Any]:
    return {
        "format": "star-topk",
        "version": 1,
        "top_k": min(top_k, vocab_size),
        "vocab_size": vocab_size,
        "ids_dtype": "uint16" if vocab_size < 65536 else "uint32",
        "logprobs_dtype": "float16",
    }


def _find_problem(ids_TK: np.ndarray, logprobs_TK: np.ndarray, header: dict[str, Any]) -> str | None:
    """What is wrong with the sequence and how to cure it, or None."""
    k, vocab_size = header["top_k"], header["vocab_size"]
    if ids_TK.shape != logprobs_TK.shape or ids_TK.ndim != 2 or ids_TK.shape[1] != k:
        return f"ids {ids_TK.shape} and log-probs {logprobs_TK.shape} must both be [tokens, {k}]"
    if len(ids_TK) == 0:
        return "it has no tokens: leave it out"
    if ids_TK.dtype.kind not in "iu":
        return f"ids must be integers, not {ids_TK.dtype}"
    if ids_TK.min() < 0 or ids_TK.max() >= vocab_size:
        return f"ids from {ids_TK.min()} to {ids_TK.max()} leave the vocabulary of {vocab_size}: check the teacher's"
    if not np.isfinite(logprobs_TK).all():
        return "log-probs must be finite: compute them in float32 and without masking the teacher's logits"
    if logprobs_TK.max() > TOLERANCE:
        return f"log-prob {logprobs_TK.max():.4g} is above 0: give log_softmax of the logits, not the logits"
    return None


def _to_numpy(array: Any) -> np.ndarray:
    """The array, or the torch tensor from whatever device; bfloat16, which numpy lacks, as float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()


def _checksum(ids_TK: np.ndarray, logprobs_TK: np.ndarray) -> int:
    return zlib.crc32(logprobs_TK, zlib.crc32(ids_TK))


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _write_whole(path: Path, data: bytes) -> None:
    """Writes the file so that after a crash it is either whole under its name or not there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
