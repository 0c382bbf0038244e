"""Fetches one file of a data set on the Hugging Face hub, named by its revision: hf://datasets/TEAM/NAME@REVISION/FILE."""

import re
from pathlib import Path

from star.errors import InputError

PREFIX = "hf://"
HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)/(?P<file>[^/].*)")


def is_on_hub(path: str) -> bool:
    """Whether the path is an address on the hub."""
    return path.startswith(PREFIX)


def fetch_from_hub(address: str) -> Path:
    """The local copy of a file of a data set, in the cache of the hub's client, where it is downloaded to once.

    Raises:
        InputError: the address has no revision or another form, or the hub has no such file or does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if (named := HUB_FILE.fullmatch(address)) is None:
        raise InputError(
            f"{address} is not like hf://datasets/TEAM/NAME@REVISION/FILE: name a file of a data set, with a commit or tag, so that "
            "every run reads the same"
        )
    try:
        file = hf_hub_download(named["repo"], named["file"], repo_type="dataset", revision=named["revision"])
        return Path(file)
    # The client's errors for no network, no cached copy and no such file are of these kinds.
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise InputError(
            f"{address} cannot be fetched ({reason}): check the name and revision, HF_ENDPOINT, HF_TOKEN and the network"
        ) from error
