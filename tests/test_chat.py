"""The Qwen3 format: the template letter for letter, the parser against whatever a model may write."""

import doctest
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import star.chat
from star.call_blocks import MAX_DEPTH
from star.chat import (
    CHAT_TEMPLATE,
    FORMAT_TOKENS,
    SPECIAL_TOKENS,
    TOOLS_FOOTER,
    TOOLS_HEADER,
    Completion,
    FormatError,
    parse_completion,
    parse_target,
    render_prompt,
    render_target,
    tool_parameters,
    validate_calls,
)

WEATHER = {
    "name": "get_weather",
    "description": "In °C & <words>.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "get_time", "description": "", "parameters": {}}

# Text without a tag, a lone surrogate or a newline at its ends.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30).map(str.strip)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(plain, values, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    st.fixed_dictionaries({"name": plain, "arguments": st.dictionaries(plain, json_values, max_size=3)}), max_size=3
)
pieces = st.sampled_from(
    [
        *FORMAT_TOKENS,
        *SPECIAL_TOKENS,
        *'{}[]:,"\\ \n',
        '{"name": "f", "arguments": {"a": 1}}',
        '"name": ',
        '"arguments": ',
        '"f"',
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "[" * 2000,
        '{"a":' * 2000,
        "\\ud800",
        "\ud800",
        "null",
    ]
)
hostile = st.text(max_size=40) | st.lists(pieces, max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=CHAT_TEMPLATE)


def call_text(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def completion_text(answer: str, reasoning: str = "ok") -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def test_the_examples_of_the_docstring_are_true(tokenizer):
    tool = {"name": "get_time", "description": "", "parameters": {"city": {"type": "string"}}}
    prompt = render_prompt([{"role": "user", "content": "What time is it in Oslo?"}], [tool], tokenizer)
    assert textwrap.indent(prompt, "    ") in star.chat.__doc__
    result = doctest.testmod(star.chat)
    assert result.attempted >= 4 and result.failed == 0


def test_prompt_is_qwen3s_letter_for_letter(tokenizer):
    messages = [
        {"role": "user", "content": "Weather in Oslo and the time?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Two calls.",
            "tool_calls": [
                {"name": "get_weather", "arguments": {"city": "Ås", "days": [1, True, None]}},
                {"name": "get_time", "arguments": {}},
            ],
        },
        {"role": "tool", "content": "4 °C"},
        {"role": "tool", "content": "12:00"},
    ]
    assert (
        render_prompt(messages, [WEATHER, TIME], tokenizer) == """<|im_start|>system
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "get_weather", "description": "In °C & <words>.", "parameters": """
        """{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
{"type": "function", "function": {"name": "get_time", "description": "", "parameters": {}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
Weather in Oslo and the time?<|im_end|>
<|im_start|>assistant
<think>
Two calls.
</think>

<tool_call>
{"name": "get_weather", "arguments": {"city": "Ås", "days": [1, true, null]}}
</tool_call>
<tool_call>
{"name": "get_time", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
4 °C
</tool_response>
<tool_response>
12:00
</tool_response><|im_end|>
<|im_start|>assistant
"""
    )


def test_prompt_with_a_system_message_forgets_the_reasoning_of_answered_questions(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."},
        {"role": "user", "content": "Hi"},
    ]
    chat = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_prompt(messages, [], tokenizer) == "<|im_start|>system\nBe brief.<|im_end|>\n" + chat
    with_tools = render_prompt(messages, [TIME], tokenizer)
    assert with_tools.startswith("<|im_start|>system\nBe brief.\n\n" + TOOLS_HEADER + '{"type": "function"')
    assert with_tools.endswith(TOOLS_FOOTER + "<|im_end|>\n" + chat)


def test_bare_and_wrapped_tools_give_the_same_prompt(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    wrapped = [{"type": "function", "function": WEATHER}, TIME]
    assert render_prompt(messages, wrapped, tokenizer) == render_prompt(messages, [WEATHER, TIME], tokenizer)


def test_thinking_can_be_switched_off_as_in_qwen3(tokenizer):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


ASSISTANTS = [
    {"content": "Hello", "reasoning_content": None},
    {"content": "", "reasoning_content": "\nWell.\n"},
    {"content": "\nLet me see.", "tool_calls": [{"name": "f", "arguments": {"a": "é<b>"}}]},
    {"content": None, "tool_calls": [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": 1.5}}]},
    {"content": "<think>\nold style\n</think>\n\nanswer"},
    {"content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]},
]
CHATS = [
    [{"role": "user", "content": "Q"}, assistant, follow, {"role": "assistant", **other}]
    for assistant in ({"role": "assistant", **turn} for turn in ASSISTANTS)
    for follow in (
        {"role": "user", "content": "Q"},
        {"role": "tool", "content": "R"},
        {"role": "user", "content": "<tool_response>\nR\n</tool_response>"},
        {"role": "system", "content": "S"},
    )
    for other in ASSISTANTS
]


@pytest.mark.parametrize("with_tools", [False, True])
def test_template_agrees_with_the_official_one_on_whole_chats(tokenizer, with_tools):
    """The installed trl includes Qwen3's published template."""
    trl = pytest.importorskip("trl")
    official = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    if not official.is_file():
        pytest.skip("this trl does not ship Qwen3's template")
    template, tools = official.read_text(encoding="utf-8"), [WEATHER, TIME] if with_tools else None
    for chat in [*CHATS, [{"role": "system", "content": "S"}, *CHATS[0]], [{"role": "tool", "content": "R"}]]:
        ours = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
        assert ours == tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, chat_template=template), chat


@pytest.mark.parametrize("turn", ASSISTANTS[:4])
def test_prompt_and_target_make_the_whole_chat(tokenizer, turn):
    question, target = {"role": "user", "content": "Q"}, {"role": "assistant", **turn}
    whole = tokenizer.apply_chat_template([question, target], tokenize=False)
    assert render_prompt([question], [], tokenizer) + render_target(target) + "<|im_end|>\n" == whole


def test_target_texts():
    assert render_target({"content": "Hello", "reasoning_content": None}) == "<think>\n\n</think>\n\nHello"
    two = {
        "content": None,
        "reasoning_content": "Two.",
        "tool_calls": [{"name": "f", "arguments": {"a": "Ås"}}, {"name": "g", "arguments": {}}],
    }
    assert render_target(two) == (
        '<think>\nTwo.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": "Ås"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )


@given(reasoning=plain, content=plain, tool_calls=calls, end=st.sampled_from(["", "<|im_end|>", "<|im_end|>\n"]))
def test_what_is_rendered_is_parsed_back(reasoning, content, tool_calls, end):
    text = render_target({"reasoning_content": reasoning, "content": content, "tool_calls": tool_calls})
    completion = Completion(reasoning=reasoning, tool_calls=tool_calls, content=content)
    assert parse_completion(text + end, strict=False) == completion
    if tool_calls or content[:1].isalnum():  # silence is no answer, and a bracket may begin a call
        assert parse_completion(text + end) == completion
        assert parse_target(text) == parse_target(text.removeprefix("<think>\n")) == completion


@given(text=hostile, lenient=st.booleans())
def test_any_text_is_a_completion_or_a_format_error(text, lenient):
    for candidate in (text, completion_text(text), completion_text(f"<tool_call>{text}</tool_call>")):
        for parse in (parse_completion, parse_target):
            try:
                completion = parse(candidate, strict=not lenient)
            except FormatError:
                continue
            assert all(set(call) == {"name", "arguments"} for call in completion.tool_calls)
            if not lenient:  # writing it and reading it again changes nothing
                json.dumps(completion.tool_calls, ensure_ascii=False, allow_nan=False).encode()
                again = {
                    "reasoning_content": completion.reasoning,
                    "content": completion.content,
                    "tool_calls": completion.tool_calls,
                }
                assert parse_completion(render_target(again)) == completion


def reading(text: str, *, strict: bool) -> str:
    try:
        return repr(parse_completion(text, strict=strict))  # NaN is not equal to itself
    except FormatError as error:
        return str(error)


spaces = st.text(st.sampled_from(" \n\t\x1c\u2003"), max_size=2)
bodies = plain | st.tuples(spaces, st.sampled_from(['{"name": "f", "arguments": {"a": 1}}', "{}", ""]), spaces).map(
    "".join
)
tagged = st.tuples(spaces, bodies, spaces, st.booleans(), bodies, spaces).map(
    lambda parts: (
        f"{parts[0]}<think>{parts[1]}</think>{parts[2]}"
        + (f"<tool_call>{parts[4]}</tool_call>" if parts[3] else parts[4])
        + parts[5]
    )
)


@given(text=tagged | hostile, strict=st.booleans())
def test_an_end_token_changes_nothing(text, strict):
    """Both code paths agree: a simple text is parsed by one regular expression, with an end token it never is."""
    if not text.strip().endswith("<|im_end|>"):
        assert reading(text, strict=strict) == reading(text + "<|im_end|>", strict=strict)


@pytest.mark.parametrize("value", [None, 3, b"<think></think>", ["<think></think>"], {}])
def test_a_value_that_is_not_a_string_is_a_format_error(value):
    for parse in (parse_completion, parse_target):
        with pytest.raises(FormatError):
            parse(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no think block",
        "<think>never closed",
        "<think>a</think><think>b</think>reply",
        completion_text("<tool_call>\n{}\n</tool_call>"),
        completion_text('<tool_call>\n{"name": "f"}\n</tool_call>'),
        completion_text('<tool_call>\n{"name": 1, "arguments": {}}\n</tool_call>'),
        completion_text(call_text("f", [])),
        completion_text(call_text("f", '{"a": 1}')),
        completion_text('<tool_call>\n["f", {}]\n</tool_call>'),
        completion_text('<tool_call>\n{"name": "f", "arguments": {}} {}\n</tool_call>'),
        completion_text("<tool_call>" * 2 + '{"name": "f", "arguments": {}}' + "</tool_call>" * 2),
        completion_text('<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>"),
        completion_text('<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 300 + "]" * 300 + "}}</tool_call>"),
    ],
)
def test_format_errors_in_both_readings(text):
    for strict in (True, False):
        with pytest.raises(FormatError):
            parse_completion(text, strict=strict)


@pytest.mark.parametrize(
    "text",
    [
        "Sure! " + completion_text("reply"),
        "<think>a<think>b</think>reply",
        "<think>a</think>b</think>reply",
        completion_text('<tool_call>\n{"name": "f", "argum'),
        completion_text(call_text("f", {}) + '\n<tool_call>\n{"na'),
        completion_text("reply</tool_call>"),
        completion_text("reply<|im_end|><|im_end|>"),
        completion_text(call_text("f", {"a": float("nan")})),
        completion_text('<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'),
        completion_text('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
        completion_text("\ud800"),
        completion_text(""),
        completion_text(" \n", reasoning="No tool can do that."),
        completion_text("<|im_end|>"),
        completion_text("<|endoftext|>"),
        completion_text("Done.<|im_start|>user\nThanks"),
        *map(
            completion_text,
            [
                '<tool_call name="f" a=1/>',
                '<tool_call name="f"',
                "Sure. <tool_call",
                "</tool_call>",
                '<toolcall>{"name": "f"}</toolcall>',
                '<Tool_Call>\n{"name": "f", "arguments": {}}\n</Tool_Call>',
                '< tool_call >\n{"name": "f", "arguments": {}}',
                '<functioncall> {"name": "f", "arguments": {}}',
                '<|tool_call|>[{"name": "f"}]',
                "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>",
                '[TOOL_CALLS] [{"name": "f", "arguments": {}}]',
                '{"name": "f", "arguments": {"a": 1}}',
                '{"arguments": {"a": 1}, "name": "f"}',
                ' [{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]',
                '{"name": "f", "arguments": {"a": ',
                "{'name': 'f', 'arguments': {'a': 1}}",
                '{"type": "function", "function": {"name": "f", "arguments": "{}"}}',
                '{"tool_calls": [{"name": "f"}]}',
                '```json\n{"name": "f", "arguments": {}}\n```',
                'Sure, I will:\n\n{"name": "f", "arguments": {"a": 1}}',
                'Sure.\n```json\n{"name": "f", "parameters": {"a": 1}}\n```\nDone.',
                '<tools>\n{"name": "f", "arguments": {"a": 1}}\n</tools>',
                '{{"name": "f", "arguments": {"a": 1}}}',
                '{"arguments": {"a": ',
                '{"tool": "f", "tool_input": {"a": 1}}',
                '{"action": "f", "action_input": {}}',
                "f(a=1)",
                'f.g(a="x", b=2)\nh()',
                "f()",
                "Action: f\nAction Input: {}",
                '<invoke name="f">',
                "<｜tool▁calls▁begin｜>",
                "```tool_code\nf(a=1)\n```",
                "&lt;tool_call&gt;",
                "<start_function_call>call:f{a:1}<end_function_call>",
                "<seed:tool_call>",
                "[]",
                "{}",
                "...",
                "[f(a=1)]",
                '[f(), g(a="Oslo")]',
            ],
        ),
        call_text("f", {}).join([completion_text('<tool_call name="g"/>\n'), ""]),
    ],
)
def test_format_errors_that_the_official_reward_overlooks(text):
    with pytest.raises(FormatError):
        parse_completion(text)
    parse_completion(text, strict=False)


@pytest.mark.parametrize(
    "reply",
    [
        "No.",
        "0",
        "👍",
        '{"name": "Oslo", "country": "Norway"}',
        '{"tool": "hammer", "input": "nail"}',
        'get_time() needs no argument, and get_weather(city="Oslo") needs a city.',
        'I would call it as {"name": "f", "arguments": {"a": 1}}, but it is not here.',
        "The action: none. (No tool helps.)",
        '[{"name": "Oslo"}, {"name": "Rome"}]',
        "[1] The tool_call format is described in its documentation.",
        "[f](https://example.org) says: a < b and c > d",
        "```python\nprint(call(1))\n```",
        "Oslo is the capital (of Norway).",
        "Done.<|endoftext|>",
    ],
)
def test_words_and_data_are_replies(reply):
    assert parse_completion(completion_text(reply)) == Completion("ok", [], reply)


@pytest.mark.parametrize("tag", ["</tool_call>", "<tool_call>", "<tool_call>\n{}\n</tool_call>", "<|im_end|>"])
def test_a_tag_in_an_argument_is_text(tag):
    """A call ends where its JSON object ends."""
    calls = [{"name": f"f{tag}", "arguments": {f"a{tag}": [f"x{tag}y"]}}, {"name": "g", "arguments": {"b": tag}}]
    text = render_target({"content": "Writes.", "tool_calls": calls})
    for strict in (True, False):
        assert parse_target(text, strict=strict) == Completion("", calls, "Writes.")


def test_a_tag_in_an_argument_does_not_close_its_call():
    text = completion_text('<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}')
    with pytest.raises(FormatError):
        parse_completion(text)
    assert parse_completion(text, strict=False).tool_calls == []


@given(text=tagged | hostile)
def test_what_the_strict_reading_accepts_both_readings_read_alike(text):
    for candidate in (text, completion_text(text), completion_text(f"<tool_call>{text}</tool_call>")):
        try:
            completion = parse_completion(candidate)
        except FormatError:
            continue
        assert parse_completion(candidate, strict=False) == completion
        assert completion.tool_calls or completion.content


def test_text_beside_calls_and_repeated_keys():
    call = '<tool_call>{"name": "f", "name": "g", "id": 7, "arguments": {"a": 1, "a": 2}}</tool_call>'
    completion = parse_completion(completion_text(f"Let me see.\n{call}\nDone."))
    assert completion.tool_calls == [{"name": "g", "arguments": {"a": 2}}]
    assert completion.content == "Let me see.\nDone."


def test_calls_inside_the_reasoning_are_reasoning():
    call = call_text("f", {})
    assert parse_completion(completion_text("reply", reasoning=call)) == Completion(call, [], "reply")


def test_nesting_up_to_the_limit_is_read():
    deep: Any = {}
    for _ in range(MAX_DEPTH - 1):
        deep = {"a": deep}
    assert parse_completion(completion_text(call_text("f", deep))).tool_calls[0]["arguments"] == deep
    with pytest.raises(FormatError, match="deeper"):
        parse_completion(completion_text(call_text("f", {"a": deep})))


@pytest.mark.parametrize(
    "piece", ["[", '{"a":', "<think>", "</think>", "<tool_call>", "</tool_call>", "{}", '"\\', '<tool_call>"']
)
def test_time_is_linear_in_the_length(piece):
    megabyte = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    for text in (
        megabyte,
        completion_text(f"<tool_call>{megabyte}</tool_call>"),
        completion_text("<tool_call>" + megabyte),
    ):
        with pytest.raises(FormatError):
            parse_completion(text)
    assert time.perf_counter() - started < 5  # a quadratic parser needs minutes


def test_target_without_its_opening_tag():
    call = call_text("f", {"a": 1})
    assert parse_target(f"</think>\n\n{call}") == Completion("", [{"name": "f", "arguments": {"a": 1}}], "")
    assert parse_target("Why not.\n</think>\n\nreply") == Completion("Why not.", [], "reply")
    for text in ("reply", "</think></think>reply", "</think><tool_call>{"):
        for strict in (True, False):
            with pytest.raises(FormatError):
                parse_target(text, strict=strict)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}, {"city"}),
        ({"type": "dict", "properties": {"city": {"type": "str"}}}, {"city"}),
        ({"type": "object", "properties": {"type": {}, "properties": {}}}, {"type", "properties"}),
        ({"city": {"description": "", "type": "str"}}, {"city"}),
        ({"type": {"description": "", "type": "str"}, "city": {"type": "str"}}, {"type", "city"}),
        ({"properties": {"description": "", "type": "str"}, "city": {"type": "str"}}, {"properties", "city"}),
        ({}, set()),
        (None, set()),
    ],
)
def test_both_dialects_of_parameters(parameters, names):
    tool = {"name": "f", "description": "", "parameters": parameters}
    for form in (tool, {"type": "function", "function": tool}):
        assert set(tool_parameters([form])["f"]) == names


def test_calls_must_name_a_tool_and_its_parameters():
    def validate(name: str, arguments: dict) -> None:
        validate_calls(Completion("", [{"name": name, "arguments": arguments}], ""), [WEATHER, TIME])

    validate("get_weather", {"city": 7})
    validate("get_weather", {})
    for name, arguments in [("get_weather", {"town": "Oslo"}), ("get_time", {"city": "Oslo"}), ("weather", {})]:
        with pytest.raises(FormatError):
            validate(name, arguments)


@pytest.mark.parametrize("tools", [None, "f", [None], [{}], [{"name": 1}], [{"name": "f", "parameters": ["a"]}]])
def test_broken_tools_are_a_format_error(tools):
    with pytest.raises(FormatError):
        validate_calls(Completion("", [], ""), tools)
