"""The rollout assigns the right verdict to every sample, and draws failed ones again."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from star.chat import parse_completion, render_target
from star.config.experiment import Config
from star.config.teacher_signal import Rollout
from star.data.rows import read_rows
from star.errors import InputError
from star.folders.shard import WHOLE
from star.folders.workspace import Workspace
from star.modeling.generation import Sample
from star.modeling.models import load_tokenizer
from star.modeling.prompts import Prompt
from star.teacher.rollout import (
    VERDICTS,
    assign_verdicts,
    count_verdicts,
    roll_out,
    roll_out_rows,
    sample_batch,
    table_of_samples,
)
from star.topk.sequences import read_sequences

TOOLS = [
    {"name": "ping", "description": "", "parameters": {"type": "object", "properties": {"host": {"type": "string"}}}}
]
CALL = '<think>\n\n</think>\n\n<tool_call>\n{"name": "ping", "arguments": {"host": "a"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(finished: dict[str, Path]):
    return load_tokenizer(finished["refine-teacher"])


def sample(text: str, *, finished: bool = True) -> Sample:
    return Sample(text, [7, 8], finished)


def test_every_sample_has_its_verdict(tokenizer) -> None:
    samples = [
        sample(CALL),
        sample(CALL),
        sample(CALL.replace('"a"', '"b"')),
        sample(CALL.replace("ping", "pong")),
        sample(CALL.replace("host", "port")),
        sample(CALL.removeprefix("<think>")),
        sample(CALL, finished=False),
        sample("<think>\n\n</think>\n\nNo."),
    ]
    rows = assign_verdicts(Prompt("r", "a prompt", CALL, TOOLS), samples, tokenizer)
    verdicts = [row["verdict"] for row in rows]
    errors = ["format_errors"] * 3
    assert verdicts == ["kept", "duplicates", "kept", *errors, "truncated", "kept"]
    assert [row["reward"] for row in rows[:3]] == [1.0, 1.0, 0.0]
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_complete_sample_is_no_duplicate_of_a_truncated_one(tokenizer) -> None:
    rows = assign_verdicts(
        Prompt("r", "a prompt", CALL, TOOLS), [sample(CALL, finished=False), sample(CALL)], tokenizer
    )
    assert [row["verdict"] for row in rows] == ["truncated", "kept"]


def test_low_rewards_are_dropped_and_counted_by_prompt(tokenizer) -> None:
    prompt = Prompt("r", "a prompt", CALL, TOOLS)
    samples = [
        sample(CALL),
        sample(CALL),
        sample(CALL.replace('"a"', '"b"')),
        sample("?"),
        sample(CALL, finished=False),
    ]
    rows = assign_verdicts(prompt, samples, tokenizer, min_reward=0.5)
    assert [row["verdict"] for row in rows] == ["kept", "duplicates", "low_reward", "format_errors", "truncated"]
    [counted] = count_verdicts(table_of_samples(rows)).to_pylist()
    assert counted.pop("mean_reward") == pytest.approx((1 + 1 + 0 - 1 + 1) / 5)
    verdicts = {"kept": 1, "duplicates": 1, "low_reward": 1, "format_errors": 1, "truncated": 1}
    assert counted == {"row_id": "r", "samples": 5, **verdicts}


def test_a_row_without_an_answer_keeps_every_valid_sample(tokenizer) -> None:
    prompt = Prompt("r", "a prompt", render_target({"content": None}), TOOLS)
    samples = [sample(CALL), sample("<think>\n\n</think>\n\nNo."), sample("?"), sample("", finished=False)]
    rows = assign_verdicts(prompt, samples, tokenizer, min_reward=1.0)
    assert [row["verdict"] for row in rows] == ["kept", "kept", "format_errors", "truncated"]
    assert [row["reward"] for row in rows] == [None] * 4
    [counted] = count_verdicts(table_of_samples(rows)).to_pylist()
    assert (counted["samples"], counted["kept"], counted["mean_reward"]) == (4, 2, None)


def test_a_long_sample_is_cut_and_ends_with_the_end_token(tokenizer) -> None:
    ids = [10, 11, 12, 13, 14, 15]
    samples = [
        Sample(CALL, [*ids[:3], 2], True),
        Sample(CALL + " ", [*ids, 2], True),
        # Only what is cut off differs.
        Sample(CALL + "  ", [*ids[:3], 8, 9, 2], True),
        Sample(CALL + "   ", [*ids, 7, 7], False),
    ]
    prompt = Prompt("r", "a prompt", CALL, TOOLS)
    rows = assign_verdicts(prompt, samples, tokenizer, cut_at=4)
    assert [row["verdict"] for row in rows] == ["kept", "kept", "duplicates", "truncated"]
    assert [row["cut"] for row in rows] == [False, True, True, True]
    assert rows[0]["completion_ids"] == [*ids[:3], 2]
    assert rows[1]["completion_ids"] == [*ids[:3], tokenizer.eos_token_id]
    assert rows[1]["completion"] == CALL + " " and rows[1]["reward"] == 1.0


class Scripted:
    """A sampler that returns one text per call and records its arguments."""

    def __init__(self, *rounds: str) -> None:
        self.rounds, self.asked = rounds, []

    def __call__(self, tokenizer, texts: list[str], *, samples: int, seed: int, **_) -> list[list[Sample]]:
        self.asked.append((list(texts), samples, seed))
        return [[sample(self.rounds[len(self.asked) - 1])] * samples for _ in texts]


@pytest.mark.parametrize("retries", [0, 1, 2, 5])
def test_failures_are_sampled_again_up_to_the_limit(tokenizer, retries: int) -> None:
    sampler = Scripted("?", "?", CALL, CALL, CALL, CALL)
    prompts = [Prompt("r", "one", CALL, TOOLS), Prompt("s", "two", CALL, TOOLS)]
    rows = sample_batch(sampler, tokenizer, prompts, settings=Rollout(samples=2, retries=retries), seed=3)
    rounds = min(retries + 1, 3)
    assert [asked[:2] for asked in sampler.asked[1:]] == [(["one", "one", "two", "two"], 1)] * (rounds - 1)
    assert len({seed for _, _, seed in sampler.asked}) == rounds
    assert len(rows) == 4 * rounds == len({row["id"] for row in rows})
    kept = [row["row_id"] for row in rows if row["verdict"] == "kept"]
    assert kept == (["r", "s"] if retries >= 2 else [])


def roll_out_scripted(tokenizer, folder: Path, *texts: str, settings: Rollout) -> None:
    workspace = Workspace(out=folder / "out", state=folder / "state")
    for place in (workspace.out, workspace.state):
        place.mkdir()
    prompts = [
        Prompt(name, f"<|im_start|>user\n{name}<|im_end|>\n<|im_start|>assistant\n", CALL, TOOLS) for name in "rs"
    ]
    roll_out(Scripted(*texts), tokenizer, prompts, settings=settings, seed=3, shard=WHOLE, workspace=workspace)


def test_format_errors_are_named_with_their_counts_and_the_end_of_the_prompt(tokenizer, tmp_path: Path) -> None:
    wrong = CALL.replace("ping", "pong")
    with pytest.raises(InputError) as error:
        roll_out_scripted(
            tokenizer, tmp_path, wrong, "\x1b[2JNo.", settings=Rollout(samples=2, batch_size=1, retries=0)
        )
    assert str(error.value) == (
        "the teacher gave no valid completion in 4 samples. 4 break the format: "
        '"a call names no tool of the prompt" (2), "a completion has exactly one <think>...</think>" (2); '
        f"the first is {wrong!r} after the prompt's '<|im_start|>assistant\\n'. A completion must be one <think> block "
        "and then a reply or <tool_call> blocks: train the teacher on the rows with teacher.sft, or choose one that "
        "answers so"
    )


def test_each_cause_of_a_failure_has_its_cure_the_most_frequent_first(tokenizer, tmp_path: Path) -> None:
    settings = Rollout(samples=2, batch_size=1, retries=0, min_reward=0.5, max_new_tokens=9)
    with pytest.raises(InputError, match=r"in 4 samples\. 2 .*break the format.*\. 2 have a reward below 0\.5: lower"):
        roll_out_scripted(tokenizer, tmp_path, "?", CALL.replace('"a"', '"z"'), settings=settings)


def test_what_the_prompt_opens_counts_as_the_completions(
    micro: Config, finished: dict[str, Path], thinking_teacher: Path, tmp_path: Path
) -> None:
    workspace = Workspace(out=tmp_path / "out", state=tmp_path / "state")
    for place in (workspace.out, workspace.state):
        place.mkdir()
    rows = list(read_rows(finished["synthesize"] / "train.jsonl"))
    roll_out_rows(thinking_teacher, rows, config=micro, shard=WHOLE, workspace=workspace)
    tokenizer = load_tokenizer(thinking_teacher)
    kept = pq.read_table(workspace.out / "sequences.parquet", columns=["completion_ids", "completion"]).to_pylist()
    _, sequences = read_sequences(workspace.out)
    assert kept
    for row, sequence in zip(kept, sequences, strict=True):
        assert tokenizer.decode(sequence.prompt_ids).endswith("<|im_start|>assistant\n<think>\n")
        sampled = tokenizer.decode(row["completion_ids"][:-1])
        assert row["completion"] == "<think>\n" + sampled and "<think>" not in sampled
        assert parse_completion(row["completion"])


def test_every_prompt_has_its_counts(finished: dict[str, Path]) -> None:
    folder = finished["rollout"]
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(prompts) == metrics["prompts"]
    for verdict in VERDICTS:
        assert sum(row[verdict] for row in prompts) == metrics[verdict]
    assert all(row["samples"] == sum(row[verdict] for verdict in VERDICTS) for row in prompts)
