r"""Finds the tools of a record: in a field of their own, or in the text of its system message.

    >>> tools_in_system('Use them if required -\n{"name": "f", "description": "", "parameters": {}}\n\n{"name": "g", "parameters": {}}')
    [{'name': 'f', 'description': '', 'parameters': {}}, {'name': 'g', 'parameters': {}}]

ToolACE writes one JSON list into that text, glaive one object after the other, and Hermes either of both within `<tools>` tags.
"""

import re
from typing import Any

from star.chat import TOOLS_HEADER
from star.data.literals import decode_value, parse_field
from star.errors import InputError

TOOL_FIELDS = ("tools", "functions")
_SCHEMA_KEYS = ("parameters", "description", "input_schema", "inputSchema")
_ANNOUNCED = re.compile(r"(?:following|available|list of) (?:functions|tools|apis)\b", re.IGNORECASE)
_TAGGED = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_OTHER_FIELD = re.compile(r"(?:^|_)(?:tool|function|api)s?(?:_|$)", re.IGNORECASE)
MAX_ATTEMPTS = 100  # a text has one list; each failed attempt at reading one takes time in proportion to the text


def tools_of_record(record: dict) -> list | None:
    """Returns the tools that a record lists in a field of its own, as they are written; None where it has none.

    Raises:
        InputError: they cannot be read, or there are some under a name that is not read.
    """
    for field in TOOL_FIELDS:
        if tools := list_field(record, field):
            return [parse_field(tool, field) if isinstance(tool, str) else tool for tool in tools]
    # Nemotron has them in the metadata.
    metadata = record.get("metadata")
    if isinstance(metadata, str) and '"tools"' in metadata:
        metadata = parse_field(metadata, "metadata")
    if isinstance(metadata, dict) and list_field(metadata, "tools"):
        return tools_of_record({"tools": metadata["tools"]})
    return [] if any(record.get(field) is not None for field in TOOL_FIELDS) else None


def require_no_other_tools(record: dict) -> None:
    """Raises InputError where a record without tools has a field that looks like them under another name.

    The field may stand within another one, such as the settings of the chat template.
    """
    within = [inner for value in record.values() if isinstance(value, dict) for inner in value.items()]
    for key, value in [*record.items(), *within]:
        looks = isinstance(value, list | dict) or (isinstance(value, str) and value.lstrip()[:2] in ("[{", '{"'))
        if key not in TOOL_FIELDS and _OTHER_FIELD.search(str(key)) and looks and value:
            raise InputError(f"no tools under `tools` or `functions`, but there is `{key}`: rename it to `tools`")


def repeats_tools(system: str, tools: list) -> bool:
    """Whether a system message lists the same tools within `<tools>` tags, as Hermes' does."""
    if "<tools>" not in system:
        return False
    try:
        return _names(tools_in_system(system) or []) == _names(tools)
    except InputError:
        return False


def text_before_tools(system: str) -> str:
    """Returns what Qwen's chat template was given as the system message that it wrote the tools behind; "" for any other text."""
    before, header, _ = system.partition(TOOLS_HEADER.strip())
    return before.strip() if header else ""


def _names(tools: list) -> set[str]:
    given = [tool for tool in tools if isinstance(tool, dict)]
    wrapped = [inner if isinstance(inner := tool.get("function"), dict) else tool for tool in given]
    return {str(tool.get("name")) for tool in wrapped}


def list_field(record: dict, key: str) -> list:
    """Returns the list at `key`. It may be written as JSON text; a missing one is empty.

    Raises:
        InputError: there is something else at `key`.
    """
    value = [] if record.get(key) is None else record[key]
    if isinstance(value, str):
        value = parse_field(value, key) if value.strip() else []
    if not isinstance(value, list):
        raise InputError(f"`{key}` must be a list, got {str(value)[:80]}")
    return value


def tools_in_system(system: str) -> list | None:
    """Returns the tools that the text of a system message lists; None where it lists none.

    Raises:
        InputError: the text says that tools follow, and they cannot be read.
    """
    for tagged in _TAGGED.finditer(system):
        # The text says "within <tools></tools> tags" before it opens the tags that hold the tools.
        if tagged[1].strip():
            return _read_all(tagged[1], "<tools>")
    start = -1
    for _ in range(MAX_ATTEMPTS):
        start = system.find("[{", start + 1)
        if start < 0:
            break
        if listed := _read_if_tools(system, start):
            return listed[0]
    return _tools_one_by_one(system)


def _tools_one_by_one(system: str) -> list | None:
    """Reads tools as glaive lists them: one object after the other, with blanks or commas between."""
    tools: list = []
    announced = _ANNOUNCED.search(system)
    start = system.find("{", announced.end() if announced else 0)
    while start >= 0 and (found := _read_if_tools(system, start)):
        tools += found[0]
        start = found[1]
        while start < len(system) and system[start] in " \n\t\r,":
            start += 1
        start = start if system.startswith("{", start) else -1
    if start >= 0 and (tools or announced):
        raise InputError(f"the system message lists tools that cannot be read, at {system[start : start + 80]!r}")
    return tools or None


def _read_if_tools(text: str, start: int) -> tuple[list, int] | None:
    """Returns (tools, end) of the list or the object at `start`; None where it is not made of tools."""
    try:
        value, end = decode_value(text, start)
    except InputError:
        return None
    listed = value if isinstance(value, list) else [value]
    # Behind such words a name alone tells a tool. Without them, a list may be of anything that has names.
    announced = isinstance(value, list) and _ANNOUNCED.search(text, 0, start)
    found = all(map(_has_name, listed)) and (announced or any(map(_has_schema, listed)))
    return (listed, end) if found else None


def _has_name(tool: Any) -> bool:
    return isinstance(tool, dict) and ("name" in tool or "function" in tool)


def _has_schema(tool: Any) -> bool:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    return isinstance(inner, dict) and "name" in inner and any(key in inner for key in _SCHEMA_KEYS)


def _read_all(text: str, where: str) -> list:
    """Reads values from the start to the end of a text: lists of tools, or one tool after the other."""
    tools: list = []
    position = 0
    while rest := text[position:].lstrip(" \n\t\r,"):
        try:
            value, position = decode_value(text, len(text) - len(rest))
        except InputError as error:
            raise InputError(f"the tools within {where} cannot be read: {error}") from error
        tools += value if isinstance(value, list) else [value]
    if not all(map(_has_name, tools)):
        raise InputError(f"what is within {where} is not a list of tools: {text.strip()[:80]}")
    return tools
