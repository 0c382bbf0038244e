"""Builds the pipeline's DAG from the eight stages, for this machine or for a cluster, and compiles it to KFP YAML.

Both DAGs have the same stages with the same inputs. On a cluster three things are added: the pre-flight runs first, the shards of a stage
run in parallel and are merged, and the exit handler runs at the end, even after a failure:

    preflight -> synthesize -> refine-teacher -> rollout 1/4 ... 4/4 -> merge-rollout -> extract-topk 1/4 ... 4/4 -> ... -> register
    finish (exit handler)
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl
from kfp.dsl.base_component import BaseComponent

from star import stages
from star.cluster.task_config import VARIABLE as CONFIG_VARIABLE
from star.cluster.task_config import config_for_environment, digest_for_task
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
from star.config.cluster import ShardedStage
from star.config.experiment import Config
from star.config.files import inputs_in
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.pipelines.resources import apply_cluster_settings
from star.pipelines.upload_inputs import upload_inputs
from star.stages import STAGES, stage_named

IMAGE = "star-python:latest"  # a placeholder, in the snapshots and in a pipeline that is compiled for a look
ConfigureTask = Callable[[dsl.PipelineTask, str], dsl.PipelineTask]  # (task, its name) -> the same task


class Folders(NamedTuple):
    """The folder that each stage writes, in the order of STAGES."""

    data: dsl.Dataset
    teacher: dsl.Model
    rollouts: dsl.Dataset
    topk: dsl.Dataset
    distilled: dsl.Model
    refined: dsl.Model
    evaluation: dsl.Artifact
    registration: dsl.Artifact


def build_pipeline(config: Config) -> BaseComponent:
    """The pipeline for this machine: one task per stage, each in its own process."""

    def configure(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        return task.set_display_name(name).set_caching_options(_is_cached(name))

    @dsl.pipeline(name="star", description="Distils a large function-calling model into a small one.")
    def star_pipeline() -> Folders:
        return _connect_stages(config, configure, shards={})

    return star_pipeline


def build_cluster_pipeline(config: Config, *, image: str) -> BaseComponent:
    """The pipeline for a cluster, with tasks on the nodes that the section `cluster` of the configuration names."""
    cluster = config.cluster_of_tasks

    def configure(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        task.set_display_name(name).set_container_image(image).set_caching_options(_is_cached(name))
        task.set_env_variable("STAR_IMAGE", image)  # for the lineage, and for the pods of TrainJobs
        apply_cluster_settings(task, name, cluster)
        return task

    @dsl.pipeline(name="star", description="Distils a large function-calling model into a small one.")
    def star_pipeline() -> None:
        # This pipeline returns nothing, because KFP cannot return outputs from inside an ExitHandler.
        exit_task = configure(finish(run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER), "finish")
        with dsl.ExitHandler(exit_task, name="stages"):
            text = config_for_environment(config.model_dump_json())
            checked = configure(preflight(config_digest=digest_for_task(text)), "preflight")
            checked.set_env_variable(CONFIG_VARIABLE, text)
            _connect_stages(config, configure, shards=config.cluster.shards, after=checked)

    return star_pipeline


def _is_cached(task: str) -> bool:
    # Pre-flight and exit handler look at the services as they are now. A merge task is not in STAGES and is always cached.
    return task not in ("preflight", "finish") and all(stage.cached for stage in STAGES if stage.name == task)


def _connect_stages(
    config: Config,
    configure: ConfigureTask,
    *,
    shards: Mapping[ShardedStage, int],
    after: dsl.PipelineTask | None = None,
) -> Folders:
    """Creates one task per stage (or per shard) and connects it to the outputs of the stages before it.

    The cache key of a task is its inputs and the digests of its stage's configuration sections and code. A task therefore gets no other
    sections, so that a setting of the evaluation does not make the distillation run again.

    Args:
        config: The whole configuration.
        configure: Sets display name, caching, image and node of a task.
        shards: Number of shards of each sharded stage; one when a stage is missing.
        after: Task that must succeed before the first stage starts.
    """

    def task_of(component: Callable, name: str, **inputs: dsl.Artifact | str) -> dsl.PipelineTask:
        stage = stage_named(name)
        text = config_for_environment(config.for_stage(stage.sections))
        # KFP's cache notices by itself neither another configuration in the environment nor changed library code.
        task = component(**inputs, config_digest=digest_for_task(text), code=code_digest(stage.function))
        return configure(task, name).set_env_variable(CONFIG_VARIABLE, text)

    def sharded(component: Callable, name: ShardedStage, output: str, **inputs: dsl.Artifact) -> dsl.Artifact:
        shard_count = shards.get(name, 1)
        if shard_count == 1:
            return task_of(component, name, **inputs).outputs[output]
        shard_names = [f"{number}/{shard_count}" for number in range(1, shard_count + 1)]
        with dsl.ParallelFor(shard_names, name=f"{name}-shards", parallelism=config.cluster.parallelism) as shard:
            part = task_of(component, name, **inputs, shard=shard)
        is_evaluation = name == "evaluate"
        code = code_digest(stages.merge_evaluation if is_evaluation else stages.merge)
        merge_component = merge_evaluation if is_evaluation else merge
        merged = merge_component(parts=dsl.Collected(part.outputs[output]), code=code)
        return configure(merged, f"merge-{name}").outputs["merged"]

    first = task_of(synthesize, "synthesize")
    data = (first.after(after) if after else first).outputs["data"]
    teacher = task_of(refine_teacher, "refine-teacher", data=data).outputs["teacher"]
    rollouts = sharded(rollout, "rollout", "rollouts", data=data, teacher=teacher)
    topk = sharded(extract_topk, "extract-topk", "topk", rollouts=rollouts, teacher=teacher)
    distilled = task_of(distill, "distill", topk=topk).outputs["distilled"]
    refined = task_of(refine, "refine", student=distilled, data=data).outputs["refined"]
    models = {"teacher": teacher, "distilled": distilled, "refined": refined}
    evaluation = sharded(evaluate, "evaluate", "evaluation", data=data, **models)
    registration = task_of(register, "register", refined=refined, evaluation=evaluation).outputs["registration"]
    return Folders(data, teacher, rollouts, topk, distilled, refined, evaluation, registration)


def compile_pipeline(config: Config, output: Path, *, image: str = IMAGE) -> None:
    """Compiles the cluster pipeline of a configuration to KFP YAML.

    Raises:
        InputError: the output is not a YAML file, the configuration names files that only this machine has, or the node of a stage cannot
            run it.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output} must end in .yaml: give another --output")
    for name, source in inputs_in(config):
        if source.is_local:
            raise InputError(
                f"`{name}` is {source.path} on this machine, where no pod can read it: `star pipeline submit` uploads it, or "
                "name a copy in S3 (s3://bucket/...)"
            )
    # On the cluster such a mistake would show up only after the stages before it, hours later.
    _check_nodes(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build_cluster_pipeline(config, image=image), str(output))


def upload_and_compile(config: Config, output: Path, *, image: str = IMAGE) -> None:
    """`compile_pipeline`, after the inputs that only this machine has were uploaded for the pods (upload_inputs.py)."""
    # Before an upload that may take an hour.
    _check_nodes(config)
    compile_pipeline(upload_inputs(config), output, image=image)


def _check_nodes(config: Config) -> None:
    """Raises InputError when the node of a stage cannot run it: an idle accelerator, too few of them, or a batch they cannot share."""
    for stage, settings in (("rollout", config.rollout), ("extract-topk", config.topk)):
        node = config.cluster.node_of(stage)
        if settings.server and node.accelerator:
            raise InputError(
                f"{settings.server} runs the teacher of {stage}, whose own accelerator would be idle: "
                f"set `cluster.placement.{stage}: cpu`"
            )
    for stage, split in config.vllm_stages().items():
        if split > (accelerators := config.cluster.node_of(stage).accelerators):
            raise InputError(
                f"{stage} splits the model over {split} accelerators and its node has {accelerators}: "
                "set `accelerators` of the node"
            )
    for batch in _training_batches(config):
        processes = config.cluster.processes_of(batch.stage)
        if batch.items % processes:
            raise InputError(
                f"{batch.stage} divides {batch.setting} = {batch.items} among {processes} processes, one per accelerator: "
                "choose a multiple"
            )
        sequences = batch.items // processes * batch.sequences_per_item
        if sequences % min(batch.micro_batch_size or sequences, sequences):
            raise InputError(
                f"{batch.stage} gives each of {processes} processes {sequences} sequences per step: "
                "set a micro_batch_size that divides them"
            )


class _TrainingBatch(NamedTuple):
    """The items that the processes of a training share in each step."""

    stage: str
    setting: str  # where the configuration has `items`
    items: int  # rows, or prompts of Sim-RL
    sequences_per_item: int
    micro_batch_size: int | None  # sequences per forward pass; all of them when None


def _training_batches(config: Config) -> Iterator[_TrainingBatch]:
    for stage, section, training in (
        ("refine-teacher", "teacher.sft", config.teacher.sft),
        ("distill", "distill", config.distill),
    ):
        if training:
            setting = f"`{section}.batch_size`"
            yield _TrainingBatch(stage, setting, training.batch_size, 1, training.micro_batch_size)
    for stage, section, simrl in (
        ("refine-teacher", "teacher.refine", config.teacher.refine),
        ("refine", "refine", config.refine),
    ):
        if simrl:
            setting = f"`{section}.prompts_per_step`"
            yield _TrainingBatch(stage, setting, simrl.prompts_per_step, simrl.num_generations, simrl.micro_batch_size)
