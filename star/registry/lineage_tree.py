"""`star lineage`: the tree above a model, each digest with a mark that says whether it was checked."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from star.errors import InputError
from star.hashing import sha256_of
from star.home import home
from star.registry.download import fetch_version
from star.registry.lineage import (
    LINEAGE_FILE,
    MISMATCH,
    OK,
    UNREACHED,
    check_commit,
    check_dvc,
    check_run,
    check_stage,
)
from star.registry.versions import Version, resolve

MARKS = {OK: "[green]ok[/]", MISMATCH: "[red]MISMATCH[/]", UNREACHED: "[dim]not checked[/]"}


def print_lineage(model: str, *, name: str) -> list[str]:
    """Prints the tree of a registered version or of a model folder, and returns what does not match.

    Raises:
        InputError: there is no such model, its stored files are not those registered, or it has no lineage.
    """
    if Path(model).is_dir():
        version, folder, title = None, Path(model), model
    else:
        version = resolve(model, name=name)
        folder, title = fetch_version(version, home() / "models"), str(version)
    file = folder / LINEAGE_FILE
    if not file.is_file():
        raise InputError(f"{title} has no {LINEAGE_FILE}: it was published by an older star, publish it again")
    lineage = json.loads(file.read_text(encoding="utf-8"))
    tree, mismatches = Tree(f"[bold]{escape(title)}[/]"), []

    def leaf(branch: Tree, label: str, digest: str, checked: tuple[str, str]) -> Tree:
        state, said = checked
        if state == MISMATCH:
            mismatches.append(f"{label} {digest[:12]}: {said}")
        return branch.add(f"{escape(label)} [cyan]{escape(digest[:12])}[/] {MARKS[state]} [dim]{escape(said)}[/]")

    _model_leaves(tree, leaf, lineage, folder, version)
    evaluation = lineage["evaluation"]
    leaf(tree, "evaluation", evaluation["digest"], check_stage(evaluation["digest"], evaluation))
    _stage_branches(tree, leaf, lineage["model"], lineage["stages"], shown=set())
    Console().print(tree)
    return mismatches


def _model_leaves(tree: Tree, leaf, lineage: dict, folder: Path, version: Version | None) -> None:
    """The files of the model itself, and whether the registry's tags say the same as the lineage inside it."""
    for path, digest in lineage["weights"].items():
        leaf(tree, path, digest, _check_file(folder / path, digest))
    leaf(tree, "tokenizer", lineage["tokenizer"], _check_file(folder / "tokenizer.json", lineage["tokenizer"]))
    if version is not None:
        same = version.model_digest == lineage["model"]
        said = "as registered" if same else f"registered as {version.model_digest[:12]}"
        leaf(tree, "model", lineage["model"], (OK if same else MISMATCH, said))
    _origin_leaves(tree, leaf, "published", lineage["published"])


def _stage_branches(branch: Tree, leaf, digest: str, stages: dict[str, dict], *, shown: set[str]) -> None:
    """A stage with what made it; one that feeds several is told once."""
    summary = stages.get(digest)
    if summary is None:
        leaf(branch, "stage", digest, (MISMATCH, "the lineage does not describe it"))
        return
    if digest in shown:
        branch.add(f"{summary['stage']} [cyan]{digest[:12]}[/] [dim]above[/]")
        return
    shown.add(digest)
    below = leaf(branch, summary["stage"], digest, check_stage(digest, summary))
    made_of = f"settings {summary['config_digest'][:12]}, code {summary['code_digest'][:12]}"
    below.add(f"[dim]{made_of}, star {escape(summary['code_version'])}[/]")
    if "dvc" in summary:
        leaf(below, "dvc", summary["dvc"], check_dvc(summary))
    _origin_leaves(below, leaf, "made", summary["origin"])
    for source in summary["inputs"].values():
        _stage_branches(below, leaf, source, stages, shown=shown)


def _origin_leaves(branch: Tree, leaf, label: str, origin: dict[str, str]) -> None:
    if commit := origin.get("commit"):
        changed = ", changed" if origin.get("dirty") == "yes" else ""
        leaf(branch, f"{label} at commit{changed}", commit, check_commit(commit))
    if run := origin.get("mlflow_run"):
        leaf(branch, f"{label} in run", run, check_run(run))
    for key in ("image", "kfp_run", "seed"):
        if key in origin:
            branch.add(f"[dim]{label} with {key.replace('_', ' ')} {escape(origin[key])}[/]")


def _check_file(file: Path, digest: str) -> tuple[str, str]:
    if not file.is_file():
        return MISMATCH, f"{file.name} is missing"
    found = sha256_of(file)
    return (OK, file.name) if found == digest else (MISMATCH, f"{file.name} is {found[:12]}")
