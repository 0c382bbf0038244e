"""Applies the section `cluster` of the configuration to a KFP task: node, retries, secrets, volumes, security context."""

from kfp import kubernetes
from kfp.dsl import PipelineTask

from star.cluster.launch import PROCESSES_VARIABLE, RETRY_VARIABLE, TRAIN_JOB_VARIABLE
from star.config.cluster import CERTIFICATES_PATH, CPU, Cluster, Node, Retry
from star.config.task_secrets import EXIT_HANDLER, PREFLIGHT
from star.stages import STAGES
from star.tracking.accelerators import VARIABLE as ACCELERATORS_VARIABLE
from star.tracking.accelerators import Accelerators

TRAINING_STAGES = {stage.name for stage in STAGES if stage.trains}
# Where the volume of `work_claim` is mounted. Unfinished work and undelivered MLflow data outlive the pod there.
VOLUME_PATH = "/var/star"
LONGEST_TASK_SECONDS = 365 * 24 * 3600  # longer than any training


def apply_cluster_settings(task: PipelineTask, name: str, cluster: Cluster) -> None:
    """Sets everything that the section `cluster` says about the task with this name (a stage, or another task such as "finish")."""
    if name in cluster.train_jobs:  # the task itself only creates the TrainJob and waits for it
        _set_node(task, cluster.nodes[CPU])
        task.set_env_variable(TRAIN_JOB_VARIABLE, cluster.model_dump_json(exclude_defaults=True))
    else:
        _set_node(task, cluster.node_of(name))
        if name in TRAINING_STAGES and (processes := cluster.processes_of(name)) > 1:
            task.set_env_variable(PROCESSES_VARIABLE, str(processes))
        if name not in (PREFLIGHT, EXIT_HANDLER):
            task.set_env_variable(RETRY_VARIABLE, cluster.retry.model_dump_json())
    if name == EXIT_HANDLER and cluster.train_jobs:  # it deletes those of the run
        task.set_env_variable(TRAIN_JOB_VARIABLE, cluster.model_dump_json(exclude_defaults=True))
    # The answer of the pre-flight is certain. A lost exit handler is started again, because nobody else closes the runs.
    if name != PREFLIGHT:
        _start_lost_pods_again(task, cluster.retry)
    if count := cluster.accelerators_of(name):
        price = cluster.node_of(name).accelerator_price
        held = Accelerators(count, price, cluster.currency if price else "")
        task.set_env_variable(ACCELERATORS_VARIABLE, held.to_json())
    for variable, value in cluster.variables.items():
        task.set_env_variable(variable, value)
    for secret, variables in cluster.secrets_of(name).items():
        # By name only, so that the compiled pipeline holds no secret. Optional, because a pod waits for a missing Secret for ever
        # without a word. So it starts, and the pre-flight names what is missing.
        kubernetes.use_secret_as_env(
            task, secret, {key: variable for variable, key in variables.items()}, optional=True
        )
    if cluster.certificates:
        # Optional like a Secret: without it the pod starts, and says which file is missing.
        kubernetes.use_config_map_as_volume(task, cluster.certificates, CERTIFICATES_PATH, optional=True)
    if cluster.work_claim:
        kubernetes.mount_pvc(task, cluster.work_claim, VOLUME_PATH)
        task.set_env_variable("STAR_WORK", f"{VOLUME_PATH}/work").set_env_variable("STAR_HOME", f"{VOLUME_PATH}/home")
    if cluster.shared_with != "nobody":
        task.set_env_variable("STAR_SHARED_WITH", cluster.shared_with)
    # The other tasks save none, and have no keys of the object store.
    if cluster.checkpoints and name in TRAINING_STAGES:
        task.set_env_variable("STAR_CHECKPOINTS", cluster.checkpoints)
    kubernetes.set_security_context(task, run_as_user=cluster.run_as_user, run_as_non_root=True)
    # The stages of one pipeline run find their parent run in MLflow by this ID (star/tracking/parent_run.py).
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    # In the namespace of a Kubeflow profile Istio would add a sidecar, which keeps a pod from completing.
    kubernetes.add_pod_label(task, "sidecar.istio.io/inject", "false")
    kubernetes.add_pod_label(task, "star/task", name)  # network policies select pods by it (deploy/base/network.yaml)
    # A pod's own priorityClassName is not among the settings of KFP's tasks.
    for label, value in cluster.queue_labels.items():
        kubernetes.add_pod_label(task, label, value)


def _set_node(task: PipelineTask, node: Node) -> None:
    # By default requests equal limits, so that the scheduler reserves all that the task may use.
    task.set_cpu_request(node.requests["cpu"]).set_cpu_limit(node.cpu)
    task.set_memory_request(node.requests["memory"]).set_memory_limit(node.memory)
    if node.accelerator:
        task.set_accelerator_type(node.accelerator).set_accelerator_limit(node.accelerators)
    for label, value in node.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in node.tolerations:
        kubernetes.add_toleration(task, **taint.model_dump(exclude_none=True))
    # A container has 64 MB of /dev/shm, which is too little for NCCL and vLLM: they pass data of several GPUs through it.
    if node.shm:
        path = "/dev/shm"  # noqa: S108 - a mount of the pod, no temporary file
        kubernetes.empty_dir_mount(task, "shm", path, medium="Memory", size_limit=node.shm)


def _start_lost_pods_again(task: PipelineTask, retry: Retry) -> None:
    """Has KFP start a pod again that was deleted or evicted, or whose node was lost.

    A failure of the work itself is tried again in the pod (star/cluster/supervisor.py), because KFP's shipped settings do not.
    """
    if retry.attempts:
        task.set_retry(
            retry.attempts,
            backoff_duration=f"{retry.backoff_seconds}s",
            backoff_factor=retry.factor,
            # No longest pause: KFP makes it Argo's maxDuration, which counts from the first attempt's start. A failure after
            # it is final, and an attempt that runs when it is over is killed.
            backoff_max_duration=f"{LONGEST_TASK_SECONDS}s",
        )
