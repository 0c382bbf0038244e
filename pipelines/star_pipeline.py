"""The DAG: the eight stages as one KFP pipeline, in the shape for this machine and in the shape for a cluster.

Both are the same stages with the same inputs. On a cluster a pre-flight comes first, shards of a stage run beside each other and are
merged, and a closing task runs whatever happened.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl

from star import stages
from star.components.distill import distill
from star.components.evaluate import evaluate
from star.components.extract_topk import extract_topk
from star.components.finish import finish
from star.components.merge import merge
from star.components.merge_evaluation import merge_evaluation
from star.components.preflight import preflight
from star.components.refine import refine
from star.components.refine_teacher import refine_teacher
from star.components.register import register
from star.components.rollout import rollout
from star.components.synthesize import synthesize
from star.config.experiment import Config
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.pipelines.resources import place
from star.stages import STAGES, stage_named

IMAGE = "star-python:latest"
Prepare = Callable[[dsl.PipelineTask, str], dsl.PipelineTask]


class Folders(NamedTuple):
    """The folder that each stage wrote."""

    data: dsl.Dataset
    teacher: dsl.Model
    rollouts: dsl.Dataset
    topk: dsl.Dataset
    distilled: dsl.Model
    refined: dsl.Model
    evaluation: dsl.Artifact
    registration: dsl.Artifact


def build_pipeline(config: Config):
    """The pipeline for this machine: a task a stage, each in a process of its own."""

    def prepared(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        return task.set_display_name(name).set_caching_options(_cached(name))

    @dsl.pipeline(name="star", description="Distils a large function-calling model into a small one.")
    def star_pipeline() -> Folders:
        return _stages(config, prepared, shards={})

    return star_pipeline


def build_cluster_pipeline(config: Config, *, image: str):
    """The pipeline for a cluster, its tasks placed as `cluster` of the configuration says."""

    def prepared(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        task.set_display_name(name).set_container_image(image).set_caching_options(_cached(name))
        task.set_env_variable("STAR_IMAGE", image)  # for the lineage
        place(task, name, config.cluster)
        return task

    @dsl.pipeline(name="star", description="Distils a large function-calling model into a small one.")
    def star_pipeline() -> None:
        closing = prepared(finish(run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER), "finish")
        with dsl.ExitHandler(closing, name="stages"):
            ready = prepared(preflight(config=config.model_dump_json()), "preflight")
            _stages(config, prepared, shards=config.cluster.shards, after=ready)

    return star_pipeline


def _cached(task: str) -> bool:
    return task not in ("preflight", "finish") and all(stage.cached for stage in STAGES if stage.name == task)


def _stages(
    config: Config, prepared: Prepare, *, shards: dict[str, int], after: dsl.PipelineTask | None = None
) -> Folders:
    """The stages, each fed by those before it. Each task is given only its stage's sections, and the digest of its stage's code:
    together with its inputs they are what its result is cached by."""

    def settings(name: str) -> dict[str, str]:
        stage = stage_named(name)
        return {"config": config.slice(stage.sections), "code": code_digest(stage.function)}

    def fanned_out(component: Callable, name: str, output: str, **inputs: dsl.Artifact) -> dsl.Artifact:
        count = shards.get(name, 1)
        if count == 1:
            return prepared(component(**inputs, **settings(name)), name).outputs[output]
        parts = [f"{number}/{count}" for number in range(1, count + 1)]
        with dsl.ParallelFor(parts, name=f"{name}-shards", parallelism=config.cluster.parallelism) as shard:
            part = prepared(component(**inputs, **settings(name), shard=shard), name)
        evaluates = name == "evaluate"
        code = code_digest(stages.merge_evaluation if evaluates else stages.merge)
        merged = (merge_evaluation if evaluates else merge)(parts=dsl.Collected(part.outputs[output]), code=code)
        return prepared(merged, f"merge-{name}").outputs["merged"]

    first = prepared(synthesize(**settings("synthesize")), "synthesize")
    data = (first.after(after) if after else first).outputs["data"]
    teacher = prepared(refine_teacher(data=data, **settings("refine-teacher")), "refine-teacher").outputs["teacher"]
    rollouts = fanned_out(rollout, "rollout", "rollouts", data=data, teacher=teacher)
    topk = fanned_out(extract_topk, "extract-topk", "topk", rollouts=rollouts, teacher=teacher)
    distilled = prepared(distill(topk=topk, **settings("distill")), "distill").outputs["distilled"]
    refined = prepared(refine(student=distilled, data=data, **settings("refine")), "refine").outputs["refined"]
    models = {"teacher": teacher, "distilled": distilled, "refined": refined}
    evaluation = fanned_out(evaluate, "evaluate", "evaluation", data=data, **models)
    registered = prepared(register(refined=refined, evaluation=evaluation, **settings("register")), "register")
    registration = registered.outputs["registration"]
    return Folders(data, teacher, rollouts, topk, distilled, refined, evaluation, registration)


def compile_pipeline(config: Config, output: Path, *, image: str = IMAGE) -> None:
    """Writes the cluster's pipeline of a configuration as KFP YAML.

    Raises:
        InputError: the output is not a YAML file, the configuration names files that only this machine has, or a stage's node does not
            suit what it runs.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output} must end in .yaml: give another --output")
    for file in (config.data.tools, config.data.seed_data):
        if file is not None and file.is_local:
            raise InputError(
                f"{file.path} is on this machine, where no pod can read it: run this profile with `star run`"
            )
    _require_nodes_that_suit(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build_cluster_pipeline(config, image=image), str(output))


def _require_nodes_that_suit(config: Config) -> None:
    for stage, teacher in (("rollout", config.rollout), ("extract-topk", config.topk)):
        node = config.cluster.node_of(stage)
        if teacher.server and node.accelerator:
            raise InputError(
                f"{teacher.server} runs the teacher of {stage}, whose own accelerator would idle: set `cluster.placement.{stage}: cpu`"
            )
        if teacher.vllm and (split := teacher.vllm.tensor_parallel_size) > node.accelerators:
            raise InputError(
                f"{stage} splits the teacher over {split} accelerators and its node has {node.accelerators}: set `accelerators` of the node"
            )
    for stage, setting, batch, each, micro in _batches(config):
        processes = config.cluster.processes_of(stage)
        if batch % processes:
            raise InputError(
                f"{stage} deals {setting} = {batch} to {processes} processes, one for each accelerator: choose a multiple"
            )
        share = batch // processes * each
        if share % min(micro or share, share):
            raise InputError(
                f"{stage} gives each of {processes} processes {share} sequences a step: set a micro_batch_size that divides them"
            )


def _batches(config: Config) -> Iterator[tuple[str, str, int, int, int | None]]:
    """What each training deals evenly to its processes, how many sequences each of it is, and how many make a forward pass."""
    for stage, name, training in (
        ("refine-teacher", "teacher.sft", config.teacher.sft),
        ("distill", "distill", config.distill),
    ):
        if training:
            yield stage, f"`{name}.batch_size`", training.batch_size, 1, training.micro_batch_size
    for stage, name, simrl in (
        ("refine-teacher", "teacher.refine", config.teacher.refine),
        ("refine", "refine", config.refine),
    ):
        if simrl:
            yield (
                stage,
                f"`{name}.prompts_per_step`",
                simrl.prompts_per_step,
                simrl.num_generations,
                simrl.micro_batch_size,
            )
