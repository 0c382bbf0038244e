"""The split into training and held-out rows: by the content of a row, never by its place in the file.

Rows are ranked by a hash of (seed, query, target) and the lowest ones of each kind are held out. So the order of the
rows does not matter, and adding rows moves none but those at the edge: the ranking of the others is what it was.
"""

import hashlib
from collections import defaultdict

from star.data.rows import query_of, target_of
from star.errors import InputError


def split(rows: list[dict], *, heldout: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Returns (train, held-out rows), both in the order given, `heldout` of them held out.

    Every kind is held out in proportion to its rows. Rows with the same query and target stay on one side.

    Raises:
        InputError: nothing would be left to train on, or repeated rows leave no split of that size.
    """
    if not 0 <= heldout < len(rows):
        raise InputError(f"cannot hold out {heldout} of {len(rows)} rows and train on the rest: hold out fewer")
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        groups[_rank(row, seed)].append(row)
    quota = _quotas(rows, heldout)
    chosen: set[str] = set()
    for rank in sorted(groups):
        kind = min(row["kind"] for row in groups[rank])
        if len(groups[rank]) <= quota[kind]:
            quota[kind] -= len(groups[rank])
            chosen.add(rank)
    if any(quota.values()):
        raise InputError(f"cannot hold out {heldout} of {len(rows)} rows: too many repeat each other; clean them first")
    train: list[dict] = []
    held: list[dict] = []
    for row in rows:
        (held if _rank(row, seed) in chosen else train).append(row)
    return train, held


def _rank(row: dict, seed: int) -> str:
    text = f"{seed}\n{query_of(row)}\n{target_of(row)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _quotas(rows: list[dict], heldout: int) -> dict[str, int]:
    """How many of each kind to hold out: its share rounded down, and what is left to the largest remainders."""
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        sizes[row["kind"]] += 1
    quota = {kind: heldout * size // len(rows) for kind, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda kind: (-(heldout * sizes[kind] % len(rows)), kind))
    for kind in by_remainder[: heldout - sum(quota.values())]:
        quota[kind] += 1
    return quota
