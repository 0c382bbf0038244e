"""Asks the Kubeflow Pipelines server whether it can be used, without starting anything there."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from star.errors import InputError
from star.http_client import check_address, send
from star.http_exchange import BadStatusError, NoAnswerError

ANSWER_SECONDS = 10.0
KNOWN_VERSION = (2, 17)  # the one that the pipeline was run on
NO_HOST = "give --host or KFP_HOST, such as http://localhost:8080 (docs/kubernetes.md#4-run-it)"
NEW_TOKEN = "get a new token and give it in KFP_TOKEN"  # noqa: S105 - a hint, no token


@dataclass(frozen=True)
class KfpServer:
    """What a server says of itself.

    Attributes:
        version: such as 2.17.0; empty where it does not say.
        multi_user: whether each user has a namespace.
    """

    version: str
    multi_user: bool

    def describe(self) -> str:
        """Its version, and whether it is one that STAR is known to work with."""
        users = "for several users" if self.multi_user else "for one namespace"
        if not (found := re.match(r"(\d+)\.(\d+)", self.version)):
            return f"it does not say its version ({'.'.join(map(str, KNOWN_VERSION))} is known to work), {users}"
        older = (int(found[1]), int(found[2])) < KNOWN_VERSION
        known = f", older than {'.'.join(map(str, KNOWN_VERSION))}, which is known to work" if older else ""
        return f"version {self.version}{known}, {users}"


def ask_server(host: str, token: str | None) -> KfpServer:
    """Asks a server for its version.

    Raises:
        InputError: it cannot be reached, or is no KFP server.
    """
    check_address(host, token=token is not None, name="--host")
    health = _get(host, "/apis/v2beta1/healthz", token)
    try:
        # Only this older address has the version.
        version = _get(host, "/apis/v1beta1/healthz", token).get("tag_name")
    except InputError:
        version = None
    return KfpServer(version if isinstance(version, str) else "", health.get("multi_user") is True)


def check_experiments(host: str, token: str | None, *, server: KfpServer, namespace: str | None) -> str:
    """Lists experiments, which needs the rights that a run needs, too. It creates none.

    Raises:
        InputError: the account may not, or the server wants a namespace.
    """
    if server.multi_user and not namespace:
        raise InputError("this server has a namespace per user: give yours with --namespace or KFP_NAMESPACE")
    query = f"?page_size=1&namespace={quote(namespace or '')}" if server.multi_user else "?page_size=1"
    _get(host, f"/apis/v2beta1/experiments{query}", token)
    return f"of namespace {namespace} can be used" if server.multi_user else "can be used"


def _get(host: str, path: str, token: str | None) -> dict[str, Any]:
    try:
        answer = send("GET", f"{host.rstrip('/')}{path}", name="--host", token=token, seconds=ANSWER_SECONDS).checked()
        content = answer.document()
    except BadStatusError as error:
        if error.status in (401, 403):
            raise InputError(
                f"{host} answers {error.status}: this account may not do this here; {NEW_TOKEN}"
            ) from error
        raise InputError(f"{host} answers {error.status}: it is no KFP server, check --host") from error
    except NoAnswerError as error:
        raise InputError(f"{host} does not answer as KFP ({error}): is the port forwarded? Check --host") from error
    if not isinstance(content, dict):
        raise InputError(f"{host} answers with something else than KFP does: check --host; {NEW_TOKEN}")
    return content
