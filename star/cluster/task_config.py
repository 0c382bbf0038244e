"""Hands a task its configuration in the environment variable STAR_CONFIG, and a digest of it as an argument.

Arguments of a KFP task are in its command line, which every user of the machine and every process of a node can read.
Its environment is for its own user. KFP's cache on a cluster does not look at the environment, so the digest is the
argument `config_digest` of the task: its result is computed again if and only if its sections of the configuration
change.
"""

import contextlib
import hashlib
import json
import os

from star.config.base import canonical
from star.config.experiment import Config
from star.config.files import identity
from star.errors import InputError

VARIABLE = "STAR_CONFIG"


def config_for_environment(text: str) -> str:
    """The configuration, which is JSON, as the value of the variable: nothing in it has a meaning for Kubernetes.

    Kubernetes replaces `$(NAME)` and `$$` in the value of a variable, and Argo `{{name}}`. In JSON these can be in
    strings only, where an escape means the same.
    """
    return text.replace("$", r"\u0024").replace("{{", r"\u007b\u007b")


def digest_for_task(text: str) -> str:
    """The digest of a configuration, for the cache key and to recognise it again.

    Of an input it covers the content and not the place, so that rows that have moved are not trained on again.
    """
    # Something else than a configuration has a digest that is no configuration's.
    with contextlib.suppress(ValueError, RecursionError):
        text = config_for_environment(canonical(identity(json.loads(text))))
    return hashlib.sha256(text.encode()).hexdigest()


def config_of_task(digest: str) -> Config:
    """Reads the configuration of this task from its environment.

    Args:
        digest: What `digest_for_task` gave for the variable's value when the pipeline was compiled.

    Raises:
        InputError: the variable is missing, or is not what was compiled.
    """
    text = os.environ.get(VARIABLE, "")
    if digest_for_task(text) != digest:
        state = "is not the configuration that the pipeline was compiled with" if text else "is not set"
        raise InputError(
            f"{VARIABLE} {state}: compile the pipeline again with this version, and do not set the variable"
        )
    return Config.from_json(text)
