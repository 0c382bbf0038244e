"""The registry against a real MLflow server on PostgreSQL and S3, from publishing to generating with tools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from star.config.experiment import Config
from star.doctor.preflight import preflight_checks
from star.errors import InputError
from star.registry.find_model import download_model
from star.registry.location import registry_s3_client, split_s3
from star.registry.promotion.audit import read_history
from star.registry.promotion.ledger_store import S3LedgerStore
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.promote_and_rollback import champion, promote, rollback
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.records import Attempt
from star.registry.promotion.register_model import register_model, update_registration
from star.registry.smoke_test import run_smoke_test
from star.registry.versions import find_version, list_versions
from star.stages import register
from star.tracking.server import connect, use_tracking_uri

pytestmark = pytest.mark.slow


def test_from_a_stage_to_a_call_with_tools(team, micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"refined": finished["refine"], "evaluation": finished["evaluate"]}
    older = register_model(finished["distill"], name="star", scores={}, lineage={}, model_digest="older")
    promote("star", older.version, reason="the first one")
    assert register(micro, **inputs, out=tmp_path / "out") == pytest.approx(
        {"version": 2, "promoted": 1, "seconds": 0}, abs=100
    )
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert gate["passed"] and gate["against"] == 1
    assert [check["name"] for check in gate["checks"]][-1] == "smoke"
    assert rollback("star", reason="to see").version == 1
    assert rollback("star").version == 2

    folder = download_model("star@champion", tmp_path / "models")
    assert {"README.md", "lineage.json", "config.json", "generation_config.json", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert "tool_call" in AutoTokenizer.from_pretrained(folder).chat_template
    assert "loads and answers a request with tools" in run_smoke_test(folder)

    found = find_version("star", version=2)
    assert found.source.startswith("s3://models/star/models/")
    logged = connect().search_logged_models([connect().get_experiment_by_name("star").experiment_id])
    [mine] = [model for model in logged if model.source_run_id == found.run_id and found.run_id]
    assert {metric.key for metric in mine.metrics} >= {"exact_match", "format_errors"}
    runs = connect().search_runs([mine.experiment_id], filter_string="tags.`star.gate` = 'passed'")
    assert [run.info.run_id for run in runs] == [found.run_id]
    ledger = open_ledger("star", connect())
    assert isinstance(ledger.store, S3LedgerStore)
    history, wrong = read_history(ledger)
    assert ([outcome for _, outcome in history], wrong) == (["won"] * 4, [])


def test_a_version_outlives_its_runs_and_experiments(team, model: Path, tmp_path: Path) -> None:
    register_model(model, name="kept", scores={}, lineage={}, model_digest="d1")
    promote("kept", 1)
    for key in _keys("mlflow/"):  # what the most thorough gc could delete
        registry_s3_client().delete_object(Bucket="models", Key=key)
    assert (download_model("kept", tmp_path / "models") / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("damage", ["a byte", "the tokenizer", "all gone"])
def test_a_damaged_bucket_is_refused(team, model: Path, tmp_path: Path, damage: str) -> None:
    name = f"damaged-{damage.replace(' ', '-')}"
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "for": name}))  # an address of its own
    source = register_model(model, name=name, scores={}, lineage={}, model_digest=name).source
    promote(name, 1)
    bucket, prefix = split_s3(source)
    file = "tokenizer.json" if damage == "the tokenizer" else "model.safetensors"
    content = bytearray((model / file).read_bytes())
    content[-1] ^= 1
    if damage == "all gone":
        for key in _keys(prefix):
            registry_s3_client().delete_object(Bucket=bucket, Key=key)
    else:
        registry_s3_client().put_object(Bucket=bucket, Key=prefix + file, Body=bytes(content))
    with pytest.raises(InputError, match=rf"{name} version 1 .*{file if damage != 'all gone' else ''}"):
        download_model(name, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_killed_promotions_and_moved_aliases_over_the_network(team, model: Path) -> None:
    for digest in ("d1", "d2", "d3"):
        (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "for": digest}))
        register_model(model, name="repaired", scores={}, lineage={}, model_digest=digest)
    promote("repaired", 1)
    ledger, before = open_ledger("repaired", connect()), 1
    attempt = ledger.write_attempt(Attempt("promote", 2, before, "killed"))
    head = ledger.newest()
    assert ledger.write_decision(attempt, over=head, aliases={"champion": 2, "previous-champion": 1})
    other = Attempt("promote", 3, before, "late")
    assert ledger.write_decision(other, over=head, aliases={"champion": 3}) is None
    done, wrong = reconcile("repaired")
    assert (
        done == ["the aliases show decision 2 now: champion is version 2, previous-champion is version 1"] and not wrong
    )
    update_registration(find_version("repaired", version=3), scores={}, lineage={}, gate="passed")
    connect().set_registered_model_alias("repaired", "champion", "3")
    assert reconcile("repaired")[0] == ["moved in MLflow: champion from 2 to 3: in the ledger as decision 3"]
    assert champion("repaired").version == 3
    assert {version.version: version.aliases for version in list_versions("repaired")} == {
        3: ("champion",),
        2: ("previous-champion",),
        1: (),
    }


def test_a_champion_goes_from_a_laptop_to_the_team_whole_or_not_at_all(
    team, home: Path, model: Path, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--to-registry` from a database in the home to a server on PostgreSQL whose weights lie on S3."""
    (model / "config.json").write_text('{"model_type": "qwen3", "for": "travel"}')  # an address of its own
    registry = os.environ["STAR_REGISTRY"]
    for name in ("STAR_REGISTRY", "MLFLOW_TRACKING_URI"):
        environment.delenv(name)
    register_model(model, name="travel", scores={"exact_match": 0.5}, lineage={"data": "5eed"}, model_digest="d1")
    promote("travel", 1)
    environment.setenv("STAR_REGISTRY", registry)

    def send() -> subprocess.CompletedProcess:
        command = ["promote", "champion", "--name", "travel", "--to-registry", team.uri, "--reason", "it is good"]
        return subprocess.run([sys.executable, "-m", "star.cli", *command], capture_output=True, text=True)

    for _ in range(2):  # the second time it is there already
        done = send()
        assert (done.returncode, done.stdout) == (0, "travel version 1 is the champion there\n"), done.stderr
    with use_tracking_uri(team.uri):
        [there] = list_versions("travel")
        assert (there.aliases, there.scores) == (("champion",), {"exact_match": 0.5})
        assert there.lineage == {"data": "5eed", "copied_from": "travel version 1"}
        folder = download_model("travel", tmp_path / "team")
        assert {path: (folder / path).read_bytes() for path in there.files} == {
            path: (model / path).read_bytes() for path in there.files
        }
        [(attempt, outcome)] = read_history(open_ledger("travel", connect()))[0]
        assert (attempt.reason, outcome) == ("it is good", "won")
    bucket, prefix = split_s3(there.source)
    registry_s3_client().put_object(Bucket=bucket, Key=prefix + "model.safetensors", Body=b"damaged on the way")
    assert send().returncode == 0  # what is stored is read and sent again, never taken for whole
    with use_tracking_uri(team.uri):
        again = download_model("travel", tmp_path / "again") / "model.safetensors"
    assert again.read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_server_alone_cannot_decide_and_the_preflight_finds_out_first(
    team, micro: Config, finished: dict[str, Path], tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    # A name of its own: where other tests have promoted a model, its decisions' place is known without the variable.
    alone = micro.model_copy(update={"registry": micro.registry.model_copy(update={"model_name": "nowhere"})})

    def promotions() -> tuple[bool, str]:
        return next((check.passed, check.detail) for check in preflight_checks(alone) if check.name == "promotions")

    place = os.environ["STAR_REGISTRY"]
    assert promotions() == (True, f"are decided in {place} at {os.environ['AWS_ENDPOINT_URL']}")
    environment.delenv("STAR_REGISTRY")
    passed, said = promotions()
    assert not passed and "set STAR_REGISTRY=s3://BUCKET/PREFIX, in a cluster under `cluster.environment`" in said
    with pytest.raises(InputError, match=r"set STAR_REGISTRY=s3://BUCKET/PREFIX"):
        register(alone, refined=finished["refine"], evaluation=finished["evaluate"], out=tmp_path / "out")
    assert list_versions("nowhere") == []  # nothing was published that nobody can promote
    with pytest.raises(InputError, match=r"set STAR_REGISTRY=s3://BUCKET/PREFIX"):
        register_model(finished["refine"], name="nowhere", scores={}, lineage={}, model_digest="d1")


def test_the_champions_pod_downloads_with_its_own_variables_only(
    team, model: Path, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """The command and the variables of deploy/serving/champion.yaml; only addresses, keys and the folder are this machine's."""
    manifest, *_ = yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "serving" / "champion.yaml").read_text())
    [container] = manifest["spec"]["predictor"]["initContainers"]
    (model / "config.json").write_text('{"model_type": "qwen3", "for": "the pod"}')  # an address of its own
    source = register_model(model, name="served", scores={}, lineage={}, model_digest="d1").source
    promote("served", 1)
    here = {"MLFLOW_TRACKING_URI": team.uri} | {key: os.environ[key] for key in ("AWS_ENDPOINT_URL", "STAR_REGISTRY")}
    keys = {"access-key": os.environ["AWS_ACCESS_KEY_ID"], "secret-key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    keys["password"] = "no account here"
    given = {
        entry["name"]: here.get(entry["name"], entry["value"])
        if "value" in entry
        else keys[entry["valueFrom"]["secretKeyRef"]["key"]]
        for entry in container["env"]
    }
    command = [sys.executable, "-m", "star.cli", *container["command"][1:]]
    command = [word.replace("star@champion", "served@champion") for word in command]
    pod = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd()), **given}

    def download(folder: str) -> subprocess.CompletedProcess:
        words = [word.replace("/models/", f"{tmp_path}/{folder}/") for word in command]
        return subprocess.run(words, env=pod, cwd=tmp_path, capture_output=True, text=True)

    for _ in range(2):  # the second time the files are there already
        done = download("models")
        assert done.returncode == 0, done.stderr
    files = {
        path: (tmp_path / "models" / "champion" / path).read_bytes() for path in ("config.json", "model.safetensors")
    }
    assert files == {path: (model / path).read_bytes() for path in files}
    bucket, prefix = split_s3(source)
    registry_s3_client().put_object(Bucket=bucket, Key=prefix + "model.safetensors", Body=b"tampered with")
    done = download("again")
    assert done.returncode == 2 and "served version 1 are not those registered (model.safetensors)" in done.stderr
    assert list((tmp_path / "again").iterdir()) == []


def _keys(prefix: str) -> list[str]:
    pages = registry_s3_client().get_paginator("list_objects_v2").paginate(Bucket="models", Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]
