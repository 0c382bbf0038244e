"""Calls the checker of an ACEBench checkout in a process of its own: rows as JSON lines in, verdicts as JSON lines out.

python -I acebench_checker.py CHECKOUT. Model output reaches the checker as parsed data only; what it prints goes to stderr.
"""

import json
import os
import sys


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, sys.argv[1])
    from model_eval.checker import normal_checker

    for line in sys.stdin:
        row = json.loads(line)
        accepted = row["accepted"] if isinstance(row["accepted"], list) else [row["accepted"]]
        answers.write(json.dumps(any(passes(normal_checker, row, answer) for answer in accepted)) + "\n")
        answers.flush()


def passes(checker, row: dict, answer: dict) -> bool:
    """Whether the checker accepts the calls; calls that it cannot read are wrong."""
    try:
        return bool(checker(row["functions"], row["calls"], answer, row["question"], row["category"])["valid"])
    except Exception:  # noqa: BLE001 - its faults on strange calls are not known, and none may pass
        return False


if __name__ == "__main__":
    main()
