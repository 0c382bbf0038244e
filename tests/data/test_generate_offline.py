"""The offline generator."""

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from star.config.files import packaged_file
from star.config.row_kinds import ROW_KIND_WEIGHTS
from star.data.cleaning import clean
from star.data.draw_values import draw_value
from star.data.generate_offline import generate_rows
from star.data.importers import kind_of
from star.data.tool_files import load_tools
from star.data.tools import normalize_tool, public_tool
from star.errors import InputError


@pytest.fixture(scope="module")
def tools() -> list[dict]:
    return load_tools(packaged_file("tools.json"))


def test_the_same_seed_gives_the_same_rows(tools: list[dict]) -> None:
    assert list(generate_rows(tools, 40, seed=3)) == list(generate_rows(tools, 40, seed=3))
    assert list(generate_rows(tools, 40, seed=3)) != list(generate_rows(tools, 40, seed=4))


def test_more_rows_begin_with_the_same_rows(tools: list[dict]) -> None:
    assert list(islice(generate_rows(tools, 90, seed=3), 40)) == list(generate_rows(tools, 40, seed=3))


def test_rows_without_reasoning_are_the_same_but_for_it(tools: list[dict]) -> None:
    plain, reasoned = (list(generate_rows(tools, 60, seed=3, reasoning=reasoning)) for reasoning in (False, True))
    for without, row in zip(plain, reasoned, strict=True):
        *before, answer = row["messages"]
        assert answer.pop("reasoning_content") and without["messages"] == [*before, answer]
        assert without["tools"] == row["tools"] and without["id"] != row["id"]
    assert not set(clean(plain).reasons()) - {"duplicate", "near_duplicate"}


def test_every_row_is_clean(tools: list[dict]) -> None:
    result = clean(generate_rows(tools, 400, seed=1))
    assert not set(result.reasons()) - {"duplicate", "near_duplicate"}
    assert result.fitted == 0


def test_all_kinds_come_in_their_shares(tools: list[dict]) -> None:
    rows = list(generate_rows(tools, 1000, seed=1))
    for kind, share in ROW_KIND_WEIGHTS.items():
        assert sum(row["kind"] == kind for row in rows) / 1000 == pytest.approx(share, abs=0.06)


def test_the_values_of_a_call_are_in_the_request(tools: list[dict]) -> None:
    for row in generate_rows(tools, 200, seed=2):
        said = " ".join(message["content"] for message in row["messages"][:-1]).lower()
        for call in row["messages"][-1]["tool_calls"]:
            for value in call["arguments"].values():
                assert str(value).lower() in said


def test_an_irrelevant_row_shows_no_tool_that_was_asked_for(tools: list[dict]) -> None:
    answers = {}
    for row in generate_rows(tools, 600, seed=5):
        if row["kind"] == "simple":
            answers[row["messages"][0]["content"].lower()] = row["messages"][-1]["tool_calls"][0]["name"]
    asked = [row for row in generate_rows(tools, 600, seed=5) if row["kind"] == "irrelevance"]
    known = [(row, answers.get(row["messages"][0]["content"].lower())) for row in asked]
    assert any(name for _, name in known)
    for row, name in known:
        assert name not in {tool["name"] for tool in row["tools"]}


def test_prompts_show_no_hints(tools: list[dict]) -> None:
    shown = json.dumps([public_tool(tool) for tool in tools])
    assert "x-queries" not in shown
    assert "examples" not in shown


def test_tools_without_hints_are_asked_for_by_their_description() -> None:
    plain = [
        normalize_tool({"name": "find_route", "description": "Find a route.", "parameters": {"from": {"type": "str"}}}),
        normalize_tool({"name": "ping", "description": "", "parameters": {}}),
    ]
    texts = {row["messages"][0]["content"].lower() for row in generate_rows(plain, 60, seed=0)}
    assert any("find a route: from " in text for text in texts)
    assert any("ping" in text for text in texts)


def test_one_tool_is_too_few(tools: list[dict]) -> None:
    with pytest.raises(InputError, match="at least 2 tools"):
        list(generate_rows(tools[:1], 1, seed=0))


OPENAPI = Path(__file__).parent / "openapi.yaml"


def test_every_call_of_an_openapi_document_passes_an_independent_validator() -> None:
    rows = list(generate_rows(load_tools(OPENAPI), 600, seed=4, masked=0.2))
    assert {row["kind"] for row in rows} == set(ROW_KIND_WEIGHTS)
    for row in rows:
        schemas = {tool["name"]: tool["parameters"] for tool in row["tools"]}
        for message in row["messages"]:
            for call in message.get("tool_calls") or []:
                Draft202012Validator(schemas[call["name"]]).validate(call["arguments"])


def test_the_kinds_are_what_their_names_say(tools: list[dict]) -> None:
    for row in generate_rows(tools, 400, seed=6):
        if row["kind"] in ("simple", "parallel", "parallel-multiple", "irrelevance", "multi-step"):
            assert kind_of(row["messages"]) == row["kind"]
        if row["kind"] == "multiple":
            assert len(row["tools"]) > 1
        if row["kind"] == "missing-parameter":
            assert row["messages"][-1]["content"].startswith("Which ")


def test_an_irrelevant_row_shows_no_tool_that_does_the_same() -> None:
    twins = [
        normalize_tool({"name": name, "description": "Find a route between two cities", "parameters": {}})
        for name in ("find_route", "route_find")
    ]
    other = normalize_tool({"name": "play_song", "description": "Play music", "parameters": {}})
    for row in generate_rows([*twins, other], 60, seed=1, kinds={"irrelevance": 1}):
        shown = {tool["name"] for tool in row["tools"]}
        asked_for_route = "route" in row["messages"][0]["content"].lower()
        assert not (asked_for_route and shown & {"find_route", "route_find"})


def test_masked_rows_keep_no_name_and_stay_valid(tools: list[dict]) -> None:
    names = {tool["name"] for tool in tools} | {name for tool in tools for name in tool["parameters"]["properties"]}
    rows = list(generate_rows(tools, 60, seed=3, masked=1.0))
    assert clean(rows).reasons().keys() <= {"duplicate", "near_duplicate"}
    for row in rows:
        [parent] = row["parents"]
        assert row["id"] == f"{parent}-masked"
        for call in row["messages"][-1]["tool_calls"]:
            assert not names & {call["name"], *call["arguments"]}


def test_every_row_says_where_it_comes_from(tools: list[dict]) -> None:
    for row in generate_rows(tools, 5, seed=3, licence="CC0-1.0"):
        assert (row["generator"], row["licence"], row["parents"], row["seed"]) == ("star-offline-2", "CC0-1.0", [], 3)


def test_rows_from_a_position_on_are_the_same_rows(tools: list[dict]) -> None:
    assert list(generate_rows(tools, 30, seed=3, start=20)) == list(generate_rows(tools, 30, seed=3))[20:]


def test_a_kind_that_does_not_exist_is_an_input_error(tools: list[dict]) -> None:
    with pytest.raises(InputError, match="'complex'"):
        list(generate_rows(tools, 1, seed=0, kinds={"complex": 1.0}))


SCHEMAS = st.recursive(
    st.one_of(
        st.builds(
            lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
            st.integers(-99, 99),
            st.integers(0, 50),
        ),
        st.builds(
            lambda low, size: {"type": "number", "minimum": low, "maximum": low + 1 + size},
            st.integers(-9, 9),
            st.integers(0, 9),
        ),
        st.just({"type": "boolean"}),
        st.sampled_from(
            [{"type": "string"}, {"type": "string", "format": "date"}, {"type": "string", "format": "email"}]
        ),
        st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True).map(lambda values: {"enum": values}),
    ),
    lambda inner: st.one_of(
        inner.map(lambda items: {"type": "array", "items": items}),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(
            lambda parts: {"type": "object", "properties": parts, "required": list(parts)}
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 999))
def test_a_drawn_value_is_valid(schema: dict, seed: int) -> None:
    import random

    Draft202012Validator(schema).validate(draw_value(schema, random.Random(seed)))


def test_the_order_of_the_kinds_changes_nothing() -> None:
    tools = load_tools(packaged_file("tools.json"))
    kinds = {"simple": 0.5, "irrelevance": 0.2, "parallel": 0.3}
    backwards = dict(reversed(kinds.items()))
    assert list(generate_rows(tools, 40, seed=3, kinds=kinds)) == list(
        generate_rows(tools, 40, seed=3, kinds=backwards)
    )
