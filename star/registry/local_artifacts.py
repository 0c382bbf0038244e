"""Finds the artifacts that MLflow keeps in the home's `mlartifacts/`, so that weights can be linked there instead of copied.

A run on one machine has the same weights in the folder of its stage, in MLflow's artifacts and among the verified downloads. Large
files are one file on the disk with several names (star/folders/link.py). What is verified is still read, under each of its names.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from star.home import home

FOLDER = "mlartifacts"  # of the home; star/tracking/server.py gives it to MLflow


def folder_in_home(location: str) -> Path | None:
    """The folder of an artifact location in this home's store; None for any other one.

    Whoever reaches MLflow can register a version with any location. No other files than those of the home are linked, because a
    linked file becomes read-only.
    """
    address = urlsplit(location)
    if address.scheme not in ("", "file") or address.netloc not in ("", "localhost"):
        return None
    folder = Path(unquote(address.path) if address.scheme else location).resolve()
    return folder if folder.is_relative_to(home() / FOLDER) else None
