"""The rollout assigns the right verdict to every sample, and draws failed ones again."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from star.config.teacher_signal import Rollout
from star.modeling.generation import Sample
from star.modeling.models import load_tokenizer
from star.modeling.prompts import Prompt
from star.teacher.rollout import VERDICTS, _table, assign_verdicts, count_verdicts, sample_batch

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
    [counted] = count_verdicts(_table(rows)).to_pylist()
    assert counted.pop("mean_reward") == pytest.approx((1 + 1 + 0 - 1 + 1) / 5)
    verdicts = {"kept": 1, "duplicates": 1, "low_reward": 1, "format_errors": 1, "truncated": 1}
    assert counted == {"row_id": "r", "samples": 5, **verdicts}


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


def test_every_prompt_has_its_counts(finished: dict[str, Path]) -> None:
    folder = finished["rollout"]
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(prompts) == metrics["prompts"]
    for verdict in VERDICTS:
        assert sum(row[verdict] for row in prompts) == metrics[verdict]
    assert all(row["samples"] == sum(row[verdict] for verdict in VERDICTS) for row in prompts)
