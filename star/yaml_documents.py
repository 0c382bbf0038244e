"""Reads a YAML document as JSON values, within bounds of depth and of parts: it is somebody else's.

    parse_yaml(b"a: 2026-01-31")    # {"a": "2026-01-31"}

The events of the document are counted before a value is made of it: the library composes nested lists by recursion in C and would end the
process, and a few lines of aliases or merge keys can mean billions of values.
"""

from typing import Any

import yaml

from star.limits import DEPTH, DOCUMENT_PARTS, SECONDS_PER_DOCUMENT
from star.time_limit import TookTooLong, time_limit

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(_FAST):  # type: ignore[misc,valid-type]  # chosen at run time
    """Reads dates as text, because JSON has no dates, and counts the pairs that merge keys write out."""

    # Otherwise 2026-01-31 in an example would become a date.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as the library declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    merged = 0

    def flatten_mapping(self, node: Any) -> None:
        for key, value in node.value:
            if key.tag == _MERGE:
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(part, yaml.MappingNode):
                        self.flatten_mapping(part)
                        self.merged += len(part.value)
        _require_few(self.merged)
        super().flatten_mapping(node)


def parse_yaml(content: bytes) -> Any:
    """Returns the document as JSON values.

    Raises:
        ValueError: it is not YAML, is over a bound, or holds what JSON does not have.
        RecursionError: a part of it contains itself.
    """
    try:
        with time_limit(SECONDS_PER_DOCUMENT):
            _require_bounded(content)
            loaded = yaml.load(content, Loader=_Loader)  # noqa: S506 - it extends a safe loader
            return _as_json_value(loaded, [DOCUMENT_PARTS])
    # The last of them stand for a tag on a value that it does not fit, such as `!!int x`.
    except (yaml.YAMLError, TookTooLong, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _require_bounded(content: bytes) -> None:
    depth = parts = 0
    for event in yaml.parse(content, Loader=_FAST):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                raise ValueError(f"its objects and lists nest deeper than {DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            continue
        parts += 1
        _require_few(parts)


def _require_few(parts: int) -> None:
    if parts > DOCUMENT_PARTS:
        raise ValueError(f"written out it has more than {DOCUMENT_PARTS:,} parts")


def _as_json_value(value: Any, left: list[int], depth: int = 0) -> Any:
    """Returns the value with JSON's types only. `left` counts the parts down, with those that aliases repeat."""
    left[0] -= 1
    _require_few(DOCUMENT_PARTS - left[0])
    if depth > DEPTH:
        raise ValueError(f"its objects and lists nest deeper than {DEPTH}")
    if isinstance(value, dict):
        return {str(key): _as_json_value(part, left, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_json_value(part, left, depth + 1) for part in value]
    if isinstance(value, int) and value.bit_length() > 10_000:
        raise ValueError("it holds an integer of more than 3,000 digits")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}, which JSON does not have")
