"""Measures the processor time of importing rows, and compares it with that of another checkout of STAR.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/data_import.py --rows 20000 --runs 5 --against ../star-before
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]
IMPORT = """
import sys
from pathlib import Path
from star.data.importers import import_rows, original_tools
from star.data.rows import write_json_lines
from star.data.write_set import from_start, write_set
file, out = Path(sys.argv[1]), Path(sys.argv[2])
(out / "set").mkdir(); (out / "state").mkdir()
write_set(from_start(import_rows(file, source="s")), out=out / "set", state=out / "state")
write_json_lines(out / "set" / "tools.jsonl", original_tools([file]))
"""
WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "harbor",
    "ivory",
    "juniper",
    "kestrel",
    "lotus",
    "maple",
    "north",
    "ocean",
]


def made_records(count: int) -> list[dict]:
    """Records in xLAM's form, with tools of types, patterns, bounds and lists, of which a set has thousands."""
    rng = random.Random(1)  # noqa: S311 - a benchmark

    def parameter(name: str) -> dict:
        kinds = [
            {"type": "str", "description": f"the {name} to look for"},
            {"type": "int, optional", "description": "how many", "default": 10},
            {"type": "List[str]", "description": "names"},
            {"type": "string", "pattern": "^[a-z ]+$", "minLength": 1},
            {"type": "string", "enum": WORDS},
        ]
        return rng.choice(kinds)

    tools = [
        {
            "name": f"{rng.choice(WORDS)}_{number}",
            "description": " ".join(rng.choices(WORDS, k=12)),
            "parameters": {name: parameter(name) for name in rng.sample(WORDS, 4)},
        }
        for number in range(3000)
    ]
    records = []
    for number in range(count):
        shown = rng.sample(tools, rng.randint(1, 4))
        values = {"str": rng.choice(WORDS), "string": rng.choice(WORDS), "List[str]": rng.sample(WORDS, 2)}
        arguments = {name: values.get(part["type"], 5) for name, part in shown[0]["parameters"].items()}
        query = " ".join(rng.choices(WORDS, k=20)) + f" {number}"
        answers = [{"name": shown[0]["name"], "arguments": arguments}]
        records.append({"id": number, "query": query, "answers": json.dumps(answers), "tools": json.dumps(shown)})
    return records


def seconds_of_import(checkout: Path, file: Path) -> tuple[float, bytes]:
    """Processor time of one import, with that of its child processes, and the rows that it wrote."""
    with tempfile.TemporaryDirectory() as out:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", IMPORT, str(file), out]
        subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(checkout)}, cwd=out, stderr=subprocess.DEVNULL, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        written = b"".join(
            (Path(out) / "set" / name).read_bytes() for name in ("rows.jsonl", "rejects.jsonl", "tools.jsonl")
        )
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, written


def main() -> None:
    """Prints the median of each checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--parquet", action="store_true", help="import a Parquet file")
    given = parser.parse_args()
    checkouts = [HERE, *([given.against.resolve()] if given.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        records = made_records(given.rows)
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        if given.parquet:
            import pyarrow as pa
            import pyarrow.parquet as pq

            file = file.with_suffix(".parquet")
            pq.write_table(pa.Table.from_pylist(records), file)
        taken: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
        sets = set()
        # Alternating, so that what else the machine does falls on both.
        for _ in range(given.runs):
            for checkout in checkouts:
                seconds, written = seconds_of_import(checkout, file)
                taken[checkout].append(seconds)
                sets.add(written)
    for checkout, times in taken.items():
        runs = ", ".join(f"{seconds:.2f}" for seconds in times)
        print(f"{checkout}: {statistics.median(times):.2f} s of processor time for {given.rows:,} rows ({runs})")
    print("the same bytes" if len(sets) == 1 else "NOT the same bytes")


if __name__ == "__main__":
    main()
