"""What work will take, said before it starts, and refused where the disk is too small for it."""

import math
import shutil
from pathlib import Path

from star.errors import InputError
from star.number_format import format_bytes

LOGPROB_BITS = 5.3  # of one log-probability, when those of a row spread over 25 nats
SPARE = 1.1  # of the disk, for what else is written beside


def bytes_a_token(top_k: int, vocab_size: int) -> float:
    """Bytes a token of the store takes at most, but for distributions that no softmax makes."""
    return top_k * (math.log2(vocab_size) + LOGPROB_BITS) / 8 + 1


def require_space(folder: Path, needed: int, *, what: str) -> None:
    """Raises InputError when the disk of `folder` has no room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed * SPARE > free:
        raise InputError(
            f"{what} takes about {format_bytes(needed)} and {folder} has {format_bytes(free)} free: free some, write to another "
            "disk, or split the work with --shard i/n"
        )
