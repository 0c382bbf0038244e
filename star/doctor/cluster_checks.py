"""Checks a cluster against a profile for `star doctor`: the KFP server, and with a kubeconfig what the pods need there.

This machine is not judged: the pods have memory, disk, keys and a tracking server of their own, which the pre-flight checks in a pod.
"""

from collections.abc import Iterator
from functools import partial

from star.config.experiment import Config
from star.doctor.check import Check, NotCheckedError, run_check
from star.doctor.hub import ask_hub
from star.doctor.input_checks import check_prompts
from star.doctor.kfp_server import NO_HOST, KfpServer, ask_server, check_experiments
from star.doctor.kubernetes_checks import kubernetes_checks
from star.doctor.preflight import memory_checks

# Settings that only a run on a cluster has a use for. `nodes` alone says what a machine needs.
FOR_A_CLUSTER = (
    "environment", "secrets", "work_claim", "checkpoints", "service_account", "train_jobs", "queue",
)  # fmt: skip


def is_for_cluster(config: Config) -> bool:
    """Whether a profile is meant for a cluster."""
    return any(getattr(config.cluster, name) for name in FOR_A_CLUSTER)


def cluster_checks(config: Config, *, host: str | None, token: str | None, namespace: str | None) -> Iterator[Check]:
    """Yields the checks of a cluster, one after another.

    Args:
        host: address of the KFP server.
        token: bearer token of that server, if it wants one.
        namespace: in which the pods run.
    """
    servers: list[KfpServer] = []

    def ask() -> str:
        if not host:
            raise NotCheckedError(NO_HOST)
        servers.append(ask_server(host, token))
        return f"{host}, {servers[0].describe()}"

    yield run_check("KFP", ask)
    if servers and host:
        yield run_check("experiments", partial(check_experiments, host, token, server=servers[0], namespace=namespace))
    multi_user = servers[0].multi_user if servers else namespace not in (None, "kubeflow")
    yield from kubernetes_checks(config.cluster, namespace=namespace, multi_user=multi_user)

    def count_prompts() -> str:
        if config.data.seed_data or config.data.sources:  # which may be out of reach here
            raise NotCheckedError("the pipeline's first task counts the rows that are read")
        return check_prompts(config)

    yield run_check("prompts", count_prompts)
    hub = ask_hub(config)
    if hub and not hub.passed:
        yield Check("memory", True, f"not checked: {hub.detail}", checked=False)
        return
    yield from memory_checks(config)
