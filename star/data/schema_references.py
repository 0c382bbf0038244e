"""Follows the references of a schema inside its document: pointers, anchors, and the names that parts give themselves.

    References({"$defs": {"Person": {"type": "object"}}}).follow("#/$defs/Person")    # {"type": "object"}

Nothing is loaded from elsewhere: a reference that leaves the document is an error.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from star.errors import InputError

# In a pointer these lead to a schema and do not name it.
WAY = frozenset({"properties", "items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "schema"})


class References:
    """The references of a document. Of several documents, the first that has what a reference points to counts."""

    def __init__(self, *documents: object) -> None:
        self.documents = documents
        self._names: dict[str, object] | None = None
        self._by_end: dict[
            str, list[str]
        ] = {}  # the names by their last part, because a document may have any number of both

    def follow(self, reference: object, around: tuple[object, ...] = ()) -> object:
        """Returns what a reference points to.

        Args:
            around: schemas around the reference, the nearest first. Whoever puts a whole schema into another one leaves its references as
                they are, so these are tried where the documents do not have the target.

        Raises:
            InputError: it leaves the document or points to nothing.
        """
        if not isinstance(reference, str):
            raise InputError(f"the reference {str(reference)[:80]!r} is not text")
        base, _, fragment = reference.partition("#")
        starts = [self._named(base)] if base else [*self.documents, *around, *self._resources()]
        if starts == [None]:
            raise InputError(
                f"the reference {reference[:80]!r} leaves the document: write what it points to in place, "
                "or bundle it into one file first"
            )
        for start in starts:
            is_anchor = fragment and not fragment.startswith("/")
            found = self._named(f"#{fragment}") if is_anchor else _at_pointer(start, fragment)
            if found is not None:
                return found
        raise InputError(f"the reference {reference[:80]!r} points to nothing")

    def _named(self, name: str) -> object:
        """Returns the part with this name: an `$id` as it is written or as the end of a longer one, or an `$anchor` behind a `#`."""
        if self._names is None:
            self._names = {key: part for document in self.documents for key, part in _names_in(document)}
            for key in self._names:
                self._by_end.setdefault(_end_of(key), []).append(key)
        if name in self._names:
            return self._names[name]
        # Of a name and a reference, one may be relative: the end of the other.
        alike = self._by_end.get(_end_of(name), [])
        ends = [self._names[key] for key in alike if _ends_in(key, name) or _ends_in(name, key)]
        return ends[0] if len(ends) == 1 else None

    def _resources(self) -> Iterator[object]:
        # Only when the documents themselves do not have it: a pointer counts from the nearest part with an `$id`.
        self._named("")
        yield from (self._names or {}).values()


def _end_of(name: str) -> str:
    return name.rpartition("/")[2]


def _ends_in(name: str, end: str) -> bool:
    return "#" not in end and name.endswith("/" + end.removeprefix("./"))


def _names_in(document: object) -> Iterator[tuple[str, object]]:
    """Yields (name, part) for every part of a document that names itself."""
    waiting: list[Any] = [document]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            for key in ("$id", "id"):
                if isinstance(name := part.get(key), str) and name:
                    yield name.removesuffix("#"), part
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := part.get(key), str):
                    yield f"#{name}", part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _at_pointer(found: Any, pointer: str) -> object:
    """Returns what a JSON Pointer leads to, or None."""
    for part in pointer.split("/")[1:]:
        # JSON Pointer's order of unescaping: the other way round, ~01 would become a slash.
        key = part.replace("~1", "/").replace("~0", "~")
        # In a reference, other characters are written in percent.
        key = key if isinstance(found, dict) and key in found else unquote(key)
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def name_of(reference: str, target: object) -> str:
    """Returns what a reference calls its target, for a person: Person for #/$defs/Person."""
    parts = [part for part in reference.rpartition("#")[2].split("/") if part not in WAY and not part.isdecimal()]
    title = target.get("title") if isinstance(target, dict) else None
    return (parts[-1] if parts else "") or (title if isinstance(title, str) and title else "of these")
