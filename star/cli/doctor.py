"""Defines `star doctor`: checks this machine, or the cluster of a profile, before anything long starts."""

import os

import typer

from star.cli.options import ConfigOption
from star.cli.pipeline import HostOption, NamespaceOption


def doctor(config: ConfigOption = "tiny", host: HostOption = None, namespace: NamespaceOption = None) -> None:
    """Check this machine against a configuration: packages, memory, disk, tracking. Every failed check says what to do.

    With --host, or with a profile for a cluster (one that names its environment, secrets, claim, account and the like), check that
    cluster instead: the server of Kubeflow Pipelines, and with a kubeconfig Secrets, claim, rights, nodes and room. What could not be
    checked is marked with a question mark.

    Example: `star doctor --config qwen3-0.6b`, `star doctor --config deploy/profiles/h100.yaml --host http://localhost:8080`
    """
    from star.config.load import load_config
    from star.doctor.cluster_checks import cluster_checks, is_for_cluster
    from star.doctor.machine import checks_on_this_machine, print_checks

    settings = load_config(config)
    if host or is_for_cluster(settings):
        checks = cluster_checks(settings, host=host, token=os.environ.get("KFP_TOKEN"), namespace=namespace)
    else:
        checks = checks_on_this_machine(settings)
    if not print_checks(checks, settings):
        raise typer.Exit(2)
