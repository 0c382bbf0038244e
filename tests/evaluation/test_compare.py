"""`star compare` on folders of today and of an older STAR, which counted other answers as valid."""

import json
from pathlib import Path

import pytest

from star.errors import InputError
from star.evaluation.compare import print_comparison

SCORE = {"mean": 0.5, "low": 0.2, "high": 0.8}


def folder(path: Path, *, reading: str | None, suite: str = "heldout") -> Path:
    path.mkdir()
    name = "exact_match" if suite == "heldout" else suite
    scores = {name: SCORE, "format_errors": SCORE} if suite == "heldout" else {name: SCORE}
    evaluation = {"models": [{"name": path.name, "scores": scores}]} | ({"reading": reading} if reading else {})
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    measures = {"exact_match": 1.0, "reward": 1.0} if suite == "heldout" else {"valid": True}
    lines = [{"model": path.name, "suite": suite, "id": f"{n}", "kind": "simple", **measures} for n in range(3)]
    (path / "outcomes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_two_readings_are_not_compared(tmp_path: Path) -> None:
    new, old = folder(tmp_path / "new", reading="strict"), folder(tmp_path / "old", reading=None)
    for pair in ((new, old), (old, new)):
        with pytest.raises(InputError, match=r"old was written by an older STAR.*evaluate that model again"):
            print_comparison(*pair)


def test_two_older_folders_are_compared_with_their_format_errors_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_comparison(folder(tmp_path / "old", reading=None), folder(tmp_path / "older", reading=None))
    assert "Format errors (official reading)" in capsys.readouterr().out
    print_comparison(folder(tmp_path / "a", reading="strict"), folder(tmp_path / "b", reading="strict"))
    shown = capsys.readouterr().out
    assert "Format errors" in shown and "Format errors (official" not in shown


def test_verdicts_of_an_official_harness_are_compared_whoever_read_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = (folder(tmp_path / f"{name}", reading=name, suite="bfcl") for name in ("strict", None))
    print_comparison(new, old)
    assert "BFCL" in capsys.readouterr().out


def test_the_first_of_several_is_compared_with_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    both = folder(tmp_path / "refined", reading="strict")
    print_comparison(*(folder(tmp_path / name, reading="strict") for name in ("first", "base", "sft")), both)
    shown = capsys.readouterr().out
    assert "First minus each other" in shown
    rows = [line.split("│")[1].strip() for line in shown.partition("First minus")[2].splitlines() if "Exact" in line]
    assert rows == ["base", "sft", "refined"]
    with pytest.raises(InputError, match="refined alone cannot be compared"):
        print_comparison(both)
    other = folder(tmp_path / "other", reading="strict", suite="bfcl")
    with pytest.raises(InputError, match=r"refined and .*other have no row in common"):
        print_comparison(both, tmp_path / "base", other)
