"""`star doctor` and the pipeline's first task in broken environments: each check names the fault and the cure."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from star.cli.main import app
from star.config.experiment import Config
from star.config.load import load_config
from star.doctor.check import Check
from star.doctor.estimates import GIB, disk_needed, host_memory_needed, memory_needed
from star.doctor.input_checks import check_prompts
from star.doctor.model_checks import check_vllm
from star.doctor.preflight import preflight_checks, require_all
from star.errors import InputError
from star.modeling.tokenizer import bootstrap_tokenizer, train_tokenizer
from tests.small_models import TINY, write_scratch_model


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """An object store with the bucket `star`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset")  # servers of one process share their objects
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="star")
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders: two that share a tokenizer, and one with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("models")
    other = train_tokenizer(["quite other words, again and again"] * 9, vocab_size=320)
    for name, tokenizer in (
        ("teacher", bootstrap_tokenizer()),
        ("student", bootstrap_tokenizer()),
        ("stranger", other),
    ):
        write_scratch_model(folder / name, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tracking database for all tests, because creating one takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def healthy(store: str, models: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """An environment in which every check passes, and the configuration for it, as it is written in YAML."""
    for name, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STAR_WORK": str(tmp_path / "work"),
        "STAR_HOME": str(home),
    }.items():
        monkeypatch.setenv(name, value)
    gpu = {"accelerator": "nvidia.com/gpu", "accelerator_memory": 80}
    return {
        "teacher": {"base": str(models / "teacher")},
        "student": {"base": str(models / "student")},
        "rollout": {"prompts": 1000},
        "cluster": {
            "nodes": {"gpu": gpu},
            "placement": {"refine-teacher": "gpu", "distill": "gpu", "refine": "gpu"},
            "secrets": {"star-s3": {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SECRET_ACCESS_KEY": "secret-key"}},
            "checkpoints": "s3://star/checkpoints",
        },
    }


def failed_details(settings: dict) -> dict[str, str]:
    return {check.name: check.detail for check in run_checks(settings) if not check.passed}


def run_checks(settings: dict) -> list[Check]:
    return list(preflight_checks(Config.model_validate(settings)))


def test_a_healthy_environment_passes_every_check(healthy: dict) -> None:
    checks = run_checks(healthy)
    assert failed_details(healthy) == {}
    assert [check.name for check in checks] == [
        "secrets", "MLflow", "registry", "promotions", "registration", "checkpoints", "volume", "space",
        "inputs", "prompts", "suites", "rows", "teacher", "student", "tokenizers", "template", "rehearsal",
        "memory", "GPU, refine-teacher", "GPU, distill", "GPU, refine",
    ]  # fmt: skip


def test_the_checks_leave_nothing_behind(healthy: dict, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from star.tracking.server import connect, experiment_id

    monkeypatch.setenv("STAR_REGISTRY", "s3://star/registry")
    assert failed_details(healthy) == {}
    client = connect()
    assert client.search_runs([experiment_id(client)]) == []
    assert boto3.client("s3", endpoint_url=store).list_objects_v2(Bucket="star")["KeyCount"] == 0
    # Only that the rehearsal passed, for a run that is started again.
    assert [file.name for file in Path(os.environ["STAR_WORK"]).iterdir()] == ["rehearsed"]


def no_secret(settings: dict, monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    settings["cluster"]["secrets"]["star-hub"] = {"HF_TOKEN": "token"}
    monkeypatch.delenv("HF_TOKEN", raising=False)


def empty_secret(settings: dict, monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    settings["cluster"]["secrets"]["star-hub"] = {"HF_TOKEN": "token"}
    monkeypatch.setenv("HF_TOKEN", "")


def tracking_down(monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")


def tracking_without_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **_: object) -> None:
    """The server accepts runs, and their artifact location cannot be written."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").create_experiment(
        "star", artifact_location="file:///proc/artifacts"
    )


def another_service(monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    """Another service than MLflow answers at the tracking server's address."""

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")


def registry_in_a_store_that_lets_two_promoters_win(odd_store: Callable, settings: dict, **_: object) -> None:
    del settings["cluster"]["checkpoints"]  # in another store, which the variables do not lead to any more
    odd_store("ignores")


def registry_without_a_bucket(monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    monkeypatch.setenv("STAR_REGISTRY", "s3://absent/registry")


def server_without_a_registry(monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def no_bucket(settings: dict, **_: object) -> None:
    settings["cluster"]["checkpoints"] = "s3://absent/checkpoints"


def store_down(monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("star.folders.s3_client.ATTEMPTS", 1)


def read_only_volume(monkeypatch: pytest.MonkeyPatch, **_: object) -> None:
    monkeypatch.setenv("STAR_WORK", "/proc/star")


def file_for_a_volume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **_: object) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "file"))


def store_larger_than_the_disk(settings: dict, **_: object) -> None:
    settings["rollout"] = {"prompts": 10**9}


def student_with_another_tokenizer(settings: dict, models: Path, **_: object) -> None:
    settings["student"] = {"base": str(models / "stranger")}


def no_such_model(settings: dict, tmp_path: Path, **_: object) -> None:
    settings["teacher"] = {"base": "example/no-such-model"}


def too_few_rows_for_a_rollout(settings: dict, **_: object) -> None:
    settings["data"] = {"generated_rows": 150, "heldout_rows": 30}
    settings["refine"] = {"steps": 8, "updates_per_rollout": 8, "save_steps": 8}


def small_accelerator(settings: dict, **_: object) -> None:
    settings["cluster"]["nodes"]["gpu"]["accelerator_memory"] = 0.0001


def no_cluster_for_a_training_on_several_nodes(
    settings: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **_: object
) -> None:
    settings["cluster"] |= {"train_jobs": {"distill": {}}, "work_claim": "star-work"}
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))


ENVIRONMENTS: list[tuple[Callable, str, str, str]] = [
    (no_secret, "secrets", "HF_TOKEN (from Secret star-hub)", "fill the Secret"),
    (empty_secret, "secrets", "HF_TOKEN", "fill the Secret"),
    (tracking_down, "MLflow", "cannot be used", "start the server or correct MLFLOW_TRACKING_URI"),
    (tracking_without_artifacts, "MLflow", "does not accept a run with an artifact", "check the rights"),
    (another_service, "registry", "cannot be used", "correct MLFLOW_TRACKING_URI"),
    (
        registry_in_a_store_that_lets_two_promoters_win, "promotions", "created the same record twice",
        "Keep STAR_REGISTRY in a store that honours",
    ),
    (server_without_a_registry, "promotions", "STAR_REGISTRY is not set", "set STAR_REGISTRY=s3://BUCKET/PREFIX"),
    (registry_without_a_bucket, "promotions", "has no bucket absent", "make it, or correct the URL"),
    (no_bucket, "checkpoints", "has no bucket absent", "make it, or correct the URL"),
    (store_down, "checkpoints", "cannot be used", "check AWS_ENDPOINT_URL"),
    (read_only_volume, "volume", "/proc/star cannot be written", "give the claim to that user"),
    (file_for_a_volume, "volume", "cannot be written", "leave out cluster.work_claim"),
    (store_larger_than_the_disk, "space", "the teacher's signal", "free some"),
    (student_with_another_tokenizer, "tokenizers", "different tokenizers", "choose a student of the teacher's family"),
    (no_such_model, "model hub", "example/no-such-model", "name a model folder"),
    (
        too_few_rows_for_a_rollout, "prompts", "at most 120 of 150 rows are left to train on, because 30 are held out",
        "give or generate more rows, hold out fewer, or lower `refine.prompts_per_step` or `refine.updates_per_rollout`",
    ),
    (small_accelerator, "GPU, distill", "at least", "place distill on a larger node"),
    (no_cluster_for_a_training_on_several_nodes, "Kubeflow Trainer", "no cluster", "set KUBECONFIG"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "check", "fault", "cure"), ENVIRONMENTS, ids=[entry[0].__name__ for entry in ENVIRONMENTS]
)
def test_a_broken_environment_is_named_with_its_cure(
    break_it: Callable,
    check: str,
    fault: str,
    cure: str,
    healthy: dict,
    models: Path,
    odd_store: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(settings=healthy, models=models, odd_store=odd_store, tmp_path=tmp_path, monkeypatch=monkeypatch)
    # The checks behind it are not run.
    found = next(one for one in preflight_checks(Config.model_validate(healthy)) if one.name == check)
    assert not found.passed and fault in found.detail and cure in found.detail
    assert "secret" not in found.detail.replace("Secret", "").replace("secrets", "")


def test_given_rows_count_as_those_that_they_make(tmp_path: Path) -> None:
    def left(refine: dict, **data: object) -> str:
        return check_prompts(Config.model_validate({"data": {"generated_rows": 0, **data}, "refine": refine}))

    asked, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    rows = tmp_path / "rows.jsonl"
    record = json.dumps({"messages": [asked, answer, asked, answer], "tools": []})
    rows.write_text(f"{record}\n" * 20 + "broken\n" * 20)
    source = {"path": str(rows), "source": "given"}
    # A set is counted until there are enough. Of a conversation each turn may be a row, and a broken line is none.
    step = {"steps": 1, "prompts_per_step": 16}
    enough = "16 at a time for refine: there are rows enough"
    assert left(step, seed_data=str(rows), heldout_rows=4) == enough
    assert left(step, sources=[{**source, "every_turn": True, "share": 0.5}], heldout_rows=4) == enough
    for given in ({"seed_data": str(rows)}, {"sources": [{**source, "every_turn": True, "rows": 20}]}):
        with pytest.raises(InputError, match="at most 15 of 20 rows are left"):
            left(step, **given, heldout_rows=5)
    # The teacher's own training is asked too.
    teacher = {
        "teacher": {"refine": {"steps": 1, "prompts_per_step": 101}},
        "data": {"generated_rows": 200, "heldout_rows": 100},
    }
    with pytest.raises(
        InputError, match=r"teacher.refine samples 101 prompts at a time .* lower `teacher.refine.prompts_per_step`$"
    ):
        check_prompts(Config.model_validate(teacher))


def test_all_faults_are_in_one_message(healthy: dict, monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    no_bucket(healthy)
    student_with_another_tokenizer(healthy, models)
    with pytest.raises(InputError, match=r"checkpoints: .*tokenizers: "):
        require_all(Config.model_validate(healthy))


def test_the_estimate_includes_adapters_and_the_reference_weights(models: Path) -> None:
    from transformers import AutoModelForCausalLM

    count = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(models / "teacher").parameters())
    refine = {"steps": 1, "beta": 0}
    settings = {
        "teacher": {"base": str(models / "teacher"), "refine": refine},
        "student": {"base": str(models / "student")},
    }
    assert memory_needed(Config.model_validate(settings), "refine-teacher") == 16 * count
    refine["beta"] = 1e-3
    assert memory_needed(Config.model_validate(settings), "refine-teacher") == 20 * count
    refine["lora"] = {}
    assert memory_needed(Config.model_validate(settings), "refine-teacher") == 2.5 * count
    assert memory_needed(Config.model_validate(settings), "rollout") == 2 * count
    # The larger of two trainings decides.
    settings["teacher"]["sft"] = {"steps": 1, "learning_rate": 1e-4, "optimizer": "adafactor"}
    assert memory_needed(Config.model_validate(settings), "refine-teacher") == 8 * count


def test_the_8b_teacher_fits_80_gb_with_adapters_only() -> None:
    """With the sizes of the configuration on the hub."""
    base = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip
    scratch = {"vocab_size": 1000, "warmup": {"steps": 1, "learning_rate": 1e-3}}
    small = TINY.model_dump()
    refine = {"steps": 1, "micro_batch_size": 1}
    settings = {"scratch": scratch, "teacher": {"base": base, "refine": refine}, "student": {"base": small}}
    full = Config.model_validate(settings)
    assert memory_needed(full, "refine-teacher") / GIB > 80
    # Each process loads the weights into the node's own memory first; a node without an accelerator trains there.
    assert 52 < host_memory_needed(full, "refine-teacher", accelerator=True, processes=2) / GIB < 56
    # There it also keeps the activations of a micro batch, nearly 40 GiB for each of its sequences.
    assert 145 < host_memory_needed(full, "refine-teacher", accelerator=False, processes=1) / GIB < 175
    assert 175 < disk_needed(full) / GIB < 190  # two checkpoints of 12 bytes per parameter, and the weights
    settings["teacher"]["refine"]["lora"] = {}
    adapters = Config.model_validate(settings)
    assert memory_needed(adapters, "refine-teacher") / GIB < 40
    assert host_memory_needed(adapters, "refine-teacher", accelerator=True, processes=1) / GIB < 16
    assert disk_needed(adapters) / GIB < 40


def test_a_profile_with_vllm_needs_an_image_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = list(load_config("qwen3-0.6b").vllm_stages())
    assert stages == ["refine-teacher", "rollout", "extract-topk", "refine", "evaluate"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"refine-teacher, .*evaluate run vLLM, .*: use the image of target `vllm`"):
        check_vllm(stages)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert check_vllm(["rollout"]) == "installed, for rollout"


def test_the_doctor_exits_with_status_2_and_prints_the_fault(
    healthy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile is for one machine: it has nodes, and nothing that only pods could use."""
    for name in ("secrets", "checkpoints"):
        del healthy["cluster"][name]
    monkeypatch.setenv("STAR_REGISTRY", "s3://absent/registry")
    profile = tmp_path / "profile.yaml"
    profile.write_text(json.dumps(healthy))
    done = CliRunner().invoke(app, ["doctor", "--config", str(profile)])
    assert done.exit_code == 2
    [line] = [line for line in done.stdout.splitlines() if "promotions" in line]
    assert line.startswith("FAIL") and "make it, or correct the URL" in line
    names = [line[5:28].strip() for line in done.stdout.splitlines() if line.startswith(("ok", "FAIL"))]
    assert {"torch", "home", "MLflow", "rehearsal", "disk", "memory"} <= set(names)
