"""Merges the shards 1/n to n/n of a rollout or an extraction: concatenates rows, links the files of the store."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from star.folders.manifest import METRICS
from star.teacher.rollout import PROMPTS
from star.topk.sequences import SEQUENCES, TOKENIZER
from star.topk.store import merge_stores


def merge_shards(folders: list[Path], *, stage: str, out: Path) -> dict[str, float]:
    """Writes the merged result to `out`.

    Args:
        folders: the shards' folders, in the order of their numbers.
        stage: `rollout` or `extract-topk`.

    Returns:
        the sums of the shards' metrics. Prompts are not summed, because each shard of a rollout counts those of all.
    """
    for name in (SEQUENCES, PROMPTS):
        # Only a rollout writes prompts; an extraction has none.
        if all((folder / name).is_file() for folder in folders):
            table = pa.concat_tables([pq.read_table(folder / name) for folder in folders])
            # By id or row id, the first column: the order that a rollout without shards has.
            pq.write_table(table.sort_by(table.column_names[0]), out / name)
    if stage == "extract-topk":
        shutil.copytree(folders[0] / TOKENIZER, out / TOKENIZER, dirs_exist_ok=True)
        merge_stores(folders, out)
    return _sum_metrics([folder / METRICS for folder in folders])


def _sum_metrics(files: list[Path]) -> dict[str, float]:
    metrics = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shared = {"prompts", "too_long"}  # the same in all shards
    return {name: metrics[0][name] if name in shared else sum(m[name] for m in metrics) for name in metrics[0]}
