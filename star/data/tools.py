"""Normalises tool schemas: every dialect that people write becomes one form.

    {"name": "book", "parameters": {"city": {"type": "str"}, "nights": {"type": "int, optional"}}}                  # xLAM
    {"name": "book", "description": "", "parameters": {"type": "object", "properties": {"city": {"type": "string"},
     "nights": {"type": "integer"}}, "required": ["city"]}}                                                         # normal form

In the normal form, `parameters` is a JSON Schema (2020-12) object with `properties` and `required`; keys that begin with `x-` are kept
beside it. The dialects: this form, OpenAI's {"type": "function", "function": ...}, MCP's `inputSchema`, and the two of xLAM (a flat map
of parameters, and `type: "dict"` with properties), whose types are Python annotations such as `List[Tuple[float, float]]`.

Which parameters are required: those in `required`, where it is given; a JSON Schema object without it requires nothing. xLAM never says.
There a parameter is required unless its type says optional, it has a default, or its description states one, because xLAM's answers leave
such parameters out. (The description counts because xLAM sometimes puts a function's default on the wrong parameter.)
"""

import json
import re
from typing import Any

from jsonschema.exceptions import SchemaError

from star.data.json_schema import check_schema, same_json
from star.data.literals import parse_field
from star.data.python_types import json_schema_of_type
from star.data.schema_drafts import LEFT_OUT, own_requirement
from star.data.schema_keywords import KNOWN
from star.data.schema_normal_form import SchemaReader, TooLarge
from star.data.schema_references import References
from star.errors import InputError
from star.limits import SCHEMA_PARTS

STATES_A_DEFAULT = re.compile(r"\bdefaults?\b( value)? (is|to)\b", re.IGNORECASE)
# Where a tool has its parameters: MCP, Anthropic, OpenAI, xLAM and Cohere.
SCHEMA_KEYS = ("inputSchema", "input_schema", "parameters", "arguments", "parameter_definitions")
# Names of such a place that are not read.
_OTHER_PLACE = re.compile(
    r"(?:(?:input|tool|function|required|optional)_?)?(?:schema|param(?:eter)?s?|args?(?:_?schema)?|arguments?|inputs?|properties)",
    re.IGNORECASE,
)
# Any of these begins a JSON Schema; a map of parameters has none of them.
OPENERS = frozenset({"type", "properties", "$ref", "allOf", "anyOf", "oneOf"})
# Keywords that stand beside the parameters of a flat map, and what they hold there.
BESIDE_FLAT: dict[str, type | tuple[type, ...]] = {
    "type": str, "required": (list, bool, type(None)), "additionalProperties": bool, "$schema": str, "title": str, "description": str,
    "$defs": dict, "definitions": dict,
}  # fmt: skip


def repeated_name(tools: list[dict]) -> str | None:
    """Returns the first name that two tools share, or None."""
    seen: set[str] = set()
    for tool in tools:
        if tool["name"] in seen:
            return tool["name"]
        seen.add(tool["name"])
    return None


def notes_by_tool(tools: list[dict]) -> dict[str, str]:
    """Returns what could not be used of the tools' schemas, by the tool's name."""
    return {tool["name"]: "; ".join(map(str, notes)) for tool in tools if (notes := tool.get("x-notes"))}


def normalize_tool(tool: dict, *, document: object = None) -> dict:
    """Returns a tool of any dialect in normal form. Normalising twice changes nothing.

    `x-notes` of the result says which keywords of its schemas could not be used; without any it is missing.

    Args:
        document: the file that the tool stands in, for references that count from its beginning.

    Raises:
        InputError: the tool cannot be used; the message names it and the reason.
    """
    inner: Any = tool.get("function") if isinstance(tool, dict) and isinstance(tool.get("function"), dict) else tool
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a tool must be an object with a name, got {str(tool)[:120]}")
    try:
        described = inner.get("description") or ""
        if not isinstance(described, str):
            raise InputError("the description must be text")
        written = _written_parameters(inner)
        if isinstance(written, str):  # a table holds schemas that differ as text
            written = parse_field(written, "parameters") if written.strip() else {}
        parameters, notes = _read_parameters(written, References(written, tool, document), beside=inner.get("required"))
        # After the normalisation, because the dialects' own types are not JSON Schema.
        check_schema(json.dumps(parameters))
    except SchemaError as error:
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise InputError(f"tool {name!r}: parameters{where} is not valid JSON Schema: {error.message[:200]}") from error
    except (RecursionError, OverflowError) as error:
        raise InputError(f"tool {name!r}: its parameters are too deep or too large to check") from error
    except InputError as error:
        raise InputError(f"tool {name!r}: {error}") from error
    hints = {key: value for key, value in inner.items() if isinstance(key, str) and key.startswith("x-")}
    # Hints of other forms than ours say nothing here.
    if not isinstance(hints.get("x-notes", []), list):
        del hints["x-notes"]
    if not _is_list_of_texts(hints.get("x-queries", [])):
        del hints["x-queries"]
    if notes:
        hints["x-notes"] = [*hints.get("x-notes", []), *notes]
    return {"name": name, "description": described, "parameters": parameters, **hints}


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _written_parameters(tool: dict) -> Any:
    """Returns a tool's parameters as they are written; without any, an empty object."""
    if (key := next((key for key in SCHEMA_KEYS if tool.get(key) is not None), None)) is not None:
        return tool[key]
    if other := next((key for key, value in tool.items() if value and _OTHER_PLACE.fullmatch(key)), None):
        raise InputError(f"its parameters are under `{other}`, which is not read: rename it to `parameters`")
    return {}


def public_tool(tool: dict) -> dict:
    """Returns the tool as prompts show it: without `x-` keys and `examples`, which are for the generator only."""
    return {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": _without_examples(tool["parameters"]),
    }


def _without_examples(schema: object) -> object:
    if not isinstance(schema, dict):
        return schema
    shown = {key: value for key, value in schema.items() if key != "examples"}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(shown.get(key), dict):
            shown[key] = {name: _without_examples(part) for name, part in shown[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in shown:
            shown[key] = _without_examples(shown[key])
    for key in ("oneOf", "anyOf", "allOf", "prefixItems"):
        if isinstance(shown.get(key), list):
            shown[key] = [_without_examples(part) for part in shown[key]]
    return shown


def _read_parameters(written: Any, references: References, *, beside: object) -> tuple[dict, list[str]]:
    """Returns (parameters, notes). Where its references make a schema too large, fewer of them are followed."""
    for deepest in (SCHEMA_PARTS, 6, 4, 3, 2):
        reader = SchemaReader(references, deepest=deepest)
        try:
            parameters = _parameters(written, reader, beside=beside)
        except TooLarge:
            continue
        if deepest != SCHEMA_PARTS:
            reader.notes.append(f"its references are followed {deepest} deep, because with all of them it is too large")
        return parameters, reader.notes
    raise InputError("its schemas are too large once references are written in place")


def _parameters(written: Any, reader: SchemaReader, *, beside: object) -> dict:
    """Returns the parameters of a tool, in whichever dialect, as a JSON Schema object. `required` may stand beside them."""
    written = {} if written == [] else written  # PHP writes an empty object so
    if not isinstance(written, dict):
        raise InputError(f"parameters must be an object, got {str(written)[:80]}")
    # From here on both dialects of xLAM are one.
    written = _unflattened(written)
    if isinstance(beside, list) and "required" not in written and isinstance(written.get("properties"), dict):
        named = [name for name in beside if isinstance(name, str) and name in written["properties"]]
        written = {**written, "required": named}
    if written.get("type") == "dict":
        written = {**written, "type": "object"} | _requirements_of_xlam(written)
    unreadable = InputError('parameters must be {"type": "object", "properties": {...}} or a map of parameters')
    if not written.keys() & OPENERS and written.keys() - LEFT_OUT - {"additionalProperties", "required"}:
        raise unreadable
    read = reader.read(written)
    # Asked of the schema as it was read, because a reference may lead to the object.
    if (
        not isinstance(read, dict)
        or "object" not in read.get("type", "object")
        or ("properties" not in read and written.get("properties") is not None)
    ):
        raise unreadable
    schema = _with_properties_of_parts({"properties": {}, "required": [], **read})
    for name in schema["required"]:
        if name not in schema["properties"]:
            reader.notes.append(f"{name}: required, but not among the properties: any value is accepted")
            schema["properties"][name] = {}
    placed = ("type", "properties", "required")
    others = {key: value for key, value in schema.items() if key not in placed}
    return {"type": "object", "properties": schema["properties"], "required": schema["required"], **others}


def _unflattened(written: dict) -> dict:
    """Returns xLAM's flat map of parameters as an object with properties; anything else as it is.

    In a flat map every value is a schema, so a parameter may be named `type` or `properties`. Keywords may stand beside the parameters.
    """
    if written and all(_is_schema_like(value) for value in written.values()):
        return {"type": "dict", "properties": written}
    if "properties" in written or written.keys() & OPENERS - {"type"}:
        return written
    beside = {key: value for key, value in written.items() if isinstance(value, BESIDE_FLAT.get(key, ()))}
    properties = {key: value for key, value in written.items() if key not in beside and not key.startswith("x-")}
    # Beside a type, a keyword that holds a schema is more likely the keyword than a parameter of that name.
    if not properties or ("type" in beside and properties.keys() & KNOWN):
        return written
    if not all(_is_schema_like(value) or _has_schema_key(value) for value in properties.values()):
        return written
    if isinstance(beside.get("required"), bool):
        del beside["required"]  # it says nothing of a single parameter
    return {"type": "dict", **beside, "properties": properties}


def _is_schema_like(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type") or value.get("description"), (str, list))


def _has_schema_key(value: object) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint({*OPENERS, "enum", "const", "required"})


def _requirements_of_xlam(written: dict) -> dict:
    """Returns {"required": [...]} where xLAM's dialect leaves it to the parameters, else nothing."""
    properties = written.get("properties")
    if written.get("required") is not None or not isinstance(properties, dict):
        return {}
    return {"required": [name for name, schema in properties.items() if not _optional_in_xlam(schema)]}


def _optional_in_xlam(schema: object) -> bool:
    if (required := own_requirement(schema)) is not None:
        return not required
    if not isinstance(schema, dict) or "default" in schema or STATES_A_DEFAULT.search(str(schema.get("description"))):
        return True
    written = schema.get("type")
    try:
        return isinstance(written, str) and json_schema_of_type(written)[1]
    except InputError:  # the type is left out, with a note, when the schema is read
        return False


def _with_properties_of_parts(schema: dict) -> dict:
    """Returns the schema with the properties that only its alternatives name: a tool's parameters must lie in one place."""
    found: dict[str, list] = {}
    for part in _parts(schema):
        for name, values in part.get("properties", {}).items():
            if name not in schema["properties"] and not any(same_json(values, other) for other in found.get(name, [])):
                found.setdefault(name, []).append(values)
    added = {name: parts[0] if len(parts) == 1 else {"anyOf": parts} for name, parts in found.items()}
    needed = [name for part in schema.get("allOf", []) if isinstance(part, dict) for name in part.get("required", [])]
    for key in ("anyOf", "oneOf"):
        # What every alternative requires, the tool requires.
        each = [part.get("required", []) if isinstance(part, dict) else [] for part in schema.get(key, [])]
        needed += [name for name in (each[0] if each else []) if all(name in names for names in each)]
    required = list(dict.fromkeys([*schema["required"], *needed]))
    return {**schema, "properties": {**schema["properties"], **added}, "required": required}


def _parts(schema: dict) -> list[dict]:
    listed = [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, [])]
    listed += [schema[key] for key in ("then", "else") if key in schema]
    return [part for part in [*listed, *schema.get("dependentSchemas", {}).values()] if isinstance(part, dict)]
