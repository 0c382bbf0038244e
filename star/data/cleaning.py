"""Cleaning: rows that a model should not learn from are put aside, each with its reason; nothing is dropped in silence.

What is done about a value that the tool's schema refuses: where the same text is JSON of the wanted type ("5" for an
integer, 20 for a string) the value is changed to it and the row counted as `fitted`, because the tool declares how the
call must look; any other (an expression such as "250 * 28.3", a fraction for an integer) is rejected, because every
repair would be our guess at the answer.

A near duplicate needs the same target *and* a similar query. So "weather in Oslo" and "weather in Rome" both stay,
being different calls, while one question asked twice in almost the same words cannot reach both sides of the split.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from referencing.exceptions import Unresolvable

from star.data.duplicates import Duplicates
from star.data.rows import Reject
from star.data.tools import fit, repeated_name, validator

Check = Callable[[dict], tuple[str, str] | None]  # (reason, detail) of a row's fault, or None


@dataclass(frozen=True)
class CleanResult:
    """`kept` and `rejects` together are all that came in; `fitted` of the kept had a value changed in type."""

    kept: list[dict]
    rejects: list[Reject]
    fitted: int

    def reasons(self) -> dict[str, int]:
        """How many rows each reason rejected, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def clean(rows: Iterable[dict | Reject]) -> CleanResult:
    """Cleans rows that fit into memory: `fault_of` each, then against those kept before them; of duplicates the first stays."""
    given = list(rows)
    examined = list(examine(given, [fault_of, Duplicates().admit]))
    kept = [row for row in examined if isinstance(row, dict)]
    rejects = [row for row in examined if isinstance(row, Reject)]
    return CleanResult(kept, rejects, sum(is_fitted(*pair) for pair in zip(given, examined, strict=True)))


def examine(rows: Iterable[dict | Reject], checks: list[Check]) -> Iterator[dict | Reject]:
    """Yields each row, its arguments in the declared types, or a Reject by the first check that finds fault; one for one.

    A Reject that comes in goes out.
    """
    for given in rows:
        if isinstance(given, Reject):
            yield given
            continue
        row = fit_arguments(given)
        fault = next(filter(None, (check(row) for check in checks)), None)
        yield Reject(given["id"], *fault, given) if fault else row


def is_fitted(given: dict | Reject, examined: dict | Reject) -> bool:
    """Whether cleaning kept the row and changed a value in type."""
    return isinstance(examined, dict) and examined is not given


def fit_arguments(row: dict) -> dict:
    """The row with the target's scalar arguments in the types their tools declare; the same object if none changes."""
    target = row["messages"][-1]
    properties = {tool["name"]: tool["parameters"]["properties"] for tool in row["tools"]}
    calls = []
    for call in target.get("tool_calls") or []:
        schemas = properties.get(call["name"], {})
        arguments = {name: fit(value, _schema_at(schemas, name)) for name, value in call["arguments"].items()}
        calls.append({**call, "arguments": arguments})
    if calls == (target.get("tool_calls") or []):
        return row
    return {**row, "messages": [*row["messages"][:-1], {**target, "tool_calls": calls}]}


def _schema_at(schemas: dict, name: str) -> dict:
    schema = schemas.get(name)
    return schema if isinstance(schema, dict) else {}


def fault_of(row: dict) -> tuple[str, str] | None:
    """(reason, detail) of the first fault of a row by itself, or None. Only the target's calls are judged.

    Reasons: empty_query, empty_target, duplicate_tool (two tools of one name), unknown_tool, unknown_argument,
    missing_argument, refused_value, unusable_schema.
    """
    asked = [message.get("content") or "" for message in row["messages"] if message["role"] == "user"]
    if not asked or not all(text.strip() for text in asked):
        return "empty_query", "a user turn is blank" if asked else "there is no user turn"
    target = row["messages"][-1]
    calls = target.get("tool_calls") or []
    if not calls and not (target.get("content") or "").strip():
        return "empty_target", "the target neither calls a tool nor says anything"
    if repeated := repeated_name(row["tools"]):
        return "duplicate_tool", f"two tools are named {repeated!r}, so a call does not say which it means"
    tools = {tool["name"]: tool for tool in row["tools"]}
    for call in calls:
        if fault := _fault_of_call(call, tools):
            return fault
    return None


def _fault_of_call(call: dict, tools: dict[str, dict]) -> tuple[str, str] | None:
    name = call["name"]
    if name not in tools:
        return "unknown_tool", f"{name!r} is not among the tools {sorted(tools)}"
    parameters = tools[name]["parameters"]
    if unknown := sorted(call["arguments"].keys() - parameters["properties"].keys()):
        return "unknown_argument", f"{name} has no parameter {unknown[0]!r}"
    if missing := [key for key in parameters.get("required", []) if key not in call["arguments"]]:
        return "missing_argument", f"{name} requires {missing[0]!r}"
    try:
        error = next(validator(json.dumps(parameters)).iter_errors(call["arguments"]), None)
    except (Unresolvable, RecursionError) as problem:
        return "unusable_schema", f"{name}: {type(problem).__name__}: {problem}"[:300]
    if error is None:
        return None
    where = "".join(f"[{part!r}]" for part in error.absolute_path)
    return "refused_value", f"{name}{where}: {error.message}"[:300]
