"""The cluster that the tests run on, what they make there, and how all of it is removed again.

Everything has the name `star-test-<random>`: the pipeline, the experiments of KFP and of MLflow, the schedule, the model, and the folder in
the object store. Assertions ask KFP, Kubernetes and MLflow themselves; what `star` prints is checked beside them.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import kfp
    from kubernetes.client import CoreV1Api, V1Pod

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "deploy" / "profiles" / "test-cluster.yaml"
ENDED = ("SUCCEEDED", "FAILED", "CANCELED")
NEEDED = {
    "KUBECONFIG": "the file by which kubectl reaches the cluster",
    "KFP_HOST": "address of Kubeflow Pipelines as seen from here, such as http://localhost:8080 (kubectl port-forward); "
    "KFP_TOKEN and KFP_NAMESPACE if it wants them",
    "STAR_TEST_IMAGE": "the image, built from this checkout, under the name by which the nodes pull it",
    "STAR_TEST_S3": "s3://bucket/folder for inputs and registry, which pods and this machine reach",
    "AWS_ENDPOINT_URL": "address of the object store as seen from here",
    "AWS_ACCESS_KEY_ID": "its key, with which objects under STAR_TEST_S3 may be written and removed",
    "AWS_SECRET_ACCESS_KEY": "and its secret",
    "MLFLOW_TRACKING_URI": "address of MLflow as seen from here; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
    "of an account that may delete the tests' model and experiment, such as star-pipeline",
}
OTHERS = {
    "STAR_TEST_PROFILE": f"a profile whose `cluster` suits yours; {PROFILE.relative_to(ROOT)} by default, which uses deploy/base",
    "STAR_TEST_NAMESPACE": "namespace of the runs' pods; KFP_NAMESPACE or `kubeflow` by default",
}


def missing_settings() -> str:
    """One sentence that says what is not set; empty if all is there."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if not missing:
        return ""
    first = f"{', '.join(missing)} not set: the tests on a cluster need"
    return f"{first} {'; '.join(f'{name} ({NEEDED[name]})' for name in missing)}"


@dataclass
class Finished:
    """What a command has printed, and its exit status."""

    status: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """Both."""
        return f"{self.stdout}\n{self.stderr}"


def run_star(*arguments: str) -> Finished:
    """Runs `star`, whose output is shown while it comes."""
    command = [sys.executable, "-m", "star.cli", *arguments]
    print(f"\n$ star {' '.join(arguments)}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return Finished(process.returncode, "".join(lines), "")


@dataclass
class Site:
    """One cluster with what the tests have made there.

    Attributes:
        kfp: KFP's own client.
        pods: Kubernetes' API; None where KFP's answers are replayed and there are no pods.
        star: Runs the command line.
    """

    kfp: "kfp.Client"
    pods: "CoreV1Api | None"
    image: str
    folder: Path  # for profiles
    namespace: str = "kubeflow"
    s3: str = ""
    base: str = str(PROFILE)
    star: Callable[..., Finished] = run_star
    pause: float = 5.0
    name: str = field(default_factory=lambda: f"star-test-{uuid.uuid4().hex[:8]}")
    run_ids: list[str] = field(default_factory=list)

    def profile(self, label: str, **sections: Any) -> str:
        """Writes a profile that changes these sections of the base, and returns its path.

        Model, registry and MLflow's experiment are the tests' own, so that a champion of yours stays what it is.
        """
        environment = {"MLFLOW_EXPERIMENT_NAME": self.name, "STAR_REGISTRY": f"{self.s3}/{self.name}/registry"}
        cluster = {"shards": {"rollout": 2, "extract-topk": 2, "evaluate": 2}}
        if self.s3:
            cluster["environment"] = environment
        content = {
            "extends": self.base,
            "name": f"{self.name}-{label}",
            "registry": {"model_name": self.name},
            "cluster": cluster,
        }
        path = self.folder / f"{label}.yaml"
        path.write_text(yaml.safe_dump(content | sections, sort_keys=False))
        return str(path)

    def submit(self, profile: str) -> str:
        """Starts a run and returns its id."""
        done = self.star("pipeline", "submit", "--config", profile, "--image", self.image, "--experiment", self.name)
        assert done.status == 0, done.text
        known = {run.run_id for run in self.runs()}
        [run_id] = [line for line in done.text.split() if line in known and line not in self.run_ids]
        self.run_ids.append(run_id)
        return run_id

    def runs(self) -> list[Any]:
        """The runs of the tests' experiment, as KFP lists them."""
        group = self.kfp.get_experiment(experiment_name=self.name, namespace=os.environ.get("KFP_NAMESPACE"))
        found, token = [], ""
        while True:
            page = self.kfp.list_runs(experiment_id=group.experiment_id, page_size=100, page_token=token)
            found += page.runs or []
            token = page.next_page_token
            if not token:
                return found

    def state(self, run_id: str) -> str:
        """The state of a run, as KFP says it."""
        return self.kfp.get_run(run_id).state

    def tasks(self, run_id: str) -> list[Any]:
        """The entries of a run's tasks in KFP's answer: nodes of the workflow, with drivers and groups."""
        return [entry for entry in self.kfp.get_run(run_id).run_details.task_details if entry.display_name]

    def pods_of(self, run_id: str, task: str | None = None) -> list["V1Pod"]:
        """The pods of a run, or of one of its tasks, drivers left out."""
        assert self.pods, "there are no pods here"
        selector = f"pipeline/runid={run_id},star/task{f'={task}' if task else ''}"
        return self.pods.list_namespaced_pod(self.namespace, label_selector=selector).items

    def wait_for(self, what: str, found: Callable[[], Any], *, minutes: float = 15) -> Any:
        """Asks until the answer is true, and returns it."""
        deadline = time.monotonic() + 60 * minutes
        while not (answer := found()):
            assert time.monotonic() < deadline, f"after {minutes:g} minutes still not: {what}"
            time.sleep(self.pause)
        return answer


def removals(site: Site) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is to be removed, in this order: its name, and what removes it. KFP is asked for what there is."""
    group = site.kfp.get_experiment(experiment_name=site.name, namespace=os.environ.get("KFP_NAMESPACE"))
    schedules = site.kfp.list_recurring_runs(experiment_id=group.experiment_id, page_size=100).recurring_runs or []
    for schedule in schedules:
        key = schedule.recurring_run_id
        yield f"schedule {key}", lambda key=key: site.kfp.delete_recurring_run(key)
    for run in site.runs():
        if run.state not in ENDED:
            yield f"work of run {run.run_id}", lambda run=run: site.kfp.terminate_run(run.run_id)
            yield (
                f"end of run {run.run_id}",
                lambda run=run: site.wait_for("ended", lambda: site.state(run.run_id) in ENDED),
            )
        if site.pods:
            yield f"pods of run {run.run_id}", lambda run=run: _remove_pods(site, run.run_id)
        yield f"run {run.run_id}", lambda run=run: site.kfp.delete_run(run.run_id)
    pipeline = site.kfp.get_pipeline_id(site.name)
    if pipeline:
        for version in site.kfp.list_pipeline_versions(pipeline, page_size=100).pipeline_versions or []:
            key = version.pipeline_version_id
            yield f"version {key}", lambda key=key: site.kfp.delete_pipeline_version(pipeline, key)
        yield f"pipeline {site.name}", lambda: site.kfp.delete_pipeline(pipeline)
    yield f"experiment {site.name}", lambda: site.kfp.delete_experiment(group.experiment_id)


def _remove_pods(site: Site, run_id: str) -> None:
    assert site.pods
    site.pods.delete_collection_namespaced_pod(site.namespace, label_selector=f"pipeline/runid={run_id}")


def other_removals(site: Site) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is to be removed from MLflow and from the object store."""
    from star.folders.s3_client import S3Folder, open_s3
    from star.tracking.server import connect

    client, place = connect(), S3Folder.parse(f"{site.s3}/{site.name}")

    def remove_experiment() -> None:
        experiment = client.get_experiment_by_name(site.name)
        if experiment:
            client.delete_experiment(experiment.experiment_id)

    def remove_objects() -> None:
        with open_s3(place) as s3:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=f"{place.prefix}/"):
                for entry in page.get("Contents", []):
                    s3.delete_object(Bucket=place.bucket, Key=entry["Key"])

    if client.search_registered_models(f"name = '{site.name}'"):
        yield f"model {site.name} in MLflow", lambda: client.delete_registered_model(site.name)
    yield f"experiment {site.name} in MLflow", remove_experiment
    yield f"objects under {site.s3}/{site.name}", remove_objects


@contextmanager
def cleaned(site: Site) -> Iterator[Site]:
    """Removes everything at the end, also after a failure or Ctrl-C, and says what stays."""
    try:
        yield site
    finally:
        left = []
        for source in (removals, other_removals) if site.s3 else (removals,):
            try:
                for what, remove in source(site):
                    try:
                        remove()
                    except Exception as error:
                        left.append(f"{what}: {type(error).__name__} {str(error).splitlines()[0]}")
            except Exception as error:
                left.append(f"what {source.__name__} would have found: {type(error).__name__} {error}")
        if site.pods:
            left.append("what the runs wrote to KFP's bucket, for which KFP has no call: give it a lifecycle rule")
            left.append(
                "unfinished work of stopped stages on the volume of `work_claim`: deploy/clean removes it in time"
            )
        print("\nremoved what was made; left:", *(left or ["nothing"]), sep="\n  ", flush=True)
