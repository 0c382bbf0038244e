"""Writes the wrong answers of an evaluation: all of them to failures.parquet, the worst few to evaluation.json.

    model     string   which model answered
    id, kind  string   the row
    query     string   the user's last message
    expected  string   the row's answer
    predicted string   the model's answer, as it wrote it
    mistake   string   the first thing that is wrong with it
    reward    double   its reward, by the official reading

The models come in the order of the report, their answers from the lowest reward to the highest.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from star.html_kit import truncate

FAILURES = "failures.parquet"
MOST_IN_JSON = 100  # failures in evaluation.json, whatever the number of rows
_GROUP_ROWS = 5000  # rows held at once as Arrow columns
_TEXTS = ("id", "kind", "query", "expected", "predicted", "mistake")
_SCHEMA = pa.schema([("model", pa.string()), *((key, pa.string()) for key in _TEXTS), ("reward", pa.float64())])


def write_failures(path: Path, failures: Mapping[str, Iterable[dict[str, Any]]]) -> None:
    """Writes the failures of each model, by its name, some thousand at once.

    Args:
        failures: outcomes with the columns of this module but `model`.
    """
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for model, found in failures.items():
            rows = iter(found)
            while group := list(islice(rows, _GROUP_ROWS)):
                columns = {key: _texts([row[key] for row in group]) for key in _TEXTS}
                columns |= {"model": _texts([model] * len(group)), "reward": pa.array(row["reward"] for row in group)}
                writer.write_table(pa.table(columns, schema=_SCHEMA))


def worst_of(failures: list[dict[str, Any]], *, model: str) -> list[dict[str, Any]]:
    """The first MOST_IN_JSON of a model's failures, with the columns of this module only."""
    return [{**{key: row[key] for key in _SCHEMA.names[1:]}, "model": model} for row in failures[:MOST_IN_JSON]]


def with_short_texts(failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The failures with texts no longer than a page shows, so that a file that holds some of them has a bounded size."""
    return [{key: truncate(value) if key in _TEXTS else value for key, value in row.items()} for row in failures]


def _texts(values: list[str]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold and UTF-8 may not: its escape is kept
        return pa.array([value.encode(errors="backslashreplace").decode() for value in values], pa.string())
