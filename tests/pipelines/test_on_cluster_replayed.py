"""The tests of a real cluster (tests/on_cluster), as far as they go without pods: against replayed answers of a KFP server."""

import re
from collections.abc import Iterator
from pathlib import Path

import kfp_server_api
import pytest
from typer.testing import CliRunner

from star.cli.schedule import pipeline_app
from star.config.load import load_config
from star.errors import InputError
from star.pipelines import kfp_client, star_pipeline
from tests.kfp_replay.moments import node_names
from tests.kfp_replay.pipelines import spec_of
from tests.kfp_replay.recording import Planned, recording
from tests.kfp_replay.server import KfpReplay
from tests.on_cluster import steps
from tests.on_cluster.site import NEEDED, Finished, Site, cleaned, missing_settings

CACHED = {"preflight": "SUCCEEDED", "register": "SUCCEEDED", "finish": "SUCCEEDED"}
GOING = {"preflight": "SUCCEEDED", "synthesize": "SUCCEEDED", "refine-teacher": "RUNNING"}
GONE = "s3://bucket/gone.json"
REFUSED = f"star: {GONE} does not exist: put it there\nF0101 00:01:40.000000      16 main.go:59] failed to execute component: exit status 2"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline of the tiny profile with two shards of each stage, compiled once."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "tiny.yaml").write_text("extends: tiny\ncluster: {shards: {rollout: 2, extract-topk: 2, evaluate: 2}}\n")
    star_pipeline.compile_pipeline(load_config(str(folder / "tiny.yaml")), folder / "star.yaml", image="star:1")
    return folder / "star.yaml"


def run_of(
    compiled: Path, states: dict[str, str], *, otherwise: str, number: int, cancelled: float | None = None
) -> dict:
    """A run of the compiled pipeline, each task of which ends as `states` says, one after another."""
    from star.cluster.pipeline_plan import planned_tasks

    planned = []
    for at, task in enumerate(planned_tasks(spec_of(compiled.read_bytes()))):
        key = task.place[-1]
        loop = next((part for part in task.place if part.startswith("for-loop")), None)
        shard = next((int(part[1:]) for part in task.place if part.startswith("#")), 0)
        start, state = 60.0 + 40 * at, states.get(key, otherwise)
        end = None if state == "RUNNING" else start + 30
        planned.append(Planned(key, start, end, state=state, loop=loop, shard=shard, hook=key == "finish"))
    return recording(
        planned, run_id=f"0f0f0f0f-0000-4000-8000-{number:012}", workflow=f"star-{number:05}", cancelled=cancelled
    )


@pytest.fixture
def server(compiled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpReplay]:
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp writes its context there
    monkeypatch.setattr(kfp_client, "PAUSE", 0.001)
    monkeypatch.setattr(
        star_pipeline, "upload_and_compile", lambda config, output, *, image: output.write_bytes(compiled.read_bytes())
    )
    failing = {"preflight": "FAILED", "finish": "SUCCEEDED"}
    runs = [
        run_of(compiled, {}, otherwise="SUCCEEDED", number=1),
        run_of(compiled, CACHED, otherwise="CACHED", number=2),
        run_of(compiled, failing, otherwise="OMITTED", number=3),
        run_of(compiled, GOING, otherwise="OMITTED", number=4),
    ]
    ends = ("SUCCEEDED, champion version 1", "SUCCEEDED", "FAILED in preflight", "CANCELED")
    logs = {}
    for run, end in zip(runs, ends, strict=True):
        for node in node_names(run["run_details"]["task_details"]).values():
            for task, said in (
                ("finish", end),
                ("preflight", REFUSED),
            ):
                if f".{task}(0).executor(" in node:
                    logs[node] = f"{said}\n"
    with KfpReplay(*runs, logs=logs, speed=300) as server:
        yield server


def requests_of_kfp() -> list[tuple[str, re.Pattern[str]]]:
    """Method and path of each request that KFP's own client can send, and of the log, which is in an older API."""
    modules = Path(kfp_server_api.__file__).parent.glob("api/*.py")
    found = [pair for file in modules for pair in re.findall(r"'(/apis/v2beta1/[^']*)', '([A-Z]+)'", file.read_text())]
    known = [*found, ("/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log", "GET")]
    return [(method, re.compile(re.sub(r"{[^}]*}", "[^/:]+", path))) for path, method in known]


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEEDED:
        monkeypatch.setenv(name, "there")
    assert missing_settings() == ""
    monkeypatch.delenv("STAR_TEST_IMAGE")
    assert missing_settings() == (
        "STAR_TEST_IMAGE not set: the tests on a cluster need STAR_TEST_IMAGE (the image, built from this checkout, under the "
        "name by which the nodes pull it)"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This client only works with Kubeflow Pipeline")
def test_the_tests_of_a_cluster_pass_against_replayed_answers(server: KfpReplay, tmp_path: Path) -> None:
    import kfp

    def star(*arguments: str) -> Finished:
        assert arguments[0] == "pipeline"
        done = CliRunner().invoke(pipeline_app, [*arguments[1:], "--host", server.host])
        if done.exception and not isinstance(done.exception, SystemExit):
            assert isinstance(done.exception, InputError), done.exc_info
        return Finished(done.exit_code, done.stdout, f"{done.stderr}\n{done.exception}")

    site = Site(kfp.Client(server.host), None, "star:1", tmp_path, base="tiny", star=star, pause=0.2)
    site.kfp.create_experiment(site.name)
    profile = site.profile("tiny")
    with cleaned(site):
        steps.upload_twice(site, profile)
        first = steps.run_to_a_champion(site, profile)
        steps.exit_handler_says(site, first, "SUCCEEDED", "version 1")
        steps.run_from_cache(site, profile)
        failed = steps.fail(site, profile, missing=GONE, remove=False)
        steps.exit_handler_says(site, failed, "FAILED", "preflight")
        steps.cancel(site, profile, during="refine-teacher")
        steps.schedule(site, profile, starts=False)
        assert server.runs and server.store.versions
    known = requests_of_kfp()
    for request in server.requests:
        method, path = request.split(" ")
        assert any(method == verb and pattern.fullmatch(path) for verb, pattern in known), request
    assert not server.runs and not server.store.pipelines and not server.store.recurring_runs and not server.experiments
