"""Gives rows without an answer one: the teacher's, from the rollout that the student was distilled on.

    rollout ─► sequences (reward is null: the row has no answer) ─► distill writes replies.jsonl ─► refine reads it

    {"row_id": "xlam-17", "content": "I can look up the weather, but I cannot play music."}

The reply of a row is the first kept sample that calls no tool, because such a row asks for none. It is the target of the
row in Sim-RL. The distillation learns from all kept samples of the row, as from those of any other row.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.compute as pc

from star.chat import FormatError, parse_completion
from star.data.rows import is_answered, read_json_lines, write_json_lines
from star.topk.row_files import read_groups
from star.topk.sequences import sequences_file

REPLIES = "replies.jsonl"


def write_replies(topk: Path, folder: Path) -> int:
    """Writes the teacher's replies to `folder`, if it gave any. Returns their number.

    Args:
        topk: a top-k store with its sequences, or a rollout.
    """
    replies = list(_read_replies(topk))
    if replies:
        write_json_lines(folder / REPLIES, replies)
    return len(replies)


def with_replies(rows: Iterable[dict], folder: Path) -> list[dict]:
    """The rows that have an answer, their own or the teacher's.

    Args:
        folder: a student that was distilled; without the teacher's replies, rows without an answer are left out.
    """
    file = folder / REPLIES
    replies = {entry["row_id"]: entry["content"] for _, entry in read_json_lines(file)} if file.is_file() else {}
    return [_with_reply(row, replies) for row in rows if is_answered(row) or row["id"] in replies]


def _with_reply(row: dict, replies: dict[str, str]) -> dict:
    if is_answered(row):
        return row
    target = {**row["messages"][-1], "content": replies[row["id"]]}
    return {**row, "messages": [*row["messages"][:-1], target]}


def _read_replies(topk: Path) -> Iterator[dict]:
    done: set[str] = set()
    # Sorted by id, so that samples of a row come in the order of their numbers, up to ten of them.
    for group in read_groups(sequences_file(topk), columns=["row_id", "completion", "reward"]):
        for sample in group.filter(pc.is_null(group["reward"])).to_pylist():
            if sample["row_id"] in done:
                continue
            try:
                completion = parse_completion(sample["completion"])
            except FormatError:
                continue
            if not completion.tool_calls:
                done.add(sample["row_id"])
                yield {"row_id": sample["row_id"], "content": completion.content}
