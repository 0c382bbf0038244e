"""The rewards of the paper's comparison, and the parts that are logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.chat import render_target
from star.rewards.baselines import REWARDS, binary_reward, toolrl_reward
from star.rewards.breakdown import ScoreParts, score_parts

TOOLS = [{"name": name, "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}} for name in "fg"]
BROKEN = "no think block"


def calls(*pairs: tuple[str, dict]) -> str:
    return render_target({"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in pairs]})


def reply(text: str) -> str:
    return render_target({"content": text})


@pytest.mark.parametrize(
    ("completion", "target", "total"),
    [
        (calls(("f", {"a": 1}), ("g", {})), calls(("g", {}), ("f", {"a": 1.0})), 1),
        (calls(("f", {"a": "Oslo"})), calls(("f", {"a": "oslo"})), 0),
        (calls(("f", {"a": 1})), calls(("f", {"a": 2})), 0),
        (reply("I cannot do that."), reply("I cannot do that."), 1),
        (reply("Something else."), reply("I cannot do that."), 0),
        (reply("I cannot do that."), calls(("f", {})), 0),
        (calls(("f", {})), reply("I cannot do that."), 0),
        (BROKEN, reply("I cannot do that."), -1),
    ],
)
def test_binary(completion, target, total):
    assert binary_reward(completion, target, TOOLS).total == total


@pytest.mark.parametrize(
    ("completion", "target", "correctness"),
    [
        (calls(("f", {"a": 1})), calls(("f", {"a": 1})), 1),
        # name 1 + parameter names 1 + no value, of 1 + 1 + 1
        (calls(("f", {"a": 2})), calls(("f", {"a": 1})), 2 / 3),
        # the names' overlap 1/2, parameter names 1, one value; of 1 + 2
        (calls(("f", {"a": 1}), ("g", {})), calls(("f", {"a": 1})), 2.5 / 3),
        # name 1 + parameter names 1/2 + one value, of 1 + 1 + 2
        (calls(("f", {"a": 1})), calls(("f", {"a": 1, "b": 2})), 2.5 / 4),
        (calls(("g", {"a": 1})), calls(("f", {"a": 1})), 0),
        (reply("No."), calls(("f", {})), 0),
    ],
)
def test_toolrl(completion, target, correctness):
    reward = toolrl_reward(completion, target, TOOLS)
    assert reward.content == pytest.approx(correctness)
    assert reward.total == pytest.approx(1 + 6 * correctness - 3)


def test_toolrl_where_no_call_is_due_and_where_nothing_can_be_read():
    assert toolrl_reward(reply("Any."), reply("No."), TOOLS).total == 1
    assert toolrl_reward(calls(("f", {})), reply("No."), TOOLS)[1:] == (1, 0)
    assert toolrl_reward(BROKEN, reply("No."), TOOLS) == (-3, -1, 0)


arguments = st.dictionaries(st.sampled_from("ab"), st.integers(0, 2) | st.text("xy ", max_size=3) | st.none())
answers = st.lists(st.tuples(st.sampled_from("fg"), arguments), min_size=1, max_size=3).map(lambda pairs: calls(*pairs))


@pytest.mark.parametrize("name", REWARDS)
@given(completion=answers | st.text(max_size=20).map(reply) | st.text(max_size=20), target=answers)
def test_nothing_is_worth_more_than_the_target(name, completion, target):
    reward, best = (REWARDS[name](text, target, TOOLS) for text in (completion, target))
    assert reward.total <= best.total
    assert 0 <= reward.content <= best.content == 1


def test_parts():
    target = calls(("f", {"a": 1, "b": "one two"}), ("g", {}))
    assert score_parts(target, target, TOOLS) == ScoreParts(1.0, 1.0, 1.0, 0.0)
    assert score_parts(calls(("f", {"a": 1})), target, TOOLS) == ScoreParts(1.0, 0.5, 0.5, 1.0)
    assert score_parts(reply("No."), target, TOOLS) == ScoreParts(1.0, 0.0, None, 2.0)
    assert score_parts(reply("No."), reply("Yes."), TOOLS) == ScoreParts(1.0, None, None, 0.0)
    assert score_parts(BROKEN, target, TOOLS) == ScoreParts(0.0)
    # The format is read strictly; the other parts explain the reward, for which an unclosed call is no call.
    assert score_parts(target.removesuffix("</tool_call>"), target, TOOLS) == ScoreParts(0.0, 0.5, 1.0, 1.0)
    assert score_parts(calls(("unknown", {})), target, TOOLS) == ScoreParts(1.0)
