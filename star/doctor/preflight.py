"""Pre-flight: checks everything that a pipeline needs before it spends hours. Every failed check says the cure.

The first task of a compiled pipeline (components/preflight.py) and `star doctor` run these checks. Each check uses the real service: it
writes an MLflow run, an S3 object, a file. A new check is one more entry in `preflight_checks`:

- service_checks.py: secrets, MLflow, promotions, S3, the volume, Kubeflow Trainer
- registry_rehearsal.py: the end of the run: publishing, deciding, fetching
- hub.py: the Hugging Face hub, asked once for all checks of models
- input_checks.py: tools, rows and bases by their digests, rows enough for Sim-RL, the data and programs of the evaluation's suites
- model_checks.py: disk space for the top-k store, memory of nodes and accelerators, vLLM
- rehearsal.py: the models and the data together, from a rendered row to one distillation step
- machine.py: packages, disk and memory of this machine (`star doctor` only)
"""

from collections.abc import Iterator
from functools import partial

from star.config.experiment import Config
from star.doctor.check import Check, run_check
from star.doctor.hub import ask_hub
from star.doctor.input_checks import check_inputs, check_prompts, check_suites
from star.doctor.model_checks import check_accelerator_memory, check_node_memory, check_vllm, check_volume_space
from star.doctor.registry_rehearsal import rehearse_registration
from star.doctor.rehearsal import rehearse
from star.doctor.rehearsal_record import rehearse_once
from star.doctor.service_checks import (
    check_model_registry,
    check_object_store,
    check_promotions,
    check_secrets,
    check_tracking_server,
    check_training_runtime,
    check_volume,
)
from star.errors import InputError
from star.folders.working_paths import work_root
from star.terminal import continued, guard_terminal


def preflight_checks(config: Config, *, on_cluster: bool = True) -> Iterator[Check]:
    """Yields the checks of what the pipeline's tasks will use, one after another. Secrets are looked for in this process's environment.

    Args:
        on_cluster: whether the stages run in pods, on the nodes that the configuration describes.
    """
    cluster = config.cluster
    if cluster.secrets:
        yield run_check("secrets", partial(check_secrets, cluster.secrets))
    yield run_check("MLflow", check_tracking_server)
    yield run_check("registry", partial(check_model_registry, config.registry.model_name))
    decided = run_check("promotions", partial(check_promotions, config.registry.model_name))
    yield decided
    if decided.passed:  # it would only say the same again
        yield run_check("registration", partial(rehearse_registration, config.registry.model_name))
    if cluster.checkpoints:
        yield run_check("checkpoints", partial(check_object_store, cluster.checkpoints))
    work_folder = work_root()
    if work_folder:
        yield run_check("volume", partial(check_volume, work_folder))
        yield run_check("space", partial(check_volume_space, config, work_folder))
    inputs = run_check("inputs", partial(check_inputs, config))
    yield inputs
    if inputs.passed:  # it would only say the same again
        yield run_check("prompts", partial(check_prompts, config))
    yield run_check("suites", partial(check_suites, config, on_cluster=on_cluster))
    if stages := config.vllm_stages():
        yield run_check("vLLM", partial(check_vllm, list(stages)))
    for runtime in sorted({job.runtime for job in cluster.train_jobs.values()}):
        yield run_check("Kubeflow Trainer", partial(check_training_runtime, runtime))
    if hub := ask_hub(config):
        yield hub
        # Each of the following checks would only say the same again.
        if not hub.passed:
            return
    # On a volume that outlives the run, a run that is started again finds the record of the first one.
    yield from rehearse_once(config, work_folder) if work_folder else rehearse(config)
    if on_cluster:
        yield from memory_checks(config)


def memory_checks(config: Config) -> Iterator[Check]:
    """Yields the checks that compare nodes and accelerators of the profile with what its models need, by their configurations."""
    yield run_check("memory", partial(check_node_memory, config))
    for stage, node in config.cluster.placement.items():
        if config.cluster.nodes[node].accelerator_memory:
            yield run_check(f"GPU, {stage}", partial(check_accelerator_memory, config, stage))


def require_all(config: Config) -> None:
    """Runs and prints every check, as the task before all others.

    Raises:
        InputError: some checks failed; the message lists all of them.
    """
    guard_terminal()
    # All checks run before the error is raised, so that one attempt shows everything that is missing.
    failed = []
    for check in preflight_checks(config):
        print(f"{check.word} {check.name:<22} {continued(check.detail)}", flush=True)
        failed += [] if check.passed else [f"{check.name}: {check.detail}"]
    if failed:
        raise InputError("; ".join(failed))
