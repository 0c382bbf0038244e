import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.data.json_schema import fault_of_value, is_valid
from star.data.json_schema_validator import TooMuchWork
from star.data.schema_patterns import SlowPattern, _UnderDeadline, fault_of_pattern, matches
from star.limits import PATTERN_SECONDS_IN_ALL

ORDINARY = [
    r"^[a-z0-9]+(-[a-z0-9]+)*$", r"^\d{4}-\d{2}-\d{2}$", r"\w+@\w+", r"^\S+$", r"^[\s\S]{1,20}$", r"[^\w.]", r"^\W\D$", r"\bab\b", "a|b$",
    r"^(?:[A-Z]{2}){0,3}$", r"^.{0,2000}$", r"(?i)straße", r"[[:a]", r"[]a]", r"^a{,3}$", r"\u0061", r"(?=.*b)a", r"(a|b)\1", r"[^\]]",
    r"\Z",
]  # fmt: skip
LETTERS = st.text(st.sampled_from("ab-_1. \n\té٣ſKß\xa0\u3000AZ@[]:"), max_size=8)


@pytest.mark.parametrize("pattern", ORDINARY)
@given(text=LETTERS)
def test_a_pattern_means_what_it_means_in_python(pattern: str, text: str) -> None:
    assert fault_of_pattern(pattern) is None
    assert matches(pattern, text) == (re.search(pattern, text) is not None)


@pytest.mark.parametrize("pattern", ["^(a|a)*$", "^(a+)+$", r"^(\w+\s?)*$", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_pattern_that_backtracks_is_searched_at_once(pattern: str) -> None:
    start = time.process_time()
    assert not matches(pattern, "a" * 5000 + "!")
    assert not is_valid({"x": "a" * 5000 + "!"}, {"properties": {"x": {"pattern": pattern}}})
    assert not is_valid({"a" * 5000 + "!": 1}, {"patternProperties": {pattern: {}}, "additionalProperties": False})
    assert time.process_time() - start < 2


def test_a_pattern_beyond_re2_ends_at_its_deadline_and_is_not_tried_again() -> None:
    pattern = r"^(?=[ab])(a|aa|b|bb)*$(?<!z)"
    with pytest.raises(SlowPattern, match=r"takes more than 0\.5 s"):
        matches(pattern, "a" * 60 + "!")
    start = time.process_time()
    with pytest.raises(SlowPattern):
        matches(pattern, "b" * 60 + "!")
    assert time.process_time() - start < 0.1


def test_a_pattern_that_is_too_long_or_repeats_too_much_is_refused_by_name() -> None:
    assert "more than 10,000 characters" in str(fault_of_pattern("a" * 10_001))
    assert "more than 20,000" in str(fault_of_pattern("(((a{900}){900}){900})"))
    assert fault_of_pattern("^.{0,4000}$") is None


def test_schemas_that_double_the_work_at_each_level_are_ended() -> None:
    schema: dict = {"properties": {"a": {}}}
    for _ in range(25):
        schema = {"allOf": [schema, {"unevaluatedProperties": True}], "unevaluatedProperties": False}
    with pytest.raises(TooMuchWork, match="500,000 steps"):
        fault_of_value({"a": 1}, schema)


def test_unique_items_are_found_in_linear_time() -> None:
    values = [*range(50_000), *map(str, range(50_000))]
    assert is_valid(values, {"uniqueItems": True})
    assert is_valid([1, True, "1", [1], [True], {"a": 1}, {"a": True}], {"uniqueItems": True})
    assert not is_valid([{"a": [1.0], "b": 2}, {"b": 2, "a": [1]}], {"uniqueItems": True})


def test_properties_by_pattern_count_as_evaluated() -> None:
    schema = {"allOf": [{"patternProperties": {"^a": {"type": "integer"}}}], "unevaluatedProperties": False}
    assert is_valid({"ab": 1}, schema)
    assert not is_valid({"b": 1}, schema)
    assert not is_valid({"ab": "x"}, schema)


def test_searches_below_the_deadline_are_lost_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(text: str, timeout: float) -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    monkeypatch.setattr(_UnderDeadline, "lost", 0.0)
    searcher = _UnderDeadline("(?=a)a")
    assert searcher("a") and _UnderDeadline.lost == 0
    monkeypatch.setattr(searcher, "search", search)
    searcher("a")
    assert _UnderDeadline.lost >= 0.05
    monkeypatch.setattr(_UnderDeadline, "lost", PATTERN_SECONDS_IN_ALL + 1)
    with pytest.raises(SlowPattern, match="is not tried: 20 s were lost to slow patterns before it"):
        searcher("a")
