"""Cleaning: every fault has its reason, nothing vanishes, and rows that differ only in their values stay."""

import json
from pathlib import Path

import pytest

from star.data.cleaning import clean
from star.data.generate_offline import generate_rows
from star.data.importers import import_rows
from star.data.rows import Reject
from star.data.splits import split
from star.data.tools import normalize_tool

TOOLS = [
    normalize_tool({"name": "get_weather", "parameters": {"city": {"type": "str"}, "days": {"type": "int, optional"}}}),
    normalize_tool({"name": "tag", "parameters": {"code": {"type": "str"}, "price": {"type": "float, optional"}}}),
]
LONG = "Could you please tell me in some detail what the weather is going to be like in {} over the coming week?"


def row(
    identity: str, query: str = "Weather in Oslo?", *, calls: list | None = None, content: str = "", **other
) -> dict:
    answer = {"role": "assistant", "content": content, "tool_calls": calls or []}
    messages = [{"role": "user", "content": query}, answer]
    return {"id": identity, "messages": messages, "tools": TOOLS, "source": "test", "kind": "simple", **other}


def weather(**arguments: object) -> list[dict]:
    return [{"name": "get_weather", "arguments": arguments}]


GOOD = row("good", "Is it nice in Bern today?", calls=weather(city="Bern"))


def with_schema(schema: dict) -> list[dict]:
    return [
        {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"a": schema}, "required": []}}
    ]


@pytest.mark.parametrize(
    ("faulty", "reason", "says"),
    [
        (row("x", "  ", calls=weather(city="Oslo")), "empty_query", "blank"),
        ({**row("x"), "messages": [{"role": "assistant", "content": "Hi"}]}, "empty_query", "no user turn"),
        (row("x", content=" "), "empty_target", "neither"),
        (row("x", content=" ") | {"unanswered": "yes"}, "empty_target", "neither"),
        (row("x", calls=weather(city="Oslo"), tools=[*TOOLS, TOOLS[0]]), "duplicate_tool", "get_weather"),
        (row("x", calls=[{"name": "get_wether", "arguments": {}}]), "unknown_tool", "get_wether"),
        (row("x", calls=weather(city="Oslo", town="Oslo")), "unknown_argument", "'town'"),
        (row("x", calls=weather(days=3)), "missing_argument", "'city'"),
        (row("x", calls=weather(city="Oslo", days="3 + 1")), "refused_value", "'3 + 1' is not of type 'integer'"),
        (row("x", calls=weather(city="Oslo", days=2.5)), "refused_value", "2.5 is not of type 'integer'"),
        (row("x", calls=weather(city=["Oslo"])), "refused_value", "get_weather['city']"),
        (
            row("x", calls=[{"name": "f", "arguments": {"a": 1}}], tools=with_schema({"$ref": "#/$defs/none"})),
            "unusable_schema",
            "none",
        ),
        (
            row("x", calls=[{"name": "f", "arguments": {"a": 1}}], tools=with_schema({"$ref": "#/properties/a"})),
            "unusable_schema",
            "RecursionError",
        ),
        (row("good", calls=weather(city="Oslo")), "duplicate_id", "'good'"),
        ({**GOOD, "id": "x"}, "duplicate", "good"),
        (row("x", "is it nice in Bern today? ", calls=weather(city="Bern")), "duplicate", "good"),
        (row("x", "Is it nice in Bern today??", calls=weather(city="Bern")), "near_duplicate", "same target as good"),
        ({**GOOD, "id": "x", "tools": TOOLS[:1]}, "near_duplicate", "1.00 alike"),
    ],
)
def test_every_fault_has_its_reason(faulty: dict, reason: str, says: str) -> None:
    result = clean([GOOD, faulty])
    assert result.kept == [GOOD]
    [reject] = result.rejects
    assert (reject.id, reject.reason, reject.row) == (faulty["id"], reason, faulty)
    assert says in reject.detail
    assert result.reasons() == {reason: 1}


def test_a_reference_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", fetched.append)
    tools = with_schema({"$ref": "http://127.0.0.1:9/schema"})
    result = clean([row("x", calls=[{"name": "f", "arguments": {"a": 1}}], tools=tools)])
    assert result.reasons() == {"unusable_schema": 1}
    assert fetched == []


def test_rows_that_differ_only_in_their_values_stay() -> None:
    cities = [row(city, LONG.format(city), calls=weather(city=city)) for city in ("Oslo", "Rome", "Lima")]
    digits = [row(str(n), f"{LONG.format('Oslo')} {n} days", calls=weather(city="Oslo", days=n)) for n in range(1, 9)]
    assert clean(cities + digits).kept == cities + digits


def test_one_question_in_almost_the_same_words_is_kept_once() -> None:
    first = row("a", LONG.format("Oslo"), calls=weather(city="Oslo"))
    again = row("b", LONG.format("Oslo").replace("Could", "Would"), calls=weather(city="Oslo"))
    reworded = row("c", "Oslo's weather, the next seven days?", calls=weather(city="Oslo"))
    result = clean([first, again, reworded])
    assert result.kept == [first, reworded]
    assert result.reasons() == {"near_duplicate": 1}


def test_a_value_whose_text_stays_is_fitted_to_its_type() -> None:
    given = row("a", calls=[*weather(city="Oslo", days="3"), {"name": "tag", "arguments": {"code": 20, "price": 5}}])
    before = json.dumps(given)
    result = clean([given, GOOD])
    calls = result.kept[0]["messages"][-1]["tool_calls"]
    assert [call["arguments"] for call in calls] == [{"city": "Oslo", "days": 3}, {"code": "20", "price": 5}]
    assert result.fitted == 1
    assert json.dumps(given) == before


def test_a_reject_of_the_importer_goes_through() -> None:
    unreadable = Reject("x", "unreadable", "not a row", 3)
    result = clean([unreadable, GOOD])
    assert result.kept == [GOOD]
    assert result.rejects == [unreadable]


def test_generated_rows_are_without_fault_and_the_result_is_the_same_every_time() -> None:
    rows = list(generate_rows(TOOLS, 120, seed=3))
    result = clean(rows)
    assert result == clean(rows)
    assert len(result.kept) + len(result.rejects) == len(rows)
    assert result.reasons().keys() <= {"duplicate", "near_duplicate"}
    assert clean(result.kept).kept == result.kept


def test_the_real_sample_loses_few_rows_and_splits(shared: Path) -> None:
    rows = list(import_rows(shared / "data" / "xlam_sample.jsonl", source="xlam"))
    assert len(rows) == 512
    result = clean(rows)
    assert result.reasons() == {"refused_value": 5, "duplicate_tool": 2, "missing_argument": 1}
    assert {reject.id for reject in result.rejects if reject.reason == "missing_argument"} == {"xlam-40276"}
    assert (len(result.kept), result.fitted) == (504, 3)
    train, held = split(result.kept, heldout=64, seed=0)
    assert (len(train), len(held)) == (440, 64)
