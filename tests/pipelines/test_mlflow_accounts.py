"""MLflow as deploy/base starts it, on loopback: it asks for an account, and each account has the rights that the documents name."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

BASE = Path(__file__).resolve().parents[2] / "deploy" / "base"
MARK = "address-of-the-database"
SECRET = "a secret of /the@manifest: 100%"
HERE = ("--host", "--port", "--artifacts-destination")  # arguments that are other ones on this machine
ADMINISTRATOR, PIPELINE, SERVING = "admin", "star-pipeline", "star-serving"


@pytest.fixture
def tracking_server(tmp_path: Path, own_postgres: str) -> Iterator[str]:
    """MLflow with the manifest's arguments and variables; only addresses and the number of workers are others. Its address."""
    pytest.importorskip("flask_wtf", reason="needs MLflow's server: pip install 'star-distill[mlflow]'")
    documents = yaml.safe_load_all((BASE / "mlflow.yaml").read_text())
    [container] = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = dict(zip(HERE, ("127.0.0.1", port, tmp_path / "artifacts"), strict=True))
    settings = (BASE / "auth.ini").read_text()
    database = f"{own_postgres}?application_name={MARK}"  # one for both, as in the manifest
    (tmp_path / "auth.ini").write_text(re.sub("database_uri = .*", f"database_uri = {database}", settings))
    server = f"http://127.0.0.1:{port}"
    given = {entry["name"]: entry.get("value") or SECRET for entry in container["env"]} | {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_TRACKING_URI": server,
    }
    hosts = "--allowed-hosts="
    args = [word.replace("$(NAMESPACE)", "team-a") for word in container["args"]]
    words = [f"{word},127.0.0.1:{port}" if word.startswith(hosts) else word for word in args]
    words = [f"{key}={here[key]}" if (key := word.split("=")[0]) in here else word for word in words]
    assert len([word for word in words if word.split("=")[0] in HERE]) == len(HERE)
    (tmp_path / "read-only").mkdir(mode=0o500)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers=1", *words],
            env=os.environ | given,
            stdout=log,
            stderr=log,
            cwd=tmp_path / "read-only",
        )
    try:
        deadline = time.monotonic() + 240
        while _status(f"{server}/health", "10.0.0.1:5000") is None:  # as the kubelet asks, by the pod's address
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait()


def accounts(server: str, *words: str) -> str:
    """Runs deploy/base/accounts.py as the job and as people do; returns what it prints."""
    administrator = {"MLFLOW_TRACKING_USERNAME": ADMINISTRATOR, "MLFLOW_TRACKING_PASSWORD": SECRET}
    passwords = {"PIPELINE_PASSWORD": f"{SECRET} 1", "SERVING_PASSWORD": f"{SECRET} 2"}
    command = [sys.executable, "-W", "ignore", str(BASE / "accounts.py"), *words]
    environment = os.environ | administrator | passwords | {"MLFLOW_TRACKING_URI": server}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_tracking_server_asks_for_an_account_and_gives_it_its_rights(tracking_server: str) -> None:
    """No account, one that reads, the pipeline's, a promoter's: each does what the documents say, and nothing else."""
    from mlflow import MlflowClient

    accounts(tracking_server)
    assert "star-pipeline" in accounts(tracking_server)  # again: nothing changes
    reader, promoter = (
        dict(line.split("=", 1) for line in accounts(tracking_server, kind, name).splitlines())
        for kind, name in (("person", "anna"), ("promoter", "paul"))
    )
    people = {who["MLFLOW_TRACKING_USERNAME"]: who["MLFLOW_TRACKING_PASSWORD"] for who in (reader, promoter)}
    passwords = {PIPELINE: f"{SECRET} 1", SERVING: f"{SECRET} 2", **people}

    def ask(who: str | None, method: str, path: str, **body: object) -> int:
        login = (who, passwords[who]) if who else None
        url = f"{tracking_server}/api/2.0/mlflow{path}"
        return requests.request(method, url, auth=login, json=body or None, timeout=30).status_code

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", PIPELINE)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", passwords[PIPELINE])
        client = MlflowClient(tracking_server)
        client.create_experiment("star")
        run = client.create_run(client.get_experiment_by_name("star").experiment_id)
        client.log_text(run.info.run_id, "a report", "report.md")
        client.create_registered_model("star")
        client.create_model_version("star", source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
        client.set_registered_model_alias("star", "challenger", "1")
        client.delete_registered_model_alias("star", "challenger")
    alias = {"name": "star", "alias": "champion", "version": "1"}
    version = {"name": "star", "version": "1"}
    upload = f"-artifacts/artifacts/{run.info.experiment_id}/{run.info.run_id}/artifacts/report.md"
    allowed = {  # who -> reads, moves an alias, replaces an artifact, deletes a version, makes an account
        None: [401, 401, 401, 401, 401],
        "anna": [200, 403, 403, 403, 403],
        SERVING: [200, 403, 403, 403, 403],
        "paul": [200, 200, 403, 403, 403],
        PIPELINE: [200, 200, 200, 403, 403],
    }
    for who, right in allowed.items():
        assert right == [
            ask(who, "GET", "/registered-models/get?name=star"),
            ask(who, "POST", "/registered-models/alias", **alias),
            ask(who, "PUT", upload),
            ask(who, "DELETE", "/model-versions/delete", **version),
            ask(who, "POST", "/users/create", username="mallory", password="a-long-password"),
        ], who
    asked = f"{tracking_server}/api/2.0/mlflow/experiments/search?max_results=1"
    assert _status(asked, "mlflow.team-a.svc.cluster.local:5000") == 401
    assert _status(asked, "elsewhere.example.com") == 403
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    assert not [line for line in lines if MARK.encode() in line or SECRET.encode() in line]


@pytest.mark.slow
def test_the_pipelines_account_rehearses_a_registration(
    tracking_server: str, s3_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may register and promote, and not delete. So one throwaway version stays, however often it is rehearsed."""
    from star.doctor.registry_rehearsal import rehearse_registration
    from star.tracking.server import connect

    accounts(tracking_server)
    login = {"MLFLOW_TRACKING_USERNAME": PIPELINE, "MLFLOW_TRACKING_PASSWORD": f"{SECRET} 1"}
    places = {"MLFLOW_TRACKING_URI": tracking_server, "STAR_REGISTRY": "s3://models/accounts"}
    for name, value in {**s3_store, **login, **places}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        detail = rehearse_registration("star")
        assert detail.endswith(
            "star-preflight-0 stays for the next pre-flight (MLflow's account may not delete models)"
        )
        [model] = connect().search_registered_models()
        assert (model.name, list(model.tags), model.aliases) == ("star-preflight-0", ["star.preflight"], {})
        assert len(connect().search_model_versions()) == 1


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:  # the process has ended
        return False


def _status(url: str, host: str) -> int | None:
    try:
        return requests.get(url, headers={"Host": host}, timeout=10).status_code
    except requests.ConnectionError:
        return None
