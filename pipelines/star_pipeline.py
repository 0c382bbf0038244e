"""The DAG: the eight stages as one KFP pipeline. The same object is compiled for a cluster and run on this machine."""

from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl

from star.code import code_digest
from star.components.distill import distill
from star.components.evaluate import evaluate
from star.components.extract_topk import extract_topk
from star.components.refine import refine
from star.components.refine_teacher import refine_teacher
from star.components.register import register
from star.components.rollout import rollout
from star.components.synthesize import synthesize
from star.config import Config
from star.errors import InputError
from star.pipelines.resources import node_for, place
from star.stages import stage_named

IMAGE = "star-python:latest"


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


def build_pipeline(config: Config, *, image: str | None = None):
    """The pipeline of a configuration. Each task is given only its stage's sections, and the digest of its stage's code:
    together with its inputs they are what its result is cached by."""

    def settings(name: str) -> dict[str, str]:
        stage = stage_named(name)
        return {"config": config.slice(stage.sections), "code": code_digest(stage.function)}

    def prepared(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        task.set_display_name(name).set_container_image(image or IMAGE).set_caching_options(stage_named(name).cached)
        if image:  # on this machine no image runs
            task.set_env_variable("STAR_IMAGE", image)  # for the lineage
        place(task, node_for(name, config))
        return task

    @dsl.pipeline(name="star", description="Distils a large function-calling model into a small one.")
    def star_pipeline() -> Folders:
        data = prepared(synthesize(**settings("synthesize")), "synthesize").outputs["data"]
        teacher = prepared(refine_teacher(data=data, **settings("refine-teacher")), "refine-teacher").outputs["teacher"]
        rollouts = prepared(rollout(data=data, teacher=teacher, **settings("rollout")), "rollout").outputs["rollouts"]
        topk = prepared(
            extract_topk(rollouts=rollouts, teacher=teacher, **settings("extract-topk")), "extract-topk"
        ).outputs["topk"]
        distilled = prepared(distill(topk=topk, **settings("distill")), "distill").outputs["distilled"]
        refined = prepared(refine(student=distilled, data=data, **settings("refine")), "refine").outputs["refined"]
        models = {"teacher": teacher, "distilled": distilled, "refined": refined}
        evaluation = prepared(evaluate(data=data, **models, **settings("evaluate")), "evaluate").outputs["evaluation"]
        registered = prepared(register(refined=refined, evaluation=evaluation, **settings("register")), "register")
        registration = registered.outputs["registration"]
        return Folders(data, teacher, rollouts, topk, distilled, refined, evaluation, registration)

    return star_pipeline


def compile_pipeline(config: Config, output: Path, *, image: str = IMAGE) -> None:
    """Writes the pipeline of a configuration as KFP YAML.

    Raises:
        InputError: the output is not a YAML file, or the configuration names files that only this machine has.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output} must end in .yaml: give another --output")
    for file in (config.data.tools, config.data.seed_data):
        if file is not None and file.is_local:
            raise InputError(
                f"{file.path} is on this machine, where no pod can read it: run this profile with `star run`"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build_pipeline(config, image=image), str(output))
