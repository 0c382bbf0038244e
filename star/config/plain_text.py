"""Refuses a configuration that holds a secret: it is compiled in plain text, logged to MLflow, and part of what tasks print.

refusal({"rollout": {"server": "http://me:hunter22@host/v1"}})
"`rollout.server` holds a password in an address, and a configuration is kept in plain text: give the address without it, ..."
"""

from collections.abc import Iterator, Mapping
from typing import Any

from star.redaction import find_secret, looks_random

_PLACE = "a Kubernetes Secret that `cluster.secrets` names"  # where a cluster's tasks get it
_CURES = {
    "cluster.environment.MLFLOW_TRACKING_URI": "give the address without it, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
    f"from {_PLACE}",
    "cluster.environment": f"put the value into {_PLACE}",
    "cluster.secrets": "give the key under which the Secret has the value, not the value",
    "rollout.server": f"give the address without it, and the server's key in the variable STAR_TEACHER_KEY, on a cluster from {_PLACE}",
    "teacher": f"give the name without it, and the hub's token in the variable HF_TOKEN, on a cluster from {_PLACE}",
}
_CURES |= {"topk.server": _CURES["rollout.server"], "student": _CURES["teacher"]}
_ANY_CURE = f"take it out, and give it to the tasks that need it as an environment variable from {_PLACE}"


def refusal(content: Mapping[str, Any]) -> str | None:
    """Why a configuration, as its file has it, is refused for a secret in it, with the cure; None if it is not."""
    for path, text in _texts(content, ""):
        found = find_secret(text)
        # Elsewhere a setting may have a name of any kind, and no use for a key.
        if found is None and path.startswith(("cluster.environment.", "cluster.secrets.")) and looks_random(text):
            found = "what looks like a key"
        if found:
            place = next((place for place in _CURES if f"{path}.".startswith(f"{place}.")), None)
            cure = _CURES[place] if place else _ANY_CURE
            return f"`{path}` holds {found}, and a configuration is kept in plain text: {cure}"
    return None


def _texts(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every text in nested settings, with its place such as `rollout.server`."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, path)
