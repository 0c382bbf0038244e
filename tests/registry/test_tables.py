"""The table of versions on a narrow terminal."""

from pathlib import Path

import pytest

from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.registry.tables import print_difference, print_versions
from star.registry.versions import find_version


def test_nothing_is_cut_in_eighty_columns(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scores = {"exact_match": 0.9, "mean_reward": 0.95, "format_errors": 0.01, "pass_at_8": 0.97}
    for digest in ("d1", "d2"):
        register_model(model, name="tiny", scores=scores, lineage={"data": "0123456789"}, model_digest=digest)
    promote("tiny", 1)
    promote("tiny", 2)
    print_versions("tiny")
    printed = capsys.readouterr().out
    assert "…" not in printed
    for word in ("champion", "previous-champion", "exact", "format", "pass@8", "0.970", "data    012345"):
        assert word in printed


def test_scores_of_an_older_star_are_marked_and_not_subtracted(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    scores = {"exact_match": 0.75, "mean_reward": 0.5, "format_errors": 0.25}
    for digest, lineage in (("d1", {}), ("d2", {"reading": "strict"})):
        register_model(model, name="tiny", scores=scores, lineage=lineage, model_digest=digest)
    print_versions("tiny")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("0.250*") == 1 and "an older STAR counted these format errors" in printed
    first, second = (find_version("tiny", version=number) for number in (1, 2))
    print_difference(first, second)
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.count("│") == 5}
    assert "+0.0000" in lines["mean_reward"]
    assert not any("+0.0000" in lines[name] for name in ("exact_match", "format_errors"))
    print_difference(first, first)
    assert capsys.readouterr().out.count("+0.0000") == 3
