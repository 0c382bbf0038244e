"""Uploads the inputs of a configuration that only this machine has, each under the sha256 of its content, for pods to fetch.

    s3://bucket/inputs/5feceb66...      a file: tools, rows, a file of a base
    s3://bucket/inputs/0b6dd34c...      the list of a folder's files, written after all of them (star/folders/s3_inputs.py)

What is there is not sent again: content has one name, whoever uploads it and from wherever. A killed upload goes on where it
was, within a file too. Nothing is ever removed there by STAR: a lifecycle rule of the bucket may, since the next submit
uploads what is missing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from star.config.base import Section
from star.config.experiment import Config
from star.config.files import FileRef, Input, files_of, inputs_in
from star.digest_cache import digests_of
from star.errors import InputError
from star.folders.s3_client import S3Folder, open_s3, require_bucket
from star.folders.s3_inputs import digest_of_list, list_of_files
from star.folders.s3_transfer import upload_object, uploaded_digest
from star.progress import Bar

if TYPE_CHECKING:
    from botocore.client import BaseClient

MB = 10**6
Settings = TypeVar("Settings", bound=Section)


def upload_inputs(config: Config) -> Config:
    """Uploads what is on this machine only, and returns the configuration that names it in S3.

    Raises:
        InputError: nothing says where to, a file has changed since the configuration was loaded, or S3 does not answer.
    """
    local = [(name, source) for name, source in inputs_in(config) if source.is_local]
    if not local:
        return config
    place = place_of_inputs(config, needed_by=local[0][0])
    with open_s3(place) as client:
        require_bucket(place.bucket, client)
        for name, source in local:
            _upload(client, place, source, name=name)
            # As what it was, so that a pod finds the file under its name.
            known = {"name": source.file_name} if isinstance(source, FileRef) else {}
            config = _with_input(config, name, source.model_copy(update={"path": f"{place}/{source.sha256}", **known}))
    return config


def place_of_inputs(config: Config, *, needed_by: str) -> S3Folder:
    """Where inputs are uploaded: `cluster.inputs`, else the folder `inputs` beside the checkpoints or the registry's ledger.

    Raises:
        InputError: none of the three is in S3.
    """
    cluster = config.cluster
    if cluster.inputs:
        return S3Folder.parse(cluster.inputs)
    for beside in (cluster.checkpoints, cluster.environment.get("STAR_REGISTRY")):
        if beside and beside.startswith("s3://"):
            found = S3Folder.parse(beside)
            return S3Folder(found.bucket, "/".join([*found.prefix.split("/")[:-1], "inputs"]))
    raise InputError(
        f"`{needed_by}` is on this machine, and nothing says where to upload it for the pods: set `cluster.inputs: s3://BUCKET/inputs`, "
        "with the store's address and keys in AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def _upload(client: "BaseClient", place: S3Folder, source: Input, *, name: str) -> None:
    root = Path(source.path)
    if isinstance(source, FileRef):
        files, listed = {root: source.sha256}, None
    else:
        paths = files_of(source)
        found = digests_of([root / path for path in paths])
        files, listed = found, list_of_files([(path, found[root / path]) for path in paths])
        if digest_of_list(listed) != source.sha256:
            raise InputError(f"{root} has changed since the configuration was read: start again")
    total = sum(file.stat().st_size for file in files)
    with Bar(f"upload {name}, MB", -(-total // MB)) as bar:
        advance = _in_megabytes(bar)
        for file, digest in files.items():
            size = file.stat().st_size
            if uploaded_digest(client, place.bucket, place.key(digest), size=size) == digest:
                advance(size)
            else:
                upload_object(client, place.bucket, place.key(digest), file, sha256=digest, advance=advance)
    # Last: a list says that all its files are there.
    if listed and uploaded_digest(client, place.bucket, place.key(source.sha256), size=len(listed)) != source.sha256:
        metadata = {"sha256": source.sha256}
        client.put_object(Bucket=place.bucket, Key=place.key(source.sha256), Body=listed, Metadata=metadata)


def _in_megabytes(bar: Bar) -> Callable[[int], None]:
    """Advances a bar of megabytes by bytes."""
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        before, done = -(-done // MB), done + size
        bar.advance(-(-done // MB) - before)

    return advance


def _with_input(settings: Settings, name: str, source: Input) -> Settings:
    """The settings with another input under a name such as `data.tools` or `data.sources.0.path`."""
    key, _, rest = name.partition(".")
    changed: Any = source
    if rest:
        inner = getattr(settings, key)
        if isinstance(inner, tuple):
            place, _, rest = rest.partition(".")
            changed = (*inner[: int(place)], _with_input(inner[int(place)], rest, source), *inner[int(place) + 1 :])
        else:
            changed = _with_input(inner, rest, source)
    return settings.model_copy(update={key: changed})
