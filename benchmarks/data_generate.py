"""Measures the time to make 50,000 valid rows offline on one core, with cleaning and the search for duplicates.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/data_generate.py tests/data/openapi.yaml [--rows 50000]

The rows are made twice; the same seed must give the same bytes. Every call of every row, also of the duplicates that
were left out, is validated with jsonschema afterwards, outside of the measured time.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path

from jsonschema import Draft202012Validator

from star.data.generate_offline import generate_rows
from star.data.rows import read_json_lines, read_rows
from star.data.tool_files import load_tools
from star.data.write_set import write_set


def make_rows(tools: list[dict], rows: int) -> tuple[float, str, int]:
    """Makes `rows` rows; returns CPU seconds, the sha256 of rows.jsonl, and how many rows are not duplicates."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.process_time()
        statistics = write_set(
            lambda start: generate_rows(tools, rows, seed=7, start=start), out=out, state=out, total=rows
        )
        seconds = time.process_time() - began
        digest = hashlib.sha256((out / "rows.jsonl").read_bytes()).hexdigest()
        duplicates = (reject["row"] for _, reject in read_json_lines(out / "rejects.jsonl"))
        assert count_valid_rows(chain(read_rows(out / "rows.jsonl"), duplicates)) == rows
        assert set(statistics.rejects) <= {"duplicate", "near_duplicate"}, statistics.rejects
        return seconds, digest, statistics.rows


def count_valid_rows(rows: Iterable[dict]) -> int:
    """Counts the rows. Raises ValidationError where a call, also of an earlier turn, does not match its schema."""
    count = 0
    for row in rows:
        count += 1
        schemas = {tool["name"]: json.dumps(tool["parameters"]) for tool in row["tools"]}
        for call in chain.from_iterable(message.get("tool_calls") or [] for message in row["messages"]):
            validator(schemas[call["name"]]).validate(call["arguments"])
    return count


@cache
def validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", type=Path, help="tools file")
    parser.add_argument("--rows", type=int, default=50_000, help="rows to make")
    arguments = parser.parse_args()
    tools = load_tools(arguments.tools)
    first, second = make_rows(tools, arguments.rows), make_rows(tools, arguments.rows)
    print("| run | CPU seconds | rows made, all valid | without duplicates | sha256 |\n|---|---:|---:|---:|---|")
    for number, (seconds, digest, kept) in enumerate((first, second), start=1):
        print(f"| {number} | {seconds:.1f} | {arguments.rows} | {kept} | {digest[:12]} |")
    assert first[1] == second[1]


if __name__ == "__main__":
    main()
