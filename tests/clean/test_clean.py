"""`star clean`: what nothing needs goes, and everything that something needs stays whole."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star.clean.clean import carry_out, make_plan
from star.cli.main import app
from star.config.experiment import Config
from star.config.files import paths_in
from star.errors import InputError
from star.folders.in_use import no_work_starts, using
from star.folders.manifest import MANIFEST, open_input, read_manifest
from star.folders.workspace import open_workspace
from star.registry.lineage_tree import print_lineage
from star.registry.promotion.promote_and_rollback import delete_version
from star.tracking.spool import Spool
from tests.clean.conftest import make_old, make_result, make_run, register_run


def going(plan) -> set[str]:
    return {entry.place for entry in plan.entries if entry.goes}


def why_of(plan, place: str) -> str:
    return next(entry.why for entry in plan.entries if entry.place.startswith(place))


def clean() -> tuple[set[str], list[str]]:
    config = Config()
    plan = make_plan(config)
    done = carry_out(plan, config)
    assert done.failed == plan.problems
    return {entry.place for entry in done.removed}, [*plan.problems, *done.left]


def test_an_old_run_goes_and_what_a_version_was_made_from_stays(runs: Path, tmp_path: Path, capsys) -> None:
    champion = make_run(runs / "pipeline" / "star-1", content="champion")
    forgotten = make_run(runs / "pipeline" / "star-2", content="forgotten")
    # A young model that was made from an old data set.
    young = make_run(runs / "pipeline" / "star-3", content="young")
    number = register_run(champion, tmp_path / "publish")
    make_old(runs / "pipeline", days=60)
    os.utime(young["refine"] / MANIFEST)
    (runs / "latest").mkdir()
    (runs / "latest" / "distill").symlink_to(champion["distill"])
    assert print_lineage(str(number), name="star") == []
    ok = capsys.readouterr().out.count(" ok ")
    removed, problems = clean()
    assert problems == []
    assert removed == {*(f"runs/pipeline/star-2/{stage}" for stage in forgotten), "runs/pipeline/star-3/evaluate"}
    assert not (runs / "pipeline" / "star-2").exists()
    for folders in (champion, {stage: folder for stage, folder in young.items() if stage != "evaluate"}):
        for stage, folder in folders.items():
            open_input(folder, stage=stage)
    assert print_lineage(str(number), name="star") == []
    assert capsys.readouterr().out.count(" ok ") == ok
    assert clean() == (set(), [])


def test_without_the_registry_only_what_it_cannot_need_goes(runs: Path, registry: pytest.MonkeyPatch) -> None:
    old = make_result("synthesize", runs / "hand" / "data", content="x")
    make_old(old, days=60)
    log = runs / "logs" / "20260101-120000.log"
    log.parent.mkdir()
    log.write_text("old")
    make_old(log, days=60)
    registry.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    registry.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    removed, [problem] = clean()
    assert removed == {"runs/logs/20260101-120000.log"} and "MLflow at http://127.0.0.1:9" in problem
    assert old.exists()


def test_a_registry_that_lacks_the_homes_model_is_another_one(runs: Path) -> None:
    folder = make_result("register", runs / "hand" / "registration", content="x")
    (folder / "registration.json").write_text(json.dumps({"model": "star", "version": 1}))
    make_old(folder, days=60)
    plan = make_plan(Config())
    assert not going(plan) and "set MLFLOW_TRACKING_URI" in plan.problems[0]


def test_the_ledger_keeps_what_a_deleted_version_was_made_from(runs: Path, tmp_path: Path) -> None:
    made = make_run(runs / "pipeline" / "star-1", content="deleted")
    number = register_run(made, tmp_path / "publish")
    make_old(runs / "pipeline", days=60)
    delete_version("star", number)
    plan = make_plan(Config())
    assert not going(plan) and not plan.problems
    assert why_of(plan, "runs/pipeline/star-1/refine") == "the registry needs it"
    assert why_of(plan, "runs/pipeline/star-1/extract-topk") == "what stays was made from it"


def test_a_registry_with_another_model_of_that_name_is_another_one_too(runs: Path, tmp_path: Path) -> None:
    made = make_run(tmp_path / "made", content="champion")
    register_run(made, tmp_path / "publish")
    old = make_result("synthesize", runs / "hand" / "data", content="x")
    folder = make_result("register", runs / "hand" / "registration", content="x")
    known = read_manifest(made["refine"]).digest
    for digest, goes in (("e" * 64, set()), (known, {"runs/hand/data"})):
        content = json.dumps({"model": "star", "version": 1, "model_digest": digest})
        (folder / "registration.json").write_text(content)
        make_old(runs / "hand", days=60)
        plan = make_plan(Config())
        assert going(plan) == goes and bool(plan.problems) != bool(goes)
    assert old.exists()


@pytest.mark.parametrize("digits", ["", "-" + "e" * 16])  # an older STAR's, and one with the digest of its files
def test_a_download_that_is_named_or_in_use_stays(runs: Path, digits: str) -> None:
    model = "d" * 64
    download = runs / "models" / (model + digits)
    download.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (download / name).write_text("{}")
    (download / "lineage.json").write_text(json.dumps({"model": model}))
    (runs / "models" / ".publish-killed").mkdir()
    make_old(runs / "models", days=60)
    place = f"runs/models/{download.name}"
    assert going(make_plan(Config())) == {place, "runs/models/.publish-killed"}
    named = Config.model_validate({"student": {"base": str(download)}})
    make_old(download, days=60)  # its digest was read
    assert why_of(make_plan(named), place).endswith("or the profile names it")
    with using([download], by="a training"):
        assert why_of(make_plan(Config()), place).startswith("in use")


def test_an_input_that_was_fetched_goes_but_not_while_work_reads_it(runs: Path) -> None:
    base, tools, unfinished = "a" * 64, "b" * 64, "c" * 64
    for name in (base, tools, f".{unfinished}.arriving"):
        (runs / "inputs" / name).mkdir(parents=True)
        (runs / "inputs" / name / "config.json").write_text("{}")
    (runs / "inputs" / "seen").mkdir()
    make_old(runs / "inputs", days=60)
    settings = {"student": {"base": {"path": "s3://bucket/base", "sha256": base}}}
    named = Config.model_validate(
        {**settings, "evaluate": {"acebench": {"path": "s3://bucket/x", "sha256": unfinished}}}
    )
    assert going(make_plan(named)) == {f"runs/inputs/{tools}"} and not make_plan(named).unknown
    with using(paths_in(named.with_places(("student",))), by="a training"):
        gone, _ = clean()
    assert gone == {f"runs/inputs/{tools}", f"runs/inputs/.{unfinished}.arriving"}
    assert sorted(path.name for path in (runs / "inputs").iterdir()) == [base, "seen"]


def test_the_command_asks_and_ends_each_night_with_a_line_of_json(runs: Path, registry: pytest.MonkeyPatch) -> None:
    def star(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["clean", *words])
        return done.exit_code, done.stdout.splitlines()[-1]

    old = make_result("synthesize", runs / "hand" / "data", content="x")
    make_old(old, days=60)
    size = sum(file.stat().st_size for file in old.iterdir())
    # Its input is no terminal.
    assert star() == (0, "nothing was removed: `star clean --yes` removes what goes") and old.exists()
    status, line = star("--yes")
    assert (status, json.loads(line)) == (0, {"removed": 1, "bytes": size, "left": 0})
    status, line = star("--yes")
    assert (status, json.loads(line)) == (0, {"removed": 0, "bytes": 0, "left": 0})
    registry.setenv("STAR_HOME", str(runs / "elsewhere"))
    status, line = star("--yes")
    assert (status, json.loads(line)["removed"]) == (1, 0)


def test_what_work_reads_stays_while_it_runs_and_after_a_kill(runs: Path) -> None:
    data, other = (make_result("synthesize", runs / "hand" / name, content=name) for name in ("data", "other"))
    make_old(runs / "hand", days=60)
    code = (
        "import sys, time; from pathlib import Path; from star.folders.in_use import using\n"
        "with using([Path(sys.argv[1])], by='a training'):\n    print('in', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline()
        make_old(data, days=60)
        assert clean()[0] == {"runs/hand/other"}
        assert why_of(make_plan(Config()), "runs/hand/data").startswith("in use")
    finally:
        process.kill()
        process.wait()
    # The work may go on, so its input stays as long as unfinished work is kept.
    assert clean()[0] == set()
    [note] = (runs / "in-use").glob("*.json")
    make_old(note, days=60)
    assert clean()[0] == {"runs/hand/data"}
    assert not note.exists() and not other.exists()


def test_work_that_starts_between_the_plan_and_the_removal_keeps_its_input(runs: Path) -> None:
    data = make_result("synthesize", runs / "hand" / "data", content="x")
    make_old(data, days=60)
    plan = make_plan(Config())
    assert going(plan) == {"runs/hand/data"}
    with using([data], by="a training"):
        done = carry_out(plan, Config())
    assert done.removed == [] and "in use" in done.left[0]
    # It was used a moment ago, so it counts as young.
    assert carry_out(plan, Config()).removed == []
    open_input(data, stage="synthesize")


def test_work_waits_for_the_gate_and_then_finds_its_input_missing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_result("synthesize", runs / "hand" / "data", content="x")
    monkeypatch.setattr("star.folders.in_use.GATE_SECONDS", 0.1)
    with no_work_starts(), pytest.raises(InputError, match="star clean"), using([data], by="a training"):
        pass


def test_work_runs_in_a_home_that_cannot_be_written(own_home: Path) -> None:
    # Opening the gate fails, as on a read-only file system.
    (own_home / "in-use" / "gate.lock").mkdir(parents=True)
    with using([own_home], by="a training"):
        assert [path.name for path in (own_home / "in-use").iterdir()] == ["gate.lock"]


def fail_halfway(runs: Path) -> None:
    with open_workspace(runs / "a", stage="distill", fingerprint="a" * 64, resume=True) as workspace:
        (workspace.state / "checkpoint").write_text("half")
        make_old(runs / "work", days=60)
        # Its process lives, although it has written nothing for long.
        assert clean()[0] == set()
        raise KeyError


def test_unfinished_work_goes_when_it_is_old_and_nobody_holds_it(runs: Path, registry: pytest.MonkeyPatch) -> None:
    registry.setenv("STAR_WORK", str(runs / "work"))
    with pytest.raises(KeyError):
        fail_halfway(runs)
    assert clean()[0] == {f"runs/work/distill-{'a' * 16}"}
    assert not list((runs / "work").iterdir())


def test_what_others_made_or_changed_is_named_and_stays(runs: Path, tmp_path: Path) -> None:
    noted = make_result("synthesize", runs / "hand" / "noted", content="x")
    (noted / "notes.txt").write_text("mine")
    foreign = runs / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("\\section")
    outside = make_result("synthesize", tmp_path / "outside", content="y")
    (runs / "linked").symlink_to(outside)
    make_old(runs / "hand", days=60)
    make_old(outside, days=60)
    plan = make_plan(Config())
    assert not going(plan) and plan.unknown == ["runs/thesis"]
    assert why_of(plan, "runs/hand/noted") == "not STAR's, or not this user's alone"
    assert outside.exists() and foreign.exists()


def test_a_result_that_dvc_tracks_stays(runs: Path, tmp_path: Path) -> None:
    tracked, old = (make_result("synthesize", runs / "dvc" / name, content=name) for name in ("data", "older"))
    make_old(runs / "dvc", days=60)
    lock = tmp_path / "dvc.lock"
    lock.write_text("stages:\n  synthesize:\n    outs:\n    - {path: runs/dvc/data, md5: abc.dir}\n")
    assert clean()[0] == {"runs/dvc/older"}
    lock.write_text("stages:\n  synthesize:\n    outs:\n    - {path: runs/dvc, md5: abc.dir}\n")
    assert clean()[0] == set()
    assert tracked.exists() and not old.exists()
    lock.write_text("<<<<<<< HEAD")
    with pytest.raises(InputError, match=r"dvc\.lock cannot be read"):
        make_plan(Config())


def test_a_result_that_was_added_to_dvc_stays(runs: Path) -> None:
    for name in ("added", "inside/added", "older"):
        make_result("synthesize", runs / "dvc" / name, content=name)
    make_old(runs / "dvc", days=60)
    (runs / "dvc" / "added.dvc").touch()
    (runs / "dvc" / "inside.dvc").touch()
    assert clean()[0] == {"runs/dvc/older"}
    assert why_of(make_plan(Config()), "runs/dvc/inside/added") == "`latest`, DVC or the profile names it"


def test_tasks_without_a_result_go_but_not_while_a_pipeline_runs(runs: Path) -> None:
    failed = runs / "pipeline" / "star-1" / "distill"
    failed.mkdir(parents=True)
    (failed / "executor_output.json").write_text("{}")
    kept = make_result("synthesize", runs / "pipeline" / "star-1" / "loop" / "round-1" / "out", content="x")
    unlisted = kept / "notes.txt"
    unlisted.write_text("mine")
    make_old(runs / "pipeline", days=60)
    with using([runs / "pipeline"], by="star run"):
        assert not going(make_plan(Config()))
    assert clean()[0] == {"runs/pipeline/star-1/distill"}
    assert unlisted.exists()


def test_sent_spools_go_and_unsent_ones_stay(runs: Path) -> None:
    for key, sent in (("sent", True), ("waiting", False)):
        spool = Spool.open(runs / "spool" / key, {"name": key, "start": 1})
        spool.append(kind="end", status="FINISHED")
        if sent:
            spool.mark_sent(spool.events_file.stat().st_size)
        spool.owner_lock.release()
    make_old(runs / "spool", days=60)
    assert clean()[0] == {"runs/spool/sent"}


def test_bytes_of_hard_links_are_freed_with_the_last_name(runs: Path) -> None:
    first, second = (make_result("synthesize", runs / "hand" / name, content=name) for name in ("first", "second"))
    third = make_result("synthesize", runs / "hand" / "third", content="third")
    for folder in (second, third):
        (folder / "rows.txt").unlink()
        os.link(first / "rows.txt", folder / "rows.txt")
    make_old(first, days=60)
    make_old(second, days=60)
    shared = (first / "rows.txt").stat().st_size
    plan = make_plan(Config())
    with_third = sum(plan.sizes[place] for place in going(plan))
    make_old(third, days=60)
    for folder in (first, second):
        make_old(folder, days=60)
    plan = make_plan(Config())
    own = sum(file.stat().st_size for file in third.iterdir() if file.name != "rows.txt")
    assert going(plan) == {"runs/hand/first", "runs/hand/second", "runs/hand/third"}
    assert sum(plan.sizes[place] for place in going(plan)) == with_third + own + shared


def test_a_killed_clean_is_gone_on_with(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_result("synthesize", runs / "hand" / "data", content="x")
    make_old(data, days=60)
    (runs / "logs").mkdir()
    (runs / "logs" / "20260101-120000.log").write_text("old")
    make_old(runs / "logs", days=60)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("star.clean.clean.delete", killed)
        with pytest.raises(KeyboardInterrupt):
            clean()
    assert [path.name for path in (runs / "hand").iterdir()] == [".data.removed"]
    # The name is free again meanwhile.
    make_result("synthesize", data, content="new")
    assert clean()[0] == {"runs/hand/.data.removed", "runs/logs/.20260101-120000.log.removed"}
    assert not list((runs / "logs").iterdir())
    assert [path.name for path in (runs / "hand").iterdir()] == ["data"]
    assert time.time() - (data / MANIFEST).stat().st_mtime < 60
