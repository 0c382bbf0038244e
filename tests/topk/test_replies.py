"""Rows without an answer get the teacher's reply: the first kept sample that calls no tool."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star import stages
from star.config.experiment import Config
from star.data.rows import is_answered, read_json_lines, read_rows, write_json_lines
from star.topk.replies import REPLIES, with_replies, write_replies
from star.topk.sequences import SCHEMA, SEQUENCES

CALL = '<think>\n\n</think>\n\n<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'


def said(text: str) -> str:
    return f"<think>\nHm.\n</think>\n\n{text}"


def write_sequences(folder: Path, *samples: tuple[str, str, float | None]) -> None:
    rows = [
        {"id": f"{row_id}#{number}", "row_id": row_id, "prompt_ids": [1], "completion_ids": [2], "completion": text}
        | {"reward": reward}
        for number, (row_id, text, reward) in enumerate(samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / SEQUENCES)


def row(row_id: str, content: str | None) -> dict:
    target = {"role": "assistant", "content": content, "tool_calls": [], "reasoning_content": None}
    return {"id": row_id, "messages": [{"role": "user", "content": "Sing!"}, target], "tools": []}


def test_the_first_reply_of_a_row_without_an_answer_is_its_target(tmp_path: Path) -> None:
    write_sequences(
        tmp_path,
        ("a", CALL, None),
        ("a", said("I cannot sing."), None),
        ("a", said("No."), None),
        ("b", CALL, None),
        ("c", said("Yes."), 0.5),
    )
    assert write_replies(tmp_path, tmp_path) == 1
    rows = [row("a", None), row("b", None), row("c", "Of course.")]
    answered = with_replies(rows, tmp_path)
    # The row whose teacher only called tools has nothing to be compared with.
    assert [(one["id"], one["messages"][-1]["content"]) for one in answered] == [
        ("a", "I cannot sing."),
        ("c", "Of course."),
    ]
    assert rows[0]["messages"][-1]["content"] is None


def test_without_such_rows_nothing_is_written(tmp_path: Path) -> None:
    write_sequences(tmp_path, ("c", said("Yes."), 0.5))
    assert write_replies(tmp_path, tmp_path) == 0 and not (tmp_path / REPLIES).exists()
    assert [one["id"] for one in with_replies([row("a", None), row("c", "Of course.")], tmp_path)] == ["c"]


@pytest.mark.slow
def test_a_run_trains_on_the_teachers_replies(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    """Refusals of the finished run lose their answer; its teacher, which knows them, gives it back."""
    rows = list(read_rows(finished["synthesize"] / "train.jsonl"))
    for one in rows:
        if one["kind"] == "irrelevance":
            one["unanswered"], one["messages"][-1] = True, {"role": "assistant", "content": None, "tool_calls": []}
    write_json_lines(tmp_path / "rows.jsonl", sorted(rows, key=is_answered)[:50])
    settings = micro.model_dump(mode="json")
    settings["data"] |= {
        "generated_rows": 0,
        "heldout_rows": 4,
        "sources": [{"path": str(tmp_path / "rows.jsonl"), "source": "mine"}],
    }
    settings["rollout"] |= {"prompts": None, "cut_at": 12}
    config, teacher = Config.model_validate(settings), finished["refine-teacher"]
    folders = {name: tmp_path / name for name in ("data", "rollouts", "topk", "student", "refined")}
    metrics = stages.synthesize(config, out=folders["data"])
    rollouts = stages.rollout(config, data=folders["data"], teacher=teacher, out=folders["rollouts"])
    stages.extract_topk(config, rollouts=folders["rollouts"], teacher=teacher, out=folders["topk"])
    stages.distill(config, topk=folders["topk"], out=folders["student"])
    refined = stages.refine(config, student=folders["student"], data=folders["data"], out=folders["refined"])
    train = list(read_rows(folders["data"] / "train.jsonl"))
    replies = {entry["row_id"]: entry["content"] for _, entry in read_json_lines(folders["student"] / REPLIES)}
    unanswered = {one["id"] for one in train if not is_answered(one)}
    assert 0 < len(replies) <= metrics["unanswered"] == len(unanswered) and replies.keys() <= unanswered
    assert refined["prompts"] + refined["too_long"] == len(train) - len(unanswered) + len(replies)
    assert refined.get("unanswered", 0) == len(unanswered) - len(replies)
    lengths = pq.read_table(folders["rollouts"] / SEQUENCES, columns=["completion_ids"])["completion_ids"]
    assert rollouts["cut"] > 0 and max(map(len, lengths.to_pylist())) == 12
