"""`star data` as a user meets it: from an OpenAPI file and rows of others to a clean set with a card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.folders.dvc_digest import dvc_digest

OPENAPI = Path(__file__).parents[1] / "data" / "openapi.yaml"


def star(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "star.cli", "data", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ, capture_output=True, text=True)


def test_from_an_openapi_file_to_a_checked_set(tmp_path: Path) -> None:
    done = star("import", OPENAPI, "--out", "tools", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "25 tools" in done.stdout
    chosen = star("import", OPENAPI, "--only", "getLabel", "--only", "trackShipment", "--out", "few", cwd=tmp_path)
    assert chosen.returncode == 0, chosen.stderr
    few = json.loads((tmp_path / "few" / "tools.json").read_text())
    assert [tool["name"] for tool in few] == ["trackShipment", "getLabel"]
    made = star("synthesize", "--tools", "tools/tools.json", "--rows", 300, "--out", "rows", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    before = (tmp_path / "rows" / "rows.jsonl").stat().st_mtime_ns
    assert (
        star("synthesize", "--tools", "tools/tools.json", "--rows", 300, "--out", "rows", cwd=tmp_path).returncode == 0
    )
    assert (tmp_path / "rows" / "rows.jsonl").stat().st_mtime_ns == before, "done once"
    checked = star("check", "rows", "rows", "--quota", "simple=1", "--rows", 40, "--out", "clean", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    statistics = json.loads((tmp_path / "clean" / "figures.json").read_text())
    assert statistics["rejects"]["duplicate_id"] > 200, "the same rows again"
    assert statistics["rows"] == 40
    assert (statistics["sources"], statistics["licences"]) == ({"generated": 40}, {"own": 40}), (
        "where rows come from is kept"
    )
    shown = star("card", "clean", cwd=tmp_path)
    assert "## Kinds" in shown.stdout
    assert dvc_digest(tmp_path / "clean") in shown.stdout


def test_an_import_that_leaves_out_much_says_why(tmp_path: Path) -> None:
    tool = {"name": "ping", "description": "", "parameters": {}}
    rows = [{"query": f"Ping host {number}.", "answers": [{"name": "ping"}], "tools": [tool]} for number in range(9)]
    unread = [{"id": name, "query": "Ping.", "calls": [], "tools": [tool]} for name in ("first", "second")]
    for name, records in (("bad", [*rows, *unread]), ("good", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    bad = star("import", "bad.jsonl", "--out", "bad", cwd=tmp_path)
    assert bad.returncode == 0, bad.stderr
    assert "left out: unreadable 2" in bad.stdout
    assert "  first: unreadable: a record with `query` must have `answers`" in bad.stdout
    assert "second" not in bad.stdout, "the same reason"
    good = star("import", "good.jsonl", "--out", "good", cwd=tmp_path)
    assert "reasons" not in good.stdout


def test_a_stage_s_data_is_checked_without_what_it_rejected(finished: dict[str, Path], tmp_path: Path) -> None:
    data = finished["synthesize"]
    kept = sum(len((data / name).read_text().splitlines()) for name in ("train.jsonl", "heldout.jsonl"))
    done = star("check", data, "--out", "clean", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "clean" / "figures.json").read_text())["read"] == kept


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("import", "nothing.json", "--out", "new"), "nothing.json"),
        (("import", OPENAPI, "--only", "trackParcel", "--out", "new"), "'trackParcel'"),
        (("import", "broken.yaml", "--out", "new"), "broken.yaml"),
        (("synthesize", "--tools", OPENAPI, "--kind", "simple", "--out", "new"), "simple=0.5"),
        (("synthesize", "--tools", OPENAPI, "--endpoint", "http://x", "--out", "new"), "--model"),
        (
            (
                "synthesize",
                "--tools",
                OPENAPI,
                "--endpoint",
                "http://x",
                "--model",
                "m",
                "--masked",
                0.1,
                "--out",
                "new",
            ),
            "--masked",
        ),
        (("check", "nothing.jsonl", "--out", "new"), "nothing.jsonl"),
        (("check", "rows.jsonl", "--quota", "simple=1", "--out", "new"), "--rows"),
        (("check", "rows.jsonl", "--benchmark", ".", "--out", "new"), "no benchmark"),
        (("card", "."), "not a data set"),
    ],
)
def test_a_fault_of_the_user_is_one_line_and_exit_2(arguments: tuple, named: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'
    )
    done = star(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert named in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_digest_is_dvcs_own(tmp_path: Path) -> None:
    pytest.importorskip("dvc")
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "deep" / "ü.txt").write_text("x")
    for command in (("init", "--no-scm", "-q"), ("add", "-q", "set")):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, capture_output=True)
    assert f"md5: {dvc_digest(folder)}" in (tmp_path / "set.dvc").read_text()
    assert len(dvc_digest(folder)) == 36
