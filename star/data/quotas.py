"""Selects a wanted number of rows of every kind, by a hash of their content, and counts the rows that are missing."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from star.data.rows import Reject
from star.data.splits import row_rank
from star.errors import InputError


def wanted_rows(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns how many of `total` rows each kind should have.

    Raises:
        InputError: a share is negative, or all are 0.
    """
    whole = sum(shares.values())
    if whole <= 0 or min(shares.values()) < 0:
        raise InputError("the shares of the quotas must be 0 or more, and one of them above 0")
    return {kind: round(total * share / whole) for kind, share in shares.items()}


def within_quotas(
    rows: Iterable[dict], again: Iterable[dict], *, wanted: Mapping[str, int], seed: int
) -> Iterator[dict | Reject]:
    """Yields every row of `again`, or a Reject (`over_quota`, `no_quota`) for it.

    Args:
        rows, again: the same rows twice, for two passes over a file. Memory grows with the wanted rows, not with the given ones.
    """
    lowest: dict[str, list[int]] = {kind: [] for kind in wanted}
    # Other ranks than those of a split with this seed, which would hold out these rows more often than those of other sets.
    ranked = f"quota {seed}"
    for row in rows:
        if (heap := lowest.get(row["kind"])) is None or not wanted[row["kind"]]:
            continue
        # A heap of negated ranks has the highest rank first: it is replaced when a lower one comes.
        if len(heap) < wanted[row["kind"]]:
            heapq.heappush(heap, -row_rank(row, ranked))
        else:
            heapq.heappushpop(heap, -row_rank(row, ranked))
    # The highest rank that is kept of each kind; the second pass compares with it.
    edge = {kind: -heap[0] for kind, heap in lowest.items() if heap}
    taken: Counter = Counter()
    for row in again:
        kind = row["kind"]
        if kind not in wanted:
            yield Reject(row["id"], "no_quota", f"no rows of the kind {kind} are wanted", row)
        # Equal rows share a rank, so the edge alone could let too many pass.
        elif kind not in edge or row_rank(row, ranked) > edge[kind] or taken[kind] == wanted[kind]:
            yield Reject(row["id"], "over_quota", f"{wanted[kind]} rows of the kind {kind} are wanted", row)
        else:
            taken[kind] += 1
            yield row


def shortfalls(kinds: Mapping[str, int], wanted: Mapping[str, int]) -> Counter:
    """Returns how many rows are missing of each kind that has too few."""
    return Counter({kind: count - kinds.get(kind, 0) for kind, count in wanted.items() if kinds.get(kind, 0) < count})
