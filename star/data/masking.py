"""Masks and shuffles rows, so that a model does not rely on names and order (Hammer, Lin et al. 2024, arXiv 2410.04587).

Masking gives functions and parameters random names everywhere in a row (book_hotel(city) becomes func_x95re6(arg_k2m0qa)), so only the
descriptions say what they do. Shuffling changes the order of the tools and of each tool's parameters. Both return a new row whose `parents`
name the row it was made of.
"""

import random
import string
from collections.abc import Callable
from typing import Any


def mask_row(row: dict, rng: random.Random) -> dict:
    """Returns the row with random names for its functions and their top-level parameters, in tools, calls and reasoning."""
    functions = {tool["name"]: _random_name(rng, "func") for tool in row["tools"]}
    parameters = {
        tool["name"]: {name: _random_name(rng, "arg") for name in tool["parameters"]["properties"]}
        for tool in row["tools"]
    }
    tools = [_masked_tool(tool, functions[tool["name"]], parameters[tool["name"]]) for tool in row["tools"]]

    def call(made: dict) -> dict:
        renamed = parameters.get(made["name"], {})
        arguments = {renamed.get(name, name): value for name, value in made["arguments"].items()}
        return {"name": functions.get(made["name"], made["name"]), "arguments": arguments}

    messages = [_masked_message(message, functions, call) for message in row["messages"]]
    return _child(row, "mask", messages=messages, tools=tools)


def shuffle_row(row: dict, rng: random.Random) -> dict:
    """Returns the row with its tools, and each tool's parameters, in random order."""
    tools = []
    for tool in rng.sample(row["tools"], len(row["tools"])):
        properties = tool["parameters"]["properties"]
        shuffled = {name: properties[name] for name in rng.sample(list(properties), len(properties))}
        tools.append({**tool, "parameters": {**tool["parameters"], "properties": shuffled}})
    return _child(row, "shuffle", messages=row["messages"], tools=tools)


def _child(row: dict, how: str, *, messages: list[dict], tools: list[dict]) -> dict:
    return {**row, "id": f"{row['id']}-{how}", "messages": messages, "tools": tools, "parents": [row["id"]]}


def _random_name(rng: random.Random, kind: str) -> str:
    return f"{kind}_" + "".join(rng.choices(string.ascii_lowercase + string.digits, k=6))


def _masked_tool(tool: dict, name: str, parameters: dict[str, str]) -> dict:
    masked = _renamed(tool["parameters"], parameters)
    return {**tool, "name": name, "parameters": {**masked, "required": masked.get("required", [])}}


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    """Returns a schema of the parameters with their new names, also in its alternatives and conditions."""
    if not isinstance(schema, dict):
        return schema
    renamed = dict(schema)
    for key in ("properties", "dependentRequired", "dependentSchemas"):
        if key in schema:
            renamed[key] = {names.get(name, name): part for name, part in schema[key].items()}
    if "required" in schema:
        renamed["required"] = [names.get(name, name) for name in schema["required"]]
    for name, needed in renamed.get("dependentRequired", {}).items():
        renamed["dependentRequired"][name] = [names.get(other, other) for other in needed]
    for name, part in renamed.get("dependentSchemas", {}).items():
        renamed["dependentSchemas"][name] = _renamed(part, names)
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            renamed[key] = [_renamed(part, names) for part in schema[key]]
    for key in ("not", "if", "then", "else"):
        if key in schema:
            renamed[key] = _renamed(schema[key], names)
    return renamed


def _masked_message(message: dict, functions: dict[str, str], call: Callable[[dict], dict]) -> dict:
    masked = dict(message)
    if message.get("tool_calls"):
        masked["tool_calls"] = [call(made) for made in message["tool_calls"]]
    if reasoning := message.get("reasoning_content"):
        # The longest name first, because one name may be part of another.
        for name in sorted(functions, key=len, reverse=True):
            reasoning = reasoning.replace(name, functions[name])
        masked["reasoning_content"] = reasoning
    return masked
