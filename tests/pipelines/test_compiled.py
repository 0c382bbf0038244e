"""The compiled pipelines in deploy/pipelines: image, command, node, secrets, volumes, retries and caching of every task."""

import json
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from star.config.cluster import Cluster, Node
from star.config.experiment import Config
from star.config.load import load_config
from star.errors import InputError
from star.pipelines.compile_snapshots import FOLDER, PROFILES, snapshot
from star.pipelines.star_pipeline import compile_pipeline

ROOT = Path(__file__).resolve().parents[2]
H100 = str(ROOT / "deploy" / "profiles" / "h100.yaml")
SMALL = {"cpu": 2, "memory": 6, "accelerator": None, "shm": None}
TEACHER = {"cpu": 8, "memory": 128, "accelerator": ("nvidia.com/gpu", "1"), "shm": "16Gi"}
STUDENT = {**TEACHER, "memory": 64}
# display name -> function of its component, node, cached
TASKS = {
    "preflight": ("preflight", SMALL, False),
    "synthesize": ("synthesize", SMALL, True),
    "refine-teacher": ("refine_teacher", TEACHER, True),
    "rollout": ("rollout", TEACHER, True),
    "merge-rollout": ("merge", SMALL, True),
    "extract-topk": ("extract_topk", TEACHER, True),
    "merge-extract-topk": ("merge", SMALL, True),
    "distill": ("distill", STUDENT, True),
    "refine": ("refine", STUDENT, True),
    "evaluate": ("evaluate", TEACHER, True),
    "merge-evaluate": ("merge_evaluation", SMALL, True),
    "register": ("register", SMALL, False),
    "finish": ("finish", SMALL, False),
}
KEYS = {("star-s3", "access-key", "AWS_ACCESS_KEY_ID"), ("star-s3", "secret-key", "AWS_SECRET_ACCESS_KEY")}
WEBHOOK = {("star-webhook", "url", "STAR_WEBHOOK")}
ACCOUNT = {("star-mlflow-pipeline", "password", "MLFLOW_TRACKING_PASSWORD")}
TRAININGS = ("refine-teacher", "distill", "refine")
SECRETS = {  # of each task; the pre-flight checks that all are there
    **dict.fromkeys(TASKS, ACCOUNT),
    **dict.fromkeys(TRAININGS, ACCOUNT | KEYS),  # checkpoints in the object store
    "preflight": ACCOUNT | KEYS | WEBHOOK,
    "merge-rollout": set(),
    "merge-extract-topk": set(),
    "register": ACCOUNT | KEYS,
    "finish": ACCOUNT | WEBHOOK,
}
SHARDED = {"rollout": 4, "extract-topk": 4, "evaluate": 3}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def tasks_of(profile: str) -> dict[str, dict]:
    """Display name -> specification, container and Kubernetes settings of every task that runs a container."""
    spec, *platform = yaml.safe_load_all((FOLDER / f"{profile}.yaml").read_text())
    [kubernetes] = [document["platforms"]["kubernetes"]["deploymentSpec"]["executors"] for document in platform]
    graphs = [spec["root"], *spec["components"].values()]
    found = {}
    for task in (task for graph in graphs if "dag" in graph for task in graph["dag"]["tasks"].values()):
        executor = spec["components"][task["componentRef"]["name"]].get("executorLabel")
        if executor:
            container = spec["deploymentSpec"]["executors"][executor]["container"]
            found[task["taskInfo"]["name"]] = {"task": task, "container": container, "pod": kubernetes[executor]}
    return found


def node_of(task: dict) -> dict:
    resources = task["container"]["resources"]
    assert resources["cpuRequest"] == resources["cpuLimit"] and resources["memoryRequest"] == resources["memoryLimit"]
    accelerator = resources.get("accelerator")
    shm = [mount for mount in task["pod"].get("emptyDirMounts", []) if mount["mountPath"] == "/dev/shm"]
    assert all(mount["medium"] == "Memory" for mount in shm)
    return {
        "cpu": resources["cpuLimit"],
        "memory": round(resources["memoryLimit"] / 1.073741824, 6),
        "accelerator": accelerator and (accelerator["resourceType"], accelerator["resourceCount"]),
        "shm": shm[0]["sizeLimit"] if shm else None,
    }


@pytest.mark.parametrize("name", PROFILES)
def test_the_snapshots_are_up_to_date(name: str) -> None:
    assert (FOLDER / f"{name}.yaml").read_text() == snapshot(PROFILES[name]), "run: make compile"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_snapshots_are_valid_for_kfp(profile: str) -> None:
    spec, platform = yaml.safe_load_all((FOLDER / f"{profile}.yaml").read_text())
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(spec["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_the_tiny_profile_has_no_shards_and_no_gpu() -> None:
    tasks = tasks_of("tiny")
    assert set(tasks) == set(TASKS) - {f"merge-{stage}" for stage in SHARDED}
    assert all(node_of(task) == SMALL for task in tasks.values())


@pytest.mark.parametrize("profile", ["qwen3-0.6b", "h100"])
def test_the_pipeline_has_exactly_these_tasks(profile: str) -> None:
    assert set(tasks_of(profile)) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_the_settings_of_the_h100_profile(name: str) -> None:
    function, node, cached = TASKS[name]
    task = tasks_of("h100")[name]
    container, pod = task["container"], task["pod"]
    assert container["image"] == "star-python:latest"
    assert container["command"][:2] == ["sh", "-ec"]
    assert f"def {function}(" in container["command"][-1]
    assert container["args"] == ["--executor_input", "{{$}}", "--function_to_execute", function]
    assert node_of(task) == node
    on_gpu = node["accelerator"] is not None
    selector = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"} if on_gpu else {}
    assert pod.get("nodeSelector", {}).get("labels", {}) == selector
    taints = [
        (taint["key"], taint["operator"], taint.get("value"), taint["effect"]) for taint in pod.get("tolerations", [])
    ]
    wanted = [("nvidia.com/gpu", "Exists", None, "NoSchedule"), ("star/spot", "Equal", "true", "NoSchedule")]
    assert taints == (wanted if on_gpu else [])
    assert [(mount["constant"], mount["mountPath"]) for mount in pod["pvcMount"]] == [("star-work", "/var/star")]
    secrets = {
        (secret["secretName"], entry["secretKey"], entry["envVar"])
        for secret in pod.get("secretAsEnv", [])
        for entry in secret["keyToEnv"]
    }
    assert secrets == SECRETS[name]
    # A pod waits for ever for a Secret that is missing, so that not even the pre-flight could name it.
    assert all(secret["optional"] for secret in pod.get("secretAsEnv", []))
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert ("STAR_CONFIG" in given) == (not name.startswith("merge-") and name != "finish")
    given.pop("STAR_CONFIG", None)
    retry = given.pop("STAR_RETRY", None)
    assert retry == (None if name in ("preflight", "finish") else load_config(H100).cluster.retry.model_dump_json())
    held = {"count": 1, "price_per_hour": None, "currency": ""}
    assert json.loads(given.pop("STAR_ACCELERATORS", "null")) == (held if on_gpu else None)
    assert given == {
        "STAR_IMAGE": "star-python:latest",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_TRACKING_USERNAME": "star-pipeline",
        "AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow.svc.cluster.local:9000",
        "STAR_REGISTRY": "s3://star/registry",
        "STAR_WORK": "/var/star/work",
        "STAR_HOME": "/var/star/home",
        **({"STAR_CHECKPOINTS": "s3://star/checkpoints"} if name in TRAININGS else {}),
    }
    assert task["task"]["cachingOptions"].get("enableCache", False) == cached
    assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": "10001"}
    assert pod["podMetadata"]["labels"] == {"star/task": name, "sidecar.istio.io/inject": "false"}
    assert pod["fieldPathAsEnv"] == [{"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}]


@pytest.mark.parametrize("profile", PROFILES)
def test_kfp_starts_lost_pods_again_whenever_that_is(profile: str) -> None:
    """Argo ends a workflow at a factor like 1.5, and gives up once `backoffMaxDuration` has passed since the first attempt's start."""
    tasks = tasks_of(profile)
    policies = {name: task["task"].get("retryPolicy") for name, task in tasks.items()}
    assert policies.pop("preflight") is None, "its answer is certain"
    retry = load_config(PROFILES[profile]).cluster.retry
    for policy in policies.values():
        assert policy["maxRetryCount"] == retry.attempts
        assert policy["backoffDuration"] == f"{retry.backoff_seconds}s"
        assert policy["backoffFactor"] == retry.factor and float(policy["backoffFactor"]).is_integer()
        assert int(policy["backoffMaxDuration"].removesuffix("s")) >= 90 * 24 * 3600, "longer than any training"


def test_the_loops_have_the_configured_shards_and_parallelism() -> None:
    spec = next(yaml.safe_load_all((FOLDER / "h100.yaml").read_text()))
    loops = [
        task
        for task in spec["components"]["comp-exit-handler-1"]["dag"]["tasks"].values()
        if "parameterIterator" in task
    ]
    items = {loop["taskInfo"]["name"]: json.loads(loop["parameterIterator"]["items"]["raw"]) for loop in loops}
    assert items == {
        f"{stage}-shards": [f"{number}/{count}" for number in range(1, count + 1)] for stage, count in SHARDED.items()
    }
    for loop in loops:
        assert loop["iteratorPolicy"]["parallelismLimit"] == 8


def test_the_preflight_runs_first_and_the_exit_handler_last() -> None:
    spec = next(yaml.safe_load_all((FOLDER / "h100.yaml").read_text()))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    first = {name for name, task in tasks.items() if not task.get("dependentTasks")}
    assert first == {"preflight"}
    assert spec["root"]["dag"]["tasks"]["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_another_accelerator_is_a_change_of_one_line(tmp_path: Path) -> None:
    profile = tmp_path / "mig.yaml"
    profile.write_text(
        f"extends: {ROOT}/deploy/profiles/h100.yaml\n"
        "cluster: {nodes: {student: {accelerator: nvidia.com/mig-3g.40gb, node_selector: {nvidia.com/gpu.product: A100}}}}\n"
    )
    node = load_config(profile).cluster.node_of("distill")
    assert (node.accelerator, node.node_selector) == ("nvidia.com/mig-3g.40gb", {"nvidia.com/gpu.product": "A100"})


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"nodes": {"cpu": {"accelerator": "nvidia.com/gpu"}}}, "`nodes.cpu` has an accelerator"),
        ({"placement": {"distill": "h100"}}, "names h100, which `nodes` does not describe"),
        ({"placement": {"register": "cpu"}}, "placement.register"),
        ({"environment": {"MLFLOW_TRACKING_PASSWORD": "x"}}, "looks like a secret"),
        ({"shards": {"distill": 2}}, "shards.distill"),
        (
            {"nodes": {"gpu": {"memory": "lots"}}},
            "a quantity of Kubernetes, such as 500m or 8 cores, or 64Gi of memory",
        ),
        ({"nodes": {"gpu": {"memory": "1Gi", "memory_request": "1025Mi"}}}, "is more than `memory: 1Gi`, its limit"),
        ({"nodes": {"gpu": {"accelerator": "gpu"}}}, "resource key of an accelerator, such as nvidia.com/gpu"),
        ({"work_claim": "Star_Work"}, "a name as Kubernetes has them, such as star-work"),
        ({"checkpoints": "/var/tmp"}, "s3://BUCKET/FOLDER, such as s3://star/checkpoints"),
        ({"nodes": {"mig": {"accelerator": "nvidia.com/mig-1g.10gb", "accelerators": 2}}}, "one MIG slice"),
        ({"train_jobs": {"distill": {}}}, "`train_jobs` needs `work_claim`"),
        ({"priority_class": "high"}, "set `queue` too"),
        ({"train_jobs": {"rollout": {}}, "work_claim": "star-work"}, "train_jobs.rollout"),
        ({"retry": {"factor": 1.5}}, "1.5 is not a whole number"),
    ],
)
def test_an_invalid_cluster_section_is_an_error_that_names_the_setting(cluster: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("`", "`")):
        Config.model_validate({"cluster": cluster})


def test_every_task_learns_who_shares_its_unfinished_work_and_waits_in_the_queue(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    settings = "work_claim: star-work, shared_with: group, queue: team-a, priority_class: nightly"
    profile.write_text(f"extends: tiny\ncluster: {{{settings}}}\n")
    compile_pipeline(load_config(profile), tmp_path / "star.yaml")
    spec = next(iter(yaml.safe_load_all((tmp_path / "star.yaml").read_text())))
    executors = spec["deploymentSpec"]["executors"].values()
    assert len(executors) == 10
    shared = {"name": "STAR_SHARED_WITH", "value": "group"}
    assert all(shared in executor["container"]["env"] for executor in executors)
    # Kueue's labels too: where it manages every pod, one without them would never start.
    pods = list(yaml.safe_load_all((tmp_path / "star.yaml").read_text()))[1]["platforms"]["kubernetes"][
        "deploymentSpec"
    ]
    queued = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "nightly"}
    assert all(queued.items() <= pod["podMetadata"]["labels"].items() for pod in pods["executors"].values())


def test_a_task_may_reserve_less_than_its_limit(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    node = "{cpu: 4, memory: 8Gi, cpu_request: 500m, memory_request: 6Gi}"
    profile.write_text(f"extends: tiny\ncluster: {{nodes: {{cpu: {node}}}}}\n")
    compile_pipeline(load_config(profile), tmp_path / "star.yaml")
    spec = next(iter(yaml.safe_load_all((tmp_path / "star.yaml").read_text())))
    for executor in spec["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert (resources["cpuRequest"], resources["cpuLimit"]) == (0.5, 4)
        assert round(resources["memoryRequest"] * 4 / 3) == round(resources["memoryLimit"])


def test_a_stage_without_placement_runs_on_the_cpu_node() -> None:
    assert Cluster().node_of("evaluate") == Node()


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        ("rollout: {server: 'http://teacher:8000/v1', vllm: null}", "cluster.placement.rollout: cpu"),
        ("topk: {vllm: {tensor_parallel_size: 4}}", "`accelerators` of the node"),
        ("evaluate: {vllm: {tensor_parallel_size: 2}}", "`accelerators` of the node"),
    ],
)
def test_a_node_that_cannot_run_its_teacher_is_refused(setting: str, cure: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"extends: qwen3-0.6b\n{setting}\n")
    with pytest.raises(InputError, match=cure):
        compile_pipeline(load_config(str(profile)), tmp_path / "star.yaml")
    assert not (tmp_path / "star.yaml").exists()


def test_compiled_yaml_contains_no_secret() -> None:
    text = (FOLDER / "h100.yaml").read_text()
    assert str(ROOT) not in text
    # The names of the variable, and of the key in its Secret.
    names = ('MLFLOW_TRACKING_PASSWORD":"password', "MLFLOW_TRACKING_PASSWORD", "secretKey: password")
    for name in names:
        text = text.replace(name, "")
    assert "password" not in text.lower()


def test_no_setting_is_an_argument_of_a_task() -> None:
    """Arguments are in command lines, which others can read: digests, shards and KFP's own placeholders only."""
    for name, task in tasks_of("h100").items():
        arguments = task["task"].get("inputs", {}).get("parameters", {})
        assert set(arguments) <= {"config_digest", "code", "shard", "run_id", "status"}, name


def test_trainings_use_all_accelerators_of_their_nodes() -> None:
    tasks = tasks_of("multinode")
    given = {
        name: {entry["name"]: entry["value"] for entry in task["container"]["env"]} for name, task in tasks.items()
    }
    eight = {"cpu": 64, "memory": 900, "accelerator": ("nvidia.com/gpu", "8"), "shm": "64Gi"}
    assert node_of(tasks["refine"]) == eight and given["refine"]["STAR_PROCESSES"] == "8"
    # What the pods of a TrainJob hold is what its task's time costs.
    counts = {
        name: json.loads(env["STAR_ACCELERATORS"])["count"] for name, env in given.items() if "STAR_ACCELERATORS" in env
    }
    assert counts == {"refine-teacher": 16, "distill": 16, "refine": 8, "rollout": 1, "extract-topk": 1, "evaluate": 1}
    # A task that waits for a TrainJob requests no accelerator itself.
    for name in ("refine-teacher", "distill"):
        assert node_of(tasks[name]) == SMALL and "nodeSelector" not in tasks[name]["pod"]
        cluster = Cluster.model_validate_json(given[name]["STAR_TRAIN_JOB"])
        assert cluster == load_config(str(ROOT / "deploy" / "profiles" / "multinode.yaml")).cluster
        assert cluster.processes_of(name) == 16 and "STAR_PROCESSES" not in given[name]
    others = {name for name, environment in given.items() if {"STAR_PROCESSES", "STAR_TRAIN_JOB"} & set(environment)}
    assert others == {"refine", "refine-teacher", "distill", "finish"}  # the last one deletes the jobs of the run


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        ("distill", "distill: {batch_size: 128}", "distill divides `distill.batch_size` = 128 among 3 processes"),
        (
            "distill",
            "distill: {batch_size: 48, micro_batch_size: 6}",
            "gives each of 3 processes 16 sequences per step",
        ),
        ("refine", "refine: {prompts_per_step: 16}", "refine divides `refine.prompts_per_step` = 16 among 3 processes"),
        (
            "refine",
            "refine: {prompts_per_step: 6, micro_batch_size: 12}",
            "gives each of 3 processes 16 sequences per step",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused(
    stage: str, settings: str, said: str, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.yaml"
    node = f"nodes: {{three: {{accelerator: nvidia.com/gpu, accelerators: 3}}}}, placement: {{{stage}: three}}"
    profile.write_text(f"extends: qwen3-0.6b\n{settings}\ncluster: {{{node}}}\n")
    with pytest.raises(InputError, match=said):
        compile_pipeline(load_config(str(profile)), tmp_path / "star.yaml")
