"""Brings back what a model's data set was made of: the rows and tools that were given, byte for byte, by the model's lineage.

    star data restore champion --to back

    back/tickets/...        data.seed_data: data/tickets of the team's repository at v3, commit cb1c815b7b3f
    back/tools.json         data.tools: s3://models/inputs/5feceb66..., which `star pipeline submit` uploaded

What is brought back has the sha256 that the lineage names. A registered model is verified against the registry before its
lineage is read.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from star.config.data import Data
from star.config.dvc_source import DvcSource, resolve_dvc
from star.config.files import FileRef, choose_rows, read_input
from star.errors import InputError
from star.folders.owners import create_folder
from star.registry.find_model import find_model
from star.registry.lineage import LINEAGE_FILE, Given, copy_in_home, described

SOURCE = re.compile(r"sources\.[0-9]+\.path")


@dataclass(frozen=True)
class Restored:
    """One input that was brought back.

    Attributes:
        setting: the setting that named it, like `data.seed_data`.
        source: where it came from, for people.
        place: where it is now.
    """

    setting: str
    source: str
    place: Path
    sha256: str


def restore_data(model: str, *, name: str, to: Path) -> list[Restored]:
    """Copies what the data set of a model was made of into a new or empty folder.

    Args:
        model: a registered version or a model folder, as `find_model` reads it.
        name: registered model that `model` is a version or alias of.

    Raises:
        InputError: the model names no such inputs, or one of them is gone or changed; the message says where it was. Then
            nothing is written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to} is there already: give --to a new folder, so that nothing is replaced")
    version, folder = find_model(model, name=name)
    given = _given_to(folder, title=str(version or model))
    copies = {setting: _local_copy(setting, source) for setting, source in given.items()}
    create_folder(to)
    return [_put(setting, source, copies[setting], to) for setting, source in given.items()]


def _given_to(folder: Path, *, title: str) -> dict[str, Given]:
    """The inputs of the stage that made the data set: setting -> input, from the model's lineage."""
    try:
        lineage = json.loads((folder / LINEAGE_FILE).read_text(encoding="utf-8"))
        origin = lineage["stages"][lineage["data"]]["origin"]
        given = {_setting(name): read_input(source) for name, source in origin.get("inputs", {}).items()}
    except FileNotFoundError:
        raise InputError(f"{title} has no {LINEAGE_FILE}: it is no model that `star register` published") from None
    # The file lies in the model's folder, so others may have written it.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise InputError(
            f"{folder / LINEAGE_FILE} is not what `star register` writes ({type(error).__name__}): get the model again"
        ) from error
    if not given:
        raise InputError(
            f"the lineage of {title} names no rows or tools of yours: it was made from the tools of the package alone, or by an older "
            "star, which did not write down where they came from"
        )
    return given


def _setting(name: str) -> str:
    """The name of a setting, which becomes that of a folder; of a model folder that was never registered anybody may have written it.

    Raises:
        ValueError: there is no such setting.
    """
    section, _, key = name.partition(".")
    if section != "data" or (key not in Data.model_fields and not SOURCE.fullmatch(key)):
        raise ValueError(f"no setting {name!r}")
    return name


def _local_copy(setting: str, source: Given) -> Path:
    """A copy on this machine whose sha256 was compared.

    Raises:
        InputError: its source is gone or has changed.
    """
    try:
        return source.read_verified()
    except InputError as error:
        if source.dvc:
            return _fetch_through_dvc(setting, source, source.dvc, because=error)
        cure = (
            "look for a copy with that sha256, also on the machine that trained"
            if source.is_local
            else "put it back there"
        )
        raise InputError(
            f"`{setting}` was {source.path}, sha256 {source.sha256}, and is not there now ({error}): {cure}"
        ) from error


def _fetch_through_dvc(setting: str, source: Given, dvc: DvcSource, *, because: InputError) -> Path:
    """Asks the repository at the commit: it may know another place, or have the content in its own cache."""
    try:
        found = resolve_dvc({"dvc": dvc.path, "repo": dvc.repo, "rev": dvc.commit}, choose=choose_rows)
    except InputError as error:
        raise InputError(
            f"`{setting}` was {dvc}, and cannot be brought back: {because}. Through DVC: {error}"
        ) from error
    if found["sha256"] != source.sha256:
        raise InputError(
            f"{dvc} has sha256 {found['sha256'][:12]}, and the lineage names {source.sha256[:12]}: do not trust this model's lineage"
        )
    return copy_in_home(source)


def _put(setting: str, source: Given, copy: Path, to: Path) -> Restored:
    """Copies into the folder under the name that it had, and compares the copy with the sha256 once more."""
    # `seed_data`, or `source-0` for the first of `data.sources`.
    key = setting.removeprefix("data.").removesuffix(".path").replace("sources.", "source-")
    own_name = source.file_name if isinstance(source, FileRef) else key
    name = PurePosixPath(source.dvc.path).name if source.dvc else own_name
    if name in ("", ".", "..") or (to / name).exists():
        name = f"{key}-{name.strip('.')}"
    place = to / name
    if copy.is_dir():
        # The digest does not cover it, and git runs programs that such a folder names.
        shutil.copytree(copy, place, ignore=lambda folder, _: [".git"] if Path(folder) == copy else [])
    else:
        shutil.copyfile(copy, place)
    source.model_copy(update={"path": str(place.resolve()), "dvc": None}).read_verified()
    return Restored(setting, described(source), place, source.sha256)
