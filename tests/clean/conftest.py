"""A home with results that STAR's own code published, some of them old, and versions in a real registry on SQLite."""

import os
import time
from pathlib import Path

import pytest

from star.clean.entry import DAY
from star.folders.manifest import MANIFEST, read_manifest
from star.folders.run_once import Result, draft_manifest, run_once
from star.folders.workspace import Workspace
from star.json_file import write_json
from star.registry.lineage import LINEAGE_FILE, build_lineage

CHAIN = {
    "synthesize": (),
    "refine-teacher": ("synthesize",),
    "rollout": ("synthesize", "refine-teacher"),
    "extract-topk": ("rollout", "refine-teacher"),
    "distill": ("extract-topk",),
    "refine": ("distill", "synthesize"),
    "evaluate": ("synthesize", "refine-teacher", "distill", "refine"),
}
FILES = {"refine": ("config.json", "model.safetensors", "tokenizer.json")}


def make_result(stage: str, out: Path, *, content: str, inputs: dict[str, Path] | None = None, files: int = 0) -> Path:
    """A folder as the stage's runner publishes it, with small files."""

    def describe():
        manifests = {name: read_manifest(folder) for name, folder in (inputs or {}).items()}
        return draft_manifest(stage, settings=content, code="c" * 64, inputs=manifests)

    def work(workspace: Workspace, manifest) -> Result:
        for name in (*FILES.get(stage, ("rows.txt",)), *(f"{number}.txt" for number in range(files))):
            (workspace.out / name).write_text(f"{stage} {content} {name}")
        return Result({"rows": 1.0})

    run_once(describe, work, out=out, sources=(inputs or {}).values())
    return out


def make_run(root: Path, *, content: str, shared: dict[str, Path] | None = None) -> dict[str, Path]:
    """The folders of all stages up to the evaluation, as pipeline/RUN/TASK/OUTPUT below `root`."""
    folders = dict(shared or {})
    for stage, sources in CHAIN.items():
        if stage not in folders:
            inputs = {source: folders[source] for source in sources}
            folders[stage] = make_result(stage, root / stage / "out", content=content, inputs=inputs)
            (root / stage / "executor_output.json").write_text("{}")
    return folders


def make_old(path: Path, *, days: float) -> None:
    """Gives the path and all below it a time in the past."""
    then = time.time() - days * DAY
    for entry in (path, *path.rglob("*")):
        os.utime(entry, (then, then), follow_symlinks=False)


def register_run(folders: dict[str, Path], scratch: Path, *, name: str = "star") -> int:
    """Registers the run's model as `star register` does, without the gate; returns the version."""
    from star.registry.promotion.register_model import register_model

    refined, evaluation = folders["refine"], folders["evaluate"]
    digest = read_manifest(refined).digest
    report = {"lineage": {"data": read_manifest(folders["synthesize"]).digest}, "suite": {}}
    lineage = build_lineage(refined, evaluation, report=report, model=digest, published=refined)
    model = scratch / digest
    model.mkdir(parents=True)
    for file in FILES["refine"]:
        (model / file).write_bytes((refined / file).read_bytes())
    write_json(model / LINEAGE_FILE, lineage)
    tags = {"evaluation": lineage["evaluation"]["digest"], "data": lineage["data"]}
    return register_model(model, name=name, scores={}, lineage=tags, model_digest=digest).version


def is_whole(folder: Path) -> bool:
    """Whether a folder is a result, or has none of its files."""
    return (folder / MANIFEST).is_file() or not folder.exists()


@pytest.fixture
def registry(home: Path, environment: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The home of an empty registry is the current directory's `runs`."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (home / "mlflow.db").rename(runs / "mlflow.db")
    environment.setenv("STAR_HOME", str(runs))
    environment.chdir(tmp_path)
    for name in ("STAR_WORK", "STAR_CHECKPOINTS", "STAR_REUSE"):
        environment.delenv(name, raising=False)
    return environment


@pytest.fixture
def runs(registry: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return tmp_path / "runs"
