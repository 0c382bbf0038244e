"""Runs a rollout's and an extraction's sequences through the stages' own writing, sorting, sharding and merging.

    python benchmarks/sequences.py FOLDER                    # 1.2M samples on 150,000 prompts, more than 2^31 stored ids
    python benchmarks/sequences.py FOLDER --fraction 0.05

The ids are made and not sampled. Every step is a process of its own, whose peak memory and CPU time are printed:

    rollout 1/n ... n/n    `write_batch` per batch, then `collect_batches`
    merge                  `merge_shards` of the rollout
    check                  all rows in their order, by a running hash against the rows that were made
    extraction 1/n ...     `copy_shard`, and a top-k store with one token per sequence: its size is not measured here
    merge, check           the same for the extraction
    read                   sequences at random places, as a training reads them

A tenth of the disk that real ids take is enough: an id is repeated REPEATS times, which Parquet stores once, and between
extraction and merge a shard's sequences.arrow is compressed. The merged sequences.arrow has its full size.
"""

import argparse
import hashlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from star.folders.manifest import METRICS
from star.folders.shard import Shard
from star.folders.workspace import Workspace
from star.json_file import write_json
from star.teacher.extract import copy_shard
from star.teacher.merge_shards import merge_shards
from star.teacher.rollout import collect_batches, write_batch
from star.topk.row_files import PROMPT, Rows, read_groups
from star.topk.sequences import COMPLETION, MAPPED_SEQUENCES, SCHEMA, TOKENIZER, read_sequences, sequences_file
from star.topk.store import TopKWriter

BATCH_PROMPTS = 32
REPEATS = 40
VOCAB_SIZE = 151_936
RANDOM_READS = 10_000


@dataclass(frozen=True)
class Sizes:
    prompts: int
    samples: int
    prompt_tokens: int
    completion_tokens: int

    def ids_of(self, salt: int, row: int, length: int) -> np.ndarray:
        """The ids of a prompt or a completion; of slightly different lengths, as real ones are."""
        length -= (row * 31 + salt) % 64
        runs = np.arange(-(-length // REPEATS), dtype=np.int64)
        return np.repeat((row * 7919 + salt * 104_729 + runs * 13) % VOCAB_SIZE, REPEATS)[:length].astype(np.int32)

    def prompt(self, row: int) -> np.ndarray:
        return self.ids_of(0, row, self.prompt_tokens)

    def completion(self, row: int, sample: int) -> np.ndarray:
        return self.ids_of(sample + 1, row, self.completion_tokens)

    def batches(self) -> list[list[int]]:
        """The rows of every batch, in another order than that of their ids."""
        order = np.random.default_rng(0).permutation(self.prompts)
        return [order[start : start + BATCH_PROMPTS].tolist() for start in range(0, self.prompts, BATCH_PROMPTS)]

    def table(self, rows: list[int]) -> pa.Table:
        """All samples of a batch. One in 16 rows has a further sample, which was truncated."""
        pairs = [(row, sample) for row in rows for sample in range(self.samples + (row % 16 == 0))]
        prompts = {row: self.prompt(row) for row in rows}
        columns = [
            pa.array([f"{row_id(row)}#{sample}" for row, sample in pairs]),
            pa.array([row_id(row) for row, _ in pairs]),
            list_array([prompts[row] for row, _ in pairs]),
            list_array([self.completion(row, sample) for row, sample in pairs]),
            pa.array([f"completion {sample} of row {row}" for row, sample in pairs]),
            pa.array(np.full(len(pairs), 0.5), pa.float32()),
            pa.array(["kept" if sample < self.samples else "truncated" for _, sample in pairs]),
        ]
        return pa.table(columns, schema=SCHEMA.append(pa.field("verdict", pa.string())))

    def expected_hash(self) -> str:
        """The hash of all kept rows by id. Fewer than 10 samples per row, so this is the order of the numbers."""
        rows = ((row, sample) for row in range(self.prompts) for sample in range(self.samples))
        return hash_of(
            (f"{row_id(row)}#{sample}", self.prompt(row) if sample == 0 else None, self.completion(row, sample))
            for row, sample in rows
        )


def row_id(row: int) -> str:
    return f"row-{row:08d}"


def list_array(arrays: list[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def hash_of(rows: Iterator[tuple[str, np.ndarray | None, np.ndarray]]) -> str:
    """A running hash over id, prompt (None after the first sample of a row) and completion."""
    running = hashlib.blake2b()
    for name, prompt, completion in rows:
        running.update(name.encode())
        if prompt is not None:
            running.update(prompt.tobytes())
        running.update(completion.tobytes())
    return running.hexdigest()


def stored_rows(file: Path) -> Iterator[tuple[str, np.ndarray | None, np.ndarray]]:
    last_row = None
    for group in read_groups(file):
        rows = Rows(group).take(np.arange(len(group)))
        columns = (rows[name].combine_chunks() for name in ("id", "row_id", PROMPT, COMPLETION))
        for name, row, prompt, completion in zip(*columns, strict=True):
            is_first, last_row = row.as_py() != last_row, row.as_py()
            yield name.as_py(), prompt.values.to_numpy() if is_first else None, completion.values.to_numpy()


def roll_out(sizes: Sizes, shard: Shard, out: Path) -> None:
    workspace = Workspace(out=out, state=out.with_name(out.name + "-state"))
    for folder in (workspace.out, workspace.state):
        folder.mkdir(parents=True)
    files = []
    for number, rows in shard.select(list(enumerate(sizes.batches()))):
        files.append(workspace.state / f"part-{number:05d}.parquet")
        write_batch(files[-1], sizes.table(rows))
    write_json(out / METRICS, collect_batches(files, workspace=workspace))
    shutil.rmtree(workspace.state)


def extract(rollouts: Path, shard: Shard, out: Path) -> None:
    (out / TOKENIZER).mkdir(parents=True)
    copy_shard(rollouts, out, shard=shard, batch_tokens=65536)
    ids_TK, logprobs_TK = np.array([[3, 4, 5, 6]]), np.array([[-0.1, -3.0, -4.0, -5.0]])
    ids, _ = read_sequences(out)
    with TopKWriter(out, 4, vocab_size=VOCAB_SIZE) as writer:
        for sequence_id in ids:
            writer.add(sequence_id, ids_TK, logprobs_TK)
    write_json(out / METRICS, {"sequences": len(ids), "tokens": len(ids)})


def compress(folder: Path) -> None:
    file = folder / MAPPED_SEQUENCES
    temporary = file.with_suffix(".tmp")
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(str(temporary), SCHEMA, options=options) as writer:
        for group in read_groups(file):
            writer.write_table(group)
    temporary.replace(file)


def merge(folders: list[Path], stage: str, out: Path) -> None:
    scratch = out.with_name(out.name + "-state")
    for folder in (out, scratch):
        folder.mkdir()
    merge_shards(folders, stage=stage, out=out, scratch=scratch)
    scratch.rmdir()


def check(sizes: Sizes, folder: Path) -> None:
    if hash_of(stored_rows(sequences_file(folder))) != sizes.expected_hash():
        raise SystemExit(f"{folder} has not the rows that were made, in their order")


def read_randomly(sizes: Sizes, folder: Path) -> None:
    _, sequences = read_sequences(folder)
    for index in np.random.default_rng(1).integers(0, len(sequences), RANDOM_READS):
        sequence, (row, sample) = sequences[int(index)], divmod(int(index), sizes.samples)
        if sequence.prompt_ids != sizes.prompt(row).tolist():
            raise SystemExit(f"sequence {index} has not the prompt that was made")
        if sequence.completion_ids != sizes.completion(row, sample).tolist():
            raise SystemExit(f"sequence {index} has not the completion that was made")
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(f"  without the mapped file, which the system can drop: {int(own.split()[1]) / 2**10:,.0f} MiB")


def count_ids(folder: Path) -> int:
    """The ids that the file has, each prompt as often as it is stored."""
    groups = read_groups(sequences_file(folder), columns=[PROMPT, COMPLETION])
    return sum(pc.sum(pc.list_value_length(column)).as_py() for group in groups for column in group.columns)


def run_step(label: str, step: Callable[[], None]) -> None:
    """Runs a step in a process of its own, and prints its peak memory and CPU time."""
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        step()
        sys.stdout.flush()
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{label} failed")
    cpu, wall = used.ru_utime + used.ru_stime, time.monotonic() - began
    print(f"{label:<18}{used.ru_maxrss / 2**10:>8,.0f} MiB  {cpu:>8,.1f} CPU s  {wall:>8,.1f} s", flush=True)


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder; 15 GB for the whole")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the prompts")
    parser.add_argument("--prompts", type=int, default=150_000)
    parser.add_argument("--samples", type=int, default=8, help="per prompt, at most 9")
    parser.add_argument("--prompt-tokens", type=int, default=2_000)
    parser.add_argument("--completion-tokens", type=int, default=1_600)
    parser.add_argument("--shards", type=int, default=4)
    arguments = parser.parse_args()
    count = round(arguments.prompts * arguments.fraction)
    sizes = Sizes(count, arguments.samples, arguments.prompt_tokens, arguments.completion_tokens)
    root: Path = arguments.folder
    root.mkdir(parents=True)
    print(f"{sizes}, {arguments.shards} shards")
    print(f"before the first step: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")
    shards = [Shard(number, arguments.shards) for number in range(1, arguments.shards + 1)]

    parts = [root / f"rollout-{shard.number}" for shard in shards]
    for shard, part in zip(shards, parts, strict=True):
        run_step(f"rollout {shard}", partial(roll_out, sizes, shard, part))
    rollouts = root / "rollout"
    run_step("merge", partial(merge, parts, "rollout", rollouts))
    for part in parts:
        shutil.rmtree(part)
    run_step("check", partial(check, sizes, rollouts))
    print(f"rollout: {count_ids(rollouts):,} ids, {bytes_of(rollouts) / 1e9:.2f} GB")

    parts = [root / f"topk-{shard.number}" for shard in shards]
    for shard, part in zip(shards, parts, strict=True):
        run_step(f"extraction {shard}", partial(extract, rollouts, shard, part))
        run_step("  (compressed)", partial(compress, part))
    topk = root / "topk"
    run_step("merge", partial(merge, parts, "extract-topk", topk))
    run_step("check", partial(check, sizes, topk))
    run_step("read", partial(read_randomly, sizes, topk))
    print(f"extraction: {count_ids(topk):,} ids (2^31 is {2**31:,}), {bytes_of(topk) / 1e9:.2f} GB")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
