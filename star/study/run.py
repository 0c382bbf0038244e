"""Runs a study on this machine: every piece of work once, in a process of its own, several at a time. Goes on where a killed one stopped.

    star study run --config configs/study-tiny.yaml

What is done is kept by the stages themselves, so nothing else needs to be remembered: started again, a study finds finished work done and a
killed training's checkpoint. A process has one thread, whatever the number of processes, because the number of threads decides how sums are
rounded: the results are the same with any `--workers`. That holds in a home of the study's own: where `star run` has made an equal teacher,
with as many threads as there are CPUs, the study takes that one. Several machines that share a home share the work, too: each runs the same
command, and leaves alone what another one does at the moment.

In MLflow each command is a run, with a child for every stage that it did and one for every cell that it finished, which has the cell's
scores.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from star.config.experiment import Config
from star.doctor.input_checks import check_prompts
from star.errors import BusyError, InputError, PipelineError, cure_of
from star.folders.in_use import using
from star.folders.owners import create_in_home
from star.home import home
from star.pipelines.local_runner import require_rehearsal, terminate_stages
from star.progress import print_line
from star.sigterm import sigterm_raises_system_exit
from star.study.evaluate import MODEL
from star.study.grid import GRID, Cell, cells_of
from star.study.plan import plan_lines, time_left
from star.study.results import COLUMNS_BEFORE_RL, SCORES, failed_row, read_results, row_of, write_result
from star.study.work import Work, all_work, finished
from star.terminal import guard_terminal
from star.tracking.runs import child_run, pipeline_run
from star.units import format_seconds

BUSY_SECONDS = 10.0  # until work that another study does is looked at again


def choose_cells(config: Config, *, cell: str | None, seed: int | None) -> list[Cell]:
    """The study's cells, or those whose name matches a pattern such as `ckd+*`, or that have one seed.

    Raises:
        InputError: there is no such cell.
    """
    cells = cells_of(config)
    named = [one for one in cells if cell is None or fnmatch(one.name, cell)]
    seeds = list(dict.fromkeys(one.seed for one in cells))
    wrong = [] if named else [f"no cell {cell}: its cells are {_names_of(cells)}"]
    if seed is not None and seed not in seeds:
        wrong.append(f"no seed {seed}: its seeds are {', '.join(map(str, seeds))}")
    if wrong:
        raise InputError(f"the study has {'; and it has '.join(wrong)}")
    return [one for one in named if seed is None or one.seed == seed]


def _names_of(cells: list[Cell]) -> str:
    """The names of the cells, with those of a place in one: `{fkl,ckd}+{none,binary}, top_k={5,20}/ckd+none`."""
    arms: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        arms.setdefault((cell.sweep, cell.value), []).append(cell)
    places: dict[tuple[str, str], list[str]] = {}
    for (sweep, value), some in arms.items():
        arm = f"{_one_of([cell.kd for cell in some])}+{_one_of([cell.rl for cell in some])}"
        places.setdefault((sweep, arm), []).append(value)
    return ", ".join(
        arm if sweep == GRID else f"{sweep}={_one_of(values)}/{arm}" if values[0] else f"{sweep}/{arm}"
        for (sweep, arm), values in places.items()
    )


def _one_of(names: Iterable[str]) -> str:
    different = list(dict.fromkeys(names))
    return different[0] if len(different) == 1 else f"{{{','.join(different)}}}"


def print_plan(config: Config, cells: list[Cell], *, workers: int) -> None:
    """Prints what is to be done, and about how long it takes."""
    assert config.study is not None  # noqa: S101 - cells_of refuses a configuration without it
    work = all_work(one for cell in cells for one in cell.work)
    for line in plan_lines(work, cells=len(cells), expected=config.study.seconds, workers=workers):
        print_line(line)


def run_study(config: Config, cells: list[Cell], *, results: Path, workers: int) -> None:
    """Does the work of the cells and writes their lines to the file `results`.

    Raises:
        InputError: the rows are too few for Sim-RL, the profile's teacher is not good enough to compare students of it, or `results` is
            another file.
        PipelineError: some work failed. Everything that does not need it is done.
    """
    root, order = home(), cells_of(config)
    read_results(results)  # refuses another file before anything is trained
    for one in {(cell.sweep, cell.value): cell for cell in cells if cell.rl != "none"}.values():
        check_prompts(one.student.config)
    for name in ("logs", "study"):
        create_in_home(name)
    require_rehearsal(config, root)
    os.environ["STAR_HOME"] = str(root)  # the processes may have another working directory
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    params = {"config": config.name, "cells": len(cells)}
    with (
        using([root / "study"], by="star study run"),
        sigterm_raises_system_exit(before_exit=terminate_stages),
        pipeline_run(config.name, params=params, tags={"star.study": "study"}) as run,
    ):
        everything = all_work(one for cell in cells for one in cell.work)
        left = _time_left_of(config, everything, workers=workers)
        # A sweep may make a teacher of its own. Its students are trained whatever it can do, with a warning.
        teacher = order[0].evaluation_teacher
        if any(cell.evaluation_teacher.key == teacher.key for cell in cells):
            failed = do_work(all_work([teacher]), workers=workers, left=left)
            _require_good_teacher(config, teacher, failed)
        recorder = _Recorder(cells, results, order=order, least=_least_of_teacher(config))
        failed = do_work(everything, workers=workers, after=recorder.record, left=left)
        run.log_artifact(results)
    if failed:
        reasons = "; ".join(dict.fromkeys(failed.values()))
        raise PipelineError(f"{len(failed)} pieces of work of the study have no result: {reasons}", input_fault=False)


def _time_left_of(
    config: Config, work: list[Work], *, workers: int
) -> Callable[[Collection[str], Collection[str]], str]:
    """What a line of progress says about the time until all of the work is done, given the keys of finished and of failed work."""
    assert config.study is not None  # noqa: S101 - cells_of refuses a configuration without it
    before, expected = finished(work), config.study.seconds

    def left(done: Collection[str], failed: Collection[str]) -> str:
        ended = before.union(done, failed)
        seconds = time_left(work, done=before.union(done), ended=ended, expected=expected, workers=workers)
        return f", about {format_seconds(round(seconds))} left" if seconds else ""

    return left


def _least_of_teacher(config: Config) -> float:
    assert config.study is not None  # noqa: S101 - cells_of refuses a configuration without it
    return config.study.min_teacher_exact_match


def _require_good_teacher(config: Config, evaluation: Work, failed: dict[str, str]) -> None:
    if failed:
        raise PipelineError(f"the teacher has no result: {next(iter(failed.values()))}", input_fault=False)
    exact, least = evaluation.metrics()[f"{MODEL}_exact_match"], _least_of_teacher(config)
    print_line(f"the teacher answers {exact:.1%} of the held-out rows exactly")
    if exact < least:
        raise InputError(
            f"that is less than `study.min_teacher_exact_match` ({least:.0%}), and students of a weak teacher say little about "
            "the ways to distil it: train it longer, or make the task easier, before anything is compared"
        )


def weak_teachers(cells: list[Cell], *, done: Collection[str], least: float) -> dict[str, str]:
    """The evaluated teachers below the bar, by key, each with a warning. A sweep that changes the data or the teacher has its own."""
    teachers = {cell.evaluation_teacher.key: cell for cell in reversed(cells)}
    found = {}
    for key in teachers.keys() & set(done):
        cell = teachers[key]
        exact = cell.evaluation_teacher.metrics()[f"{MODEL}_exact_match"]
        if exact < least:
            found[key] = (
                f"warning: the teacher of {cell.name} answers {exact:.1%} of the held-out rows exactly, less than "
                f"`study.min_teacher_exact_match` ({least:.0%}): what its students can do says little about the sweep"
            )
    return found


class _Recorder:
    """Writes the line of a cell, and its run in MLflow, as soon as all of its work is done or some of it has failed."""

    def __init__(self, cells: list[Cell], results: Path, *, order: list[Cell], least: float) -> None:
        self.results, self.order, self.open, self.least = results, order, list(cells), least
        self.looked_at = set[str]()  # keys of finished work whose teachers have been compared with the bar

    def record(self, done: set[str], failed: dict[str, str]) -> None:
        for warning in weak_teachers(self.open, done=done - self.looked_at, least=self.least).values():
            print_line(warning)
        self.looked_at |= done
        for cell in list(self.open):
            keys = [work.key for work in cell.work]
            reasons = [failed[key] for key in keys if key in failed]
            if not reasons and not done.issuperset(keys):
                continue
            self.open.remove(cell)
            row = failed_row(cell, reasons[0]) if reasons else row_of(cell)
            is_new = write_result(self.results, row, order=self.order)
            if reasons or not is_new:
                continue
            names = ("sweep", "value", "kd", "rl", "seed")
            with child_run(cell.name, params={name: row[name] for name in names}, tags={"star.study": "cell"}) as run:
                run.log_metrics({name: float(row[name]) for name in (*SCORES, *COLUMNS_BEFORE_RL)})
            print_line(f"{cell.name}, seed {cell.seed}: {float(row['exact_match']):.1%} exact")


class Ended(NamedTuple):
    """How a piece of work ended in its process: why it failed, or whether another process of somebody does it."""

    reason: str | None = None
    is_busy: bool = False


def do_work(
    work: list[Work],
    *,
    workers: int,
    after: Callable[[set[str], dict[str, str]], None] = lambda done, failed: None,
    left: Callable[[Collection[str], Collection[str]], str] = lambda done, failed: "",
) -> dict[str, str]:
    """Does all work in processes of their own, at most `workers` at a time. Work whose input failed fails with the same reason.

    What another study on the same home does is left to it, and looked at again.

    Args:
        work: in the order of `all_work`; the first that is ready starts first.
        after: called after each piece with the keys of the finished work, and those of the failed work with the reasons.
        left: given the same keys, what the line about a piece says of the time that is left.

    Returns:
        The keys of the failed work with the reasons.

    Raises:
        PipelineError: a process was killed.
    """
    waiting, done, failed = list(work), set[str](), dict[str, str]()
    running: dict[Future[Ended], Work] = {}
    look_again: dict[str, float] = {}  # work that others do -> when to look at it again
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), max_tasks_per_child=1, initializer=guard_terminal
    )
    with pool:
        while waiting or running:
            for one in list(waiting):
                before = [inner.key for inner in one.inputs.values()]
                if reason := next((failed[key] for key in before if key in failed), None):
                    failed[one.key] = reason
                elif not done.issuperset(before):
                    continue
                elif one.has_result():
                    done.add(one.key)
                elif len(running) < workers and time.monotonic() >= look_again.get(one.key, 0.0):
                    running[pool.submit(_do, one)] = one
                else:
                    continue
                waiting.remove(one)
            after(done, failed)
            if waiting and not running:
                time.sleep(BUSY_SECONDS)
            for future in wait(running, BUSY_SECONDS if look_again else None, FIRST_COMPLETED).done:
                one, ended = running.pop(future), _ended(future)
                if ended.is_busy:
                    look_again[one.key] = time.monotonic() + BUSY_SECONDS
                    waiting.append(one)
                    continue
                if ended.reason:
                    failed[one.key] = ended.reason
                else:
                    done.add(one.key)
                _print_end(one, ended.reason, number=len(done) + len(failed), total=len(work), left=left(done, failed))
    after(done, failed)
    return failed


def _ended(future: "Future[Ended]") -> Ended:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise PipelineError(
            "a process of the study was killed, perhaps because the memory is too small for so many: run the same command again to go "
            "on, then with fewer --workers",
            input_fault=False,
        ) from error


def _print_end(work: Work, reason: str | None, *, number: int, total: int, left: str) -> None:
    said = f"failed: {reason}" if reason else format_seconds(work.metrics()["seconds"])
    loss = work.config.distill.kind
    kind = {"distill": loss, "distill-on-policy": loss, "refine": work.config.refine.reward}.get(work.label, "")
    print_line(
        f"[{number}/{total}] {' '.join(filter(None, (work.label, kind)))}, seed {work.config.seed}: {said}{left}"
    )


def _do(work: Work) -> Ended:
    """Does one piece of work in this process.

    A failure is a text, because not every exception can be sent to another process.
    """
    with work.log.open("a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            work.run()
        except BusyError:
            return Ended(is_busy=True)
        except Exception as error:
            traceback.print_exception(error)
            return Ended(cure_of(error) or f"{type(error).__name__}: {error}; the log is {work.log}")
    return Ended()
