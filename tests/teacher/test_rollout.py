"""What becomes of the teacher's samples."""

from pathlib import Path

import pytest

from star.generation import Sample
from star.models import load_tokenizer
from star.prompts import Prompt
from star.teacher.rollout import judge

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
    rows = judge(Prompt("r", "a prompt", CALL, TOOLS), samples, tokenizer)
    verdicts = [row["verdict"] for row in rows]
    errors = ["format_errors"] * 3
    assert verdicts == ["kept", "duplicates", "kept", *errors, "truncated", "kept"]
    assert [row["reward"] for row in rows[:3]] == [1.0, 1.0, 0.0]
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_truncated_sample_does_not_make_a_whole_one_a_duplicate(tokenizer) -> None:
    rows = judge(Prompt("r", "a prompt", CALL, TOOLS), [sample(CALL, finished=False), sample(CALL)], tokenizer)
    assert [row["verdict"] for row in rows] == ["truncated", "kept"]
