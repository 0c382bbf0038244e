"""Checks rows: one that a model should not learn from becomes a Reject with its reason. No row disappears silently.

A value of the wrong type is handled in one of two ways:

- Its text is JSON of the type that the schema declares ("5" for an integer, 20 for a string): the value is changed to that type and the row
  counts as `fitted`, because the tool says what the call must look like.
- Any other value (an expression such as "250 * 28.3", a fraction for an integer): the row is rejected, because a repair would be a guess.

The scorer must be able to read a row's own target. So the target is rendered and parsed, and a row whose calls, reply or reasoning are not
read back the same is rejected as `unreadable_target`: no answer to it could be right. A message with a special token such as `<|im_end|>`
is rejected too. Tokenizers read it as the end of a turn, so the model would see another conversation than the row has. The tools may hold
such a token: they are the same where the model is used, and one description would cost all rows that show it.

A near duplicate needs the same target *and* a similar query. So "weather in Oslo" and "weather in Rome" both stay: they are different
calls. The same question in almost the same words cannot end up in both the training and the held-out rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from star.chat import (
    CALL_CLOSE,
    CALL_OPEN,
    SPECIAL_TOKENS,
    THINK_CLOSE,
    THINK_OPEN,
    Completion,
    parse_target,
    render_target,
)
from star.data.duplicates import Duplicates
from star.data.json_schema import UNUSABLE, coerce_value, fault_of_value
from star.data.rows import UNANSWERED, Reject, is_answered
from star.data.tools import repeated_name
from star.time_limit import TookTooLong, record_limit

Check = Callable[[dict], tuple[str, str] | None]  # returns (reason, detail) of a row's fault, or None
# The tags that no part of a target may hold. A tag of a call may stand in an argument, where it is text, and in the reasoning.
THINK_TAGS = (THINK_OPEN, THINK_CLOSE)
REPLY_TAGS = (*THINK_TAGS, CALL_OPEN, CALL_CLOSE)


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


def clean(rows: Iterable[dict | Reject], checks: Sequence[Check] = ()) -> CleanResult:
    """Cleans rows that fit into memory: each by itself, by `checks`, then for duplicates. Of duplicates the first is kept."""
    given = list(rows)
    all_checks = [fault_of, *checks, Duplicates().check_and_add]
    checked = [check_row(row, all_checks) for row in given]
    kept = [row for row in checked if isinstance(row, dict)]
    rejects = [row for row in checked if isinstance(row, Reject)]
    return CleanResult(kept, rejects, sum(is_coerced(*pair) for pair in zip(given, checked, strict=True)))


def check_row(given: dict | Reject, checks: Sequence[Check]) -> dict | Reject:
    """Returns the row with its arguments in the declared types, or a Reject with the fault that the first check finds.

    A Reject is returned as it is.
    """
    if isinstance(given, Reject):
        return given
    try:
        with record_limit():
            # Before the checks, because a schema refuses "5" for an integer.
            row = coerce_arguments(given)
            fault = next(filter(None, (check(row) for check in checks)), None)
    except (TookTooLong, RecursionError) as error:
        return Reject(given["id"], "too_large", f"cannot be checked: {error}", given)
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
    missing_argument, refused_value, unusable_schema, unreadable_target, special_token.
    """
    asked = [message.get("content") or "" for message in row["messages"] if message["role"] == "user"]
    if not asked or not all(text.strip() for text in asked):
        return "empty_query", "a user turn is blank" if asked else "there is no user turn"
    target = row["messages"][-1]
    calls = target.get("tool_calls") or []
    # Only its origin can say that the answer is left out on purpose.
    if not is_answered(row) and row.get(UNANSWERED) is not True:
        return "empty_target", "the target neither calls a tool nor says anything"
    # Before the calls are checked: by name, one of the two tools would hide the other.
    if repeated := repeated_name(row["tools"]):
        return "duplicate_tool", f"two tools are named {repeated!r}, so a call does not say which it means"
    tools = {tool["name"]: tool for tool in row["tools"]}
    for call in calls:
        if fault := _fault_of_call(call, tools):
            return fault
    fault = _fault_of_target(target) if is_answered(row) else None
    return fault or _fault_of_prompt(row["messages"][:-1])


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
        error = fault_of_value(call["arguments"], parameters)
    except UNUSABLE as problem:
        return "unusable_schema", f"{name}: {type(problem).__name__}: {problem}"[:300]
    if error is None:
        return None
    where = "".join(f"[{part!r}]" for part in error.absolute_path)
    return "refused_value", f"{name}{where}: {error.message}"[:300]


def _fault_of_target(target: dict) -> tuple[str, str] | None:
    """Returns the fault of a target that is not read back from its text as it is.

    Where it is, `exact_match` and the reward of the target with itself are right too: they read the same text.
    """
    calls = [{"name": call["name"], "arguments": call["arguments"]} for call in target.get("tool_calls") or []]
    reasoning, content = ((target.get(key) or "").strip() for key in ("reasoning_content", "content"))
    try:
        text = render_target(target)
        if parse_target(text) == Completion(reasoning, calls, content) and not _special_token_in(text):
            return None
        problem = "its text is not read back as the same calls, words and reasoning"
    # ValueError is also raised for a number that cannot be written, RecursionError for arguments that nest too deeply.
    except (ValueError, RecursionError) as error:
        problem = str(error)
    parts = [("the reasoning", reasoning, THINK_TAGS), ("the content", content, REPLY_TAGS)]
    for call in calls:
        parts.append((f"the name of the call {call['name']!r}", call["name"], THINK_TAGS))
        parts += [
            (f"the argument {name!r} of {call['name']}", f"{name} {value}", THINK_TAGS)
            for name, value in call["arguments"].items()
        ]
    for place, said, tags in parts:
        if tag := next((tag for tag in (*SPECIAL_TOKENS, *tags) if tag in said), None):
            return "unreadable_target", f"{place} holds {tag}, which ends or begins a part of the answer"[:300]
    return "unreadable_target", problem[:300]


def _fault_of_prompt(messages: list[dict]) -> tuple[str, str] | None:
    """Returns the fault of messages that hold a special token."""
    for number, message in enumerate(messages):
        # The calls and the reasoning of earlier turns stand in the prompt as well.
        said = (
            message.get("content") or "" if message["role"] != "assistant" else json.dumps(message, ensure_ascii=False)
        )
        if token := _special_token_in(said):
            place = f"message {number} ({message['role']})"
            return (
                "special_token",
                f"{place} holds {token}, which the tokenizer reads as the end or the beginning of a turn",
            )
    return None


def _special_token_in(text: str) -> str | None:
    return next((token for token in SPECIAL_TOKENS if token in text), None) if "<|" in text else None
