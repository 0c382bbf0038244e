"""Puts the files of a model into the folder that is published, its weights in bf16 where that is asked for.

A pretrained model has its weights in bf16. Its training needs fp32, because small steps vanish in bf16, and the folders of the stages
keep fp32. Published in bf16, the model takes half the space, and that is the precision in which its users load it.
"""

import json
import shutil
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from star.digest_cache import links_change
from star.evaluation.evaluate import OUTCOMES
from star.folders.link import link_or_copy
from star.folders.manifest import MANIFEST, METRICS, read_manifest
from star.registry.lineage import LINEAGE_FILE
from star.registry.publish import CARD

PublishedPrecision = Literal["bf16", "fp32"]
CONFIG, WEIGHTS, INDEX = "config.json", ".safetensors", ".safetensors.index.json"
# Files of the stage that are not part of the model, and those that a publication writes itself: it must not write into a link.
LEFT_OUT = ("*_curve.json", "completions.html", MANIFEST, METRICS, CARD, LINEAGE_FILE, OUTCOMES)
DTYPE_KEYS = ("dtype", "torch_dtype")  # of config.json, and its name in older versions of transformers


def place_model_files(refined: Path, folder: Path, *, precision: PublishedPrecision) -> bool:
    """Puts the model's files of a stage's folder into another one: as links, or in bf16 as new files where the weights are in fp32.

    The files that describe the weights (config.json, the index of shards) are changed with them. The same input gives the same bytes.
    One file of weights is in memory at a time.

    Returns:
        Whether weights were converted.
    """
    # Only what the stage wrote: a file that somebody adds would be published, and would change what the model does.
    listed = [entry.path for entry in read_manifest(refined).files]
    names = [path for path in listed if not any(fnmatch(path, pattern) for pattern in LEFT_OUT)]
    with links_change({refined / name: folder / name for name in names}):
        return _place(refined, folder, names, precision=precision)


def _place(source: Path, target: Path, names: Collection[str], *, precision: PublishedPrecision) -> bool:
    weights = sorted(name for name in names if name.endswith(WEIGHTS))
    converts = precision == "bf16" and any(_has_fp32(source / name) for name in weights)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    total = sum(_write_in_bf16(source / name, target / name) for name in weights) if converts else 0
    for name in sorted(names):
        if converts and (name == CONFIG or name.endswith(INDEX)):
            content = json.loads((source / name).read_text(encoding="utf-8"))
            changed = _with_bf16(content) if name == CONFIG else _with_size(content, total)
            (target / name).write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
        elif not (converts and name in weights):
            # Weights can be gigabytes, so they are linked where the file system allows it. Nothing here writes to them.
            link_or_copy(source / name, target / name)
    return converts


def _has_fp32(file: Path) -> bool:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return any(weights.get_slice(name).get_dtype() == "F32" for name in weights.keys())  # noqa: SIM118 - no mapping


def _write_in_bf16(source: Path, target: Path) -> int:
    """Writes a file of weights with each fp32 value as the nearest one of bf16, and returns the bytes of all tensors."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as weights:
        # Read from the mapped file and converted one by one: the fp32 weights are never in memory as a whole.
        tensors = {}
        for name in weights.keys():  # noqa: SIM118 - no mapping
            tensor = weights.get_tensor(name)
            tensors[name] = tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        save_file(tensors, target, metadata=weights.metadata())
    shutil.copymode(source, target)  # save_file lets nobody else read it
    return sum(tensor.nbytes for tensor in tensors.values())


def _with_bf16(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with bf16 wherever it says fp32, also in its parts, such as that of the text model."""
    changed = {key: _with_bf16(value) if isinstance(value, dict) else value for key, value in config.items()}
    return changed | {key: "bfloat16" for key in DTYPE_KEYS if changed.get(key) == "float32"}


def _with_size(index: dict[str, Any], total: int) -> dict[str, Any]:
    return {**index, "metadata": {**index.get("metadata", {}), "total_size": total}}
