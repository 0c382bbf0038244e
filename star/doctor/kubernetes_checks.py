"""Checks in the cluster what the pods of a profile need: Secrets, claim, account with its rights, training runtime, queue, nodes.

Each function returns what it found, as one phrase, or raises InputError with what is wrong and what to do. node_room.py looks at nodes.
"""

from collections.abc import Iterator
from functools import partial

from star.config.cluster import Cluster
from star.doctor.check import Check, NotCheckedError, run_check
from star.doctor.kubernetes_api import KubernetesApi, connect_kubernetes
from star.doctor.node_room import check_node, used_nodes
from star.errors import InputError

TRAINER, KUEUE = "trainer.kubeflow.org", "kueue.x-k8s.io"
# (API group, resource, its name, verb): what deploy/base/account.yaml gives, and what deploy/multinode/account.yaml adds.
Right = tuple[str, str, str, str]
RIGHTS: tuple[Right, ...] = (
    ("", "configmaps", "kfp-launcher", "get"),
    ("", "secrets", "mlpipeline-minio-artifact", "get"),
    ("argoproj.io", "workflowtaskresults", "", "create"),
    ("argoproj.io", "workflowtaskresults", "", "patch"),
)
TRAIN_JOB_RIGHTS: tuple[Right, ...] = (
    *((TRAINER, "trainjobs", "", verb) for verb in ("create", "get", "list", "delete")),
    (TRAINER, "trainingruntimes", "", "get"),
    ("", "pods", "", "list"),
    ("", "pods/log", "", "get"),
    ("", "events", "", "list"),
)


def kubernetes_checks(cluster: Cluster, *, namespace: str | None, multi_user: bool) -> Iterator[Check]:
    """Yields the checks of what the pods need in a cluster, with the current context of the kubeconfig.

    Args:
        namespace: in which the pods run; by default that of the context, or KFP's own.
        multi_user: whether KFP has a namespace per user.
    """
    found: list[KubernetesApi] = []

    def connect() -> str:
        # A server for one namespace runs pods in its own, whatever namespace the context names.
        wanted = namespace or (None if multi_user else "kubeflow")
        found.append(connect_kubernetes(wanted, default="kubeflow"))
        return check_cluster(found[0])

    connected = run_check("Kubernetes", connect)
    yield connected
    # Each of the following checks would only say the same again.
    if not (connected.passed and connected.checked):
        return
    api = found[0]
    for secret, variables in cluster.secrets.items():
        yield run_check(f"Secret {secret}", partial(check_secret, api, secret, variables))
    if cluster.work_claim:
        shared = bool(cluster.train_jobs) or any(count > 1 for count in cluster.shards.values())
        yield run_check("claim", partial(check_claim, api, cluster.work_claim, shared=shared))
    account = cluster.service_account or ("default-editor" if multi_user else "pipeline-runner")
    rights = RIGHTS + (TRAIN_JOB_RIGHTS if cluster.train_jobs else ())
    yield run_check("account", partial(check_account, api, account, rights))
    for runtime in sorted({job.runtime for job in cluster.train_jobs.values()}):
        yield run_check("training runtime", partial(check_runtime, api, runtime))
    if cluster.queue:
        yield run_check("queue", partial(check_queue, api, cluster.queue))
    if cluster.priority_class:
        yield run_check("priority class", partial(check_priority_class, api, cluster.priority_class))
    for name, pods in used_nodes(cluster).items():
        yield run_check(f"node {name}", partial(check_node, api, cluster.nodes[name], pods=pods))


def check_cluster(api: KubernetesApi) -> str:
    """Checks that the cluster answers and has the namespace."""
    from kubernetes.client import CoreV1Api, VersionApi

    version = api.ask("its version", VersionApi(api.client).get_code)
    said = f"{api.context}, namespace {api.namespace}" + (f", {version.git_version}" if version else "")
    try:
        found = api.ask(f"namespace {api.namespace}", CoreV1Api(api.client).read_namespace, api.namespace)
    except NotCheckedError:
        return said  # who may only look into a namespace may not look at it
    if found is None:
        raise InputError(f"{said}: there is no such namespace: create it, or name another with --namespace")
    return said


def check_secret(api: KubernetesApi, name: str, variables: dict[str, str]) -> str:
    """Checks that a Secret has a value for each key (variable -> key). No value is printed."""
    from kubernetes.client import CoreV1Api

    keys = sorted(set(variables.values()))
    cure = f"kubectl -n {api.namespace} create secret generic {name} " + " ".join(
        f"--from-literal={k}=..." for k in keys
    )
    found = api.ask(f"Secret {name}", CoreV1Api(api.client).read_namespaced_secret, name, api.namespace)
    if found is None:
        raise InputError(
            f"there is no Secret {name} in namespace {api.namespace}: {cure} (or deploy/secrets.example.yaml); "
            f"or drop it from the profile with `{name}: null` under `cluster.secrets`"
        )
    held = found.data or {}
    if missing := [key for key in keys if not held.get(key)]:
        has = f"it has {', '.join(sorted(held))}" if held else "it is empty"
        raise InputError(f"lacks a value for {', '.join(missing)} ({has}): add it, or correct the key in the profile")
    return f"has {', '.join(keys)}"


def check_claim(api: KubernetesApi, name: str, *, shared: bool) -> str:
    """Checks that the claim of `work_claim` exists, is or will be bound, and that pods on several nodes can use it if they must."""
    from kubernetes.client import CoreV1Api, StorageV1Api

    found = api.ask(f"claim {name}", CoreV1Api(api.client).read_namespaced_persistent_volume_claim, name, api.namespace)
    if found is None:
        raise InputError(
            f"there is no PersistentVolumeClaim {name} in namespace {api.namespace}: apply deploy/base, or correct "
            "`cluster.work_claim`"
        )
    if found.metadata.deletion_timestamp:
        raise InputError(f"{name} is being deleted: wait until it is gone, and apply deploy/base again")
    phase, modes = found.status.phase, found.spec.access_modes or []
    said = f"{name} is {phase}, {', '.join(modes)}"
    if shared and "ReadWriteMany" not in modes:
        raise InputError(
            f"{said}: shards and TrainJobs on several nodes need ReadWriteMany: make the claim anew with a storage class that "
            "offers it, or run without shards"
        )
    if phase == "Bound":
        return said
    storage_class = found.spec.storage_class_name
    offered = (
        api.ask(f"storage class {storage_class}", StorageV1Api(api.client).read_storage_class, storage_class)
        if storage_class
        else None
    )
    if phase == "Pending" and offered and offered.volume_binding_mode == "WaitForFirstConsumer":
        return f"{said}; it is bound when the first pod uses it"
    if phase == "Pending" and offered is None:
        raise InputError(
            f"{said}: the cluster has no storage class {storage_class or 'by default'}: name one in deploy/base/volume.yaml"
        )
    raise InputError(f"{said}: kubectl -n {api.namespace} describe pvc {name} says why")


def check_account(api: KubernetesApi, name: str, rights: tuple[Right, ...]) -> str:
    """Checks that the service account exists, and that it has the rights that KFP's launcher, Argo and STAR use in its pods."""
    from kubernetes.client import CoreV1Api

    found = api.ask(
        f"service account {name}", CoreV1Api(api.client).read_namespaced_service_account, name, api.namespace
    )
    if found is None:
        raise InputError(
            f"there is no service account {name} in namespace {api.namespace}: apply deploy/base, or correct "
            "`cluster.service_account`"
        )
    missing = [right for right in rights if not _may(api, name, right)]
    if not missing:
        return f"{name} has its {len(rights)} rights"
    said = ", ".join(f"{verb} {resource}" + (f" {of}" if of else "") for _, resource, of, verb in missing)
    trainer = set(missing) & set(TRAIN_JOB_RIGHTS)
    where = " and deploy/multinode" if trainer else ""
    raise InputError(f"{name} may not {said} in namespace {api.namespace}: apply deploy/base{where} there")


def _may(api: KubernetesApi, account: str, right: Right) -> bool:
    from kubernetes import client

    group, resource, name, verb = right
    resource, _, subresource = resource.partition("/")
    attributes = client.V1ResourceAttributes(
        namespace=api.namespace,
        group=group,
        resource=resource,
        subresource=subresource or None,
        name=name or None,
        verb=verb,
    )
    review = client.V1LocalSubjectAccessReview(
        metadata=client.V1ObjectMeta(namespace=api.namespace),
        spec=client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{api.namespace}:{account}",
            groups=["system:serviceaccounts", f"system:serviceaccounts:{api.namespace}", "system:authenticated"],
            resource_attributes=attributes,
        ),
    )
    ask = client.AuthorizationV1Api(api.client).create_namespaced_local_subject_access_review
    answer = api.ask(f"the rights of {account}", ask, api.namespace, review)
    return bool(answer and answer.status.allowed)


def check_runtime(api: KubernetesApi, name: str) -> str:
    """Checks that the TrainingRuntime or ClusterTrainingRuntime of TrainJobs exists."""
    from kubernetes.client import CustomObjectsApi

    custom, version = CustomObjectsApi(api.client), "v1alpha1"
    what = f"TrainingRuntime {name}"
    if api.ask(
        what, custom.get_namespaced_custom_object, TRAINER, version, api.namespace, "trainingruntimes", name
    ) or api.ask(what, custom.get_cluster_custom_object, TRAINER, version, "clustertrainingruntimes", name):
        return f"{name} is there"
    raise InputError(
        f"there is no training runtime {name} in namespace {api.namespace}: install Kubeflow Trainer 2.2 or newer, and apply "
        "deploy/multinode there"
    )


def check_queue(api: KubernetesApi, name: str) -> str:
    """Checks that Kueue has the queue and lets work in."""
    found = _kueue(api, f"LocalQueue {name}", "localqueues", name, namespaced=True)
    if found is None:
        raise InputError(
            f"there is no LocalQueue {name} in namespace {api.namespace}, so pods would wait for ever: make it, or correct "
            "`cluster.queue`"
        )
    conditions = found.get("status", {}).get("conditions", [])
    active = next((one for one in conditions if one.get("type") == "Active"), None)
    if active and active.get("status") != "True":
        raise InputError(f"LocalQueue {name} lets nothing in: {active.get('message') or active.get('reason')}")
    return f"{name} is there"


def check_priority_class(api: KubernetesApi, name: str) -> str:
    """Checks that Kueue has the WorkloadPriorityClass."""
    if _kueue(api, f"WorkloadPriorityClass {name}", "workloadpriorityclasses", name, namespaced=False) is None:
        raise InputError(f"there is no WorkloadPriorityClass {name}: make it, or correct `cluster.priority_class`")
    return f"{name} is there"


def _kueue(api: KubernetesApi, what: str, plural: str, name: str, *, namespaced: bool) -> dict | None:
    from kubernetes.client import CustomObjectsApi

    custom = CustomObjectsApi(api.client)
    for version in ("v1beta1", "v1beta2"):  # a server offers one or both
        if namespaced:
            found = api.ask(what, custom.get_namespaced_custom_object, KUEUE, version, api.namespace, plural, name)
        else:
            found = api.ask(what, custom.get_cluster_custom_object, KUEUE, version, plural, name)
        if found:
            return found
    return None
