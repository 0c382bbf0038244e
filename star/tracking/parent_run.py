"""The run above a stage's run: that of `star run`, of a Kubeflow pipeline run, or of one `dvc repro`.

`star run` hands its run down in STAR_PARENT_RUN_ID. Kubeflow and DVC start a process a stage and have no run in MLflow of their
own: there the stages agree on a key, and the first one that comes makes the run.
"""

import os
from dataclasses import dataclass
from pathlib import Path

PARENT_VARIABLE = "STAR_PARENT_RUN_ID"  # a run's id, or key:KEY of one that the server does not have yet


@dataclass(frozen=True)
class Above:
    """A run that several processes share: its key, its name and the tags that say what it stands for."""

    key: str
    name: str
    tags: dict[str, str]


def shared_parent() -> Above | None:
    """The run of the Kubeflow pipeline or of the `dvc repro` that this process belongs to, if any."""
    if run := os.environ.get("KFP_RUN_ID"):
        return Above(f"kfp-{run}", f"kfp {run[:8]}", {"kfp.pipeline_run_id": run})
    if "DVC_STAGE" in os.environ and (process := _dvc_process()):
        return Above(f"dvc-{process}", "dvc repro", {"star.runner": "dvc"})
    return None


def _dvc_process() -> str | None:
    """A name for the DVC process above this one that no other process has had on this machine since it started."""
    pid = os.getppid()
    try:
        while pid > 1:
            arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if any(Path(argument).name == "dvc" for argument in arguments[:3]):
                boot = Path("/proc/sys/kernel/random/boot_id").read_text()
                return f"{boot[:8]}-{pid}-{fields[19]}"
            pid = int(fields[1])
    except OSError:  # not Linux
        return None
    return None
