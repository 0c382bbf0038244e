"""Collects and checks the lineage of a model: every stage it was made by, with digests, commit, image and runs.

A stage's manifest holds the summaries of all stages above it, so the refined model's manifest holds the whole tree.
Publishing writes it to `lineage.json` inside the model. `star lineage` (lineage_tree.py) checks each part that is
within reach.
"""

import os
import re
import subprocess
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from star.config.experiment import Config
from star.config.files import FileRef, RowsFolder, inputs_in, read_input
from star.digest_cache import digest_of_file, digests_of
from star.errors import InputError
from star.folders.dvc_digest import dvc_digest
from star.folders.manifest import MANIFEST, open_input, read_manifest
from star.folders.s3_inputs import fetched_place
from star.home import home
from star.tracking.runs import current_run

Given = FileRef | RowsFolder
LINEAGE_FILE = "lineage.json"
OK, MISMATCH, UNREACHED = "ok", "mismatch", "not here"  # results of a check


def collect_origin(config: Config | None = None, sections: Collection[str] = ()) -> dict[str, Any]:
    """Collects commit, image and runs of this process, for the manifest, and of a stage its seed and where its inputs came from.

    They are not part of the content digest: two identical runs may differ in them.

    Args:
        config: the configuration of the stage; None for a merge, which reads none.
        sections: those that the stage reads.
    """
    run = current_run()
    found: dict[str, Any] = {
        **git_state(),
        "image": os.environ.get("STAR_IMAGE", ""),
        "kfp_run": os.environ.get("KFP_RUN_ID", ""),
        "mlflow_run": (run.run_id if run else None) or "",
        "seed": str(config.seed) if config and "seed" in sections else "",
        "inputs": dict(_inputs_of(config, sections)) if config else {},
    }
    return {key: value for key, value in found.items() if value}


def _inputs_of(config: Config, sections: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The inputs in these sections, like `data.seed_data`, and where each came from. Those of the package are in the code."""
    for name, source in inputs_in(config):
        if name.partition(".")[0] in sections and not source.is_packaged:
            yield name, source.model_dump(exclude_none=True)


@lru_cache(maxsize=1)
def git_state() -> dict[str, str]:
    """Commit of the checkout that the package runs from, and whether it has changes; in an image, the commit of its build."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package; an image names the commit that it was built from
        commit = os.environ.get("STAR_COMMIT", "unknown")
        return {} if commit == "unknown" else {"commit": commit}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        # Only files that a stage runs or reads: notes beside them do not make its result another one.
        return {
            "commit": commit,
            "dirty": "yes" if _git(root, "status", "--porcelain", "--", "star", "configs") else "no",
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def build_lineage(refined: Path, evaluation: Path, *, report: dict, model: str, published: Path) -> dict:
    """Builds the content of a refined model's lineage.json.

    Args:
        refined: folder of the stage `refine`.
        evaluation: folder of the stage `evaluate`.
        report: content of its evaluation.json.
        model: digest of the refined folder.
        published: folder with the model's files as they are published, whose weights may have another precision.
    """
    manifest, measured = read_manifest(refined), read_manifest(evaluation)
    stages = {model: manifest.summary(), **manifest.ancestors}
    by_stage = {summary["stage"]: digest for digest, summary in stages.items()}
    weights = digests_of(sorted(published.rglob("*.safetensors")), trust="none")
    tracked = dvc_digests(set(stages) | {measured.digest})
    return {
        "model": model,
        "weights": {file.relative_to(published).as_posix(): digest for file, digest in weights.items()},
        "tokenizer": digest_of_file(refined / "tokenizer.json", trust="none"),
        "data": by_stage.get("synthesize", report["lineage"].get("data", "")),
        "teacher": by_stage.get("refine-teacher", report["lineage"].get("teacher", "")),
        "stages": {digest: {**summary, **tracked.get(digest, {})} for digest, summary in stages.items()},
        "evaluation": {"digest": measured.digest, **measured.summary(), **tracked.get(measured.digest, {})},
        "benchmarks": report["suite"],
        "published": collect_origin(),
    }


def dvc_digests(wanted: set[str], *, root: Path = Path()) -> dict[str, dict[str, str]]:
    """Looks up which of the wanted digests are of folders that DVC tracks: digest -> path and DVC's own digest."""
    found = {}
    for path, md5 in (locked_outs(root / "dvc.lock") or {}).items():
        if (root / path / MANIFEST).is_file() and (digest := read_manifest(root / path).digest) in wanted:
            found[digest] = {"dvc": md5, "dvc_path": path}
    return found


def locked_outs(lock: Path) -> dict[str, str] | None:
    """Path -> DVC's digest of all outputs in a dvc.lock; None where there is no such file, or none that can be read.

    It is read for the lineage alone, so one that a merge left in pieces stops no stage.
    """
    from star.yaml_documents import parse_yaml

    try:
        content = parse_yaml(lock.read_bytes()) or {}
        outs = [out for stage in (content.get("stages") or {}).values() for out in stage.get("outs", ())]
        return {
            out["path"]: out["md5"] for out in outs if isinstance(out["path"], str) and isinstance(out.get("md5"), str)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def input_datasets(folders: dict[str, Path]) -> dict[str, tuple[str, str, str]]:
    """Describes the folders that a stage reads, for its MLflow run: name -> digest, path, and who computed it (dvc or star).

    DVC's digest is taken where DVC tracks the folder, and always for the data set, so that every runner logs the same
    data set.
    """
    manifests = {key: read_manifest(folder) for key, folder in folders.items()}
    tracked = dvc_digests({manifest.digest for manifest in manifests.values()})
    found = {}
    for key, manifest in manifests.items():
        if entry := tracked.get(manifest.digest):
            found[key] = (entry["dvc"], entry["dvc_path"], "dvc")
        elif manifest.stage == "synthesize":
            found[key] = (dvc_digest(folders[key]), str(folders[key]), "dvc")
        else:
            found[key] = (manifest.digest, str(folders[key]), "star")
    return found


def check_stage(digest: str, summary: dict) -> tuple[str, str]:
    """Checks whether a stage's folder, where this machine has one, still holds the content of that digest.

    Args:
        summary: The stage, and what its manifest must say of settings, code and inputs. Of a shard the lineage describes none of them,
            because they are those of the result that it was merged into.
    """
    folder = find_folder(digest, summary["stage"])
    if folder is None:
        return UNREACHED, "no folder on this machine"
    try:
        found = open_input(folder, stage=summary["stage"], trust="none")
    except Exception as error:  # a missing file, a damaged manifest, a changed sha256: all are mismatches
        return MISMATCH, str(error)
    if found.digest != digest:
        return MISMATCH, f"{folder} holds {found.digest[:12]}, not {digest[:12]}"
    # The digest covers the files only, so settings, code and inputs are compared on their own.
    recorded = {key: summary[key] for key in ("config_digest", "code_digest", "inputs") if key in summary}
    if {key: value for key, value in found.summary().items() if key in recorded} != recorded:
        return MISMATCH, f"the manifest of {folder} names other settings, code or inputs than the model's lineage"
    return OK, str(folder)


def find_folder(digest: str, stage: str) -> Path | None:
    """Finds the folder of a stage with that digest: among the latest run's, or below `runs/` of this directory.

    The manifest's digest counts; the files are not checked here.
    """
    candidates = [home() / "latest" / stage, *sorted(Path("runs").glob("*/*/")), *sorted(home().glob("*/"))]
    for folder in candidates:
        if (folder / MANIFEST).is_file():
            try:
                manifest = read_manifest(folder)
            except InputError:  # a damaged one is of no digest that could be looked for
                continue
            if manifest.stage == stage and manifest.digest == digest:
                return folder
    return None


def check_dvc(summary: dict) -> tuple[str, str]:
    """Checks whether dvc.lock still holds the digest that the lineage names for a stage."""
    outs = locked_outs(Path("dvc.lock"))
    if outs is None:
        return UNREACHED, "no dvc.lock here that can be read"
    now = outs.get(summary["dvc_path"])
    if now == summary["dvc"]:
        return OK, f"{summary['dvc_path']} in dvc.lock"
    return MISMATCH, f"dvc.lock has {now} for {summary['dvc_path']}"


def check_input(content: dict) -> tuple[str, str]:
    """Checks whether this machine has an input with the sha256 that the lineage names. Asks no store and no repository."""
    try:
        source = read_input(content)
    except ValidationError:  # a model folder or a benchmark
        return UNREACHED, str(content["path"])
    where = described(source)
    copy = Path(source.path) if source.is_local and isinstance(source, FileRef) else copy_in_home(source)
    if not (copy.is_file() if isinstance(source, FileRef) else copy.is_dir()):
        return UNREACHED, f"{where}; no copy here"
    try:
        source.model_copy(update={"path": str(copy)}).read_verified()
    except InputError:
        # No mismatch: rows grow, and the model was made from what they were.
        return UNREACHED, f"{where}; the copy here has changed"
    return OK, where


def described(source: Given) -> str:
    """Where an input came from, for people."""
    return str(source.dvc) if source.dvc else source.path


def copy_in_home(source: Given) -> Path:
    """Where an input lies after it was fetched."""
    place = fetched_place(source.sha256)
    return place / source.file_name if isinstance(source, FileRef) else place


def check_commit(commit: str) -> tuple[str, str]:
    """Checks whether the commit is in the checkout that the package runs from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return UNREACHED, "no checkout here"
    # The text comes with the model. `HEAD` would be in every checkout, and `-h` is an option.
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        return UNREACHED, "no commit's number"
    try:
        _git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError:
        # No mismatch: another checkout may simply lack the commit.
        return UNREACHED, "not in this checkout"
    except OSError:
        return UNREACHED, "no git here"
    return OK, "in this checkout"


def check_run(run_id: str) -> tuple[str, str]:
    """Checks whether MLflow still has a run."""
    from mlflow.exceptions import MlflowException

    from star.tracking.server import connect

    try:
        stage = connect().get_run(run_id).info.lifecycle_stage
    except MlflowException:
        # No mismatch: a copied model names runs of the MLflow that it was copied from.
        return UNREACHED, "not in this MLflow"
    return (OK, "in MLflow") if stage == "active" else (UNREACHED, "deleted in MLflow")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
