"""The teacher answers the training prompts; what survives the format check and de-duplication is what the student learns from.

Work is cut into batches of prompts. Each batch is written whole before the next begins and is sampled from its own seed, so a killed
rollout goes on and ends with the same sequences.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from star.chat import FormatError, parse_completion, validate_calls
from star.config import Config, Rollout
from star.errors import InputError
from star.generation import Sample, generate
from star.models import load_model, load_tokenizer
from star.progress import Bar
from star.prompts import Prompt, render_rows, within_length
from star.simrl.reward import similarity_reward
from star.storage import Workspace, digest_of

SEQUENCES = "sequences.parquet"
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


def roll_out_rows(teacher: Path, rows: list[dict], *, config: Config, work: Workspace) -> dict[str, float]:
    """Rolls the teacher of a folder out on the rows' prompts; `rollout.prompts` bounds how many, drawn by the seed."""
    tokenizer = load_tokenizer(teacher)
    rendered = render_rows(rows, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    chosen = choose(prompts, count=config.rollout.prompts, seed=config.seed)
    counts = roll_out(load_model(teacher), tokenizer, chosen, settings=config.rollout, seed=config.seed, work=work)
    if not counts["kept"]:
        raise InputError(
            f"the teacher gave no valid completion in {sum(counts.values())} samples ({counts}): "
            "train it longer, or raise rollout.max_new_tokens"
        )
    return {"prompts": len(chosen), "too_long": len(rendered) - len(prompts), **counts}


def choose(prompts: list[Prompt], *, count: int | None, seed: int) -> list[Prompt]:
    """`count` of the prompts, drawn by their ids and the seed, so that every source of rows has its share."""
    return sorted(prompts, key=lambda prompt: digest_of([seed, prompt.row_id]))[:count]


def roll_out(
    model, tokenizer, prompts: list[Prompt], *, settings: Rollout, seed: int, work: Workspace
) -> dict[str, int]:
    """Samples, filters and writes `sequences.parquet`; finished batches are kept when the work is killed.

    Returns:
        how many samples were kept and how many were dropped, by reason: truncated, format_errors, duplicates.
    """
    by_length = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.row_id))
    batches = [
        by_length[start : start + settings.batch_size] for start in range(0, len(by_length), settings.batch_size)
    ]
    parts = [work.state / f"part-{index:05d}.parquet" for index in range(len(batches))]
    done = sum(part.exists() for part in parts)
    with Bar("roll out the teacher", len(batches), start=done) as bar:
        for index, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            if part.exists():
                continue
            sampled = generate(
                model,
                tokenizer,
                [prompt.text for prompt in batch],
                samples=settings.samples,
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                seed=seed * 1_000_003 + index,
            )
            _write_part(
                part,
                [
                    row
                    for prompt, samples in zip(batch, sampled, strict=True)
                    for row in judge(prompt, samples, tokenizer)
                ],
            )
            bar.advance()
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    kept = table.filter(pc.equal(table["verdict"], "kept")).drop(["verdict"]).sort_by("id")
    pq.write_table(kept, work.out / SEQUENCES)
    counts = Counter(table["verdict"].to_pylist())
    return {name: counts[name] for name in ("kept", "truncated", "format_errors", "duplicates")}


def judge(prompt: Prompt, samples: list[Sample], tokenizer) -> list[dict]:
    """One row a sample with its verdict: kept, truncated, format_errors or duplicates."""
    prompt_ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    seen: set[str] = set()
    rows = []
    for number, sample in enumerate(samples):
        verdict = (
            "truncated" if not sample.finished else "kept" if _is_valid(sample.text, prompt.tools) else "format_errors"
        )
        if verdict == "kept":
            verdict = "duplicates" if sample.text in seen else "kept"
            seen.add(sample.text)
        rows.append(
            {
                "id": f"{prompt.row_id}#{number}",
                "row_id": prompt.row_id,
                "prompt_ids": prompt_ids,
                "completion_ids": sample.token_ids,
                "completion": sample.text,
                "reward": similarity_reward(sample.text, prompt.target, prompt.tools).total,
                "verdict": verdict,
            }
        )
    return rows


def _is_valid(text: str, tools: list[dict]) -> bool:
    try:
        validate_calls(parse_completion(text), tools)
    except FormatError:
        return False
    return True


def _write_part(part: Path, rows: list[dict]) -> None:
    temporary = part.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.append(pa.field("verdict", pa.string()))), temporary)
    temporary.replace(part)
