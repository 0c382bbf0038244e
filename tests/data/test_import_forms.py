"""The laws of importing: one conversation in every public form is read as the same messages, and any record is a row or a Reject."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from star.chat import render_target
from star.data.cleaning import check_row, fault_of
from star.data.importers import import_rows
from star.data.rows import Reject
from star.rewards.similarity import exact_match, similarity_reward

NASTY = [
    "</tool_call>", "<tool_call>", "</think>", "<think>", "'}", "')]", "\"}", "\\'", "it's", "C:\\temp", "[TOOL_CALLS]",
    "<|im_end|>", "}\n</tool_call>", "true", "null", "{\"name\": \"f\", \"arguments\": {}}", "line\nbreak", "a)], [b(", "😀",
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(NASTY)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
KEYS = st.sampled_from(["city", "from", "class", "max-price", "a.b", "items[]", "name", "arguments", "x", "größe"])
CALLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["get_weather", "Book Room"]), "arguments": st.dictionaries(KEYS, VALUES, max_size=4)}
    ),
    min_size=1,
    max_size=3,
)
REASONING = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(
    str.strip
).filter(lambda text: text and "think>" not in text)


def tools_for(calls: list[dict]) -> list[dict]:
    """Tools whose parameters have the type of the values that are passed."""
    tools = []
    for name in dict.fromkeys(call["name"] for call in calls):
        properties = {}
        for key in {key for call in calls if call["name"] == name for key in call["arguments"]}:
            values = [call["arguments"][key] for call in calls if call["name"] == name and key in call["arguments"]]
            properties[key] = (
                {"type": "string"} if all(isinstance(value, str) for value in values) else {"type": "object"}
            )
        parameters = {"type": "object", "properties": properties}
        tools.append({"name": name, "description": "", "parameters": parameters})
    return tools


def think(reasoning: str | None, text: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text


def think_without_its_opening(reasoning: str | None, text: str) -> str:
    return think(reasoning, text).removeprefix("<think>\n")


def structured(
    write_call: Callable[[dict], dict], reasoning_field: str = "reasoning_content"
) -> Callable[[list, str | None], dict]:
    return lambda calls, reasoning: {
        "role": "assistant",
        "content": None,
        "tool_calls": [write_call(call) for call in calls],
        reasoning_field: reasoning,
    }


def in_text(write: Callable[[list], str]) -> Callable[[list, str | None], dict]:
    return lambda calls, reasoning: {"from": "gpt", "value": think(reasoning, write(calls))}


def tagged(calls: list, opening: str, closing: str, write: Callable[[dict], str]) -> str:
    return "\n".join(f"{opening}{write(call)}{closing}" for call in calls)


def python_call(call: dict) -> str:
    arguments = ", ".join(f"{key}={json.dumps(value)}" for key, value in call["arguments"].items())
    return f"{call['name']}({arguments})"


def anthropic(calls: list, reasoning: str | None) -> dict:
    thoughts = [{"type": "thinking", "thinking": reasoning, "signature": "x"}] if reasoning else []
    uses = [{"type": "tool_use", "id": "t", "name": call["name"], "input": call["arguments"]} for call in calls]
    return {"role": "assistant", "content": thoughts + uses}


FORMS: dict[str, Callable[[list, str | None], dict]] = {
    "openai": structured(lambda call: {"type": "function", "id": "c", "function": call}),
    "openai, arguments as text": structured(lambda call: {"function": {**call, "arguments": json.dumps(call["arguments"])}}),
    "arguments as a Python literal": structured(lambda call: {**call, "arguments": repr(call["arguments"])}),
    "llama": structured(lambda call: {"name": call["name"], "parameters": call["arguments"]}, "reasoning"),
    "langchain": structured(lambda call: {"name": call["name"], "args": call["arguments"], "id": "c", "type": "tool_call"}),
    "langchain, older": structured(lambda call: {"name": call["name"], "kwargs": call["arguments"]}, "thinking"),
    "anthropic's key": structured(lambda call: {"type": "tool_use", "name": call["name"], "input": call["arguments"]}),
    "anthropic": anthropic,
    "think in content": lambda calls, reasoning: {**structured(dict)(calls, None), "content": think(reasoning, "")},
    "sharegpt": lambda calls, reasoning: {"from": "function_call", "value": think(reasoning, json.dumps(calls))},
    "sharegpt, python": lambda calls, reasoning: {"from": "function-call", "value": think(reasoning, repr(calls))},
    "hermes": in_text(lambda calls: tagged(calls, "<tool_call>\n", "\n</tool_call>", json.dumps)),
    "hermes, python": in_text(lambda calls: tagged(calls, "<tool_call>\n", "\n</tool_call>\n", repr)),
    "nemotron": in_text(lambda calls: f"<TOOLCALL>{json.dumps(calls)}</TOOLCALL>"),
    "mistral": in_text(lambda calls: f"[TOOL_CALLS] {json.dumps(calls)}</s>"),
    "llama 3": in_text(
        lambda calls: "<|python_tag|>"
        + "; ".join(json.dumps({"name": call["name"], "parameters": call["arguments"]}) for call in calls)
        + "<|eom_id|>"
    ),
    "bare": in_text(lambda calls: json.dumps(calls)),
    "fenced": in_text(lambda calls: f"```json\n{json.dumps(calls)}\n```"),
    "hermes, the prompt opens <think>": lambda calls, reasoning: {
        "role": "assistant",
        "content": think_without_its_opening(reasoning, tagged(calls, "<tool_call>\n", "\n</tool_call>", json.dumps)),
    },
    "seal": in_text(lambda calls: repr([{"api": call["name"], "parameters": call["arguments"], "responses": []} for call in calls])),
    "toolace": in_text(lambda calls: f"[{', '.join(map(python_call, calls))}]"),
    "toolace, lists": in_text(lambda calls: "\n".join(f"[{python_call(call)}]" for call in calls)),
    "lfm": in_text(lambda calls: f"<|tool_call_start|>[{', '.join(map(python_call, calls))}]<|tool_call_end|>"),
}  # fmt: skip


def read(*records: object) -> list[dict | Reject]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return list(import_rows(path, source="test"))


def is_rejected_or_read_as_right(row: dict) -> bool:
    """Whether cleaning rejects the row, or its target is an exact match of itself with the full reward."""
    checked = check_row(row, [fault_of])
    if isinstance(checked, Reject):
        return True
    target = render_target(checked["messages"][-1])
    return exact_match(target, target, row["tools"]) and similarity_reward(target, target, row["tools"]).total == 1


def canonical(calls: list[dict]) -> str:
    # As text, because 1 == True in Python.
    return json.dumps([[call["name"], call["arguments"]] for call in calls])


@settings(max_examples=60, deadline=None)
@given(CALLS, REASONING)
@example([{"name": "get_weather", "arguments": {"city": "</tool_call></think><think>"}}], None)
@example([{"name": "get_weather", "arguments": {}}], "The tag <tool_call> opens a call.")
def test_every_form_of_a_conversation_is_read_as_the_same_messages(calls: list[dict], reasoning: str | None) -> None:
    tools = tools_for(calls)
    ask, result = {"role": "user", "content": "Do it."}, {"role": "tool", "content": "done"}
    reply = {"role": "assistant", "content": "It is done."}
    messages = [[ask, form(calls, reasoning), result, reply] for form in FORMS.values()]
    rows = read(*({"messages": part, "tools": tools} for part in messages))
    for form, row in zip(FORMS, rows, strict=True):
        assert isinstance(row, dict), (form, row)
        _, called, *after = row["messages"]
        assert canonical(called["tool_calls"]) == canonical(calls), form
        assert (called["content"] or None, called["reasoning_content"]) == (None, reasoning), form
        assert after == [result, {**reply, "tool_calls": [], "reasoning_content": None}], form


@settings(max_examples=60, deadline=None)
@given(CALLS, st.booleans())
def test_glaives_quotes_give_the_arguments_or_a_reject(calls: list[dict], escaped: bool) -> None:
    def write(call: dict) -> str:
        written = json.dumps(call["arguments"])
        return f"""{{"name": {json.dumps(call["name"])}, "arguments": '{written.replace("'", chr(92) + "'") if escaped else written}'}}"""

    text = "".join(f"<functioncall> {write(call)} <|endoftext|>\n" for call in calls)
    [row] = read(
        {"messages": [{"role": "user", "content": "Do it."}, {"from": "gpt", "value": text}], "tools": tools_for(calls)}
    )
    # What stands in quotes within quotes can be read in two ways; then it may be refused, and never changed.
    ambiguous = re.search(r"\\\\'|'\s*\}|<|\[TOOL|```", text.replace("<functioncall>", "").replace("<|endoftext|>", ""))
    assert isinstance(row, dict) or ambiguous, row
    if isinstance(row, dict) and not ambiguous:
        assert canonical(row["messages"][-1]["tool_calls"]) == canonical(calls)


@settings(max_examples=60, deadline=None)
@given(CALLS)
def test_qwen3_coders_xml_is_read_by_the_types_of_the_tool(calls: list[dict]) -> None:
    def write(call: dict, tool: dict) -> str:
        lines = [f"<tool_call>\n<function={call['name']}>"]
        for key, value in call["arguments"].items():
            is_text = tool["parameters"]["properties"][key]["type"] == "string"
            lines.append(f"<parameter={key}>\n{value if is_text else json.dumps(value)}\n</parameter>")
        return "\n".join([*lines, "</function>\n</tool_call>"])

    tools = {tool["name"]: tool for tool in tools_for(calls)}
    text = "\n".join(write(call, tools[call["name"]]) for call in calls)
    [row] = read(
        {
            "messages": [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": text}],
            "tools": [*tools.values()],
        }
    )
    assert isinstance(row, dict), row
    assert canonical(row["messages"][-1]["tool_calls"]) == canonical(calls)


@settings(max_examples=60, deadline=None)
@given(CALLS, REASONING)
def test_every_call_that_is_kept_is_read_as_right(calls: list[dict], reasoning: str | None) -> None:
    """In `test_readable_targets.py` is the same law for the other records and the generators."""
    # Any schema, so that nearly all values are accepted.
    tools = [
        {**tool, "parameters": {"type": "object", "properties": {key: {} for key in tool["parameters"]["properties"]}}}
        for tool in tools_for(calls)
    ]
    ask = {"role": "user", "content": "Do it."}
    rows = read(*({"messages": [ask, form(calls, reasoning)], "tools": tools} for form in FORMS.values()))
    assert all(is_rejected_or_read_as_right(row) for row in rows if isinstance(row, dict))


PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"name": "f"', ", ", '"arguments": {}', "f(", "a=1",
     ")", "'", '"', "\\", "[TOOL_CALLS]", "<function=f>", "</function>", "<parameter=a>", "<|python_tag|>", "```", "<tools>", "</tools>",
     "USER:", "ASSISTANT:", "FUNCTION RESPONSE:", "<functioncall>", "<tool_response>", "</tool_response>", "\n", "<|endoftext|>",
     "[BEGIN OF AVAILABLE TOOLS]", "[END OF AVAILABLE TOOLS]", "[BEGIN OF QUERY]", "[END OF QUERY]", "following functions {", "x"]
)  # fmt: skip
MESS = st.lists(PIECES, max_size=12).map("".join)
NAMES = st.sampled_from(
    ["role", "from", "content", "value", "name", "arguments", "args", "type", "text", "input", "function", "parameters", "tool_calls",
     "function_call", "api", "thinking", "tool_use", "tool_result", "assistant", "user", "tool", "system", "f", "properties"]
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS | MESS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "tool", "system", "function_call", "nobody"]),
        "content": MESS | ANYTHING,
    },
    optional={
        "tool_calls": ANYTHING,
        "function_call": ANYTHING,
        "reasoning_content": ANYTHING,
        "additional_kwargs": ANYTHING,
    },
)
RECORDS = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE, max_size=4) | ANYTHING, "conversations": st.lists(MESSAGE, max_size=3), "tools": ANYTHING | MESS,
        "functions": ANYTHING, "query": ANYTHING | MESS, "answers": ANYTHING | MESS, "calling": ANYTHING, "system": ANYTHING | MESS,
        "chat": MESS, "instruction": MESS, "output": MESS, "metadata": ANYTHING, "id": ANYTHING, "kind": ANYTHING,
    },
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=8), st.booleans())
def test_any_record_is_a_row_or_a_reject(records: list, every_turn: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        # Not a list first, which would be a file that is one list.
        path.write_text("{}\n" + "".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        results = list(import_rows(path, source="test", every_turn=every_turn))
        assert len(results) > len(records)
        rows = [result for result in results if isinstance(result, dict)]
        # What was imported is imported as it is.
        again = Path(folder) / "again.jsonl"
        again.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        assert list(import_rows(again, source="other")) == rows


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "city": "Oslo"},
        {"name": "f", "arguments": [1]},
        {"name": "f", "arguments": "Oslo"},
        {"name": "f", "parameters": {"a": 1}, "args": {"a": 2}},
        {"function": {"name": "f"}, "values": 1, "arguments": 3},
        {"type": "custom", "custom": {"name": "f", "input": "text"}},
    ],
)
def test_a_call_whose_arguments_are_not_found_is_a_reject(call: dict) -> None:
    tool = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    for record in (
        {"query": "Do it.", "answers": [call], "tools": [tool]},
        {
            "messages": [{"role": "user", "content": "Do it."}, {"role": "assistant", "tool_calls": [call]}],
            "tools": [tool],
        },
    ):
        [reject] = read(record)
        assert isinstance(reject, Reject), reject
