"""What may reach the harness's eval: calls of known methods with literal arguments, nothing else. No environment needed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.evaluation.bfcl.harness import fail_instead_of_raise, guard_executor, refuse_call

METHODS = {"cd", "post_tweet"}


@pytest.mark.parametrize(
    "call",
    [
        "cd(folder='a')",
        "cd('a')",
        "cd()",
        "post_tweet(content='x', tags=['#a', '#b'], n=-1.5, m={'a': None, 'b': (True,)})",
    ],
)
def test_plain_calls_pass(call: str) -> None:
    assert refuse_call(call, METHODS) is None


@pytest.mark.parametrize(
    "call",
    [
        "__import__('os').system('touch canary')",
        "cd(folder=__import__('os').system('touch canary'))",
        "cd(folder=cd(folder='a'))",
        "cd(folder=f'{1}')",
        "cd(folder=[x for x in ()])",
        "cd(folder=nan)",
        "cd(**{'folder': 'a'})",
        "cd(*['a'])",
        "cd.__globals__()",
        "(cd)(folder='a').b()",
        "cd(folder='a'); cd()",
        "cd(folder='a')\nimport os",
        "lambda: cd()",
        "_load_scenario()",
        "cd",
        "cd(folder='a'",
        "cd(" + "(" * 5000,
        "\x00",
        "",
    ],
)
def test_all_else_is_refused(call: str) -> None:
    assert refuse_call(call, METHODS).startswith("Error during execution")


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=3))
def test_whatever_a_model_writes_in_json_stays_data(name: str, arguments: dict) -> None:
    """The harness writes a call as name(key=repr(value), ...): what passes the guard evaluates to exactly these arguments."""
    call = f"{name}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"
    if refuse_call(call, METHODS) is None:
        got = eval(call, {"__builtins__": {}, **dict.fromkeys(METHODS, lambda **given: given)})
        assert list(got.values()) == list(arguments.values())


class FileSystem:
    """A simulated class of the test's own."""

    def cd(self, folder: str) -> str:
        return f"in {folder}"

    def _secret(self) -> str:
        return "secret"


def test_the_executor_sees_only_what_passed(tmp_path: Path) -> None:
    seen = []

    def execute(calls: list[str], initial_config: dict) -> tuple[list[str], dict]:
        seen.extend(calls)
        return [f"ran {call}" for call in calls], {"FileSystem": FileSystem()}

    canary = tmp_path / "canary"
    hostile = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    calls = ["cd(folder='a')", hostile, "_secret()", f"cd(folder={hostile})", "cd(folder='b')"]
    results, instances = guard_executor(execute)(calls, {})
    assert seen == ["cd(folder='a')", "cd(folder='b')"]
    assert [result.startswith("ran") for result in results] == [True, False, False, False, True]
    assert list(instances) == ["FileSystem"] and not canary.exists()
    assert json.dumps(results)


def test_a_checker_that_raises_finds_the_answer_wrong() -> None:
    check = fail_instead_of_raise(lambda answer: {"valid": answer["calls"].items() is not None})
    assert check({"calls": {}})["valid"] is True
    assert (check({"calls": ["a"]})["valid"], check({"calls": ["a"]})["error_type"]) == (False, "checker_failed")
