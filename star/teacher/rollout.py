"""Samples the teacher on the training prompts and keeps the completions that the student will learn from.

A sample is kept when it ended before the limit, has a valid format, reaches the reward of the settings, and repeats no
earlier sample of its prompt. A row without an answer gives no reward. With `rollout.cut_at` a long sample is kept up to
that token. The prompts are split into batches:

    prompts ─┬► batch 0 ─► sample, seed 0 ─► assign verdicts ─► state/part-00000.parquet ─┐
    by       ├► batch 1 ─► sample, seed 1 ─► assign verdicts ─► state/part-00001.parquet ─┼► sequences.parquet
    length   └► ...                                                                       ┘  sorted by id

A batch's file is complete before the next batch begins, and each batch has its own seed. Therefore a killed rollout
continues with the next batch and ends with the same sequences, and the shards of a rollout have together the sequences
of the whole rollout.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from star.config.experiment import Config
from star.config.teacher_signal import Rollout
from star.config.training import Precision
from star.errors import InputError
from star.folders.shard import Shard
from star.folders.workspace import Workspace
from star.hashing import digest_of
from star.modeling.generation import Sample, generate
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import Prompt, render_rows, within_length
from star.modeling.tokenizer import are_tokens
from star.progress import Bar, print_line
from star.rewards.format_errors import format_error
from star.rewards.similarity import similarity_reward
from star.teacher.external_sort import sort_rows
from star.teacher.failed_rollout import explain_failure
from star.teacher.openai_server import TeacherServer
from star.teacher.vllm_engine import TeacherEngine
from star.topk.disk_space import require_disk_space
from star.topk.row_files import Rows, drop_repeated_prompts
from star.topk.sequences import SCHEMA, SEQUENCES
from star.units import format_bytes, format_seconds

PROMPTS = "prompts.parquet"
PROMPTS_PER_GROUP = 16_384  # rows of prompts.parquet, which have numbers only
VERDICTS = ("kept", "truncated", "format_errors", "low_reward", "duplicates")
PROMPTS_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("samples", pa.int64()),
        *((verdict, pa.int64()) for verdict in VERDICTS),
        ("mean_reward", pa.float64()),
    ]
)
PART_SCHEMA = pa.schema([*SCHEMA, ("verdict", pa.string()), ("cut", pa.bool_())])  # of a batch's file
FAILURES = ("truncated", "format_errors", "low_reward")  # samples with these verdicts are drawn again
BATCH_SEED_STEP = 1_000_003  # between the seeds of two values of config.seed; a batch adds its number
RETRY_SEED_STEP = 7_368_787  # between the seeds of a batch's samples and of its retries

Sampler = Callable[..., list[list[Sample]]]


def roll_out_rows(
    teacher: Path, rows: list[dict[str, Any]], *, config: Config, shard: Shard, workspace: Workspace
) -> dict[str, float]:
    """Rolls out the teacher on the prompts of the rows, on at most `rollout.prompts` of them, chosen by the seed.

    Returns:
        prompts: how many were chosen; too_long: how many were left out because of their length; samples per verdict; cut:
        how many of the kept ones were cut, where `rollout.cut_at` is set.

    Raises:
        InputError: the teacher gave no valid completion, or the disk is too small.
    """
    tokenizer = load_tokenizer(teacher)
    rendered = render_rows(rows, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    chosen = choose_prompts(prompts, count=config.rollout.prompts, seed=config.seed)
    settings = config.rollout
    counts = roll_out(
        _sampler(teacher, settings, precision=config.precision),
        tokenizer,
        chosen,
        settings=settings,
        seed=config.seed,
        shard=shard,
        workspace=workspace,
    )
    return {"prompts": len(chosen), "too_long": len(rendered) - len(prompts), **counts}


def _sampler(teacher: Path, settings: Rollout, *, precision: Precision) -> Sampler:
    """Starts the back end of the settings; returns its function that samples."""
    if settings.server:
        return TeacherServer(settings.server).generate
    if settings.vllm:
        return TeacherEngine(teacher, settings.vllm).generate
    return partial(generate, load_model(teacher, precision=precision))


def choose_prompts(prompts: list[Prompt], *, count: int | None, seed: int) -> list[Prompt]:
    """Chooses `count` of the prompts (None: all) by a hash of seed and row id, so that every source keeps its share."""
    return sorted(prompts, key=lambda prompt: digest_of([seed, prompt.row_id]))[:count]


def roll_out(
    sample: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    settings: Rollout,
    seed: int,
    shard: Shard,
    workspace: Workspace,
) -> dict[str, int]:
    """Samples the prompts, filters the samples and writes `sequences.parquet` and `prompts.parquet`.

    `sequences.parquet` has the kept samples, `prompts.parquet` the number of samples per verdict for every prompt.

    Args:
        prompts: the prompts of all shards.
        shard: which batches to do.
        workspace: finished batches are in its state folder and are not sampled again.

    Returns:
        the number of samples per verdict: kept, truncated, format_errors, low_reward, duplicates; and of the kept ones that
        were cut, where they are.

    Raises:
        InputError: none was kept; the message says why and what to do.
    """
    # Prompts of similar length share a batch, because a long one pads all others. The row id makes the order unique.
    by_length = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.row_id))
    starts = range(0, len(by_length), settings.batch_size)
    # Numbered before the shard takes its own, so that a batch has the same seed in any number of shards.
    batches = shard.select(
        [(number, by_length[start : start + settings.batch_size]) for number, start in enumerate(starts)]
    )
    files = [workspace.state / f"part-{number:05d}.parquet" for number, _ in batches]
    done = sum(file.exists() for file in files)
    samples = sum(len(batch) for _, batch in batches) * settings.samples
    # Four bytes per id, and about as much again for the text.
    needed_bytes = samples * settings.max_new_tokens * 8
    require_disk_space(workspace.out, needed_bytes, what=f"a rollout of {samples:,} samples")
    limit = f"at most {settings.max_new_tokens} tokens each, {format_bytes(needed_bytes)} to write"
    print_line(f"rollout: {samples:,} samples, {limit}")
    began = time.monotonic()
    with Bar("roll out the teacher", len(batches), start=done) as bar:
        for (number, batch), file in zip(batches, files, strict=True):
            if file.exists():
                continue
            rows = sample_batch(sample, tokenizer, batch, settings=settings, seed=seed * BATCH_SEED_STEP + number)
            write_batch(file, table_of_samples(rows))
            # From the first batch that is sampled now: those of a killed run took this process no time.
            if bar.done == done:
                seconds = time.monotonic() - began
                rate = sum(len(row["completion_ids"]) for row in rows) / seconds
                time_left = format_seconds(round(seconds * (len(batches) - done)))
                print_line(f"rollout: about {time_left} at {rate:,.0f} sampled tokens per second")
            bar.advance()
    counts = collect_batches(files, workspace=workspace)
    # A shard may have no batch at all, which is no fault of the teacher.
    if sum(counts.values()) and not counts["kept"]:
        raise InputError(explain_failure(files, counts, prompts, settings))
    return counts if settings.cut_at is None else counts | {"cut": sum(map(_count_cut, files))}


def _count_cut(file: Path) -> int:
    table = pq.read_table(file, columns=["verdict", "cut"])
    return pc.sum(pc.and_(table["cut"], pc.equal(table["verdict"], "kept"))).as_py() or 0


def collect_batches(files: list[Path], *, workspace: Workspace) -> dict[str, int]:
    """Writes the sequences and the prompts' counts of the finished batches; returns the number of samples per verdict.

    Sorted by id, so that neither the batches nor the shards show in the files.
    """
    counts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))

    def counted() -> Iterator[pa.Table]:
        for file in files:
            table = count_verdicts(pq.read_table(file, columns=["row_id", "reward", "verdict"]))
            counts.update({verdict: pc.sum(table[verdict]).as_py() for verdict in VERDICTS})
            yield table

    sequences, prompts = workspace.out / SEQUENCES, workspace.out / PROMPTS
    sort_rows(map(_read_kept, files), sequences, SCHEMA, scratch=workspace.state)
    sort_rows(counted(), prompts, PROMPTS_SCHEMA, scratch=workspace.state, rows_per_group=PROMPTS_PER_GROUP)
    return dict(counts)


def _read_kept(file: Path) -> pa.Table:
    rows = Rows(pq.read_table(file))
    kept = np.flatnonzero(pc.equal(rows.table["verdict"], "kept").to_numpy())
    return drop_repeated_prompts(rows.take(kept).drop(["verdict", "cut"]))


def sample_batch(
    sample: Sampler, tokenizer: PreTrainedTokenizerBase, batch: list[Prompt], *, settings: Rollout, seed: int
) -> list[dict[str, Any]]:
    """Samples a batch of prompts and assigns verdicts. Failed samples are drawn again, at most `retries` times."""
    sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
    texts = [prompt.text for prompt in batch]
    groups = sample(tokenizer, texts, samples=settings.samples, seed=seed, **sampling)
    rows_by_prompt = [
        assign_verdicts(prompt, group, tokenizer, min_reward=settings.min_reward, cut_at=settings.cut_at)
        for prompt, group in zip(batch, groups, strict=True)
    ]
    for retry in range(1, settings.retries + 1):
        # The index of a prompt once for every sample that failed.
        again = [index for index, rows in enumerate(rows_by_prompt) for _ in range(_missing(rows, settings.samples))]
        if not again:
            break
        # With another seed, because the same one would draw the same failures again.
        more = sample(
            tokenizer, [texts[index] for index in again], samples=1, seed=seed + retry * RETRY_SEED_STEP, **sampling
        )
        for index, [retried] in zip(again, more, strict=True):
            groups[index].append(retried)
        # All samples of the prompt again: whether a retry is a duplicate depends on the earlier ones.
        for index in set(again):
            rows_by_prompt[index] = assign_verdicts(
                batch[index],
                groups[index],
                tokenizer,
                min_reward=settings.min_reward,
                cut_at=settings.cut_at,
            )
    return [row for rows in rows_by_prompt for row in rows]


def _missing(rows: list[dict[str, Any]], samples: int) -> int:
    """How many of `samples` samples have failed. Duplicates have not."""
    return samples - sum(row["verdict"] not in FAILURES for row in rows)


def assign_verdicts(
    prompt: Prompt,
    samples: list[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    min_reward: float | None = None,
    cut_at: int | None = None,
) -> list[dict[str, Any]]:
    """Makes one row per sample with its verdict, the first that applies.

    The order is truncated, format_errors, low_reward, duplicates (of an earlier sample), kept.

    Args:
        min_reward: least reward of a kept sample, where its row has an answer to compare it with.
        cut_at: most ids that are kept of a sample; the last one becomes the end token. The text is kept whole.
    """
    prompt_ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    # Per prompt: the same answer to two prompts is no duplicate.
    seen: set[str | tuple[int, ...]] = set()
    rows = []
    for number, sample in enumerate(samples):
        # Rewarded whatever the verdict, because prompts.parquet has the mean over all samples of a prompt.
        reward = similarity_reward(sample.text, prompt.target, prompt.tools).total if prompt.is_answered else None
        ids = sample.token_ids
        if is_cut := cut_at is not None and len(ids) > cut_at:
            ids = [*ids[: cut_at - 1], tokenizer.eos_token_id]
        if not sample.finished:
            verdict = "truncated"
        # A server may sample a row of the head that is no token: it has no text, and no student could learn it.
        elif not are_tokens(sample.token_ids, tokenizer) or format_error(sample.text, prompt.tools):
            verdict = "format_errors"
        elif min_reward is not None and reward is not None and reward < min_reward:
            verdict = "low_reward"
        else:
            # Two long samples may differ behind the cut only.
            content = tuple(ids) if is_cut else sample.text
            verdict = "duplicates" if content in seen else "kept"
            seen.add(content)
        rows.append(
            {
                "id": f"{prompt.row_id}#{number}",
                "row_id": prompt.row_id,
                "prompt_ids": prompt_ids,
                "completion_ids": ids,
                "completion": sample.text,
                "reward": reward,
                "verdict": verdict,
                "cut": is_cut,
            }
        )
    return rows


def count_verdicts(table: pa.Table) -> pa.Table:
    """Makes one row per prompt: its number of samples, how many of them have each verdict, and their mean reward."""
    is_verdict = [pc.cast(pc.equal(table["verdict"], verdict), pa.int64()) for verdict in VERDICTS]
    columns = {"row_id": table["row_id"], "reward": table["reward"], **dict(zip(VERDICTS, is_verdict, strict=True))}
    sums = [(verdict, "sum") for verdict in VERDICTS]
    # Of rows without an answer the rewards are null, and their samples count all the same.
    count = ("reward", "count", pc.CountOptions(mode="all"))
    grouped = pa.table(columns).group_by("row_id").aggregate([count, *sums, ("reward", "mean")])
    return grouped.rename_columns(["row_id", "samples", *VERDICTS, "mean_reward"]).sort_by("row_id")


def table_of_samples(rows: list[dict[str, Any]]) -> pa.Table:
    """Makes the table of the rows of `sample_batch`."""
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def write_batch(file: Path, table: pa.Table) -> None:
    """Writes the samples of a batch with their verdicts."""
    # Renamed when complete: a resumed rollout takes every file that exists for a finished batch.
    temporary = file.with_suffix(".tmp")
    pq.write_table(drop_repeated_prompts(table), temporary)
    temporary.replace(file)
