"""OpenAPI documents: which operations become tools, under which names, and what becomes of their bodies."""

import json
import re

import pytest

from star.data.openapi import tools_of_openapi
from star.data.operation_names import tool_name
from star.data.rows import Reject

INTEGER = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}


def tools_of(paths: dict, **components: dict) -> tuple[dict[str, dict], list[Reject]]:
    found = list(tools_of_openapi({"openapi": "3.1.0", "paths": paths, "components": components}))
    rejects = [tool for tool in found if isinstance(tool, Reject)]
    return {tool["name"]: tool for tool in found if not isinstance(tool, Reject)}, rejects


def operation(name: str, body: object = None, **more: object) -> dict:
    content = {} if body is None else {"requestBody": {"required": True, "content": {"application/json": body}}}
    return {"operationId": name, "summary": f"Do {name}", **content, **more}


def test_path_items_behind_references_are_read() -> None:
    item = {"parameters": [INTEGER], "get": operation("show"), "delete": operation("drop")}
    paths = {
        "/cats/{id}": {"$ref": "#/components/pathItems/One"},
        "/dogs/{id}": {"$ref": "#/paths/~1cats~1{id}", "put": operation("change")},
        "/far": {"$ref": "./far.yaml"},
        "/round": {"$ref": "#/paths/~1round"},
        "/list": [],
        "/empty": None,
        "x-note": {"get": "no path"},
    }
    tools, rejects = tools_of(paths, pathItems={"One": item})
    assert [(tool["x-call"]["method"], tool["x-call"]["path"]) for tool in tools.values()] == [
        ("GET", "/cats/{id}"), ("DELETE", "/cats/{id}"), ("GET", "/dogs/{id}"), ("PUT", "/dogs/{id}"), ("DELETE", "/dogs/{id}"),
    ]  # fmt: skip
    assert all(tool["parameters"]["required"] == ["id"] for tool in tools.values())
    assert [reject.id for reject in rejects] == ["/far", "/round", "/list"]
    assert "leaves the document" in rejects[0].detail


def test_parameters_and_bodies_behind_references_are_read() -> None:
    body = {"content": {"application/json": {"schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}}
    written = {
        "operationId": "f",
        "parameters": [{"$ref": "#/components/parameters/Id"}],
        "requestBody": {"$ref": "#/components/requestBodies/A"},
        "responses": {"200": {"$ref": "elsewhere.yaml#/ok"}},
    }
    tools, rejects = tools_of({"/x/{id}": {"post": written}}, parameters={"Id": INTEGER}, requestBodies={"A": body})
    assert not rejects
    assert tools["f"]["x-call"]["in"] == {"id": "path", "a": "body"}


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        ({}, []),
        ({"schema": {}}, []),
        ({"schema": {"type": "object"}}, []),
        ({"schema": {"type": "object", "properties": {}, "title": "Empty", "additionalProperties": False}}, []),
        ({"schema": {"type": "object", "properties": {"id": {"type": "string", "readOnly": True}}}}, []),
        ({"schema": {"type": "object", "example": {}}}, []),
        ({"schema": {"type": "object", "additionalProperties": True}}, ["body"]),
        ({"schema": {"type": "object", "additionalProperties": {"type": "string"}}}, ["body"]),
        ({"schema": {"type": "object", "description": "Any settings"}}, ["body"]),
        ({"schema": {"type": "array", "items": {"type": "string"}}}, ["body"]),
        ({"schema": {"type": "string"}}, ["body"]),
    ],
)
def test_a_body_of_which_nothing_is_said_is_no_parameter(body: dict, parameters: list[str]) -> None:
    tools, _ = tools_of({"/x": {"post": operation("f", body)}})
    assert list(tools["f"]["parameters"]["properties"]) == parameters
    assert tools["f"]["parameters"]["required"] == parameters


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("trackShipment", "trackShipment"),
        ("track shipment!", "track_shipment"),
        ("größeÄndern", "groesseAendern"),
        ("usuários", "usuarios"),
        ("список заказов", "spisok_zakazov"),
        ("ΛίσταΤιμών", "ListaTimon"),
        ("한국", "hangug"),
        ("ひらがな", "hiragana"),
        ("查询订单", "get_orders_id"),
        ("查询Order", "get_orders_id"),
        ("!!", "get_orders_id"),
        (None, "get_orders_id"),
        (5, "get_orders_id"),
    ],
)
def test_a_name_is_readable_and_valid(given: object, name: str) -> None:
    assert tool_name(given, "get", "/orders/{id}") == name


def test_operations_in_other_scripts_can_be_told_apart() -> None:
    paths = {
        "/用户/{id}": {"get": operation("查询用户"), "delete": {"operationId": "删除用户"}},
        "/订单": {"get": operation("查询订单"), "post": operation("创建订单")},
    }
    tools, _ = tools_of(paths)
    assert len(tools) == 4
    assert all(re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", name) for name in tools)
    assert not any(name in ("get", "get_2", "post") for name in tools)
    [deleted] = [tool for name, tool in tools.items() if name.startswith("delete")]
    assert deleted["description"] == "删除用户", "the id is all that says what it does"
    assert list(tools_of(dict(reversed(paths.items())))[0]) == list(tools)[2:] + list(tools)[:2], "names are stable"


def test_keywords_of_other_drafts_cost_no_operation() -> None:
    parts = {"type": "array", "items": {"$recursiveRef": "#"}}
    rule = {
        "$recursiveAnchor": True, "type": "object", "discriminator": {"propertyName": "k"}, "xml": {"name": "r"},
        "properties": {
            "k": {"type": "string", "nullable": True, "example": "or", "pattern": r"^\p{L}+$"}, "parts": parts,
            "n": {"type": "integer", "id": "n", "minimum": 0, "exclusiveMinimum": True, "divisibleBy": 5},
        },
    }  # fmt: skip
    body = {"schema": {"type": "object", "properties": {"rule": {"$ref": "#/components/schemas/Rule"}}}}
    tools, rejects = tools_of({"/x": {"post": operation("f", body)}}, schemas={"Rule": rule})
    assert not rejects
    read = tools["f"]["parameters"]["properties"]["rule"]["properties"]
    assert read["k"] == {"type": ["string", "null"], "x-pattern": r"^\p{L}+$", "examples": ["or"]}
    assert read["n"] == {"type": "integer", "exclusiveMinimum": 0, "multipleOf": 5}
    assert read["parts"]["items"] == {"type": "object", "description": "another Rule"}
    assert "$" not in json.dumps(tools["f"]["parameters"]).replace("+$", "")
    assert [note.split(":")[0] for note in tools["f"]["x-notes"]] == ["rule.k"]
