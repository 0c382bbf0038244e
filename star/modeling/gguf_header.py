"""Reads the header of a GGUF file within bounds: its metadata, and where each tensor lies. No weights are read.

    GGUF 3 290 33                                     magic, version, number of tensors, number of entries
    general.architecture = "llama", ...               the entries: configuration, tokenizer, chat template
    token_embd.weight [49152, 576] Q4_1 at 0, ...     the tensors, each with its place behind the header

A header states counts, lengths and places, and a reader that believes them can be made to loop, to allocate any memory,
or to read past the end. So each is compared here with what is left of the file, before anything else reads the file.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES

from star.errors import InputError

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # type -> struct
STRING, ARRAY = 8, 9
ENTRIES, TENSORS, DIMENSIONS, LAYERS = 2**12, 2**17, 4, 1000
ELEMENTS = 2**23  # of all arrays; a vocabulary of 256,000 tokens with its merges has 1.3 million
NAME_BYTES, TOKEN_BYTES, TEXT_BYTES = 2**8, 2**12, 2**22  # of a key or tensor name, a text in an array, and another one
ALIGNMENT = 32  # of tensors, where the metadata states no other


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape, as torch has it, and the bytes of its data in the file."""

    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes:
        metadata: by key; arrays are lists.
        tensors: by name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def read_gguf_header(file: Path) -> GgufHeader:
    """Reads and checks the header of a GGUF file.

    Raises:
        InputError: it is no GGUF file, is cut or damaged, is one of several parts, or holds something else than a model.
    """
    size = file.stat().st_size
    if size < 24:
        raise InputError(f"{file} has {size} bytes, which is no GGUF file: download it again")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            header = _Reader(content).read()
        except struct.error:
            raise InputError(f"{file} ends within its header: it is cut, download it again") from None
        except (_Damaged, UnicodeDecodeError) as error:
            raise InputError(
                f"{file} is refused before it is loaded: {error}; download it again, or choose another model"
            ) from None
    missing = max((tensor.end for tensor in header.tensors.values()), default=0) - size
    if missing > 0:
        raise InputError(f"{file} lacks its last {missing:,} bytes: it is cut, download it again")
    _refuse_other_kinds(header, file)
    return header


class _Damaged(Exception):
    """The header states something that no model needs; the message is one phrase."""


class _Reader:
    """Reads one value after another."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place, self.elements = content, 0, 0

    def read(self) -> GgufHeader:
        if self.content[:4] != b"GGUF":
            raise _Damaged("it does not begin with GGUF")
        self.place = 4
        version, tensors, entries = self._unpack("IQQ")
        if version not in VERSIONS:
            raise _Damaged(f"it has version {version}, and STAR reads {VERSIONS[0]} and {VERSIONS[1]}")
        self._require(tensors, most=TENSORS, what="tensors")
        self._require(entries, most=ENTRIES, what="entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text(NAME_BYTES)
            if key in metadata:
                raise _Damaged(f"its metadata has {key} twice")
            [kind] = self._unpack("I")
            metadata[key] = self._array(key) if kind == ARRAY else self._value(kind, key)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not (isinstance(alignment, int) and 0 < alignment <= 2**16):
            raise _Damaged(f"its general.alignment is {alignment!r}")
        found = [self._tensor() for _ in range(tensors)]
        start = -(-self.place // alignment) * alignment
        placed = {name: Tensor(shape, start + offset, start + offset + size) for name, shape, offset, size in found}
        if len(placed) < len(found):
            raise _Damaged("two of its tensors have one name")
        return GgufHeader(metadata, placed)

    def _unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def _require(self, count: int, *, most: int, what: str) -> None:
        if count > most:
            raise _Damaged(f"it states {count:,} {what}, more than {most:,}")

    def _text(self, most: int) -> str:
        [length] = self._unpack("Q")
        self._require(length, most=most, what="bytes of a text")
        return str(self._unpack(f"{length}s")[0].decode("utf-8"))

    def _value(self, kind: int, key: str, *, most: int = TEXT_BYTES) -> Any:
        if kind == STRING:
            return self._text(most)
        if kind not in SCALARS:
            raise _Damaged(f"its {key} has the unknown type {kind}")
        return self._unpack(SCALARS[kind])[0]

    def _array(self, key: str) -> list[Any]:
        kind, count = self._unpack("IQ")
        self.elements += count
        self._require(self.elements, most=ELEMENTS, what=f"elements of arrays up to {key}")
        if kind in SCALARS:
            return list(self._unpack(f"{count}{SCALARS[kind]}"))
        # Arrays of arrays are of the same unknown kinds: no model has any.
        return [self._value(kind, key, most=TOKEN_BYTES) for _ in range(count)]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Its name, shape, place behind the header, and size in bytes."""
        name = self._text(NAME_BYTES)
        [dimensions] = self._unpack("I")
        self._require(dimensions, most=DIMENSIONS, what=f"dimensions of {name}")
        shape = self._unpack(f"{dimensions}Q")
        kind, offset = self._unpack("IQ")
        if kind not in GGML_QUANT_SIZES:
            raise _Damaged(f"its tensor {name} has the unknown type {kind}")
        block, block_bytes = GGML_QUANT_SIZES[kind]
        # A block never spans two rows.
        if not shape or 0 in shape or shape[0] % block:
            raise _Damaged(f"its tensor {name} has the shape {list(shape)}, which blocks of {block} do not fill")
        return name, shape[::-1], offset, math.prod(shape) // block * block_bytes


def _refuse_other_kinds(header: GgufHeader, file: Path) -> None:
    """Raises InputError for a file that holds a part of a model, something else, or more than transformers would read of it."""
    metadata = header.metadata
    if metadata.get("split.count", 1) not in (0, 1):
        raise InputError(f"{file} is one of {metadata['split.count']} parts: merge them (llama-gguf-split --merge)")
    if (kind := metadata.get("general.type", "model")) != "model":
        raise InputError(f"{file} holds the type {str(kind)[:40]!r} and no model: give the model's own file")
    architecture = metadata.get("general.architecture")
    tokens, layers = metadata.get("tokenizer.ggml.tokens"), metadata.get(f"{architecture}.block_count")
    if not isinstance(tokens, list) or not tokens or not isinstance(layers, int):
        raise InputError(f"{file} has no tokenizer or no number of layers in its metadata: choose another file")
    # transformers reads neither, and the model would be another one from the first token on.
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    has_factors = any(name.startswith(("rope_freqs", "rope_factors")) for name in header.tensors)
    if has_factors or (scaling != "none" and architecture != "gpt-oss"):
        raise InputError(
            f"{file} scales its positions (rope), which transformers does not read from a GGUF file: give the model as a folder "
            "with safetensors"
        )
    if not 0 < layers <= min(LAYERS, len(header.tensors)):
        raise InputError(f"{file} describes {layers:,} layers and has {len(header.tensors):,} tensors: choose another")
