"""Defines the section `cluster`: nodes, shards, retries, secrets and volumes of the compiled pipeline's tasks.

A run on one machine (`star run`, DVC) does not read this section.
"""

import re
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from star.config.base import S3Url, Section, Text, matching
from star.config.task_secrets import PREFLIGHT, TASKS, TaskName, tasks_that_use
from star.redaction import REFERENCES, names_secret

CERTIFICATES_PATH = "/etc/star/certificates"  # where the ConfigMap `certificates` is mounted
# Read by the hub's client, by MLflow's and STAR's (and by boto3 without the next one), and by boto3.
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
# Kueue knows queue and priority of a pod or of a TrainJob by them.
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
# Variables that STAR sets in tasks, and the setting behind them. Given in `environment`, they would contradict it, or end the task.
_SET_BY_STAR: dict[str, str | None] = {
    "STAR_RETRY": "cluster.retry",
    "STAR_PROCESSES": "`accelerators` of the node",
    "STAR_ACCELERATORS": "`accelerators` and `accelerator_price` of the node",
    "STAR_TRAIN_JOB": "cluster.train_jobs",
    "STAR_HALF_MICRO_BATCH": "`micro_batch_size` of the training",
    **dict.fromkeys(("STAR_CONFIG", "STAR_EVENTS", "STAR_FAILURES", "STAR_RUNNER", "KFP_RUN_ID")),
}
CPU = "cpu"  # the node of every task that runs no model
ModelStage = Literal["refine-teacher", "rollout", "extract-topk", "distill", "refine", "evaluate"]
ShardedStage = Literal["rollout", "extract-topk", "evaluate"]
TrainingStage = Literal["refine-teacher", "distill", "refine"]
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = rf"(\d+(?:\.\d+)?)({'|'.join(_UNITS)})"
Quantity = Annotated[Text, matching(_QUANTITY, "a quantity of Kubernetes, such as 500m or 8 cores, or 64Gi of memory")]
KubernetesName = Annotated[
    str,
    matching(
        r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?",
        "a name as Kubernetes has them, such as star-work: lower-case letters, digits, `-` and `.`",
    ),
]
LabelValue = Annotated[
    str,
    matching(
        r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", "a value that a label may have, such as team-a: at most 63 characters"
    ),
]
ResourceKey = Annotated[
    str,
    matching(
        r"[\w.-]+/[\w.-]+",
        "the resource key of an accelerator, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu",
    ),
]


def amount_of(quantity: str) -> float:
    """The number that a quantity stands for: bytes, or cores."""
    number, unit = re.fullmatch(_QUANTITY, quantity).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


class Toleration(Section):
    """A node taint that a task tolerates."""

    key: str = Field(description="Key of the taint")
    operator: Literal["Exists", "Equal"] = Field(
        "Exists", description="`Exists` tolerates every value of the taint, `Equal` only `value`"
    )
    value: Text | None = Field(None, description="Value of the taint, for the operator `Equal`")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint; every effect by default"
    )


class Node(Section):
    """What a task requests from the node it runs on."""

    cpu: Quantity = Field("2", description="Most CPU cores")
    memory: Quantity = Field("6Gi", description="Most memory; a task that takes more is killed")
    cpu_request: Quantity | None = Field(None, description="CPU cores that are reserved; `cpu` by default")
    memory_request: Quantity | None = Field(
        None,
        description="Memory that is reserved; `memory` by default. With less, a node can run out of memory and evict the task",
    )
    accelerator: ResourceKey | None = Field(
        None,
        description="Resource key of the accelerator, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu",
    )
    accelerators: int = Field(
        1,
        ge=1,
        description="Accelerators per node; a training starts one process on each, other stages use one, "
        "or as many as vLLM splits the model over",
    )
    accelerator_memory: float | None = Field(
        None, gt=0, description="Memory of one accelerator in GiB, with which the pre-flight compares its estimates"
    )
    accelerator_price: float | None = Field(
        None, gt=0, description="Price of one accelerator for an hour, in `cluster.currency`"
    )
    shm: Quantity | None = Field(
        None, description="Size of /dev/shm, which counts as memory; the node's own 64 MB by default"
    )
    node_selector: dict[str, Text] = Field({}, description="Labels that the node must have")
    tolerations: tuple[Toleration, ...] = Field(
        (), description="Node taints that the task tolerates, such as those of GPU nodes and spot nodes"
    )

    @property
    def processes(self) -> int:
        """Number of training processes on one such node."""
        return self.accelerators if self.accelerator else 1

    @property
    def requests(self) -> dict[str, str]:
        """CPU and memory that are reserved."""
        return {"cpu": self.cpu_request or self.cpu, "memory": self.memory_request or self.memory}

    @model_validator(mode="after")
    def _requests_are_within_limits(self) -> "Node":
        for name, most in (("cpu", self.cpu), ("memory", self.memory)):
            if amount_of(self.requests[name]) > amount_of(most):
                raise ValueError(f"`{name}_request: {self.requests[name]}` is more than `{name}: {most}`, its limit")
        return self

    @model_validator(mode="after")
    def _one_mig_slice_per_process(self) -> "Node":
        if self.accelerators > 1 and "/mig-" in (self.accelerator or ""):
            raise ValueError(
                f"`accelerators: {self.accelerators}` of {self.accelerator} cannot be used: a CUDA process sees one MIG slice. "
                "Set `accelerators: 1`"
            )
        return self


def _whole_number(factor: object) -> object:
    if isinstance(factor, float) and not factor.is_integer():
        raise ValueError(f"{factor} is not a whole number, and Kubeflow Pipelines takes no other: write 1, 2 or more")
    return factor


class Retry(Section):
    """How often, and after which pauses, a task is tried again after a lost service, process or pod."""

    attempts: int = Field(2, ge=0, description="Number of retries after the first attempt")
    backoff_seconds: int = Field(60, ge=0, description="Seconds before the first retry")
    factor: Annotated[int, BeforeValidator(_whole_number)] = Field(
        2, ge=1, description="Whole number by which the pause grows with each retry"
    )
    max_seconds: int = Field(3600, ge=0, description="Longest pause in seconds")

    def pause(self, retry: int) -> int:
        """Seconds before the retry of this number, from 1 on."""
        return min(self.backoff_seconds * self.factor ** (retry - 1), self.max_seconds)


class TrainJob(Section):
    """A training on several nodes, run by Kubeflow Trainer v2."""

    nodes: int = Field(2, ge=1, description="Number of pods; each gets the resources of the stage's node")
    runtime: str = Field(
        "star-torch",
        min_length=1,
        description="Name of a TrainingRuntime (`star-torch` is the one in deploy/multinode) or ClusterTrainingRuntime",
    )


def _add_cpu_node(nodes: object) -> object:
    # The `nodes` of a file replace the default as a whole, and every task without a placement needs `cpu`.
    return {CPU: Node(), **nodes} if isinstance(nodes, dict) else nodes


class Cluster(Section):
    """Where and how the tasks of the compiled pipeline run."""

    nodes: Annotated[dict[str, Node], BeforeValidator(_add_cpu_node)] = Field(
        {CPU: Node()}, description="Nodes by name; `cpu` is the node of every task without an entry in `placement`"
    )
    placement: dict[ModelStage, str] = Field({}, description="Name of the node of each stage that runs a model")
    shards: dict[ShardedStage, Annotated[int, Field(ge=1, le=256)]] = Field(
        {}, description="Number of pods that share rollout, extract-topk or evaluate; 1 by default"
    )
    parallelism: int = Field(8, ge=1, description="Most shards of a stage that run at the same time")
    train_jobs: dict[TrainingStage, TrainJob] = Field(
        {}, description="Trainings that Kubeflow Trainer runs on several nodes; by default each runs in its task's pod"
    )
    retry: Retry = Field(Retry(), description="Retries of every task but the pre-flight")
    environment: dict[str, Text] = Field(
        {}, description="Environment variables of every task, such as MLFLOW_TRACKING_URI"
    )
    secrets: dict[KubernetesName, dict[str, str]] = Field(
        {},
        description="Environment variables from Kubernetes Secrets: Secret -> variable -> key in the Secret; "
        "a task gets only those that it uses (docs/security.md)",
    )
    secret_tasks: dict[str, tuple[TaskName, ...]] = Field(
        {},
        description="Variable of `secrets` -> tasks that get it, besides the pre-flight, in place of those that STAR knows to use it",
    )
    work_claim: KubernetesName | None = Field(
        None, description="PersistentVolumeClaim that keeps unfinished work for a retry"
    )
    shared_with: Literal["nobody", "group", "everyone"] = Field(
        "nobody",
        description="Who else may go on with unfinished work on the volume of `work_claim`, where tasks have several user ids: "
        "users of the same group, or everyone; the variable STAR_SHARED_WITH on one machine",
    )
    checkpoints: S3Url | None = Field(
        None,
        description="s3://bucket/folder to which checkpoints are copied, for nodes that can vanish with their disks",
    )
    inputs: S3Url | None = Field(
        None,
        description="s3://bucket/folder to which `star pipeline submit` uploads tools, rows and bases of your machine; by default the "
        "folder `inputs` beside `checkpoints` or STAR_REGISTRY",
    )
    certificates: KubernetesName | None = Field(
        None,
        description="ConfigMap whose key `ca.pem` has the certificates that tasks trust, and no others, for a hub, an object store or an "
        "MLflow with an authority of your own",
    )
    service_account: KubernetesName | None = Field(
        None, description="Service account of the tasks; that of the KFP installation by default"
    )
    currency: str = Field("USD", pattern=r"^\S{1,8}$", description="Currency of `accelerator_price`, as it is shown")
    queue: LabelValue | None = Field(
        None,
        description="LocalQueue of Kueue in which the pods of tasks, and TrainJobs, wait for room; none by default",
    )
    priority_class: LabelValue | None = Field(
        None,
        description="WorkloadPriorityClass of Kueue: which of those that wait in `queue` comes first, and which is preempted",
    )
    run_as_user: int = Field(10001, ge=1, description="User id of the tasks; the image's own user by default")

    @model_validator(mode="after")
    def _placed_nodes_exist(self) -> "Cluster":
        # Otherwise the tasks that run no model would wait for an accelerator and hold it.
        if self.nodes[CPU].accelerator:
            raise ValueError(
                "`nodes.cpu` has an accelerator, but runs the tasks that use none: describe the accelerator in another node"
            )
        # Checked when the file is read, because `node_of` would fail with a KeyError that names no key of the file.
        if missing := sorted(set(self.placement.values()) - set(self.nodes)):
            raise ValueError(f"`placement` names {', '.join(missing)}, which `nodes` does not describe")
        return self

    @model_validator(mode="after")
    def _train_jobs_share_a_volume(self) -> "Cluster":
        if self.train_jobs and not self.work_claim:
            raise ValueError(
                "`train_jobs` needs `work_claim`, a ReadWriteMany claim: all pods of a TrainJob read the same files"
            )
        return self

    @model_validator(mode="after")
    def _priority_is_within_a_queue(self) -> "Cluster":
        if self.priority_class and not self.queue:
            raise ValueError("`priority_class` is Kueue's, which looks at what waits in a queue: set `queue` too")
        return self

    @model_validator(mode="after")
    def _no_secret_in_plain_text(self) -> "Cluster":
        # The compiled pipeline holds `environment` in plain text.
        if plain := [name for name in self.environment if names_secret(name) and not self._is_reference(name)]:
            raise ValueError(
                f"{plain[0]} looks like a secret: name it under `secrets`, with the Kubernetes Secret that holds it"
            )
        return self

    @model_validator(mode="after")
    def _environment_is_not_set_by_star(self) -> "Cluster":
        if name := next((name for name in self.environment if name in _SET_BY_STAR), None):
            setting = _SET_BY_STAR[name]
            cure = f"set {setting} instead" if setting else "leave it out"
            raise ValueError(f"STAR itself sets {name} in its tasks: {cure}")
        return self

    @model_validator(mode="after")
    def _secret_tasks_are_of_secrets(self) -> "Cluster":
        named = {variable for variables in self.secrets.values() for variable in variables}
        if unknown := sorted(set(self.secret_tasks) - named):
            raise ValueError(f"`secret_tasks` names {', '.join(unknown)}, which no Secret of `secrets` gives")
        return self

    @property
    def queue_labels(self) -> dict[str, str]:
        """Labels of queue and priority; none without a queue."""
        labels = {QUEUE_LABEL: self.queue, PRIORITY_LABEL: self.priority_class}
        return {label: value for label, value in labels.items() if value}

    @property
    def variables(self) -> dict[str, str]:
        """The variables of every task in plain text: `environment`, and where the certificates are."""
        trusted = dict.fromkeys(CERTIFICATE_VARIABLES, f"{CERTIFICATES_PATH}/ca.pem") if self.certificates else {}
        return trusted | self.environment

    def secrets_of(self, task: str) -> dict[str, dict[str, str]]:
        """Returns the part of `secrets` that a task gets: Secret -> variable -> key. A Secret without such a variable is left out."""
        of_task = {
            secret: {variable: key for variable, key in variables.items() if task in self._tasks_with(variable)}
            for secret, variables in self.secrets.items()
        }
        return {secret: variables for secret, variables in of_task.items() if variables}

    def with_readers(self, tasks: Collection[TaskName], keys: tuple[str, ...]) -> "Cluster":
        """The section with further tasks that get the variables that begin so, unless `secret_tasks` says who does."""
        named = {variable for variables in self.secrets.values() for variable in variables}
        used = [variable for variable in named if variable.startswith(keys) and variable not in self.secret_tasks]
        given = {key: tuple(name for name in TASKS if name in {*self._tasks_with(key), *tasks}) for key in sorted(used)}
        # Without such an input nothing is written down that the table says anyway.
        return self.model_copy(update={"secret_tasks": {**self.secret_tasks, **given}}) if tasks else self

    def _tasks_with(self, variable: str) -> tuple[str, ...]:
        if variable in self.secret_tasks:
            return (PREFLIGHT, *self.secret_tasks[variable])
        return tasks_that_use(variable, environment=self.environment, checkpoints=self.checkpoints is not None)

    def _is_reference(self, name: str) -> bool:
        return name in REFERENCES and self.environment[name].startswith(("/", "env:"))

    def node_of(self, stage: str) -> Node:
        """Returns the node of a stage, or of any other task by its name."""
        # A copy whose keys are any text: `placement` knows the stages with a model only, and every task asks.
        placed: dict[str, str] = dict(self.placement.items())
        return self.nodes[placed.get(stage, CPU)]

    def accelerators_of(self, stage: str) -> int:
        """Returns how many accelerators a stage or another task holds: those of all its nodes."""
        node = self.node_of(stage)
        return self._nodes_of(stage) * node.accelerators if node.accelerator else 0

    def processes_of(self, stage: str) -> int:
        """Returns how many processes train a stage together: one per accelerator of each of its nodes."""
        return self._nodes_of(stage) * self.node_of(stage).processes

    def _nodes_of(self, stage: str) -> int:
        jobs: dict[str, TrainJob] = dict(self.train_jobs.items())
        return jobs[stage].nodes if stage in jobs else 1
