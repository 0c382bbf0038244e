"""Checks rows: one that a model should not learn from becomes a Reject with its reason. No row disappears silently.

A value of the wrong type is handled in one of two ways:

- Its text is JSON of the type that the schema declares ("5" for an integer, 20 for a string): the value is changed to that type and the row
  counts as `fitted`, because the tool says what the call must look like.
- Any other value (an expression such as "250 * 28.3", a fraction for an integer): the row is rejected, because a repair would be a guess.

A near duplicate needs the same target *and* a similar query. So "weather in Oslo" and "weather in Rome" both stay: they are different
calls. The same question in almost the same words cannot end up in both the training and the held-out rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from referencing.exceptions import Unresolvable

from star.data.duplicates import Duplicates
from star.data.json_schema import coerce_value, validator
from star.data.rows import Reject
from star.data.tools import repeated_name

Check = Callable[[dict], tuple[str, str] | None]  # returns (reason, detail) of a row's fault, or None


@dataclass(frozen=True)
class CleanResult:
    """The result of `clean`.

    Attributes:
        kept, rejects: together as many as the rows that were given.
        fitted: number of kept rows with a value that was changed in type.
    """

    kept: list[dict]
    rejects: list[Reject]
    fitted: int

    def reasons(self) -> dict[str, int]:
        """Returns the number of rejects per reason, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def clean(rows: Iterable[dict | Reject]) -> CleanResult:
    """Cleans rows that fit into memory: each by itself, then for duplicates. Of duplicates the first is kept."""
    given = list(rows)
    checks = [fault_of, Duplicates().check_and_add]
    checked = [check_row(row, checks) for row in given]
    kept = [row for row in checked if isinstance(row, dict)]
    rejects = [row for row in checked if isinstance(row, Reject)]
    return CleanResult(kept, rejects, sum(is_coerced(*pair) for pair in zip(given, checked, strict=True)))


def check_row(given: dict | Reject, checks: Sequence[Check]) -> dict | Reject:
    """Returns the row with its arguments in the declared types, or a Reject with the fault that the first check finds.

    A Reject is returned as it is.
    """
    if isinstance(given, Reject):
        return given
    # Before the checks, because a schema refuses "5" for an integer.
    row = coerce_arguments(given)
    fault = next(filter(None, (check(row) for check in checks)), None)
    return Reject(given["id"], *fault, given) if fault else row


def is_coerced(given: dict | Reject, checked: dict | Reject) -> bool:
    """Whether `check_row` kept the row and changed a value in type."""
    return isinstance(checked, dict) and checked is not given


def coerce_arguments(row: dict) -> dict:
    """Returns the row with the target's scalar arguments in the types that their tools declare; the same object if none changes."""
    target = row["messages"][-1]
    properties = {tool["name"]: tool["parameters"]["properties"] for tool in row["tools"]}
    calls = []
    for call in target.get("tool_calls") or []:
        schemas = properties.get(call["name"], {})
        arguments = {name: coerce_value(value, _schema_at(schemas, name)) for name, value in call["arguments"].items()}
        calls.append({**call, "arguments": arguments})
    # `is_coerced` recognises an unchanged row by its identity.
    if calls == (target.get("tool_calls") or []):
        return row
    return {**row, "messages": [*row["messages"][:-1], {**target, "tool_calls": calls}]}


def _schema_at(schemas: dict, name: str) -> dict:
    schema = schemas.get(name)
    return schema if isinstance(schema, dict) else {}


def fault_of(row: dict) -> tuple[str, str] | None:
    """Returns (reason, detail) of the first fault of a row by itself, or None. Of the calls only the target's are checked.

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
    # Before the calls are checked: by name, one of the two tools would hide the other.
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
    # Checked before the schema, because a schema accepts arguments that it does not name.
    if unknown := sorted(call["arguments"].keys() - parameters["properties"].keys()):
        return "unknown_argument", f"{name} has no parameter {unknown[0]!r}"
    if missing := [key for key in parameters.get("required", []) if key not in call["arguments"]]:
        return "missing_argument", f"{name} requires {missing[0]!r}"
    try:
        # As text, because the cache of validators needs a key that can be hashed.
        error = next(validator(json.dumps(parameters)).iter_errors(call["arguments"]), None)
    # A valid schema may still refer to nothing, or to itself without end.
    except (Unresolvable, RecursionError) as problem:
        return "unusable_schema", f"{name}: {type(problem).__name__}: {problem}"[:300]
    if error is None:
        return None
    where = "".join(f"[{part!r}]" for part in error.absolute_path)
    return "refused_value", f"{name}{where}: {error.message}"[:300]
