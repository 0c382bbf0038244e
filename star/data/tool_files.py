"""Tools from a file, whatever it is: a list of tools in any dialect, an MCP answer, one JSON Schema, an OpenAPI document; JSON or YAML."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.openapi import is_openapi, tools_of_openapi
from star.data.read_records import read_records
from star.data.rows import Reject
from star.data.tools import normalize_tool, repeated_name
from star.errors import InputError

MAX_FILE_BYTES = 64 * 2**20  # bytes; the largest public OpenAPI documents have ten million
MAX_NODES = 1_000_000


def load_tools(path: Path) -> list[dict]:
    """The tools of a file in normal form.

    Raises:
        InputError: no such file, not JSON or YAML, no tool in it, a tool that cannot be read, or two tools of one name.
    """
    tools = []
    for tool in read_tools(path):
        if isinstance(tool, Reject):
            raise InputError(
                f"{path}: {tool.detail}: correct it, or leave it out with `star data import {path.name} --out tools`"
            )
        tools.append(tool)
    if repeated := repeated_name(tools):
        raise InputError(f"the tools file {path} has two tools named {repeated!r}: rename one")
    return tools


def read_tools(path: Path) -> Iterator[dict | Reject]:
    """Yields a tool in normal form, with the tool as it was written in `x-original`, or a Reject, for each one in the file.

    Raises:
        InputError: no such file, too large, not JSON or YAML, or no tool in it.
    """
    document = _read_document(path)
    if is_openapi(document):
        try:
            yield from tools_of_openapi(document)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return
    listed = _find_tool_list(document)
    if not isinstance(listed, list) or not listed:
        raise InputError(
            f'the tools file {path} must hold a list of tools, {{"tools": [...]}} or an OpenAPI 3 document, with at least one'
        )
    for number, written in enumerate(listed, start=1):
        try:
            tool = normalize_tool(written)
        except InputError as error:
            yield Reject(f"{path.name}:{number}", "unusable_tool", str(error), written)
            continue
        yield tool if "x-original" in tool or written == tool else {**tool, "x-original": written}


def holds_tools(path: Path) -> bool:
    """Whether a file holds tools; else it holds rows, which are records with messages or a query."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    if path.is_dir() or path.suffix.lower() in (".parquet", ".jsonl"):
        return False
    for _, record in read_records(path):
        if isinstance(record, dict):
            return not record.keys() & {"messages", "conversations", "query"}
    return True  # an object over many lines: an OpenAPI document, for one


def _find_tool_list(document: object) -> object:
    """The list of tools in a document: itself, its `tools` (also of an MCP `tools/list` answer), or the one tool it is."""
    if not isinstance(document, dict):
        return document
    if isinstance(result := document.get("result"), dict) and "tools" in result:
        document = result
    if "tools" in document or "functions" in document:
        return document.get("tools", document.get("functions"))
    if "name" in document or isinstance(document.get("function"), dict):
        return [document]
    if document.get("type") == "object" and isinstance(
        document.get("title"), str
    ):  # a JSON Schema, as pydantic writes it
        parameters = {key: value for key, value in document.items() if key not in ("title", "description")}
        return [{"name": document["title"], "description": document.get("description", ""), "parameters": parameters}]
    return None


def _read_document(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the tools file {path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"the tools file {path} has more than {MAX_FILE_BYTES // 2**20} MiB: give the tools alone")
    try:
        if path.suffix.lower() in (".yaml", ".yml"):
            return _parse_yaml(content)
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the tools file {path} is not JSON: {error}") from error


def _parse_yaml(content: bytes) -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        """Dates stay the text they are: JSON has no other."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        loaded = yaml.load(content, Loader=Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(f"nor YAML: {' '.join(str(error).split())[:200]}") from error
    return _as_json_value(loaded, [MAX_NODES])


def _as_json_value(value: Any, left: list[int]) -> Any:
    """The value as JSON has it; `left` counts down, because a few aliases of aliases stand for billions of nodes."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"written out it has more than {MAX_NODES:,} parts")
    if isinstance(value, dict):
        return {str(key): _as_json_value(part, left) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_json_value(part, left) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}, which JSON does not have")
