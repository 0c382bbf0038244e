"""Says which files of a model folder decide what the model does, and refuses a folder whose weights are not safetensors in it.

A base may also be one GGUF file, which holds weights, configuration, tokenizer and chat template (star/modeling/gguf.py).

A loader of Hugging Face's format reads more than config and weights: chat templates, a sentencepiece model, adapters,
and shards that an index names. All of them count for the digest of a folder.
"""

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Any

from star.digest_cache import Trust
from star.errors import InputError
from star.folders.s3_inputs import digest_of_files

CONFIG, ADAPTER_CONFIG, ADAPTER = "config.json", "adapter_config.json", "adapter_model.safetensors"
# Keys by which transformers reads other files instead of these, which may lie anywhere and would not be tried.
OTHER_FILES = {CONFIG: "configuration_files", "tokenizer_config.json": "fast_tokenizer_files"}
INDEXES = "*.safetensors.index.json"
TEMPLATES = "additional_chat_templates"
GGUF = ".gguf"
JSON_BYTES = 64 * 2**20  # the index of a model of 10,000 shards has 20 MB


def is_gguf(path: str) -> bool:
    """Whether a path is that of a GGUF file, by its ending."""
    return path.lower().endswith(GGUF)


def deciding_files(folder: Path) -> list[str]:
    """The files that decide what the model in a folder does, by relative path.

    Not among them are pictures, texts for people, code (which is never run), and vocabularies that loaders read only
    where there is no tokenizer.json (merges.txt, vocab.txt).
    """
    names = {file.name for file in folder.iterdir() if file.is_file()}
    names |= {f"{TEMPLATES}/{file.name}" for file in (folder / TEMPLATES).glob("*.jinja")}
    shards = named_shards(folder)
    return _deciding(names | {shard for shard in shards if (folder / shard).is_file()}, shards)


def choose_deciding(names: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """`deciding_files` of a folder that is not on this machine, of which all names are known.

    Args:
        names: all files, by relative path.
        read: the content of one.
    """
    shards: set[str] = set()
    for index in sorted(name for name in names if "/" not in name and name.endswith(INDEXES[1:])):
        shards |= _shards_in(_json_object(read(index), by=index), by=index)
    return _deciding(names, shards)


def _deciding(names: Collection[str], shards: Collection[str]) -> list[str]:
    here = sorted(name for name in names if "/" not in name)
    top = [name for name in here if PurePosixPath(name).suffix in (".json", ".safetensors")]
    # After the others, so that a folder without these files has the digest that it always had.
    more = [name for name in here if PurePosixPath(name).suffix in (".jinja", ".model", ".tiktoken")]
    more += [name for name in names if PurePosixPath(name).match(f"{TEMPLATES}/*.jinja") and name.count("/") == 1]
    more += [shard for shard in shards if "/" in shard and shard in names]
    return top + sorted(set(more))


def digest_of_model_folder(folder: Path, *, trust: Trust = "all") -> str:
    """One sha256 over all `deciding_files`.

    Args:
        trust: which remembered digests count (star/digest_cache.py): `own` for a model that is loaded.

    Raises:
        InputError: an index of the weights names something else than safetensors inside the folder.
    """
    return digest_of_files(folder, deciding_files(folder), trust=trust)


def named_shards(folder: Path) -> list[str]:
    """The weight files that the folder's indexes name.

    Raises:
        InputError: an index is damaged, or names a file that is not safetensors or not in the folder.
    """
    shards: set[str] = set()
    for index in sorted(folder.glob(INDEXES)):
        shards |= _shards_in(read_json_object(index), by=index)
    return sorted(shards)


def _shards_in(index: dict[str, Any], *, by: Path | str) -> set[str]:
    named = index.get("weight_map")
    if not isinstance(named, dict):
        raise InputError(f"{by} is damaged: download the model again")
    return {_safe_weights(name, by=by, suffixes=(".safetensors",)) for name in named.values()}


def refuse_unsafe_weights(folder: Path) -> None:
    """Checks, before anything is loaded, that a model folder leads a loader to safetensors inside it and to nothing else.

    transformers reads pickled weights where an index, a configuration or an adapter names them, whatever it is told.

    Raises:
        InputError: it does not; the message names the file.
    """
    named_shards(folder)
    for file in (folder / name for name in OTHER_FILES if (folder / name).is_file()):
        content = read_json_object(file)
        if content.get(key := OTHER_FILES[file.name]):
            raise InputError(f"{file} names other files to be read in its place: delete `{key}` from it")
        if file.name == CONFIG:
            _refuse_code(content, by=file)
            if name := content.get("transformers_weights"):
                _safe_weights(name, by=file, suffixes=(".safetensors", INDEXES[1:]), in_folders=False)
    if os.path.lexists(folder / ADAPTER_CONFIG) and not (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder / ADAPTER_CONFIG} adds an adapter that is not in {ADAPTER}, and STAR loads nothing else: "
            "merge the adapter into the weights, or delete the file"
        )


def _refuse_code(config: dict[str, Any], *, by: Path) -> None:
    """Raises InputError if a configuration names an implementation of the hub, such as `team/kernel`: its code would be run."""
    for part in (config, *(inner for inner in config.values() if isinstance(inner, dict))):
        for key in (key for key in part if "_implementation" in key):
            named = list(part[key].values()) if isinstance(part[key], dict) else [part[key]]
            if code := [name for name in named if isinstance(name, str) and "/" in name]:
                raise InputError(
                    f"{by} names code of the hub, {code[0][:200]!r}, which STAR does not run: delete `{key}` from it"
                )


def _safe_weights(name: object, *, by: Path | str, suffixes: tuple[str, ...], in_folders: bool = True) -> str:
    """Returns the name of a weight file that has one of the suffixes and lies in the folder, else raises InputError.

    Args:
        in_folders: whether it may lie in a folder of the folder. An index there would not be checked.
    """
    if isinstance(name, str) and name.endswith(suffixes):
        path = PurePosixPath(name)
        if not path.is_absolute() and ".." not in path.parts and (in_folders or len(path.parts) == 1):
            return name
    raise InputError(
        f"{by} names the weight file {str(name)[:200]!r}, which is not a safetensors file in the folder: STAR loads "
        "nothing else, take the model's safetensors version"
    )


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a small file of a model folder.

    Raises:
        InputError: it holds something else, nests too deeply, or is larger than 64 MiB.
    """
    with file.open("rb") as content:
        return _json_object(content.read(JSON_BYTES + 1), by=file)


def _json_object(text: bytes, *, by: Path | str) -> dict[str, Any]:
    if len(text) > JSON_BYTES:
        raise InputError(
            f"{by} has more than {JSON_BYTES // 2**20} MiB, which no model needs: download the model again"
        )
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{by} is damaged ({type(error).__name__}): download the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{by} is damaged (no object): download the model again")
    return content
