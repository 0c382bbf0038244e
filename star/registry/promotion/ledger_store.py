"""Stores the ledger's entries in SQL or S3: each entry is created once and never changed.

An entry has a folder, a name and a text. After two promotions of the model `star` the store holds

    star/attempts     2026-03-01T10:00:00.000000+00:00-6f1c...    {"action": "promote", "version": 1, "over": 0, ...}
    star/attempts     2026-03-02T09:30:00.000000+00:00-a207...    {"action": "promote", "version": 3, "over": 1, ...}
    star/decisions    00000001                                    {"seq": 1, "aliases": {"champion": 1}, ...}
    star/decisions    00000002                                    {"seq": 2, "aliases": {"champion": 3, ...}, ...}

as rows of the table `star_records` in the tracking database, or as objects `<folder>/<name>` below STAR_REGISTRY. What
the texts mean is ledger.py's business.

`create` is a conditional write: of several processes that create the same entry exactly one succeeds. A database has it
as a primary key, S3 as `If-None-Match: *`. MLflow has none (the last writer of an alias wins), so it cannot decide
promotions itself.
"""

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from star.registry.location import registry_s3_client, split_s3
from star.tracking.server import shown_uri

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from sqlalchemy import Engine

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

    def read_last(self, folder: str) -> str | None:
        """The text of the entry whose name sorts last, or None in an empty folder."""
        ...

    def read_all(self, folder: str) -> list[str]:
        """The texts of a folder's entries in the order of their names."""
        ...

    def delete(self, folder: str, name: str) -> None:
        """Removes an entry. Only throwaway entries are removed (conditional_writes.py); the ledger itself only grows."""
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
        statement = "SELECT content FROM star_records WHERE folder = :folder AND name = :name"
        return self._query(statement, folder=folder, name=name)

    def read_last(self, folder: str) -> str | None:
        """The text of the entry whose name sorts last, or None in an empty folder."""
        statement = "SELECT content FROM star_records WHERE folder = :folder ORDER BY name DESC LIMIT 1"
        return self._query(statement, folder=folder)

    def read_all(self, folder: str) -> list[str]:
        """The texts of a folder's entries in the order of their names."""
        from sqlalchemy import text as sql

        statement = sql("SELECT name, content FROM star_records WHERE folder = :folder")
        with self.engine.connect() as connection:
            rows = connection.execute(statement, {"folder": folder}).all()
        return [content for _, content in sorted((name, content) for name, content in rows)]

    def delete(self, folder: str, name: str) -> None:
        """Deletes the entry's row."""
        from sqlalchemy import text as sql

        statement = sql("DELETE FROM star_records WHERE folder = :folder AND name = :name")
        with self.engine.begin() as connection:
            connection.execute(statement, {"folder": folder, "name": name})

    def _query(self, statement: str, **values: str) -> str | None:
        from sqlalchemy import text as sql

        with self.engine.connect() as connection:
            return connection.execute(sql(statement), values).scalar()


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

        try:
            answer = registry_s3_client().get_object(Bucket=self.bucket, Key=self._key(folder, name))
            return answer["Body"].read().decode()
        except ClientError as error:
            if _http_status(error) == 404:
                return None
            raise

    def read_last(self, folder: str) -> str | None:
        """The text of the object whose name sorts last, or None in an empty folder."""
        names = self._names(folder)
        return self.read(folder, names[-1]) if names else None

    def read_all(self, folder: str) -> list[str]:
        """The texts of a folder's objects in the order of their names."""
        return [self.read(folder, name) or "" for name in self._names(folder)]

    def delete(self, folder: str, name: str) -> None:
        """Deletes the object, and what a versioned bucket keeps of it."""
        from botocore.exceptions import ClientError

        client, key = registry_s3_client(), self._key(folder, name)
        client.delete_object(Bucket=self.bucket, Key=key)
        with suppress(ClientError):  # some stores have no versions, and no request that lists them
            for page in client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=key):
                for entry in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    client.delete_object(Bucket=self.bucket, Key=entry["Key"], VersionId=entry["VersionId"])

    def _names(self, folder: str) -> list[str]:
        prefix = self._key(folder, "")
        # S3 lists a folder in pages, in the order of the names. The first page alone would miss the newest decision.
        pages = registry_s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", ()))

    def _key(self, folder: str, name: str) -> str:
        return f"{self.prefix}{folder}/{name}"


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
    columns = "folder VARCHAR(300) NOT NULL, name VARCHAR(100) NOT NULL, content TEXT NOT NULL"
    try:
        with engine.begin() as connection:
            connection.execute(sql(f"CREATE TABLE IF NOT EXISTS star_records ({columns}, PRIMARY KEY (folder, name))"))
    except DatabaseError:  # PostgreSQL answers the slower of two processes that create it with an error
        if not inspect(engine).has_table("star_records"):
            raise
    return engine
