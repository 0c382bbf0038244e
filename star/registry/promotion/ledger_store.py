"""Where decisions about a registry are written down: a place in which each record is made once and never changed.

All that is asked of the place is a conditional write: of several writers of one name exactly one succeeds. An object
store has it as `If-None-Match: *`, a database as a primary key. MLflow itself has none: its aliases go to whoever
writes last, so they only show what was decided here.
"""

import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from star.errors import InputError
from star.folders import s3
from star.tracking.server import insist, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Engine

PLACE_TAG = "star.records"  # of the registered model: two places would be two truths
DATABASE = "tracking database"
LOCK_SECONDS = 60  # a sqlite file has one writer at a time


class SqlRecords:
    """Records as rows of the table `star_records` in the tracking database."""

    def __init__(self, uri: str) -> None:
        self.engine = _engine(uri)

    def create(self, folder: str, name: str, text: str) -> bool:
        """Writes a record; False when there is one of that name, which stays as it is."""
        from sqlalchemy import text as sql
        from sqlalchemy.exc import IntegrityError

        statement = sql("INSERT INTO star_records (folder, name, content) VALUES (:folder, :name, :content)")
        try:
            with self.engine.begin() as connection:
                connection.execute(statement, {"folder": folder, "name": name, "content": text})
        except IntegrityError:
            return False
        return True

    def read(self, folder: str, name: str) -> str | None:
        return self._query("SELECT content FROM star_records WHERE folder = :folder AND name = :name", folder, name)

    def last(self, folder: str) -> str | None:
        """The record whose name sorts last."""
        statement = "SELECT content FROM star_records WHERE folder = :folder ORDER BY name DESC LIMIT 1"
        return self._query(statement, folder)

    def all(self, folder: str) -> list[str]:
        """All records of a folder in the order of their names."""
        from sqlalchemy import text as sql

        with self.engine.connect() as connection:
            rows = connection.execute(
                sql("SELECT name, content FROM star_records WHERE folder = :folder"), {"folder": folder}
            ).all()
        return [content for _, content in sorted(rows)]

    def _query(self, statement: str, folder: str, name: str = "") -> str | None:
        from sqlalchemy import text as sql

        values = {"folder": folder, "name": name} if ":name" in statement else {"folder": folder}
        with self.engine.connect() as connection:
            return connection.execute(sql(statement), values).scalar()


class S3Records:
    """Records as objects `<prefix>/<folder>/<name>`."""

    def __init__(self, uri: str) -> None:
        self.bucket, self.prefix = split_s3(uri)

    def create(self, folder: str, name: str, text: str) -> bool:
        """Writes a record; False when there is one of that name, which stays as it is."""
        from botocore.exceptions import ClientError

        try:
            s3_client().put_object(Bucket=self.bucket, Key=self._key(folder, name), Body=text.encode(), IfNoneMatch="*")
        except ClientError as error:
            if _status(error) in (409, 412):  # somebody wrote it, or is writing it
                return False
            raise
        return True

    def read(self, folder: str, name: str) -> str | None:
        from botocore.exceptions import ClientError

        try:
            return s3_client().get_object(Bucket=self.bucket, Key=self._key(folder, name))["Body"].read().decode()
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise

    def last(self, folder: str) -> str | None:
        """The record whose name sorts last."""
        names = self._names(folder)
        return self.read(folder, names[-1]) if names else None

    def all(self, folder: str) -> list[str]:
        """All records of a folder in the order of their names."""
        return [self.read(folder, name) or "" for name in self._names(folder)]

    def _names(self, folder: str) -> list[str]:
        prefix = self._key(folder, "")
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", ()))

    def _key(self, folder: str, name: str) -> str:
        return f"{self.prefix}{folder}/{name}"


Records = SqlRecords | S3Records


def records_of(name: str, client: "MlflowClient") -> Records:
    """The place of a model's records: the one it has had from its first decision on, else that of the environment.

    STAR_REGISTRY names it (`s3://bucket/prefix`); without it a tracking database keeps the records itself.

    Raises:
        InputError: there is no such place, or it is not the one that the model's records are in.
    """
    said = client.get_registered_model(name).tags.get(PLACE_TAG)
    wanted = place()
    if said is None:
        if wanted is None:
            raise InputError(
                f"promotions of {name} need a place to be decided in, which the MLflow server at "
                f"{shown_uri(tracking_uri())} is not: set STAR_REGISTRY=s3://BUCKET/PREFIX (see docs/mlflow.md)"
            )
        insist(lambda: client.set_registered_model_tag(name, PLACE_TAG, wanted))
        said = wanted
    if os.environ.get("STAR_REGISTRY") and wanted != said:
        raise InputError(f"the decisions about {name} are in {said}, not in STAR_REGISTRY={wanted}: correct it")
    if said != DATABASE:
        return S3Records(said)
    if tracking_uri().startswith("http"):
        raise InputError(
            f"the decisions about {name} are in the tracking database: set MLFLOW_TRACKING_URI to the database's URL"
        )
    return SqlRecords(tracking_uri())


def place() -> str | None:
    """Where this environment keeps records: STAR_REGISTRY, else the tracking database; None behind a server without either.

    Raises:
        InputError: STAR_REGISTRY is not the address of a bucket.
    """
    if given := os.environ.get("STAR_REGISTRY"):
        split_s3(given)
        return given.rstrip("/")
    return None if tracking_uri().startswith("http") else DATABASE


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key prefix of `s3://bucket/prefix`; the prefix ends with a slash or is empty.

    Raises:
        InputError: it is no such address.
    """
    found = re.fullmatch(r"s3://([\w.-]+)(?:/(.*?))?/*", uri)
    if not found:
        raise InputError(f"STAR_REGISTRY must be s3://BUCKET/PREFIX, not {shown_uri(uri)}")
    return found[1], f"{found[2]}/" if found[2] else ""


def s3_client():
    """A client for the bucket, at MLFLOW_S3_ENDPOINT_URL or AWS_ENDPOINT_URL where the store is not Amazon's."""
    return s3.s3_client(os.environ.get("MLFLOW_S3_ENDPOINT_URL"))


def _status(error) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


@lru_cache(maxsize=4)
def _engine(uri: str) -> "Engine":
    from sqlalchemy import create_engine, inspect
    from sqlalchemy import text as sql
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.pool import NullPool

    arguments = {"timeout": LOCK_SECONDS} if uri.startswith("sqlite") else {}
    engine = create_engine(uri, poolclass=NullPool, connect_args=arguments)
    columns = "folder VARCHAR(300) NOT NULL, name VARCHAR(100) NOT NULL, content TEXT NOT NULL"
    try:
        with engine.begin() as connection:
            connection.execute(sql(f"CREATE TABLE IF NOT EXISTS star_records ({columns}, PRIMARY KEY (folder, name))"))
    except DatabaseError:  # PostgreSQL answers so to the slower of two processes that make it
        if not inspect(engine).has_table("star_records"):
            raise
    return engine
