"""Reads the tables of docs/paper.md, in which tests look up what the profiles should hold."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"


class Row(NamedTuple):
    """One row of a table, under the first cell of its header ("setting of qwen3-0.6b")."""

    of: str
    keys: list[str]
    cells: dict[str, str]

    def value(self, column: str) -> Any:
        return yaml.safe_load(self.cells[column].strip("`"))


def rows_of_page() -> Iterator[Row]:
    """The rows of all tables whose first column names settings or arguments."""
    header: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif re.match("(setting|argument) of ", header[0]) and set(cells[0]) != {"-"}:
            assert len(cells) == len(header), f"a row of {len(cells)} cells under {len(header)}: {line}"
            yield Row(header[0], re.findall(r"`([^`]+)`", cells[0]), dict(zip(header, cells, strict=True)))


ROWS = list(rows_of_page())
