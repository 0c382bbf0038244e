"""The training stages under torchrun: the result of two processes equals that of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.folders.manifest import open_input

MICRO = Path(__file__).parents[1] / "micro.yaml"


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "star.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distill", "refine"])
def test_two_processes_write_the_result_of_one(stage, micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    inputs = {
        "distill": ["--topk", finished["extract-topk"]],
        "refine": ["--student", finished["distill"], "--data", finished["synthesize"]],
    }[stage]
    out = tmp_path / "out"
    command = [stage, "--config", MICRO, *inputs, "--out", out]
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout)  # once, by rank 0
    assert open_input(out, stage=stage).files and not list(tmp_path.glob(".out*"))
    for curve in finished[stage].glob("*_curve.json"):
        one, two = (json.loads((folder / curve.name).read_text(encoding="utf-8")) for folder in (curve.parent, out))
        assert [entry["step"] for entry in two] == [entry["step"] for entry in one]
        for name in ("loss", "fkl", "tail", "sampled_reward", "entropy"):
            values = ([entry[name] for entry in entries if name in entry] for entries in (two, one))
            # The last batch of an epoch, short for one process, is padded for two.
            assert next(values) == pytest.approx(next(values), rel=2e-2, abs=1e-4), (curve.name, name)
    assert json.loads(torchrun(*command).stdout) == printed  # answered from the finished folder


def test_a_stage_that_does_not_train_refuses_several_processes(tmp_path: Path, monkeypatch) -> None:
    from star import stages
    from star.config.load import load_config
    from star.errors import InputError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="the stage synthesize is the work of one process"):
        stages.synthesize(load_config(MICRO), out=tmp_path / "out")


RANK = """
import os, signal
from star.progress import exit_with_runner
exit_with_runner()
print(os.getppid(), flush=True)
signal.pause()
"""


@pytest.mark.slow
def test_a_killed_torchrun_leaves_no_rank(tmp_path: Path) -> None:
    """Otherwise its ranks would hold accelerators and workspace, and the supervisor's next attempt would be refused."""
    (tmp_path / "rank.py").write_text(RANK)
    command = ["-m", "star.cluster.ranks", "--standalone", "--nproc-per-node=2", str(tmp_path / "rank.py")]
    environment = os.environ | {"STAR_RUNNER": str(os.getpid()), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout and {int(process.stdout.readline()) for _ in range(2)} == {process.pid}
    process.kill()
    process.wait()
    assert process.stdout.read() == ""  # until the last process that could write has ended
