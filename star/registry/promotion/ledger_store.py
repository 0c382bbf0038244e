"""Stores the ledger's entries in SQL or S3: each entry is created once and never changed.

An entry has a folder, a name and a text. After two promotions of the model `star` the store holds

    star/5b0c.../attempts     2026-03-01T10:00:00.000000+00:00-6f1c...    {"action": "promote", "version": 1, ...}
    star/5b0c.../attempts     2026-03-02T09:30:00.000000+00:00-a207...    {"action": "promote", "version": 3, ...}
    star/5b0c.../decisions    00000001                                    {"seq": 1, "aliases": {"champion": 1}, ...}
    star/5b0c.../decisions    00000002                                    {"seq": 2, "aliases": {"champion": 3, ...}, ...}

as rows of the table `star_records` in the tracking database, or as objects `<folder>/<name>` below STAR_REGISTRY. What
the texts mean is ledger.py's business.

`create` is a conditional write: of several processes that create the same entry exactly one succeeds. A database has it
as a primary key, S3 as `If-None-Match: *`. MLflow has none (the last writer of an alias wins), so it cannot decide
promotions itself.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Protocol

from star.folders.s3_client import CONNECTIONS, s3_errors
from star.registry.location import registry_s3_client, split_s3
from star.registry.promotion.records import RECORD_CHARACTERS
from star.tracking.server import shown_uri

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from sqlalchemy import Engine

READERS = CONNECTIONS  # requests at a time
LONGEST = RECORD_CHARACTERS + 1  # characters that are read of an entry: enough to see that a longer one is no record
RANGE_PAGE = 200  # names that S3 is asked for at a time where the range has an end: those behind it are for nothing
# Dialect -> the column `name` in the order of its bytes, which is that of S3 and of Python.
BY_BYTES = {"sqlite": "name", "postgresql": 'name COLLATE "C"'}
LOCK_SECONDS = 60  # how long to wait for a sqlite file, which has one writer at a time


class LedgerStore(Protocol):
    """What ledger.py needs of a store."""

    @property
    def place(self) -> str:
        """Where the entries are, to be shown and to tell two stores apart; without a password."""
        ...

    def create(self, folder: str, name: str, text: str) -> bool:
        """Writes an entry; False when there is one of that name, which stays as it is."""
        ...

    def read(self, folder: str, name: str) -> str | None:
        """The text of an entry, or None when it is missing."""
        ...

    def names(self, folder: str, *, after: str = "", until: str = "") -> list[str]:
        """The names of a folder's entries, sorted: those that sort after a name, up to and with another one.

        Entries outside these bounds cost nothing, however many there are.
        """
        ...

    def read_many(self, folder: str, names: Sequence[str]) -> list[str | None]:
        """The texts of these entries, None for one that is missing."""
        ...

    def delete(self, folder: str, name: str, *, versions: bool) -> None:
        """Removes an entry: a throwaway one (conditional_writes.py), or one that was copied before (repair.py).

        Args:
            versions: whether also what the store keeps of it.
        """
        ...


class SqlLedgerStore:
    """Entries as rows of the table `star_records` in the tracking database."""

    def __init__(self, uri: str) -> None:
        self.engine = _engine(uri)
        self.place = shown_uri(uri)

    def create(self, folder: str, name: str, text: str) -> bool:
        """Inserts the entry; False when the table has one of that name."""
        from sqlalchemy import text as sql
        from sqlalchemy.exc import IntegrityError

        statement = sql("INSERT INTO star_records (folder, name, content) VALUES (:folder, :name, :content)")
        try:
            with self.engine.begin() as connection:
                connection.execute(statement, {"folder": folder, "name": name, "content": text})
        except IntegrityError:  # the primary key: another process created it first
            return False
        return True

    def read(self, folder: str, name: str) -> str | None:
        """The text of an entry, or None when it is missing."""
        return self.read_many(folder, [name])[0]

    def names(self, folder: str, *, after: str = "", until: str = "") -> list[str]:
        """The names of a folder's entries, sorted: those that sort after a name, up to and with another one."""
        from sqlalchemy import text as sql

        statement = "SELECT name FROM star_records WHERE folder = :folder"
        if column := BY_BYTES.get(self.engine.dialect.name):
            statement += f" AND {column} > :after" if after else ""
            statement += f" AND {column} <= :until" if until else ""
        values = {"folder": folder, **({"after": after} if after else {}), **({"until": until} if until else {})}
        with self.engine.connect() as connection:
            found = connection.execute(sql(statement), values).scalars().all()
        # Compared here too, because another database sorts by the rules of a language.
        return _between(found, after=after, until=until)

    def read_many(self, folder: str, names: Sequence[str]) -> list[str | None]:
        """The texts of these entries, None for one that is missing."""
        from sqlalchemy import bindparam
        from sqlalchemy import text as sql

        statement = sql(
            "SELECT name, SUBSTR(content, 1, :longest) AS content FROM star_records WHERE folder = :folder AND name IN :names"
        ).bindparams(bindparam("names", expanding=True))
        values = {"folder": folder, "names": list(names), "longest": LONGEST}
        with self.engine.connect() as connection:
            texts = {row.name: row.content for row in connection.execute(statement, values)}
        return [texts.get(name) for name in names]

    def delete(self, folder: str, name: str, *, versions: bool) -> None:
        """Deletes the entry's row."""
        from sqlalchemy import text as sql

        statement = sql("DELETE FROM star_records WHERE folder = :folder AND name = :name")
        with self.engine.begin() as connection:
            connection.execute(statement, {"folder": folder, "name": name})


class S3LedgerStore:
    """Entries as objects `<prefix>/<folder>/<name>` of a bucket."""

    def __init__(self, uri: str) -> None:
        self.bucket, self.prefix = split_s3(uri)
        self.place = f"{uri} at {registry_s3_client().meta.endpoint_url}"

    def create(self, folder: str, name: str, text: str) -> bool:
        """Puts the object on the condition that none of that name exists; False when one does."""
        from botocore.exceptions import ClientError

        key = self._key(folder, name)
        try:
            registry_s3_client().put_object(Bucket=self.bucket, Key=key, Body=text.encode(), IfNoneMatch="*")
        except ClientError as error:
            if _http_status(error) in (409, 412):  # another process created it, or is creating it
                return False
            raise
        return True

    def read(self, folder: str, name: str) -> str | None:
        """The text of an object, or None when it is missing."""
        from botocore.exceptions import ClientError

        with s3_errors(self.place):
            try:
                answer = registry_s3_client().get_object(Bucket=self.bucket, Key=self._key(folder, name))
                # Whoever put it there may have put anything. What is no record is named by who reads it.
                return answer["Body"].read(4 * LONGEST).decode(errors="replace")
            except ClientError as error:
                if _http_status(error) == 404:
                    return None
                raise

    def names(self, folder: str, *, after: str = "", until: str = "") -> list[str]:
        """The names of a folder's objects, sorted: those that sort after a name, up to and with another one."""
        prefix, found = self._key(folder, ""), []
        # Of characters, not of parts of a path: S3 compares characters.
        shared = commonprefix([after, until]) if until else ""  # noqa: RUF071
        query = {"Bucket": self.bucket, "Prefix": prefix + shared}
        if after:
            query["StartAfter"] = prefix + after
        size = {"PageSize": RANGE_PAGE} if until else {}
        with s3_errors(self.place):
            # S3 lists a folder in pages, in the order of the names. The first page alone would miss the newest decision.
            for page in registry_s3_client().get_paginator("list_objects_v2").paginate(**query, PaginationConfig=size):
                found += [entry["Key"].removeprefix(prefix) for entry in page.get("Contents", ())]
                if until and found and found[-1] > until:
                    break
        return _between(found, after=after, until=until)

    def read_many(self, folder: str, names: Sequence[str]) -> list[str | None]:
        """The texts of these objects, several requests at a time; None for one that is missing."""
        if len(names) < 2:
            return [self.read(folder, name) for name in names]
        with ThreadPoolExecutor(READERS) as threads:
            return list(threads.map(lambda name: self.read(folder, name), names))

    def delete(self, folder: str, name: str, *, versions: bool) -> None:
        """Deletes the object, and with `versions` what a versioned bucket keeps of it."""
        from botocore.exceptions import ClientError

        client, key = registry_s3_client(), self._key(folder, name)
        client.delete_object(Bucket=self.bucket, Key=key)
        if not versions:
            return
        with suppress(ClientError):  # some stores have no versions, and no request that lists them
            for page in client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=key):
                for entry in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    client.delete_object(Bucket=self.bucket, Key=entry["Key"], VersionId=entry["VersionId"])

    def _key(self, folder: str, name: str) -> str:
        return f"{self.prefix}{folder}/{name}"


def _between(names: Iterable[str], *, after: str, until: str) -> list[str]:
    return sorted(name for name in names if name > after and (not until or name <= until))


def _http_status(error: "ClientError") -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


@lru_cache(maxsize=4)
def _engine(uri: str) -> "Engine":
    """Connects to the tracking database and creates the table where it is missing."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy import text as sql
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.pool import NullPool

    arguments = {"timeout": LOCK_SECONDS} if uri.startswith("sqlite") else {}
    # No pool: a connection that a forked process inherits would be used by both.
    engine = create_engine(uri, poolclass=NullPool, connect_args=arguments)
    # In the order of their bytes, PostgreSQL's index finds the names of a range. Without, it looks at all of the folder.
    order = ' COLLATE "C"' if engine.dialect.name == "postgresql" else ""
    columns = f"folder VARCHAR(300) NOT NULL, name VARCHAR(100){order} NOT NULL, content TEXT NOT NULL"
    try:
        with engine.begin() as connection:
            connection.execute(sql(f"CREATE TABLE IF NOT EXISTS star_records ({columns}, PRIMARY KEY (folder, name))"))
    except DatabaseError:  # PostgreSQL answers the slower of two processes that create it with an error
        if not inspect(engine).has_table("star_records"):
            raise
    return engine
