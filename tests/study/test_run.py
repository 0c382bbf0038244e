"""Tests how a study's work is done: in processes of their own, once, with what failed named, and in the end a line per cell."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.config.study import Study, Sweep
from star.errors import BusyError, InputError, PipelineError
from star.home import home
from star.run_stage import Stage
from star.study.grid import cells_of
from star.study.results import read_results, row_of
from star.study.run import choose_cells, do_work, run_study, weak_teachers
from star.study.work import Work, all_work
from star.study.work import finished as finished_keys


def write(config: Config, *, out: Path, **inputs: Path) -> None:
    """A stage that writes the names of its inputs."""
    out.mkdir(parents=True)
    (out / "metrics.json").write_text(json.dumps({"seconds": 1.0, "read": sorted(inputs)}))


def refuse(config: Config, *, out: Path, **inputs: Path) -> None:
    raise InputError("the teacher gave no valid answer")


def vanish(config: Config, *, out: Path, **inputs: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_once(config: Config, *, out: Path, **inputs: Path) -> None:
    """A stage that another process does when it is first asked for."""
    noted = out.with_name("asked")
    if not noted.exists():
        noted.touch()
        raise BusyError("another process is writing")
    write(config, out=out, **inputs)


def work_of(name: str, function: object, config: Config, **inputs: Work) -> Work:
    return Work(Stage(name, function, {}, ()), config, inputs, name)  # type: ignore[arg-type]


@pytest.fixture
def logs(own_home: Path) -> None:
    (own_home / "logs").mkdir(parents=True)


@pytest.mark.usefixtures("logs")
def test_what_does_not_need_failed_work_is_done(micro: Config) -> None:
    data = work_of("data", write, micro)
    teacher = work_of("teacher", refuse, micro, data=data)
    student = work_of("student", write, micro, teacher=teacher)
    other = work_of("other", write, micro, data=data)
    seen: list[tuple[int, int]] = []
    failed = do_work(
        [data, teacher, student, other], workers=2, after=lambda done, failed: seen.append((len(done), len(failed)))
    )
    assert failed == dict.fromkeys([teacher.key, student.key], "the teacher gave no valid answer")
    assert other.metrics()["read"] == ["data"] and not student.folder.exists()
    assert seen == sorted(seen) and seen[-1] == (2, 2)
    assert "InputError" in teacher.log.read_text()


@pytest.mark.usefixtures("logs")
def test_what_another_study_does_is_looked_at_again(micro: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.study.run.BUSY_SECONDS", 0.1)
    (home() / "study").mkdir()
    work = work_of("shared", wait_once, micro)
    assert do_work([work], workers=1) == {} and work.metrics()["seconds"] == 1.0


@pytest.mark.usefixtures("logs")
def test_a_killed_process_ends_the_study_with_a_way_on(micro: Config) -> None:
    with pytest.raises(PipelineError, match="run the same command again"):
        do_work([work_of("gone", vanish, micro)], workers=1)


def test_cells_are_chosen_by_name_and_seed(micro: Config) -> None:
    config = micro.model_copy(update={"study": Study(seeds=(1, 2), kd=("fkl", "ckd"), rl=("none", "binary"))})
    chosen = choose_cells(config, cell="ckd+*", seed=2)
    assert [(cell.name, cell.seed) for cell in chosen] == [("ckd+none", 2), ("ckd+binary", 2)]


def test_a_wrong_cell_or_seed_is_named_with_those_there_are(micro: Config) -> None:
    sweeps = {"top_k": Sweep(rl=("none",), values={"4": {"topk": {"top_k": 4}}, "8": {"topk": {"top_k": 8}}})}
    study = Study(seeds=(1, 2), kd=("fkl", "ckd"), rl=("none", "binary"), sweeps=sweeps)
    config = micro.model_copy(update={"study": study})
    cells = r"its cells are \{fkl,ckd\}\+\{none,binary\}, top_k=\{4,8\}/ckd\+none"
    seeds = r"its seeds are 1, 2"
    for cell, seed, error in (
        ("kcd+none", None, f"has no cell kcd.none: {cells}$"),
        ("ckd+none", 3, f"has no seed 3: {seeds}$"),
        ("kcd+none", 3, f"has no cell kcd.none: {cells}; and it has no seed 3: {seeds}$"),
    ):
        with pytest.raises(InputError, match=error):
            choose_cells(config, cell=cell, seed=seed)


def test_a_sweeps_own_teacher_below_the_bar_is_named(micro: Config) -> None:
    sweeps = {"thinking": Sweep(rl=("none",), values={"off": {"data": {"reasoning": False}}})}
    config = micro.model_copy(update={"study": Study(seeds=(1, 2), kd=("ckd",), rl=("none",), sweeps=sweeps)})
    cells = cells_of(config)
    good, weak = (cell.evaluation_teacher for cell in cells[:2])
    for work, exact in ((good, 0.95), (weak, 0.55)):
        work.folder.mkdir(parents=True)
        (work.folder / "metrics.json").write_text(json.dumps({"model_exact_match": exact}))
    found = weak_teachers(cells, done={good.key, weak.key}, least=0.9)
    assert list(found) == [weak.key]
    assert "the teacher of thinking=off/ckd+none answers 55.0%" in found[weak.key]
    assert weak_teachers(cells, done={good.key}, least=0.9) == {}


def test_another_table_is_refused_before_anything_is_trained(micro: Config, tmp_path: Path) -> None:
    config = micro.model_copy(update={"study": Study(seeds=(1,), kd=("fkl",), rl=("none",))})
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks the columns"):
        run_study(config, cells_of(config), results=tmp_path / "other.csv", workers=1)


def test_a_sweep_with_too_few_rows_for_sim_rl_is_refused_before_anything_is_trained(
    micro: Config, tmp_path: Path
) -> None:
    sweeps = {"batch": Sweep(kd=("fkl",), rl=("binary",), values={"large": {"refine": {"prompts_per_step": 5000}}})}
    config = micro.model_copy(update={"study": Study(seeds=(1,), kd=("fkl",), rl=("none",), sweeps=sweeps)})
    with pytest.raises(InputError, match=r"^refine samples 5000 prompts at a time"):
        run_study(config, cells_of(config), results=tmp_path / "study.csv", workers=1)
    assert not (home() / "study").exists()


@pytest.mark.usefixtures("logs")
def test_the_progress_says_how_much_time_is_left(micro: Config, capfd: pytest.CaptureFixture[str]) -> None:
    data = work_of("data", write, micro)
    work = [data, work_of("student", write, micro, data=data)]

    def left(done: Collection[str], failed: Collection[str]) -> str:
        return f", about {len(work) - len(done)} min left"

    do_work(work, workers=1, left=left)
    said = capfd.readouterr().err
    assert (
        "[1/2] data, seed 7: 1 s, about 1 min left" in said and "[2/2] student, seed 7: 1 s, about 0 min left" in said
    )


@pytest.fixture
def tiny_study(micro: Config, finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Config:
    """One cell whose shared stages are done already, in the folders of `finished`."""
    monkeypatch.setenv("STAR_REUSE", str(finished["synthesize"].parent))
    study = Study(seeds=(1,), kd=("fkl",), rl=("none",), min_teacher_exact_match=0.0)
    return micro.model_copy(update={"study": study})


@pytest.mark.slow
def test_a_cell_gives_the_same_line_again(tiny_study: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for name in ("first", "again"):
        monkeypatch.setenv("STAR_HOME", str(tmp_path / name))
        [cell] = cells_of(tiny_study)
        for work in cell.work:
            work.run()
        lines.append(row_of(cell))
        assert finished_keys(cell.work) == {work.key for work in cell.work}
    for line in lines:
        assert line.pop("seconds")
    assert lines[0] == lines[1]
    assert float(lines[0]["before_rl_entropy"]) > 0 and lines[0]["distill_ce"]


def evaluate_teacher(config: Config) -> None:
    """Does the work up to the teacher's evaluation in this process, which has loaded torch already."""
    for work in all_work([cells_of(config)[0].evaluation_teacher]):
        work.run()


@pytest.mark.slow
def test_a_study_runs_in_processes_and_a_second_time_does_nothing(tiny_study: Config, tmp_path: Path) -> None:
    """The base alone is the cell, because each process loads torch."""
    config = tiny_study.model_copy(update={"study": tiny_study.study.model_copy(update={"kd": ("none",)})})
    results, cells = tmp_path / "study.csv", cells_of(config)
    evaluate_teacher(config)
    run_study(config, cells, results=results, workers=2)
    [row] = read_results(results)
    assert row["cell"] == "none+none" and row["exact_match"] == row["before_rl_exact_match"] and not row["failed"]
    written = results.stat().st_mtime_ns
    run_study(config, cells, results=results, workers=2)
    assert results.stat().st_mtime_ns == written
    assert len(list((home() / "study").glob("evaluate-model-*"))) == 2


@pytest.mark.slow
def test_no_student_is_trained_for_a_teacher_below_its_bar(tiny_study: Config, tmp_path: Path) -> None:
    config = tiny_study.model_copy(
        update={"study": tiny_study.study.model_copy(update={"min_teacher_exact_match": 1.0})}
    )
    evaluate_teacher(config)
    with pytest.raises(InputError, match="train it longer"):
        run_study(config, cells_of(config), results=tmp_path / "study.csv", workers=1)
    assert not list((home() / "study").glob("distill-*"))


def test_the_plan_is_said_without_loading_torch() -> None:
    code = (
        "import sys; from star.cli.main import app; app(['study', 'run', '--plan'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cells in" in done.stderr and "about" in done.stderr
