"""A version is taken for a model only where all its files are the model's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from star.registry.find_model import find_model
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.promote_and_rollback import champion, promote
from star.registry.promotion.records import Attempt
from star.registry.promotion.register_model import register_model, register_or_find, update_registration
from star.registry.promotion.version_records import find_recorded, record_content, write_registration
from star.registry.publish import hash_files
from star.registry.versions import DIGEST_TAG, DIGESTS_TAG, digests_tag, find_version, list_versions
from star.tracking.server import connect, experiment_id

ARGUMENTS = {"name": "tiny", "scores": {"exact_match": 0.9}, "lineage": {"data": "5eed"}, "model_digest": "d1"}


def plant(folder: Path, files: dict[str, str]) -> None:
    """A version of somebody who only reaches MLflow, with the digest of a model that is about to be published."""
    client = connect()
    if not list_versions("tiny"):
        client.create_registered_model("tiny")
    logged = client.create_logged_model(experiment_id(client), name="planted")
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    tags = {DIGEST_TAG: "d1", DIGESTS_TAG: digests_tag(files, {}), "star.lineage.gate": "passed"}
    client.create_model_version("tiny", f"models:/{logged.model_id}", tags=tags)


@pytest.mark.parametrize("claimed", ["its own", "the model's", "none"])
def test_a_planted_version_is_passed_over(home: Path, model: Path, tmp_path: Path, claimed: str) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(model, evil)
    (evil / "model.safetensors").write_bytes(b"another's")
    plant(evil, {"its own": hash_files(evil), "the model's": hash_files(model)}.get(claimed, {}))
    version, passed_over = register_or_find(model, **ARGUMENTS)
    assert version.version == 2
    [said] = passed_over
    assert (
        said.startswith("tiny version 1 has the digest of this model in its tags and is another")
        and "model.safetensors" in said
    )
    promote("tiny", 2)
    assert hash_files(find_model("champion", name="tiny")[1]) == hash_files(model)
    assert find_version("tiny", version=1).scores == {}  # nothing honest was written on it
    again, said_again = register_or_find(model, **ARGUMENTS)
    assert (again.version, said_again) == (2, [])


def test_planted_texts_beside_the_model_are_another_model_too(home: Path, model: Path, tmp_path: Path) -> None:
    """The outcomes decide how a later candidate is compared, and the card is read by people."""
    for name in ("README.md", "lineage.json", "outcomes.jsonl"):
        (model / name).write_text("{}")
    evil = tmp_path / "evil"
    shutil.copytree(model, evil)
    (evil / "outcomes.jsonl").write_text("")
    plant(evil, hash_files(evil))
    version, passed_over = register_or_find(model, **ARGUMENTS)
    assert version.version == 2 and "outcomes.jsonl" in passed_over[0]


def test_the_same_model_is_found_again_with_another_card(home: Path, model: Path) -> None:
    (model / "README.md").write_text("first")
    first = register_model(model, **ARGUMENTS)
    (model / "README.md").write_text("second")
    again = register_model(model, **ARGUMENTS)
    assert again.version == first.version == 1 and again.files == first.files
    (model / "extra.json").write_text("{}")
    assert register_model(model, **ARGUMENTS).version == 2


def test_a_registration_that_was_killed_before_its_record_is_found(home: Path, model: Path) -> None:
    made = register_model(model, **ARGUMENTS)
    ledger = open_ledger("tiny", connect())
    ledger.store.delete(ledger.folder_of("versions"), "00000001", versions=False)
    assert find_recorded(ledger, 1) is None
    (model / "README.md").write_text("written anew")
    assert register_model(model, **ARGUMENTS).files == made.files
    assert find_recorded(ledger, 1).files == made.files


def test_a_version_of_an_older_star_is_found_by_the_ledger(home: Path, model: Path, older_star: Callable) -> None:
    (model / "README.md").write_text("of the first run")
    older_star(model, digest="d1")
    ledger = open_ledger("tiny", connect())
    ledger.write_attempt(Attempt("promote", 1, 0, "passed the gate"))
    (model / "README.md").write_text("of the second run")
    assert register_model(model, **ARGUMENTS).version == 1
    assert find_recorded(ledger, 1).gate == "passed"


def test_what_is_recorded_holds_whatever_the_tags_say(home: Path, model: Path) -> None:
    register_model(model, **ARGUMENTS)
    update_registration(
        find_version("tiny", version=1), scores={"exact_match": 0.95}, lineage={"data": "6"}, gate="passed"
    )
    for tag, value in {"star.score.exact_match": "0.1", "star.lineage.data": "x", DIGEST_TAG: "d9"}.items():
        connect().set_model_version_tag("tiny", "1", tag, value)
    promote("tiny", 1)
    found, _ = find_model("champion", name="tiny")
    assert (found.scores, found.lineage, found.model_digest) == ({"exact_match": 0.95}, {"data": "6"}, "d1")
    assert champion("tiny").version == 1


def test_each_precision_of_a_model_is_a_version_and_a_download_of_its_own(
    home: Path, model: Path, tmp_path: Path
) -> None:
    converted = tmp_path / "converted"
    shutil.copytree(model, converted)
    (converted / "model.safetensors").write_bytes(b"half of the bytes")
    in_bf16 = {**ARGUMENTS, "lineage": {**ARGUMENTS["lineage"], "precision": "bf16"}}
    given = {1: (model, ARGUMENTS), 2: (converted, in_bf16)}
    for number in (1, 2, 1, 2):
        folder, arguments = given[number]
        version, passed_over = register_or_find(folder, **arguments)
        assert (version.version, version.model_digest, passed_over) == (number, "d1", [])
    downloads = {number: find_model(f"tiny/{number}", name="tiny")[1] for number in given}
    for number, (folder, _) in given.items():
        # Also after the other one was downloaded.
        assert hash_files(downloads[number]) == hash_files(folder)
    assert len(set(downloads.values())) == 2


@pytest.mark.parametrize("forged", ["another's name", "not json", "another registry"])
def test_a_record_that_is_not_right_is_as_good_as_none(home: Path, model: Path, forged: str) -> None:
    register_model(model, **ARGUMENTS)
    ledger = open_ledger("tiny", connect())
    known = find_recorded(ledger, 1)
    folder, text = (
        ledger.folder_of("registrations"),
        ledger.store.read(ledger.folder_of("registrations"), ledger.store.names(ledger.folder_of("registrations"))[0]),
    )
    name = f"{known.content}-2099-01-01T00:00:00.000000+00:00"
    content = json.loads(text) | {"at": "2099-01-01T00:00:00.000000+00:00", "gate": "passed"}
    if forged == "another's name":
        content["files"] = {"config.json": "0" * 64}
    if forged == "another registry":
        content["registry"] = "0" * 32
    ledger.store.create(folder, name, "{" if forged == "not json" else json.dumps(content))
    assert find_recorded(ledger, 1) == known


def test_the_first_record_of_a_version_stays(home: Path, model: Path) -> None:
    register_model(model, **ARGUMENTS)
    ledger = open_ledger("tiny", connect())
    known = find_recorded(ledger, 1)
    (model / "config.json").write_text("{}")
    other = register_model(model, **{**ARGUMENTS, "model_digest": "d2"})
    record_content(ledger, 1, find_recorded(ledger, other.version), reason="again")
    assert find_recorded(ledger, 1) == known
    assert write_registration(ledger, known).at != known.at  # the same microsecond is nobody's error
