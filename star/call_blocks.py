"""Reads the `<tool_call>` blocks of an answer, and recognises a reply that is a call without them.

A call ends where its JSON object ends, so the closing tag in this text is only text:

    <tool_call>
    {"name": "write", "arguments": {"text": "end with </tool_call>"}}
    </tool_call>

A reply may be the beginning of a call in another format, or of one that went wrong. Such a text is no answer in words.
Taken for one, it would count as the right answer where no tool should be called:

    <tool_call name="get_time" city="Oslo"/>              # an opening tag in another spelling
    {"name": "get_time", "arguments": {"city": "Oslo"}}   # a call without its tags
    [get_time(city="Oslo")]                               # a call as Python

A sentence that quotes a call or names a tool stays a reply.
"""

import json
import re
from collections.abc import Callable
from typing import Any

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
# Arguments nested deeper than this are a format error, so that all later code can write, copy and compare them without
# a RecursionError.
MAX_DEPTH = 100

# A tag of calls, in the formats that models are trained on: Qwen, Hermes, glaive, DeepSeek, Mistral, Llama, Gemma, Claude and others.
CALL_TAG = re.compile(
    r"(?:<|&lt;)[/|\uff5c\s]{0,4}(?:\w{1,20}[:_])?(?:tool|function)[_\u2581 -]?call|<[|\uff5c]/?tool[\u2581_]|\[/?TOOL_CALLS\]"
    r"|</?(?:function|parameter)\s*=|<\|python_(?:tag|start)\|>|<\|action_start\|>|<(?:antml:)?invoke\b|</?(?:tool_use|use_mcp_tool)\b|<arg_key>"
    r"|<\|channel\|>\s*commentary|```tool_(?:call|code|use)",
    re.IGNORECASE,
)
# How calls name the tool and hold its arguments.
NAME_KEYS = ("name", "api", "tool_name", "function_name", "tool", "action")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "kwargs", "input", "tool_input", "action_input")
_FENCE = re.compile(r"```\w*+\s*+")
# A line that begins a call as JSON or Python or in ReAct's words, also one that is cut off. A call that a sentence quotes is in the middle
# of its line.
_CALL_ON_A_LINE = re.compile(
    rf"""^[ \t]*+(?:{_FENCE.pattern})?(?:"""
    r"""[\[{ \t]{0,4}\{\s*+(?:["']type["']\s*+:\s*+["']function["']\s*+,\s*+)?"""
    r"""(?:["'](?:name|function)["']\s*+:\s*+["'][^"'\n]*+["']\s*+,\s*+["'](?:arguments|parameters)["']\s*+:"""
    r"""|["']arguments["']\s*+:\s*+\{)"""
    r"""|\[\s*+[\w.-]++\((?:\w++\s*+=|\)\s*+[],])"""
    r"""|Action:[^\n]*+\n\s*+Action Input:)""",
    re.MULTILINE,
)
_MARKS = re.compile(r"[<\[{`(&]|Action:")
_PYTHON_CALL = re.compile(r"[^\W\d][\w.]*+\(\s*+(?:\w++\s*+=[^=]|\))")

JSON_SPACE = " \t\n\r"
_skip_space: Callable[..., re.Match[str]] = re.compile(f"[{JSON_SPACE}]*+").match  # type: ignore[assignment]
_decode_json = json.JSONDecoder().raw_decode
_NOT_JSON = object()


class FormatError(ValueError):
    """The text breaks the tool-call format. The message says how, without quoting the text."""


def split_calls(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the calls of the `<tool_call>` blocks, and the texts around the blocks, of which there is one more.

    The time is linear. A lazy regular expression would be quadratic in the number of tags that are never closed.
    """
    calls, around, position = [], [], 0
    while (start := text.find(CALL_OPEN, position)) >= 0:
        begin = start + len(CALL_OPEN)
        value, end = _decode_value(text, _skip_space(text, begin).end())
        # Searched behind the object, because a string in it may hold the tag as well.
        if (close := text.find(CALL_CLOSE, end if isinstance(value, dict) else begin)) < 0:
            break
        whole = not text[end:close].strip(JSON_SPACE)
        calls.append(_check_call(value if whole else _NOT_JSON, length=close - begin))
        around.append(text[position:start])
        position = close + len(CALL_CLOSE)
    around.append(text[position:])
    return calls, around


def parse_block(block: str) -> dict[str, Any]:
    """Returns the call in the text between `<tool_call>` and `</tool_call>`. Raises FormatError without one."""
    block = block.strip(JSON_SPACE)
    value, end = _decode_value(block, 0)
    return _check_call(value if end == len(block) else _NOT_JSON, length=len(block))


def _decode_value(text: str, begin: int) -> tuple[Any, int]:
    """Returns the JSON value at `begin` and the position behind it; _NOT_JSON and `begin` without one."""
    try:
        return _decode_json(text, begin)
    except (ValueError, RecursionError):
        # Not JSON, nested too deep, or an integer with more digits than Python accepts.
        return _NOT_JSON, begin


def _check_call(value: Any, *, length: int) -> dict[str, Any]:
    """Returns the call that the JSON value of a `<tool_call>` block is; `length` is the block's number of characters."""
    if value is _NOT_JSON:
        raise FormatError("a <tool_call> block is not JSON")
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        raise FormatError("a <tool_call> block is not an object with a name")
    if not isinstance(arguments := value.get("arguments"), dict):
        raise FormatError("the arguments of a call are not an object")
    if length > 2 * MAX_DEPTH:  # a shorter text cannot be nested so deep
        _require_max_depth(arguments)
    return {"name": name, "arguments": arguments}


def _require_max_depth(arguments: dict[str, Any]) -> None:
    """Raises FormatError for arguments nested deeper than MAX_DEPTH. Goes level by level, without recursion."""
    level: list[Any] = [arguments]
    for _ in range(MAX_DEPTH):
        nodes = [node.values() if isinstance(node, dict) else node for node in level]
        level = [child for children in nodes for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise FormatError(f"the arguments of a call are nested deeper than {MAX_DEPTH}")


def begins_call(reply: str) -> bool:
    """Whether a reply holds the tag of a call, or a line that begins one, or is one as a whole. Takes linear time."""
    # Most replies have none of these marks, and finding that out is cheaper than the expressions.
    if not _MARKS.search(reply):
        return False
    return bool(CALL_TAG.search(reply) or _CALL_ON_A_LINE.search(reply)) or _is_bare_call(reply.strip())


def _is_bare_call(reply: str) -> bool:
    if _PYTHON_CALL.match(reply) and reply.endswith(")"):
        return True
    if fence := _FENCE.match(reply):
        reply = reply[fence.end() :]
    if not reply.startswith(("{", "[")):
        return False
    try:
        value, _ = _decode_json(reply)
    except (ValueError, RecursionError):
        return False
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(map(_is_call, listed))


def _is_call(value: Any) -> bool:
    """Whether a JSON value is a call: bare, in OpenAI's or an agent's form, or a message that holds calls."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("tool_calls"), list):
        return True
    inner = value.get("function")
    call = inner if isinstance(inner, dict) else value
    if not any(isinstance(call.get(key), str) for key in (*NAME_KEYS, "function")):
        return False
    # The other keys are also words of ordinary data, whose values are rarely objects.
    return not call.keys().isdisjoint(ARGUMENT_KEYS[:2]) or any(
        isinstance(call.get(key), dict) for key in ARGUMENT_KEYS
    )
