"""Merges the shards 1/n to n/n of a rollout or an extraction: merges sorted rows, links the files of the store."""

import json
import shutil
from pathlib import Path

from star.folders.manifest import METRICS
from star.teacher.external_sort import merge_sorted
from star.teacher.rollout import PROMPTS, PROMPTS_PER_GROUP, PROMPTS_SCHEMA
from star.topk.sequences import MAPPED_SEQUENCES, SCHEMA, SEQUENCES, TOKENIZER, sequences_file
from star.topk.store import merge_stores


def merge_shards(folders: list[Path], *, stage: str, out: Path, scratch: Path) -> dict[str, float]:
    """Writes the merged result to `out`, with the rows in the order that a result without shards has.

    Args:
        folders: the shards' folders, in the order of their numbers.
        stage: `rollout` or `extract-topk`.
        scratch: folder for files of the merge itself.

    Returns:
        the sums of the shards' metrics. Prompts are not summed, because each shard of a rollout counts those of all.
    """
    sequences = [sequences_file(folder) for folder in folders]
    if stage == "rollout":
        merge_sorted(sequences, out / SEQUENCES, SCHEMA, scratch=scratch)
        prompts = [folder / PROMPTS for folder in folders]
        merge_sorted(prompts, out / PROMPTS, PROMPTS_SCHEMA, scratch=scratch, rows_per_group=PROMPTS_PER_GROUP)
    else:
        merge_sorted(sequences, out / MAPPED_SEQUENCES, SCHEMA, scratch=scratch)
        shutil.copytree(folders[0] / TOKENIZER, out / TOKENIZER, dirs_exist_ok=True)
        merge_stores(folders, out)
    return _sum_metrics([folder / METRICS for folder in folders])


def _sum_metrics(files: list[Path]) -> dict[str, float]:
    metrics = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shared = {"prompts", "too_long"}  # the same in all shards
    return {name: metrics[0][name] if name in shared else sum(m[name] for m in metrics) for name in metrics[0]}
