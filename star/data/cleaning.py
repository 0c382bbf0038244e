"""Cleaning: rows that a model should not learn from are put aside, each with its reason; nothing is dropped in silence.

What is done about a value that the tool's schema refuses: where the same text is JSON of the wanted type ("5" for an
integer, 20 for a string) the value is changed to it and the row counted as `fitted`, because the tool declares how the
call must look; any other (an expression such as "250 * 28.3", a fraction for an integer) is rejected, because every
repair would be our guess at the answer.

A near duplicate needs the same target *and* a similar query. So "weather in Oslo" and "weather in Rome" both stay,
being different calls, while one question asked twice in almost the same words cannot reach both sides of the split.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from star.data.rows import Reject, query_of, target_of
from star.data.tools import fit, repeated_name

SIMILAR = 0.8  # Jaccard similarity of two queries' shingles from which they are the same question
SHINGLE = 5  # characters
BANDS, BAND_ROWS = 25, 5  # a pair at SIMILAR shares a band with probability 0.99995; those are compared exactly
HASH_SEED = 1


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
    """Checks rows one by one, then against those kept before them; of duplicates the first stays.

    A Reject that comes in goes out. Reasons: empty_query, empty_target, duplicate_tool (two tools of one name),
    unknown_tool, unknown_argument, missing_argument, refused_value, unusable_schema, duplicate_id, duplicate (same
    query, tool names and target), near_duplicate; and `unreadable` from the importers.
    """
    kept: list[dict] = []
    rejects: list[Reject] = []
    fitted = 0
    duplicates = _Duplicates()
    for given in rows:
        if isinstance(given, Reject):
            rejects.append(given)
            continue
        row = fit_arguments(given)
        if fault := fault_of(row) or duplicates.admit(row):
            rejects.append(Reject(given["id"], *fault, given))
            continue
        kept.append(row)
        fitted += row is not given
    return CleanResult(kept, rejects, fitted)


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
    """(reason, detail) of the first fault of a row by itself, or None. Only the target's calls are judged."""
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
        error = next(_validator(json.dumps(parameters)).iter_errors(call["arguments"]), None)
    except (Unresolvable, RecursionError) as problem:
        return "unusable_schema", f"{name}: {type(problem).__name__}: {problem}"[:300]
    if error is None:
        return None
    where = "".join(f"[{part!r}]" for part in error.absolute_path)
    return "refused_value", f"{name}{where}: {error.message}"[:300]


@lru_cache(maxsize=4096)
def _validator(parameters: str) -> Draft202012Validator:
    """A validator for a tool's parameters, made once a tool; the empty registry keeps `$ref` from fetching anything."""
    return Draft202012Validator(json.loads(parameters), registry=Registry())


class _Duplicates:
    """Finds rows that repeat one admitted before."""

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH  # here: it takes a second to import

        self.ids: set[str] = set()
        self.exact: dict[tuple, str] = {}
        self.queries: dict[str, str] = {}
        self.empty = MinHash(num_perm=BANDS * BAND_ROWS, seed=HASH_SEED)
        self.index = MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))

    def admit(self, row: dict) -> tuple[str, str] | None:
        """Remembers the row and returns None, or returns (reason, detail) where it repeats another."""
        identity, query, target = row["id"], query_of(row), target_of(row)
        key = (query, target, tuple(sorted(tool["name"] for tool in row["tools"])))
        if identity in self.ids:
            return "duplicate_id", f"another row has the id {identity!r}"
        if key in self.exact:
            return "duplicate", f"same query, tools and target as {self.exact[key]}"
        # Each shingle carries the target, so rows with different targets have none in common and never meet.
        mark = hashlib.sha256(target.encode()).digest()[:8]
        shingles = _shingles(query)
        minhash = self.empty.copy()
        minhash.update_batch([mark + shingle.encode() for shingle in shingles])
        for candidate in sorted(self.index.query(minhash)):
            other = _shingles(self.queries[candidate])
            if (alike := len(shingles & other) / len(shingles | other)) >= SIMILAR:
                return "near_duplicate", f"same target as {candidate}, and the queries are {alike:.2f} alike"
        self.ids.add(identity)
        self.exact[key] = identity
        self.queries[identity] = query
        self.index.insert(identity, minhash)
        return None


def _shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}
