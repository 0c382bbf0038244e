"""The teacher answers the training prompts; what survives the format check, de-duplication and the reward is what the student learns from.

Work is cut into batches of prompts. Each batch is written whole before the next begins and is sampled from its own seed, so a killed
rollout goes on and ends with the same sequences, and the parts of a rollout together are the whole one.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from star.chat import FormatError, parse_completion, validate_calls
from star.config.experiment import Config
from star.config.teacher_signal import Rollout
from star.errors import InputError
from star.folders.manifest import Part
from star.folders.workspace import Workspace
from star.hashing import digest_of
from star.modeling.generation import Sample, generate
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import Prompt, render_rows, within_length
from star.number_format import format_bytes, format_seconds
from star.progress import Bar, say
from star.rewards.similarity import similarity_reward
from star.teacher.openai_server import TeacherServer
from star.teacher.vllm_engine import TeacherEngine
from star.topk.disk_space import require_disk_space
from star.topk.sequences import SEQUENCES

PROMPTS = "prompts.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("reward", pa.float32()),
    ]
)
VERDICTS = ("kept", "truncated", "format_errors", "low_reward", "duplicates")
FAILURES = ("truncated", "format_errors", "low_reward")  # what is sampled again
ROUND_SEED = 7_368_787  # between the seeds of one round of samples and the next

Sampler = Callable[..., list[list[Sample]]]


def roll_out_rows(teacher: Path, rows: list[dict], *, config: Config, part: Part, work: Workspace) -> dict[str, float]:
    """Rolls the teacher of a folder out on the rows' prompts; `rollout.prompts` bounds how many, drawn by the seed."""
    tokenizer = load_tokenizer(teacher)
    rendered = render_rows(rows, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    chosen = choose(prompts, count=config.rollout.prompts, seed=config.seed)
    settings = config.rollout
    counts = roll_out(
        _sampler(teacher, settings), tokenizer, chosen, settings=settings, seed=config.seed, part=part, work=work
    )
    if sum(counts.values()) and not counts["kept"]:
        raise InputError(
            f"the teacher gave no valid completion in {sum(counts.values())} samples ({counts}): "
            "train it longer, raise rollout.max_new_tokens, or lower rollout.min_reward"
        )
    return {"prompts": len(chosen), "too_long": len(rendered) - len(prompts), **counts}


def _sampler(teacher: Path, settings: Rollout) -> Sampler:
    if settings.server:
        return TeacherServer(settings.server).generate
    return TeacherEngine(teacher, settings.vllm).generate if settings.vllm else partial(generate, load_model(teacher))


def choose(prompts: list[Prompt], *, count: int | None, seed: int) -> list[Prompt]:
    """`count` of the prompts, drawn by their ids and the seed, so that every source of rows has its share."""
    return sorted(prompts, key=lambda prompt: digest_of([seed, prompt.row_id]))[:count]


def roll_out(
    sample: Sampler, tokenizer, prompts: list[Prompt], *, settings: Rollout, seed: int, part: Part, work: Workspace
) -> dict[str, int]:
    """Samples, filters and writes `sequences.parquet`; finished batches are kept when the work is killed.

    `prompts.parquet` tells what became of every prompt's samples.

    Returns:
        how many samples were kept and how many were dropped, by reason: truncated, format_errors, low_reward, duplicates.
    """
    by_length = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.row_id))
    starts = range(0, len(by_length), settings.batch_size)
    batches = part.of([(number, by_length[start : start + settings.batch_size]) for number, start in enumerate(starts)])
    files = [work.state / f"part-{number:05d}.parquet" for number, _ in batches]
    done = sum(file.exists() for file in files)
    samples = sum(len(batch) for _, batch in batches) * settings.samples
    # Ids of four bytes and the text, about as much again.
    needed = samples * settings.max_new_tokens * 8
    require_disk_space(work.out, needed, what=f"a rollout of {samples:,} samples")
    say(
        f"rollout: {samples:,} samples of at most {settings.max_new_tokens} tokens; {format_bytes(needed)} to write at most"
    )
    began = time.monotonic()
    with Bar("roll out the teacher", len(batches), start=done) as bar:
        for (number, batch), file in zip(batches, files, strict=True):
            if file.exists():
                continue
            rows = sample_batch(sample, tokenizer, batch, settings=settings, seed=seed * 1_000_003 + number)
            _write_part(file, rows)
            if bar.done == done:
                seconds = time.monotonic() - began
                rate = sum(len(row["completion_ids"]) for row in rows) / seconds
                left = format_seconds(round(seconds * (len(batches) - done)))
                say(f"rollout: about {left} at {rate:,.0f} sampled tokens a second")
            bar.advance()
    table = pa.concat_tables([pq.read_table(file) for file in files]) if files else _table([])
    kept = table.filter(pc.equal(table["verdict"], "kept")).drop(["verdict"]).sort_by("id")
    pq.write_table(kept, work.out / SEQUENCES)
    pq.write_table(account(table), work.out / PROMPTS)
    counts = Counter(table["verdict"].to_pylist())
    return {name: counts[name] for name in VERDICTS}


def sample_batch(sample: Sampler, tokenizer, batch: list[Prompt], *, settings: Rollout, seed: int) -> list[dict]:
    """The judged samples of a batch of prompts; what failed is sampled again, `settings.retries` times at most."""
    sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
    texts = [prompt.text for prompt in batch]
    groups = sample(tokenizer, texts, samples=settings.samples, seed=seed, **sampling)
    rows = [judge(*pair, tokenizer, min_reward=settings.min_reward) for pair in zip(batch, groups, strict=True)]
    for retry in range(1, settings.retries + 1):
        # A prompt stands there once for every sample it still lacks.
        again = [index for index, made in enumerate(rows) for _ in range(_lacking(made, settings.samples))]
        if not again:
            break
        more = sample(
            tokenizer, [texts[index] for index in again], samples=1, seed=seed + retry * ROUND_SEED, **sampling
        )
        for index, [made] in zip(again, more, strict=True):
            groups[index].append(made)
        for index in set(again):
            rows[index] = judge(batch[index], groups[index], tokenizer, min_reward=settings.min_reward)
    return [row for made in rows for row in made]


def _lacking(rows: list[dict], samples: int) -> int:
    return samples - sum(row["verdict"] not in FAILURES for row in rows)


def judge(prompt: Prompt, samples: list[Sample], tokenizer, *, min_reward: float | None = None) -> list[dict]:
    """One row a sample with its verdict, the first that holds: truncated, format_errors, low_reward, duplicates, kept."""
    prompt_ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    seen: set[str] = set()
    rows = []
    for number, sample in enumerate(samples):
        reward = similarity_reward(sample.text, prompt.target, prompt.tools).total
        if not sample.finished:
            verdict = "truncated"
        elif not _is_valid(sample.text, prompt.tools):
            verdict = "format_errors"
        elif min_reward is not None and reward < min_reward:
            verdict = "low_reward"
        else:
            verdict = "duplicates" if sample.text in seen else "kept"
            seen.add(sample.text)
        rows.append(
            {
                "id": f"{prompt.row_id}#{number}",
                "row_id": prompt.row_id,
                "prompt_ids": prompt_ids,
                "completion_ids": sample.token_ids,
                "completion": sample.text,
                "reward": reward,
                "verdict": verdict,
            }
        )
    return rows


def account(table: pa.Table) -> pa.Table:
    """One row a prompt: its samples, how many of them have each verdict, and the mean reward."""
    counted = [pc.cast(pc.equal(table["verdict"], verdict), pa.int64()) for verdict in VERDICTS]
    columns = {"row_id": table["row_id"], "reward": table["reward"], **dict(zip(VERDICTS, counted, strict=True))}
    sums = [(verdict, "sum") for verdict in VERDICTS]
    grouped = pa.table(columns).group_by("row_id").aggregate([("reward", "count"), *sums, ("reward", "mean")])
    return grouped.rename_columns(["row_id", "samples", *VERDICTS, "mean_reward"]).sort_by("row_id")


def _is_valid(text: str, tools: list[dict]) -> bool:
    try:
        validate_calls(parse_completion(text), tools)
    except FormatError:
        return False
    return True


def _table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA.append(pa.field("verdict", pa.string())))


def _write_part(part: Path, rows: list[dict]) -> None:
    temporary = part.with_suffix(".tmp")
    pq.write_table(_table(rows), temporary)
    temporary.replace(part)
