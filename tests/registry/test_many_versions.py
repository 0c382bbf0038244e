"""Commands on a model of hundreds of versions: each asks MLflow for what it needs, and what is read in pages is read to its end.

The versions are rows that the test writes into MLflow's tables, since one by one they would take minutes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from pathlib import Path

import pytest

from star.errors import InputError
from star.registry import publish
from star.registry.promotion.overview import look_at_versions
from star.registry.promotion.promote_and_rollback import champion, promote, rollback
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.register_model import register_model
from star.registry.publish import remove_unfinished_publications, store_model
from star.registry.tables import print_versions
from star.registry.versions import find_version, find_versions_of, list_versions, version_pages
from star.tracking.server import close_stale_runs, connect, experiment_id

ODD = ["it's", 'a "digest"', "both ' and \"", "ends in \\", "100%", "_", "AbC", "a;b", "a--b", "ü", "line\nbreak"]


def add_versions(database: str, name: str, digests: dict[int, str]) -> None:
    """Writes versions as an older STAR registered them, each with its digest as a tag."""
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
    from sqlalchemy import create_engine, insert

    rows = [{"name": name, "version": number, "source": "s3://models/star"} for number in digests]
    tags = [
        {"name": name, "version": number, "key": "star.model_digest", "value": digest}
        for number, digest in digests.items()
    ]
    if not digests:
        return
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(
            insert(SqlModelVersion), [{**row, "last_updated_time": 1, "creation_time": 1} for row in rows]
        )
        connection.execute(insert(SqlModelVersionTag), tags)
    engine.dispose()


@contextmanager
def counted(port: int) -> Iterator[list[str]]:
    """Yields the requests that are sent to a server on this machine, a retry too."""
    from urllib3.connectionpool import HTTPConnectionPool

    sent: list[str] = []
    send = HTTPConnectionPool._make_request

    def count(pool, connection, method, url, *arguments, **options):
        if pool.port == port:
            sent.append(f"{method} {url}")
        return send(pool, connection, method, url, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPConnectionPool, "_make_request", count)
        yield sent


@pytest.mark.slow
def test_what_a_command_asks_does_not_grow_with_the_versions(team, model: Path, postgres_database: str) -> None:
    """On PostgreSQL behind a server: champion by alias, versions by number, a model's content by its digest."""
    name, requests = "many", {}
    for number in (1, 2):
        (model / "config.json").write_text(f'{{"model_type": "qwen3", "number": {number}}}')
        register_model(model, name=name, scores={}, lineage={}, model_digest=f"first {number}")
        promote(name, number)
    for number, have in ((3, 2), (302, 3)):
        add_versions(postgres_database, name, {other: f"d{other}" for other in range(have + 1, number)})
        (model / "config.json").write_text(f'{{"model_type": "qwen3", "number": {number}}}')
        commands: dict[str, Callable[[], object]] = {
            "register": partial(register_model, model, name=name, scores={}, lineage={}, model_digest=f"d{number}"),
            "promote": partial(promote, name, number),
            "rollback": lambda: rollback(name),
            "champion": lambda: champion(name),
            "models": lambda: look_at_versions(name),
        }
        requests[number] = {}
        for command, call in commands.items():
            with counted(team.port) as sent:
                call()
            requests[number][command] = len(sent)
    # Beside its page, `star models` asks for the champion and the previous champion, which are on it at first.
    assert requests[302].pop("models") <= requests[3].pop("models") + 2
    assert requests[302] == requests[3]
    overview = look_at_versions(name)
    assert [version.version for version in overview.versions] == list(range(302, 202, -1))
    assert {version.version: version.aliases for version in overview.elsewhere} == {2: ("champion",)}
    assert overview.older and overview.versions[0].aliases == ("previous-champion",)
    assert reconcile(name)[1] == []


@pytest.mark.parametrize("place", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_versions_are_found_by_number_digest_and_page(
    home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    database = f"sqlite:///{home / 'mlflow.db'}" if place == "sqlite" else request.getfixturevalue("postgres_database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client, name = connect(), "it's many"
    client.create_registered_model(name)
    client.create_registered_model("others")
    digests = {number: f"d{number}" for number in range(1, 251)} | dict(enumerate(ODD, 101)) | {7: "twice", 9: "twice"}
    add_versions(database, name, digests)
    add_versions(database, "others", {1: "twice", 2: "ÜBER"})
    assert [version.version for version in list_versions(name)] == list(range(250, 0, -1))
    pages = version_pages(name)
    assert [version.version for version in next(pages).versions] == list(range(250, 150, -1))
    # What somebody deletes or registers meanwhile moves no other version over the edge of a page.
    client.delete_model_version(name, "250")
    add_versions(database, name, {251: "new"})
    rest = list(pages)
    assert [version.version for page in rest for version in page.versions] == list(range(150, 0, -1))
    assert [page.older for page in rest] == [True, False]
    client.set_registered_model_alias(name, "best", "3")
    assert find_version(name, alias="best") == find_version(name, version=3)
    assert find_version(name, version=3).aliases == ("best",)
    assert [version.version for version in find_versions_of(name, "twice")] == [9, 7]
    for number, digest in enumerate(ODD, 101):
        assert [version.version for version in find_versions_of(name, digest)] == [number]
    assert find_versions_of(name, "no such") == find_versions_of(name, "D1") == find_versions_of("nowhere", "d1") == []
    with pytest.raises(InputError, match=r"has no version 250: choose one of 251, 249, .* and older ones"):
        find_version(name, version=250)
    for missing in (0, 2**31, 10**30):
        with pytest.raises(InputError, match=f"has no version {missing}"):
            find_version(name, version=missing)


def test_pages_are_shown_by_their_numbers(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    connect().create_registered_model("many")
    add_versions(f"sqlite:///{home / 'mlflow.db'}", "many", {number: f"d{number}" for number in range(1, 103)})

    def shown(page: int | None) -> tuple[list[int], str]:
        print_versions("many", page=page)
        printed = capsys.readouterr().out
        return [int(line[:5]) for line in printed.splitlines() if line[:5].strip().isdecimal()], printed

    newest, printed = shown(1)
    assert newest == list(range(102, 2, -1)) and "`star models --page 2 --name many` shows older versions" in printed
    assert shown(2)[0] == [2, 1] and "--page" not in shown(2)[1]
    everything, printed = shown(None)
    assert everything == list(range(102, 0, -1))
    # A table per page: one of ten thousand versions would be laid out before its first line is printed.
    assert printed.count("lineage") == 2 and printed.count("Registered versions") == printed.count("Rewards are") == 1
    with pytest.raises(
        InputError, match="has no page 3 of versions: the last one is `star models --page 2 --name many`"
    ):
        shown(3)


def test_all_unfinished_publications_are_removed_however_many_pages(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "AUDIT_PAGE", 2)
    monkeypatch.setattr(publish, "UNFINISHED_SECONDS", -60)
    for digest in ("d1", "d2", "d3"):
        (model / "config.json").write_text(f'{{"model_type": "{digest}"}}')
        register_model(model, name="tiny", scores={}, lineage={}, model_digest=digest)
    for digest in ("lost1", "lost2", "lost3", "lost4", "lost5"):
        store_model(model, {"config.json": digest}, name="tiny", scores={}, model_digest=digest)
    assert len(remove_unfinished_publications("tiny")) == 5
    assert remove_unfinished_publications("tiny") == []
    client = connect()
    assert len(client.search_logged_models([experiment_id(client)])) == 3


def test_all_lost_runs_are_closed_however_many_pages(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = connect()
    experiment, long_ago = experiment_id(client), int((time.time() - 7200) * 1000)
    for number in range(5):
        client.create_run(experiment, start_time=long_ago, run_name=f"lost {number}")
    alive = client.create_run(experiment, start_time=long_ago)
    client.log_metric(alive.info.run_id, "old", 1.0, timestamp=long_ago)
    client.log_metric(alive.info.run_id, "loss", 1.0)
    client.create_run(experiment)
    monkeypatch.setattr(MlflowClient, "search_runs", partialmethod(MlflowClient.search_runs, max_results=2))
    assert sorted(line.split(" (")[0] for line in close_stale_runs(1.0)) == [f"lost {number}" for number in range(5)]
    assert close_stale_runs(1.0) == []
