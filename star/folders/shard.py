"""Names one of the n shards that a stage's work can be divided into, as `--shard i/n` gives it.

The n shards run as separate processes, on one machine or in one pod each. Every one takes each n-th item and
publishes a folder of its own, whose manifest has `"part": "i/n"`; `star merge` makes one folder of all n. With n = 3:

    items        a b c d e f g
    shard 1/3    a     d     g
    shard 2/3      b     e
    shard 3/3        c     f
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from star.errors import InputError
from star.folders.manifest import Manifest

Item = TypeVar("Item")


@dataclass(frozen=True, order=True)
class Shard:
    """Shard `number` of `count`, counted from 1. Shard 1/1 is the whole work."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads text like `2/4`.

        Raises:
            InputError: the text does not have that form, or the number is not between 1 and the count.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise InputError(f"shard {text!r} is not like 2/4: give i/n with i from 1 to n")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def select(self, items: list[Item]) -> list[Item]:
        """The items of this shard: every `count`-th one. The shards are disjoint, and together they have all items."""
        return items[self.number - 1 :: self.count]


WHOLE = Shard()


def part_of_result(stage: str, inputs: dict[str, Path], manifests: dict[str, Manifest], shard: Shard) -> str | None:
    """Returns i/n if the result will be one of n shards, else None.

    Raises:
        InputError: an input is a shard. Only the extraction accepts one, and its result is the same shard then.
    """
    for key, manifest in manifests.items():
        if manifest.part is not None:
            if stage != "extract-topk" or shard != WHOLE:
                raise InputError(f"{inputs[key]} is shard {manifest.part} only: merge all shards with `star merge`")
            return manifest.part
    return str(shard) if shard != WHOLE else None
