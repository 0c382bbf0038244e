"""Reads OpenAPI 3 documents: every operation becomes one tool in normal form.

    GET /shipments/{id}?lang=en, operationId trackShipment
    {"name": "trackShipment", "description": ..., "parameters": {"type": "object", "properties": {"id": ..., "lang": ...}, ...},
     "x-call": {"method": "GET", "path": "/shipments/{id}", "in": {"id": "path", "lang": "query"}, "security": []}, "x-original": {...}}

The tool's parameters are the path, query, header and cookie parameters and the properties of a JSON body. References inside the document
are replaced by what they point to; where a schema contains itself, the inner occurrence becomes a plain object. Credentials are left out,
because a model must not invent them. `x-call` says how to call the operation, `x-original` is the operation as it was written. No prompt
shows either.
"""

import re
from collections.abc import Iterator

from star.data.rows import Reject
from star.data.tools import normalize_tool
from star.errors import InputError

METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")
MAX_SCHEMA_NODES = 20_000  # schema nodes of one operation after its references were replaced
MAX_NAME_LENGTH = 64  # the longest name that OpenAI's API accepts
IGNORED = frozenset(
    {"xml", "externalDocs", "discriminator", "readOnly", "writeOnly", "deprecated", "example", "nullable"}
)
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
    taken: set[str] = set()
    for path, item in paths.items():
        for method in METHODS:
            operation = item.get(method) if isinstance(item, dict) else None
            if operation is None:
                continue
            try:
                # A new count of nodes per operation, because a document may have any number of operations.
                tool = _tool(_Document(document), path, method, item, operation)
            except InputError as error:
                yield Reject(f"{method.upper()} {path}", "unusable_operation", str(error), operation)
                continue
            yield {**tool, "name": _unused_name(tool["name"], taken)}


def _unused_name(name: str, taken: set[str]) -> str:
    free = name
    number = 1
    # Different ids become one name when their characters are replaced or cut.
    while free in taken:
        number += 1
        free = f"{name[: MAX_NAME_LENGTH - 4]}_{number}"
    taken.add(free)
    return free


class _Document:
    """Replaces the references of one operation, and counts its nodes, so that no document can grow without bound."""

    def __init__(self, root: dict) -> None:
        self.root = root
        self.nodes = 0

    def follow(self, reference: object) -> object:
        """Returns what a reference inside the document points to."""
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise InputError(
                f"the reference {str(reference)[:80]!r} leaves the document: bundle it into one file first"
            )
        found: object = self.root
        for part in reference[2:].split("/"):
            # JSON Pointer's order of unescaping: the other way round, ~01 would become a slash.
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise InputError(f"the reference {reference[:80]!r} points to nothing")
            found = found[key]
        return found

    def resolve_object(self, written: object) -> dict:
        """Returns a parameter, body or operation after following its own reference.

        Raises:
            InputError: the references form a circle, or lead to something that is not an object.
        """
        seen = []
        while isinstance(written, dict) and "$ref" in written:
            if written["$ref"] in seen:
                raise InputError(f"the reference {written['$ref']!r} points to itself")
            seen.append(written["$ref"])
            written = self.follow(written["$ref"])
        if not isinstance(written, dict):
            raise InputError(f"expected an object, got {str(written)[:80]}")
        return written

    def resolve_schema(self, written: object, inside: tuple[str, ...] = ()) -> dict:
        """Returns the schema with its references replaced. `inside` are the references that led here."""
        # Counted while they are written in place: references that fan out grow exponentially.
        self.nodes += 1
        if self.nodes > MAX_SCHEMA_NODES:
            raise InputError(
                f"its schemas have more than {MAX_SCHEMA_NODES} parts once references are written in place"
            )
        if isinstance(written, bool):
            return {} if written else {"not": {}}
        if not isinstance(written, dict):
            raise InputError(f"a schema must be an object, got {str(written)[:80]}")
        if (reference := written.get("$ref")) is not None:
            # The inner occurrence is cut off here, because prompts need a finite schema.
            if reference in inside:  # the schema contains itself
                return {"type": "object", "description": f"another {str(reference).rpartition('/')[2]}"}
            # Keywords beside `$ref` add to what it points to.
            beside = {key: value for key, value in written.items() if key != "$ref"}
            found = self.follow(reference)
            if isinstance(found, dict) and found.get("$ref") in (*inside, reference):
                raise InputError(f"the reference {reference!r} points to itself")
            return {
                **self.resolve_schema(found, (*inside, reference)),
                **(self.resolve_schema(beside, inside) if beside else {}),
            }
        return self._keywords(written, inside)

    def _keywords(self, written: dict, inside: tuple[str, ...]) -> dict:
        schema = {key: self._part(key, value, inside) for key, value in written.items() if key not in IGNORED}
        # Merged, because the properties of a body become parameters and must lie in one place.
        if isinstance(parts := schema.pop("allOf", None), list):
            schema = _merged([schema, *parts])
        if "example" in written and "examples" not in schema:
            schema["examples"] = [written["example"]]
        if "examples" in schema and not isinstance(schema["examples"], list):
            del schema["examples"]
        for bound in ("Minimum", "Maximum"):  # in OpenAPI 3.0 a flag beside the bound, in JSON Schema the bound itself
            if schema.get(f"exclusive{bound}") is True and bound.lower() in schema:
                schema[f"exclusive{bound}"] = schema.pop(bound.lower())
            elif isinstance(schema.get(f"exclusive{bound}"), bool):
                del schema[f"exclusive{bound}"]
        return _nullable(schema) if written.get("nullable") is True else schema

    def _part(self, key: str, value: object, inside: tuple[str, ...]) -> object:
        if key == "properties" and isinstance(value, dict):
            # A read-only property belongs to answers; a request must not send it.
            return {name: self.resolve_schema(part, inside) for name, part in value.items() if not _is_read_only(part)}
        if key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            return [self.resolve_schema(part, inside) for part in value]
        if key in ("items", "not") or (key == "additionalProperties" and isinstance(value, dict)):
            return self.resolve_schema(value, inside)
        return value


def _is_read_only(schema: object) -> bool:
    return isinstance(schema, dict) and schema.get("readOnly") is True


def _nullable(schema: dict) -> dict:
    if isinstance(kind := schema.get("type"), str):
        nullable = {**schema, "type": [kind, "null"]}
        # An enum without null would refuse it, whatever the type says.
        return {**nullable, "enum": [*schema["enum"], None]} if "enum" in schema else nullable
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _merged(parts: list[dict]) -> dict:
    """Merges the schemas of an `allOf`: all properties and requirements; of any other keyword the first value."""
    merged: dict = {}
    for part in parts:
        for key, value in part.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required" and isinstance(value, list):
                merged[key] = list(dict.fromkeys([*merged.get(key, []), *value]))
            else:
                merged.setdefault(key, value)
    # A part may require a property that is gone because it is read-only; no call could satisfy that.
    required = [name for name in merged.get("required", []) if name in merged.get("properties", {})]
    return {**merged, "required": required} if "required" in merged else merged


def _tool(document: _Document, path: str, method: str, item: dict, operation: object) -> dict:
    operation = document.resolve_object(operation)
    properties: dict[str, dict] = {}
    required: list[str] = []
    places: dict[str, str] = {}
    for parameter in _parameters(document, item, operation):
        name, place = str(parameter.get("name")), str(parameter.get("in"))
        if place == "header" and name.lower() in CREDENTIAL_HEADERS | _credentials(document, place):
            continue
        if name.lower() in _credentials(document, place):
            continue
        name = name if name not in properties else f"{place}_{name}"
        properties[name] = _described(document.resolve_schema(_parameter_schema(parameter)), parameter)
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
        "name": _name(operation.get("operationId"), method, path),
        "description": _description(operation, method, path),
        "parameters": {"type": "object", "properties": properties, "required": required},
        "x-call": {"method": method.upper(), "path": path, "in": places, "security": _security(document, operation)},
        "x-original": operation,
    }
    return normalize_tool(written)


def _parameters(document: _Document, item: dict, operation: dict) -> list[dict]:
    """Returns the parameters of the path item and of the operation, which override them."""
    found: dict[tuple, dict] = {}
    for written in [*_list(item.get("parameters")), *_list(operation.get("parameters"))]:
        parameter = document.resolve_object(written)
        found[parameter.get("name"), parameter.get("in")] = parameter
    return list(found.values())


def _list(value: object) -> list:
    if value is not None and not isinstance(value, list):
        raise InputError(f"`parameters` must be a list, got {str(value)[:80]}")
    return value or []


def _parameter_schema(parameter: dict) -> object:
    content = parameter.get("content")
    if isinstance(content, dict) and content:
        return next(iter(content.values())).get("schema", {})
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
    listed = operation.get("security", document.root.get("security")) or []
    return sorted({name for entry in listed if isinstance(entry, dict) for name in entry})


def _body(document: _Document, operation: dict) -> Iterator[tuple[str, dict, bool]]:
    """Yields (name, schema, required) of what goes into the body: the properties of an object, anything else as one `body`."""
    if operation.get("requestBody") is None:
        return
    body = document.resolve_object(operation["requestBody"])
    content = body.get("content")
    if not isinstance(content, dict) or not content:
        return
    # JSON where there is a choice, because the arguments of a call are JSON.
    kind = next((kind for kind in content if "json" in kind), next(iter(content)))
    schema = document.resolve_schema(document.resolve_object(content[kind]).get("schema", {}))
    needed = body.get("required") is True
    if schema.get("properties") and not schema.keys() & {"oneOf", "anyOf"}:
        for name, part in schema["properties"].items():
            yield name, part, needed and name in schema.get("required", [])
    else:
        yield "body", _described(schema, body), needed


def _name(given: object, method: str, path: str) -> str:
    """Returns the operation's id, else method and path, in characters that every API accepts."""
    name = given if isinstance(given, str) and given.strip() else f"{method}_{path.strip('/')}"
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:MAX_NAME_LENGTH] or method


def _description(operation: dict, method: str, path: str) -> str:
    for key in ("summary", "description"):
        if isinstance(description := operation.get(key), str) and description.strip():
            return " ".join(description.split())
    return f"{method.upper()} {path}"
