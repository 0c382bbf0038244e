"""Measures the peak memory of cleaning a stream of rows, by the number of rows, each number in a process of its own.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/data_memory.py 10000 100000 1000000
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from star.data.splits import choose_heldout_rows
from star.data.write_set import write_set

TOOL = {
    "name": "track",
    "description": "Track a parcel",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
}


def made_rows(start: int, count: int) -> Iterator[dict]:
    """Yields groups of five rows: four with a different call each, then a refusal with always the same target."""
    for index in range(start, count):
        call = {"content": "", "tool_calls": [{"name": "track", "arguments": {"number": index}}]}
        answer = {"content": "None of the given tools can do that.", "tool_calls": []} if index % 5 == 4 else call
        start_word, other_word = f"{index * 7919 % 1000003:x}", f"{index * 104729 % 999983:x}"
        question = f"{start_word} where is parcel {index:x}, and how is {other_word} on {index % 97:x}?"
        messages = [{"role": "user", "content": question}, {"role": "assistant", **answer}]
        yield {
            "id": f"r{index}",
            "messages": messages,
            "tools": [TOOL],
            "source": "made",
            "kind": "simple" if index % 5 != 4 else "irrelevance",
        }


def measure(count: int) -> None:
    from star.data.rows import read_rows

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.process_time()
        statistics = write_set(lambda start: made_rows(start, count), out=out, state=out, total=count)
        peak_cleaning = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        choose_heldout_rows(read_rows(out / "rows.jsonl"), heldout=min(1000, count // 10), seed=1)
        peak_split = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        disk = sum(file.stat().st_size for file in out.iterdir()) / 2**20
        seconds = time.process_time() - began
        print(
            f"| {count:,} | {statistics.rows:,} | {peak_cleaning:.0f} | {peak_split:.0f} | {disk:.0f} | {seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+", help="numbers of rows")
    counts = parser.parse_args().counts
    if len(counts) == 1:
        measure(counts[0])
        return
    columns = ("rows read", "kept", "peak MiB, cleaning", "peak MiB, with the split", "disk MiB", "CPU s")
    print("| " + " | ".join(columns) + " |\n|" + "---:|" * len(columns), flush=True)
    for count in counts:
        subprocess.run([sys.executable, __file__, str(count)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
