"""Measures how many planted copies of a benchmark's rows decontamination finds, by kind, and prints the others.

    pip download --no-deps bfcl-eval==2026.3.23 && unzip -q bfcl_eval-*.whl -d bfcl
    .venv/bin/python benchmarks/data_decontamination.py bfcl/bfcl_eval/data [--clean rows.jsonl]

Every single-turn row with an answer is planted four times: verbatim, with other values, with other tool names, and
with both. Values are changed in the question and in the call. `--clean` gives rows from another source, to count
false alarms.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.contamination import Benchmark
from star.data.draw_values import WORDS
from star.data.importers import import_rows
from star.data.read_records import read_records

COPY_KINDS = ("verbatim", "other values", "other tool names", "both")


def planted_copies(folder: Path) -> Iterator[tuple[str, str, dict]]:
    """Yields (kind of copy, id, row) for every single-turn row that has an answer."""
    answers = {
        record["id"]: record["ground_truth"]
        for file in sorted(folder.glob("possible_answer/*.json"))
        for _, record in read_records(file)
    }
    for file in sorted(folder.glob("*.json")):
        for _, record in read_records(file):
            truth = answers.get(record.get("id")) if isinstance(record, dict) else None
            if (
                not truth
                or not isinstance(truth[0], dict)
                or not record.get("function")
                or len(record["question"]) != 1
            ):
                continue
            row = convert_record(record, truth)
            for kind in COPY_KINDS:
                rng = random.Random(f"{kind}:{record['id']}")  # noqa: S311 - a draw that can be repeated, no secret
                copy: dict | None = row
                if kind in ("other values", "both"):
                    copy = with_other_values(row, rng)
                if copy is not None and kind in ("other tool names", "both"):
                    copy = with_other_names(copy, rng)
                if copy is not None:
                    yield kind, record["id"], copy


def convert_record(record: dict, truth: list[dict]) -> dict:
    """Converts a BFCL record and its answer to a row."""
    calls = []
    for call in truth:
        [(name, arguments)] = call.items()
        calls.append(
            {
                "name": name,
                "arguments": {key: values[0] for key, values in arguments.items() if values and values[0] != ""},
            }
        )
    tools = [
        {
            "name": tool["name"],
            "description": tool.get("description", ""),
            "parameters": {"properties": tool["parameters"].get("properties", {})},
        }
        for tool in record["function"]
    ]
    messages = [*record["question"][0], {"role": "assistant", "content": None, "tool_calls": calls}]
    return {"id": record["id"], "messages": messages, "tools": tools}


def with_other_values(row: dict, rng: random.Random) -> dict | None:
    """Replaces every value that the question contains, there and in the calls. None where it contains none."""
    replaced: dict[str, str] = {}
    question = "\n".join(message["content"] for message in row["messages"][:-1])

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replace(part) for key, part in value.items()}
        if isinstance(value, list):
            return [replace(part) for part in value]
        written = str(value)
        if isinstance(value, bool) or not re.search(rf"(?<!\w){re.escape(written)}(?!\w)", question, re.IGNORECASE):
            return value
        if written not in replaced:
            fresh = (
                rng.randint(2, 997)
                if isinstance(value, int | float)
                else " ".join(rng.choices(WORDS, k=1 + written.count(" ")))
            )
            replaced[written] = str(fresh)
        return type(value)(replaced[written])

    *asked, target = row["messages"]
    calls = [{**call, "arguments": replace(call["arguments"])} for call in target["tool_calls"]]
    if not replaced:
        return None
    longest_first = sorted(replaced, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(value)}(?!\w)" for value in longest_first), re.IGNORECASE)
    spelled = {value.casefold(): new for value, new in replaced.items()}
    asked = [
        {**message, "content": pattern.sub(lambda found: spelled[found[0].casefold()], message["content"])}
        for message in asked
    ]
    return {**row, "messages": [*asked, {**target, "tool_calls": calls}]}


def with_other_names(row: dict, rng: random.Random) -> dict:
    """Replaces the names of all tools, also in the calls."""
    names = {tool["name"]: "_".join(rng.sample(WORDS, 2)) for tool in row["tools"]}
    *asked, target = row["messages"]
    calls = [{**call, "name": names.get(call["name"], call["name"])} for call in target["tool_calls"]]
    tools = [{**tool, "name": names[tool["name"]]} for tool in row["tools"]]
    return {**row, "messages": [*asked, {**target, "tool_calls": calls}], "tools": tools}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="bfcl_eval/data")
    parser.add_argument("--clean", type=Path, help="rows from another source")
    arguments = parser.parse_args()
    began = time.process_time()
    benchmark = Benchmark(arguments.folder)
    print(f"{len(benchmark.turns)} benchmark turns indexed in {time.process_time() - began:.1f} CPU s\n")
    rows: Counter[str] = Counter()
    found: Counter[str] = Counter()
    missed: list[str] = []
    began = time.process_time()
    for kind, name, row in planted_copies(arguments.folder):
        rows[kind] += 1
        if benchmark.check(row):
            found[kind] += 1
        else:
            missed.append(f"{kind} | {name} | {' '.join(row['messages'][-2]['content'].split())[:110]}")
    spent = (time.process_time() - began) / sum(rows.values())
    print("| planted copies | rows | found | recall |\n|---|---:|---:|---:|")
    for kind in COPY_KINDS:
        print(f"| {kind} | {rows[kind]} | {found[kind]} | {found[kind] / rows[kind]:.1%} |")
    print(f"| all | {rows.total()} | {found.total()} | {found.total() / rows.total():.1%} |")
    print(f"\n{spent * 1e6:.0f} CPU µs per row. All that were missed ({len(missed)}):\n")
    print("\n".join(missed))
    if arguments.clean:
        clean = [row for row in import_rows(arguments.clean, source="clean") if isinstance(row, dict)]
        false_alarms = [
            (row["id"], fault, row["messages"][0]["content"][:90]) for row in clean if (fault := benchmark.check(row))
        ]
        print(
            f"\n{len(false_alarms)} of {len(clean)} rows from another source were taken for copies ({len(false_alarms) / len(clean):.1%}):"
        )
        print("\n".join(json.dumps(entry, ensure_ascii=False) for entry in false_alarms[:20]))


if __name__ == "__main__":
    main()
