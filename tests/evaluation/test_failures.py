"""Wrong answers: all in failures.parquet, the worst in evaluation.json and on the page, whatever the models wrote."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from star.evaluation.evaluate import score_and_write
from star.evaluation.gathered import Gathered, GatheredModel, Timing

HOSTILE = "</script><b>\x1b[2J\u202e\ud800"


def outcome(row: int, *, right: bool, predicted: str) -> dict:
    return {
        "row": row,
        "id": f"n{row:04}",
        "kind": "simple",
        "source": "generated",
        "query": "Wake me up",
        "expected": "a call",
        "predicted": predicted,
        "exact_match": float(right),
        "reward": 1.0 if right else row / 2000 - 0.5,
        "format_error": 0.0,
        "mistake": None if right else "wrong text",
        "passes": 0,
        "entropy": 0.5,
        "unseen_tool": False,
        "expected_call": "call",
        "predicted_call": "call",
    }


def evaluated(rows: int, out: Path, *, predicted: str = "another call", shards: int = 1) -> dict:
    """Scores two models, of which `a` is wrong in every third row and `b` in all but the first."""
    settings = {"seed": 7, "evaluate": {"suites": ["heldout"], "samples": 1, "bfcl_categories": None}}
    right = {"a": lambda row: row % 3 > 0, "b": lambda row: row == 0}

    def gathered(shard: int) -> Gathered:
        models = [
            GatheredModel(
                name,
                1,
                1,
                Timing(0, 0.0),
                {"heldout": [outcome(n, right=is_right(n), predicted=predicted) for n in range(shard, rows, shards)]},
            )
            for name, is_right in right.items()
        ]
        return Gathered("", settings, models, {}, {}, [])

    out.mkdir()
    score_and_write([gathered(shard) for shard in range(shards)], out=out)
    return json.loads((out / "evaluation.json").read_text())


def test_all_failures_are_in_the_table_and_a_bounded_number_in_the_json(tmp_path: Path) -> None:
    few, many = evaluated(400, tmp_path / "few"), evaluated(1600, tmp_path / "many", shards=3)
    assert (few["failure_count"], many["failure_count"]) == (399, 1599)
    assert [row["id"] for row in many["failures"]] == [f"n{row:04}" for row in range(1, 101)]  # the lowest rewards
    few_size, many_size = (Path(tmp_path / name / "evaluation.json").stat().st_size for name in ("few", "many"))
    assert many_size < few_size + 500
    table = pq.read_table(tmp_path / "many" / "failures.parquet").to_pylist()
    assert [row["id"] for row in table if row["model"] == "a"] == [f"n{row:04}" for row in range(0, 1600, 3)]
    assert [row for row in table if row["model"] == "b"][:100] == many["failures"]
    page = (tmp_path / "many" / "report.html").read_text()
    assert "The 30 worst of 1,599. All are in failures.parquet." in page


def test_hostile_and_long_texts_are_kept_whole_in_the_table_and_shown_harmless_and_short(tmp_path: Path) -> None:
    text = HOSTILE + "word " * 5000
    [failure] = evaluated(2, tmp_path / "out", predicted=text)["failures"]
    assert failure["predicted"].startswith(HOSTILE) and len(failure["predicted"]) < 4100
    table = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert [row["predicted"] for row in table] == [text.replace("\ud800", "\\ud800")] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "</script>" not in page and "\x1b" not in page and "\u202e" not in page


def test_an_evaluation_without_failures_has_an_empty_table(tmp_path: Path) -> None:
    assert evaluated(1, tmp_path / "out")["failures"] == []
    table = pq.read_table(tmp_path / "out" / "failures.parquet")
    assert table.column_names == ["model", "id", "kind", "query", "expected", "predicted", "mistake", "reward"]
    assert table["model"].to_pylist() == ["a"]
