"""What the tasks of a pipeline ask of a Kubernetes node. The local runner ignores all of it."""

from dataclasses import dataclass, replace

from kfp.dsl import PipelineTask

from star.config import Architecture, Config


@dataclass(frozen=True)
class Node:
    """Limits of one task; `gpus` of 0 asks for no accelerator."""

    cpu: str
    memory: str
    gpus: int = 0


SMALL = Node(cpu="2", memory="6Gi")
STUDENT = Node(cpu="8", memory="64Gi", gpus=1)
TEACHER = Node(cpu="8", memory="128Gi", gpus=1)
GPU_STAGES = {
    "refine-teacher": TEACHER,
    "rollout": TEACHER,
    "extract-topk": TEACHER,
    "distill": STUDENT,
    "refine": STUDENT,
    "evaluate": TEACHER,
}


def node_for(stage: str, config: Config) -> Node:
    """A GPU node for the stages that run a pretrained model, a small CPU node for everything else."""
    from_scratch = all(isinstance(base, Architecture) for base in (config.teacher.base, config.student.base))
    node = SMALL if from_scratch else GPU_STAGES.get(stage, SMALL)
    asked = {"rollout": config.rollout, "extract-topk": config.topk}.get(stage)
    if asked and asked.server:
        return SMALL  # the teacher runs elsewhere
    return replace(node, gpus=asked.vllm.tensor_parallel_size) if asked and asked.vllm else node


def place(task: PipelineTask, node: Node) -> None:
    """Sets the limits of a task."""
    task.set_cpu_limit(node.cpu).set_memory_limit(node.memory)
    if node.gpus:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(node.gpus)
