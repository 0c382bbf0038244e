"""Asks a cluster's API with the user's kubeconfig, for the checks of `star doctor`. Nothing is changed there."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from star.doctor.check import NotCheckedError
from star.errors import InputError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Answer = TypeVar("Answer")
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class KubernetesApi:
    """The API of one cluster.

    Attributes:
        context: name of the kubeconfig's context, or where else the address and the account come from.
        namespace: in which the pipeline's pods run.
    """

    client: "ApiClient"
    context: str
    namespace: str

    def ask(self, what: str, request: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer | None:
        """Returns the answer to a request; None where the thing does not exist.

        Args:
            what: what is asked for, such as "Secret star-s3".
            request: a method of a client of the package kubernetes, called with the arguments.

        Raises:
            NotCheckedError: this account may not ask.
            InputError: the cluster does not answer, or does not know the account.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return request(*arguments, **options, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            if error.status == 404:
                return None
            if error.status == 403:
                raise NotCheckedError(f"the account of {self.context} may not ask for {what}") from error
            if error.status == 401:
                raise InputError(f"the cluster does not know the account of {self.context}: log in again") from error
            raise InputError(f"the cluster answers {error.status} ({error.reason}) to a question for {what}") from error
        except HTTPError as error:
            reason = str(getattr(error, "reason", None) or error)
            raise InputError(
                f"the cluster of {self.context} cannot be reached ({reason}): check KUBECONFIG, VPN and network"
            ) from error


def connect_kubernetes(namespace: str | None, *, default: str) -> KubernetesApi:
    """The API of the current context.

    Args:
        namespace: in which the pods run.
        default: the namespace where neither the caller nor the context names one.

    Raises:
        NotCheckedError: there is no kubeconfig, or the package is not installed.
        InputError: the kubeconfig cannot be used.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise NotCheckedError("the package kubernetes is missing: pip install 'star-distill[kubernetes]'") from None
    settings = client.Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        return KubernetesApi(_in_cluster(settings), "this pod", namespace or default)
    try:
        _, current = config.list_kube_config_contexts()
    except config.ConfigException:
        raise NotCheckedError("there is no kubeconfig: set KUBECONFIG") from None
    try:
        config.load_kube_config(client_configuration=settings)
    except Exception as error:  # also what a login program of the kubeconfig raises
        raise InputError(f"the kubeconfig cannot be used ({error}): try kubectl with it") from error
    settings.retries = 1  # else a cluster that is not there takes minutes
    named = current.get("context", {}).get("namespace")
    return KubernetesApi(client.ApiClient(settings), f"context {current['name']}", namespace or named or default)


def _in_cluster(settings: Any) -> "ApiClient":
    from kubernetes import client, config

    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise NotCheckedError(f"the account of this pod cannot be used ({error})") from error
    return client.ApiClient(settings)
