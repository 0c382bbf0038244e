"""Reads the types of parameters as Python programmers write them: `List[Tuple[float, float]]`, `int, optional`, Java's `HashMap`.

    json_schema_of_type("List[int], optional")    # ({"type": "array", "items": {"type": "integer"}}, True)

The text is parsed and never executed.
"""

import ast
import json

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
