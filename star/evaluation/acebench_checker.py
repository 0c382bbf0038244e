"""Runs the checker of an ACEBench checkout in a process of its own: JSON lines of rows in, JSON lines of verdicts out.

Its command is `python -I acebench_checker.py CHECKOUT`. The checker gets model output as parsed data only. What it
prints goes to stderr.
"""

import json
import os
import sys
from collections.abc import Callable


def main() -> None:
    """Writes one JSON line per input line: whether the checker accepts the row's calls for any accepted answer."""
    verdicts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the checker prints; that must not get between the verdicts
    sys.path.insert(0, sys.argv[1])
    from model_eval.checker import normal_checker

    for line in sys.stdin:
        row = json.loads(line)
        accepted = row["accepted"] if isinstance(row["accepted"], list) else [row["accepted"]]
        verdicts.write(json.dumps(any(passes(normal_checker, row, answer) for answer in accepted)) + "\n")
        verdicts.flush()


def passes(checker: Callable[..., dict], row: dict, answer: dict) -> bool:
    """Whether the checker accepts the row's calls. Calls that it cannot read are wrong."""
    try:
        return bool(checker(row["functions"], row["calls"], answer, row["question"], row["category"])["valid"])
    except Exception:  # it may raise anything on unexpected calls, and none of those may pass
        return False


if __name__ == "__main__":
    main()
