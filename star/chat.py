"""The Qwen3 tool-call format: the one renderer and the one parser that training, rollout, reward and evaluation share.

A prompt is everything up to and including `<|im_start|>assistant\\n`; it comes from the tokenizer's own chat
template, which is `CHAT_TEMPLATE` for tokenizers made here and the official one for Qwen3's. A completion is what
follows: one `<think>` block, then either a reply or `<tool_call>` blocks with one JSON object each.

Completions are a model's text and may be anything. `parse_completion` answers each of them with a `Completion` or a
`FormatError`, in time linear in its length.
"""

import json
import re
from typing import Any, NamedTuple

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FORMAT_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
THINK_OPEN, THINK_CLOSE, CALL_OPEN, CALL_CLOSE = FORMAT_TOKENS[:4]
IM_END = SPECIAL_TOKENS[2]

# Arguments nested deeper than this are refused, so that what was parsed can be written, copied and compared without a
# RecursionError.
MAX_DEPTH = 100
JSON_SPACE = " \t\n\r"
_scan = json.JSONDecoder().scan_once
# Most completions: one call or a reply, and no other tag anywhere. Read here at once; nothing is ever given back to try again.
_PLAIN = re.compile(r"\s*+<think>([^<]*+)</think>\s*+(?:<tool_call>([^<]*+)</tool_call>\s*+|([^<]*+))")

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

# As in Qwen3: reasoning is kept only in the turns after the user's last question, and there only where it is not
# empty or ends the chat.
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

# A JSON string is also a jinja string, so the two constants stand in the template as literals.
CHAT_TEMPLATE: str = _TEMPLATE.replace("@TOOLS_HEADER@", json.dumps(TOOLS_HEADER)).replace(
    "@TOOLS_FOOTER@", json.dumps(TOOLS_FOOTER)
)


class FormatError(ValueError):
    """The text breaks the tool-call format. The message says how, without quoting the text."""


class Completion(NamedTuple):
    """A parsed completion.

    Attributes:
        reasoning: the text of the think block, stripped.
        tool_calls: dicts with exactly the keys `name` (str) and `arguments` (dict of JSON values), in the order of
            the text.
        content: the text outside of the calls, stripped: the reply when there are no calls.
    """

    reasoning: str
    tool_calls: list[dict[str, Any]]
    content: str


def render_prompt(messages: list[dict[str, Any]], tools: list[dict[str, Any]], tokenizer: Any) -> str:
    """Renders the prompt for the next assistant turn with the tokenizer's chat template.

    Args:
        messages: the conversation without its target, in the row form or in OpenAI's (`content` may be None).
        tools: bare (`{"name", "description", "parameters"}`) or wrapped (`{"type": "function", "function": {...}}`).
        tokenizer: anything with transformers' `apply_chat_template`.
    """
    # Older revisions of Qwen3's template fail on a None, newer ones read it as an empty string.
    messages = [{**message, "content": message.get("content") or ""} for message in messages]
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return tokenizer.apply_chat_template(messages, tools=wrapped or None, tokenize=False, add_generation_prompt=True)


def render_target(message: dict[str, Any]) -> str:
    """Renders an assistant message as the completion text a model should give, without the closing `<|im_end|>`.

    The think block is always written, empty where the message has no reasoning. Prompt + target + `<|im_end|>\\n` is
    what the chat template gives for the whole conversation.
    """
    reasoning = (message.get("reasoning_content") or "").strip("\n")
    calls = [
        f'{CALL_OPEN}\n{{"name": {_dumps(call["name"])}, "arguments": {_dumps(call["arguments"])}}}\n{CALL_CLOSE}'
        for call in message.get("tool_calls") or []
    ]
    content = (message.get("content") or "").lstrip("\n")
    answer = "\n".join([content, *calls] if content else calls)
    return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n\n{answer}"


def parse_completion(text: str, *, strict: bool = True) -> Completion:
    """Parses what a model gave after `<|im_start|>assistant\\n`; one trailing `<|im_end|>` is accepted.

    The text is one `<think>...</think>`, then a reply or `<tool_call>` blocks, each of one JSON object with a string
    `name` and an object `arguments` (other keys are dropped; of a repeated key the last one counts).

    Args:
        strict: what comes back can be written as UTF-8 JSON and has no stray tag. False is the reading of the
            official reward, which is more lenient: it overlooks text before the think block, stray think tags, calls
            that are never closed, NaN, infinities and lone surrogates. A call that is never closed is then left in
            `content`.

    Raises:
        FormatError: and nothing else, whatever the argument.
    """
    if not isinstance(text, str):
        raise FormatError("a completion is a string")
    if plain := _PLAIN.fullmatch(text):
        reasoning, block, reply = plain.groups()
        calls = [] if block is None else [_parse_call(block)]
        completion = Completion(reasoning.strip(), calls, (reply or "").strip())
    else:
        reasoning, answer = _split_reasoning(text.strip().removesuffix(IM_END), strict=strict)
        blocks, around = _split_calls(answer)
        content = "\n".join(filter(None, map(str.strip, around)))
        completion = Completion(reasoning, [_parse_call(block) for block in blocks], content)
    if strict:
        if CALL_OPEN in completion.content or CALL_CLOSE in completion.content:
            raise FormatError("a <tool_call> tag has no partner")
        if IM_END in completion.content:
            raise FormatError("a completion goes on after its <|im_end|>")
        _require_portable(completion)
    return completion


def parse_target(text: str, *, strict: bool = True) -> Completion:
    """Parses a target: a completion whose opening `<think>` may be missing.

    Raises:
        FormatError: and nothing else; also for a call that is never closed, strict or not.
    """
    if not isinstance(text, str) or text.count(THINK_CLOSE) != 1:
        raise FormatError("a target is a string with exactly one </think>")
    target = parse_completion(text if text.lstrip().startswith(THINK_OPEN) else THINK_OPEN + text, strict=strict)
    if CALL_OPEN in target.content:
        raise FormatError("a <tool_call> tag has no partner")
    return target


def validate_calls(completion: Completion, tools: list[dict[str, Any]]) -> None:
    """Checks that every call names a tool of the prompt and passes only parameters that this tool has.

    Values are not checked against their types, and required parameters may be missing: that is for a score to judge.

    Raises:
        FormatError: for a call that is not allowed, and for tools that are not a list of dicts with a name.
    """
    given = _given_parameters(tools)
    for call in completion.tool_calls:
        parameters = given.get(call["name"])
        if parameters is None:
            raise FormatError("a call names no tool of the prompt")
        if not call["arguments"].keys() <= _by_name(parameters).keys():
            raise FormatError("a call passes an argument that its tool does not have")


def tool_parameters(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Maps each tool's name to its parameters by name; a tool without `parameters` has none.

    `parameters` comes in two dialects: JSON Schema, and a flat map of the parameters themselves, of which one may be
    called `type` or `properties`. It is read as a schema when `properties` is a dict and `type` is present, the
    official code's rule.

    Raises:
        FormatError: for tools that are not a list of dicts with a name.
    """
    return {name: _by_name(parameters) for name, parameters in _given_parameters(tools).items()}


def _given_parameters(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if not isinstance(tools, list):
        raise FormatError("tools are not a list")
    given = {}
    try:
        for tool in tools:
            function = tool.get("function", tool)
            name, parameters = function.get("name"), function.get("parameters") or {}
            if not isinstance(name, str):
                raise FormatError("a tool of the prompt has no name")
            if not isinstance(parameters, dict):
                raise FormatError("the parameters of a tool of the prompt are not an object")
            given[name] = parameters
    except AttributeError:
        raise FormatError("a tool of the prompt is not an object") from None
    return given


def _by_name(parameters: dict[str, Any]) -> dict[str, Any]:
    is_schema = isinstance(parameters.get("properties"), dict) and parameters.get("type") is not None
    return parameters["properties"] if is_schema else parameters


def _split_reasoning(text: str, *, strict: bool) -> tuple[str, str]:
    start = text.find(THINK_OPEN)
    end = text.find(THINK_CLOSE, start + len(THINK_OPEN))
    last = text.rfind(THINK_CLOSE)
    if start < 0 or end < 0 or text.find(THINK_OPEN, end, last) >= 0:
        raise FormatError("a completion has exactly one <think>...</think>")
    if strict and (text[:start].strip() or last != end or text.find(THINK_OPEN, start + 1) >= 0):
        raise FormatError("a completion starts with its <think> block and has no other think tag")
    return text[start + len(THINK_OPEN) : end].strip(), text[last + len(THINK_CLOSE) :].strip()


def _split_calls(text: str) -> tuple[list[str], list[str]]:
    """The texts inside the `<tool_call>` blocks, and the texts around them (one more).

    Linear, where a lazy regular expression is quadratic in the number of tags that are never closed.
    """
    inside, around, position = [], [], 0
    while (start := text.find(CALL_OPEN, position)) >= 0 and (end := text.find(CALL_CLOSE, start)) >= 0:
        around.append(text[position:start])
        inside.append(text[start + len(CALL_OPEN) : end])
        position = end + len(CALL_CLOSE)
    around.append(text[position:])
    return inside, around


def _parse_call(block: str) -> dict[str, Any]:
    block = block.strip(JSON_SPACE)
    try:
        call, end = _scan(block, 0)
    except (StopIteration, ValueError, RecursionError):
        call, end = None, -1  # no JSON, nested too deep, or an integer of more digits than python reads
    if end != len(block):
        raise FormatError("a <tool_call> block is not JSON")
    if not isinstance(call, dict) or not isinstance(name := call.get("name"), str):
        raise FormatError("a <tool_call> block is not an object with a name")
    if not isinstance(arguments := call.get("arguments"), dict):
        raise FormatError("the arguments of a call are not an object")
    if len(block) > 2 * MAX_DEPTH:  # a shorter text cannot be too deep
        _require_shallow(arguments)
    return {"name": name, "arguments": arguments}


def _require_shallow(arguments: dict[str, Any]) -> None:
    level: list[Any] = [arguments]
    for _ in range(MAX_DEPTH):
        nodes = [node.values() if isinstance(node, dict) else node for node in level]
        level = [child for children in nodes for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise FormatError(f"the arguments of a call are nested deeper than {MAX_DEPTH}")


def _require_portable(completion: Completion) -> None:
    try:
        calls = json.dumps(completion.tool_calls, ensure_ascii=False, allow_nan=False)
        (completion.reasoning + completion.content + calls).encode()
    except ValueError:  # of json for NaN and infinities, of encode for lone surrogates
        raise FormatError("a completion holds a number or a character that cannot be written as UTF-8 JSON") from None


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
