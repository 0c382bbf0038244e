"""Copies in S3: results and checkpoints, deleted by exact keys, the manifest first."""

import json
import time
from pathlib import Path

import pytest

from star.clean.clean import carry_out, make_plan
from star.clean.entry import DAY
from star.config.cluster import Cluster
from star.config.experiment import Config
from star.config.keep import Keep
from star.folders.s3 import upload_folder
from star.folders.s3_client import s3_client
from star.registry.needed import Needed
from tests.clean.conftest import make_old, make_result, make_run, register_run
from tests.conftest import BUCKET


@pytest.fixture
def place(registry: pytest.MonkeyPatch, s3_store: dict[str, str], tmp_path: Path) -> str:
    for name, value in s3_store.items():
        registry.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


def keys(url: str) -> set[str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return {found["Key"].removeprefix(f"{prefix}/") for page in pages for found in page.get("Contents", [])}


def later(monkeypatch: pytest.MonkeyPatch, *, days: float) -> None:
    """Moves the clock of the clean: the time of an object in S3 is the store's."""
    now = time.time()
    monkeypatch.setattr("star.clean.s3_copies.time.time", lambda: now + days * DAY)


def test_old_copies_go_by_their_keys_and_those_of_a_version_stay(
    runs: Path, place: str, tmp_path: Path, registry: pytest.MonkeyPatch
) -> None:
    champion = make_run(tmp_path / "made", content="champion")
    register_run(champion, tmp_path / "publish")
    upload_folder(champion["rollout"], f"{place}/results/champion")
    upload_folder(make_result("synthesize", tmp_path / "old", content="old"), f"{place}/results/old")
    registry.setattr("star.clean.s3_copies.KEYS_PER_REQUEST", 2)
    many = make_result("synthesize", tmp_path / "many", content="many", files=4)
    upload_folder(many, f"{place}/results/old/many")
    for name in ("results/notes/manifest.json", "results/loose.txt", "elsewhere/manifest.json"):
        s3_client().put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{name}", Body=b"{}")
    odd = make_result("synthesize", tmp_path / "odd", content="odd")
    upload_folder(odd, f"{place}/results/odd")
    s3_client().put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/results/odd/notes.txt", Body=b"mine")
    own = make_result("synthesize", runs / "hand" / "own", content="own")
    (own / "notes.txt").write_text("mine")
    upload_folder(make_result("synthesize", tmp_path / "own", content="own"), f"{place}/results/own")
    # What a result was made from stays with it, in whichever of the folders it is.
    source = make_result("synthesize", tmp_path / "source", content="source")
    upload_folder(source, f"{place}/results/source")
    upload_folder(make_result("rollout", tmp_path / "kept", content="kept", inputs={"data": source}), f"{place}/kept")
    s3_client().put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/kept/notes.txt", Body=b"mine")
    config = Config(keep=Keep(s3=(f"{place}/results", f"{place}/kept")))
    assert not [entry for entry in make_plan(config).going if entry.kind == "result in S3"]
    later(registry, days=60)
    before = keys(place)
    plan = make_plan(config)
    # Another result that goes is registered after the plan was shown, in the home of somebody else.
    with registry.context() as patch:
        patch.setattr(
            "star.clean.clean.read_needs", lambda: Needed({entry.digest: "a new version" for entry in plan.going})
        )
        assert carry_out(plan, config).removed == []
    assert keys(place) == before
    assert {entry.place for entry in plan.going} == {f"{place}/results/old", f"{place}/results/old/many"}
    why = {entry.place.removeprefix(f"{place}/results/"): entry.why for entry in plan.entries}
    assert why["champion"] == "the registry needs it"
    assert why["source"] == "what stays was made from it"
    assert why["own"] == "a copy of a result that stays, or of what that was made from"
    assert all(entry.keys[0].endswith("/manifest.json") for entry in plan.going)
    # Somebody uploads another result to the place meanwhile.
    upload_folder(make_result("synthesize", tmp_path / "newer", content="newer"), f"{place}/results/old")
    done = carry_out(plan, config)
    assert [entry.place for entry in done.removed] == [f"{place}/results/old/many"]
    assert done.left == [f"{place}/results/old stays: it has changed since"]
    assert keys(place) == {key for key in before if "/many/" not in key}


def test_without_the_registry_no_copy_goes(place: str, tmp_path: Path, registry: pytest.MonkeyPatch) -> None:
    upload_folder(make_result("synthesize", tmp_path / "old", content="old"), f"{place}/results/old")
    later(registry, days=60)
    config = Config(keep=Keep(s3=(f"{place}/results",)))
    registry.setenv("STAR_HOME", str(tmp_path / "fresh"))
    plan = make_plan(config)
    assert not plan.going and "has no registry" in plan.problems[0]
    assert not (tmp_path / "fresh" / "mlflow.db").exists()


def test_old_checkpoints_go_but_not_those_of_unfinished_work_here(
    runs: Path, place: str, registry: pytest.MonkeyPatch
) -> None:
    for letter in "ab":
        for name in ("c" * 64, "index.json"):
            body = json.dumps({"state": "c" * 64}).encode()
            key = f"{place.split('/', 3)[3]}/checkpoints/{letter * 64}/{name}"
            s3_client().put_object(Bucket=BUCKET, Key=key, Body=body)
    workspace = runs / "hand" / ".model.partial"
    workspace.mkdir(parents=True)
    (workspace / "fingerprint").write_text("b" * 64)
    later(registry, days=60)
    config = Config(cluster=Cluster(checkpoints=f"{place}/checkpoints"))
    # `later` moves the local clock too.
    make_old(workspace, days=-60)
    done = carry_out(make_plan(config), config)
    assert [entry.place for entry in done.removed] == [f"{place}/checkpoints/{'a' * 64}"]
    assert keys(f"{place}/checkpoints") == {f"{'b' * 64}/{name}" for name in ("c" * 64, "index.json")}
