"""Encodes the top-k of one sequence as bytes: ids exactly, log-probabilities within 0.01 nats.

- **Ids** are split at a bit. The low bits are stored as they are. The high parts of four ids make one number in base
  ceil(V / 2^low). For V = 151,936 that is 17.25 bits per id, where log2(V) = 17.21. A teacher often has the same ids
  at one token and the next. zstd finds such repetitions, and its output is stored instead when it is shorter.
- **Log-probabilities** become levels, multiples of `STEP` nats. Where they fall along a row, the gaps between
  neighbouring levels are all >= 0 and are stored in a Rice code: with parameter p, the low p bits of a gap as they
  are, the rest in unary (n zeros and a one). The r-th gap of a distribution with an exponential tail is itself
  exponential, with a mean proportional to 1/r (Renyi 1953). Therefore each row has one parameter per octave of ranks
  (1, 2-3, 4-7, ...), and stores it as the difference from what 1/r predicts from the octave before.

At K = 100 and V = 151,936 it takes at least 215.2 bytes per row to say which ids in which order, whatever the code. The
log-probabilities add to that.

Rows that are not in falling order come back in the order they came in. Their signed gaps take about 65 bytes more per
row: log2(100!) = 525 bits is what an order costs.

One token as an example, K = 3 ids of a vocabulary of 1,000:

    >>> import numpy as np
    >>> from star.topk.codec import decode, encode
    >>> data = encode(np.array([[7, 300, 12]]), np.array([[-0.1, -2.5, -5.0]]), vocab_size=1000)
    >>> data.hex(" ")
    '00 04 00 00 00 ab 25 03 00 03 20 00 a4 02 f3 1e'
    >>> ids_TK, logprobs_TK = decode([data], tokens=[1], k=3, vocab_size=1000)
    >>> ids_TK.tolist(), logprobs_TK.astype(float).round(2).tolist()
    ([[7, 300, 12]], [[-0.1, -2.51, -4.99]])

The log-probabilities are the levels 5, 126, 251, whose gaps are 5, 121, 125. The octaves are rank 1, with parameter 1,
and ranks 2-3, with parameter 6. So the gaps are stored as 5 = 2 * 2^1 + 1, 121 = 1 * 2^6 + 57, 125 = 1 * 2^6 + 61.

    00            flags: falling order, no padding, ids not by zstd
    04 00 00 00   size of the unary part
    ab 25 03 00   high parts of the ids: 10 bits are split into 2 low and 8 high ones, and 7, 300, 12 have the high
                  parts 1, 75, 3, which are 1 + 75 * 250 + 3 * 250^2 = 206,251 = 0x0325ab (a fourth id would add to it)
    03            low parts of the ids: 3, 0, 0 in two bits each, the first in the lowest bits
    20 00 a4 02   unary: 5 and 12 for the parameters, 2, 1, 1 for the gaps; bits from the lowest on, they read
                  000001 0000000000001 001 01 01. The first parameter is 1 - FIRST_PARAMETER = -3, the second 6, where
                  1 - 1 = 0 is expected. Signs are folded (2n, or -2n - 1 for a negative n), which gives 5 and 12.
    f3 1e         low bits of the gaps: 1 in one bit, 57 and 61 in six bits each

A sequence of several tokens has each of these parts once, for all of its tokens. All bits are little-endian.

Shapes: T tokens, K ids per token, O octaves of ranks. The packing functions take flat arrays of any length.
"""

from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

STEP = 0.0199  # nats between two levels; the error is at most half of it, plus the rounding of a float32
LOWEST = -65504.0  # lower log-probabilities are stored as this one: e^-65504 is 0 in every floating-point type
GROUP = 4  # ids whose high parts make one number
BLOCK = 80_000  # values decoded at once: few enough that numpy's arrays of them stay in a core's cache
FIRST_PARAMETER = 4  # the first octave's parameter is stored as the difference from this

# Flags in the first byte.
FALLING, SIGNED = 0, 1  # whether the gaps of all rows are >= 0
PADDED = 2  # rows may end in -inf, and the number of finite values of each row is stored
COMPRESSED = 4  # the ids are stored by zstd

_ZSTD = pa.Codec("zstd", 3)


def encode(ids_TK: np.ndarray, logprobs_TK: np.ndarray, *, vocab_size: int) -> bytes:
    """Encodes one sequence.

    Args:
        ids_TK: integers in [0, vocab_size).
        logprobs_TK: at most 0 (a positive rounding error counts as 0). -inf is allowed at the end of a row and stays.
    """
    tokens, k = ids_TK.shape
    logprobs_TK = np.asarray(logprobs_TK, np.float64)
    finite_TK = np.isfinite(logprobs_TK)
    count_T = finite_TK.sum(1)
    padded = bool((count_T < k).any())
    levels_TK = np.rint(np.clip(np.where(finite_TK, logprobs_TK, 0.0), LOWEST, 0.0) / -STEP).astype(np.int64)
    if padded:
        # -inf gets the level before it, a gap of 0. The stored count says where in the row it begins.
        last_T1 = np.take_along_axis(levels_TK, np.maximum(count_T - 1, 0)[:, None], 1)
        levels_TK = np.where(finite_TK, levels_TK, last_T1)
    # Gaps of the rounded levels, not rounded gaps: the rounding errors do not add up along a row.
    gaps_TK = np.diff(levels_TK, axis=1, prepend=0)
    order = SIGNED if gaps_TK.min() < 0 else FALLING
    if order == SIGNED:
        gaps_TK = _fold_signs(gaps_TK)
    parameters_TO = _choose_parameters(gaps_TK)
    widths_TK = np.repeat(parameters_TO, _octaves(k)[1], axis=1)
    differences_TO = _fold_signs(_parameter_differences(parameters_TO))
    unary = _pack_unary(np.concatenate([differences_TO.ravel(), (gaps_TK >> widths_TK).ravel()]))
    ids = _pack_ids(ids_TK.ravel(), vocab_size)
    # Which of the two is shorter depends on how often the ids repeat, so both are made.
    compressed = _ZSTD.compress(ids_TK.astype("<u4").tobytes(), asbytes=True)
    zstd_is_shorter = len(compressed) + 4 < len(ids)  # 4 bytes for its length
    parts = [
        bytes([order | PADDED * padded | COMPRESSED * zstd_is_shorter]),
        len(unary).to_bytes(4, "little"),
        len(compressed).to_bytes(4, "little") + compressed if zstd_is_shorter else ids,
        unary,
        pack_bits(gaps_TK.ravel(), widths_TK.ravel()),
    ]
    if padded:
        parts.append(pack_bits(count_T, np.full(tokens, k.bit_length())))
    return b"".join(parts)


def decode(data: list[bytes], tokens: list[int], *, k: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes sequences, and concatenates their tokens. Several take a fifth of the time that they take one by one.

    Args:
        data: what `encode` made of each sequence.
        tokens: the number of tokens of each.

    Returns:
        Ids [T, K] as int32 and log-probabilities [T, K] as float32, where T counts the tokens of all sequences.
    """
    ids_TK, logprobs_TK = np.empty((sum(tokens), k), np.int32), np.empty((sum(tokens), k), np.float32)
    first = row = 0
    while first < len(data):
        end, rows = first + 1, tokens[first]
        while end < len(data) and (rows + tokens[end]) * k <= BLOCK:
            end, rows = end + 1, rows + tokens[end]
        places = slice(row, row + rows)
        _decode_block(
            data[first:end],
            tokens[first:end],
            ids_TK=ids_TK[places],
            logprobs_TK=logprobs_TK[places],
            vocab_size=vocab_size,
        )
        first, row = end, row + rows
    return ids_TK, logprobs_TK


class _Parts(NamedTuple):
    """The parts of one encoded sequence."""

    flags: int
    ids: bytes
    unary: bytes
    low: bytes  # the low bits of the gaps, and behind them the number of finite values of each row, where it is stored


def _split(data: bytes, count: int, *, vocab_size: int) -> _Parts:
    """Splits an encoded sequence of `count` ids."""
    flags, unary_size = data[0], int.from_bytes(data[1:5], "little")
    if flags & COMPRESSED:
        begin, size = 9, int.from_bytes(data[5:9], "little")
    else:
        begin, size = 5, _ids_size(count, vocab_size)
    ids_end = begin + size
    unary_end = ids_end + unary_size
    # Only the unary part has its size stored. The size of the low bits follows from the parameters.
    return _Parts(flags, data[begin:ids_end], data[ids_end:unary_end], data[unary_end:])


def _decode_block(
    data: list[bytes], tokens: list[int], *, ids_TK: np.ndarray, logprobs_TK: np.ndarray, vocab_size: int
) -> None:
    """Decodes some sequences at once into `ids_TK` and `logprobs_TK`."""
    rows, k = ids_TK.shape
    starts, sizes = _octaves(k)
    counts = [length * k for length in tokens]
    parts = [_split(blob, count, vocab_size=vocab_size) for blob, count in zip(data, counts, strict=True)]
    places = _consecutive_slices(tokens)
    _unpack_ids(parts, [ids_TK[place].ravel() for place in places], vocab_size=vocab_size)
    octaves = [length * len(starts) for length in tokens]
    unary = _unpack_unary([part.unary for part in parts], [a + b for a, b in zip(octaves, counts, strict=True)])
    differences = np.concatenate([values[:size] for values, size in zip(unary, octaves, strict=True)])
    gaps = np.concatenate([values[size:] for values, size in zip(unary, octaves, strict=True)])
    parameters_TO = _parameters_from_differences(_unfold_signs(differences).reshape(rows, -1))
    widths_TK = np.repeat(parameters_TO, sizes, axis=1)
    gaps <<= widths_TK.ravel()
    gaps |= _unpack_bits([part.low for part in parts], counts, widths=widths_TK.ravel())
    gaps_TK = gaps.reshape(rows, k)
    for part, place in zip(parts, places, strict=True):
        if part.flags & SIGNED:
            gaps_TK[place] = _unfold_signs(gaps_TK[place])
    # Levels are integers, so the sums are exact. Only the product is rounded, once, from float64 to float32.
    levels_TK = np.cumsum(gaps_TK, axis=1)
    np.multiply(levels_TK, -STEP, out=logprobs_TK, dtype=np.float64, casting="same_kind")
    for part, place in zip(parts, places, strict=True):
        if part.flags & PADDED:
            low_end = (int(widths_TK[place].sum()) + 7) // 8
            (count_T,) = _unpack_equal_bits([part.low[low_end:]], [place.stop - place.start], width=k.bit_length())
            logprobs_TK[place][np.arange(k) >= count_T[:, None]] = -np.inf


def _consecutive_slices(sizes: list[int]) -> list[slice]:
    """One slice per size, each beginning where the one before it ends."""
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


@cache
def _octaves(k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first rank and the size of each octave of K ranks, counted from 0: 0, 1-2, 3-6, 7-14, ..."""
    starts = np.array([2**octave - 1 for octave in range(k.bit_length())])
    return starts, np.diff(starts, append=k)


def _choose_parameters(gaps_TK: np.ndarray) -> np.ndarray:
    """Returns the Rice parameters [T, O] with which the gaps of each octave take the fewest bits."""
    starts, sizes = _octaves(gaps_TK.shape[1])
    best_TO = np.add.reduceat(gaps_TK, starts, axis=1)
    # Parameter 0 stores the gaps in unary only. A larger one replaces it where it takes fewer bits.
    parameters_TO = np.zeros_like(best_TO)
    for parameter in range(1, int(gaps_TK.max()).bit_length()):
        bits_TO = np.add.reduceat(gaps_TK >> parameter, starts, axis=1) + parameter * sizes
        better_TO = bits_TO < best_TO
        best_TO[better_TO], parameters_TO[better_TO] = bits_TO[better_TO], parameter
    return parameters_TO


def _parameter_differences(parameters_TO: np.ndarray) -> np.ndarray:
    """Differences [T, O] from the expected parameter, which is one less than that of the octave before."""
    expected_TO = np.maximum(parameters_TO[:, :-1] - 1, 0)
    return np.concatenate(
        [parameters_TO[:, :1] - FIRST_PARAMETER, parameters_TO[:, 1:] - expected_TO],
        axis=1,
    )


def _parameters_from_differences(differences_TO: np.ndarray) -> np.ndarray:
    """The inverse of `_parameter_differences`."""
    parameters_TO = np.empty_like(differences_TO)
    parameters_TO[:, 0] = differences_TO[:, 0] + FIRST_PARAMETER
    for octave in range(1, differences_TO.shape[1]):
        parameters_TO[:, octave] = differences_TO[:, octave] + np.maximum(parameters_TO[:, octave - 1] - 1, 0)
    return parameters_TO


def _fold_signs(values: np.ndarray) -> np.ndarray:
    """Maps 0, -1, 1, -2, ... to 0, 1, 2, 3, ..., so that small values of both signs stay small."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def _unfold_signs(values: np.ndarray) -> np.ndarray:
    """The inverse of `_fold_signs`."""
    return np.where(values & 1, -(values + 1) // 2, values // 2)


@cache
def _id_layout(vocab_size: int) -> tuple[int, int, int]:
    """Returns the low bits of an id, the base of the high parts, and the bits of GROUP high parts together."""
    # The high parts have 8 bits at most, so that GROUP of them fit into the 32 bits that pack_bits takes.
    low = max(0, (vocab_size - 1).bit_length() - 8)
    base = -(-vocab_size >> low)
    return low, base, max(0, (base**GROUP - 1).bit_length())


def _ids_size(count: int, vocab_size: int) -> int:
    """The number of bytes that `_pack_ids` makes of `count` ids."""
    low, _, group_bits = _id_layout(vocab_size)
    return (-(-count // GROUP) * group_bits + 7) // 8 + (count * low + 7) // 8


def _pack_ids(ids: np.ndarray, vocab_size: int) -> bytes:
    """The high parts of all ids in groups, then the low bits of all ids."""
    low, base, group_bits = _id_layout(vocab_size)
    ids = ids.astype(np.int64)
    # Filled up with zeros to a whole group. The decoder knows the count and drops them.
    high = np.zeros(-(-len(ids) // GROUP) * GROUP, np.int64)
    high[: len(ids)] = ids >> low
    groups = high.reshape(-1, GROUP) @ base ** np.arange(GROUP)
    return pack_bits(groups, np.full(len(groups), group_bits)) + pack_bits(ids, np.full(len(ids), low))


def _unpack_ids(parts: list[_Parts], out: list[np.ndarray], *, vocab_size: int) -> None:
    """Writes the ids of each sequence into its array of `out`."""
    low, base, group_bits = _id_layout(vocab_size)
    packed = []
    for part, ids in zip(parts, out, strict=True):
        if part.flags & COMPRESSED:
            ids[:] = np.frombuffer(_ZSTD.decompress(part.ids, len(ids) * 4), "<u4")
        else:
            packed.append((part.ids, ids))
    if not packed:
        return
    counts = [len(ids) for _, ids in packed]
    groups = [-(-count // GROUP) for count in counts]
    middles = [(count * group_bits + 7) // 8 for count in groups]
    high = _unpack_equal_bits(
        [data[:middle] for (data, _), middle in zip(packed, middles, strict=True)], groups, width=group_bits
    )
    lows = _unpack_equal_bits(
        [data[middle:] for (data, _), middle in zip(packed, middles, strict=True)], counts, width=low
    )
    for (_, ids), groups_G, low_parts in zip(packed, high, lows, strict=True):
        high_parts = np.empty((len(groups_G), GROUP), np.uint32)
        for place in range(GROUP - 1):
            quotients_G = groups_G // base
            np.subtract(groups_G, quotients_G * base, out=high_parts[:, place])
            groups_G = quotients_G
        high_parts[:, GROUP - 1] = groups_G
        np.bitwise_or(high_parts.ravel()[: len(ids)] << low, low_parts, out=ids, casting="unsafe")


def _pack_unary(values: np.ndarray) -> bytes:
    """Writes each value n as n zeros and a one."""
    ends = np.cumsum(values + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack_unary(sections: list[bytes], counts: list[int]) -> list[np.ndarray]:
    """Reads what `_pack_unary` wrote in each section; `counts` are their numbers of values."""
    bits = np.unpackbits(np.frombuffer(b"".join(sections), np.uint8), bitorder="little")
    # The zeros that fill up the last byte of a section end no value.
    ends = np.flatnonzero(bits.view(bool))  # of bool, for which numpy has a loop that is ten times as fast
    values = ends.copy()
    values[1:] -= ends[:-1]
    values -= 1
    places = _consecutive_slices(counts)
    for place, section in zip(places, _consecutive_slices([8 * len(section) for section in sections]), strict=True):
        values[place.start] = ends[place.start] - section.start
    return [values[place] for place in places]


def pack_bits(values: np.ndarray, widths: np.ndarray) -> bytes:
    """Writes the lowest `widths[i]` bits (32 at most) of every `values[i]`, one after another."""
    most = int(widths.max(initial=0))
    # As few bytes per value as the widest one needs, because each of their bits is unpacked.
    octets = np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)[:, : -(-most // 8)]
    bits = np.unpackbits(octets, axis=1, count=most, bitorder="little")
    # With equal widths, as for ids, no bit has to be left out.
    if int(widths.min(initial=most)) < most:
        bits = bits[np.arange(most) < widths[:, None]]
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack_bits(sections: list[bytes], counts: list[int], *, widths: np.ndarray) -> np.ndarray:
    """Reads what `pack_bits` wrote in each section, as int64; `counts` are their numbers of values."""
    starts = np.cumsum(widths)
    starts -= widths
    places, sizes = _consecutive_slices(counts), [8 * len(section) for section in sections]
    # Each section begins at a whole byte.
    for place, section in zip(places, _consecutive_slices(sizes), strict=True):
        starts[place] += section.start - starts[place.start]
    data = b"".join(sections)
    words = -(-len(data) // 4) + 1
    data = data.ljust(4 * words + 4, b"\0")
    # One 8-byte word per 4 bytes: a value of up to 32 bits lies whole in the word of the 4 bytes in which it begins.
    values = np.ndarray((words,), "<u8", data, 0, (4,)).copy().take(starts >> 5)
    values >>= (starts & 31).view(np.uint64)
    values &= (np.uint64(1) << widths.view(np.uint64)) - np.uint64(1)
    return values.view(np.int64)


def _unpack_equal_bits(sections: list[bytes], counts: list[int], *, width: int) -> list[np.ndarray]:
    """Reads what `pack_bits` wrote in each section with one width for all values, as uint32."""
    # Eight values take `width` whole bytes. So of every eight, the first ones lie `width` bytes apart, the second ones
    # too, and so on: eight strided reads take the place of one look-up per value.
    eights = [-(-count // 8) for count in counts]
    filled = [section.ljust(eight * width, b"\0") for section, eight in zip(sections, eights, strict=True)]
    data = b"".join([*filled, bytes(8)])  # the last value's word does not read beyond the data
    values = np.empty((sum(eights), 8), np.uint32)
    word = "<u4" if width + 7 <= 32 else "<u8"
    for place in range(8):
        begin, shift = divmod(place * width, 8)
        words = np.ndarray((len(values),), word, data, begin, (width,)).copy()
        words >>= shift
        words &= (1 << width) - 1
        values[:, place] = words
    places = _consecutive_slices([8 * eight for eight in eights])
    return [values.ravel()[place][:count] for place, count in zip(places, counts, strict=True)]
