"""Finds rows that repeat one kept before, exactly or nearly, across all sources, in memory that does not grow with the rows.

What was kept is in an SQLite file. A near duplicate needs the same target *and* a similar query, so a row is only compared with those of
its own target: directly while these are few, through MinHash bands (datasketch) once a target is shared by many, as refusals are.
"""

import hashlib
import sqlite3
from collections import Counter
from pathlib import Path

from star.data.rows import query_of, target_of

SIMILAR = 0.8  # Jaccard similarity of two queries' shingles from which they are the same question
SHINGLE = 5  # characters
BANDS, BAND_ROWS = 25, 5  # a pair at SIMILAR shares a band with probability 0.99995; those are compared exactly
HASH_SEED = 1
FEW = 16  # rows of one target that are compared directly
# Requests made from one template share bands by the thousand, so a row's work is bounded: of each band the latest rows count, and of
# these the ones that share most bands. A pair at SIMILAR shares two bands or more with probability 0.9993.
RECENT, LIKELY = 100, 32
CACHE_KIB = 65536  # of SQLite; the file may be any size

SCHEMA = """
create table if not exists rows (number integer primary key, id text, identity integer, exact integer, target integer, query text);
create unique index if not exists by_identity on rows (identity);
create unique index if not exists by_exact on rows (exact);
create index if not exists by_target on rows (target);
create table if not exists bands (band integer, number integer, primary key (band, number)) without rowid;
create table if not exists state (key text primary key, value text);
"""


class Duplicates:
    """Remembers kept rows and says which row repeats one of them. Without a file it is in memory alone."""

    def __init__(self, file: Path | None = None) -> None:
        self.database = sqlite3.connect(":memory:" if file is None else file, isolation_level=None)
        # A killed process leaves the last commit; only a power cut could lose more, and then the work starts anew.
        for setting in ("journal_mode=wal", "synchronous=off", f"cache_size=-{CACHE_KIB}"):
            self.database.execute(f"pragma {setting}")
        self.database.executescript(SCHEMA)
        self.database.execute("begin")
        self._minhash = None

    def admit(self, row: dict) -> tuple[str, str] | None:
        """Remembers the row and returns None, or returns (reason, detail) where it repeats another.

        Reasons: duplicate_id, duplicate (same query, tool names and target), near_duplicate.
        """
        query, target = query_of(row), target_of(row)
        names = sorted(tool["name"] for tool in row["tools"])
        identity, exact, target_hash = _hash(row["id"]), _hash("\0".join([query, target, *names])), _hash(target)
        known = self.database.execute(
            "select id, identity from rows where identity = ? or exact = ?", (identity, exact)
        )
        if found := known.fetchone():
            if found[1] == identity:
                return "duplicate_id", f"another row has the id {row['id']!r}"
            return "duplicate", f"same query, tools and target as {found[0]}"
        bands = self._bands_if_many(query, target, target_hash)
        shingles = shingles_of(query)
        for other, other_query in self._candidates(target_hash, bands):
            theirs = shingles_of(other_query)
            if min(len(shingles), len(theirs)) < SIMILAR * max(len(shingles), len(theirs)):
                continue
            if (alike := len(shingles & theirs) / len(shingles | theirs)) >= SIMILAR:
                return "near_duplicate", f"same target as {other}, and the queries are {alike:.2f} alike"
        added = self.database.execute(
            "insert into rows (id, identity, exact, target, query) values (?, ?, ?, ?, ?)",
            (row["id"], identity, exact, target_hash, query),
        )
        self._insert_bands(bands, added.lastrowid)
        return None

    def commit(self, state: str) -> None:
        """Keeps what was admitted until now, together with `state`."""
        self.database.execute("insert or replace into state values ('state', ?)", (state,))
        self.database.execute("commit")
        self.database.execute("begin")

    def committed(self) -> str | None:
        """The state of the last commit."""
        found = self.database.execute("select value from state where key = 'state'").fetchone()
        return found and found[0]

    def close(self) -> None:
        self.database.close()

    def _bands_if_many(self, query: str, target: str, target_hash: int) -> list[int]:
        """The row's bands where its target is shared by many; when it becomes many, the bands of those before are written too."""
        few = self.database.execute(
            "select number, query from rows where target = ? order by number limit ?", (target_hash, FEW + 1)
        ).fetchall()
        if len(few) < FEW:
            return []
        if len(few) == FEW:
            for number, theirs in few:
                self._insert_bands(self._bands(theirs, target), number)
        return self._bands(query, target)

    def _bands(self, query: str, target: str) -> list[int]:
        from datasketch import MinHash  # here: it takes a second to import

        if self._minhash is None:
            self._minhash = MinHash(num_perm=BANDS * BAND_ROWS, seed=HASH_SEED)
        minhash = self._minhash.copy()
        minhash.update_batch([shingle.encode() for shingle in shingles_of(query)])
        values = minhash.hashvalues
        # The band carries the target, so rows with different targets never meet.
        return [
            _hash(values[start : start + BAND_ROWS].tobytes() + f"{start}\n{target}".encode())
            for start in range(0, BANDS * BAND_ROWS, BAND_ROWS)
        ]

    def _insert_bands(self, bands: list[int], number: int | None) -> None:
        self.database.executemany("insert or ignore into bands values (?, ?)", ((band, number) for band in bands))

    def _candidates(self, target_hash: int, bands: list[int]) -> list[tuple[str, str]]:
        if not bands:
            return self.database.execute("select id, query from rows where target = ?", (target_hash,)).fetchall()
        shared: Counter = Counter()
        for band in bands:
            recent = "select number from bands where band = ? order by number desc limit ?"
            shared.update(number for (number,) in self.database.execute(recent, (band, RECENT)))
        likely = sorted(
            (number for number, count in shared.items() if count > 1), key=lambda number: (-shared[number], number)
        )
        marks = ",".join("?" * len(likely[:LIKELY]))
        found = f"select id, query from rows where number in ({marks}) order by number"
        return self.database.execute(found, likely[:LIKELY]).fetchall()


def shingles_of(text: str) -> set[str]:
    """All runs of SHINGLE characters; a shorter text is its own."""
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def _hash(content: str | bytes) -> int:
    """64 bits, signed as SQLite has them."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)
