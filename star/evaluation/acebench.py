"""Evaluates a model on ACEBench's normal part in English, from a checkout that the user points to.

Its rows and its checker come from the checkout; this package holds none of them. A conversation is right when all of
its turns are. A category's score is the share of right conversations, and `normal` is the plain mean of the
categories (Chen et al. 2025, arXiv 2501.12835). The model is asked in its own tool-call format, not in the
benchmark's.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

from star.chat import FormatError, parse_completion, render_prompt
from star.errors import InputError
from star.evaluation import acebench_checker
from star.evaluation.candidate import Candidate
from star.evaluation.intervals import mean_score, weighted_score
from star.evaluation.suite_scores import CategoryScore, ScoringSettings, SuiteScores

CATEGORIES = (
    "single_turn_single_function",
    "single_turn_parallel_function",
    "multi_turn_user_adjust",
    "multi_turn_user_switch",
    "similar_api",
    "preference",
    "atom_bool",
    "atom_enum",
    "atom_number",
    "atom_list",
    "atom_object_deep",
    "atom_object_short",
)
DATA_FOLDERS = ("data_all/data_en", "data/en")  # of the English data, in older and newer checkouts
CHECKER_TIMEOUT_SECONDS = 600


class Verdict(TypedDict):
    """Whether one conversation was right. `kind` is its category."""

    id: str
    kind: str
    valid: bool


class AceBenchAnswers(TypedDict):
    """What a model made of whole categories: the verdicts, and how many rows are too long for its context."""

    verdicts: list[Verdict]
    unanswered: int


def ask_suite(candidate: Candidate, data: Path | None) -> AceBenchAnswers | None:
    """Asks the candidate its shard of the categories; None where the shard holds no category. `data` is not used."""
    checkout = candidate.settings.acebench
    if checkout is None:
        raise InputError("the suite acebench needs `acebench`: the path of a checkout of ACEBench")
    categories = candidate.shard.select(list(CATEGORIES))
    return ask_acebench(candidate, checkout.read_verified(), categories=categories) if categories else None


def score_suite(shards: list[AceBenchAnswers], settings: ScoringSettings) -> SuiteScores:
    """Scores what all shards asked, each other categories. No setting changes the scores."""
    found = score_acebench(shards)
    verdicts = found.pop("verdicts")
    return SuiteScores(
        scores={f"acebench_{name}": score for name, score in found["scores"].items()},
        details={"acebench": found},
        outcomes=verdicts,
    )


def ask_acebench(candidate: Candidate, checkout: Path, *, categories: Sequence[str] = CATEGORIES) -> AceBenchAnswers:
    """Asks every row of the categories and checks the answers with the checkout's checker.

    Raises:
        InputError: the folder is not a checkout of ACEBench, or its checker cannot be run.
    """
    rows = [row for category in categories for row in read_category(checkout, category, candidate.settings.limit)]
    prompts = [render_prompt(_messages(row), row["function"], candidate.tokenizer) for row in rows]
    replies = candidate.reply("acebench", prompts)
    rows_right = check_calls(rows, [_calls_of(reply.get("text", "")) for reply in replies], checkout)
    verdicts: list[Verdict] = []
    # The turns of a conversation follow each other.
    for (category, conversation), turns in groupby(
        zip(rows, rows_right, strict=True), key=lambda pair: (pair[0]["category"], pair[0]["conversation"])
    ):
        verdicts.append({"id": conversation, "kind": category, "valid": all(right for _, right in turns)})
    return {"verdicts": verdicts, "unanswered": sum("error" in reply for reply in replies)}


def score_acebench(shards: list[AceBenchAnswers]) -> dict[str, Any]:
    """Scores the verdicts on disjoint categories.

    Returns:
        `scores` (`normal`, where all categories were asked), `categories`, `verdicts` in the order of the categories,
        and `unanswered`.
    """
    verdicts = [verdict for shard in shards for verdict in shard["verdicts"]]
    verdicts.sort(key=lambda verdict: CATEGORIES.index(verdict["kind"]))
    columns = {name: [float(v["valid"]) for v in verdicts if v["kind"] == name] for name in CATEGORIES}
    categories: dict[str, CategoryScore] = {
        name: {**mean_score(column, seed=0), "rows": len(column)} for name, column in columns.items() if column
    }
    weights = {name: 1 / len(CATEGORIES) for name in CATEGORIES}
    # Over some categories only it would not compare with published scores.
    scores = {"normal": weighted_score(weights, categories)} if categories.keys() == weights.keys() else {}
    unanswered = sum(shard["unanswered"] for shard in shards)
    return {"scores": scores, "categories": categories, "verdicts": verdicts, "unanswered": unanswered}


def read_category(checkout: Path, category: str, limit: int | None) -> list[dict]:
    """The rows of one category with their accepted answers, the turns of a conversation one after another.

    Args:
        limit: the number of conversations to read; None for all.

    Raises:
        InputError: a file is missing or does not hold what ACEBench writes.
    """
    name = f"data_normal_{category}.json"
    folders = [checkout / path for path in DATA_FOLDERS]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    rows, answers = _read_json_lines(folder / name), _read_json_lines(folder / "possible_answer" / name)
    accepted = {row["id"]: row["ground_truth"] for row in answers}
    conversations: dict[str, list[dict]] = {}
    for row in rows:
        if row["id"] not in accepted:
            raise InputError(
                f"{folder / 'possible_answer' / name} has no answer for {row['id']}: check out ACEBench again"
            )
        # "normal_multi_turn_user_adjust_3_1" is turn 1 of conversation 3; elsewhere every row is a conversation.
        key = row["id"].rpartition("_")[0] if category.startswith("multi_turn") else row["id"]
        added = {"category": category, "conversation": key, "accepted": accepted[row["id"]]}
        conversations.setdefault(key, []).append({**row, **added})
    return [turn for turns in list(conversations.values())[:limit] for turn in turns]


def check_calls(rows: list[dict], calls: list[list[dict]], checkout: Path) -> list[bool]:
    """Whether the checkout's checker accepts the calls of each row. A row without calls is wrong.

    Args:
        rows: rows of `read_category`.
        calls: for each row its calls, as {name: arguments}.

    Raises:
        InputError: the checkout's checker cannot be run.
    """
    asked = [
        {
            "functions": row["function"],
            "calls": made,
            "accepted": row["accepted"],
            "question": row["question"],
            "category": f"normal_{row['category']}",
        }
        for row, made in zip(rows, calls, strict=True)
        if made
    ]
    # -I and an empty environment keep the user's own modules and settings out of the checker.
    command = [sys.executable, "-I", acebench_checker.__file__, str(checkout.resolve())]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=CHECKER_TIMEOUT_SECONDS, env={})
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"the checker of {checkout} cannot be run ({reason}): give a whole checkout of ACEBench")
    # Only rows with calls were sent, so only they take a verdict.
    verdicts = iter(json.loads(line) for line in done.stdout.splitlines())
    return [bool(made) and next(verdicts) for made in calls]


def _read_json_lines(file: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: give the folder of a checkout of ACEBench as `acebench`") from None
    except ValueError:
        raise InputError(f"{file} is not JSON Lines: check out ACEBench again") from None


def _messages(row: dict) -> list[dict]:
    """The row's messages, with what the benchmark tells about time and user as the system message."""
    known = [f"Current time: {row['time']}"] if row.get("time") else []
    known += [f"About the user: {row['profile']}"] if row.get("profile") else []
    system = [{"role": "system", "content": "\n".join(known)}] if known else []
    return [*system, {"role": "user", "content": row["question"].removeprefix("user: ").strip()}]


def _calls_of(text: str) -> list[dict]:
    """The calls of a completion as the checker reads them; no calls where the completion cannot be parsed."""
    try:
        return [{call["name"]: call["arguments"]} for call in parse_completion(text).tool_calls]
    except FormatError:
        return []
