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

import ast
import json
import re
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from star.errors import InputError

JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
PLAIN_TYPES: dict[str, dict] = {
    **{name: {"type": name} for name in JSON_TYPES},
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "none": {"type": "null"},
    "list": {"type": "array"},
    "tuple": {"type": "array"},
    "set": {"type": "array", "uniqueItems": True},
    "dict": {"type": "object"},
    "any": {},
    "callable": {"type": "string"},  # a function is given as its source text
    # types of Java and JavaScript, as BFCL writes them
    **{name: {"type": "integer"} for name in ("long", "short", "byte", "bigint")},
    "double": {"type": "number"},
    "char": {"type": "string"},
    **{name: {"type": "object"} for name in ("hashmap", "map")},
    "arraylist": {"type": "array"},
}
MAX_TYPE_LENGTH = 300
STATES_A_DEFAULT = re.compile(r"\bdefaults?\b( value)? (is|to)\b", re.IGNORECASE)
TYPES = Draft202012Validator({})


def repeated_name(tools: list[dict]) -> str | None:
    """Returns the first name that two tools share, or None."""
    seen: set[str] = set()
    for tool in tools:
        if tool["name"] in seen:
            return tool["name"]
        seen.add(tool["name"])
    return None


def normalize_tool(tool: dict) -> dict:
    """Returns a tool of any dialect in normal form. Normalising twice changes nothing.

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
        written = next(
            (inner[key] for key in ("inputSchema", "input_schema", "parameters", "arguments") if key in inner), None
        )
        parameters = _parameters(written)
        # After the normalisation, because the dialects' own types are not JSON Schema.
        _check_schema(json.dumps(parameters))
    except SchemaError as error:
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise InputError(f"tool {name!r}: parameters{where} is not valid JSON Schema: {error.message[:200]}") from error
    except (RecursionError, OverflowError) as error:
        raise InputError(f"tool {name!r}: its parameters are too deep or too large to check") from error
    except InputError as error:
        raise InputError(f"tool {name!r}: {error}") from error
    hints = {key: value for key, value in inner.items() if key.startswith("x-")}
    return {"name": name, "description": described, "parameters": parameters, **hints}


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


@lru_cache(maxsize=4096)
def _check_schema(schema: str) -> None:
    """Checks a schema. Cached, because many tools share a schema and a check takes milliseconds."""
    Draft202012Validator.check_schema(json.loads(schema))


@lru_cache(maxsize=4096)
def validator(schema: str) -> Draft202012Validator:
    """Returns a validator for a schema as JSON text. The empty registry prevents `$ref` from loading anything from elsewhere."""
    return Draft202012Validator(json.loads(schema), registry=Registry())


def is_valid(value: object, schema: dict) -> bool:
    """Whether the schema accepts the value. A schema that cannot be used accepts nothing."""
    try:
        return validator(json.dumps(schema)).is_valid(value)
    except (Unresolvable, RecursionError):
        return False


def coerce_value(value: object, schema: dict) -> object:
    """Returns the value in the scalar type that the schema names, where its text stays the same: "5" becomes 5, "true" becomes true.

    Any other value is returned unchanged, and the schema rejects it later.
    """
    wanted = schema.get("type")
    if wanted == "string" and isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if wanted in ("integer", "number", "boolean") and isinstance(value, str):
        text = value.strip()
        try:
            # Lower case, because data sets write Python's True and False, too.
            read = json.loads(text.lower() if wanted == "boolean" else text)
        except (ValueError, RecursionError):
            return value
        return read if TYPES.is_type(read, wanted) and read - read == 0 else value  # nan and inf are not JSON
    return value


def json_schema_of_type(text: str) -> tuple[dict, bool]:
    """Reads a Python annotation or a JSON Schema type name; returns (schema, whether the annotation makes it optional).

    The text is parsed and never executed. `optional`, `required` or `default=<literal>` may follow the type; a type that allows None is
    optional, too. A default becomes the schema's `default`.

    Raises:
        InputError: the text is not such a type.
    """
    unreadable = InputError(f"{text[:80]!r} is not a type: write a JSON Schema type, or a Python one such as List[int]")
    if len(text) > MAX_TYPE_LENGTH:
        raise unreadable
    try:
        parsed = ast.parse(
            f"t({text}\n)", mode="eval"
        ).body  # parsed as the arguments of a call, so that `str, default='x'` is valid, too
        if not (isinstance(parsed, ast.Call) and isinstance(parsed.func, ast.Name) and parsed.args):
            raise unreadable
        schema = _schema_of_node(parsed.args[0])
        remarks = {ast.unparse(node).lower() for node in parsed.args[1:]}
        extras = {keyword.arg: _literal(keyword.value) for keyword in parsed.keywords}
    # Python's parser raises the last two for text that nests too deeply.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise unreadable from error
    if not remarks <= {"optional", "required"} or not extras.keys() <= {"default"}:
        raise unreadable
    return {**schema, **extras}, "optional" in remarks or bool(extras) or _admits_null(schema)


def _parameters(written: object) -> dict:
    """Returns the parameters of a tool, in whichever dialect, as a JSON Schema object."""
    written = {} if written is None else written
    if not isinstance(written, dict):
        raise InputError(f"parameters must be an object, got {str(written)[:80]}")
    if _is_flat(written):
        # From here on both dialects of xLAM are one.
        written = {"type": "dict", "properties": written}
    properties = written.get("properties", {})
    neither = written and not written.keys() & {"type", "properties"}
    if neither or not isinstance(properties, dict) or written.get("type", "object") not in ("object", "dict"):
        raise InputError('parameters must be {"type": "object", "properties": {...}} or a map of parameters')
    normal = {name: _property(name, schema) for name, schema in properties.items()}
    by_xlam = properties.items() if written.get("type") == "dict" else ()
    required = written.get("required", [name for name, schema in by_xlam if not _optional_in_xlam(schema)])
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        raise InputError(f"required must list names of its parameters, got {str(required)[:120]}")
    placed = ("type", "properties", "required", "$schema")
    others = {key: _part(key, value) for key, value in written.items() if key not in placed}
    return {"type": "object", "properties": normal, "required": required, **others}


def _is_flat(written: dict) -> bool:
    """Whether this is xLAM's flat map, where every value is a schema. A parameter may be named `type` or `properties`."""

    def schema_like(value: object) -> bool:
        return isinstance(value, dict) and isinstance(value.get("type") or value.get("description"), (str, list))

    return bool(written) and all(schema_like(value) for value in written.values())


def _optional_in_xlam(schema: dict | bool) -> bool:
    if isinstance(schema, bool) or "default" in schema or STATES_A_DEFAULT.search(str(schema.get("description"))):
        return True
    written = schema.get("type")
    return isinstance(written, str) and json_schema_of_type(written)[1]


def _property(name: str, written: object) -> dict | bool:
    try:
        return _schema(written)
    except InputError as error:
        raise InputError(f"parameter {name!r}: {error}") from error


def _schema(written: object) -> dict | bool:
    """Normalises a schema at any depth: reads Python types, coerces defaults, and rejects references to other documents."""
    if isinstance(written, bool):
        return written
    if not isinstance(written, dict):
        raise InputError(f"a schema must be an object, got {str(written)[:80]}")
    if not str(written.get("$ref", "#")).startswith("#"):
        raise InputError(f"the reference {written['$ref']!r} leaves the document: write the schema in place")
    rest = {key: _part(key, value) for key, value in written.items() if key != "type"}
    kind = written.get("type")
    if isinstance(kind, str):
        return _coerce_default({**json_schema_of_type(kind)[0], **rest})
    if kind is not None and not (isinstance(kind, list) and all(part in JSON_TYPES for part in map(str, kind))):
        raise InputError(f"{str(kind)[:80]} is not a type: write a JSON Schema type or a list of them")
    return _coerce_default(rest if kind is None else {"type": kind, **rest})


def _part(key: str, value: object) -> object:
    """Returns the value of a schema's keyword, with the schemas inside it normalised."""
    if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: _property(name, schema) for name, schema in value.items()}
    if key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
        return [_schema(schema) for schema in value]
    if key in ("items", "additionalProperties", "not") and isinstance(value, dict):
        return _schema(value)
    return value


def _coerce_default(schema: dict) -> dict:
    """Gives a default the type of its parameter ("10" becomes 10) and removes one that cannot have it ('fasta' for an integer).

    An integer whose default is a fraction is a number: xLAM writes latitudes as `int` with the default '40.41'.
    """
    kinds = schema.get("type")
    if "default" not in schema or kinds is None:
        return schema
    # As text or as number: xLAM writes defaults either way.
    number = coerce_value(schema["default"], {"type": "number"})
    if kinds == "integer" and isinstance(number, float) and not number.is_integer():
        kinds = "number"
    default = coerce_value(schema["default"], {"type": kinds})
    settled = {**schema, "type": kinds, "default": default}
    if not any(TYPES.is_type(default, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        del settled["default"]
    return settled


def _admits_null(schema: dict) -> bool:
    return "null" in schema.get("type", []) or {"type": "null"} in schema.get("anyOf", [])


def _schema_of_node(node: ast.expr) -> dict:
    """Returns one node of an annotation's syntax tree as JSON Schema.

    Raises:
        ValueError: it is not a type.
    """
    match node:
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Name(id=name) | ast.Attribute(attr=name) if name.lower() in PLAIN_TYPES:
            return dict(PLAIN_TYPES[name.lower()])
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([_schema_of_node(left), _schema_of_node(right)])
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inside):
            return _generic(name.lower(), inside.elts if isinstance(inside, ast.Tuple) else [inside])
    raise ValueError(ast.dump(node))


def _literal(node: ast.expr) -> object:
    """Returns a Python literal as a JSON value.

    Raises:
        ValueError, TypeError: JSON has no such value.
    """
    return json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))


def _generic(name: str, parts: list[ast.expr]) -> dict:
    if name == "literal":
        return {"enum": [_literal(part) for part in parts]}
    if name == "callable":
        return dict(PLAIN_TYPES[name])
    if name == "tuple" and parts and isinstance(parts[-1], ast.Constant) and parts[-1].value is ...:
        name, parts = "list", parts[:-1]
    schemas = [_schema_of_node(part) for part in parts]
    match name, schemas:
        case "list" | "set", [items]:
            return {**PLAIN_TYPES[name], "items": items}
        case "tuple", [first, *others] if all(other == first for other in others):
            return {"type": "array", "items": first, "minItems": len(schemas), "maxItems": len(schemas)}
        case "tuple", [_, *_]:
            return {"type": "array", "prefixItems": schemas, "minItems": len(schemas), "maxItems": len(schemas)}
        case "dict", [{"type": "string"}, values]:
            return {"type": "object", "additionalProperties": values}
        case "dict", [_, _]:
            return {"type": "object"}  # JSON has text keys only, so another key type says nothing about the values
        case "union", [_, *_]:
            return _union(schemas)
        case "optional", [schema]:
            return _union([schema, {"type": "null"}])
    raise ValueError(name)


def _union(schemas: list[dict]) -> dict:
    """Returns a schema that accepts what any of these accepts: one `type` where all are bare types, else `anyOf`."""
    if {} in schemas:
        return {}
    kinds: list[str] = []
    for schema in schemas:
        if schema.keys() != {"type"}:
            return {"anyOf": schemas}
        kinds += [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    # In JSON Schema an integer is a number as well.
    kinds = [kind for kind in dict.fromkeys(kinds) if not (kind == "integer" and "number" in kinds)]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}
