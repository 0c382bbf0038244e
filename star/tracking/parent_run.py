"""Finds the run above a stage's run: that of `star run`, of a Kubeflow pipeline run, or of one `dvc repro`.

| started by | how a stage finds its parent run | |---|---| | `star run` | STAR_PARENT_RUN_ID in its environment: the
MLflow id, or `key:KEY` while the server does not have the run | | Kubeflow | KFP_RUN_ID in its environment: the key
is `kfp-<id>` | | DVC | DVC_STAGE in its environment, and a process named dvc above it: the key is
`dvc-<boot>-<pid>-<start>` | | by hand | no parent run |

Kubeflow and DVC start one process per stage and create no MLflow run. All stages compute the same key, and the first
one creates the run that the others find by this key.
"""

import os
from dataclasses import dataclass
from pathlib import Path

PARENT_VARIABLE = "STAR_PARENT_RUN_ID"


@dataclass(frozen=True)
class SharedRun:
    """A run that several processes share.

    Attributes:
        key: by which the processes find the run.
        name: of the run in MLflow.
        tags: of the run in MLflow; they say what it stands for.
    """

    key: str
    name: str
    tags: dict[str, str]


def shared_parent_run() -> SharedRun | None:
    """Returns the run of the Kubeflow pipeline or of the `dvc repro` that started this process, or None."""
    if run := os.environ.get("KFP_RUN_ID"):
        return SharedRun(f"kfp-{run}", f"kfp {run[:8]}", {"kfp.pipeline_run_id": run})
    if "DVC_STAGE" in os.environ and (process := _dvc_process()):
        return SharedRun(f"dvc-{process}", "dvc repro", {"star.runner": "dvc"})
    return None


def _dvc_process() -> str | None:
    """Returns a name for the DVC process above this one, or None.

    Process ids are used again, also after a reboot, so the name has the boot id and the start time too.
    """
    pid = os.getppid()
    try:
        while pid > 1:
            arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            # The command's name in /proc/PID/stat may have spaces and brackets: the fields are counted behind it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # dvc is a Python script: the interpreter and its options may come before its name.
            if any(Path(argument).name == "dvc" for argument in arguments[:3]):
                boot = Path("/proc/sys/kernel/random/boot_id").read_text()
                return f"{boot[:8]}-{pid}-{fields[19]}"
            pid = int(fields[1])
    except OSError:  # not Linux
        return None
    return None
