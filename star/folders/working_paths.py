"""Names the folders and files that exist while an output folder is made.

Beside the output, for `--out runs/data`:

    runs/data/                  the published result
    runs/.data.partial/         the workspace: unfinished work, kept after a kill
    runs/.data.partial.lock     locked by the process that works there
    runs/.data.incoming/        the new result, between the two renames of its publication
    runs/.data.outgoing/        the older result, between the same renames

STAR_WORK names a folder that outlives the process's own disk, such as one on a volume; `star run` sets it to
runs/work. With STAR_WORK the workspace lies there and is found by the work's fingerprint, because Kubeflow gives each
attempt of a task another output path:

    $STAR_WORK/synthesize-0b6dd34c7f2e91aa/         the workspace: stage and the first 16 characters of the fingerprint
    $STAR_WORK/synthesize-0b6dd34c7f2e91aa.lock
    $STAR_WORK/synthesize-0b6dd34c7f2e91aa.done     text: the path where the result was published (published_note.py)
    $STAR_WORK/jobs/RUN_ID/                         folders of the TrainJobs of one pipeline run

Where others can write to $STAR_WORK, all this lies in a folder of this user in it, such as $STAR_WORK/user-1000, which is
created when it is first asked for (owners.py).
"""

import os
from pathlib import Path

from star.folders.owners import own_part_of


def work_root() -> Path | None:
    """Returns the folder of unfinished work: $STAR_WORK, or this user's part of it. None without STAR_WORK."""
    root = os.environ.get("STAR_WORK")
    return own_part_of(Path(root)) if root else None


def workspace_folder(out: Path, *, stage: str, fingerprint: str) -> Path:
    """Returns where the work with this fingerprint is done: in $STAR_WORK, or beside `out`."""
    root = work_root()
    return root / _name_of_work(stage, fingerprint) if root else out.parent / f".{out.name}.partial"


def lock_file(workspace: Path) -> Path:
    """Returns the lock file of a workspace; it lies beside the workspace, which may be removed under the lock."""
    return workspace.with_name(workspace.name + ".lock")


def published_note(stage: str, fingerprint: str) -> Path | None:
    """Returns the file in $STAR_WORK with the path of the published result; None without STAR_WORK."""
    root = work_root()
    return root / f"{_name_of_work(stage, fingerprint)}.done" if root else None


def incoming_folder(out: Path) -> Path:
    """Returns where the new result is while it replaces `out`."""
    # Beside `out`, so on the same file system: a rename to `out` is always possible.
    return out.with_name(f".{out.name}.incoming")


def outgoing_folder(out: Path) -> Path:
    """Returns where the older result is while it is replaced."""
    return out.with_name(f".{out.name}.outgoing")


def train_jobs_folder(run_id: str) -> Path:
    """Returns the folder that a pipeline run shares with the pods of its TrainJobs. STAR_WORK must be set."""
    return own_part_of(Path(os.environ["STAR_WORK"])) / "jobs" / run_id


def _name_of_work(stage: str, fingerprint: str) -> str:
    # The stage of a data command has a space, as in "data check".
    return f"{stage.replace(' ', '-')}-{fingerprint[:16]}"
