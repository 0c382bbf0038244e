"""`star doctor` for a profile of a cluster: it asks the KFP server and the Kubernetes API, and says the cure of what is wrong."""

import base64
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from star.cli.main import app
from star.config.experiment import Config
from star.doctor.cluster_checks import cluster_checks, is_for_cluster
from star.doctor.kubernetes_checks import RIGHTS, TRAIN_JOB_RIGHTS
from tests.doctor.kubernetes_server import KubernetesServer
from tests.json_handler import JsonHandler

DEPLOY = Path(__file__).parents[2] / "deploy"
STAR = "/api/v1/namespaces/star"
H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
PROFILE = {
    "scratch": {"vocab_size": 600, "warmup": {"steps": 1, "learning_rate": 1e-3}},
    "teacher": {"base": MODEL},
    "student": {"base": MODEL},
    "cluster": {
        "nodes": {
            "gpu": {
                "cpu": "8", "memory": "64Gi", "accelerator": "nvidia.com/gpu", "accelerator_memory": 80,
                "node_selector": H100, "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
            },
        },
        "placement": {"distill": "gpu", "rollout": "gpu"},
        "shards": {"rollout": 2},
        "secrets": {"star-s3": {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SECRET_ACCESS_KEY": "secret-key"}},
        "work_claim": "star-work",
        "service_account": "star",
        "train_jobs": {"distill": {"nodes": 2}},
        "queue": "team",
        "priority_class": "night",
    },
}  # fmt: skip
Break = Callable[[KubernetesServer, dict[str, Any]], None]


class KfpHealth(ThreadingHTTPServer):
    """What a KFP server answers before a run is started.

    Attributes:
        version: as the older of the two addresses says it.
        multi_user: whether each user has a namespace.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _KfpHandler)
        self.version, self.multi_user, self.token = "2.17.0", False, ""
        self.host = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, daemon=True).start()


class _KfpHandler(JsonHandler):
    server: KfpHealth

    def do_GET(self) -> None:
        kfp, path = self.server, self.path
        if kfp.token and self.headers.get("Authorization") != f"Bearer {kfp.token}":
            self.answer(401, {"code": 16, "message": "no user identity"})
        elif path == "/apis/v2beta1/healthz":
            self.answer(200, {"multi_user": kfp.multi_user, "pipeline_store": "database"})
        elif path == "/apis/v1beta1/healthz":
            self.answer(200, {"commit_sha": "0", "tag_name": kfp.version, "multi_user": kfp.multi_user})
        elif path.startswith("/apis/v2beta1/experiments") and (not kfp.multi_user or "namespace=star" in path):
            self.answer(200, {})
        else:
            self.answer(403, {"code": 7, "message": "not authorized"})


@pytest.fixture
def kfp() -> Iterator[KfpHealth]:
    server = KfpHealth()
    yield server
    server.shutdown()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    """A cluster in whose namespace `star` everything is as the profile needs it."""
    server = KubernetesServer()
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig(tmp_path)))
    server.put("/api/v1/namespaces/star", {"kind": "Namespace"})
    server.objects["/api/v1/namespaces/star"]["metadata"] = {"name": "star"}
    secret = {key: base64.b64encode(b"a real value").decode() for key in ("access-key", "secret-key")}
    server.put(f"{STAR}/secrets/star-s3", {"kind": "Secret", "data": secret})
    claim = {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs"}
    server.put(f"{STAR}/persistentvolumeclaims/star-work", {"spec": claim, "status": {"phase": "Bound"}})
    for part in ("base", "multinode"):
        server.apply(DEPLOY / part / "account.yaml", namespace="star")
    server.put("/apis/trainer.kubeflow.org/v1alpha1/namespaces/star/trainingruntimes/star-torch", {})
    active = {"conditions": [{"type": "Active", "status": "True", "reason": "Ready", "message": "can submit"}]}
    server.put("/apis/kueue.x-k8s.io/v1beta1/namespaces/star/localqueues/team", {"status": active})
    server.put("/apis/kueue.x-k8s.io/v1beta1/workloadpriorityclasses/night", {"value": 1})
    server.put("/api/v1/nodes/cpu-0", _node(cpu="4", memory="16Gi"))
    gpu = {"cpu": "128", "memory": "990Gi", "nvidia.com/gpu": "8"}
    server.put("/api/v1/nodes/gpu-0", _node(labels=H100, taints=[GPU_TAINT], **gpu))
    yield server
    server.shutdown()


def _node(*, labels: dict[str, str] | None = None, taints: list | None = None, **allocatable: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"kubernetes.io/arch": "amd64", **(labels or {})}},
        "spec": {"taints": taints} if taints else {},
        "status": {"allocatable": {"pods": "110", **allocatable}},
    }


def checks(
    profile: dict[str, Any], host: str | None = None, namespace: str | None = "star"
) -> dict[str, tuple[str, str]]:
    """Name of each check -> its word and its detail."""
    config = Config.model_validate(profile)
    found = list(cluster_checks(config, host=host, token=None, namespace=namespace))
    return {check.name: (check.word.strip(), check.detail) for check in found}


def test_a_cluster_that_has_everything_passes(cluster: KubernetesServer, kfp: KfpHealth) -> None:
    assert checks(PROFILE, kfp.host) == {
        "KFP": ("ok", f"{kfp.host}, version 2.17.0, for one namespace"),
        "experiments": ("ok", "can be used"),
        "Kubernetes": ("ok", "context there, namespace star, v1.34.1"),
        "Secret star-s3": ("ok", "has access-key, secret-key"),
        "claim": ("ok", "star-work is Bound, ReadWriteMany"),
        "account": ("ok", "star has its 12 rights"),
        "training runtime": ("ok", "star-torch is there"),
        "queue": ("ok", "team is there"),
        "priority class": ("ok", "night is there"),
        "node cpu": ("ok", "1 of 2 nodes fit, 2 pods at a time where nothing else runs"),
        "node gpu": ("ok", "1 of 2 nodes fit, 8 pods at a time where nothing else runs"),
        "prompts": ("ok", "16 at a time for refine: there are rows enough"),
        "memory": ("ok", "refine needs at least 3.91 of 6 GiB on its node, other stages a smaller part"),
        "GPU, distill": ("ok", "at least 0.00208 GiB for weights and optimiser, nvidia.com/gpu has 80"),
        "GPU, rollout": ("ok", "at least 0.00026 GiB for weights and optimiser, nvidia.com/gpu has 80"),
    }


def no_secret(cluster: KubernetesServer, profile: dict) -> None:
    del cluster.objects[f"{STAR}/secrets/star-s3"]


def secret_without_a_key(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects[f"{STAR}/secrets/star-s3"]["data"] = {"access-key": "eA==", "secret-key": "", "other": "eA=="}


def no_claim(cluster: KubernetesServer, profile: dict) -> None:
    del cluster.objects[f"{STAR}/persistentvolumeclaims/star-work"]


def claim_for_one_node(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects[f"{STAR}/persistentvolumeclaims/star-work"]["spec"]["accessModes"] = ["ReadWriteOnce"]


def claim_without_a_class(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects[f"{STAR}/persistentvolumeclaims/star-work"]["status"]["phase"] = "Pending"


def no_account(cluster: KubernetesServer, profile: dict) -> None:
    del cluster.objects[f"{STAR}/serviceaccounts/star"]


def account_without_rights(cluster: KubernetesServer, profile: dict) -> None:
    """As with a RoleBinding whose subject is in another namespace."""
    bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/star/rolebindings"
    cluster.objects[f"{bindings}/star-train-jobs"]["subjects"][0]["namespace"] = "elsewhere"


def no_trainer(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects = {key: one for key, one in cluster.objects.items() if "trainer" not in key}
    cluster.groups = [group for group in cluster.groups if "trainer" not in group]


def no_queue(cluster: KubernetesServer, profile: dict) -> None:
    profile["cluster"]["queue"] = "tem"


def closed_queue(cluster: KubernetesServer, profile: dict) -> None:
    path = "/apis/kueue.x-k8s.io/v1beta1/namespaces/star/localqueues/team"
    [condition] = cluster.objects[path]["status"]["conditions"]
    condition |= {"status": "False", "message": "Can't submit new workloads to clusterQueue"}


def other_label(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects["/api/v1/nodes/gpu-0"]["metadata"]["labels"]["nvidia.com/gpu.product"] = "NVIDIA-A100-SXM4-80GB"


def other_taint(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects["/api/v1/nodes/gpu-0"]["spec"]["taints"].append(
        {"key": "team", "value": "b", "effect": "NoSchedule"}
    )


def other_accelerator(cluster: KubernetesServer, profile: dict) -> None:
    allocatable = cluster.objects["/api/v1/nodes/gpu-0"]["status"]["allocatable"]
    allocatable["nvidia.com/mig-3g.40gb"] = allocatable.pop("nvidia.com/gpu")


def small_nodes(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects["/api/v1/nodes/gpu-0"]["status"]["allocatable"]["memory"] = "50331648Ki"


def one_node_for_two_pods(cluster: KubernetesServer, profile: dict) -> None:
    cluster.objects["/api/v1/nodes/gpu-0"]["status"]["allocatable"]["nvidia.com/gpu"] = "1"


def little_memory(cluster: KubernetesServer, profile: dict) -> None:
    profile["cluster"]["nodes"]["cpu"] = {"memory": "500Mi"}


def no_such_namespace(cluster: KubernetesServer, profile: dict) -> None:
    del cluster.objects["/api/v1/namespaces/star"]


def expired_login(cluster: KubernetesServer, profile: dict) -> None:
    cluster.known = False


FAULTS: list[tuple[Break, str, str]] = [
    (no_secret, "Secret star-s3", r"there is no Secret star-s3 in namespace star: kubectl -n star create secret generic star-s3 "),
    (secret_without_a_key, "Secret star-s3", r"lacks a value for secret-key \(it has access-key, other, secret-key\): add it"),
    (no_claim, "claim", r"there is no PersistentVolumeClaim star-work in namespace star: apply deploy/base"),
    (claim_for_one_node, "claim", r"is Bound, ReadWriteOnce: shards and TrainJobs on several nodes need ReadWriteMany"),
    (claim_without_a_class, "claim", r"is Pending, ReadWriteMany: the cluster has no storage class nfs: name one"),
    (no_account, "account", r"there is no service account star in namespace star: apply deploy/base"),
    (account_without_rights, "account", r"star may not create trainjobs, .* in namespace star: apply deploy/base and deploy/multinode"),
    (no_trainer, "training runtime", r"there is no training runtime star-torch .*: install Kubeflow Trainer"),
    (no_queue, "queue", r"there is no LocalQueue tem in namespace star, so pods would wait for ever"),
    (closed_queue, "queue", r"LocalQueue team lets nothing in: Can't submit"),
    (other_label, "node gpu", r"no node has nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3 \(nodes have NVIDIA-A100-SXM4-80GB\)"),
    (other_taint, "node gpu", r"all 1 nodes .* taints that the profile does not tolerate \(team=b:NoSchedule\): add them to `tolerations`"),
    (other_accelerator, "node gpu", r"offers nvidia.com/gpu \(they offer nvidia.com/mig-3g.40gb\): correct `accelerator`"),
    (small_nodes, "node gpu", r"no node has room for 8 cpu, 64Gi memory, 1 nvidia.com/gpu \(the largest offers 128 cpu, 50331648Ki"),
    (one_node_for_two_pods, "node gpu", r"1 pods at a time .*, and a TrainJob needs 2: add nodes"),
    (little_memory, "memory", r"refine-teacher needs at least 0.501 GiB and has 0.488.*: raise `memory` of the node"),
    (no_such_namespace, "Kubernetes", r"there is no such namespace: create it, or name another with --namespace"),
    (expired_login, "Kubernetes", r"the cluster does not know the account of context there: log in again"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "name", "detail"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_what_is_wrong_is_named_with_its_cure(
    break_it: Break, name: str, detail: str, cluster: KubernetesServer
) -> None:
    profile = deepcopy(PROFILE)
    break_it(cluster, profile)
    found = checks(profile)
    assert found[name][0] == "FAIL" and re.search(detail, found[name][1]), found[name]
    assert "a real value" not in str(found) and base64.b64encode(b"a real value").decode() not in str(found)


def test_a_claim_that_waits_for_its_first_pod_passes(cluster: KubernetesServer) -> None:
    cluster.objects[f"{STAR}/persistentvolumeclaims/star-work"]["status"]["phase"] = "Pending"
    storage = {"provisioner": "nfs", "volumeBindingMode": "WaitForFirstConsumer"}
    cluster.put("/apis/storage.k8s.io/v1/storageclasses/nfs", storage)
    assert checks(PROFILE)["claim"] == (
        "ok",
        "star-work is Pending, ReadWriteMany; it is bound when the first pod uses it",
    )


def test_what_this_account_may_not_see_is_not_checked_and_no_failure(cluster: KubernetesServer) -> None:
    cluster.forbidden = ["secrets", "nodes", "localsubjectaccessreviews"]
    found = checks(PROFILE)
    for name, what in (("Secret star-s3", "Secret star-s3"), ("node gpu", "nodes"), ("account", "the rights of star")):
        assert found[name] == ("?", f"not checked: the account of context there may not ask for {what}")
    assert found["claim"][0] == "ok"


def test_without_server_and_kubeconfig_it_says_what_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KFP_HOST", raising=False)
    file = tmp_path / "profile.yaml"
    file.write_text(yaml.safe_dump(PROFILE))
    done = CliRunner().invoke(app, ["doctor", "--config", str(file)])
    assert done.exit_code == 0, done.output
    assert "?    KFP                    not checked: give --host or KFP_HOST" in done.output
    assert "?    Kubernetes             not checked: there is no kubeconfig: set KUBECONFIG" in done.output
    # The pods have memory, disk and services of their own.
    assert not re.search(r"^(ok  |FAIL) (disk|home|MLflow|checkpoints|torch)", done.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "name", "word", "detail"),
    [
        ({"version": "2.14.3"}, "KFP", "ok", "version 2.14.3, older than 2.17, which is known to work"),
        ({"version": ""}, "KFP", "ok", "it does not say its version"),
        ({"multi_user": True}, "experiments", "FAIL", "give yours with --namespace"),
        ({"token": "another"}, "KFP", "FAIL", "answers 401: this account may not do this here; get a new token"),
        ({"host": "http://127.0.0.1:9"}, "KFP", "FAIL", "does not answer as KFP"),
    ],
)  # fmt: skip
def test_the_server_says_its_version_and_its_faults(
    change: dict, name: str, word: str, detail: str, kfp: KfpHealth, cluster: KubernetesServer
) -> None:
    for key, value in change.items():
        setattr(kfp, key, value)
    found = checks(PROFILE, kfp.host, namespace=None)
    assert found[name][0] == word and detail in found[name][1]


def test_the_rights_are_those_of_the_manifests() -> None:
    for part, rights in (("base", RIGHTS), ("multinode", TRAIN_JOB_RIGHTS)):
        documents = yaml.safe_load_all((DEPLOY / part / "account.yaml").read_text())
        [role] = [one for one in documents if one["kind"] == "Role"]
        given = {
            (group, resource, name, verb)
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames", [""])
            for verb in rule["verbs"]
        }
        assert given == set(rights)


def test_a_profile_with_nodes_alone_is_for_any_machine() -> None:
    profile = deepcopy(PROFILE)
    profile["cluster"] = {key: profile["cluster"][key] for key in ("nodes", "placement", "shards")}
    assert not is_for_cluster(Config.model_validate(profile))
    assert is_for_cluster(Config.model_validate(PROFILE))
