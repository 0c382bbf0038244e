"""The last stage: what it publishes and what it says of its decision."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.errors import UnavailableError
from star.folders.manifest import read_manifest
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.registry.register import _smoke_check
from star.registry.versions import Version, find_version
from star.stages import register
from star.tracking.server import connect


def test_the_gates_decision_is_a_file_a_page_and_artifacts_of_the_run(
    home: Path, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    gate = micro.registry.gate.model_copy(update={"min_exact_match": 1.0})
    registry = micro.registry.model_copy(update={"precision": "bf16"})
    micro = micro.model_copy(update={"registry": registry})
    strict = micro.model_copy(update={"registry": registry.model_copy(update={"gate": gate})})
    inputs = {"refined": finished["refine"], "evaluation": finished["evaluate"]}
    for config, verdict, before in (
        (strict, "was refused by the gate", "There was no champion before."),
        (micro, "passed the gate", ""),
    ):
        out = tmp_path / verdict
        register(config, **inputs, out=out)
        decision, page = json.loads((out / "gate.json").read_text()), (out / "gate.md").read_text()
        assert page.startswith(f"# star version 1 {verdict}\n\n{before}")
        assert len([line for line in page.splitlines() if line.startswith(("| passed |", "| **failed** |"))]) == len(
            decision["checks"]
        )
        for check in decision["checks"]:
            assert ("| passed |" if check["passed"] else "| **failed** |") in page
        assert find_version("star", version=1).aliases == ()
        # MLflow's page of the version shows it first.
        described = connect().get_model_version("star", "1").description
        assert described.startswith(f"star version 1 {verdict}.") and "| exact\\_match |" in described
        smoke = next(check["reason"] for check in decision["checks"] if check["name"] == "smoke")
        assert "nats per token from the trained weights" in smoke
    assert "decided on before, and not again" in page  # looser bars do not undo what was decided
    client = connect()
    runs = client.search_runs([client.get_experiment_by_name("star").experiment_id])
    for run in runs:
        assert {"gate.json", "gate.md"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    # What the exit handler of a pipeline says, of the newest run first.
    assert [run.data.tags["star.outcome"] for run in runs] == [
        "star version 1 did not become the champion: there is no champion",
        "star version 1 was refused by the gate: there is no champion",
    ]


def test_a_registration_is_kept_while_the_registry_agrees(
    home: Path, micro: Config, finished: dict[str, Path], model: Path
) -> None:
    inputs = {"refined": finished["refine"], "evaluation": finished["evaluate"]}
    register(micro, **inputs, out=home / "pipeline" / "registration")
    first = read_manifest(home / "pipeline" / "registration")
    register(micro, **inputs, out=home / "dvc" / "registration")
    assert read_manifest(home / "dvc" / "registration") == first
    (model / "outcomes.jsonl").write_text('{"of": "somebody else"}\n')  # the next candidate is compared without them
    register_model(model, name="star", scores={}, lineage={}, model_digest="another")
    promote("star", 2)
    register(micro, **inputs, out=home / "dvc" / "registration")
    assert read_manifest(home / "dvc" / "registration").digest != first.digest
    assert json.loads((home / "dvc" / "registration" / "registration.json").read_text())["champion"] == 2
    # The other folder says what was true before, and is not taken either.
    register(micro, **inputs, out=home / "hand" / "registration")
    assert json.loads((home / "hand" / "registration" / "registration.json").read_text())["version"] == 1


def test_a_store_that_is_away_is_no_reason_against_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is final, and the same registration can succeed a minute later."""

    def is_away(*arguments: object) -> Path:
        raise UnavailableError("s3://models cannot be used")

    version = Version("star", 1, (), scores={}, lineage={}, created=datetime.now(), model_digest="d", files={})
    monkeypatch.setattr("star.registry.register.download_version", is_away)
    with pytest.raises(UnavailableError):
        _smoke_check(version, trained=None)
