"""Defines `star doctor`: checks this machine, or the cluster of a profile, before anything long starts."""

import os

import typer

from star.cli.options import ConfigOption, SeedDataOption
from star.cli.pipeline import HostOption, NamespaceOption


def doctor(
    config: ConfigOption = "tiny",
    seed_data: SeedDataOption = None,
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Check this machine against a configuration: packages, memory, disk, tracking. Every failed check says what to do.

    At the end it says what disk and time each stage takes here. A GPU is not needed: without one, the CPU is measured.

    With --host, or with a profile for a cluster (one that names its environment, secrets, claim, account and the like), check that
    cluster instead: the server of Kubeflow Pipelines, and with a kubeconfig Secrets, claim, rights, nodes and room. What could not be
    checked is marked with a question mark.

    Example: `star doctor --config qwen3-0.6b`, `star doctor --config deploy/profiles/h100.yaml --host http://localhost:8080`
    """
    from star.config.load import load_config
    from star.doctor.cluster_checks import cluster_checks, is_for_cluster
    from star.doctor.machine import checks_on_this_machine, print_checks

    settings = load_config(config, seed_data=seed_data)
    on_cluster = bool(host) or is_for_cluster(settings)
    if on_cluster:
        checks = cluster_checks(settings, host=host, token=os.environ.get("KFP_TOKEN"), namespace=namespace)
    else:
        checks = checks_on_this_machine(settings)
    if not print_checks(checks, settings, here=not on_cluster):
        raise typer.Exit(2)
