"""Every mistake has one name, and an exact match has none."""

import pytest

from star.chat import render_target
from star.evaluation.mistakes import MISTAKE_KINDS, classify_mistake

TOOLS = [
    {"name": "book", "parameters": {"type": "object", "properties": {"city": {}, "seats": {}, "vip": {}, "tags": {}}}},
    {"name": "cancel", "parameters": {"type": "object", "properties": {"id": {}}}},
]
RIGHT = {"name": "book", "arguments": {"city": "Oslo", "seats": 2, "vip": True, "tags": ["a"]}}


def calls(*made: dict) -> str:
    return render_target({"tool_calls": list(made)})


def with_arguments(**changed: object) -> dict:
    return {"name": "book", "arguments": {**RIGHT["arguments"], **changed}}


CASES = [
    ("no think block", "bad format"),
    (calls({"name": "fly", "arguments": {}}), "unknown tool"),
    (calls(with_arguments(colour="red")), "unknown argument"),
    (render_target({"content": "Which city?"}), "reply instead of call"),
    (calls({"name": "cancel", "arguments": {"id": 1}}), "wrong tool"),
    (calls(RIGHT, RIGHT), "too many calls"),
    (calls({"name": "book", "arguments": {"city": "Oslo", "seats": 2, "vip": True}}), "missing argument"),
    (calls(with_arguments(city="Rome")), "wrong text"),
    (calls(with_arguments(seats=3)), "wrong number"),
    (calls(with_arguments(seats=True)), "wrong number"),
    (calls(with_arguments(vip=1)), "wrong boolean"),
    (calls(with_arguments(tags=["b"])), "wrong list or object"),
    (calls(RIGHT), None),
    (calls(with_arguments(seats=2.0)), None),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_mistake_has_its_name(text: str, expected: str | None) -> None:
    assert classify_mistake(text, calls(RIGHT), TOOLS) == expected
    assert expected is None or expected in MISTAKE_KINDS


def test_mistakes_against_other_targets() -> None:
    assert classify_mistake(calls(RIGHT), render_target({"content": "No."}), TOOLS) == "call instead of reply"
    assert (
        classify_mistake(calls(RIGHT), calls(RIGHT, {"name": "cancel", "arguments": {"id": 1}}), TOOLS)
        == "too few calls"
    )
    short = {"name": "book", "arguments": {"city": "Oslo"}}
    assert classify_mistake(calls(RIGHT), calls(short), TOOLS) == "extra argument"
    assert classify_mistake(calls(short, RIGHT), calls(RIGHT, short), TOOLS) is None
