"""Reads tools from a file, JSON or YAML: a list of tools in any dialect, an MCP answer, one JSON Schema, or an OpenAPI document."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.draw_arguments import draw_arguments
from star.data.openapi import is_openapi, tools_of_openapi
from star.data.read_records import read_records
from star.data.rows import Reject, is_too_deep, json_line
from star.data.schema_references import References, name_of
from star.data.tools import normalize_tool, public_tool, repeated_name
from star.errors import InputError
from star.limits import DEPTH, DOCUMENT_BYTES, DOCUMENT_MARKS
from star.time_limit import TookTooLong, record_limit
from star.yaml_documents import parse_yaml


def load_tools(path: Path) -> list[dict]:
    """Reads the tools of a file in normal form.

    Raises:
        InputError: there is no such file, it is not JSON or YAML, has no tool, a tool cannot be read, or two have one name.
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
    """Yields a tool in normal form or a Reject for each tool in the file. `x-original` is the tool as it was written.

    Raises:
        InputError: there is no such file, it is too large, not JSON or YAML, or has no tool.
    """
    document = _read_document(path)
    if is_openapi(document):
        try:
            yield from map(_usable, tools_of_openapi(document))
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
            if is_too_deep(written):
                raise InputError(f"tool {number}: its objects and lists nest deeper than {DEPTH}")
            with record_limit():
                tool = normalize_tool(written, document=document)
        except (InputError, TookTooLong) as error:
            yield Reject(f"{path.name}:{number}", "unusable_tool", str(error), written)
            continue
        # In a file that `star data import` wrote, `x-original` is there already and is closer to the source.
        yield _usable(tool if "x-original" in tool or written == tool else {**tool, "x-original": written})


def _usable(tool: dict | Reject) -> dict | Reject:
    """Returns the tool, or a Reject where no file and no row can hold it, or no arguments for it can be drawn."""
    if isinstance(tool, Reject):
        return tool
    try:
        json_line(public_tool(tool))
        json.dumps(tool, ensure_ascii=False).encode()
    except ValueError as error:
        why = f"a text of it is no UTF-8, or a number of it is none: {error}"
        return Reject(ascii(tool["name"])[:100], "unusable_tool", why, tool)
    try:
        draw_arguments(tool, random.Random(0))  # noqa: S311 - tried here, so that it cannot end a set after hours
    except InputError as error:
        return Reject(tool["name"][:100], "unusable_tool", str(error), tool)
    return tool


def holds_tools(path: Path) -> bool:
    """Whether a file holds tools. Otherwise it holds rows: records with messages, a query or a text of both."""
    if _format_of(path) == "YAML":
        return True
    if path.is_dir() or path.suffix.lower() in (".parquet", ".jsonl"):
        return False
    for _, record in read_records(path):
        if isinstance(record, dict):
            return not record.keys() & {"messages", "conversations", "query", "chat", "instruction"}
    return True  # an object over many lines, such as an OpenAPI document


def _find_tool_list(document: object) -> object:
    """Returns the list of tools in a document: itself, its `tools` (also of an MCP `tools/list` answer), or the one tool that it is."""
    if not isinstance(document, dict):
        return document
    if isinstance(result := document.get("result"), dict) and "tools" in result:
        document = result
    if "tools" in document or "functions" in document:
        return document.get("tools", document.get("functions"))
    if "name" in document or isinstance(document.get("function"), dict):
        return [document]
    return _tool_of_schema(document)


def _tool_of_schema(document: dict) -> list[dict] | None:
    """Returns the one tool that a JSON Schema is, as pydantic and zod write it, or None."""
    said = document
    # A schema that contains itself is written beside its definitions, and so is one that zod gives a name.
    if isinstance(reference := document.get("$ref"), str):
        try:
            target = References(document).follow(reference)
        except InputError:
            return None
        said = {"title": name_of(reference, target), **(target if isinstance(target, dict) else {}), **document}
    if said.get("type") != "object" or not isinstance(said.get("title"), str):
        return None
    parameters = {key: value for key, value in document.items() if key not in ("title", "description")}
    return [{"name": said["title"], "description": said.get("description", ""), "parameters": parameters}]


def _read_document(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # One byte more than allowed tells a file that is too large, without reading all of it.
            content = file.read(DOCUMENT_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the tools file {path}: {error.strerror}") from error
    if len(content) > DOCUMENT_BYTES:
        raise InputError(f"the tools file {path} has more than {DOCUMENT_BYTES // 2**20} MiB: give the tools alone")
    if _format_of(path) == "JSON" and (marks := sum(map(content.count, (b"{", b"[", b",")))) > DOCUMENT_MARKS:
        raise InputError(
            f"the tools file {path} has {marks:,} brackets and commas, more than {DOCUMENT_MARKS:,}: give the tools alone"
        )
    try:
        return parse_yaml(content) if _format_of(path) == "YAML" else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the tools file {path} cannot be read as {_format_of(path)} ({error}): give an OpenAPI document, or JSON with the "
            "tools of OpenAI, MCP or xLAM"
        ) from error


def _format_of(path: Path) -> str:
    return "YAML" if path.suffix.lower() in (".yaml", ".yml") else "JSON"
