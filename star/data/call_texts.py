r"""Reads the reasoning and the calls that an assistant's text holds, in the dialects of public data sets and models.

    >>> read_text('<think>\nOslo.\n</think>\n<tool_call>\n{"name": "f", "arguments": {"city": "Oslo"}}\n</tool_call>', {})
    Answer(reasoning='Oslo.', content=None, calls=[{'name': 'f', 'arguments': {'city': 'Oslo'}}])

A call ends where its value ends, so a tag inside a string of its arguments is only text. A text that begins a call in a dialect that is
not read, or a call that is cut or damaged, is refused: as a reply it would teach a model to write calls that nobody reads.
"""

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from star.call_blocks import ARGUMENT_KEYS, CALL_TAG, NAME_KEYS
from star.chat import THINK_CLOSE, THINK_OPEN
from star.data.calls import call_of, calls_of_value, is_call
from star.data.literals import decode_value, parse_value
from star.data.python_calls import begins_with_list, find_python_calls, read_python_list
from star.errors import InputError

MAX_ATTEMPTS = 20  # each takes time in proportion to the text
Tools = Mapping[str, dict]  # the properties of each tool's parameters, by the tool's name

# Opening tag -> closing tag.
_TAGS = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen
    "<tool_calls>": "</tool_calls>",
    "<toolcall>": "</toolcall>",  # Nemotron
    "<function_call>": "</function_call>",
    "<function_calls>": "</function_calls>",
    "<functioncall>": "</functioncall>",  # glaive
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4, Granite
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "[tool_calls]": "[/tool_calls]",  # Mistral
    "<|python_tag|>": "<|eom_id|>",  # Llama 3
    "```tool_call": "```",
    "```tool_calls": "```",
}
_CLOSINGS = {tag: re.compile(rf"\s*+{re.escape(closing)}", re.IGNORECASE) for tag, closing in _TAGS.items()}
# These sets and models end a call with their end token, or with nothing.
_OFTEN_UNCLOSED = ("<functioncall>", "<|tool_call|>", "[tool_calls]", "<|python_tag|>")
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "</s>")
_OPENING = re.compile("|".join([*map(re.escape, sorted(_TAGS, key=len, reverse=True)), "<function="]), re.IGNORECASE)
_ENDS_OF_QUOTED = {
    tag: re.compile(f"{re.escape(closing)}|{_OPENING.pattern}", re.IGNORECASE) for tag, closing in _TAGS.items()
}
_FENCED = re.compile(r"```[a-z]*+\s*+([\[{].*[\]}])\s*+```", re.DOTALL)
_NAMES_AND_ARGUMENTS = "|".join([*NAME_KEYS, "function", "tool_calls", "type", "id", *ARGUMENT_KEYS])
# A text that begins like a call as an object, whether it can be decoded or not.
_OBJECT_CALL = re.compile(
    rf"[\[\s]*+\{{\s*+[\"'](?:{_NAMES_AND_ARGUMENTS})[\"']\s*+:.*[\"'](?:{'|'.join(ARGUMENT_KEYS)})[\"']\s*+:",
    re.DOTALL,
)
_NAME_IN_OBJECT = re.compile(rf"[\"'](?:{'|'.join(NAME_KEYS)})[\"']\s*+:\s*+[\"']([^\"'\n]++)[\"']")
_ARGUMENTS_IN_OBJECT = re.compile(rf"[\"'](?:{'|'.join(ARGUMENT_KEYS)})[\"']\s*+:")
_REACT_ACTION = re.compile(r"^Action:[ \t]*+(.+)$", re.MULTILINE)
_SUSPICIOUS = re.compile(r"[<\[{`｜]")
_MISTRAL_NAME = re.compile(
    r"\s*+([^\s\[\]{}()<>\"']++)\s*+(?:\[CALL_ID\]\s*+\w*+\s*+)?(?:\[ARGS\]\s*+)?(?=\{)", re.IGNORECASE
)
_XML_CALL = re.compile(r"\s*+<function=([^>\n]++)>(.*?)</function>", re.DOTALL)
_XML_PARAMETER = re.compile(r"\s*+<parameter=([^>\n]++)>(.*?)</parameter>", re.DOTALL)
# glaive writes the arguments as JSON text in single quotes, with or without a backslash before a quote in it.
# The name is in double quotes: in single ones it is a Python literal, with other backslashes.
_QUOTED_START = re.compile(r"\s*+\{\s*+\"name\"\s*+:\s*+\"([^\"\\]++)\"\s*+,\s*+\"arguments\"\s*+:\s*+'")
_QUOTED_END = re.compile(r"'\s*+\}\s*+$")


class Answer(NamedTuple):
    """What an assistant's text says. `content` and `reasoning` are None where there is none."""

    reasoning: str | None
    content: str | None
    calls: list[dict]


def read_text(text: str, tools: Tools) -> Answer:
    """Reads an assistant's text. A text without reasoning and calls is the content as it is.

    Raises:
        InputError: the text begins a call or a think block that cannot be read.
    """
    if not _SUSPICIOUS.search(text) and "(" not in text:
        return Answer(None, text, [])
    ended = without_end_tokens(text)
    reasoning, rest = split_reasoning(ended, tools)
    around, calls = _find_calls(rest, tools)
    if not calls and reasoning is None:
        return Answer(None, ended, [])
    return Answer(reasoning or None, "\n".join(filter(None, map(str.strip, around))) or None, calls)


def read_call_text(text: str, tools: Tools) -> tuple[str | None, list[dict]]:
    """Returns (reasoning, calls) of a text that is nothing but calls, such as that of ShareGPT's role `function_call`.

    Raises:
        InputError: it is anything else.
    """
    reasoning = None
    if text.lstrip().startswith(THINK_OPEN):
        reasoning, _, text = text.partition(THINK_CLOSE)
        reasoning = reasoning.strip().removeprefix(THINK_OPEN).strip() or None
    text = without_end_tokens(text)
    if _QUOTED_START.match(text):
        return reasoning, [_quoted_call(text)]
    if _OPENING.match(text.lstrip()):
        around, calls = _find_calls(text, tools)
        rest = "".join(around)
    else:
        calls, end = _read_values(text, 0, tools, named=True)
        rest = text[end:]
    if not calls or rest.strip():
        raise InputError(f"expected calls and nothing else, got {text[:80]}")
    return reasoning, calls


def without_end_tokens(text: str) -> str:
    """Returns the text without the end-of-turn tokens at its end; the same text where there are none."""
    while (ended := text.rstrip()).endswith(_END_TOKENS):
        text = next(ended.removesuffix(token) for token in _END_TOKENS if ended.endswith(token)).rstrip()
    return text


def split_reasoning(text: str, tools: Tools) -> tuple[str | None, str]:
    """Returns (reasoning, rest) of a text; the opening tag may be missing. Without a think block, the reasoning is None.

    Raises:
        InputError: a think tag stands anywhere but around the reasoning at the start.
    """
    opened, closed = text.lstrip().startswith(THINK_OPEN), THINK_CLOSE in text
    if opened and not closed:
        raise InputError("a message has a <think> block without an end")
    reasoning, rest = None, text
    if opened or (closed and not _is_inside_call(text, tools)):
        reasoning, _, rest = text.partition(THINK_CLOSE)
        reasoning = reasoning.strip().removeprefix(THINK_OPEN).strip()
    # Tags in the arguments of a call are no matter: the calls are read before the tags are looked for.
    outside = "".join(_find_calls(rest, tools)[0]) if "think>" in rest else ""
    if THINK_OPEN in (reasoning or "") or THINK_OPEN in outside or THINK_CLOSE in outside:
        raise InputError("a message has a think tag that is not around the reasoning at its start")
    return reasoning, rest


def _is_inside_call(text: str, tools: Tools) -> bool:
    """Whether the first `</think>` is part of a call's arguments and ends no reasoning."""
    if not _SUSPICIOUS.search(text, 0, text.index(THINK_CLOSE)):
        return False
    try:
        around, calls = _find_calls(text, tools)
    except InputError:
        return False
    return bool(calls) and THINK_CLOSE not in "".join(around)


def _find_calls(text: str, tools: Tools) -> tuple[list[str], list[dict]]:
    """Returns (texts around the calls, calls)."""
    # First what is a call as a whole, because a tag within its strings is only text.
    if text.lstrip()[:1] in ("[", "{", "`"):
        if calls := _read_whole_value(text.strip(), tools):
            return [], calls
        if begins_with_list(text, tools) and (found := find_python_calls(text, tools)):
            return _without_beginnings(found[0]), found[1]
    around, calls, position = [], [], 0
    while opening := _OPENING.search(text, position):
        around.append(text[position : opening.start()])
        added, position = _read_tagged(text, opening, tools)
        calls += added
    around.append(text[position:])
    _without_beginnings(around)
    if calls:
        return around, calls
    if tools:
        named = _MISTRAL_NAME.match(text)
        if named and named[1] in tools:  # a tool's name and an object, as ChatGLM writes calls
            return [], read_call_text(text, tools)[1]
        mentions = [*_REACT_ACTION.finditer(text)]
        if _ARGUMENTS_IN_OBJECT.search(text):
            mentions += _NAME_IN_OBJECT.finditer(text)
        for mention in mentions:
            if mention[1].strip() in tools:
                raise InputError(f"a message has a call within other text: {mention[0][:80]}")
    return find_python_calls(text, tools) or ([text], [])


def _without_beginnings(around: list[str]) -> list[str]:
    """Returns the texts; raises InputError where one of them begins a call."""
    if found := next(filter(None, map(CALL_TAG.search, around)), None):
        raise InputError(f"a message begins a call that cannot be read: {found[0]!r} has no call in it or is not read")
    return around


def _read_whole_value(text: str, tools: Tools) -> list[dict] | None:
    """Returns the calls of a text that is one value, within a code block or not; None where it is anything else than calls."""
    fenced = _FENCED.fullmatch(text)
    body = fenced[1] if fenced else text
    try:
        value = parse_value(body)
    except InputError as error:
        if not _OBJECT_CALL.match(body):
            return None
        try:
            return read_call_text(body, tools)[1]  # one object after the other, as Llama writes several calls
        except InputError:
            raise InputError(f"a message begins a call that cannot be read: {error}") from error
    if is_call(value, tools):
        return calls_of_value(value)
    listed = value.get("tool_calls") if isinstance(value, dict) else value
    if isinstance(listed, list) and ((not listed and tools) or any(is_call(part, tools) for part in listed)):
        raise InputError(f"a message is a list, and not all of it are calls: {body[:80]}")
    first = listed[0] if isinstance(listed, list) and listed else value
    if isinstance(first, str | dict) and any(name in tools for name in ([first] if isinstance(first, str) else first)):
        raise InputError(f"a message names a tool in a form that is not read: {body[:80]}")
    return None


def _read_tagged(text: str, opening: re.Match, tools: Tools) -> tuple[list[dict], int]:
    """Reads the calls behind an opening tag. Returns (calls, position behind their closing tag)."""
    tag = opening[0].lower()
    try:
        if tag == "<function=":
            return _read_xml_or_json(text, opening.start(), tools)
        if _QUOTED_START.match(text, opening.end()):
            calls, end = _read_quoted(text, opening.end(), _ENDS_OF_QUOTED[tag])
        else:
            calls, end = _read_values(text, opening.end(), tools, named=tag == "[tool_calls]")
        if not calls:
            raise InputError(f"nothing is called behind {opening[0]}")
        if closed := _CLOSINGS[tag].match(text, end):
            return calls, closed.end()
        if tag not in _OFTEN_UNCLOSED:
            raise InputError(f"{_TAGS[tag]} is expected at {text[end : end + 40]!r}")
    except InputError as error:
        raise InputError(f"a message begins a call that cannot be read: {error}") from error
    return calls, end


def _read_values(text: str, start: int, tools: Tools, *, named: bool = False) -> tuple[list[dict], int]:
    """Reads all calls from `start` on: objects or lists of them, Qwen3-coder's XML, Python's lists. Returns (calls, end).

    Args:
        named: whether an object may be the arguments of the name before it, as Mistral writes them.
    """
    calls: list[dict] = []
    end = start
    while True:
        at = _next_value(text, end)
        opening = _OPENING.match(text, at)
        if opening and opening[0] == "<function=":
            added, end = _read_xml_or_json(text, at, tools)
        elif text[at : at + 1] in ("{", "[") and not opening and not text.startswith("[/", at):
            listed = read_python_list(text, at, tools)
            value, end = listed or decode_value(text, at)
            added = value if listed else calls_of_value(value)
        elif named and (name := _MISTRAL_NAME.match(text, at)):
            value, end = decode_value(text, name.end())
            added = [call_of({"name": name[1], "arguments": value})]
        else:
            return calls, end
        calls += added


def _next_value(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \n\t\r,;":
        at += 1
    return at


def _read_quoted(text: str, start: int, ends: re.Pattern) -> tuple[list[dict], int]:
    """Reads a call whose quotes do not say where it ends: at the first of the tags, or the end of the text, where it can be read."""
    fault = InputError("its arguments in single quotes have no end")
    places = [found.start() for found in islice(ends.finditer(text, start), MAX_ATTEMPTS)]
    for end in [*places, len(text)]:
        try:
            return [_quoted_call(without_end_tokens(text[start:end]))], end
        except InputError as error:
            fault = error
    raise fault


def _quoted_call(text: str) -> dict:
    """Reads glaive's call `{"name": "f", "arguments": '{"city": "Oslo"}'}`."""
    opening, closing = _QUOTED_START.match(text), _QUOTED_END.search(text)
    if not opening or not closing or closing.start() < opening.end():
        raise InputError("its arguments in single quotes have no end")
    written = text[opening.end() : closing.start()]
    try:
        arguments = parse_value(written)
    except InputError:
        arguments = parse_value(written.replace("\\'", "'"))
    return call_of({"name": opening[1], "arguments": arguments})


def _read_xml_or_json(text: str, start: int, tools: Tools) -> tuple[list[dict], int]:
    """Reads `<function=name>` with Qwen3-coder's parameters or Llama's JSON in it. Returns (calls, end)."""
    found = _XML_CALL.match(text, start)
    if not found:
        raise InputError("<function=...> has no end")
    name, body = found[1].strip(), found[2]
    if body.lstrip().startswith("{"):
        value, end = decode_value(body, len(body) - len(body.lstrip()))
        if body[end:].strip():
            raise InputError(f"{name} has text behind its arguments")
        return [call_of({"name": name, "arguments": value})], found.end()
    arguments: dict[str, Any] = {}
    position = 0
    while parameter := _XML_PARAMETER.match(body, position):
        key, position = parameter[1].strip(), parameter.end()
        if key in arguments:
            raise InputError(f"{name} has {key!r} twice")
        arguments[key] = _xml_value(parameter[2], tools.get(name, {}).get(key))
    if body[position:].strip():
        raise InputError(f"{name} has text between its parameters")
    return [{"name": name, "arguments": arguments}], found.end()


def _xml_value(text: str, schema: Any) -> Any:
    """Returns a parameter's value: text where the tool's schema says string or nothing, and JSON where it says anything else."""
    text = text.removeprefix("\n").removesuffix("\n")
    if not isinstance(schema, dict) or schema.get("type") in ("string", None):
        return text
    try:
        return parse_value(text)
    except InputError:
        return text  # the schema refuses it, with the reason
