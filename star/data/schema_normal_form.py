"""Brings a schema of any dialect into one normal form: JSON Schema 2020-12 without references.

    reader = SchemaReader(References({"$defs": {"State": {"enum": ["open", "done"]}}}))
    reader.read({"anyOf": [{"$ref": "#/$defs/State"}, {"type": "null"}]})    # {"anyOf": [{"enum": ["open", "done"]}, {"type": "null"}]}

What is read: Python and Java types; references, which are written in place (where a schema contains itself, the inner occurrence becomes a
plain object); tuples, bounds, `dependencies`, `required: true` and `extends` of the drafts 3 to 7; `nullable` and `example` of OpenAPI. The
parts of an `allOf` become one schema where they can.

A keyword that cannot be used is left out and never costs the schema. `notes` has one line for each that limited values. A pattern that
only JavaScript can read stays under `x-pattern`. A value that the schema accepted before is accepted afterwards. Normalising twice
changes nothing.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from star.data.json_schema import coerce_value, same_json
from star.data.schema_drafts import translated
from star.data.schema_keywords import (
    KNOWN,
    NOT_OF_REQUESTS,
    ONE_SCHEMA,
    SAYS_NOTHING,
    SCHEMA_LIST,
    SCHEMA_MAP,
    TURNED,
    Unusable,
    coerce_default,
    plain_value,
    type_of_text,
)
from star.data.schema_merge import merged
from star.data.schema_patterns import fault_of_pattern
from star.data.schema_references import References, name_of
from star.errors import InputError
from star.limits import SCHEMA_PARTS


@dataclass(frozen=True)
class Place:
    """Where in a tool a schema stands.

    Attributes:
        path: names and keywords that lead there.
        around: ids of the schemas around it, by which one that contains itself is recognised.
        copied: number of references that led there.
        exact: whether a schema that accepts more here would make the whole accept less.
        definitions: schemas around it that hold definitions, the nearest first.
        name: what the last reference on the way called its target.
        anchor: the schema that `$recursiveRef` of draft 2019-09 means here, and its name.
    """

    path: tuple[str, ...] = ()
    around: frozenset[int] = frozenset()
    copied: int = 0
    exact: bool = False
    definitions: tuple[object, ...] = ()
    name: str = ""
    anchor: tuple[object, str] | None = None

    def __str__(self) -> str:
        return ".".join(self.path) or "parameters"


ROOT = Place()


@dataclass
class SchemaReader:
    """Reads the schemas of one tool.

    Attributes:
        references: what references are looked up in.
        deepest: number of references inside each other that are followed; beyond it, they are cut off.
        for_requests: whether to leave out what only answers have, as OpenAPI's readOnly says.
        notes: what was left out and why, one line each.
    """

    references: References
    deepest: int = SCHEMA_PARTS
    for_requests: bool = False
    notes: list[str] = field(default_factory=list)
    losses: int = 0
    nodes: int = 0

    def read(self, written: object, place: Place = ROOT) -> Any:
        """Returns the schema in normal form: an object, or true or false.

        Raises:
            InputError: it is no schema, its own reference cannot be followed, or it grows too large.
        """
        if isinstance(written, bool):
            # Requests are read by their keywords only.
            return written if not self.for_requests else {} if written else {"not": {}}
        if written == []:  # PHP writes an empty object so
            return {}
        if not isinstance(written, dict):
            raise InputError(f"a schema must be an object, got {str(written)[:80]}")
        # Counted while they are written in place: references that fan out grow exponentially.
        self.nodes += place.copied > 0
        if self.nodes > SCHEMA_PARTS:
            raise TooLarge(f"its schemas have more than {SCHEMA_PARTS} parts once references are written in place")
        inside = replace(place, around=place.around | {id(written)})
        if written.get("$recursiveAnchor") is True and inside.anchor is None:
            inside = replace(inside, anchor=(written, place.name))
        if not written.keys().isdisjoint({"$defs", "definitions"}):
            inside = replace(inside, definitions=(written, *inside.definitions))
        plain, reference = translated(written)
        if reference is None:
            return self._keywords(plain, inside)
        try:
            is_recursive = inside.anchor is not None and not written.keys() & {"$ref", "$dynamicRef"}
            target, name = inside.anchor if inside.anchor and is_recursive else self._target(reference, inside)
        except InputError as error:
            if isinstance(written.get("$ref"), str):
                raise
            # The references of single drafts are leftovers more often than schemas.
            self._note(place, "reference", f"is left out: {error}")
            return self._keywords(plain, inside)
        cut = id(target) in inside.around or place.copied >= self.deepest
        copy = _cut_off(target, name) if cut else self.read(target, replace(inside, copied=place.copied + 1, name=name))
        beside = self._keywords(plain, inside) if plain else {}
        return _beside(copy, beside, exact=place.exact)

    def _target(self, reference: object, place: Place) -> tuple[object, str]:
        """Returns what a reference leads to in the end, and its name."""
        seen: list[object] = []
        while True:
            if reference in seen:
                raise InputError(f"the reference {str(reference)[:80]!r} points to itself")
            seen.append(reference)
            target = self.references.follow(reference, place.definitions)
            if self.for_requests and target is self.references.documents[0]:
                raise InputError(f"the reference {str(reference)[:80]!r} points to the whole document")
            if not (isinstance(target, dict) and target.keys() == {"$ref"}):
                return target, name_of(str(seen[0]), target)
            reference = target["$ref"]

    def _keywords(self, written: dict, place: Place) -> Any:
        schema: dict[str, Any] = {}
        for key, value in written.items():
            # Go writes null for a list or a map that is not there.
            if key == "nullable" or (value is None and key in KNOWN and key != "const"):
                continue
            if self.for_requests and key in NOT_OF_REQUESTS:
                continue
            losses = self.losses
            try:
                new = self._keyword(key, value, place)
                if "anyOf" in new and key != "anyOf" and "anyOf" in written:
                    raise Unusable("cannot be read beside anyOf: left out")
            except Unusable as fault:
                if key not in SAYS_NOTHING:
                    self._note(place, key, str(fault))
                continue
            if self.losses > losses and key in TURNED:
                new = self._without_losses(key, new, place, beside=written)
            # A type as text may stand for more than a type. What is written beside it counts.
            schema = {**new, **schema} if key == "type" else {**schema, **new}
        return self._finished(schema, written, place)

    def _note(self, place: Place, key: str, what: str) -> None:
        self.losses += 1
        self.notes.append(f"{place}: {key} {what}"[:300])

    def _keyword(self, key: str, value: Any, place: Place) -> dict[str, Any]:
        """Returns what a keyword becomes.

        Raises:
            Unusable: it cannot be used.
        """
        if key == "type":
            return self._type(value, place)
        inner = replace(place, exact=place.exact or key in TURNED)
        if isinstance(value, bool) and key in ONE_SCHEMA and key not in ("items", "not"):
            return {key: value}
        if key in ONE_SCHEMA:
            return {key: self._inner(value, inner, key)}
        if key in SCHEMA_LIST:
            if not isinstance(value, list):
                raise Unusable(f"must be a list, got {str(value)[:80]}: left out")
            return {key: [self._inner(part, inner, key, str(n)) for n, part in enumerate(value)]} if value else {}
        if key in SCHEMA_MAP:
            return self._map(key, value, inner)
        if key == "pattern" and isinstance(value, str) and (fault := fault_of_pattern(value)):
            self._note(place, key, f"{value[:80]!r} cannot be read ({fault}): put aside as x-pattern")
            return {"x-pattern": value}
        return {key: plain_value(key, value)}

    def _inner(self, written: object, place: Place, *way: str) -> Any:
        """Reads a schema inside another one: it may not cost the whole."""
        place = replace(place, path=(*place.path, *way))
        try:
            return self.read(written, place)
        except TooLarge:
            raise
        except InputError as error:
            self._note(place, "schema", f"is left out, so any value is accepted: {error}")
            return {}

    def _map(self, key: str, value: Any, place: Place) -> dict[str, Any]:
        value = {} if value == [] else value
        if not isinstance(value, dict):
            raise Unusable(f"must be an object, got {str(value)[:80]}: left out")
        found = {}
        for name, part in value.items():
            if key == "properties" and self.for_requests and _is_read_only(part):
                continue  # it belongs to answers; a request must not send it
            if key == "patternProperties" and (fault := fault_of_pattern(name)):
                self._note(place, key, f"{name[:80]!r} cannot be read ({fault}): left out")
                continue
            if key == "properties" and not place.path:
                # A parameter itself: if nothing can be said of its values, the tool cannot be used.
                found[name] = self._parameter(name, part, place)
            else:
                found[name] = self._inner(part, place, *(() if key == "properties" else (key,)), name)
        return {key: found}

    def _parameter(self, name: str, written: object, place: Place) -> Any:
        try:
            return self.read(written, replace(place, path=(name,)))
        except TooLarge:
            raise
        except InputError as error:
            raise InputError(f"parameter {name!r}: {error}") from error

    def _type(self, value: Any, place: Place) -> dict[str, Any]:
        """Returns the keywords that a type stands for."""
        if isinstance(value, str):
            return type_of_text(value)
        if not isinstance(value, list) or not value:
            raise Unusable(f"{str(value)[:80]} is not a type: left out")
        # Draft 3 allows schemas beside names.
        read = [
            self._inner(part, place, "type") if isinstance(part, dict) else type_of_text(str(part)) for part in value
        ]
        if {} in read:
            return {}
        if any(part.keys() != {"type"} or not isinstance(part["type"], str) for part in read):
            return {"anyOf": read}
        return {"type": list(dict.fromkeys(part["type"] for part in read))}

    def _without_losses(self, key: str, new: dict[str, Any], place: Place, *, beside: dict) -> dict[str, Any]:
        """Returns a keyword whose parts accept more than they did, so that the whole does not accept less."""
        if key == "oneOf" and key in new and "anyOf" not in beside:
            self._note(place, key, "is read as anyOf, because a part of it was left out")
            return {"anyOf": new[key]}
        self._note(place, key, "is left out, because a part of it was")
        return {}

    def _finished(self, schema: dict[str, Any], written: dict, place: Place) -> Any:
        """Merges, completes and orders the keywords of a schema."""
        if "if" not in schema:
            # Without it they say nothing, and beside another schema's `if` they would.
            schema = {key: value for key, value in schema.items() if key not in ("then", "else")}
        if "contains" not in schema:
            schema = {key: value for key, value in schema.items() if key not in ("minContains", "maxContains")}
        if self._names_left_out(schema, written):
            schema = {key: value for key, value in schema.items() if not key.startswith(("additional", "unevaluated"))}
        if parts := schema.pop("allOf", None):
            schema = self._merged(schema, parts, place)
        if "required" in schema and self.for_requests:
            schema["required"] = _sendable(schema, written)
        schema = _nullable(schema) if coerce_value(written.get("nullable"), {"type": "boolean"}) is True else schema
        if "type" in schema:
            schema = {"type": schema["type"], **schema}
        return coerce_default(schema)

    def _names_left_out(self, schema: dict, written: dict) -> bool:
        """Whether a name that was allowed by its pattern would now be an additional one."""
        patterns = written.get("patternProperties")
        return isinstance(patterns, dict) and len(patterns) > len(schema.get("patternProperties", {}))

    def _merged(self, schema: dict, parts: list, place: Place) -> dict:
        apart: list[Any] = []
        for part in parts:
            if part is True:
                continue
            both = merged(schema, part, exact=place.exact) if isinstance(part, dict) else None
            if both is None:
                apart.append(part)
            else:
                # What stayed apart in the part stays apart in the whole.
                apart += [left for left in both.pop("allOf", []) if not any(same_json(left, one) for one in apart)]
                schema = both
        return {**schema, "allOf": apart} if apart else schema


class TooLarge(InputError):
    """The schemas of a tool cannot be written in place."""


def _beside(copy: Any, beside: Any, *, exact: bool) -> Any:
    """Returns what a reference pointed to, with the keywords beside the reference."""
    if beside == {} or copy is False:
        return copy
    if not isinstance(copy, dict):
        return beside
    both = merged(copy, beside, exact=exact)
    if both is None:
        return {
            **{key: value for key, value in beside.items() if key != "allOf"},
            "allOf": [copy, *beside.get("allOf", [])],
        }
    # Beside a reference stands what is said of this one place.
    said = {key: value for key, value in beside.items() if key in SAYS_NOTHING or key not in KNOWN}
    return coerce_default({**both, **said})


def _cut_off(target: object, name: str) -> dict[str, Any]:
    """Returns what stands for a schema inside itself, because prompts need a finite schema."""
    name = name or name_of("", target)
    kind = target.get("type", "object") if isinstance(target, dict) else "object"
    if isinstance(target, dict) and "type" not in target and target.keys() & {"anyOf", "oneOf", "enum", "const", "not"}:
        return {"description": f"another {name}"}
    return {"type": kind, "description": f"another {name}"}


def is_cut_off(schema: object) -> bool:
    """Whether this stands for a schema inside itself."""
    return isinstance(schema, dict) and (
        schema.keys() <= {"type", "description"} and str(schema.get("description")).startswith("another ")
    )


def _is_read_only(schema: object) -> bool:
    return isinstance(schema, dict) and schema.get("readOnly") is True


def _sendable(schema: dict, written: dict) -> list[str]:
    """Returns the required names that a request can send: a part may require what is gone because it is read-only."""
    given = written.get("properties")
    gone = {name for name, part in given.items() if _is_read_only(part)} if isinstance(given, dict) else set()
    if "allOf" in written:
        return [name for name in schema["required"] if name in schema.get("properties", {})]
    return [name for name in schema["required"] if name not in gone]


def _nullable(schema: dict) -> dict:
    kind = schema.get("type")
    if not isinstance(kind, str):
        return schema if not schema or (kind and "null" in kind) else {"anyOf": [schema, {"type": "null"}]}
    nullable = {**schema, "type": [kind, "null"]} if kind != "null" else schema
    # An enum without null would refuse it, whatever the type says.
    return (
        {**nullable, "enum": [*schema["enum"], None]} if "enum" in schema and None not in schema["enum"] else nullable
    )
