"""Public data sets as their authors write them, with rows of our own: read by name, and rejected where they are damaged."""

import json
from pathlib import Path

import pytest

from star.chat import TOOLS_FOOTER, TOOLS_HEADER
from star.data.importers import import_rows
from star.data.rows import Reject, is_answered

TOOL = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
WRAPPED = {"type": "function", "function": TOOL}
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}
ASK = {"role": "user", "content": "Weather in Oslo?"}


def imported(folder: Path, *records: object) -> list[dict | Reject]:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return list(import_rows(path, source="test"))


def said(content: object, **fields: object) -> dict:
    return {"messages": [ASK, {"role": "assistant", "content": content, **fields}], "tools": [TOOL]}


HERMES_SYSTEM = (
    "You are a function calling model. Signatures are within <tools></tools> XML tags. Here are the tools: <tools> {tools} </tools>"
    " Use this schema for each call: {{'title': 'FunctionCall', 'properties': {{'name': {{'type': 'string'}}}}}}\n"
    "<tool_call>\n{{'arguments': <args-dict>, 'name': <function-name>}}\n</tool_call>"
)


@pytest.mark.parametrize(
    "tools", [repr([WRAPPED]), json.dumps([WRAPPED]), json.dumps(WRAPPED) + "\n" + json.dumps({**TOOL, "name": "g"})]
)
@pytest.mark.parametrize("field", [{}, {"tools": None}])
def test_hermes(tmp_path: Path, tools: str, field: dict) -> None:
    turns = [
        {"from": "system", "value": HERMES_SYSTEM.format(tools=tools)},
        {"from": "human", "value": "Weather in Oslo?"},
        {"from": "gpt", "value": "<tool_call>\n{'arguments': {'city': 'Oslo'}, 'name': 'get_weather'}\n</tool_call>\n"},
        {
            "from": "tool",
            "value": "<tool_response>\n{'weather': 'rain'}\n</tool_response>\n<tool_response>\nwet\n</tool_response>",
        },
        {"from": "gpt", "value": "It rains."},
    ]
    [row] = imported(tmp_path, {"conversations": turns, **field})
    assert row["tools"][0]["name"] == "get_weather"
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    assert row["messages"][1]["tool_calls"] == [OSLO]
    assert [message["content"] for message in row["messages"][2:]] == ["{'weather': 'rain'}", "wet", "It rains."]
    assert row["kind"] == "response"


def test_hermes_does_not_show_its_tools_twice(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": HERMES_SYSTEM.format(tools=[WRAPPED])}, ASK, {"from": "gpt", "value": "No."}]
    repeated, own = imported(
        tmp_path,
        {"conversations": turns, "tools": json.dumps([WRAPPED])},
        {"conversations": [{"from": "system", "value": "Be brief."}, *turns[1:]], "tools": json.dumps([WRAPPED])},
    )
    assert [message["role"] for message in repeated["messages"]] == ["user", "assistant"]
    assert [message["role"] for message in own["messages"]] == ["system", "user", "assistant"]


GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
GLAIVE_CALL = """<functioncall> {"name": "get_weather", "arguments": '{"city": "Oslo"}'} <|endoftext|>"""


@pytest.mark.parametrize("between", ["\n\n\n", " "])
def test_glaive(tmp_path: Path, between: str) -> None:
    turns = [
        "USER: Weather in Oslo?",
        f"ASSISTANT: {GLAIVE_CALL}",
        'FUNCTION RESPONSE: {"weather": "rain"}',
        "ASSISTANT: Rain. <|endoftext|>",
    ]
    system = GLAIVE_SYSTEM + json.dumps(TOOL, indent=4) + "\n\n" + json.dumps({**TOOL, "name": "other"}, indent=4)
    without = "SYSTEM: You are a helpful assistant, with no access to external functions."
    row, plain = imported(
        tmp_path,
        {"system": system, "chat": between.join(turns)},
        {"system": without, "chat": "USER: Hi\n\n\nASSISTANT: Hello. <|endoftext|>"},
    )
    assert [tool["name"] for tool in row["tools"]] == ["get_weather", "other"]
    assert [(message["role"], message["content"]) for message in row["messages"]] == [
        ("user", "Weather in Oslo?"),
        ("assistant", None),
        ("tool", '{"weather": "rain"}'),
        ("assistant", "Rain."),
    ]
    assert row["messages"][1]["tool_calls"] == [OSLO]
    assert (plain["tools"], plain["messages"][0]["content"]) == ([], without.removeprefix("SYSTEM: "))


@pytest.mark.parametrize("quoted", ["it's", r"it\'s"])
def test_glaive_as_sharegpt(tmp_path: Path, quoted: str) -> None:
    turns = [
        {"from": "system", "value": GLAIVE_SYSTEM.removeprefix("SYSTEM: ") + json.dumps(TOOL)},
        {"from": "human", "value": "Weather there?"},
        {
            "from": "function-call",
            "value": """{"name": "get_weather", "arguments": '{"city": "QUOTED \\\\d"}'}""".replace("QUOTED", quoted),
        },
        {"from": "function-response", "value": '{"weather": "rain"}'},
        {"from": "gpt", "value": "Rain.<|endoftext|>"},
    ]
    [row] = imported(tmp_path, {"conversations": turns})
    assert row["messages"][1]["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "it's \\d"}}]
    assert [message["content"] for message in row["messages"][2:]] == ['{"weather": "rain"}', "Rain."]


HAMMER = (
    "[BEGIN OF AVAILABLE TOOLS]\n{tools}\n[END OF AVAILABLE TOOLS]\n\n[BEGIN OF FORMAT INSTRUCTION]\n```\n[...]\n```\n"
    "[END OF FORMAT INSTRUCTION]\n\n{conversation}"
)


def test_hammers_files(tmp_path: Path) -> None:
    tool = {"name": "get_weather", "description": "", "parameters": {"city": {"type": "str", "description": ""}}}
    query = "[BEGIN OF QUERY]\nWeather in Oslo?\n[END OF QUERY]\n"
    chat = "<|im_end|>\n<|im_start|>user\nAnd Oslo?<|im_end|>\n<|im_start|>agent\nSure.<|im_end|>\n"
    turns = [
        ASK,
        {"role": "agent", "content": "Sure."},
        {"role": "assistant", "content": f"```[{json.dumps(OSLO)}]```"},
        ASK,
    ]
    output = f"```\n[{json.dumps(OSLO)}]\n```"
    asked, refused, later, listed, unread = imported(
        tmp_path,
        {"instruction": HAMMER.format(tools=json.dumps([tool]), conversation=query), "input": "", "output": output},
        {
            "instruction": HAMMER.format(tools=json.dumps([tool]), conversation=query),
            "input": "",
            "output": "```\n[]\n```",
        },
        {"instruction": HAMMER.format(tools=json.dumps([tool]), conversation=chat), "input": "", "output": output},
        {"query": turns, "tools": [tool], "answers": [OSLO]},
        {"instruction": "Summarise this.", "input": "A text.", "output": "Short."},
    )
    assert asked["messages"][0]["content"] == "Weather in Oslo?"
    assert not is_answered(refused) and refused["unanswered"]
    assert [message["role"] for message in later["messages"]] == ["user", "assistant", "assistant"]
    assert [message["content"] for message in listed["messages"]] == [
        "Weather in Oslo?",
        "Sure.",
        None,
        "Weather in Oslo?",
        None,
    ]
    for row in (asked, later, listed):
        assert row["messages"][-1]["tool_calls"] == [OSLO]
    assert listed["messages"][2]["tool_calls"] == [OSLO]
    assert "[BEGIN OF AVAILABLE TOOLS]" in unread.detail


def test_seal_tools_needs_its_tools(tmp_path: Path) -> None:
    record = {
        "query": "Weather in Oslo?",
        "calling": [{"api": "get_weather", "parameters": {"city": "Oslo"}, "responses": ["API_call_0"]}],
    }
    reject, row = imported(tmp_path, record, {**record, "tools": [TOOL]})
    assert "must have `tools`" in reject.detail
    assert row["messages"][-1]["tool_calls"] == [OSLO]


@pytest.mark.parametrize(
    "answers", [{}, {"answers": None}, {"answers": " "}, {"function_calls": [OSLO]}, {"answers": "none"}]
)
def test_only_an_empty_list_means_that_no_tool_is_called(tmp_path: Path, answers: dict) -> None:
    reject, empty, text = imported(
        tmp_path,
        {"query": "Sing!", "tools": [TOOL], **answers},
        {"query": "Sing!", "tools": [TOOL], "answers": []},
        {"query": "Sing!", "tools": [TOOL], "answers": "[]"},
    )
    assert "`answers`" in reject.detail
    assert not is_answered(empty) and empty["unanswered"] and text["messages"] == empty["messages"]


def test_anthropics_blocks(tmp_path: Path) -> None:
    schema = {"name": "get_weather", "description": "", "input_schema": TOOL["parameters"]}
    use = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "Rain."}]}
    messages = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And Rome?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "One moment."}]},
    ]  # fmt: skip
    [row] = imported(
        tmp_path, {"system": [{"type": "text", "text": "Be brief."}], "messages": messages, "tools": [schema]}
    )
    assert [(message["role"], message["content"]) for message in row["messages"]] == [
        ("system", "Be brief."),
        ("user", "Weather in Oslo?"),
        ("assistant", "I look."),
        ("tool", "Rain."),
        ("user", "And Rome?"),
        ("assistant", "One moment."),
    ]
    assert row["messages"][2]["tool_calls"] == [OSLO]


def test_text_parts_are_joined_and_other_parts_are_a_reject(tmp_path: Path) -> None:
    text = [{"type": "text", "text": "Weather"}, {"type": "text", "text": "in Oslo?"}]
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [OSLO]}
    row, *rejects = imported(
        tmp_path,
        {"messages": [{"role": "user", "content": text}, answer], "tools": [TOOL]},
        {"messages": [{"role": "user", "content": [*text, image]}, answer], "tools": [TOOL]},
        {"messages": [{"role": "user", "content": {"text": "Weather?"}}, answer], "tools": [TOOL]},
        said([{"type": "input_audio", "input_audio": {"data": ""}}]),
    )
    assert row["messages"][0]["content"] == "Weather\nin Oslo?"
    assert [
        "image_url" in rejects[0].detail,
        "list of parts" in rejects[1].detail,
        "input_audio" in rejects[2].detail,
    ] == [True] * 3


TOOLACE_SYSTEM = (
    "Here is a list of functions in JSON format that you can invoke:\n{tools}. \n"
    "Put it in the format of [func1(name=value), func2(x)]\n"
)
FLIGHTS = {
    "name": "Find Flights (v2)",
    "description": "",
    "parameters": {
        "type": "dict",
        "properties": {key: {"type": "string"} for key in ("from", "class", "max-price", "a.b")},
    },
}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[Find Flights (v2)(from="Oslo", class="business")]', [{"from": "Oslo", "class": "business"}]),
        (
            '[Find Flights (v2)(max-price=200, a.b={"x": [1, (2, true)], "y": null})]',
            [{"max-price": 200, "a.b": {"x": [1, [2, True]], "y": None}}],
        ),
        (
            """[Find Flights (v2)(from='it\\'s ")] [x(')][Find Flights (v2)(from="B")]""",
            [{"from": "it's \")] [x("}, {"from": "B"}],
        ),
        ("Sure! [Find Flights (v2)(from='A')]", [{"from": "A"}]),
        ("[Find Flights (v2)()]", [{}]),
    ],
)
def test_toolace_names_parameters_as_it_likes(tmp_path: Path, text: str, calls: list) -> None:
    turns = [{"from": "user", "value": "Fly!"}, {"from": "assistant", "value": text}]
    of_system, of_field = imported(
        tmp_path,
        {"system": TOOLACE_SYSTEM.format(tools=json.dumps([FLIGHTS])), "conversations": turns},
        {"conversations": turns, "tools": [FLIGHTS]},
    )
    for row in (of_system, of_field):
        assert [call["arguments"] for call in row["messages"][-1]["tool_calls"]] == calls
        assert {call["name"] for call in row["messages"][-1]["tool_calls"]} == {"Find Flights (v2)"}


@pytest.mark.parametrize(
    "text",
    [
        '[get_weather(city="Oslo"',
        '[get_weather("Oslo")]',
        "[get_weather(city=Oslo)]",
        '[get_weather(city="Oslo", city="Rome")]',
        '[get_weather(city="Oslo")] and [get_weather(city="Rome")]',
        '[unknown("Oslo")]',
        "<tool_call>\n{broken\n</tool_call>",
        f"<tool_call>{json.dumps(OSLO)}",
        '<tool_call name="get_weather"/>',
        "Done.</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</function>\n</tool_call>",
        "<function=get_weather>{",
        "[TOOL_CALLS] get_weather",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city"',
        '<|python_tag|>brave_search.call(query="Oslo")',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function",
        '<invoke name="get_weather">',
        "<|channel|>commentary to=functions.get_weather",
        "<seed:tool_call><function=get_weather><parameter=city>Oslo</parameter></function></seed:tool_call>",
        "<start_function_call>call:get_weather{city:<escape>Oslo<escape>}<end_function_call>",
        "<use_mcp_tool><tool_name>get_weather</tool_name></use_mcp_tool>",
        '{"name": "get_weather", "arguments": {"city": "Oslo"',
        'Sure: {"name": "get_weather", "arguments": {"city": "Oslo"}}',
        f"I call this:\n```json\n{json.dumps(OSLO)}\n```",
        'Sure: {"arguments": {"city": "Oslo"}, "name": "get_weather"}',
        'I call get_weather(city="Oslo") now.',
        "I call this:\nget_weather()",
        '```python\nprint(get_weather(city="Oslo"))\n```',
        'Thought: the weather.\nAction: get_weather\nAction Input: {"city": "Oslo"}',
        '{"get_weather": {"city": "Oslo"}}',
        "[]",
        "```\n[]\n```",
        "<think>No end.",
        "One </think> and <think>two</think>.",
        {"text": "Hi"},
    ],
)
def test_an_answer_that_begins_what_cannot_be_read_is_a_reject(tmp_path: Path, text: object) -> None:
    target, turn = imported(
        tmp_path,
        said(text),
        {
            "messages": [ASK, {"role": "assistant", "content": text}, ASK, {"role": "assistant", "content": "Ok."}],
            "tools": [TOOL],
        },
    )
    assert isinstance(target, Reject), target
    assert isinstance(turn, Reject), turn


@pytest.mark.parametrize(
    "text",
    [
        "Use [a link](https://example.com) (or not).",
        "[Note (important)] I cannot.",
        '{"weather": "rain", "name": "Oslo"}',
        "1. `city`\n2. {days}",
        "[1, 2, 3]",
        "get_weather (the tool) needs a city.",
        "get_weather() needs a city.",
        "Use `get_weather()`, please.",
        " Leading and trailing blanks. ",
        "x < y and <b>bold</b>",
    ],
)
def test_a_reply_that_only_looks_odd_stays_as_it_is(tmp_path: Path, text: str) -> None:
    [row] = imported(tmp_path, said(text))
    assert row["messages"][-1] == {"role": "assistant", "content": text, "tool_calls": [], "reasoning_content": None}


@pytest.mark.parametrize(
    ("content", "fields", "reads"),
    [
        ("<think>\nHm.\n</think>\n\nNo.", {}, ("No.", [], "Hm.")),
        ("Hm.\n</think>\n\nNo.", {}, ("No.", [], "Hm.")),
        ("<think>\nHm.\n</think>\n\n", {"tool_calls": [OSLO]}, (None, [OSLO], "Hm.")),
        ("<think>\n\n</think>\n\n", {"tool_calls": [OSLO]}, (None, [OSLO], None)),
        ("<think>Hm.</think>", {"tool_calls": [OSLO], "reasoning_content": "Hm."}, (None, [OSLO], "Hm.")),
        (f"<tool_call>{json.dumps(OSLO)}</tool_call>", {"tool_calls": [OSLO]}, (None, [OSLO], None)),
        ("No.", {"reasoning": "Hm."}, ("No.", [], "Hm.")),
        (None, {"tool_calls": [OSLO], "tool_plan": "Hm."}, (None, [OSLO], "Hm.")),
        (json.dumps(OSLO) + ";\n" + json.dumps(OSLO), {}, (None, [OSLO, OSLO], None)),
        ('get_weather\n{"city": "Oslo"}', {}, (None, [OSLO], None)),
        ('{"action": "get_weather", "action_input": {"city": "Oslo"}}', {}, (None, [OSLO], None)),
        (
            None,
            {"tool_calls": [{"name": "get_weather", "arguments": json.dumps(json.dumps({"city": "Oslo"}))}]},
            (None, [OSLO], None),
        ),
        (None, {"function_call": json.dumps(OSLO)}, (None, [OSLO], None)),
        (None, {"additional_kwargs": {"tool_calls": [{"function": OSLO}]}}, (None, [OSLO], None)),
        (None, {"refusal": "I will not."}, ("I will not.", [], None)),
    ],
)
def test_reasoning_and_calls_are_found_where_they_are_written(
    tmp_path: Path, content: str, fields: dict, reads: tuple
) -> None:
    [row] = imported(tmp_path, said(content, **fields))
    answer = row["messages"][-1]
    assert (answer["content"], answer["tool_calls"], answer["reasoning_content"]) == reads


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (said("<think>One.</think>", tool_calls=[OSLO], reasoning_content="Two."), "one reasoning in its content"),
        (said('<tool_call>{"name": "f", "arguments": {}}</tool_call>', tool_calls=[OSLO]), "other calls"),
        (said("Ok.", function_calls=[OSLO]), "`function_calls`"),
        (said(None, function_calls='get_weather(city="Oslo")'), "`function_calls`"),
        ({"messages": said("Ok.")["messages"], "template": {"xml_tools": [TOOL]}}, "`xml_tools`"),
        ({"prompt": [ASK], "completion": []}, "it has `prompt`, `completion`"),
        (said("Ok.", function_call="get_weather"), "`function_call`"),
        (said('{"city": "Oslo"}', recipient="functions.get_weather"), "functions.get_weather"),
        ({"messages": [ASK, {"role": "assistant", "output": "Ok."}], "tools": [TOOL]}, "neither `content` nor calls"),
        ({"messages": [{"role": "user", "text": "Hi"}, said("Ok.")["messages"][1]], "tools": [TOOL]}, "must have `content`"),
        ({"messages": said("Ok.")["messages"], "multiple_tools": [TOOL]}, "`multiple_tools`"),
        ({"messages": [ASK, {"role": "function_call", "content": "[]"}], "tools": [TOOL]}, "calls and nothing else"),
        ({"messages": [{"role": "tool", "content": "<tool_response>\nx"}, said("Ok.")["messages"][1]], "tools": []}, "<tool_response>"),
        ({"system": GLAIVE_SYSTEM + '{"name": "f", broken', "chat": "USER: Hi\n\nASSISTANT: Ok."}, "lists tools that cannot be read"),
        ({"system": "<tools>nothing</tools>", "messages": said("Ok.")["messages"]}, "within <tools>"),
        ({"chat": "Hi there"}, "must begin with USER:"),
        ({"chat": "USER: Hi\n\nASSISTANT: Ok. <|endoftext|> And more."}, "<|endoftext|>"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_a_reject(tmp_path: Path, record: dict, says: str) -> None:
    [reject] = imported(tmp_path, record)
    assert isinstance(reject, Reject), reject
    assert says in reject.detail


def test_calls_in_messages_of_their_own_are_one_turn(tmp_path: Path) -> None:
    """ms-swift writes each of several parallel calls as a message."""
    calls = [OSLO, {"name": "get_weather", "arguments": {"city": "Rome"}}]
    written = [{"role": "Tool Call", "content": json.dumps(call)} for call in calls]
    alone, behind_words = imported(
        tmp_path,
        {"messages": [ASK, *written], "tools": [TOOL]},
        {"messages": [ASK, {"role": "assistant", "content": "I look."}, *written], "tools": [TOOL]},
    )
    for row, content in ((alone, None), (behind_words, "I look.")):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][-1]["tool_calls"] == calls
        assert row["messages"][-1]["content"] == content
        assert row["kind"] == "parallel"


def test_the_text_before_the_templates_tools_stays(tmp_path: Path) -> None:
    system = f"Today is Monday.\n\n{TOOLS_HEADER}{json.dumps(TOOL)}{TOOLS_FOOTER}"
    messages = [{"role": "system", "content": system}, *said("Ok.")["messages"]]
    for record in ({"messages": messages}, {"messages": messages, "tools": [TOOL]}):
        [row] = imported(tmp_path, record)
        assert row["messages"][0] == {"role": "system", "content": "Today is Monday."}
        assert [tool["name"] for tool in row["tools"]] == ["get_weather"]


def test_a_list_of_anything_else_in_a_system_message_is_no_list_of_tools(tmp_path: Path) -> None:
    system = {"role": "system", "content": 'Users: [{"name": "Ann"}, {"name": "Bob"}]'}
    [row] = imported(tmp_path, {"messages": [system, *said("Ok.")["messages"]]})
    assert row["messages"][0] == system
    assert row["tools"] == []
