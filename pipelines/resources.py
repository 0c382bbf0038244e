"""Puts `cluster` of the configuration on the tasks of the compiled pipeline: node, retries, secrets, volumes, rights."""

from kfp import kubernetes
from kfp.dsl import PipelineTask

from star.cluster.launch import PROCESSES_VARIABLE, TRAIN_JOB_VARIABLE
from star.config.cluster import CPU, Cluster, Node
from star.stages import STAGES

TRAININGS = {stage.name for stage in STAGES if stage.trains}
VOLUME = "/var/star"  # where the claim is mounted: unfinished work, and what tracking did not take yet, outlive the pod there


def place(task: PipelineTask, name: str, cluster: Cluster) -> None:
    """Gives a task everything that the cluster's section says of it."""
    if name in cluster.train_jobs:  # the task only starts the job and waits for it
        _ask_for(task, cluster.nodes[CPU])
        task.set_env_variable(TRAIN_JOB_VARIABLE, cluster.model_dump_json(exclude_defaults=True))
    else:
        _ask_for(task, cluster.node_of(name))
        if name in TRAININGS and (processes := cluster.processes_of(name)) > 1:
            task.set_env_variable(PROCESSES_VARIABLE, str(processes))
    _retry(task, cluster)
    for variable, value in cluster.environment.items():
        task.set_env_variable(variable, value)
    for secret, variables in cluster.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {key: variable for variable, key in variables.items()})
    if cluster.work_claim:
        kubernetes.mount_pvc(task, cluster.work_claim, VOLUME)
        task.set_env_variable("STAR_WORK", f"{VOLUME}/work").set_env_variable("STAR_HOME", f"{VOLUME}/home")
    if cluster.checkpoints:
        task.set_env_variable("STAR_CHECKPOINTS", cluster.checkpoints)
    kubernetes.set_security_context(task, run_as_user=cluster.run_as_user, run_as_non_root=True)
    # By this the runs of one pipeline find each other in MLflow (star/tracking/parent_run.py).
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    kubernetes.add_pod_label(task, "star/task", name)  # what a network policy selects by


def _ask_for(task: PipelineTask, node: Node) -> None:
    task.set_cpu_request(node.cpu).set_cpu_limit(node.cpu)
    task.set_memory_request(node.memory).set_memory_limit(node.memory)
    if node.accelerator:
        task.set_accelerator_type(node.accelerator).set_accelerator_limit(node.accelerators)
    for label, value in node.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in node.tolerations:
        kubernetes.add_toleration(task, **taint.model_dump(exclude_none=True))
    if node.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=node.shm)


def _retry(task: PipelineTask, cluster: Cluster) -> None:
    retry = cluster.retry
    if retry.attempts:
        task.set_retry(
            retry.attempts,
            backoff_duration=f"{retry.backoff_seconds}s",
            backoff_factor=retry.factor,
            backoff_max_duration=f"{retry.max_seconds}s",
        )
