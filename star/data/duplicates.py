"""Finds rows that repeat an earlier one exactly or nearly, across all sources. Memory does not grow with the number of rows.

The rows that were kept are in an SQLite file. A near duplicate needs the same target *and* a similar query, so a row is only compared with
rows of its own target: with each of them while they are few, and through MinHash bands (datasketch) once many rows share the target, as
refusals do.
"""

import hashlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from star.data.rows import query_of, target_of
from star.limits import COMPARED_CHARACTERS

if TYPE_CHECKING:
    from datasketch import MinHash

MIN_SIMILARITY = 0.8  # Jaccard similarity of two queries' shingles from which on they count as the same question
SHINGLE_LENGTH = 5  # characters
BANDS, BAND_ROWS = 25, 5  # a pair at MIN_SIMILARITY shares a band with probability 0.99995; those are compared exactly
HASH_SEED = 1
MAX_COMPARED_DIRECTLY = 16  # with more rows of one target, candidates are looked up by bands
# Thousands of requests that were made from one template share a band, so the work per row is bounded: only the latest rows of each
# band are looked at, and of these only those that share most bands. A pair at MIN_SIMILARITY shares two bands or more with
# probability 0.9993.
MAX_ROWS_PER_BAND, MAX_CANDIDATES = 100, 32
CACHE_KIB = 65536  # of SQLite's page cache; the file may be larger

SCHEMA = """
create table if not exists rows (number integer primary key, id text, identity integer, exact integer, target integer, query text);
create unique index if not exists by_identity on rows (identity);
create unique index if not exists by_exact on rows (exact);
create index if not exists by_target on rows (target);
create table if not exists bands (band integer, number integer, primary key (band, number)) without rowid;
create table if not exists state (key text primary key, value text);
"""


class Duplicates:
    """An index of kept rows, in an SQLite file or, without a file, in memory."""

    def __init__(self, file: Path | None = None) -> None:
        # Without Python's own transactions: rows and state must be committed together, by `commit` alone.
        self.database = sqlite3.connect(":memory:" if file is None else file, isolation_level=None)
        # After a kill the last commit is there. Only a power cut can lose it, and then the work starts from the beginning.
        for setting in ("journal_mode=wal", "synchronous=off", f"cache_size=-{CACHE_KIB}"):
            self.database.execute(f"pragma {setting}")
        self.database.executescript(SCHEMA)
        self.database.execute("begin")
        self._empty_minhash: MinHash | None = None

    def check_and_add(self, row: dict) -> tuple[str, str] | None:
        """Adds the row and returns None, or returns (reason, detail) where it repeats an earlier one.

        Reasons: duplicate_id, duplicate (same query, tool names and target), near_duplicate.
        """
        query, target = query_of(row), target_of(row)
        names = sorted(tool["name"] for tool in row["tools"])
        # Hashes of 64 bits take less room than the texts, and a collision among a million rows has a chance of about 1 in 40 million.
        identity, exact, target_hash = _hash(row["id"]), _hash("\0".join([query, target, *names])), _hash(target)
        known = self.database.execute(
            "select id, identity from rows where identity = ? or exact = ?", (identity, exact)
        )
        if found := known.fetchone():
            if found[1] == identity:
                return "duplicate_id", f"another row has the id {row['id']!r}"
            return "duplicate", f"same query, tools and target as {found[0]}"
        bands = self._bands_when_needed(query, target, target_hash)
        shingles = shingles_of(query)
        for other, other_query in self._candidates(target_hash, bands):
            theirs = shingles_of(other_query)
            # The similarity is at most the ratio of the two sizes, so the sets need not be compared.
            if min(len(shingles), len(theirs)) < MIN_SIMILARITY * max(len(shingles), len(theirs)):
                continue
            if (similarity := len(shingles & theirs) / len(shingles | theirs)) >= MIN_SIMILARITY:
                return "near_duplicate", f"same target as {other}, and the queries are {similarity:.2f} alike"
        added = self.database.execute(
            "insert into rows (id, identity, exact, target, query) values (?, ?, ?, ?, ?)",
            (row["id"], identity, exact, target_hash, query),
        )
        self._insert_bands(bands, added.lastrowid)
        return None

    def commit(self, state: str) -> None:
        """Commits the rows that were added until now, together with `state`."""
        self.database.execute("insert or replace into state values ('state', ?)", (state,))
        self.database.execute("commit")
        self.database.execute("begin")

    def committed(self) -> str | None:
        """Returns the state of the last commit, or None."""
        found = self.database.execute("select value from state where key = 'state'").fetchone()
        return found and found[0]

    def close(self) -> None:
        """Closes the file; what was not committed is lost."""
        self.database.close()

    def _bands_when_needed(self, query: str, target: str, target_hash: int) -> list[int]:
        """Returns the row's bands once many rows share its target, else none. When they become many, the earlier rows' bands are added."""
        same_target = self.database.execute(
            "select number, query from rows where target = ? order by number limit ?",
            (target_hash, MAX_COMPARED_DIRECTLY + 1),
        ).fetchall()
        if len(same_target) < MAX_COMPARED_DIRECTLY:
            return []
        # This row is the first that needs bands, so those of the earlier rows are not there yet.
        if len(same_target) == MAX_COMPARED_DIRECTLY:
            for number, theirs in same_target:
                self._insert_bands(self._bands(theirs, target), number)
        return self._bands(query, target)

    def _bands(self, query: str, target: str) -> list[int]:
        from datasketch import MinHash  # imported here because it takes a second

        if self._empty_minhash is None:
            self._empty_minhash = MinHash(num_perm=BANDS * BAND_ROWS, seed=HASH_SEED)
        minhash = self._empty_minhash.copy()
        minhash.update_batch([shingle.encode() for shingle in shingles_of(query)])
        values = minhash.hashvalues
        # The target is part of the band, so rows with different targets are never candidates.
        return [
            _hash(values[start : start + BAND_ROWS].tobytes() + f"{start}\n{target}".encode())
            for start in range(0, BANDS * BAND_ROWS, BAND_ROWS)
        ]

    def _insert_bands(self, bands: list[int], number: int | None) -> None:
        self.database.executemany("insert or ignore into bands values (?, ?)", ((band, number) for band in bands))

    def _candidates(self, target_hash: int, bands: list[int]) -> list[tuple[str, str]]:
        if not bands:
            return self.database.execute("select id, query from rows where target = ?", (target_hash,)).fetchall()
        # A pair of similar queries shares several bands; one shared band is often chance.
        shared: Counter = Counter()
        for band in bands:
            recent = "select number from bands where band = ? order by number desc limit ?"
            shared.update(number for (number,) in self.database.execute(recent, (band, MAX_ROWS_PER_BAND)))
        likely = sorted(
            (number for number, count in shared.items() if count > 1), key=lambda number: (-shared[number], number)
        )
        marks = ",".join("?" * len(likely[:MAX_CANDIDATES]))
        found = f"select id, query from rows where number in ({marks}) order by number"  # noqa: S608 - only question marks
        return self.database.execute(found, likely[:MAX_CANDIDATES]).fetchall()


def shingles_of(text: str) -> set[str]:
    """Returns all substrings of SHINGLE_LENGTH characters; of a shorter text the text itself. Of a very long one its beginning counts."""
    text = text[:COMPARED_CHARACTERS]
    return {text[start : start + SHINGLE_LENGTH] for start in range(max(1, len(text) - SHINGLE_LENGTH + 1))}


def _hash(content: str | bytes) -> int:
    """Returns a hash of 64 bits, signed because SQLite's integers are."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)
