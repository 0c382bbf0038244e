"""Makes one result of the parts that `--shard 1/n` to `n/n` wrote: rows are put together, shards of the store are linked as they are."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from star.errors import InputError
from star.storage import METRICS, Manifest, Part
from star.teacher.rollout import PROMPTS, SEQUENCES
from star.teacher.store import merge_stores
from star.teacher.topk import TOKENIZER


def require_all_parts(manifests: dict[Path, Manifest]) -> None:
    """Raises InputError unless the folders are all parts, each once, of one run of one stage."""
    folders, found = list(manifests), list(manifests.values())
    for folder, manifest in manifests.items():
        if manifest.part is None:
            raise InputError(f"{folder} is a whole result, not a part: merge only what --shard i/n wrote")
        for what in ("stage", "config_digest", "code_digest"):
            if getattr(manifest, what) != getattr(found[0], what):
                raise InputError(f"{folder} and {folders[0]} differ in their {what}: merge only parts of one run")
    parts = [Part.parse(manifest.part) for manifest in found]
    wanted = {Part(number, parts[0].count) for number in range(1, parts[0].count + 1)}
    if len(parts) != len(set(parts)):
        raise InputError(f"the same part is there twice among {', '.join(map(str, folders))}: give each once")
    if set(parts) != wanted:
        missing = ", ".join(sorted(str(part) for part in wanted - set(parts))) or "parts of one count"
        raise InputError(f"missing among the parts: {missing}; run the stage with that --shard first")


def merge_parts(manifests: dict[Path, Manifest], *, out: Path) -> dict[str, float]:
    """Writes the whole result to `out`, in the order of the parts.

    Returns:
        the sums of the parts' figures; a rollout's prompts are those of all its parts, so they are not summed.
    """
    folders = sorted(manifests, key=lambda folder: Part.parse(manifests[folder].part))
    for name in (SEQUENCES, PROMPTS):
        if all((folder / name).is_file() for folder in folders):
            table = pa.concat_tables([pq.read_table(folder / name) for folder in folders])
            pq.write_table(table.sort_by(table.column_names[0]), out / name)
    if manifests[folders[0]].stage == "extract-topk":
        shutil.copytree(folders[0] / TOKENIZER, out / TOKENIZER, dirs_exist_ok=True)
        merge_stores(folders, out)
    return _sum_metrics([folder / METRICS for folder in folders])


def _sum_metrics(files: list[Path]) -> dict[str, float]:
    metrics = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shared = {"prompts", "too_long"}
    return {name: metrics[0][name] if name in shared else sum(m[name] for m in metrics) for name in metrics[0]}
