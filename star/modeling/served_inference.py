r"""Answers one request with a model behind an OpenAI-compatible server: the work of `star call --endpoint`.

A server that parses the calls sends them apart. Another sends the model's text, which STAR's own parser reads:

    {"content": "<think>...</think>", "tool_calls": [{"function": {"name": "get_time", "arguments": "{...}"}}]}
    {"content": "<think>...</think>\n\n<tool_call>\n{...}\n</tool_call>"}

Both become the same completion and pass the same checks.
"""

import json
from typing import Any

from star.chat import (
    THINK_CLOSE,
    THINK_OPEN,
    Completion,
    FormatError,
    parse_completion,
    render_target,
    validate_calls,
)
from star.data.endpoint import Endpoint, Reply
from star.data.tools import public_tool


def answer_request_at(endpoint: Endpoint, query: str, *, tools: list[dict[str, Any]], max_tokens: int) -> Completion:
    """Answers `query` greedily, and checks the answer against the tools.

    Args:
        tools: the tools in normal form, as `load_tools` reads them.
        max_tokens: the largest number of tokens in the answer.

    Raises:
        EndpointError: the server gave no usable answer.
        InputError: the server refuses the request.
        FormatError: the answer breaks the format; the message holds the text, escaped.
    """
    prompt_tools = [public_tool(tool) for tool in tools]
    offered = [{"type": "function", "function": tool} for tool in prompt_tools]
    reply = endpoint.ask_with_tools([{"role": "user", "content": query}], tools=offered, max_tokens=max_tokens)
    try:
        completion = completion_of(reply)
        validate_calls(completion, prompt_tools)
    except FormatError as error:
        cut = f"; it reached its limit of {max_tokens} tokens: raise --max-tokens" if reply.is_cut else ""
        # repr escapes control characters, which would otherwise reach the terminal.
        shown = repr((reply.content or reply.reasoning)[:500])
        raise FormatError(f"the model's answer breaks the format ({error}{cut}): {shown}") from error
    return completion


def completion_of(reply: Reply) -> Completion:
    """Parses a reply strictly, whoever has parsed its calls and its reasoning.

    Raises:
        FormatError: it breaks the format.
    """
    reasoning, content = _split_reasoning(reply)
    calls = [_call(sent) for sent in reply.tool_calls]
    # Written out and read again, so that the server's calls pass all checks of a completion.
    return parse_completion(render_target({"reasoning_content": reasoning, "content": content, "tool_calls": calls}))


def _split_reasoning(reply: Reply) -> tuple[str, str]:
    """Reasoning and text after it. The think block may be in the text, begin in the prompt, have been taken out, or be missing."""
    before, closing, after = reply.content.partition(THINK_CLOSE)
    if closing and not reply.reasoning:
        return before.lstrip().removeprefix(THINK_OPEN), after
    # A block that is never closed stays in the text, where the parser refuses it.
    return reply.reasoning, reply.content


def _call(sent: Any) -> dict[str, Any]:
    """A call in STAR's form. OpenAI's form has the arguments as a JSON text; some servers send an object."""
    function = sent.get("function") if isinstance(sent, dict) else None
    name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
    if isinstance(arguments, str):
        try:
            # Arguments of a call without any are sent as an empty text by some servers.
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise FormatError("the arguments of a call are no JSON") from None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise FormatError("a call of the server has no name, or arguments that are no object")
    return {"name": name, "arguments": arguments}
