"""No password reaches a run, an artifact, a log or an error: the tests plant one in every variable that STAR reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from star.errors import InputError
from star.registry.promotion.promote_by_reference import promote_model
from star.tracking.spool import Spool

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t/planted+by=test"
# Variables of the libraries below, read there.
LIBRARIES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
KEYS = (
    "STAR_API_KEY",
    "STAR_TEACHER_KEY",
    "KFP_TOKEN",
    "STAR_WEBHOOK",
)  # our own; whoever knows a webhook's address may post to it
# Addresses may hold a password; the rest are paths, ids and switches, which are shown on purpose.
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "KFP_HOST", "HF_ENDPOINT")
SHOWN = {
    "STAR_PROCESSES", "STAR_RETRY", "STAR_TRAIN_JOB",  # of the section cluster, which refuses what looks like a secret
    "STAR_FAILURES", "STAR_HOME", "STAR_WORK", "STAR_EVENTS", "STAR_RUNNER", "STAR_PARENT_RUN_ID", "STAR_REGISTRY", "STAR_IMAGE",
    "STAR_COMMIT", "STAR_HALF_MICRO_BATCH",
    "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "KFP_RUN_ID", "DVC_STAGE", "RANK", "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG",
    "MLFLOW_HTTP_REQUEST_TIMEOUT", "BFCL_PROJECT_ROOT", "OMP_NUM_THREADS", "GIT_PYTHON_REFRESH", "WORLD_SIZE", "XDG_CACHE_HOME",
    "MALLOC_ARENA_MAX",
    "STAR_CHECKPOINTS", "STAR_REUSE", "KUBERNETES_SERVICE_HOST", "KF_PIPELINES_SA_TOKEN_PATH", "STAR_LEDGER_KEY",
    "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "DVC_NO_ANALYTICS", "GIT_TERMINAL_PROMPT", "STAR_ACCELERATORS",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "DVC_SITE_CACHE_DIR",  # paths
    "KFP_EXPERIMENT", "KFP_NAMESPACE", "HF_HOME", "STAR_CONFIG", "STAR_SHARED_WITH", "STAR_PLAIN_HTTP", "LC_ALL", "LD_LIBRARY_PATH",
}  # fmt: skip
WORK = """
import sys
from pathlib import Path
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.tracking.runs import pipeline_run, stage_run
import os
secret = os.environ["HF_TOKEN"]
with pipeline_run("nightly", params={"token": secret}, tags={"note": f"https://me:{secret}@host/"}):
    try:
        with stage_run("distill", params={"base": f"https://{secret}@hub/model"}) as run:
            run.log_metrics({"loss": 1.0})
            run.set_tags({"token": secret})
            register_model(Path(sys.argv[1]), name="tiny", scores={"exact_match": 1.0}, lineage={}, model_digest="d1")
            promote("tiny", 1, reason="because")
            raise ValueError(secret)
    except ValueError:
        pass
"""


def variables_read() -> set[str]:
    """Every variable that the sources name."""
    found: set[str] = set()
    for folder in ("star", "components", "pipelines"):
        for file in (ROOT / folder).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            if "environ" in source:
                found |= set(re.findall(r"""["']((?:[A-Z][A-Z0-9]*_)+[A-Z0-9]+|RANK)["']""", source))
    return found


def test_every_variable_is_either_planted_or_known_to_be_shown() -> None:
    not_variables = {
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
        "MLFLOW_DISABLE_TELEMETRY",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    }
    not_variables |= {
        "RESOURCE_DOES_NOT_EXIST",
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "INVALID_STATE",
        "TEMPORARILY_UNAVAILABLE",
    }  # MLflow's errors
    not_variables |= {"SC_PAGE_SIZE", "SC_PHYS_PAGES"}  # names that os.sysconf knows
    not_variables |= {"MODEL_CONFIG_MAPPING"}  # a table of the BFCL harness
    unknown = variables_read() - SHOWN - set(ADDRESSES) - set(LIBRARIES) - set(KEYS) - not_variables
    assert not unknown, f"say in this test whether {sorted(unknown)} can hold a secret"


def planted(**more: str) -> dict[str, str]:
    return {**os.environ, **dict.fromkeys((*LIBRARIES, *KEYS), SECRET), **more}


def leaks(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_no_secret_in_runs_artifacts_and_logs(home: Path, model: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WORK, str(model)], capture_output=True, text=True, env=planted())
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert leaks(home) == []
    assert (home / "mlflow.db").stat().st_size > 0


def test_no_secret_in_events_that_wait(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = f"http://me:{SECRET.replace('/', '')}@127.0.0.1:9"
    script = WORK.partition("            register_model")[0] + "    except ValueError:\n        pass\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=planted(MLFLOW_TRACKING_URI=address)
    )
    assert done.returncode == 0, done.stderr
    assert "star tracking replay" in done.stderr
    assert SECRET not in done.stdout + done.stderr and SECRET.replace("/", "") not in done.stdout + done.stderr
    assert leaks(tmp_path) == []
    assert len(list((tmp_path / "spool").iterdir())) == 2


@pytest.mark.parametrize("command", [("models",), ("promote", "1"), ("tracking", "reap"), ("registry", "reconcile")])
def test_no_secret_in_the_error_of_a_command(environment: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    password = SECRET.replace("/", "")
    reach = planted(MLFLOW_TRACKING_URI=f"http://me:{password}@127.0.0.1:9")
    done = subprocess.run([sys.executable, "-m", "star.cli", *command], capture_output=True, text=True, env=reach)
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert password not in done.stdout + done.stderr


def test_the_address_of_another_registry_is_given_by_reference(environment: pytest.MonkeyPatch) -> None:
    given = {"http://me:hunter22@127.0.0.1:9": "env:NAME", "env:NOT_SET": "no variable NOT_SET"}
    for address, said in given.items():
        with pytest.raises(InputError, match=said) as error:
            promote_model("1", name="tiny", to="champion", reason="", to_registry=address)
        assert "hunter22" not in str(error.value)


def test_a_report_in_mlflow_quotes_no_secret_and_keeps_what_only_looks_like_one(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("HF_TOKEN", SECRET)
    report = tmp_path / "report.html"
    report.write_bytes(f"{SECRET}, https://host?key=abc\r\n\udc80".encode("utf-8", "surrogateescape"))
    (tmp_path / "weights.bin").write_bytes(SECRET.encode())
    spool = Spool.open(tmp_path / "spool", {"start": 1})
    spool.append(kind="tags", values={"mlflow.note": f"see {SECRET}"})
    names = [spool.copy_artifact(report), spool.copy_artifact(tmp_path / "weights.bin")]
    copies = [(spool.folder / "files" / name).read_bytes() for name in names]
    assert copies == [b"***, https://host?key=abc\r\n\x80", SECRET.encode()]
    assert report.read_bytes().startswith(SECRET.encode())
    assert '"mlflow.note": "see ***"' in spool.events_file.read_text()
