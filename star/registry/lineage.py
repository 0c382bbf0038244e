"""Where a model comes from: every stage above it, by digests that can be checked, down to the commit and the image.

A stage's manifest carries the summaries of all stages above it, so the refined model's own manifest is the whole tree. Publishing
turns it into `lineage.json` inside the model.
"""

import os
import subprocess
from functools import lru_cache
from pathlib import Path

from star.data.dvc_digest import dvc_digest
from star.folders.manifest import MANIFEST, open_input, read_manifest
from star.hashing import sha256_of
from star.home import home
from star.tracking.runs import current_run

LINEAGE_FILE = "lineage.json"
OK, MISMATCH, UNREACHED = "ok", "mismatch", "not here"


def origin(*, seed: int | None = None) -> dict[str, str]:
    """What this process is: commit, image, runs. Part of a manifest, not of what it is compared by."""
    run = current_run()
    said = {
        **git_state(),
        "image": os.environ.get("STAR_IMAGE", ""),
        "kfp_run": os.environ.get("KFP_RUN_ID", ""),
        "mlflow_run": (run.run_id if run else None) or "",
        "seed": "" if seed is None else str(seed),
    }
    return {key: value for key, value in said.items() if value}


@lru_cache(maxsize=1)
def git_state() -> dict[str, str]:
    """Commit of the checkout that the package runs from, and whether it was changed; of an image what its build noted."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        commit = os.environ.get("STAR_COMMIT", "unknown")
        return {} if commit == "unknown" else {"commit": commit}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "dirty": "yes" if _git(root, "status", "--porcelain", "--", "star", "configs") else "no",
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def build_lineage(refined: Path, evaluation: Path, *, report: dict, model: str) -> dict:
    """The lineage of a refined model, as it is written into it.

    Args:
        report: the content of evaluation.json.
        model: the digest of the refined folder.
    """
    manifest, measured = read_manifest(refined), read_manifest(evaluation)
    stages = {model: manifest.summary(), **manifest.ancestors}
    by_stage = {summary["stage"]: digest for digest, summary in stages.items()}
    weights = {entry.path: entry.sha256 for entry in manifest.files if entry.path.endswith(".safetensors")}
    tracked = dvc_digests(set(stages) | {measured.digest})
    return {
        "model": model,
        "weights": weights,
        "tokenizer": sha256_of(refined / "tokenizer.json"),
        "data": by_stage.get("synthesize", report["lineage"].get("data", "")),
        "teacher": by_stage.get("refine-teacher", report["lineage"].get("teacher", "")),
        "stages": {digest: {**summary, **tracked.get(digest, {})} for digest, summary in stages.items()},
        "evaluation": {"digest": measured.digest, **measured.summary(), **tracked.get(measured.digest, {})},
        "benchmarks": report["suite"],
        "published": origin(),
    }


def dvc_digests(wanted: set[str], *, root: Path = Path()) -> dict[str, dict[str, str]]:
    """Of the wanted digests those whose folder DVC keeps: its path and DVC's own digest of it."""
    import yaml

    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    content = yaml.safe_load(lock.read_text(encoding="utf-8")) or {}
    found = {}
    for stage in (content.get("stages") or {}).values():
        for out in stage.get("outs", ()):
            if (root / out["path"] / MANIFEST).is_file() and "md5" in out:
                digest = read_manifest(root / out["path"]).digest
                if digest in wanted:
                    found[digest] = {"dvc": out["md5"], "dvc_path": out["path"]}
    return found


def input_datasets(folders: dict[str, Path]) -> dict[str, tuple[str, str, str]]:
    """What a stage reads, for its run: name -> digest, place, and whose digest it is.

    DVC's where DVC keeps the folder, and for the data set always: the same, whoever ran the stage.
    """
    manifests = {key: read_manifest(folder) for key, folder in folders.items()}
    tracked = dvc_digests({manifest.digest for manifest in manifests.values()})
    found = {}
    for key, manifest in manifests.items():
        if kept := tracked.get(manifest.digest):
            found[key] = (kept["dvc"], kept["dvc_path"], "dvc")
        elif manifest.stage == "synthesize":
            found[key] = (dvc_digest(folders[key]), str(folders[key]), "dvc")
        else:
            found[key] = (manifest.digest, str(folders[key]), "star")
    return found


def check_stage(digest: str, summary: dict) -> tuple[str, str]:
    """Whether a stage's folder, where one is on this machine, still holds what its digest says."""
    place = find_folder(digest, summary["stage"])
    if place is None:
        return UNREACHED, "no folder on this machine"
    try:
        found = open_input(place, stage=summary["stage"])
    except Exception as error:
        return MISMATCH, str(error)
    if found.digest != digest:
        return MISMATCH, f"{place} holds {found.digest[:12]}, not {digest[:12]}"
    recorded = {key: summary[key] for key in ("config_digest", "code_digest", "inputs")}
    if {key: value for key, value in found.summary().items() if key in recorded} != recorded:
        return MISMATCH, f"the manifest of {place} names other settings, code or inputs than the model's lineage"
    return OK, str(place)


def find_folder(digest: str, stage: str) -> Path | None:
    """The folder of a stage with that digest: among the latest run's, or below `runs/` of this directory.

    A folder whose manifest claims the digest counts as found whatever its files hold.
    """
    places = [home() / "latest" / stage, *sorted(Path("runs").glob("*/*/")), *sorted(home().glob("*/"))]
    for place in places:
        if (place / MANIFEST).is_file():
            manifest = read_manifest(place)
            if manifest.stage == stage and manifest.digest == digest:
                return place
    return None


def check_dvc(summary: dict) -> tuple[str, str]:
    """Whether DVC still keeps the digest that was noted for a stage."""
    import yaml

    lock = Path("dvc.lock")
    if not lock.is_file():
        return UNREACHED, "no dvc.lock here"
    content = yaml.safe_load(lock.read_text(encoding="utf-8")) or {}
    outs = {
        out["path"]: out.get("md5") for stage in content.get("stages", {}).values() for out in stage.get("outs", ())
    }
    now = outs.get(summary["dvc_path"])
    if now == summary["dvc"]:
        return OK, f"{summary['dvc_path']} in dvc.lock"
    return MISMATCH, f"dvc.lock has {now} for {summary['dvc_path']}"


def check_commit(commit: str) -> tuple[str, str]:
    """Whether the commit is in the checkout that the package runs from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return UNREACHED, "no checkout here"
    try:
        _git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError:
        return UNREACHED, "not in this checkout"
    except OSError:
        return UNREACHED, "no git here"
    return OK, "in this checkout"


def check_run(run_id: str) -> tuple[str, str]:
    """Whether MLflow still has a run."""
    from mlflow.exceptions import MlflowException

    from star.tracking.server import connect

    try:
        stage = connect().get_run(run_id).info.lifecycle_stage
    except MlflowException:
        return UNREACHED, "not in this MLflow"
    return (OK, "in MLflow") if stage == "active" else (UNREACHED, "deleted in MLflow")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
