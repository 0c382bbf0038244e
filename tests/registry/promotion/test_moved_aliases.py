"""Aliases that somebody moves in MLflow: they count where the files are a registration's and the gate let them through."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from star.cli.registry import models_app
from star.errors import InputError
from star.registry.find_model import download_model, find_model
from star.registry.promotion import moved_aliases, promote_and_rollback
from star.registry.promotion.audit import read_history
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.promote_and_rollback import champion, holding_aliases, promote, rollback
from star.registry.promotion.promote_by_reference import promote_model
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.register_model import register_model, update_registration
from star.registry.publish import hash_files
from star.registry.versions import DIGEST_TAG, DIGESTS_TAG, FILES_TAG, digests_tag, find_version, list_versions
from star.tracking.server import connect, experiment_id

SCORES = {"exact_match": 0.9, "mean_reward": 0.8, "format_errors": 0.0}


@pytest.fixture
def registered(home: Path, model: Path) -> Path:
    """Version 1 passed the gate and is the champion."""
    register_model(model, name="tiny", scores=SCORES, lineage={"data": "5eed"}, model_digest="d1")
    decide(1, "passed")
    promote("tiny", 1)
    return model


def decide(version: int, gate: str) -> None:
    update_registration(find_version("tiny", version=version), scores={}, lineage={"gate": gate}, gate=gate)


def register_in_the_pages(source: str | None = None) -> int:
    """What the button "Register model" of version 1's logged model sends; or of another source."""
    source = source or find_version("tiny", version=1).source
    return int(connect().create_model_version("tiny", source).version)


def log_model(folder: Path, **tags: str) -> str:
    client = connect()
    logged = client.create_logged_model(experiment_id(client), name="other", tags=tags)
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}"


def move(version: int, alias: str = "champion") -> None:
    connect().set_registered_model_alias("tiny", alias, str(version))


def ledger_lines() -> list[tuple[str, int | None, str]]:
    return [
        (entry.action, entry.version, outcome) for entry, outcome in read_history(open_ledger("tiny", connect()))[0]
    ]


def shown() -> str:
    found = CliRunner().invoke(models_app, ["--name", "tiny"], env={"COLUMNS": "400"})
    assert found.exit_code == 0, found.output
    return found.output


def test_a_version_of_the_pages_is_known_by_its_files(registered: Path) -> None:
    assert register_in_the_pages() == 2
    text = shown()
    assert text.count("0.900") == 2  # before anything was downloaded
    assert "Version 2 was registered in MLflow from the logged model of version 1." in text
    version, folder = find_model("2", name="tiny")
    assert version.scores == SCORES and hash_files(folder) == hash_files(registered)
    move(2)
    assert champion("tiny").version == 2
    assert ledger_lines() == [("promote", 1, "won"), ("adopt", 2, "won")]
    assert connect().get_registered_model("tiny").aliases == {"champion": 2, "previous-champion": 1}
    assert find_model("champion", name="tiny")[0].scores == SCORES
    assert "was registered in MLflow" not in shown()  # its files are compared now
    assert rollback("tiny").version == 1
    assert champion("tiny").version == 1
    assert reconcile("tiny") == ([], [])


def test_the_same_bytes_are_known_wherever_they_lie(registered: Path) -> None:
    assert register_in_the_pages(log_model(registered)) == 2
    move(2)
    assert champion("tiny").version == 2
    assert find_model("2", name="tiny")[0].scores == SCORES


@pytest.mark.parametrize("claims", ["nothing", "other files", "the champion's files", "the champion's logged model"])
def test_foreign_files_make_no_champion(
    registered: Path, tmp_path: Path, claims: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(registered, other)
    (other / "model.safetensors").write_bytes(b"not those")
    [logged] = connect().search_logged_models([experiment_id(connect())])
    source = log_model(other, **(logged.tags if claims == "the champion's logged model" else {}))
    assert register_in_the_pages(source) == 2
    files = {"other files": hash_files(other), "the champion's files": hash_files(registered)}.get(claims)
    for tag, value in {FILES_TAG: json.dumps(files), DIGEST_TAG: "d1", "star.lineage.gate": "passed"}.items():
        if files:
            connect().set_model_version_tag("tiny", "2", tag, value)
    move(2)
    text = shown()
    assert "has files that no registration recorded: the champion is version 1 still" in text
    assert "`star promote 2 --name tiny` adopts it" in text
    assert champion("tiny").version == 1 and find_model("champion", name="tiny")[0].version == 1
    assert ledger_lines() == [("promote", 1, "won"), ("adopt", 2, "refused")]  # once, however often it is seen
    monkeypatch.setattr(moved_aliases, "verify_version", lambda *_: pytest.fail("downloaded again"))
    assert "adopts it" in shown()
    assert reconcile("tiny") == (["the aliases show decision 1 now: champion is version 1"], [])
    assert connect().get_registered_model("tiny").aliases == {"champion": 1}


def test_a_person_can_take_foreign_files_as_they_are(registered: Path, tmp_path: Path) -> None:
    (registered / "config.json").write_text("{}")
    register_in_the_pages(log_model(registered))
    with pytest.raises(InputError, match="no registration recorded"):
        find_model("2", name="tiny")
    connect().set_registered_model_alias("tiny", "best", "2")
    with pytest.raises(InputError, match="promote it by its number"):
        promote_model("best", name="tiny", to="champion", reason="")
    assert promote_model("2", name="tiny", to="champion", reason="compared by hand").version == 2
    assert hash_files(find_model("champion", name="tiny")[1]) == hash_files(registered)
    assert list_versions("tiny")[0].files == {}  # what is known of it is not in MLflow's tags


def test_a_version_that_the_gate_refused_makes_no_champion(registered: Path) -> None:
    (registered / "config.json").write_text("{}")
    register_model(registered, name="tiny", scores=SCORES, lineage={}, model_digest="d2")
    decide(2, "refused")
    connect().set_model_version_tag("tiny", "2", "star.lineage.gate", "passed")
    move(2)
    assert "points to version 2, which has not passed the gate: the champion is version 1 still" in shown()
    assert champion("tiny").version == 1
    promote("tiny", 2)  # a person's decision, after which the pages can go back and forth
    promote("tiny", 1)
    move(2)
    assert champion("tiny").version == 2


@pytest.mark.parametrize("change", ["overwritten", "extended"])
def test_files_that_changed_in_place_are_refused(registered: Path, home: Path, change: str) -> None:
    register_in_the_pages()
    [stored] = (home / "mlartifacts").rglob("config.json")
    if change == "overwritten":
        stored.write_text('{"model_type": "other"}')
    else:
        (stored.parent / "adapter_model.safetensors").write_bytes(b"more")
    move(2)
    assert champion("tiny").version == 1
    name = "config.json" if change == "overwritten" else "adapter_model.safetensors"
    assert f"are not those registered ({name})" in shown()
    for model in ("1", "2", "champion"):
        with pytest.raises(
            InputError, match=rf"the stored files of tiny version \d are not those registered \({name}\)"
        ):
            find_model(model, name="tiny")
    with pytest.raises(InputError, match="are not those registered"):
        promote_model("2", name="tiny", to="champion", reason="")
    # Tags that say the same as the changed files do not help.
    connect().set_model_version_tag("tiny", "1", DIGESTS_TAG, digests_tag(hash_files(stored.parent), {}))
    with pytest.raises(InputError, match="are not those registered"):
        find_model("1", name="tiny")


def test_files_on_another_server_are_not_asked_for(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client would send it the password of the server that it knows."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "for-mlflow-alone")
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        place = f"http://127.0.0.1:{other.getsockname()[1]}"
        register_in_the_pages(f"{place}/api/2.0/mlflow-artifacts/artifacts/x")
        move(2)
        assert f"the files of tiny version 2 are at {place}, which is not MLflow's server" in shown()
        with pytest.raises(InputError, match="is not MLflow's server"):
            promote_model("2", name="tiny", to="champion", reason="")
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize("source", ["s3://", "sftp://127.0.0.1/x", "b2://key:secret@bucket/x", "hdfs:/x", "odd://x"])
def test_a_store_that_nothing_here_can_read_makes_no_champion(registered: Path, source: str) -> None:
    connect().create_model_version("tiny", source)
    move(2)
    assert "the files of tiny version 2 could not be downloaded" in shown()
    assert champion("tiny").version == 1


def test_a_ledger_of_this_database_is_read_when_a_bucket_is_named_for_another_registry(
    registered: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("STAR_REGISTRY", "s3://of-the-team/star")  # as for `star promote champion --to-registry`
    assert find_model("champion", name="tiny")[0].scores == SCORES
    with pytest.raises(InputError, match="are in tracking database, not in STAR_REGISTRY"):
        rollback("tiny")


@pytest.mark.parametrize("name", ["tiny", "champion"])
def test_a_model_of_the_same_name_has_no_champion_until_one_is_promoted(
    registered: Path, tmp_path: Path, name: str
) -> None:
    """Whoever reaches MLflow can rename the model and make another one, with tags that say the same as its files."""
    connect().rename_registered_model("tiny", "renamed")
    other = tmp_path / "other"
    shutil.copytree(registered, other)
    (other / "model.safetensors").write_bytes(b"not those")
    tags = {FILES_TAG: json.dumps(hash_files(other)), DIGEST_TAG: "d9"}
    connect().create_registered_model(name)
    connect().create_model_version(name, log_model(other), tags=tags)
    connect().set_registered_model_alias(name, "champion", "1")
    with pytest.raises(InputError, match="is called 'champion'" if name == "tiny" else "no model 'tiny' is registered"):
        find_model("champion", name="tiny")
    with pytest.raises(InputError, match="is called 'champion'"):
        download_model(f"{name}@champion", tmp_path / "downloaded")
    if name == "tiny":
        assert "This model of the name tiny has no ledger here, so its aliases in MLflow make no champion" in shown()
        assert promote_model("1", name="tiny", to="champion", reason="mine").version == 1
        assert find_model("champion", name="tiny")[0].version == 1


def test_an_alias_that_is_taken_away_unseats_nobody(registered: Path) -> None:
    connect().delete_registered_model_alias("tiny", "champion")
    assert champion("tiny").version == 1
    assert "The alias champion was taken away in MLflow: the champion is version 1 still" in shown()
    assert reconcile("tiny")[0] == ["the aliases show decision 1 now: champion is version 1"]
    register_in_the_pages()
    promote("tiny", 2, to="challenger")
    connect().delete_registered_model_alias("tiny", "challenger")
    assert holding_aliases("tiny").aliases == {"champion": 1}


def test_both_aliases_are_exchanged_in_the_pages(registered: Path) -> None:
    register_in_the_pages()
    move(2)
    assert champion("tiny").version == 2
    move(1)
    move(2, "previous-champion")
    assert holding_aliases("tiny").aliases == {"champion": 1, "previous-champion": 2}


def test_who_only_reads_sees_what_holds(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Ed25519PrivateKey.generate()
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    monkeypatch.setenv("PEM", private.decode())
    monkeypatch.setenv("STAR_LEDGER_KEY", "env:PEM")
    (registered / "config.json").write_text("{}")
    register_model(registered, name="kept", scores=SCORES, lineage={}, model_digest="d1")
    update_registration(find_version("kept", version=1), scores={}, lineage={}, gate="passed")
    promote("kept", 1)
    connect().create_model_version("kept", find_version("kept", version=1).source)
    connect().set_registered_model_alias("kept", "champion", "2")
    before = open_ledger("kept", connect()).newest()
    monkeypatch.setenv("PEM", key.public_key().public_bytes(pem, form).decode())
    holding = holding_aliases("kept")
    assert holding.decision == before and holding.aliases == {"champion": 2, "previous-champion": 1}
    with pytest.raises(InputError, match="no private key"):
        rollback("kept")


def test_an_account_that_may_not_write_to_mlflow_sees_what_holds(
    registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("Permission denied")

    register_in_the_pages()
    move(2)
    with monkeypatch.context() as patch:
        patch.setattr(promote_and_rollback, "write_aliases", refuse)
        assert holding_aliases("tiny").aliases == {"champion": 2, "previous-champion": 1}
        assert find_model("champion", name="tiny")[0].version == 2
    assert reconcile("tiny")[1] == []
    assert connect().get_registered_model("tiny").aliases == {"champion": 2, "previous-champion": 1}
