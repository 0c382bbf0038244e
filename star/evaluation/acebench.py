"""ACEBench, its normal part in English, from a checkout that the user points to: its rows, its checker, none of it in this package.

A conversation counts when all of its turns are right, a category is the share of such conversations, and `normal` the plain mean of the
categories (Chen et al. 2025, arXiv 2501.12835). The model is asked in its own tool-call format, not in the benchmark's.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from star.chat import FormatError, parse_completion, render_prompt
from star.errors import InputError
from star.evaluation import acebench_checker
from star.evaluation.bfcl.scores import combined
from star.evaluation.candidate import Candidate
from star.evaluation.heldout import scored

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
PLACES = ("data_all/data_en", "data/en")  # of the English data, in older and newer checkouts
CHECK_SECONDS = 600


def ask_acebench(candidate: Candidate, checkout: Path, *, categories: Sequence[str] = CATEGORIES) -> dict:
    """Asks every row of the categories and judges conversations with the checkout's checker.

    Returns:
        `verdicts`: one dict a conversation, and `unanswered`: how many rows have no reply.

    Raises:
        InputError: the folder is no checkout of ACEBench, or its checker fails.
    """
    rows = [row for category in categories for row in read_category(checkout, category, candidate.settings.limit)]
    prompts = [render_prompt(_messages(row), row["function"], candidate.tokenizer) for row in rows]
    replies = candidate.reply("acebench", prompts)
    right = check(rows, [_calls(reply.get("text", "")) for reply in replies], checkout)
    verdicts = []
    for (category, conversation), turns in groupby(
        zip(rows, right, strict=True), key=lambda pair: (pair[0]["category"], pair[0]["conversation"])
    ):
        verdicts.append({"id": conversation, "kind": category, "valid": all(valid for _, valid in turns)})
    return {"verdicts": verdicts, "unanswered": sum("error" in reply for reply in replies)}


def score_acebench(parts: list[dict]) -> dict:
    """Scores the verdicts on disjoint categories.

    Returns:
        `scores` (`normal`, where all categories are there), `categories`, `verdicts` in the order of the categories, `unanswered`.
    """
    verdicts = [verdict for part in parts for verdict in part["verdicts"]]
    verdicts.sort(key=lambda verdict: CATEGORIES.index(verdict["kind"]))
    columns = {name: [float(v["valid"]) for v in verdicts if v["kind"] == name] for name in CATEGORIES}
    categories = {name: {**scored(column, seed=0), "rows": len(column)} for name, column in columns.items() if column}
    weights = {name: 1 / len(CATEGORIES) for name in CATEGORIES}
    scores = {"normal": combined(weights, categories)} if categories.keys() == weights.keys() else {}
    unanswered = sum(part["unanswered"] for part in parts)
    return {"scores": scores, "categories": categories, "verdicts": verdicts, "unanswered": unanswered}


def read_category(checkout: Path, category: str, limit: int | None) -> list[dict]:
    """The rows of one category with their accepted answers, turns of a conversation together; at most `limit` conversations.

    Raises:
        InputError: a file is missing or not what ACEBench writes.
    """
    name = f"data_normal_{category}.json"
    folder = next((found for place in PLACES if (found := checkout / place).is_dir()), checkout / PLACES[0])
    rows, answers = _read(folder / name), _read(folder / "possible_answer" / name)
    accepted = {row["id"]: row["ground_truth"] for row in answers}
    kept: dict[str, list[dict]] = {}
    for row in rows:
        if row["id"] not in accepted:
            raise InputError(
                f"{folder / 'possible_answer' / name} has no answer for {row['id']}: check out ACEBench again"
            )
        key = row["id"].rpartition("_")[0] if category.startswith("multi_turn") else row["id"]
        turn = {"category": category, "conversation": key, "accepted": accepted[row["id"]]}
        kept.setdefault(key, []).append({**row, **turn})
    return [turn for turns in list(kept.values())[:limit] for turn in turns]


def check(rows: list[dict], calls: list[list[dict]], checkout: Path) -> list[bool]:
    """The checker's verdict on the calls of each row; a row without calls is wrong.

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
    command = [sys.executable, "-I", acebench_checker.__file__, str(checkout.resolve())]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=CHECK_SECONDS, env={})
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"the checker of {checkout} cannot be run ({said}): give a whole checkout of ACEBench")
    verdicts = iter(json.loads(line) for line in done.stdout.splitlines())
    return [bool(made) and next(verdicts) for made in calls]


def _read(file: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"no file {file}: give the folder of a checkout of ACEBench as `acebench`") from None
    except ValueError:
        raise InputError(f"{file} is not JSON Lines: check out ACEBench again") from None


def _messages(row: dict) -> list[dict]:
    known = [f"Current time: {row['time']}"] if row.get("time") else []
    known += [f"About the user: {row['profile']}"] if row.get("profile") else []
    system = [{"role": "system", "content": "\n".join(known)}] if known else []
    return [*system, {"role": "user", "content": row["question"].removeprefix("user: ").strip()}]


def _calls(text: str) -> list[dict]:
    """The calls of a completion in the checker's form; none where the format is broken."""
    try:
        return [{call["name"]: call["arguments"]} for call in parse_completion(text).tool_calls]
    except FormatError:
        return []
