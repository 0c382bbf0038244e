"""Reads OpenAPI 3 documents: every operation becomes one tool in normal form.

    GET /shipments/{id}?lang=en, operationId trackShipment
    {"name": "trackShipment", "description": ..., "parameters": {"type": "object", "properties": {"id": ..., "lang": ...}, ...},
     "x-call": {"method": "GET", "path": "/shipments/{id}", "in": {"id": "path", "lang": "query"}, "security": []}, "x-original": {...}}

The tool's parameters are the path, query, header and cookie parameters and the properties of a JSON body. References inside the document
are replaced by what they point to; where a schema contains itself, the inner occurrence becomes a plain object. Credentials are left out,
because a model must not invent them. `x-call` says how to call the operation, `x-original` is the operation as it was written. No prompt
shows either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from star.data.operation_names import tool_name, unused_name
from star.data.rows import Reject, is_too_deep
from star.data.schema_normal_form import Place, SchemaReader
from star.data.schema_references import References
from star.data.tools import normalize_tool
from star.errors import InputError
from star.limits import DEPTH
from star.time_limit import TookTooLong, record_limit

METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace", "query")
CREDENTIAL_HEADERS = frozenset(
    {"authorization", "accept", "content-type"}
)  # the specification ignores these three, too


def is_openapi(document: object) -> bool:
    """Whether this is an OpenAPI document, of whichever version."""
    return isinstance(document, dict) and ("openapi" in document or "swagger" in document)


def tools_of_openapi(document: dict) -> Iterator[dict | Reject]:
    """Yields a tool or a Reject for every operation, in the order of the document.

    Raises:
        InputError: it is not an OpenAPI 3 document, or has no operation.
    """
    if not str(document.get("openapi", "")).startswith("3"):
        version = document.get("openapi") or document.get("swagger")
        raise InputError(f"the document is OpenAPI {version!s:.20}: convert it to OpenAPI 3")
    paths = document.get("paths")
    if not isinstance(paths, dict) or not paths:
        raise InputError("the OpenAPI document has no `paths`, so there is no operation to call")
    references = References(document)
    taken: dict[str, int] = {}
    for path, item in paths.items():
        if str(path).startswith("x-"):
            continue
        try:
            found = list(_operations(item, references))
        except InputError as error:
            yield Reject(str(path), "unusable_path", str(error), item)
            continue
        for method, shared, operation in found:
            try:
                if is_too_deep(operation):
                    raise InputError(f"its objects and lists nest deeper than {DEPTH}")
                # A new reader per operation, because a document may have any number of operations and each may only grow so far.
                with record_limit():
                    tool = _tool(
                        _Document(document, SchemaReader(references, for_requests=True)),
                        path,
                        method,
                        shared,
                        operation,
                    )
            except (InputError, TookTooLong, RecursionError) as error:
                yield Reject(f"{method.upper()} {path}", "unusable_operation", str(error), operation)
                continue
            yield {**tool, "name": unused_name(tool["name"], taken)}


def _operations(item: object, references: References) -> Iterator[tuple[str, dict, object]]:
    """Yields (method, path item, operation) of a path item, which may be a reference.

    Raises:
        InputError: the reference cannot be followed, or it is no path item.
    """
    if item is None:
        return
    shared = _followed(item, references)
    if isinstance(item, dict):
        # What stands beside the reference counts for this path.
        shared = {**shared, **{key: value for key, value in item.items() if key != "$ref"}}
    others = shared.get("additionalOperations")
    listed = {method: shared.get(method) for method in METHODS} | (others if isinstance(others, dict) else {})
    for method, operation in listed.items():
        if operation is not None:
            yield method, shared, operation


def _followed(written: object, references: References) -> dict:
    """Returns a path item, parameter, body or operation after following its own reference.

    Raises:
        InputError: the references form a circle, or lead to something that is not an object.
    """
    seen = []
    while isinstance(written, dict) and "$ref" in written:
        if written["$ref"] in seen:
            raise InputError(f"the reference {written['$ref']!r} points to itself")
        seen.append(written["$ref"])
        written = references.follow(written["$ref"])
    if not isinstance(written, dict):
        raise InputError(f"expected an object, got {str(written)[:80]}")
    return written


@dataclass(frozen=True)
class _Document:
    """A document, with the reader of one of its operations."""

    root: dict
    reader: SchemaReader

    def follow(self, written: object) -> dict:
        return _followed(written, self.reader.references)

    def schema(self, written: object, name: str = "") -> dict:
        """Returns a schema in normal form. With the name of a parameter, faults inside it do not cost the operation."""
        return self.reader.read(written, Place(path=(name,)) if name else Place())


def _tool(document: _Document, path: str, method: str, item: dict, operation: object) -> dict:
    operation = document.follow(operation)
    properties: dict[str, dict] = {}
    required: list[str] = []
    places: dict[str, str] = {}
    for parameter in _parameters(document, item, operation):
        name, place = parameter["name"], str(parameter.get("in"))
        if place == "header" and name.lower() in CREDENTIAL_HEADERS | _credentials(document, place):
            continue
        if name.lower() in _credentials(document, place):
            continue
        name = name if name not in properties else f"{place}_{name}"
        properties[name] = _described(document.schema(_parameter_schema(parameter), name), parameter)
        places[name] = place
        # A path cannot be called with a place left empty, whatever the document says.
        if place == "path" or parameter.get("required") is True:
            required.append(name)
    # A body's property may have the name of a parameter: both are kept, under different names.
    for name, schema, needed in _body(document, operation):
        name = name if name not in properties else f"body_{name}"
        properties[name] = schema
        places[name] = "body"
        required += [name] if needed else []
    written = {
        "name": tool_name(operation.get("operationId"), method, path),
        "description": _description(operation, method, path),
        "parameters": {"type": "object", "properties": properties, "required": required},
        "x-call": {"method": method.upper(), "path": path, "in": places, "security": _security(document, operation)},
        "x-original": operation,
    }
    notes = document.reader.notes
    return normalize_tool({**written, "x-notes": notes} if notes else written)


def _parameters(document: _Document, item: dict, operation: dict) -> list[dict]:
    """Returns the parameters of the path item and of the operation, which override them."""
    found: dict[tuple, dict] = {}
    for written in [*_list(item.get("parameters")), *_list(operation.get("parameters"))]:
        parameter = document.follow(written)
        if not isinstance(parameter.get("name"), str):
            raise InputError(f"a parameter must have a name, got {str(parameter)[:80]}")
        found[parameter["name"], str(parameter.get("in"))] = parameter
    return list(found.values())


def _list(value: object) -> list:
    if value is not None and not isinstance(value, list):
        raise InputError(f"`parameters` must be a list, got {str(value)[:80]}")
    return value or []


def _parameter_schema(parameter: dict) -> object:
    content = parameter.get("content")
    if isinstance(content, dict) and content:
        media = next(iter(content.values()))
        return media.get("schema", {}) if isinstance(media, dict) else media
    schema = parameter.get("schema", {})
    if "example" in parameter and isinstance(schema, dict) and "$ref" not in schema:
        return {"example": parameter["example"], **schema}
    return schema


def _described(schema: dict, parameter: dict) -> dict:
    description = parameter.get("description")
    return {**schema, "description": description} if isinstance(description, str) and description else schema


def _credentials(document: _Document, place: str) -> set[str]:
    """Returns the names, in lower case, of the parameters that carry API keys."""
    schemes = _components(document, "securitySchemes")
    return {
        str(scheme.get("name")).lower()
        for scheme in schemes.values()
        if isinstance(scheme, dict) and scheme.get("type") == "apiKey" and scheme.get("in") == place
    }


def _components(document: _Document, kind: str) -> dict:
    components = document.root.get("components")
    found = components.get(kind) if isinstance(components, dict) else None
    return found if isinstance(found, dict) else {}


def _security(document: _Document, operation: dict) -> list[str]:
    listed = operation.get("security", document.root.get("security"))
    listed = listed if isinstance(listed, list) else []
    return sorted({name for entry in listed if isinstance(entry, dict) for name in entry})


def _body(document: _Document, operation: dict) -> Iterator[tuple[str, dict, bool]]:
    """Yields (name, schema, required) of what goes into the body: the properties of an object, anything else as one `body`.

    A body of which the document says nothing is no parameter: there would be nothing to fill in.
    """
    if operation.get("requestBody") is None:
        return
    body = document.follow(operation["requestBody"])
    content = body.get("content")
    if not isinstance(content, dict) or not content:
        return
    # JSON where there is a choice, because the arguments of a call are JSON.
    kind = next((kind for kind in content if "json" in kind), next(iter(content)))
    written = document.follow({} if content[kind] is None else content[kind]).get("schema")
    schema = document.schema({} if written is None else written)
    needed = body.get("required") is True
    if schema.get("properties") and not schema.keys() & {"oneOf", "anyOf"}:
        for name, part in schema["properties"].items():
            yield name, part, needed and name in schema.get("required", [])
    elif not _is_empty(schema):
        yield "body", _described(schema, body), needed


def _is_empty(schema: dict) -> bool:
    """Whether a schema asks for an object and says nothing of what is in it."""
    kinds = schema.get("type", "object")
    says = {
        key for key in schema if key not in ("type", "title", "properties", "required") and not key.startswith("x-")
    }
    return (
        "object" in ([kinds] if isinstance(kinds, str) else kinds)
        and schema.get("additionalProperties", False) is False
        and not any(schema.get("examples", []))
        and not says - {"additionalProperties", "examples"}
    )


def _description(operation: dict, method: str, path: str) -> str:
    for key in ("summary", "description"):
        if isinstance(description := operation.get(key), str) and description.strip():
            return " ".join(description.split())
    given = operation.get("operationId")
    # The name is then in other letters, or method and path, and only the id says what it does.
    if isinstance(given, str) and given.strip() and not given.isascii():
        return " ".join(given.split())
    return f"{method.upper()} {path}"
