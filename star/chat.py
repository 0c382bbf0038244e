r"""Renders and parses the Qwen3 tool-call format, for training, rollout, reward and evaluation alike.

A prompt is everything up to and including `<|im_start|>assistant\n`. The tokenizer's chat template renders it: the
official one of Qwen3's tokenizers, or `CHAT_TEMPLATE` for tokenizers trained here. The question "What time is it in
Oslo?" with one tool becomes this prompt:

    <|im_start|>system
    # Tools

    You may call one or more functions to assist with the user query.

    You are provided with function signatures within <tools></tools> XML tags:
    <tools>
    {"type": "function", "function": {"name": "get_time", "description": "", "parameters": {"city": {"type": "string"}}}}
    </tools>

    For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
    <tool_call>
    {"name": <function-name>, "arguments": <args-json-object>}
    </tool_call><|im_end|>
    <|im_start|>user
    What time is it in Oslo?<|im_end|>
    <|im_start|>assistant

A completion is what follows: one `<think>` block, then a reply or `<tool_call>` blocks with one JSON object each. Some
templates write its beginning into the prompt (`prompt_opening`). It is part of the completion all the same.

A target is the completion that a row asks for. Here it is, and what the parser reads from it:

    >>> from star.chat import parse_completion, render_target
    >>> target = render_target({"tool_calls": [{"name": "get_time", "arguments": {"city": "Oslo"}}]})
    >>> target
    '<think>\n\n</think>\n\n<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
    >>> parse_completion(target)
    Completion(reasoning='', tool_calls=[{'name': 'get_time', 'arguments': {'city': 'Oslo'}}], content='')

Completions are a model's text and may be anything. For each of them `parse_completion` returns a `Completion` or raises
a `FormatError`, in time linear in its length.
"""

import json
import re
from typing import Any, NamedTuple

from star.call_blocks import CALL_CLOSE, CALL_OPEN, FormatError, begins_call, parse_block, split_calls

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FORMAT_TOKENS = (
    "<think>",
    "</think>",
    CALL_OPEN,
    CALL_CLOSE,
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
THINK_OPEN, THINK_CLOSE = FORMAT_TOKENS[:2]
END_OF_TEXT, IM_START, IM_END = SPECIAL_TOKENS

# Made once, because json.dumps makes an encoder at each call that is not ASCII.
_to_json = json.JSONEncoder(ensure_ascii=False).encode
_to_strict_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# Most completions have one call or a reply, and no other tag. This expression matches them at once; its quantifiers are
# possessive, so it never backtracks.
_SIMPLE_COMPLETION = re.compile(r"\s*+<think>([^<]*+)</think>\s*+(?:<tool_call>([^<]*+)</tool_call>\s*+|([^<]*+))")

TOOLS_HEADER = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""

TOOLS_FOOTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

# As in Qwen3, the reasoning of an assistant turn is rendered only after the user's last question, and there only where
# it is not empty or the turn is the last one.
_TEMPLATE = r"""
{%- set first_system = messages[0].content if messages[0].role == 'system' else none %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if first_system is not none %}{{- first_system + '\n\n' }}{%- endif %}
    {{- @TOOLS_HEADER@ }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {%- if not loop.last %}{{- '\n' }}{%- endif %}
    {%- endfor %}
    {{- @TOOLS_FOOTER@ + '<|im_end|>\n' }}
{%- elif first_system is not none %}
    {{- '<|im_start|>system\n' + first_system + '<|im_end|>\n' }}
{%- endif %}

{%- set last = namespace(question=messages | length - 1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and message.content is string
        and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set last.question = loop.index0 %}
    {%- endif %}
{%- endfor %}

{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > last.question and (loop.last or reasoning) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if content or not loop.first %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

# A JSON string is also a valid jinja string, so the two constants become literals of the template.
CHAT_TEMPLATE: str = _TEMPLATE.replace("@TOOLS_HEADER@", json.dumps(TOOLS_HEADER)).replace(
    "@TOOLS_FOOTER@", json.dumps(TOOLS_FOOTER)
)


class Completion(NamedTuple):
    """A parsed completion.

    Attributes:
        reasoning: text of the think block, stripped.
        tool_calls: dicts with exactly the keys `name` (str) and `arguments` (dict of JSON values), in the order of
            the text.
        content: text outside of the calls, stripped. Without calls it is the reply.
    """

    reasoning: str
    tool_calls: list[dict[str, Any]]
    content: str


def render_prompt(messages: list[dict[str, Any]], tools: list[dict[str, Any]], tokenizer: Any) -> str:
    """Renders the prompt for the next assistant turn with the tokenizer's chat template.

    Args:
        messages: the conversation without its target, in the form of the rows or of OpenAI (`content` may be None).
        tools: bare (`{"name", "description", "parameters"}`) or wrapped (`{"type": "function", "function": {...}}`).
        tokenizer: anything with transformers' `apply_chat_template`.
    """
    # Older revisions of Qwen3's template fail on a None, newer ones read it as an empty string.
    messages = [{**message, "content": message.get("content") or ""} for message in messages]
    # Many templates read calls in OpenAI's form only; STAR's and Qwen3's render both forms alike.
    messages = [
        {**message, "tool_calls": [_wrapped_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return tokenizer.apply_chat_template(messages, tools=wrapped or None, tokenize=False, add_generation_prompt=True)


def _wrapped_call(call: dict[str, Any]) -> dict[str, Any]:
    return call if "function" in call else {"type": "function", "function": call}


def prompt_opening(prompt: str) -> str:
    r"""What the template itself has written of the answer, at the end of a rendered prompt; "" for most templates.

    Some templates open the think block behind `<|im_start|>assistant\n`: `<think>\n` (Qwen3-Thinking-2507), or an empty
    `<think>\n\n</think>\n\n`. The model goes on from there, so a completion is this opening and the sampled text.
    """
    start = prompt.rfind(THINK_OPEN)
    # Only where nothing but the end of the block follows, so that a tag in a message is never an opening.
    is_opening = start >= 0 and prompt[start + len(THINK_OPEN) :].strip() in ("", THINK_CLOSE)
    return prompt[start:] if is_opening else ""


def render_target(message: dict[str, Any]) -> str:
    r"""Renders an assistant message as the completion that a model should write, without the closing `<|im_end|>`.

    There is always a think block, empty where the message has no reasoning. Prompt + target + `<|im_end|>\n` equals
    what the chat template renders for the whole conversation.
    """
    reasoning = (message.get("reasoning_content") or "").strip("\n")
    calls = [
        f'{CALL_OPEN}\n{{"name": {_to_json(call["name"])}, "arguments": {_to_json(call["arguments"])}}}\n{CALL_CLOSE}'
        for call in message.get("tool_calls") or []
    ]
    # Stripped as in the template, so that prompt and target join to the rendered conversation.
    content = (message.get("content") or "").lstrip("\n")
    answer = "\n".join([content, *calls] if content else calls)
    return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n\n{answer}"


def parse_completion(text: str, *, strict: bool = True) -> Completion:
    r"""Parses what a model wrote after `<|im_start|>assistant\n`, with or without a trailing `<|im_end|>`.

    The text must be one `<think>...</think>`, then a reply or `<tool_call>` blocks, each of one JSON object with a
    string `name` and an object `arguments`. Other keys are dropped; of a repeated key the last one counts. A call ends
    where its JSON object ends: a tag inside one of its strings is text.

    Args:
        strict: whether the text must call a tool or say something, without stray tags, and the result must be writable
            as UTF-8 JSON. False follows the official reward, which accepts more: text before the think block, stray
            think tags, calls that are never closed, silence, a call without its tags, NaN, infinities and lone
            surrogates. A call that is never closed then stays in `content`.

    Raises:
        FormatError: the text breaks the format. No other exception is raised, whatever the argument.
    """
    if not isinstance(text, str):
        raise FormatError("a completion is a string")
    if plain := _SIMPLE_COMPLETION.fullmatch(text):
        reasoning, block, reply = plain.groups()
        calls = [] if block is None else [parse_block(block)]
        completion = Completion(reasoning.strip(), calls, (reply or "").strip())
    else:
        reasoning, answer = _split_reasoning(text.strip().removesuffix(IM_END), strict=strict)
        calls, around = split_calls(answer)
        completion = Completion(reasoning, calls, "\n".join(filter(None, map(str.strip, around))))
    if strict:
        _require_answer(completion)
        _require_utf8_json(completion)
    return completion


def parse_target(text: str, *, strict: bool = True) -> Completion:
    """Parses a target: a completion whose opening `<think>` may be missing.

    Raises:
        FormatError: the text breaks the format or has a call that is never closed, strict or not. No other exception
            is raised.
    """
    if not isinstance(text, str) or text.count(THINK_CLOSE) != 1:
        raise FormatError("a target is a string with exactly one </think>")
    target = parse_completion(text if text.lstrip().startswith(THINK_OPEN) else THINK_OPEN + text, strict=strict)
    if CALL_OPEN in target.content:
        raise FormatError("a <tool_call> tag has no partner")
    return target


def validate_calls(completion: Completion, tools: list[dict[str, Any]]) -> None:
    """Checks that every call names a tool of the prompt and passes only parameters that this tool has.

    Types of values and missing required parameters are not checked, because they lower the score of a well-formed call.

    Raises:
        FormatError: a call is not allowed, or `tools` is not a list of dicts with a name.
    """
    # Resolved for called tools only: a prompt may have many tools, and a completion makes few calls.
    raw = _raw_parameters(tools)
    for call in completion.tool_calls:
        parameters = raw.get(call["name"])
        if parameters is None:
            raise FormatError("a call names no tool of the prompt")
        if not call["arguments"].keys() <= _parameters_by_name(parameters).keys():
            raise FormatError("a call passes an argument that its tool does not have")


def tool_parameters(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Maps each tool's name to its parameters by name; a tool without `parameters` has none.

    `parameters` is JSON Schema or a flat map of the parameters, of which one may be called `type` or `properties`. As
    in the official code it counts as a schema when `properties` is a dict and `type` is present.

    Raises:
        FormatError: `tools` is not a list of dicts with a name.
    """
    return {name: _parameters_by_name(parameters) for name, parameters in _raw_parameters(tools).items()}


def _raw_parameters(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Maps each tool's name to its `parameters`, whichever form these have."""
    if not isinstance(tools, list):
        raise FormatError("tools are not a list")
    raw: dict[str, dict[str, Any]] = {}
    try:
        for tool in tools:
            function = tool.get("function", tool)
            name, parameters = function.get("name"), function.get("parameters") or {}
            if not isinstance(name, str):
                raise FormatError("a tool of the prompt has no name")
            if not isinstance(parameters, dict):
                raise FormatError("the parameters of a tool of the prompt are not an object")
            raw[name] = parameters
    except AttributeError:
        raise FormatError("a tool of the prompt is not an object") from None
    return raw


def _parameters_by_name(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a JSON Schema or of a flat map."""
    is_schema = isinstance(parameters.get("properties"), dict) and parameters.get("type") is not None
    return parameters["properties"] if is_schema else parameters


def _split_reasoning(text: str, *, strict: bool) -> tuple[str, str]:
    """Splits a completion into the text of its think block and the answer after it."""
    start = text.find(THINK_OPEN)
    end = text.find(THINK_CLOSE, start + len(THINK_OPEN))
    # Each search is one linear pass, whatever tags the model repeats.
    last = text.rfind(THINK_CLOSE)
    if start < 0 or end < 0 or text.find(THINK_OPEN, end, last) >= 0:
        raise FormatError("a completion has exactly one <think>...</think>")
    if strict and (text[:start].strip() or last != end or text.find(THINK_OPEN, start + 1) >= 0):
        raise FormatError("a completion starts with its <think> block and has no other think tag")
    return text[start + len(THINK_OPEN) : end].strip(), text[last + len(THINK_CLOSE) :].strip()


def _require_answer(completion: Completion) -> None:
    """Raises FormatError for a completion that says nothing, or whose reply is no text for the user."""
    content = completion.content
    if "<" in content:
        if CALL_OPEN in content or CALL_CLOSE in content:
            raise FormatError("a <tool_call> tag has no partner")
        if IM_START in content or IM_END in content:
            raise FormatError("a completion goes on after its <|im_end|>")
        # A model may end its turn with this token as well.
        content = content.replace(END_OF_TEXT, "").strip()
    if begins_call(content):
        raise FormatError("a reply begins a call that is not in <tool_call> tags")
    # `[]` or `...` says no more than silence. Any letter, digit or emoji may be an answer.
    if not completion.tool_calls and not any(char.isalnum() or not char.isascii() for char in content):
        raise FormatError("a completion neither calls a tool nor says anything")


def _require_utf8_json(completion: Completion) -> None:
    """Raises FormatError for a completion that cannot be written as UTF-8 JSON."""
    try:
        # What a later writer would fail on is found here, before the completion is kept.
        calls = _to_strict_json(completion.tool_calls)
        (completion.reasoning + completion.content + calls).encode()
    except ValueError:  # from json for NaN and infinities, from encode for lone surrogates
        raise FormatError("a completion holds a number or a character that cannot be written as UTF-8 JSON") from None
