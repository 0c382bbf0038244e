"""Evaluates a model on BFCL: runs the official harness in its own process, answers its queries, scores its verdicts.

The harness is bfcl-eval, unchanged, in an environment of its own (environment.py). Its prompts are those of its
handler for Qwen3, so that scores compare with published ones. This package holds none of its data. The other end of
the pipe is harness.py.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypedDict

from star.call_blocks import begins_call
from star.chat import THINK_CLOSE
from star.config.bfcl_categories import CATEGORIES
from star.errors import InputError
from star.evaluation.bfcl import harness
from star.evaluation.bfcl.environment import harness_python
from star.evaluation.bfcl.scores import bfcl_scores
from star.evaluation.candidate import Candidate
from star.evaluation.suite_scores import ScoringSettings, SuiteScores
from star.hashing import digest_of
from star.modeling.prompts import template_beginning, template_opening
from star.progress import Bar

MAX_OPEN_CONVERSATIONS = 64  # enough to fill batches; each is a process

Query = dict[str, Any]  # `id` of the entry, `step` of the conversation, `prompt`
Reply = dict[str, str]  # `text`, or `error`: why there is no text
Answer = Callable[[list[Query]], list[Reply]]


class Verdict(TypedDict):
    """The harness's verdict on one entry.

    `error` is the harness's error type where the entry is wrong. `began_call` is whether any answer holds the start of
    a call, also of one that the harness cannot read.
    """

    id: str
    category: str
    valid: bool
    error: str | None
    began_call: bool


class HarnessReport(TypedDict):
    """What the harness found on whole categories.

    `isolated` says whether it ran without a network, `package` and `data` which version it is. `digests` and `sizes`
    are those of the data files, by category. `unanswered` counts the queries that were too long for the model's
    context.
    """

    verdicts: list[Verdict]
    isolated: bool
    package: str
    data: str
    digests: dict[str, str]
    sizes: dict[str, int]
    unanswered: int


def ask_suite(candidate: Candidate, data: Path | None) -> HarnessReport | None:
    """Asks the candidate its shard of the categories; None where the shard holds no category. `data` is not used."""
    # Without duplicates, so that no two shards run the same category.
    chosen = list(dict.fromkeys(candidate.settings.bfcl_categories or CATEGORIES))
    categories = candidate.shard.select(chosen)
    if not categories:
        return None
    # The harness's prompts begin with the first turn and end with the header. A model was trained with the BOS of its family
    # before that, and behind it with the beginning of the answer that its template writes.
    beginning, opening = template_beginning(candidate.tokenizer), template_opening(candidate.tokenizer)
    return run_harness(
        lambda queries: candidate.reply("bfcl", [beginning + query["prompt"] + opening for query in queries]),
        label=f"BFCL of the {candidate.name} model",
        categories=tuple(categories),
        limit=candidate.settings.limit,
    )


def score_suite(shards: list[HarnessReport], settings: ScoringSettings) -> SuiteScores:
    """Scores the reports of all shards, each on other categories."""
    found = score_bfcl(shards, order=settings.bfcl_categories or CATEGORIES)
    verdicts = found.pop("verdicts")
    return SuiteScores(
        scores={f"bfcl_{name}": score for name, score in found["scores"].items()},
        details={"bfcl": found},
        outcomes=[{**verdict, "kind": verdict["category"]} for verdict in verdicts],
    )


def evaluate_bfcl(
    answer: Answer, *, label: str, categories: tuple[str, ...] = CATEGORIES, limit: int | None = None
) -> dict[str, Any]:
    """Runs every conversation of the categories with `answer` as the model, and scores them.

    Args:
        answer: replies to a batch of queries, in their order.
        label: text of the progress bar.
        limit: entries per category, evenly spread; None for all.

    Returns:
        The result of `score_bfcl`.
    """
    return score_bfcl([run_harness(answer, label=label, categories=categories, limit=limit)], order=categories)


def score_bfcl(reports: list[HarnessReport], *, order: Sequence[str]) -> dict[str, Any]:
    """Scores the harness's reports on disjoint categories.

    Args:
        order: the categories of all reports, in the order in which their verdicts are returned.

    Returns:
        The result of `bfcl_scores`, with `verdicts`, `package`, `data`, `data_sha256`, `isolated`, `sizes` and
        `unanswered`.
    """
    verdicts = [verdict for report in reports for verdict in report["verdicts"]]
    # As if one process had run all categories: the shards took every n-th one.
    verdicts.sort(key=lambda verdict: order.index(verdict["category"]))
    sizes = {category: size for report in reports for category, size in report["sizes"].items()}
    digests = {category: digest for report in reports for category, digest in report["digests"].items()}
    return {
        "verdicts": verdicts,
        "isolated": all(report["isolated"] for report in reports),
        "package": reports[0]["package"],
        "data": reports[0]["data"],
        "data_sha256": digest_of(digests),
        # Sorted like the report of a single process.
        "sizes": {category: sizes[category] for category in sorted(sizes)},
        "unanswered": sum(report["unanswered"] for report in reports),
        **bfcl_scores(verdicts, sizes),
    }


def run_harness(answer: Answer, *, label: str, categories: tuple[str, ...], limit: int | None) -> HarnessReport:
    """Runs every conversation of the categories with `answer` as the model. Returns the report, not scored yet.

    Raises:
        InputError: a category is not known, or the harness's environment could not be made.
        RuntimeError: the harness failed. The message has the end of its log.
    """
    if unknown := set(categories) - set(CATEGORIES):
        raise InputError(f"BFCL has no category {sorted(unknown)[0]}: choose from {', '.join(CATEGORIES)}")
    python = harness_python()
    with tempfile.TemporaryDirectory(prefix="star-bfcl-") as scratch, tempfile.TemporaryFile("w+") as log:
        process = _start_harness(python, Path(scratch), log)
        stdin, stdout = _pipes_of(process)
        job = {"categories": categories, "limit": limit, "workers": MAX_OPEN_CONVERSATIONS}
        # A dead harness shows as a broken pipe, a cut line, or the end of its output. All end in the error below.
        try:
            if report := _answer_queries(stdin, stdout, answer, job=job, label=label):
                _warn_if_not_isolated(report)
                return report
        except (BrokenPipeError, json.JSONDecodeError):
            process.kill()
        finally:
            # Without its input and output the harness ends, and its forked conversations with it.
            stdin.close()
            stdout.close()
            status = process.wait()
        log.seek(0)
        raise RuntimeError(f"the BFCL harness ended with status {status}:\n{log.read()[-2000:]}")


def _answer_queries(
    stdin: IO[str], stdout: IO[str], answer: Answer, *, job: dict[str, Any], label: str
) -> HarnessReport | None:
    """Sends the job to the harness and answers its queries until it reports; None where it ends without a report."""
    unanswered, began_call = 0, set()
    _send(stdin, job)
    # A harness that died at its start sends no line, and the loop below ends at once.
    total = json.loads(stdout.readline() or "{}").get("entries", 0)
    with Bar(label, total) as bar:
        for message in map(json.loads, stdout):
            if "report" in message:
                report: HarnessReport = message["report"]
                for verdict in report["verdicts"]:
                    verdict["began_call"] = verdict["id"] in began_call
                return {**report, "unanswered": unanswered}
            if "done" in message:
                bar.advance(message["done"] - bar.done)
            if "ask" in message:
                replies = answer([{**query, "prompt": _valid_unicode(query["prompt"])} for query in message["ask"]])
                unanswered += sum("error" in reply for reply in replies)
                # What a model considers in its reasoning is no call.
                began_call |= {
                    query["id"]
                    for query, reply in zip(message["ask"], replies, strict=True)
                    if begins_call(reply.get("text", "").rpartition(THINK_CLOSE)[2])
                }
                _send(stdin, replies)
    return None


def _send(stdin: IO[str], value: object) -> None:
    stdin.write(json.dumps(value) + "\n")
    stdin.flush()


def _start_harness(python: Path, scratch: Path, log: IO[str]) -> subprocess.Popen[str]:
    """Starts the harness with an environment and a working folder of its own.

    None of our environment variables reach it. The folder is fresh because the harness reads it once, at import.
    """
    environment = {
        "PATH": os.defpath,
        "HOME": str(scratch),
        "BFCL_PROJECT_ROOT": str(scratch),
        "OMP_NUM_THREADS": "1",
        # Sets are iterated in the same order in every run.
        "PYTHONHASHSEED": "0",
        # A model may write half a surrogate pair, and printing it must not end the harness.
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    command = [str(python), "-P", "-s", "-B", harness.__file__]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        cwd=scratch,
        text=True,
        encoding="utf-8",
    )


def _pipes_of(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """The process's stdin and stdout, both of which were opened as pipes."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the BFCL harness was started without pipes")
    return process.stdin, process.stdout


def _valid_unicode(prompt: str) -> str:
    """The prompt as UTF-8 can encode it: a simulator may return half a surrogate pair that the model wrote."""
    return prompt.encode("utf-8", "replace").decode()


def _warn_if_not_isolated(report: HarnessReport) -> None:
    if not report["isolated"]:
        print(
            "bfcl: this system allows no network namespace; the harness ran with its other protections only",
            file=sys.stderr,
        )
