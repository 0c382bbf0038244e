"""Where the tasks of a compiled pipeline run: nodes, shards, retries, secrets, volumes as data. A run on one machine reads none of it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from star.config.base import Section
from star.errors import SECRET_NAME

CPU = "cpu"  # the node of every task that runs no model
ModelStage = Literal["refine-teacher", "rollout", "extract-topk", "distill", "refine", "evaluate"]
ShardedStage = Literal["rollout", "extract-topk", "evaluate"]
TrainingStage = Literal["refine-teacher", "distill", "refine"]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class Toleration(Section):
    """A taint that a task puts up with."""

    key: str = Field(description="of the taint")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="whether its value matters")
    value: str | None = Field(None, description="of the taint, where the operator is Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="of the taint; every effect when not given"
    )


class Node(Section):
    """What a task asks of the node it runs on."""

    cpu: Quantity = Field("2", description="cores, requested and at most")
    memory: Quantity = Field("6Gi", description="memory, requested and at most")
    accelerator: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="resource key: nvidia.com/gpu, nvidia.com/mig-3g.40gb, amd.com/gpu",
    )
    accelerators: int = Field(
        1,
        ge=1,
        description="how many; a training runs a process on each, other stages use one, or more where vLLM splits a model",
    )
    accelerator_memory: float | None = Field(
        None, gt=0, description="GiB of one accelerator; the pre-flight holds its estimates against it"
    )
    shm: Quantity | None = Field(None, description="size of /dev/shm, in memory; the node's own 64 MB when not given")
    node_selector: dict[str, str] = Field({}, description="labels that the node must have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints of the node: of GPU nodes, of spot nodes")

    @property
    def processes(self) -> int:
        """How many processes train on one such node."""
        return self.accelerators if self.accelerator else 1

    @model_validator(mode="after")
    def _a_process_sees_one_slice(self) -> "Node":
        if self.accelerators > 1 and "/mig-" in (self.accelerator or ""):
            raise ValueError(f"`accelerators` of {self.accelerator} is 1: CUDA shows a process one MIG slice")
        return self


class Retry(Section):
    """How often a failed task is tried again."""

    attempts: int = Field(2, ge=0, description="further tries")
    backoff_seconds: int = Field(60, ge=0, description="pause before the first of them")
    factor: float = Field(2.0, ge=1, description="by which each pause is longer than the one before")
    max_seconds: int = Field(3600, ge=0, description="longest pause")


class TrainJob(Section):
    """A training on several nodes at once, by Kubeflow Trainer v2."""

    nodes: int = Field(2, ge=1, description="pods, each as the stage's node describes it")
    runtime: str = Field(
        "star-torch", min_length=1, description="TrainingRuntime (that of deploy/multinode) or ClusterTrainingRuntime"
    )


def _with_cpu_node(nodes: object) -> object:
    return {CPU: Node(), **nodes} if isinstance(nodes, dict) else nodes


class Cluster(Section):
    """Where and how the tasks of the compiled pipeline run."""

    nodes: Annotated[dict[str, Node], BeforeValidator(_with_cpu_node)] = Field(
        {CPU: Node()}, description="by name; `cpu` is that of every task not placed elsewhere"
    )
    placement: dict[ModelStage, str] = Field({}, description="the node of each stage that runs a model")
    shards: dict[ShardedStage, Annotated[int, Field(ge=1, le=256)]] = Field(
        {}, description="pods that share the work of rollout, extract-topk, evaluate; one when not given"
    )
    parallelism: int = Field(8, ge=1, description="shards that run at the same time, at most")
    train_jobs: dict[TrainingStage, TrainJob] = Field(
        {}, description="trainings that Kubeflow Trainer runs on several nodes; each in a pod of its own when not given"
    )
    retry: Retry = Field(Retry(), description="of every task")
    environment: dict[str, str] = Field({}, description="variables of every task, such as MLFLOW_TRACKING_URI")
    secrets: dict[KubernetesName, dict[str, str]] = Field(
        {}, description="Secret -> variable -> key: what every task is given of the cluster's secrets"
    )
    work_claim: KubernetesName | None = Field(
        None, description="PersistentVolumeClaim in which unfinished work waits for a retry"
    )
    checkpoints: str | None = Field(
        None,
        pattern=r"^s3://[^/]+/.+",
        description="s3://bucket/folder for checkpoints, where a node may vanish with its disk",
    )
    service_account: KubernetesName | None = Field(None, description="of the tasks; the installation's when not given")
    run_as_user: int = Field(10001, ge=1, description="uid of the tasks; the image's own user")

    @model_validator(mode="after")
    def _nodes_are_there(self) -> "Cluster":
        if self.nodes[CPU].accelerator:
            raise ValueError("`nodes.cpu` has an accelerator: it is where the tasks run that use none")
        if missing := sorted(set(self.placement.values()) - set(self.nodes)):
            raise ValueError(f"`placement` names {', '.join(missing)}, which `nodes` does not describe")
        return self

    @model_validator(mode="after")
    def _jobs_share_a_volume(self) -> "Cluster":
        if self.train_jobs and not self.work_claim:
            raise ValueError(
                "`train_jobs` needs `work_claim`, a ReadWriteMany claim: its pods train from the same files"
            )
        return self

    @model_validator(mode="after")
    def _no_secret_is_written_down(self) -> "Cluster":
        if plain := [name for name in self.environment if SECRET_NAME.search(name)]:
            raise ValueError(f"{plain[0]} looks like a secret: name it under `secrets`, with the Secret that holds it")
        return self

    def node_of(self, stage: str) -> Node:
        """The node of a stage or of any other task."""
        return self.nodes[self.placement.get(stage, CPU)]

    def processes_of(self, stage: str) -> int:
        """How many processes train a stage together: one for each accelerator of each of its nodes."""
        nodes = self.train_jobs[stage].nodes if stage in self.train_jobs else 1
        return nodes * self.node_of(stage).processes
