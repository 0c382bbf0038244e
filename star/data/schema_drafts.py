"""Translates the keywords of one schema from older drafts and OpenAPI into those of 2020-12, without looking into the schemas inside.

    translated({"minimum": 0, "exclusiveMinimum": True})                  # ({"exclusiveMinimum": 0}, None)
    translated({"items": [{"type": "string"}], "additionalItems": False})
                                                          # ({"prefixItems": [{"type": "string"}], "items": False}, None)

`nullable` stays, because it needs the type as it is read.
"""

from typing import Any

from star.data.json_schema import coerce_value

# What names a schema, holds others that references point to, or says nothing of values.
LEFT_OUT = frozenset(
    {"$schema", "$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$defs", "definitions"}
    | {"xml", "externalDocs", "discriminator", "example"}
    | {"additionalItems", "dependencies", "divisibleBy", "disallow", "extends"}
)
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def translated(written: dict) -> tuple[dict[str, Any], object]:
    """Returns (keywords of 2020-12, reference or None) of a schema. Keywords that are known keep their order."""
    schema = {key: value for key, value in written.items() if not _is_left_out(key, value)}
    reference = next((schema.pop(key) for key in REFERENCES if key in schema), None)
    for key in REFERENCES:
        schema.pop(key, None)
    _translate_arrays(schema, written)
    _translate_bounds(schema)
    _translate_objects(schema, written)
    _translate_draft_3(schema, written)
    if "example" in written and "examples" not in schema:
        schema["examples"] = [written["example"]]
    return schema, reference


def own_requirement(schema: object) -> bool | None:
    """Returns what a property says of itself in draft 3 (`required: true`), or None."""
    said = coerce_value(schema.get("required"), {"type": "boolean"}) if isinstance(schema, dict) else None
    return said if isinstance(said, bool) else None


def _is_left_out(key: str, value: object) -> bool:
    if key == "id":  # draft 4's name of a schema
        return isinstance(value, str)
    return key in LEFT_OUT


def _translate_arrays(schema: dict, written: dict) -> None:
    if not isinstance(parts := schema.get("items"), list):
        return
    del schema["items"]
    if parts:
        schema.setdefault("prefixItems", parts)
    if (others := written.get("additionalItems")) is not None:
        schema["items"] = others


def _translate_bounds(schema: dict) -> None:
    for bound in ("Minimum", "Maximum"):  # until draft 4 a flag beside the bound, then the bound itself
        flag = coerce_value(schema.get(f"exclusive{bound}"), {"type": "boolean"})
        if flag is True and bound.lower() in schema:
            schema[f"exclusive{bound}"] = schema.pop(bound.lower())
        elif isinstance(flag, bool):
            del schema[f"exclusive{bound}"]


def _translate_objects(schema: dict, written: dict) -> None:
    if isinstance(schema.get("required"), bool) or own_requirement(schema) is not None:
        del schema["required"]  # said of the property itself: `required` of the schema around it has its name
    properties = schema.get("properties")
    if isinstance(properties, dict) and (schema.get("required") is None or isinstance(schema["required"], list)):
        named = [name for name, part in properties.items() if own_requirement(part)]
        listed = schema.get("required") or []
        if named:
            schema["required"] = listed + [name for name in named if name not in listed]
    dependencies = written.get("dependencies")
    for name, needs in dependencies.items() if isinstance(dependencies, dict) else ():
        if isinstance(needs, list | str):
            names = [needs] if isinstance(needs, str) else needs
            schema["dependentRequired"] = {name: names} | _given(schema, "dependentRequired", dict)
        else:
            schema["dependentSchemas"] = {name: needs} | _given(schema, "dependentSchemas", dict)


def _translate_draft_3(schema: dict, written: dict) -> None:
    if "divisibleBy" in written:
        schema.setdefault("multipleOf", written["divisibleBy"])
    if (refused := written.get("disallow")) is not None:
        schema.setdefault("not", {"type": refused})
    if (base := written.get("extends")) is not None:
        schema["allOf"] = [*(base if isinstance(base, list) else [base]), *_given(schema, "allOf", list)]


def _given(schema: dict, key: str, kind: type) -> Any:
    """Returns the value of a keyword that the translation adds to, or an empty one where it is missing or of another kind."""
    return schema[key] if isinstance(schema.get(key), kind) else kind()
