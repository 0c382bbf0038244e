"""Reads the messages and calls of public data sets into row form: OpenAI's, ShareGPT's, Hermes' and ToolACE's.

    message_of({"from": "human", "value": "Hi"})            # ShareGPT: {"role": "user", "content": "Hi"}
    calls_in_text('[Get Weather(city="Oslo")]', {"Get Weather"})
                                                            # ToolACE: [{"name": "Get Weather", "arguments": {"city": "Oslo"}}]

ToolACE lists its tools as JSON inside the system prompt and writes calls as above. That text is parsed as Python literals; it is
never executed.
"""

import ast
import json
from typing import Any

from star.chat import CALL_OPEN, THINK_OPEN, FormatError, parse_completion
from star.errors import InputError

ROLES = {
    "human": "user", "gpt": "assistant", "model": "assistant", "function_call": "assistant", "function-call": "assistant",
    "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
MAX_CALLS_CHARACTERS = 20_000  # a longer text is not parsed as ToolACE's calls


def message_of(written: Any) -> dict:
    """Returns one message in row form.

    Raises:
        InputError: it is not an object, or its calls cannot be read.
    """
    if not isinstance(written, dict):
        raise InputError(f"a message must be an object, got {str(written)[:80]}")
    role = written.get("role", written.get("from"))
    content = written.get("content", written.get("value"))
    called_by_role = role in ("function_call", "function-call")
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if role != "assistant":
        return {
            "role": role,
            "content": content if content is None or isinstance(content, str) else json.dumps(content),
        }
    calls = [call_of(call) for call in list_field(written, "tool_calls")]
    if isinstance(single := written.get("function_call"), dict):
        calls.append(call_of(single))
    # Here the calls are JSON text in the message's own content.
    if called_by_role:
        return assistant_message(
            None, [call_of(part) for part in _as_list(parse_json_field(content, "function_call"))], None
        )
    reasoning = written.get("reasoning_content")
    # Beside calls in a field of their own, tags in the content are only text.
    if not calls and isinstance(content, str) and CALL_OPEN in content:
        content, calls, said = _parse_hermes_calls(content)
        reasoning = reasoning or said
    return assistant_message(content, calls, reasoning)


def assistant_message(content: str | None, calls: list[dict], reasoning: str | None) -> dict:
    """Returns a message of the assistant in row form."""
    return {"role": "assistant", "content": content, "tool_calls": calls, "reasoning_content": reasoning}


def call_of(call: Any) -> dict:
    """Returns {"name", "arguments"} of a call in OpenAI's form or bare. The arguments may be JSON text.

    Raises:
        InputError: it is not an object, or its arguments are text that is not JSON.
    """
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict):
        raise InputError(f"a call must be an object, got {str(call)[:80]}")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json_field(arguments, "arguments") if arguments.strip() else {}
    return {"name": inner.get("name"), "arguments": {} if arguments is None else arguments}


def list_field(record: dict, key: str) -> list:
    """Returns the list at `key`. It may be written as JSON text; a missing one is empty.

    Raises:
        InputError: there is something else at `key`.
    """
    value = [] if record.get(key) is None else record[key]
    if isinstance(value, str):
        value = parse_json_field(value, key) if value.strip() else []
    if not isinstance(value, list):
        raise InputError(f"`{key}` must be a list, got {str(value)[:80]}")
    return value


def parse_json_field(text: Any, what: str) -> Any:
    """Returns the JSON value of a text.

    Args:
        what: name of the field, for the error.

    Raises:
        InputError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"`{what}` is text that is not JSON: {error}") from error


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _parse_hermes_calls(content: str) -> tuple[str | None, list[dict], str | None]:
    """Returns (content, calls, reasoning) of a text with `<tool_call>` tags."""
    try:
        # `parse_completion` expects reasoning first, which such messages may lack.
        completion = parse_completion(content if THINK_OPEN in content else f"<think>\n</think>\n{content}")
    except FormatError as error:
        raise InputError(f"a message holds tool calls that cannot be read: {error}") from error
    return completion.content or None, completion.tool_calls, completion.reasoning or None


def tools_in_system(system: str) -> list | None:
    """Returns the list of tools that a system prompt contains as JSON, or None."""
    decoder = json.JSONDecoder()
    # The text of the prompt may contain the same two characters before the list.
    start = system.find("[{")
    while start >= 0:
        try:
            listed, _ = decoder.raw_decode(system, start)
        except (ValueError, RecursionError):
            start = system.find("[{", start + 1)
            continue
        if all(isinstance(tool, dict) and ("name" in tool or "function" in tool) for tool in listed):
            return listed
        start = system.find("[{", start + 1)
    return None


def calls_in_text(text: str | None, names: set[str]) -> list[dict] | None:
    """Returns the calls of ToolACE's `[Name(key=literal, ...), ...]`.

    Returns None where the text is not such a list, or calls a tool that is not in `names`.
    """
    stripped = (text or "").strip()
    if not (stripped.startswith("[") and stripped.endswith(")]")) or len(stripped) > MAX_CALLS_CHARACTERS:
        return None
    rest, calls = stripped[1:-1].strip(), []
    while rest:
        # Names contain blanks and slashes, which Python's grammar does not allow, so the text is not parsed as a whole.
        name = next((name for name in sorted(names, key=len, reverse=True) if rest.startswith(f"{name}(")), None)
        if name is None:
            return None
        end = _find_closing_bracket(rest, len(name))
        if end is None or (arguments := _parse_literal_arguments(rest[len(name) : end + 1])) is None:
            return None
        calls.append({"name": name, "arguments": arguments})
        rest = rest[end + 1 :].lstrip(", \n\t")
    return calls


def _find_closing_bracket(text: str, start: int) -> int | None:
    """Returns the position of the bracket that closes the one at `start`; brackets inside quotes do not count."""
    depth, quote, escaped = 0, "", False
    for place in range(start, len(text)):
        letter = text[place]
        if escaped:
            escaped = False
        elif quote:
            escaped, quote = letter == "\\", "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                return place
    return None


def _parse_literal_arguments(arguments: str) -> dict | None:
    """Returns the keyword arguments of `(key=literal, ...)` as JSON values, or None where they are anything else."""
    try:
        tree = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
            return None
        # Through JSON and back: tuples become lists, and values that JSON does not have raise here.
        return {keyword.arg: json.loads(json.dumps(_literal_value(keyword.value))) for keyword in tree.keywords}
    # Python's parser raises the last two for text that nests too deeply.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _literal_value(node: ast.expr) -> Any:
    # The calls mix JSON's literals with Python's.
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    return ast.literal_eval(node)
