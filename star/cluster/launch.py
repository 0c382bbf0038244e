"""Launches the work of a task: in this process, in child processes under a supervisor, or as a TrainJob on several nodes.

Three environment variables of the task choose, and star/pipelines/resources.py sets them when the pipeline is compiled:

| STAR_TRAIN_JOB | STAR_RETRY | STAR_PROCESSES | the stage runs |
|---|---|---|---|
| the section `cluster` as JSON | - | - | in the pods of a TrainJob (train_job.py) |
| not set | `cluster.retry` as JSON | not set or 1 | in a child process, which the supervisor starts again (supervisor.py) |
| not set | set or not | n > 1 | in n processes of this pod, under torchrun and the supervisor |
| not set | not set | not set or 1 | in this process: `star run`, where a second Python for each stage would cost seconds |

All run the same code: `star <stage>`, once per process. Its error is the last line of the task's log.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from star import stages
from star.cluster.failure import ends_in_a_sentence
from star.cluster.supervisor import supervise
from star.cluster.task_config import config_of_task
from star.cluster.torchrun import stage_command, write_settings
from star.config.cluster import Cluster, Retry, TrainingStage
from star.folders.manifest import METRICS
from star.stages import Metrics, stage_named

PROCESSES_VARIABLE = "STAR_PROCESSES"
RETRY_VARIABLE = "STAR_RETRY"
TRAIN_JOB_VARIABLE = "STAR_TRAIN_JOB"


def run_stage(name: str, *, config_digest: str, code: str, out: Path, shard: str = "1/1", **inputs: Path) -> Metrics:
    """Runs a stage in as many processes, and on as many nodes, as the environment says.

    Args:
        config_digest: of STAR_CONFIG, which holds the configuration.
        code: digest of the stage's code when the pipeline was compiled.
        shard: i/n, for a stage that has shards.

    Raises:
        SystemExit: the stage failed, and the last line of the log says why; or this process received SIGTERM and has ended
            the processes or the job that it started.
    """
    with ends_in_a_sentence():
        stages.require_code(name, code)
        config, stage = config_of_task(config_digest), stage_named(name)
        if cluster_json := os.environ.get(TRAIN_JOB_VARIABLE):
            from star.cluster.train_job import run_train_job

            cluster = Cluster.model_validate_json(cluster_json)
            return run_train_job(cast(TrainingStage, name), config, cluster=cluster, inputs=inputs, out=out)
        processes = int(os.environ.get(PROCESSES_VARIABLE, "1")) if stage.trains else 1
        parts = {} if shard == "1/1" else {"shard": shard}
        if processes == 1 and RETRY_VARIABLE not in os.environ:
            return stage.function(config, out=out, **inputs, **parts)
        starter = [sys.executable]
        if processes > 1:
            starter += ["-m", "star.cluster.ranks", "--standalone", f"--nproc-per-node={processes}"]
        with TemporaryDirectory() as scratch:
            settings = write_settings(name, config, Path(scratch))
            command = stage_command(name, settings=settings, inputs={**inputs, **parts}, out=out)
            supervise([*starter, *command], name=" ".join([name, *parts.values()]), retry=_retry_of_task())
        return _metrics_of(out)


def run_merge(name: str, parts: list[Path], *, code: str, out: Path) -> Metrics:
    """Merges the shards of a stage.

    Args:
        name: `merge` or `merge-evaluation`.
        code: digest of the merging code when the pipeline was compiled.

    Raises:
        SystemExit: as `run_stage`.
    """
    with ends_in_a_sentence():
        stages.require_code(name, code)
        command = [sys.executable, "-m", "star.cli", "merge", *map(str, parts), f"--out={out}"]
        supervise(command, name=name, retry=_retry_of_task())
        return _metrics_of(out)


def _retry_of_task() -> Retry:
    given = os.environ.get(RETRY_VARIABLE)
    return Retry.model_validate_json(given) if given else Retry(attempts=0)


def _metrics_of(out: Path) -> Metrics:
    # The stage ran in another process, which returns nothing: the published folder is all that comes back.
    return json.loads((out / METRICS).read_text(encoding="utf-8"))
