"""BFCL: the official harness asks, the model answers, the harness's own checkers judge (star/evaluation/bfcl/harness.py).

The harness is bfcl-eval, unchanged and in an environment of its own; its prompts are those of its handler for Qwen3, so scores compare
with published ones. Nothing of its data is in this package.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from star.config.bfcl_categories import CATEGORIES
from star.errors import InputError
from star.evaluation.bfcl import harness
from star.evaluation.bfcl.environment import harness_python
from star.evaluation.bfcl.scores import bfcl_scores
from star.hashing import digest_of
from star.progress import Bar

CONVERSATIONS = 64  # open at once: enough to fill batches; each is a process

Query = dict  # id of the entry, step of the conversation, prompt
Reply = dict  # text, or error: why there is none
Answer = Callable[[list[Query]], list[Reply]]


def evaluate_bfcl(
    answer: Answer, *, label: str, categories: tuple[str, ...] = CATEGORIES, limit: int | None = None
) -> dict:
    """Holds every conversation of the categories with `answer` and scores them.

    Args:
        answer: the model: replies to a batch of queries, in their order.
        limit: entries of each category, evenly spread; all of them when not given.

    Returns:
        what score_bfcl does.
    """
    return score_bfcl([run_harness(answer, label=label, categories=categories, limit=limit)], order=categories)


def score_bfcl(reports: list[dict], *, order: Sequence[str]) -> dict:
    """Scores what the harness reported of disjoint categories.

    Args:
        order: the categories of all reports, as their verdicts are to be ordered.

    Returns:
        what bfcl_scores returns, and `verdicts` (id, category, valid, error), `package`, `data`, `data_sha256`, `isolated`, `unanswered`.
    """
    verdicts = [verdict for report in reports for verdict in report["verdicts"]]
    verdicts.sort(key=lambda verdict: order.index(verdict["category"]))
    sizes, digests = (
        {category: value for report in reports for category, value in report[key].items()}
        for key in ("sizes", "digests")
    )
    return {
        "verdicts": verdicts,
        "isolated": all(report["isolated"] for report in reports),
        "package": reports[0]["package"],
        "data": reports[0]["data"],
        "data_sha256": digest_of(digests),
        "sizes": {category: sizes[category] for category in sorted(sizes)},
        "unanswered": sum(report["unanswered"] for report in reports),
        **bfcl_scores(verdicts, sizes),
    }


def run_harness(answer: Answer, *, label: str, categories: tuple[str, ...], limit: int | None) -> dict:
    """The harness's report on the conversations of the categories, not scored yet.

    Raises:
        InputError: a category is not known, or the harness's environment cannot be made.
        RuntimeError: the harness failed; the message has the end of its log.
    """
    if unknown := set(categories) - set(CATEGORIES):
        raise InputError(f"BFCL has no category {sorted(unknown)[0]}: choose from {', '.join(CATEGORIES)}")
    python, unanswered = harness_python(), 0
    with tempfile.TemporaryDirectory(prefix="star-bfcl-") as scratch, tempfile.TemporaryFile("w+") as log:
        process = _start(python, Path(scratch), log)
        try:
            process.stdin.write(json.dumps({"categories": categories, "limit": limit, "workers": CONVERSATIONS}) + "\n")
            process.stdin.flush()
            total = json.loads(process.stdout.readline() or "{}").get("entries", 0)
            with Bar(label, total) as bar:
                for message in map(json.loads, process.stdout):
                    if "report" in message:
                        warn_if_not_isolated(message["report"])
                        return {**message["report"], "unanswered": unanswered}
                    if "done" in message:
                        bar.advance(message["done"] - bar.done)
                    if "ask" in message:
                        replies = answer([{**query, "prompt": _valid(query["prompt"])} for query in message["ask"]])
                        unanswered += sum("error" in reply for reply in replies)
                        process.stdin.write(json.dumps(replies) + "\n")
                        process.stdin.flush()
        except (BrokenPipeError, json.JSONDecodeError):
            process.kill()
        finally:
            process.stdin.close()
            process.stdout.close()
            status = process.wait()
        log.seek(0)
        raise RuntimeError(f"the BFCL harness ended with status {status}:\n{log.read()[-2000:]}")


def _start(python: Path, scratch: Path, log) -> subprocess.Popen:
    """The harness's process: nothing of our environment reaches it, and its folder is fresh, as it reads it once at import."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(scratch),
        "BFCL_PROJECT_ROOT": str(scratch),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    command = [str(python), "-P", "-s", "-B", harness.__file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    return subprocess.Popen(command, **pipes, env=environment, cwd=scratch, text=True, encoding="utf-8")


def _valid(prompt: str) -> str:
    """The prompt as UTF-8 can hold it: a simulator may give back half a surrogate pair that the model wrote."""
    return prompt.encode("utf-8", "replace").decode()


def warn_if_not_isolated(report: dict) -> None:
    if not report["isolated"]:
        print(
            "bfcl: this system allows no network namespace; the harness ran with the other walls only", file=sys.stderr
        )
