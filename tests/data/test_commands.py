"""The functions behind `star data`: which work counts as the same, and which code makes it."""

from pathlib import Path

import pytest

from star.data import commands, data_card
from star.data.commands import CheckSettings, ImportSettings, SynthesizeSettings, check, import_files, synthesize
from star.folders.code_digest import reachable_modules

TOOLS = Path(__file__).parent / "openapi.yaml"


@pytest.mark.parametrize(
    ("work", "module"),
    [
        (commands._write_tools, "star.data.openapi"),
        (commands._write_imported_rows, "star.data.conversations"),
        (commands._write_generated_rows, "star.data.draw_values"),
        (commands._write_rows_of_model, "star.data.generate_llm"),
        (commands._write_checked_rows, "star.data.contamination"),
    ],
)
def test_the_code_digest_covers_the_code_that_makes_the_result(work, module: str) -> None:
    reached = reachable_modules(work)
    assert module in reached
    if work is not commands._write_tools:
        assert {"star.data.cleaning", "star.data.duplicates", "star.data.write_set", "star.data.data_card"} <= {
            *reached
        }


def test_the_same_command_does_its_work_once_and_another_seed_does_it_again(tmp_path: Path) -> None:
    out = tmp_path / "rows"
    first = synthesize(SynthesizeSettings(TOOLS, rows=20, seed=1), out=out)
    made = (out / "rows.jsonl").stat().st_mtime_ns
    assert synthesize(SynthesizeSettings(TOOLS, rows=20, seed=1), out=out) == first
    assert (out / "rows.jsonl").stat().st_mtime_ns == made
    synthesize(SynthesizeSettings(TOOLS, rows=20, seed=2), out=out)
    assert (out / "rows.jsonl").stat().st_mtime_ns != made


def test_a_folder_given_twice_is_other_work_than_given_once(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    kept = synthesize(SynthesizeSettings(TOOLS, rows=20), out=rows)["rows"]
    once = check(CheckSettings([rows]), out=tmp_path / "clean")
    twice = check(CheckSettings([rows, rows]), out=tmp_path / "clean")
    assert (once["read"], once["rejects"]) == (kept, {})
    assert (twice["read"], twice["rejects"]) == (2 * kept, {"duplicate_id": kept})


def test_a_check_that_ends_after_its_quotas_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(SynthesizeSettings(TOOLS, rows=60), out=tmp_path / "rows")
    settings = CheckSettings([tmp_path / "rows"], quotas={"simple": 1}, rows=10)
    counts = check(settings, out=tmp_path / "whole")

    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(data_card, "write_card", fail)
        with pytest.raises(KeyboardInterrupt):
            check(settings, out=tmp_path / "ended")
    assert check(settings, out=tmp_path / "ended") == counts
    for name in ("rows.jsonl", "rejects.jsonl", "figures.json"):
        assert (tmp_path / "ended" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_of_the_same_content_and_another_name_are_other_work(tmp_path: Path) -> None:
    record = '{"query": "ping", "answers": [], "tools": [{"name": "ping", "description": "", "parameters": {}}]}\n'
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(record)
        import_files(ImportSettings([tmp_path / f"{name}.jsonl"]), out=tmp_path / "imported")
        assert f'"source": "{name}"' in (tmp_path / "imported" / "rows.jsonl").read_text()
