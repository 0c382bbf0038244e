"""What the tests on a cluster do and check, one function each. The later ones use the results of the first run."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

from tests.on_cluster.site import ENDED, ROOT, Finished, Site

CACHED_STAGES = ("synthesize", "refine-teacher", "rollout", "extract-topk", "distill", "refine", "evaluate")
TOOLS = ROOT / "configs" / "tools.json"


def wait_for_end(site: Site, run_id: str) -> Finished:
    """Follows a run with `status --wait` until it has ended."""
    return site.star("pipeline", "status", run_id, "--wait", "--poll", str(site.pause))


def put_tools(site: Site, name: str) -> str:
    """Puts the tools into the object store and returns their address."""
    from star.folders.s3_client import S3Folder, open_s3

    place = S3Folder.parse(f"{site.s3}/{site.name}")
    with open_s3(place) as client:
        client.upload_file(str(TOOLS), place.bucket, f"{place.prefix}/{name}")
    return f"{site.s3}/{site.name}/{name}"


def upload_twice(site: Site, profile: str) -> None:
    """The same upload twice is one pipeline with one version."""
    for _ in range(2):
        done = site.star("pipeline", "upload", "--config", profile, "--image", site.image, "--pipeline", site.name)
        assert done.status == 0, done.text
    versions = site.kfp.list_pipeline_versions(site.kfp.get_pipeline_id(site.name)).pipeline_versions
    assert len(versions) == 1 and versions[0].pipeline_version_id in done.text


def lose_a_pod(site: Site, run_id: str, task: str) -> str:
    """Deletes the first pod of a task once it runs, and returns its name."""

    def running() -> str | None:
        return next((pod.metadata.name for pod in site.pods_of(run_id, task) if pod.status.phase == "Running"), None)

    name = site.wait_for(f"a pod of {task} runs", running, minutes=30)
    site.pods.delete_namespaced_pod(name, site.namespace)
    return name


def run_to_a_champion(site: Site, profile: str) -> str:
    """A run with shards, of which a pod is deleted in the middle, succeeds. Returns its id."""
    run_id = site.submit(profile)
    lost: list[str] = []
    if site.pods:
        thread = threading.Thread(target=lambda: lost.append(lose_a_pod(site, run_id, "distill")), daemon=True)
        thread.start()
    done = wait_for_end(site, run_id)
    assert site.state(run_id) == "SUCCEEDED" and done.status == 0, done.text
    for stage in ("rollout", "extract-topk", "evaluate"):
        assert all(f"{stage} {shard}/2" in done.text for shard in (1, 2)), f"shards of {stage} in {done.text}"
    if site.pods:
        thread.join(timeout=60)
        [name] = lost
        others = {pod.metadata.name for pod in site.pods_of(run_id, "distill")} - {name}
        assert others, "the deleted pod of distill had no successor"
    return run_id


def exit_handler_says(site: Site, run_id: str, *words: str) -> None:
    """The log of the exit handler has these words."""
    done = site.star("pipeline", "logs", run_id, "--task", "finish")
    assert done.status == 0 and all(word in done.text for word in words), done.text


def run_from_cache(site: Site, profile: str) -> str:
    """The same run again computes nothing: no stage whose result is cached has a pod. Returns its id."""
    run_id = site.submit(profile)
    done = wait_for_end(site, run_id)
    assert site.state(run_id) == "SUCCEEDED" and done.status == 0, done.text
    skipped = [entry for entry in site.tasks(run_id) if entry.display_name == "executor" and entry.state == "SKIPPED"]
    assert len(skipped) >= len(CACHED_STAGES), f"{len(skipped)} tasks from the cache"
    if site.pods:
        assert {pod.metadata.labels["star/task"] for pod in site.pods_of(run_id)} <= {"preflight", "register", "finish"}
    return run_id


def fail(site: Site, profile: str, *, missing: str, remove: bool) -> str:
    """A run whose input is gone fails in its pre-flight, says which, and is not tried again. Returns its id."""
    run_id = site.submit(profile)
    if remove:  # before the first pod has started
        from star.folders.s3_client import S3Folder, open_s3

        place = S3Folder.parse(missing)
        with open_s3(place) as client:
            client.delete_object(Bucket=place.bucket, Key=place.prefix)
    done = wait_for_end(site, run_id)
    assert site.state(run_id) == "FAILED" and done.status == 2, done.text  # 2: the user's input is at fault
    assert "preflight" in done.text and missing.rpartition("/")[2] in done.text, done.text
    assert "Traceback" not in done.text
    if site.pods:
        assert len(site.pods_of(run_id, "preflight")) == 1
    return run_id


def cancel(site: Site, profile: str, *, during: str) -> str:
    """A run that is cancelled while a stage runs stops, and its pods with it. Returns its id."""
    run_id = site.submit(profile)

    def started() -> bool:
        return any(
            entry.display_name.partition("(")[0] == during and entry.state == "RUNNING" for entry in site.tasks(run_id)
        )

    site.wait_for(f"{during} runs", started, minutes=30)
    done = site.star("pipeline", "cancel", run_id)
    assert done.status == 0, done.text
    done = wait_for_end(site, run_id)
    assert done.status == 1 and "CANCELED" in done.text, done.text
    assert site.state(run_id) in ENDED
    if site.pods:
        site.wait_for(
            "no pod of the cancelled run runs",
            lambda: all(pod.status.phase not in ("Pending", "Running") for pod in site.pods_of(run_id)),
        )
    return run_id


def schedule(site: Site, profile: str, *, starts: bool) -> None:
    """A schedule starts a run of the uploaded version, is listed with what it does, and is gone after its deletion."""
    options = ("--config", profile, "--image", site.image, "--pipeline", site.name, "--experiment", site.name)
    made = site.star("pipeline", "schedule", "create", *options, "--every", "60s", "--name", site.name)
    assert made.status == 0 and "at most 1 run at a time" in made.text, made.text
    listed = site.star("pipeline", "schedule", "list", "--experiment", site.name)
    assert listed.status == 0 and "enabled" in listed.text and "every 60 s" in listed.text, listed.text
    group = site.kfp.get_experiment(experiment_name=site.name, namespace=os.environ.get("KFP_NAMESPACE"))
    [own] = site.kfp.list_recurring_runs(experiment_id=group.experiment_id).recurring_runs
    if starts:
        site.wait_for(
            "the schedule has started a run",
            lambda: [run for run in site.runs() if run.recurring_run_id == own.recurring_run_id],
        )
    assert site.star("pipeline", "schedule", "disable", site.name, "--experiment", site.name).status == 0
    assert site.kfp.get_recurring_run(own.recurring_run_id).status == "DISABLED"
    assert site.star("pipeline", "schedule", "delete", site.name, "--experiment", site.name).status == 0
    assert not site.kfp.list_recurring_runs(experiment_id=group.experiment_id).recurring_runs


def fetch_champion(site: Site, run_id: str, folder: Path) -> None:
    """The champion is of this run, is fetched and verified here, answers a request, and its lineage is whole."""
    from star.tracking.server import connect

    client = connect()
    champion = client.get_model_version_by_alias(site.name, "champion")
    logged = client.get_run(champion.run_id)
    assert logged.data.tags.get("kfp.pipeline_run_id") == run_id
    os.environ["STAR_REGISTRY"] = f"{site.s3}/{site.name}/registry"
    fetched = site.star("models", "download", f"{site.name}@champion", "--out", str(folder / "champion"))
    assert fetched.status == 0 and (folder / "champion" / "model.safetensors").is_file(), fetched.text
    request = "Book a flight from Oslo to Rome"
    called = site.star("call", request, "--tools", str(ROOT / "configs" / "travel.json"), "--name", site.name)
    assert called.status == 0 and "book_flight" in called.text, called.text
    lineage = site.star("lineage", f"{site.name}@champion")
    assert lineage.status == 0, lineage.text


def reach(site: Site) -> None:
    """KFP and the namespace answer, before anything is made."""
    assert site.kfp.get_kfp_healthz() is not None
    if site.pods:
        site.pods.list_namespaced_pod(site.namespace, limit=1)
        assert shutil.which("git") is None or _is_committed(), "commit first: the image is built from a commit"


def _is_committed() -> bool:
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "star", "components", "pipelines", "configs"]
    return not subprocess.run(command, capture_output=True, text=True).stdout
