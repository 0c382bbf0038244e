"""Writes and reads the top-k store: the teacher's k most probable ids per completion token and their log-probabilities.

    with TopKWriter(folder, top_k=100, vocab_size=151_936) as writer:
        writer.add("row-7#0", ids_TK, logprobs_TK)
    ids_TK, logprobs_TK = TopKStore(folder)["row-7#0"]

A store is a folder:

    topk-00000.safetensors ...   shard files, see star.topk.shard_file; sequences in the order of adding
    lookup.npy                   [2, S] uint64: 64-bit hashes of the sequence ids, ascending, and the place of each
                                 sequence: number of the file << 32 | row in it
    index.json                   the header (k, vocabulary, digests of tokenizer and teacher), counts, and for every
                                 file its sha256, size, sequences and tokens. Written last, by close().

- A killed writer leaves complete files only, because each is written under a temporary name and renamed. The next
  writer on the folder continues after the last one.
- Without index.json the store is unfinished and cannot be read.
- A reader compares every file with its sha256 when it opens the store, and a sequence with its crc32 when it reads it.
- The memory that a reader needs does not grow with the store: the lookup and at most `MAX_OPEN_FILES` files are
  memory-mapped.
- Other files in the folder stay untouched. Only one writer at a time is allowed.

Shapes: T tokens of a sequence, K ids per token, S sequences.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from star.digest_cache import digests_of, links_change, remember_written
from star.errors import InputError
from star.folders.link import link_or_copy
from star.topk.codec import decode, encode
from star.topk.lookup import hash_of, make_lookup, map_lookup, write_lookup
from star.topk.shard_file import (
    ShardFile,
    encode_shard_file,
    file_error,
    index_entry,
    make_header,
    write_atomically,
)

INDEX = "index.json"
LOOKUP = "lookup.npy"
SHARD_FILE = "topk-{:05d}.safetensors"
SHARD_FILES = "topk-*.safetensors"
UNFINISHED = ("topk-*.tmp", "lookup.npy.tmp", "index.json.tmp")
MAX_LOGPROB = 1e-2  # the rounding of a half-precision log_softmax may put a log-probability this far above 0
MAX_OPEN_FILES = 256  # about 25 kB each; a batch of a large store reads from as many files as it has sequences


class TopKWriter:
    """Writes a top-k store, or continues one that an earlier writer left.

    As a context manager it closes the store, unless the block raised.

    Args:
        folder: created when missing.
        top_k: ids per token; K is this or the vocabulary's size, whichever is smaller.
        vocab_size: number of ids in the vocabulary.
        tokens_per_file: a shard file holds at most this many tokens, or one longer sequence. A kill can lose so many.
        provenance: digests of what the store is made from, by name. A file with other digests belongs to another run.

    Raises:
        InputError: a size is below 1, or the files in the folder are damaged, incomplete or of other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        top_k: int = 100,
        *,
        vocab_size: int,
        tokens_per_file: int = 65536,
        provenance: dict[str, str] | None = None,
    ) -> None:
        if min(top_k, vocab_size, tokens_per_file) < 1:
            sizes = f"top_k {top_k}, vocab_size {vocab_size}, tokens_per_file {tokens_per_file}"
            raise InputError(f"a top-k store needs sizes of at least 1, got {sizes}")
        self.folder = Path(folder)
        self.tokens_per_file = tokens_per_file
        self._header = make_header(top_k, vocab_size, provenance or {})
        self.top_k: int = self._header["top_k"]
        self.vocab_size = vocab_size
        self._pending: dict[str, tuple[int, bytes]] = {}
        self._pending_tokens = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{self.folder} is a file: name a folder for the top-k store") from None
        # A killed writer left these half written. No index names them.
        for leftover in [path for pattern in UNFINISHED for path in self.folder.glob(pattern)]:
            leftover.unlink()
        self._sequences: set[str] = set()
        self._files: list[dict[str, Any]] = []
        # By number and not by the names found: a gap in the numbers is then reported as a missing file.
        for number in range(len(list(self.folder.glob(SHARD_FILES)))):
            file = ShardFile(self.folder / SHARD_FILE.format(number))
            file.check_header(self._header)
            file.check_sequences()
            self._sequences.update(file.names)
            self._files.append(file.entry())

    def __contains__(self, sequence_id: object) -> bool:
        """Whether the sequence was added, by this writer or by an earlier one that wrote its file."""
        return sequence_id in self._sequences or sequence_id in self._pending

    def __len__(self) -> int:
        return len(self._sequences) + len(self._pending)

    def __enter__(self) -> "TopKWriter":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self.close()

    def add(self, sequence_id: str, ids_TK: Any, logprobs_TK: Any) -> None:
        """Adds one sequence, as numpy arrays or as torch tensors on any device.

        Args:
            sequence_id: an id that was not added before.
            ids_TK: integers in [0, vocab_size). Rows keep their order; falling log-probabilities take the fewest bytes.
            logprobs_TK: natural logarithms, not above 0, stored within 0.01. -inf is padding, only at the end of a row.

        Raises:
            InputError: an argument is not as described, or there are no tokens.
        """
        if sequence_id in self:
            raise InputError(f"sequence {sequence_id!r} is already in {self.folder}: skip it, or give it another id")
        ids_TK, logprobs_TK = _to_numpy(ids_TK), _to_numpy(logprobs_TK)
        problem = _find_problem(ids_TK, logprobs_TK, self._header)
        if problem:
            raise InputError(f"sequence {sequence_id!r} cannot be added to {self.folder}: {problem}")
        # Before adding, so that a file never has more than its limit, unless a single sequence is longer.
        if self._pending and self._pending_tokens + len(ids_TK) > self.tokens_per_file:
            self._write_file()
        data = encode(ids_TK, logprobs_TK, vocab_size=self._header["vocab_size"])
        self._pending[sequence_id] = (len(ids_TK), data)
        self._pending_tokens += len(ids_TK)

    def close(self) -> None:
        """Writes the last shard file, then the lookup, then the index, which makes the store readable."""
        if self._pending:
            self._write_file()
        _write_index(self.folder, self._header, self._files)

    def _write_file(self) -> None:
        (self.folder / INDEX).unlink(missing_ok=True)  # outdated from here until close()
        content = encode_shard_file(self._pending, self._header)
        path = self.folder / SHARD_FILE.format(len(self._files))
        write_atomically(path, content)
        self._files.append(index_entry(path.name, content, sequences=len(self._pending), tokens=self._pending_tokens))
        remember_written({path: self._files[-1]["sha256"]}, for_others=False)
        self._sequences.update(self._pending)
        self._pending, self._pending_tokens = {}, 0


class TopKStore:
    """Reads a finished top-k store by sequence id. Only the requested sequence is read from the memory-mapped files.

    Args:
        verify: whether to compare every file with its sha256. Pass False only where that was just done.

    Attributes:
        top_k, vocab_size, provenance: the writer's arguments.
        tokens: number of completion tokens.
        file_count: number of shard files.

    Raises:
        InputError: the folder, its index or a file is missing, damaged or belongs to another run; the message names it.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self._index = _read_index(self.folder)
        self.top_k: int = self._index["top_k"]
        self.vocab_size: int = self._index["vocab_size"]
        self.tokens: int = self._index["tokens"]
        self.file_count = len(self._index["shards"])
        self.provenance: dict[str, str] = self._index["provenance"]
        self._header = make_header(self.top_k, self.vocab_size, self.provenance)
        self._open_files: OrderedDict[int, ShardFile] = OrderedDict()
        if verify:
            entries = {self.folder / entry["file"]: entry for entry in [*self._index["shards"], self._index["lookup"]]}
            digests = digests_of([file for file in entries if file.is_file()], trust="own")
            for file, entry in entries.items():
                _verify_file(file, entry, digest=digests.get(file), header=self._header)
        self._hashes, self._places = map_lookup(self.folder / LOOKUP)

    def __len__(self) -> int:
        return self._index["sequences"]

    def __iter__(self) -> Iterator[str]:
        for number in range(self.file_count):
            yield from self._file(number).names

    def __contains__(self, sequence_id: object) -> bool:
        return isinstance(sequence_id, str) and self._find(sequence_id) is not None

    def __getitem__(self, sequence_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads one sequence: ids [T, K] as int32 and log-probabilities [T, K] as float32.

        Raises:
            InputError: the store does not have the id, or the sequence is damaged.
        """
        ids_TK, logprobs_TK, _ = self.read([sequence_id])
        return ids_TK, logprobs_TK

    def read(self, sequence_ids: Iterable[str]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Reads several sequences at once.

        Returns:
            Ids [T, K] as int32 and log-probabilities [T, K] as float32, where T counts the tokens of all sequences, one
            sequence after the other, and the number of tokens of each.

        Raises:
            InputError: the store does not have an id, or a sequence is damaged.
        """
        encoded, tokens = [], []
        for sequence_id in sequence_ids:
            place = self._find(sequence_id)
            if place is None:
                raise InputError(
                    f"sequence {sequence_id!r} is not in {self.folder}: extract the top-k of these rollouts"
                )
            file, row = place
            encoded.append(file.read(row))
            tokens.append(file.tokens(row))
        return *decode(encoded, tokens, k=self.top_k, vocab_size=self.vocab_size), tokens

    @property
    def size(self) -> int:
        """Bytes on disk of the shard files, the lookup and the index."""
        entries = [*self._index["shards"], self._index["lookup"]]
        return sum(entry["size"] for entry in entries) + (self.folder / INDEX).stat().st_size

    def _find(self, sequence_id: str) -> tuple[ShardFile, int] | None:
        """The file and the row of a sequence."""
        key = hash_of(sequence_id)
        index = int(np.searchsorted(self._hashes, key))
        # Different ids can have the same hash, so the id itself is compared too.
        while index < len(self._hashes) and self._hashes[index] == key:
            place = int(self._places[index])
            file, row = self._file(place >> 32), place & 0xFFFFFFFF
            if file.name(row) == sequence_id:
                return file, row
            index += 1
        return None

    def _file(self, number: int) -> ShardFile:
        """Opens a shard file, or takes it from the most recently used ones."""
        if number not in self._open_files:
            self._open_files[number] = ShardFile(self.folder / self._index["shards"][number]["file"])
            if len(self._open_files) > MAX_OPEN_FILES:
                self._open_files.popitem(last=False)
        self._open_files.move_to_end(number)
        return self._open_files[number]


def merge_stores(folders: Iterable[Path], out: Path) -> None:
    """Merges the stores of one extraction's shards. Their files are linked (or copied) unchanged, in the given order.

    Raises:
        InputError: a folder is not a valid store, has other settings or another teacher, or repeats a sequence.
    """
    stores = [TopKStore(folder) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    links: dict[Path, Path] = {}
    for store in stores:
        if store._header != stores[0]._header:
            raise InputError(f"{store.folder} and {stores[0].folder} are not parts of one extraction: merge only those")
        for entry in store._index["shards"]:
            # Every shard numbers its files from 0, so they are numbered again.
            name = SHARD_FILE.format(len(entries))
            links[store.folder / entry["file"]] = out / name
            entries.append(entry | {"file": name})
    with links_change(links):
        for file, link in links.items():
            link.unlink(missing_ok=True)
            link_or_copy(file, link, read_only=True)
    _write_index(out, stores[0]._header, entries)


def _write_index(folder: Path, header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    lookup = make_lookup([folder / entry["file"] for entry in entries])
    counts = {name: sum(entry[name] for entry in entries) for name in ("sequences", "tokens")}
    index = header | counts | {"lookup": write_lookup(folder / LOOKUP, lookup), "shards": entries}
    write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not folder.is_dir():
        raise InputError(f"there is no top-k store at {folder}: run the extract-topk stage, or give another folder")
    if not path.is_file():
        raise InputError(f"{path} is missing, so the store is unfinished: run the extract-topk stage to its end")
    try:
        index = json.loads(path.read_bytes())
        # A rebuilt header also compares the format, its version and the step of the log-probabilities.
        header = make_header(index["top_k"], index["vocab_size"], index["provenance"])
        entries = all({"file", "size", "sha256"} <= entry.keys() for entry in [*index["shards"], index["lookup"]])
        counts = all(isinstance(index[name], int) for name in ("sequences", "tokens"))
        if header.items() <= index.items() and entries and counts:
            return index
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path} is damaged or of another format version: extract the top-k again")


def _verify_file(path: Path, entry: dict[str, Any], *, digest: str | None, header: dict[str, Any]) -> None:
    """Compares a file with its entry in the index. The error says whether a different file belongs to another run."""
    if not path.is_file():
        raise file_error(path, "missing")
    size = path.stat().st_size
    if size == entry["size"] and digest == entry["sha256"]:
        return
    # The lookup has no header to compare.
    found = header if path.name == LOOKUP else _header_or(path, header)
    for name, value in header.items():
        if found.get(name) != value:
            raise file_error(path, f"a shard file of another run, whose {name} is {found.get(name)} and not {value}")
    if size < entry["size"]:
        raise file_error(path, f"damaged, {size} bytes of {entry['size']}")
    raise file_error(path, f"damaged or of another run, its sha256 is not the one in {INDEX}")


def _header_or(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """The header of a shard file, or the default where the file cannot be read."""
    try:
        return ShardFile(path).header
    except InputError:
        return default


def _find_problem(ids_TK: np.ndarray, logprobs_TK: np.ndarray, header: dict[str, Any]) -> str | None:
    """Says what is wrong with a sequence and what to do, or None where it can be stored."""
    k, vocab_size = header["top_k"], header["vocab_size"]
    if ids_TK.shape != logprobs_TK.shape or ids_TK.ndim != 2 or ids_TK.shape[1] != k:
        return f"ids {ids_TK.shape} and log-probs {logprobs_TK.shape} must both be [tokens, {k}]"
    if len(ids_TK) == 0:
        return "it has no tokens: leave it out"
    if ids_TK.dtype.kind not in "iu":
        return f"ids must be integers, not {ids_TK.dtype}"
    if ids_TK.min() < 0 or ids_TK.max() >= vocab_size:
        found = f"ids from {ids_TK.min()} to {ids_TK.max()}"
        return f"{found} leave the vocabulary of {vocab_size}: check the teacher's tokenizer"
    finite_TK = np.isfinite(logprobs_TK)
    if not finite_TK.all():
        padding_TK = np.isneginf(logprobs_TK)
        if (~finite_TK & ~padding_TK).any():
            return "log-probs must be finite, or -inf where a row is padded: compute them in float32"
        if padding_TK[:, 0].any() or (padding_TK[:, :-1] > padding_TK[:, 1:]).any():
            return "log-probs of -inf must be at the end of a row, after a finite one: sort the rows, falling"
    if logprobs_TK.max() > MAX_LOGPROB:
        return f"log-prob {logprobs_TK.max():.4g} is above 0: give log_softmax of the logits, not the logits"
    return None


def _to_numpy(array: Any) -> np.ndarray:
    """Returns a numpy array or a torch tensor on any device as a numpy array. Floats of a tensor become float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()
