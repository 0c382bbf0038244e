"""What a pipeline needs, checked before anything is spent: every failed check says the cure.

The first task of a compiled pipeline runs these, and so does `star doctor`. Each asks the real thing: it writes a run, an object, a file.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from star.config.experiment import Architecture, Config
from star.errors import InputError, redacted

GIB = 1 << 30
TRAINED = 16  # bytes a parameter: fp32 weights, gradients, two moments of AdamW
FROZEN = 2  # bf16 weights
ADAPTED = 2.5  # bf16 weights, adapters of some percent with their moments


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def preflight_checks(config: Config) -> Iterator[Check]:
    """Yields the checks of what the tasks will use, one after another; the secrets are those of this process's environment."""
    if config.cluster.secrets:
        yield _checked("secrets", lambda: _secrets(config))
    yield _checked("MLflow", _tracking)
    yield _checked("registry", lambda: _registry(config))
    if config.cluster.checkpoints:
        yield _checked("checkpoints", lambda: _object_store(config.cluster.checkpoints))
    if os.environ.get("STAR_WORK"):
        yield _checked("volume", lambda: _volume(Path(os.environ["STAR_WORK"])))
        yield _checked("space", lambda: _space(config, Path(os.environ["STAR_WORK"])))
    for runtime in sorted({job.runtime for job in config.cluster.train_jobs.values()}):
        yield _checked("Kubeflow Trainer", lambda runtime=runtime: _trainer(runtime))
    pretrained = not any(isinstance(base, Architecture) for base in (config.teacher.base, config.student.base))
    if pretrained:
        yield _checked("tokenizers", lambda: _tokenizers(config))
    for stage, node in config.cluster.placement.items():
        if config.cluster.nodes[node].accelerator_memory:
            yield _checked(f"GPU, {stage}", lambda stage=stage: _fits(config, stage))


def require_all(config: Config) -> None:
    """Prints every check.

    Raises:
        InputError: some fail; the message has all of them.
    """
    failed = []
    for check in preflight_checks(config):
        print(f"{'ok  ' if check.passed else 'FAIL'} {check.name:<22} {check.detail}", flush=True)
        failed += [] if check.passed else [f"{check.name}: {check.detail}"]
    if failed:
        raise InputError("; ".join(failed))


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except InputError as error:
        return Check(name, False, redacted(str(error)))


def _secrets(config: Config) -> str:
    wanted = {variable: secret for secret, variables in config.cluster.secrets.items() for variable in variables}
    if missing := [f"{name} (from Secret {secret})" for name, secret in wanted.items() if not os.environ.get(name)]:
        raise InputError(
            f"not set: {', '.join(missing)}: fill the Secret in this namespace (kubectl create secret generic)"
        )
    return f"{len(wanted)} variables are set"


def _tracking() -> str:
    """Writes a run with an artifact and deletes it, so that a server which only answers does not pass."""
    from star.tracking.server import connect, experiment_id, reason_of, shown_uri, tracking_uri

    client = connect()
    where = shown_uri(tracking_uri())
    try:
        run = client.create_run(experiment_id(client), run_name="preflight", tags={"star.stage": "preflight"})
        client.log_text(run.info.run_id, "written by the pre-flight\n", "preflight.txt")
        client.set_terminated(run.info.run_id)
        client.delete_run(run.info.run_id)
    except Exception as error:
        raise InputError(
            f"{where} answers and does not take a run with an artifact ({reason_of(error)}): check the rights of "
            "MLFLOW_TRACKING_USERNAME, and that its artifact store is there"
        ) from error
    return where


def _registry(config: Config) -> str:
    from star.tracking.server import connect, reason_of, shown_uri, tracking_uri

    client, name = connect(), config.registry.model_name
    try:
        versions = client.search_model_versions(f"name = '{name}'", max_results=1)
    except Exception as error:
        raise InputError(
            f"{shown_uri(tracking_uri())} has no usable model registry ({reason_of(error)}): it needs a database store"
        ) from error
    return f"{name} has versions" if versions else f"{name} will be made"


def _object_store(url: str) -> str:
    """Writes an object, reads it back and deletes it."""
    from star.folders.s3_client import Place, connected

    place, name = Place.parse(url), f".preflight-{uuid.uuid4().hex}"
    with connected(place) as client:
        client.put_object(Bucket=place.bucket, Key=place.key(name), Body=b"preflight")
        read = client.get_object(Bucket=place.bucket, Key=place.key(name))["Body"].read()
        client.delete_object(Bucket=place.bucket, Key=place.key(name))
    if read != b"preflight":
        raise InputError(f"{place} does not give back what was written: check the store")
    return str(place)


def _trainer(runtime: str) -> str:
    from star.cluster.train_job import find_runtime, trainer_client

    return f"{find_runtime(trainer_client(), runtime).name} can be used"


def _volume(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".preflight-{uuid.uuid4().hex}"
        probe.write_bytes(b"preflight")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written by uid {os.getuid()} ({error.strerror}): give the claim to that user "
            "(chown, or a storage class that does), or leave out cluster.work_claim"
        ) from error
    return f"{folder} can be written"


def _space(config: Config, folder: Path) -> str:
    """Room for the largest thing that is written there: the store of the teacher's signal, or a training's checkpoints."""
    from star.number_format import format_bytes
    from star.topk.capacity import bytes_a_token, require_space

    rows = config.rollout.prompts or config.data.generated_rows
    vocab_size = config.scratch.vocab_size if config.scratch else 152_000
    store = rows * config.rollout.samples * config.rollout.max_new_tokens * bytes_a_token(config.topk.top_k, vocab_size)
    present = next(place for place in (folder, *folder.parents) if place.is_dir())
    require_space(
        present, int(store), what=f"the teacher's signal over {rows * config.rollout.samples:,} samples, at most"
    )
    return f"{format_bytes(store)} at most for the teacher's signal"


def _tokenizers(config: Config) -> str:
    from star.modeling.models import base_source, load_tokenizer
    from star.modeling.tokenizer import tokenizer_digest

    sources = [base_source(model.base) for model in (config.teacher, config.student)]
    teacher, student = (
        tokenizer_digest(load_tokenizer(source, revision=model.revision))
        for source, model in zip(sources, (config.teacher, config.student), strict=True)
    )
    if teacher != student:
        raise InputError(
            f"{sources[0]} and {sources[1]} have different tokenizers, so the teacher's ids mean nothing to the student: "
            "choose a student of the teacher's family"
        )
    return f"{sources[0]} and {sources[1]} share one tokenizer"


def _fits(config: Config, stage: str) -> str:
    node = config.cluster.node_of(stage)
    least = memory_needed(config, stage) / GIB
    text = f"at least {least:.3g} GiB for weights and optimiser, {node.accelerator} has {node.accelerator_memory:g}"
    if least > node.accelerator_memory:
        raise InputError(f"{text}: place {stage} on a larger node, or train adapters (`lora`)")
    return text


def memory_needed(config: Config, stage: str) -> float:
    """Bytes that the weights of a stage's model, their gradients and the optimiser take on one GPU: what it needs at the very least,
    for activations and generated tokens come on top."""
    teacher, student = config.teacher, config.student
    if stage == "refine-teacher":
        return max(_bytes(teacher, training) for training in (teacher.sft, teacher.refine))
    if stage in ("distill", "refine"):
        return _bytes(student, config.distill if stage == "distill" else config.refine)
    return FROZEN * _parameters(teacher)


def _bytes(model, training) -> float:
    """Of one training; Sim-RL with a KL term holds the weights it started from beside the trained ones."""
    if training is None:
        return FROZEN * _parameters(model)
    if getattr(training, "lora", None):
        return ADAPTED * _parameters(model)
    reference = 4 if getattr(training, "beta", 0) else 0
    return (TRAINED + reference) * _parameters(model)


def _parameters(model) -> int:
    """Counted on a model without weights, of which only the configuration is fetched."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

    from star.modeling.models import base_source, count_parameters

    if isinstance(model.base, Architecture):
        # The vocabulary of a model from scratch is no part of its size worth counting.
        described = Qwen3Config(vocab_size=1024, tie_word_embeddings=True, **model.base.model_dump())
    else:
        source = base_source(model.base)
        try:
            described = AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"model {source} cannot be described ({reason}): give a folder, or an id this machine can download"
            ) from error
    with torch.device("meta"):
        return count_parameters(AutoModelForCausalLM.from_config(described))
