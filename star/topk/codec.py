"""How the top-k of one sequence becomes bytes: ids exactly, log-probabilities within 0.01 nats.

What a row of K = 100 ids out of V = 151,936 costs at least: 215.2 bytes for which ids in which order, and what their log-probabilities add.

- **ids** are cut at a bit: the low bits are kept as they are, four of the high parts make one number in base ceil(V / 2^low). For
  V = 151,936 that is 17.25 bits an id, where log2(V) = 17.21. Where the same ids come again from token to token, as a teacher's often do,
  zstd finds them, and its bytes are taken when they are fewer.
- **log-probabilities** become levels of `STEP` nats. A row in falling order is the gaps between its levels, all of them >= 0, in a Rice
  code: the low bits of a gap as they are, the rest in unary. The r-th gap of a distribution with an exponential tail is itself exponential
  with a mean proportional to 1/r (Renyi 1953), so the code's parameter is chosen for each octave of ranks (1, 2-3, 4-7, ...) of each row,
  and is stored as its distance from the parameter that 1/r would make of the octave before.

Rows that are not in falling order come back in the order they came in; their signed gaps cost about 65 bytes a row more, the
log2(100!) = 525 bits of an order.

Shapes: T tokens, K ids a token, O octaves of ranks, N values. All bits are little-endian.
"""

from functools import cache

import numpy as np
import pyarrow as pa

STEP = 0.0199  # nats between two levels: off by half of it at most, and by a float32's rounding
LOWEST = -65504.0  # lower ones are stored as this: e^-65504 is 0 in every type
GROUP = 4  # ids whose high parts make one number
FIRST_PARAMETER = 4  # what the first octave's parameter is stored as the distance from
FALLING, SIGNED = 0, 1
PADDED = 2  # flag: rows end in -inf, and their finite values are counted
COMPRESSED = 4  # flag: the ids are zstd's
_ZSTD = pa.Codec("zstd", 3)


def encode(ids_TK: np.ndarray, logprobs_TK: np.ndarray, *, vocab_size: int) -> bytes:
    """The bytes of one sequence.

    Args:
        ids_TK: integers in [0, vocab_size).
        logprobs_TK: at most 0 (a little more is taken for 0); -inf, at the end of a row, is kept as it is.
    """
    tokens, k = ids_TK.shape
    logprobs_TK = np.asarray(logprobs_TK, np.float64)
    finite_TK = np.isfinite(logprobs_TK)
    count_T = finite_TK.sum(1)
    padded = bool((count_T < k).any())
    levels_TK = np.rint(np.clip(np.where(finite_TK, logprobs_TK, 0.0), LOWEST, 0.0) / -STEP).astype(np.int64)
    if padded:
        # -inf takes the level before it, and a count says where in the row it begins.
        last_T1 = np.take_along_axis(levels_TK, np.maximum(count_T - 1, 0)[:, None], 1)
        levels_TK = np.where(finite_TK, levels_TK, last_T1)
    gaps_TK = np.diff(levels_TK, axis=1, prepend=0)
    order = SIGNED if gaps_TK.min() < 0 else FALLING
    if order == SIGNED:
        gaps_TK = _zigzag(gaps_TK)
    parameters_TO = _choose_parameters(gaps_TK)
    widths_TK = np.repeat(parameters_TO, _octaves(k)[1], axis=1)
    unary = _pack_unary(np.concatenate([_zigzag(_surprise(parameters_TO)).ravel(), (gaps_TK >> widths_TK).ravel()]))
    ids = _pack_ids(ids_TK.ravel(), vocab_size)
    compressed = _ZSTD.compress(ids_TK.astype("<u4").tobytes(), asbytes=True)
    fewer = len(compressed) + 4 < len(ids)
    parts = [
        bytes([order | PADDED * padded | COMPRESSED * fewer]),
        len(unary).to_bytes(4, "little"),
        len(compressed).to_bytes(4, "little") + compressed if fewer else ids,
        unary,
        pack_bits(gaps_TK.ravel(), widths_TK.ravel()),
    ]
    if padded:
        parts.append(pack_bits(count_T, np.full(tokens, k.bit_length())))
    return b"".join(parts)


def decode(data: bytes | memoryview, tokens: int, k: int, *, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids [T, K] as int32 and the log-probabilities [T, K] as float32 of what `encode` made of a sequence."""
    buffer = np.frombuffer(data, np.uint8)
    flags, unary_size = int(buffer[0]), int.from_bytes(buffer[1:5].tobytes(), "little")
    if flags & COMPRESSED:
        ids_end = 9 + int.from_bytes(buffer[5:9].tobytes(), "little")
        ids = np.frombuffer(_ZSTD.decompress(buffer[9:ids_end], tokens * k * 4), "<u4").astype(np.int32)
    else:
        ids_end = 5 + _ids_size(tokens * k, vocab_size)
        ids = _unpack_ids(buffer[5:ids_end], tokens * k, vocab_size)
    unary_end = ids_end + unary_size
    starts, sizes = _octaves(k)
    quotients = _unpack_unary(buffer[ids_end:unary_end])
    octaves = tokens * len(starts)
    parameters_TO = _from_surprise(_unzigzag(quotients[:octaves]).reshape(tokens, -1))
    widths = np.repeat(parameters_TO, sizes, axis=1).ravel()
    low_end = unary_end + (int(widths.sum()) + 7) // 8
    gaps = (quotients[octaves:] << widths) + unpack_bits(buffer[unary_end:low_end], widths)
    if flags & SIGNED:
        gaps = _unzigzag(gaps)
    levels_TK = np.cumsum(gaps.reshape(tokens, k), axis=1)
    logprobs_TK = (levels_TK * -STEP).astype(np.float32)
    if flags & PADDED:
        count_T = unpack_bits(buffer[low_end:], np.full(tokens, k.bit_length()))
        logprobs_TK[np.arange(k) >= count_T[:, None]] = -np.inf
    return ids.reshape(tokens, k), logprobs_TK


@cache
def _octaves(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each octave of K ranks begins, and its size: 0, 1-2, 3-6, 7-14, ..."""
    starts = np.array([2**octave - 1 for octave in range(k.bit_length())])
    return starts, np.diff(starts, append=k)


def _choose_parameters(gaps_TK: np.ndarray) -> np.ndarray:
    """The Rice parameter [T, O] with which the gaps of each octave take the fewest bits."""
    starts, sizes = _octaves(gaps_TK.shape[1])
    best_TO = np.add.reduceat(gaps_TK, starts, axis=1)
    parameters_TO = np.zeros_like(best_TO)
    for parameter in range(1, int(gaps_TK.max()).bit_length()):
        bits_TO = np.add.reduceat(gaps_TK >> parameter, starts, axis=1) + parameter * sizes
        better_TO = bits_TO < best_TO
        best_TO[better_TO], parameters_TO[better_TO] = bits_TO[better_TO], parameter
    return parameters_TO


def _surprise(parameters_TO: np.ndarray) -> np.ndarray:
    """How far each parameter is from the one expected: the octave's before less one."""
    expected_TO = np.maximum(parameters_TO[:, :-1] - 1, 0)
    return np.concatenate(
        [parameters_TO[:, :1] - FIRST_PARAMETER, parameters_TO[:, 1:] - expected_TO],
        axis=1,
    )


def _from_surprise(surprise_TO: np.ndarray) -> np.ndarray:
    parameters_TO = np.empty_like(surprise_TO)
    parameters_TO[:, 0] = surprise_TO[:, 0] + FIRST_PARAMETER
    for octave in range(1, surprise_TO.shape[1]):
        parameters_TO[:, octave] = surprise_TO[:, octave] + np.maximum(parameters_TO[:, octave - 1] - 1, 0)
    return parameters_TO


def _zigzag(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def _unzigzag(values: np.ndarray) -> np.ndarray:
    return np.where(values & 1, -(values + 1) // 2, values // 2)


@cache
def _id_layout(vocab_size: int) -> tuple[int, int, int]:
    """Low bits of an id, the base of the high parts, and the bits of GROUP high parts."""
    low = max(0, (vocab_size - 1).bit_length() - 8)
    base = -(-vocab_size >> low)
    return low, base, max(0, (base**GROUP - 1).bit_length())


def _ids_size(count: int, vocab_size: int) -> int:
    low, _, group_bits = _id_layout(vocab_size)
    return (-(-count // GROUP) * group_bits + 7) // 8 + (count * low + 7) // 8


def _pack_ids(ids: np.ndarray, vocab_size: int) -> bytes:
    low, base, group_bits = _id_layout(vocab_size)
    ids = ids.astype(np.int64)
    high = np.zeros(-(-len(ids) // GROUP) * GROUP, np.int64)
    high[: len(ids)] = ids >> low
    groups = high.reshape(-1, GROUP) @ base ** np.arange(GROUP)
    return pack_bits(groups, np.full(len(groups), group_bits)) + pack_bits(ids, np.full(len(ids), low))


def _unpack_ids(buffer: np.ndarray, count: int, vocab_size: int) -> np.ndarray:
    low, base, group_bits = _id_layout(vocab_size)
    groups = -(-count // GROUP)
    middle = (groups * group_bits + 7) // 8
    packed = unpack_bits(buffer[:middle], np.full(groups, group_bits))
    ids = np.empty((groups, GROUP), np.int32)
    for place in range(GROUP):
        packed, ids[:, place] = np.divmod(packed, base)
    ids = ids.ravel()[:count] << low
    return ids | unpack_bits(buffer[middle:], np.full(count, low)).astype(np.int32)


def _pack_unary(values: np.ndarray) -> bytes:
    """Each value as so many zeros and a one."""
    ends = np.cumsum(values + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack_unary(buffer: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(np.unpackbits(buffer, bitorder="little"))
    return np.diff(ends, prepend=-1) - 1


def pack_bits(values: np.ndarray, widths: np.ndarray) -> bytes:
    """The lowest `widths[i]` bits (32 at most) of every `values[i]`, one after another."""
    most = int(widths.max(initial=0))
    octets = np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)[:, : -(-most // 8)]
    bits = np.unpackbits(octets, axis=1, count=most, bitorder="little")
    if int(widths.min(initial=most)) < most:
        bits = bits[np.arange(most) < widths[:, None]]
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(buffer: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """What `pack_bits` packed, as int64."""
    ends = np.cumsum(widths)
    starts = ends - widths
    padded = np.concatenate([buffer, np.zeros(8, np.uint8)])
    # Eight bytes from each byte on: a value of 32 bits that begins anywhere in a byte lies in them.
    windows = np.lib.stride_tricks.as_strided(padded, (len(buffer) + 1, 8), (1, 1))
    words = windows[starts >> 3].view("<u8").ravel()
    masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    return (words >> (starts & 7).astype(np.uint64) & masks).astype(np.int64)
