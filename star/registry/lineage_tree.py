"""Prints the lineage of a model as a tree (`star lineage`); each digest has a mark that says whether it was checked.

Example, shortened. A file of the folder of `distill` was changed after the model was published:

    star version 3
    ├── model.safetensors 0d2f1a9c88e1 ok model.safetensors
    └── refine c2adf6160b1d ok runs/latest/refine
        └── distill b21550dd97a0 MISMATCH runs/latest/distill/model.safetensors is missing or was changed ...
"""

import json
import re
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from star.errors import InputError
from star.folders.manifest import MANIFEST, leads_outside, read_manifest
from star.hashing import sha256_of
from star.registry.find_model import find_model
from star.registry.lineage import (
    LINEAGE_FILE,
    MISMATCH,
    OK,
    UNREACHED,
    check_commit,
    check_dvc,
    check_input,
    check_run,
    check_stage,
)
from star.registry.versions import Version
from star.terminal import console

SHARD = re.compile(r"\d+/\d+")  # name under which a merged result has a shard as its input
MARKS = {OK: ("ok", "green"), MISMATCH: ("MISMATCH", "red"), UNREACHED: ("not checked", "dim")}  # word, style


class LineageTree:
    """The tree to print, and the mismatches found while it is built."""

    def __init__(self, title: str) -> None:
        self.root = Tree(Text(title, style="bold"))
        self.mismatches: list[str] = []

    def add(self, branch: Tree, label: str, digest: str, checked: tuple[str, str]) -> Tree:
        """Adds a digest with the result of its check: a key of MARKS and an explanation."""
        result, explanation = checked
        if result == MISMATCH:
            self.mismatches.append(f"{label} {digest[:12]}: {explanation}")
        mark = MARKS[result]
        parts = (f"{label} ", (digest[:12], "cyan"), " ", mark, " ", (explanation, "dim"))
        return branch.add(Text.assemble(*parts))


def print_lineage(model: str, *, name: str) -> list[str]:
    """Prints the tree of a registered version or of a model folder, and returns one sentence per mismatch.

    Args:
        model: a registered version or a folder, as `find_model` reads it.

    Raises:
        InputError: there is no such model, its stored files are not those registered, or it has no lineage.
    """
    version, folder = find_model(model, name=name)
    title = str(version or model)
    if not (folder / LINEAGE_FILE).is_file():
        raise InputError(_why_without_lineage(folder, version, title))
    tree = LineageTree(title)
    try:
        lineage = json.loads((folder / LINEAGE_FILE).read_text(encoding="utf-8"))
        _add_model(tree, lineage, folder, version)
        evaluation = lineage["evaluation"]
        tree.add(tree.root, "evaluation", evaluation["digest"], check_stage(evaluation["digest"], evaluation))
        _add_stage(tree, tree.root, lineage["model"], lineage["stages"], shown=set())
    # The file lies in the model's folder, so others may have written it.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder / LINEAGE_FILE} is not what `star register` writes ({type(error).__name__}): get the model again"
        ) from error
    console().print(tree.root)
    return tree.mismatches


def _why_without_lineage(folder: Path, version: Version | None, title: str) -> str:
    if version is not None:
        return f"{title} has no {LINEAGE_FILE}: it was registered by an older star, register it again"
    if not (folder / MANIFEST).is_file():
        return (
            f"{title} is no model that `star register` published (no {LINEAGE_FILE}): give such a folder, an alias such as "
            "champion, or a version number"
        )
    stage = read_manifest(folder).stage
    cure = "`star lineage champion` shows the lineage of the published model"
    return f"{title} is the output of {stage}, whose origin is in its {MANIFEST}, and no published model: {cure}"


def _add_model(tree: LineageTree, lineage: dict, folder: Path, version: Version | None) -> None:
    """Adds the model's files, and whether the registry's tags name the same digest as the lineage inside the model."""
    for path, digest in lineage["weights"].items():
        outside = (MISMATCH, "is outside the model's folder")
        tree.add(tree.root, path, digest, outside if leads_outside(path) else _check_file(folder / path, digest))
    tokenizer = lineage["tokenizer"]
    tree.add(tree.root, "tokenizer", tokenizer, _check_file(folder / "tokenizer.json", tokenizer))
    if version is not None:
        # The lineage lies inside the model and could be changed with it. The tags are in the tracking database.
        same = version.model_digest == lineage["model"]
        explanation = "as registered" if same else f"registered as {version.model_digest[:12]}"
        tree.add(tree.root, "model", lineage["model"], (OK if same else MISMATCH, explanation))
    _add_origin(tree, tree.root, "published", lineage["published"])


def _add_stage(tree: LineageTree, branch: Tree, digest: str, stages: dict[str, dict], *, shown: set[str]) -> None:
    """Adds a stage with the stages that it read. A stage that several others read is shown once."""
    summary = stages.get(digest)
    if summary is None:
        tree.add(branch, "stage", digest, (MISMATCH, "the lineage does not describe it"))
        return
    if digest in shown:
        branch.add(Text.assemble(f"{summary['stage']} ", (digest[:12], "cyan"), (" above", "dim")))
        return
    shown.add(digest)
    below = tree.add(branch, summary["stage"], digest, check_stage(digest, summary))
    made_of = f"settings {summary['config_digest'][:12]}, code {summary['code_digest'][:12]}"
    below.add(Text(f"{made_of}, star {summary['code_version']}", style="dim"))
    if "dvc" in summary:
        tree.add(below, "dvc", summary["dvc"], check_dvc(summary))
    _add_origin(tree, below, "made", summary["origin"])
    for setting, given in summary["origin"].get("inputs", {}).items():
        tree.add(below, setting, given["sha256"], check_input(given))
    for key, source in summary["inputs"].items():
        if source not in stages and SHARD.fullmatch(key):
            # What a shard wrote is in the merged result, which the lineage describes. The shard has its digest only.
            shard = f"{summary['stage']} {key}"
            tree.add(below, shard, source, check_stage(source, {"stage": summary["stage"]}))
        else:
            _add_stage(tree, below, source, stages, shown=shown)


def _add_origin(tree: LineageTree, branch: Tree, label: str, origin: dict[str, str]) -> None:
    """Adds commit, run, image and seed of the process that made a folder (`made`) or published the model (`published`)."""
    if commit := origin.get("commit"):
        changed = ", changed" if origin.get("dirty") == "yes" else ""
        tree.add(branch, f"{label} at commit{changed}", commit, check_commit(commit))
    if run := origin.get("mlflow_run"):
        tree.add(branch, f"{label} in run", run, check_run(run))
    for key in ("image", "kfp_run", "seed"):
        if key in origin:
            branch.add(Text(f"{label} with {key.replace('_', ' ')} {origin[key]}", style="dim"))


def _check_file(file: Path, digest: str) -> tuple[str, str]:
    if not file.is_file():
        return MISMATCH, f"{file.name} is missing"
    found = sha256_of(file)
    return (OK, file.name) if found == digest else (MISMATCH, f"{file.name} is {found[:12]}")
