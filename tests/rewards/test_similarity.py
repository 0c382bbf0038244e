"""The similarity reward: the official values, and the laws that every completion obeys."""

import json
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.chat import FORMAT_TOKENS, render_target
from star.rewards.similarity import FORMAT_ERROR, exact_match, rouge_l, similarity_reward, similarity_typed_reward

PARAMETERS = ("a", "b", "c")
TOOLS = [
    {"name": "f", "description": "", "parameters": {"type": "object", "properties": {key: {} for key in PARAMETERS}}},
    {"name": "g", "description": "", "parameters": {key: {"type": "str"} for key in PARAMETERS}},
    {"name": "h", "description": "", "parameters": {"type": "dict", "properties": {key: {} for key in PARAMETERS}}},
]

words = st.lists(st.sampled_from(["run", "running", "RUNS", "Oslo", "7", "é", ".", "y"]), max_size=6).map(" ".join)
values = (
    words
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
    | st.lists(words, max_size=2)
)
arguments = st.dictionaries(st.sampled_from(PARAMETERS), values)
calls = st.fixed_dictionaries({"name": st.sampled_from("fgh"), "arguments": arguments})
answers = st.fixed_dictionaries({"tool_calls": st.lists(calls, min_size=1, max_size=4)}) | st.fixed_dictionaries(
    {"content": words}
)
pieces = st.sampled_from(
    [
        *FORMAT_TOKENS,
        "<|im_end|>",
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "',
        "NaN",
        "[" * 2000,
        "9" * 5000,
        "\\ud800",
        "\ud800",
        "{",
    ]
)


@st.composite
def near_valid(draw: Any) -> str:
    """A rendered answer with a few pieces cut out or put in."""
    text = render_target(draw(answers))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.just("") | pieces) + text[start + draw(st.integers(0, 12)) :]
    return text


def reply(text: str) -> str:
    return f"<think>\n\n</think>\n\n{text}"


def call(**arguments: Any) -> str:
    return render_target({"tool_calls": [{"name": "f", "arguments": arguments}]})


def score(completion: str, target: str) -> float:
    return similarity_reward(completion, target, TOOLS).total


def test_official_values(shared):
    """Every value is the same to the last bit: the official code gives float32, and so does ours."""
    lines = (shared / "golden" / "simrl_rewards.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 400
    for row in map(json.loads, lines):
        reward = similarity_reward(row["generation"], row["label"], row["tools"])
        assert (reward.total, reward.format, reward.content) == (row["reward"], row["format"], row["answer"]), row["id"]


@given(
    completion=st.text(max_size=30) | near_valid() | st.lists(pieces, max_size=8).map("".join),
    target=near_valid() | st.text(max_size=10),
)
def test_any_texts_give_a_reward_in_range(completion, target):
    reward = similarity_reward(completion, target, TOOLS)
    assert reward == FORMAT_ERROR or (reward.format == 1 and 0 <= reward.content == reward.total <= 1)
    assert exact_match(completion, target, TOOLS) in (True, False)


HOSTILE = [
    *FORMAT_TOKENS,
    *(
        "<|im_end|>",
        "<|im_start|>assistant\n",
        '{"name": "f", "arguments": {',
        '"a": ',
        '"b": ',
        "}}",
        "}",
        "]",
        ",",
        '"',
    ),
    *(
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "[" * 3000,
        '{"a":' * 300,
        "\\ud800",
        "\ud800",
        "\x00",
        "\ufeff",
        "y" * 400,
    ),
    *('"a": 1, "a": "x"', "true", "null", '""', "running runs", "日本", "é", "\n", " "),
]


@pytest.mark.slow
def test_a_hundred_thousand_hostile_completions():
    """None raises, leaves [-1, 1] or beats the exact answer: an answer cut open, with pieces put in, or pieces alone."""
    draw = random.Random(7)
    targets = [
        call(a="running to Oslo", b=[1, {"x": None}]),
        reply("I cannot run that."),
        call(a=1.5),
    ]
    for number in range(100_000):
        target = targets[number % len(targets)]
        text = target if number % 4 else "".join(draw.choices(HOSTILE, k=draw.randint(0, 12)))
        for _ in range(draw.randint(1, 4)):
            start = draw.randint(0, len(text))
            text = text[:start] + draw.choice(HOSTILE) + text[start + draw.choice((0, 0, 1, 5, 40)) :]
        reward = similarity_reward(text, target, TOOLS)
        assert -1 <= reward.total <= score(target, target) == 1, text
        assert reward == FORMAT_ERROR or reward.total == reward.content >= 0, text


def test_texts_of_megabytes_are_scored_in_seconds():
    long = " ".join(f"word{number % 1000}" for number in range(300_000))
    began = time.perf_counter()
    assert 0 < score(reply(long + " end"), reply(long)) <= 1
    assert score(reply("y" * 1_000_000), reply("yes")) == 0
    assert score(call(a=long), call(a=long + " end")) > 0.9
    many = "\n".join(['<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'] * 20_000)
    assert score(reply(many), call(a=1)) == pytest.approx(1 / 20_000)
    assert time.perf_counter() - began < 20


@given(completion=near_valid(), answer=answers)
def test_nothing_scores_above_the_exact_answer(completion, answer):
    target = render_target(answer)
    best = score(target, target)
    assert score(completion, target) <= best
    # An empty reply is worth nothing, even where it is expected, and one without words is no reply.
    content = answer.get("content", "-").strip()
    assert best == (0 if content == "" else 1)
    says_nothing = "content" in answer and not any(letter.isalnum() or not letter.isascii() for letter in content)
    assert exact_match(target, target, TOOLS) is not says_nothing


@given(data=st.data(), expected=st.lists(calls, min_size=1, max_size=4))
def test_order_of_calls_with_different_names_is_irrelevant(data, expected):
    predicted = [{"name": name, "arguments": data.draw(arguments)} for name in "fgh"]
    shuffled = data.draw(st.permutations(predicted))
    target = render_target({"tool_calls": expected})
    one, other = (score(render_target({"tool_calls": calls}), target) for calls in (predicted, shuffled))
    assert one == pytest.approx(other, abs=1e-12)


@given(first=words | st.text(max_size=20), second=words | st.text(max_size=20))
def test_rouge_is_rouge_scores(first, second):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    official = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(second, first)["rougeL"].fmeasure
    assert rouge_l(first, second) == (1.0 if first == second else official)


@pytest.mark.parametrize(
    ("predicted", "expected", "similarity"),
    [
        ("Oslo", "OSLO", 1),  # lower-cased
        ("running", "runs", 1),  # stemmed
        ("his", "hi", 0),  # but not words of three letters
        ("a b c", "a b", 0.8),
        ("", " ", 0),  # a blank text, unless both are the same
        (" ", " ", 1),
        ("日本", "日本", 1),
        ("日本", "日本 ", 0),  # no token of rouge_score's
        (1, 1.0, 1),
        (1, True, 1),
        (1, 2, 0),
        ("1", 1, 1),  # mixed types: as str()
        ("True", True, 1),
        ("true", True, 0),
        ("None", None, 1),
        ("1.0", 1, 0),
        ([1, "a"], [1, "a"], 1),
        ([1, "a"], "[1, 'a']", 1),
        ([1.0], [1], 0),  # nested values are never compared by number
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, 0),  # nor without their order
    ],
)
def test_similarity_of_values(predicted, expected, similarity):
    assert score(call(a=predicted), call(a=expected)) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("predicted", "expected", "official", "typed"),
    [
        ("5", 5, 1, 0),
        (True, 1, 1, 0),
        ("True", True, 1, 0),
        ("{'x': 1}", {"x": 1}, 1, 0),
        ({"x": 1, "y": [2, {"a": 1, "b": 2}]}, {"y": [2, {"b": 2, "a": 1}], "x": 1}, 0, 1),
        ([1.0], [1], 0, 1),
        ([1, True], [1, 1], 0, 0),
        ([1, 2], [2, 1], 0, 0),
        (1, 1.0, 1, 1),
        (None, None, 1, 1),
        ("running to Oslo", "runs to Oslo", 1, 1),
        ("a b c", "a b", 0.8, 0.8),
    ],
)
def test_types_count_in_the_typed_reward_and_the_order_of_keys_does_not(predicted, expected, official, typed):
    made, target = call(a=predicted), call(a=expected)
    assert score(made, target) == pytest.approx(official)
    assert similarity_typed_reward(made, target, TOOLS).total == pytest.approx(typed)


@given(completion=near_valid(), answer=answers)
def test_the_typed_reward_is_best_for_the_exact_answer(completion, answer):
    target = render_target(answer)
    typed = similarity_typed_reward(completion, target, TOOLS)
    assert typed == FORMAT_ERROR or 0 <= typed.content == typed.total <= 1
    assert typed.total <= similarity_typed_reward(target, target, TOOLS).total
    assert (typed == FORMAT_ERROR) == (similarity_reward(completion, target, TOOLS) == FORMAT_ERROR)
    if "tool_calls" in answer and exact_match(completion, target, TOOLS):
        assert typed.total == 1


@given(predicted=calls, expected=calls)
def test_a_wrong_type_never_earns_more_in_the_typed_reward(predicted, expected):
    """But for the order of keys and whole numbers within lists, the typed reward is at most the official one."""
    flat = [
        {**made, "arguments": {k: v for k, v in made["arguments"].items() if not isinstance(v, list)}}
        for made in (predicted, expected)
    ]
    made, target = (render_target({"tool_calls": [one]}) for one in flat)
    assert similarity_typed_reward(made, target, TOOLS).total <= score(made, target)


def test_similarity_of_arguments_is_over_the_union_of_keys():
    assert score(call(), call()) == 1
    assert score(call(a=1), call()) == 0
    assert score(call(a=1, b=2), call(b=2, c=3)) == pytest.approx(1 / 3)


def test_each_call_takes_the_most_similar_one_that_is_left():
    def several(*arguments: dict) -> str:
        return render_target({"tool_calls": [{"name": "f", "arguments": one} for one in arguments]})

    expected = several({"a": 1}, {"a": 1, "b": 2})
    assert score(several({"a": 1, "b": 2}, {"a": 1}), expected) == 1
    # Greedy in the order of the prediction: the first takes {"a": 1}, and the second is left with {"a": 1, "b": 2}.
    assert score(several({"a": 1, "c": 0}, {"a": 1}), expected) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert score(several({"a": 1}), expected) == pytest.approx(1 / 2)
    assert score(several({"a": 1}, {"a": 1, "b": 2}, {}), expected) == pytest.approx(2 / 3)


def test_replies_and_calls():
    assert score(reply("I cannot run that"), reply("I cannot run this")) == pytest.approx(0.75)
    assert score(reply("I cannot"), call(a=1)) == 0
    assert score(call(a=1), reply("I cannot")) == 0
    assert score(reply(""), reply("I cannot")) == 0
    assert score(reply("I cannot") + "<|im_end|>", reply("I cannot")) == 1


def test_a_call_that_is_never_closed_is_neither_call_nor_reply():
    """As the official reward has it: no format error, and no score."""
    for target in (reply("I cannot"), call(a=1)):
        cut_off = similarity_reward(reply('I cannot\n<tool_call>\n{"name": "f", "argu'), target, TOOLS)
        assert (cut_off.format, cut_off.total) == (1, 0)


@pytest.mark.parametrize(
    ("completion", "target", "tools"),
    [
        ("no think block", call(), TOOLS),
        (call(unknown=1), call(), TOOLS),
        (call().replace('"f"', '"unknown"'), call(), TOOLS),
        (call().replace("{}", "[]"), call(), TOOLS),
        (call().replace("{}", "null"), call(), TOOLS),
        (None, call(), TOOLS),
        (call(), None, TOOLS),
        (call(), "a target without a think tag", TOOLS),
        (call(), call().replace("{}", "oops"), TOOLS),
        (call(), call(), None),
        (call(), call(), []),
        (call(), call(), [{"description": "no name"}]),
    ],
)
def test_format_errors(completion, target, tools):
    assert similarity_reward(completion, target, tools) == FORMAT_ERROR
    assert exact_match(completion, target, tools) is False


@pytest.mark.parametrize(
    ("completion", "target", "exact"),
    [
        (call(a=1, b={"x": [1, 2.0]}), call(b={"x": [1.0, 2]}, a=1.0), True),
        (call(a=True), call(a=1), False),
        (call(a="1"), call(a=1), False),
        (call(a="Oslo"), call(a="oslo"), False),
        (call(), reply("No."), False),
        (reply("Any words."), reply("Other words."), True),
        (reply("No."), call(), False),
        ("Sure! " + call(), call(), False),
        (reply(""), reply("No."), False),
        (reply(""), reply(""), False),
        (reply('<tool_call name="f"/>'), reply("No."), False),
        (reply('{"name": "f", "arguments": {}}'), reply("No."), False),
        (call(a="</tool_call>"), call(a="</tool_call>"), True),
    ],
)
def test_exact_match(completion, target, exact):
    assert exact_match(completion, target, TOOLS) is exact


@given(predicted=st.lists(calls, min_size=1, max_size=3), expected=st.lists(calls, min_size=1, max_size=3))
def test_exact_match_compares_calls_as_a_multiset(predicted, expected):
    def multiset(calls: list[dict]) -> Counter:
        return Counter(repr((one["name"], sorted(one["arguments"].items()))) for one in calls)

    texts = [render_target({"tool_calls": calls}) for calls in (predicted, expected)]
    if multiset(predicted) == multiset(expected):
        assert exact_match(*texts, TOOLS)
    assert exact_match(texts[0], render_target({"tool_calls": predicted[::-1]}), TOOLS)
    assert not exact_match(texts[0], render_target({"tool_calls": [*predicted, predicted[0]]}), TOOLS)
