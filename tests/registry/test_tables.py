"""The table of versions on a narrow terminal."""

from pathlib import Path

import pytest

from star.registry.promotion.promote_and_rollback import promote
from star.registry.publish import register_model
from star.registry.tables import print_versions


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
