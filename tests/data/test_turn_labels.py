"""The labels of a conversation's last turn are those that the paper's data preparation gives it."""

import pytest

from star.data.turn_labels import label_turn

CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
ASK = {"role": "user", "content": "Weather in Oslo?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "Rain."}


def answer(*calls: dict, content: str | None = None) -> dict:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


@pytest.mark.parametrize(
    ("messages", "labels", "number", "calls"),
    [
        ([ASK, answer(CALL)], ("single",), 1, 1),
        ([ASK, answer(CALL, CALL)], ("parallel",), 1, 2),
        ([ASK, answer(content="Where?")], ("response",), 1, 0),
        ([ASK, answer(CALL, content="I look.")], ("response", "single"), 1, 1),
        ([ASK, answer()], (), 1, 0),
        ([{"role": "system", "content": "Be brief."}, ASK, answer(CALL)], ("single",), 1, 1),
        ([ASK, CALLS, RESULT, answer(CALL)], ("single", "multi-step"), 2, 1),
        ([ASK, CALLS, RESULT, answer(CALL, CALL)], ("parallel", "multi-step"), 2, 2),
        ([ASK, CALLS, RESULT, answer(content="Rain.")], ("response",), 2, 0),
        ([ASK, CALLS, RESULT, answer(content="Rain."), ASK, answer(CALL)], ("single",), 3, 1),
    ],
)
def test_the_last_turn_has_its_labels(messages: list, labels: tuple, number: int, calls: int) -> None:
    assert label_turn(messages) == (labels, number, calls)
