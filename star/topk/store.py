"""The top-k store: the teacher's most probable ids and their log-probabilities for each completion token, on disk.

A folder holds

    topk-00000.safetensors ...   the shards: see star.topk.shard_file
    lookup.npy                   [2, S] uint64: 64-bit hashes of the sequence ids, ascending; shard << 32 | row of each
    index.json                   the manifest: the header (k, vocabulary, digests of the tokenizer and the teacher), counts, and the sha256,
                                 size, sequences and tokens of every shard. Written last by close().

Sequences lie in the order they were added. A shard is written under a temporary name and renamed, so a killed writer
leaves whole shards only, and the next writer on the folder goes on after the last one. Without index.json the store is
unfinished and is not read. A reader compares every shard with its sha256 when it opens the store, and a sequence with its crc32 when it
reads it. Neither index nor shards are held in memory: the lookup is memory-mapped and at most `OPEN_SHARDS` shards are. Other files in the
folder are left alone. One writer at a time.

Shapes: T tokens of a sequence, K ids a token, S sequences.
"""

import hashlib
import io
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from star.errors import InputError
from star.hashing import sha256_of
from star.topk.codec import encode
from star.topk.shard_file import Shard, encode_shard, entry_of, fault, make_header, write_whole

INDEX = "index.json"
LOOKUP = "lookup.npy"
SHARD = "topk-{:05d}.safetensors"
SHARDS = "topk-*.safetensors"
UNFINISHED = ("topk-*.tmp", "lookup.npy.tmp", "index.json.tmp")
TOLERANCE = 1e-2  # how far above 0 the rounding of a half-precision log_softmax may put a log-probability
OPEN_SHARDS = 8


class TopKWriter:
    """Writes a top-k store, or goes on with one that an earlier writer left.

    As a context manager it closes the store, unless the block failed.

    Args:
        folder: made when missing.
        top_k: ids a token; K is this or the vocabulary's size, whichever is smaller.
        vocab_size: how many ids there are.
        tokens_per_shard: a shard holds at most this many tokens, or one longer sequence; what a kill can lose.
        provenance: digests of what the store was made from, by name; a shard with others belongs to another run.

    Raises:
        InputError: sizes below 1, or a folder whose shards are damaged, incomplete or of other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        top_k: int = 100,
        *,
        vocab_size: int,
        tokens_per_shard: int = 65536,
        provenance: dict[str, str] | None = None,
    ) -> None:
        if min(top_k, vocab_size, tokens_per_shard) < 1:
            sizes = f"top_k {top_k}, vocab_size {vocab_size}, tokens_per_shard {tokens_per_shard}"
            raise InputError(f"a top-k store needs sizes of at least 1, got {sizes}")
        self.folder = Path(folder)
        self.tokens_per_shard = tokens_per_shard
        self._header = make_header(top_k, vocab_size, provenance or {})
        self.top_k: int = self._header["top_k"]
        self.vocab_size = vocab_size
        self._pending: dict[str, tuple[int, bytes]] = {}
        self._pending_tokens = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{self.folder} is a file: name a folder for the top-k store") from None
        for leftover in [path for pattern in UNFINISHED for path in self.folder.glob(pattern)]:
            leftover.unlink()
        self._sequences: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        for number in range(len(list(self.folder.glob(SHARDS)))):
            shard = Shard(self.folder / SHARD.format(number))
            shard.check_header(self._header)
            shard.check_sequences()
            self._sequences.update(shard.names)
            self._shards.append(shard.entry())

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
            ids_TK: integers in [0, vocab_size). Rows come back in the order given; falling log-probabilities take the least room.
            logprobs_TK: natural logarithms, not above 0, kept to 0.01; -inf only at the end of a row, where it pads.

        Raises:
            InputError: any of that does not hold, or there are no tokens.
        """
        if sequence_id in self:
            raise InputError(f"sequence {sequence_id!r} is already in {self.folder}: skip it, or give it another id")
        ids_TK, logprobs_TK = _to_numpy(ids_TK), _to_numpy(logprobs_TK)
        problem = _find_problem(ids_TK, logprobs_TK, self._header)
        if problem:
            raise InputError(f"sequence {sequence_id!r} cannot be added to {self.folder}: {problem}")
        if self._pending and self._pending_tokens + len(ids_TK) > self.tokens_per_shard:
            self._write_shard()
        data = encode(ids_TK, logprobs_TK, vocab_size=self._header["vocab_size"])
        self._pending[sequence_id] = (len(ids_TK), data)
        self._pending_tokens += len(ids_TK)

    def close(self) -> None:
        """Writes what is held back as the last shard, then the lookup, then the index that makes the store readable."""
        if self._pending:
            self._write_shard()
        _write_index(self.folder, self._header, self._shards)

    def _write_shard(self) -> None:
        (self.folder / INDEX).unlink(missing_ok=True)  # from here to close() an index would be out of date
        content = encode_shard(self._pending, self._header)
        path = self.folder / SHARD.format(len(self._shards))
        write_whole(path, content)
        self._shards.append(entry_of(path.name, content, sequences=len(self._pending), tokens=self._pending_tokens))
        self._sequences.update(self._pending)
        self._pending, self._pending_tokens = {}, 0


class TopKStore:
    """Reads a finished top-k store by sequence id; only the rows asked for leave the memory-mapped shards.

    Args:
        verify: compare every shard with its sha256; False only where that was just done.

    Attributes:
        top_k, vocab_size, provenance: as the writer was given them.
        tokens, shards: how many there are.

    Raises:
        InputError: the folder, its index or a shard is missing, damaged or does not belong to the rest; the message names it.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self._index = _read_index(self.folder)
        self.top_k: int = self._index["top_k"]
        self.vocab_size: int = self._index["vocab_size"]
        self.tokens: int = self._index["tokens"]
        self.shards = len(self._index["shards"])
        self.provenance: dict[str, str] = self._index["provenance"]
        self._header = make_header(self.top_k, self.vocab_size, self.provenance)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        if verify:
            for entry in [*self._index["shards"], self._index["lookup"]]:
                _verify_file(self.folder / entry["file"], entry, header=self._header)
        self._hashes, self._places = _map_lookup(self.folder / LOOKUP)

    def __len__(self) -> int:
        return self._index["sequences"]

    def __iter__(self) -> Iterator[str]:
        for number in range(self.shards):
            yield from self._shard(number).names

    def __contains__(self, sequence_id: object) -> bool:
        return isinstance(sequence_id, str) and self._find(sequence_id) is not None

    def __getitem__(self, sequence_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids [T, K] as int32 and log-probabilities [T, K] as float32.

        Raises:
            InputError: the id is not there, or its rows are damaged.
        """
        place = self._find(sequence_id)
        if place is None:
            raise InputError(f"sequence {sequence_id!r} is not in {self.folder}: extract the top-k of these rollouts")
        shard, row = place
        return shard.read(row)

    @property
    def size(self) -> int:
        """Bytes on disk, of the shards, the lookup and the index."""
        entries = [*self._index["shards"], self._index["lookup"]]
        return sum(entry["size"] for entry in entries) + (self.folder / INDEX).stat().st_size

    def _find(self, sequence_id: str) -> tuple["Shard", int] | None:
        key = _hash(sequence_id)
        first = int(np.searchsorted(self._hashes, key))
        while first < len(self._hashes) and self._hashes[first] == key:
            place = int(self._places[first])
            shard, row = self._shard(place >> 32), place & 0xFFFFFFFF
            if shard.name(row) == sequence_id:
                return shard, row
            first += 1
        return None

    def _shard(self, number: int) -> "Shard":
        if number not in self._open:
            self._open[number] = Shard(self.folder / self._index["shards"][number]["file"])
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


def merge_stores(parts: Iterable[Path], out: Path) -> None:
    """Makes one store of several by their manifests: shards are linked (or copied) as they are, in the order of the parts.

    Raises:
        InputError: a part is not a sound store, is of other settings or another teacher, or holds a sequence of another part.
    """
    stores = [TopKStore(part) for part in parts]
    out.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = []
    for store in stores:
        if store._header != stores[0]._header:
            raise InputError(f"{store.folder} and {stores[0].folder} are not parts of one extraction: merge only those")
        for entry in store._index["shards"]:
            name = SHARD.format(len(shards))
            _link(store.folder / entry["file"], out / name)
            shards.append(entry | {"file": name})
    _write_index(out, stores[0]._header, shards)


def _write_index(folder: Path, header: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    lookup = _make_lookup([Shard(folder / entry["file"]).names for entry in shards], folder)
    counts = {name: sum(entry[name] for entry in shards) for name in ("sequences", "tokens")}
    index = header | counts | {"lookup": _write_lookup(folder / LOOKUP, lookup), "shards": shards}
    write_whole(folder / INDEX, json.dumps(index, indent=1).encode())


def _make_lookup(names: list[list[str]], folder: Path) -> np.ndarray:
    """[2, S]: the sorted hashes of all ids and where each lies; every id is there once."""
    found = [
        (_hash(name), number << 32 | row, name) for number, shard in enumerate(names) for row, name in enumerate(shard)
    ]
    found.sort()
    for (key, _, name), (next_key, _, next_name) in zip(found, found[1:], strict=False):
        if key == next_key and name == next_name:
            raise InputError(f"sequence {name!r} is in {folder} twice: merge only parts of one extraction, each once")
    return np.array([[key for key, _, _ in found], [place for _, place, _ in found]], np.uint64)


def _write_lookup(path: Path, lookup: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, lookup, allow_pickle=False)
    write_whole(path, buffer.getvalue())
    return entry_of(path.name, buffer.getvalue())


def _map_lookup(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        hashes, places = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise fault(path, "missing") from None
    except (ValueError, OSError, EOFError):
        raise fault(path, "damaged") from None
    return hashes, places


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not folder.is_dir():
        raise InputError(f"there is no top-k store at {folder}: run the extract-topk stage, or name another")
    if not path.is_file():
        raise InputError(f"{path} is missing, so the store is unfinished: run the extract-topk stage to its end")
    try:
        index = json.loads(path.read_bytes())
        header = make_header(index["top_k"], index["vocab_size"], index["provenance"])
        entries = all({"file", "size", "sha256"} <= entry.keys() for entry in [*index["shards"], index["lookup"]])
        counts = all(isinstance(index[name], int) for name in ("sequences", "tokens"))
        if header.items() <= index.items() and entries and counts:
            return index
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path} is damaged or of another format version: extract the top-k again")


def _verify_file(path: Path, entry: dict[str, Any], *, header: dict[str, Any]) -> None:
    if not path.is_file():
        raise fault(path, "missing")
    size = path.stat().st_size
    if size == entry["size"] and sha256_of(path) == entry["sha256"]:
        return
    found = header if path.name == LOOKUP else _header_of(path, otherwise=header)
    for name, value in header.items():
        if found.get(name) != value:
            raise fault(path, f"a shard of another run, whose {name} is {found.get(name)} and not {value}")
    if size < entry["size"]:
        raise fault(path, f"damaged, {size} bytes of {entry['size']}")
    raise fault(path, f"damaged or of another run, its sha256 is not the one in {INDEX}")


def _header_of(path: Path, *, otherwise: dict[str, Any]) -> dict[str, Any]:
    try:
        return Shard(path).header
    except InputError:
        return otherwise


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
    finite_TK = np.isfinite(logprobs_TK)
    if not finite_TK.all():
        padding_TK = np.isneginf(logprobs_TK)
        if (~finite_TK & ~padding_TK).any():
            return "log-probs must be finite, or -inf where a row is padded: compute them in float32"
        if padding_TK[:, 0].any() or (padding_TK[:, :-1] > padding_TK[:, 1:]).any():
            return "log-probs of -inf must be at the end of a row, after a finite one: sort the rows, falling"
    if logprobs_TK.max() > TOLERANCE:
        return f"log-prob {logprobs_TK.max():.4g} is above 0: give log_softmax of the logits, not the logits"
    return None


def _to_numpy(array: Any) -> np.ndarray:
    """The array, or the torch tensor from whatever device; bfloat16, which numpy lacks, as float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()


def _hash(sequence_id: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(sequence_id.encode(), digest_size=8).digest(), "little"))


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
