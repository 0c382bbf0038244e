"""The tiny profile on a real cluster: `make test-cluster` (docs/kubernetes-operations.md#try-your-cluster). About an hour.

The tests go in this order, and the later ones use the results of the first run. Everything is removed at the end.
"""

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.on_cluster import steps
from tests.on_cluster.site import OTHERS, PROFILE, Site, cleaned, missing_settings

pytestmark = pytest.mark.skipif("STAR_TEST_CLUSTER" not in os.environ, reason="needs a cluster: make test-cluster")
RUNS: dict[str, str] = {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The cluster, in which everything that the tests made is removed at the end."""
    if missing := missing_settings():
        pytest.exit(f"{missing}. It may have: {'; '.join(f'{name} ({what})' for name, what in OTHERS.items())}", 2)
    import kfp
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    namespace = os.environ.get("KFP_NAMESPACE")
    with contextlib.redirect_stdout(io.StringIO()):
        server = kfp.Client(
            os.environ["KFP_HOST"], existing_token=os.environ.get("KFP_TOKEN"), namespace=namespace or "kubeflow"
        )
    # kill, as Ctrl-C, ends in the removal.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    site = Site(
        kfp=server,
        pods=client.CoreV1Api(),
        image=os.environ["STAR_TEST_IMAGE"],
        folder=tmp_path_factory.mktemp("profiles"),
        namespace=os.environ.get("STAR_TEST_NAMESPACE") or namespace or "kubeflow",
        s3=os.environ["STAR_TEST_S3"].rstrip("/"),
        base=str(Path(os.environ.get("STAR_TEST_PROFILE") or PROFILE).resolve()),
    )
    steps.reach(site)
    site.kfp.create_experiment(site.name, namespace=namespace)
    print(f"\neverything that these tests make is called {site.name}", flush=True)
    with cleaned(site):
        yield site


@pytest.fixture(scope="module")
def profile(site: Site) -> str:
    """The profile of the run that ends with a champion, with tools from the object store."""
    return site.profile("tiny", data={"tools": steps.put_tools(site, "tools.json")})


@pytest.fixture
def first_run() -> str:
    """The run that ended with a champion."""
    return RUNS.get("first") or pytest.skip("the first run did not succeed")


def test_the_doctor_finds_nothing_wrong(site: Site, profile: str) -> None:
    done = site.star("doctor", "--config", profile)
    assert done.status == 0, done.text


def test_the_same_upload_is_one_version(site: Site, profile: str) -> None:
    steps.upload_twice(site, profile)


def test_a_run_with_shards_survives_a_lost_pod_and_has_a_champion(site: Site, profile: str) -> None:
    RUNS["first"] = steps.run_to_a_champion(site, profile)


def test_the_exit_handler_names_the_champion(site: Site, first_run: str) -> None:
    steps.exit_handler_says(site, first_run, "SUCCEEDED", "version 1")


def test_the_champion_is_fetched_and_answers(site: Site, first_run: str, tmp_path: Path) -> None:
    steps.fetch_champion(site, first_run, tmp_path)


def test_the_same_run_again_comes_from_the_cache(site: Site, profile: str, first_run: str) -> None:
    steps.run_from_cache(site, profile)


def test_a_run_whose_input_is_gone_says_so(site: Site) -> None:
    missing = steps.put_tools(site, "tools-that-go.json")
    run_id = steps.fail(site, site.profile("failing", data={"tools": missing}), missing=missing, remove=True)
    steps.exit_handler_says(site, run_id, "FAILED", "preflight")


def test_a_cancelled_run_stops(site: Site, profile: str) -> None:
    another = site.profile("cancelled", seed=8, extends=profile)
    run_id = steps.cancel(site, another, during="refine-teacher")
    steps.exit_handler_says(site, run_id, "CANCELED")


def test_a_schedule_starts_runs_until_it_is_disabled(site: Site, profile: str) -> None:
    steps.schedule(site, profile, starts=True)
