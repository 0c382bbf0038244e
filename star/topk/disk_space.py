"""Estimates how much disk a stage will write, and refuses to start where the disk has less."""

import math
import shutil
from pathlib import Path

from star.errors import InputError
from star.units import format_bytes

LOGPROB_BITS = 5.3  # bits per log-probability when those of one token spread over 25 nats
MARGIN = 1.1  # for manifests, metrics and logs, which are written beside the data


def max_bytes_per_token(top_k: int, vocab_size: int) -> float:
    """Upper bound of what one token takes in a top-k store, for any output of a softmax."""
    return top_k * (math.log2(vocab_size) + LOGPROB_BITS) / 8 + 1


def require_disk_space(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Checks that the disk of `folder` has room for `needed_bytes`.

    Args:
        what: what will be written, the subject of the error's sentence.

    Raises:
        InputError: the disk has less free space.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes * MARGIN > free:
        raise InputError(
            f"{what} takes about {format_bytes(needed_bytes)} and {folder} has {format_bytes(free)} free: "
            "free some space, write to another disk, or split the work with --shard i/n"
        )
