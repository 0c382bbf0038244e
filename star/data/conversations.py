"""Reads the messages of public data sets into row form: OpenAI's, ShareGPT's, LangChain's, Anthropic's, Hermes', glaive's and ToolACE's.

    >>> messages_of({"from": "human", "value": "Hi"}, {})           # ShareGPT
    [{'role': 'user', 'content': 'Hi'}]
    >>> message = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]}
    >>> messages_of(message, {})[0]["tool_calls"]                   # Anthropic
    [{'name': 'f', 'arguments': {'a': 1}}]

Nothing is guessed: a message whose calls, reasoning or content stand in a form that is not read is an InputError with the reason.
"""

import json
import re
from typing import Any

from star.data.call_texts import Tools, read_call_text, read_text
from star.data.calls import call_of, calls_of_value
from star.data.listed_tools import list_field
from star.data.literals import parse_field
from star.errors import InputError

ROLES = {
    "human": "user", "developer": "system",
    "gpt": "assistant", "model": "assistant", "ai": "assistant", "agent": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "tool_calls": "assistant",
    "observation": "tool", "function": "tool", "ipython": "tool",
    "tool_response": "tool", "tool_result": "tool", "function_response": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call", "tool_calls")  # here the calls are the content
_TEXT_PARTS = ("text", "input_text", "output_text")
_READ_FIELDS = {
    "role", "from", "type", "content", "value", "reasoning_content", "tool_calls", "function_call",
    "tool_call_id", "tool_call_ids", "call_id",
}  # fmt: skip
_PART_FIELDS = {"text", "image_url", "source"}
_LIKE_CALLS = re.compile(r"call|function|tool_?use", re.IGNORECASE)
_NAMED_CALLS = re.compile(r"(?:function|tool)_?calls?", re.IGNORECASE)
_TOOL_RESPONSE = re.compile(r"\s*+<tool_response>(.*?)</tool_response>\s*+", re.DOTALL)


class _Parts:
    """The parts of a message's content, by what they are."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict] = []
        self.results: list[str] = []

    def text(self) -> str | None:
        return "\n".join(self.texts) if self.texts else None


def conversation_of(written: list, tools: Tools) -> list[dict]:
    """Returns the messages of a conversation in row form. Several messages in a row that are calls are one turn.

    Raises:
        InputError: one of them is not an object, or a part of it cannot be read.
    """
    messages: list[dict] = []
    for part in written:
        for message in messages_of(part, tools):
            last = messages[-1] if messages else {}
            is_more = _spelled_role(part) in CALL_ROLES or (_is_only_calls(last) and _is_only_calls(message))
            if is_more and last.get("role") == "assistant":
                last["tool_calls"] = (last["tool_calls"] or []) + message["tool_calls"]
                last["reasoning_content"] = _same_reasoning(last["reasoning_content"], message["reasoning_content"])
            else:
                messages.append(message)
    return messages


def _is_only_calls(message: dict) -> bool:
    """Whether a message has calls and says nothing. ToolACE's copies write each of several calls as a message of its own."""
    says = message.get("content") or message.get("reasoning_content")
    return bool(message.get("tool_calls")) and not (isinstance(says, str) and says.strip())


def messages_of(written: Any, tools: Tools) -> list[dict]:
    """Returns a message in row form: one, or several where results of tools are parts of it.

    Raises:
        InputError: it is not an object, or a part of it cannot be read.
    """
    if not isinstance(written, dict):
        raise InputError(f"a message must be an object, got {str(written)[:80]}")
    spelled = _spelled_role(written)
    role = ROLES.get(spelled, spelled or _written_role(written))
    content = written.get("content")
    if content is None:
        content = written.get("value")
    if role == "assistant":
        return [_assistant_message_of(written, content, tools, only_calls=spelled in CALL_ROLES)]
    if "content" not in written and "value" not in written:
        raise InputError(f"a message of {role!r} must have `content`")
    if role == "tool":
        return _tool_messages_of(content)
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    parts = _parts_of(content)
    if parts.calls or parts.reasoning or (parts.results and role != "user"):
        raise InputError(f"a message of {role!r} has parts that only an assistant or a tool can have")
    results = [message for result in parts.results for message in _tool_messages_of(result)]
    text = parts.text()
    return results if results and text is None else [*results, {"role": role, "content": text}]


def _written_role(written: dict) -> Any:
    return next((written[key] for key in ("role", "from", "type") if written.get(key) is not None), None)


def _spelled_role(written: dict) -> str:
    """Returns the role in lower case with `_` between its words; "" where it is not text."""
    role = _written_role(written)
    return role.lower().replace("-", "_").replace(" ", "_") if isinstance(role, str) else ""


def assistant_message(content: str | None, calls: list[dict], reasoning: str | None) -> dict:
    """Returns a message of the assistant in row form."""
    return {"role": "assistant", "content": content, "tool_calls": calls, "reasoning_content": reasoning}


def text_of(content: Any) -> str | None:
    """Returns the text of a content that may be a list of text parts, joined by line breaks.

    Raises:
        InputError: it holds anything but text.
    """
    if content is None or isinstance(content, str):
        return content
    parts = _parts_of(content)
    if parts.calls or parts.reasoning or parts.results:
        raise InputError(f"expected nothing but text, got {str(content)[:80]}")
    return parts.text()


def _assistant_message_of(written: dict, content: Any, tools: Tools, *, only_calls: bool) -> dict:
    if only_calls:
        reasoning, calls = _read_only_calls(content, tools)
        return assistant_message(None, calls, reasoning)
    parts = _parts_of(content)
    if parts.results:
        raise InputError("a message of the assistant has a tool's result among its parts")
    calls = parts.calls + _calls_in_fields(written)
    # Harmony's messages name the tool here, and their content is its arguments.
    if written.get("recipient") not in (None, "", "all"):
        raise InputError(f"a message to {str(written['recipient'])[:80]!r} is a call in a form that is not read")
    text = parts.text()
    if text is None and isinstance(written.get("refusal"), str):
        text = written["refusal"]
    elif text is None and not calls and "content" not in written and "value" not in written:
        raise InputError("a message of the assistant has neither `content` nor calls")
    reasoning = written.get("reasoning_content")
    for field in ("reasoning", "thinking", "tool_plan"):  # OpenRouter's, Ollama's and Cohere's
        if isinstance(said := written.get(field), str):
            reasoning = _same_reasoning(reasoning, said)
    if parts.reasoning:
        reasoning = _same_reasoning(reasoning, "\n".join(parts.reasoning))
    if text is not None:
        answer = read_text(text, tools)
        if answer.calls and calls and answer.calls != calls:
            raise InputError("a message has calls in its text and other calls in `tool_calls`")
        text, calls = answer.content, calls or answer.calls
        reasoning = _same_reasoning(reasoning, answer.reasoning)
    return assistant_message(text, calls, reasoning)


def _same_reasoning(given: Any, said: str | None) -> Any:
    """Returns the reasoning of a message's field and of its text; they may not differ."""
    if not said or not given:
        return said or given
    if not isinstance(given, str) or given.strip() != said.strip():
        raise InputError("a message has one reasoning in its content and another one in a field of its own")
    return given


def _calls_in_fields(written: dict) -> list[dict]:
    """Returns the calls in OpenAI's and LangChain's fields."""
    calls = [call_of(call) for call in list_field(written, "tool_calls")]
    if isinstance(single := written.get("function_call"), str) and single.strip():
        single = parse_field(single, "function_call")
    if single and not isinstance(single, dict):
        raise InputError(f"`function_call` must be an object, got {str(single)[:80]}")
    # A table has the columns of a call in every row, with null in those without one.
    if single and any(value is not None for value in single.values()):
        calls.append(call_of(single))
    # Older versions of LangChain keep the provider's calls here.
    older = written.get("additional_kwargs")
    if isinstance(older, dict) and not calls:
        return _calls_in_fields({key: older.get(key) for key in ("tool_calls", "function_call")})
    for key in sorted(written.keys() - _READ_FIELDS):
        value = written[key]
        # As text, a field whose name has such a word in it is more often an id or a name.
        is_text = isinstance(value, str) and value.strip() and _NAMED_CALLS.fullmatch(str(key))
        if is_text or (isinstance(value, list | dict) and value and _LIKE_CALLS.search(str(key))):
            raise InputError(f"a message of the assistant has `{key}`, which is not read: write calls as `tool_calls`")
    return calls


def _read_only_calls(content: Any, tools: Tools) -> tuple[str | None, list[dict]]:
    """Returns (reasoning, calls) of a content that is nothing but calls, as text or as a value."""
    try:
        reasoning, calls = (
            read_call_text(content, tools) if isinstance(content, str) else (None, calls_of_value(content))
        )
    except InputError as error:
        raise InputError(f"a message that is a call cannot be read: {error}") from error
    if not calls:
        raise InputError("a message whose role says that it is a call has none")
    return reasoning, calls


def _tool_messages_of(content: Any) -> list[dict]:
    """Returns a message per result. A result that is already in `<tool_response>` tags loses them: the template writes its own."""
    if isinstance(content, list) and content and all(_is_part(part) for part in content):
        content = text_of(content)
    elif content is not None and not isinstance(content, str):
        content = json.dumps(content)
    results = [content]
    if content and content.lstrip().startswith("<tool_response>"):
        results, position = [], 0
        while found := _TOOL_RESPONSE.match(content, position):
            results.append(found[1].removeprefix("\n").removesuffix("\n"))
            position = found.end()
        if position < len(content):
            raise InputError("a tool's result opens <tool_response> and does not end with </tool_response>")
    return [{"role": "tool", "content": result} for result in results]


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str) and not part.keys().isdisjoint(_PART_FIELDS)


def _parts_of(content: Any) -> _Parts:
    """Returns the parts of a content: text, or a list of OpenAI's or Anthropic's parts."""
    parts = _Parts()
    if content is None:
        return parts
    if isinstance(content, str):
        parts.texts.append(content)
        return parts
    if not isinstance(content, list):
        raise InputError(f"the content of a message must be text or a list of parts, got {str(content)[:80]}")
    for part in content:
        _add_part(part, parts)
    return parts


def _add_part(part: Any, parts: _Parts) -> None:
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else None
    if isinstance(part, str):
        parts.texts.append(part)
    elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        parts.texts.append(part["text"])
    elif kind == "thinking" and isinstance(part.get("thinking"), str | list):
        parts.reasoning.append(text_of(part["thinking"]) or "")
    elif kind == "tool_use":
        parts.calls.append(call_of(part))
    elif kind == "tool_result":
        result = part.get("content")
        parts.results.append(result if isinstance(result, str) else text_of(result) or "")
    elif kind == "refusal" and isinstance(part.get("refusal"), str):
        parts.texts.append(part["refusal"])
    else:
        raise InputError(
            f"a part of a message is {kind or str(part)[:40]!r}, and only text, calls and results are read"
        )
