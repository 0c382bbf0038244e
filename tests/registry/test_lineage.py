"""The lineage is complete in the published model and checked against the machine's folders; the model card beside it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from star.config.evaluation import Registry
from star.config.experiment import Config
from star.errors import InputError
from star.folders.manifest import Manifest, read_manifest
from star.folders.publish import publish
from star.hashing import sha256_of
from star.registry.find_model import download_model
from star.registry.lineage import UNREACHED, check_commit, check_dvc, dvc_digests
from star.registry.lineage_tree import print_lineage
from star.registry.model_card import model_card
from star.registry.promotion.copy_version import copy_version
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.registry.versions import find_version
from star.stages import register
from star.tracking.server import connect, use_tracking_uri


@pytest.fixture
def published(
    home: Path, micro: Config, finished: dict[str, Path], tmp_path: Path, environment: pytest.MonkeyPatch
) -> Path:
    """The champion, registered by the stage; the home holds copies of the latest run's folders that a test may change."""
    for stage, folder in finished.items():
        shutil.copytree(folder, home / "latest" / stage)
    inputs = {"refined": home / "latest" / "refine", "evaluation": home / "latest" / "evaluate"}
    environment.chdir(tmp_path)
    register(micro, **inputs, out=tmp_path / "registration")
    return download_model("star", home / "models")


def test_the_whole_tree_is_in_the_model_and_holds(
    published: Path, finished: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    lineage = json.loads((published / "lineage.json").read_text())
    assert {summary["stage"]: digest for digest, summary in lineage["stages"].items()} == {
        stage: read_manifest(finished[stage]).digest
        for stage in ("synthesize", "refine-teacher", "rollout", "extract-topk", "distill", "refine")
    }
    assert {summary["origin"].get("seed") for summary in lineage["stages"].values()} == {"7", None}
    assert lineage["evaluation"]["digest"] == read_manifest(finished["evaluate"]).digest
    assert lineage["benchmarks"] == {"heldout": {"rows": 12}}
    assert print_lineage("champion", name="star") == []
    printed = capsys.readouterr().out
    for stage in (
        "refine",
        "distill",
        "extract-topk",
        "rollout",
        "refine-teacher",
        "synthesize",
        "evaluation",
        "tokenizer",
    ):
        assert stage in printed
    assert print_lineage(str(published), name="star") == []
    tags = find_version("star").lineage
    assert {"data", "teacher", "tokenizer", "decoding", "evaluation", "gate"} <= tags.keys()
    # MLflow's page shows each tag in a row: the digests have one together.
    shown = connect().get_model_version("star", "1").tags
    assert [key for key, value in shown.items() if len(value) > 63] == ["star.model_digest", "star.verification"]


def test_what_was_changed_is_named(published: Path, home: Path) -> None:
    rows = home / "latest" / "synthesize" / "train.jsonl"
    rows.write_text(rows.read_text() + "\n")
    [said] = print_lineage("champion", name="star")
    assert said.startswith("synthesize") and "train.jsonl" in said
    copied = home / "copied"
    shutil.copytree(published, copied)
    (copied / "tokenizer.json").write_text("{}")
    assert any("tokenizer.json is" in mismatch for mismatch in print_lineage(str(copied), name="star"))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_changed_file_in_the_store_is_refused_by_its_name(published: Path, home: Path, file: str) -> None:
    [stored] = (home / "mlartifacts").rglob(file)
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    shutil.rmtree(home / "models")
    with pytest.raises(InputError, match=rf"star version 1 are not those registered \({file}\)"):
        download_model("star@champion", home / "models")


def test_a_deleted_run_does_not_take_the_champion_and_a_deleted_model_is_named(published: Path, home: Path) -> None:
    client, version = connect(), find_version("star")
    client.delete_run(version.run_id)
    gc = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"]
    tracking = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    subprocess.run(gc, check=True, capture_output=True, env=tracking)
    shutil.rmtree(home / "models")
    assert download_model("star", home / "models").is_dir()
    client.delete_logged_model(version.source.removeprefix("models:/"))
    subprocess.run(gc, check=True, capture_output=True, env=tracking)
    shutil.rmtree(home / "models")
    with pytest.raises(InputError, match="star version 1"):
        download_model("star", home / "models")


def test_the_card_says_what_it_is_for(published: Path) -> None:
    card = (published / "README.md").read_text()
    head, body = card.split("---\n", 2)[1:]
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    for part in ("## Scores", "exact\\_match", "## Intended use", "## Licence", "lineage.json"):
        assert part in body
    entry = {"scores": {}, "by_kind": {"<script>|": {"rows": 1, "exact_match": 0.5}}}
    lineage = {"data": "d", "teacher": "t", "tokenizer": "k"}
    hostile = model_card(
        Registry(model_name="x", license="mit"), entry=entry, evaluation={"suite": {}}, lineage=lineage
    )
    assert "<script>" not in hostile


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\nstages: {}\n=======\n", "[" * 60_000, "stages: {a: {outs: [5]}}", "5"])
def test_a_lock_of_another_form_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    assert dvc_digests({"d"}, root=tmp_path) == {}
    monkeypatch.chdir(tmp_path)
    assert check_dvc({"dvc": "x", "dvc_path": "data"}) == (UNREACHED, "no dvc.lock here that can be read")


@pytest.mark.parametrize("commit", ["HEAD", "-h", "--batch", ":/a", "main", "\0" * 40, "a" * 10**6])
def test_only_a_commits_number_is_looked_up(commit: str) -> None:
    assert check_commit(commit)[0] == UNREACHED


def test_files_elsewhere_and_damaged_folders_do_not_end_a_look_at_a_model(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "a" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "b" / "manifest.json").write_text("nonsense")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    stage = {"stage": "refine", "config_digest": "", "code_digest": "", "code_version": "", "inputs": {}, "origin": {}}
    (tmp_path / "secret").write_text("not the model's")
    lineage = {
        "weights": {"../secret": "0" * 64},
        "tokenizer": "t",
        "model": "m",
        "published": {},
        "stages": {"m": stage},
    }
    (folder / "lineage.json").write_text(json.dumps({**lineage, "evaluation": {"digest": "e", **stage}}))
    assert "is outside the model's folder" in " ".join(print_lineage(str(folder), name="star"))


def test_shards_that_the_lineage_does_not_describe_are_checked_by_their_digest(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    made = {"config_digest": "c", "code_digest": "d", "code_version": "1"}
    shards = {}
    for part in ("1/2", "2/2"):
        folder = tmp_path / f"shard-{part[0]}"
        folder.mkdir()
        (folder / "samples.txt").write_text(part)
        publish(
            folder, out=home / folder.name, manifest=Manifest("rollout", fingerprint="f", inputs={}, part=part, **made)
        )
        shards[part] = read_manifest(home / folder.name).digest
    # The second one is on another machine. A stage that is missing is none of a merged result's shards.
    shutil.rmtree(home / "shard-2")
    merged = {"stage": "rollout", "inputs": shards | {"teacher": "t" * 64}, "origin": {}, **made}
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("{}")
    (model / "lineage.json").write_text(
        json.dumps(
            {
                "model": "m",
                "weights": {},
                "tokenizer": sha256_of(model / "tokenizer.json"),
                "published": {},
                "stages": {"m": merged},
                "evaluation": {"digest": "e", **merged},
            }
        )
    )
    assert print_lineage(str(model), name="star") == [f"stage {'t' * 12}: the lineage does not describe it"]
    printed = capsys.readouterr().out
    assert f"rollout 1/2 {shards['1/2'][:12]} ok" in printed
    assert f"rollout 2/2 {shards['2/2'][:12]} not checked" in printed
    (home / "shard-1" / "samples.txt").write_text("2/2")
    changed = print_lineage(str(model), name="star")[0]
    assert (
        changed.startswith(f"rollout 1/2 {shards['1/2'][:12]}: ") and "samples.txt is missing or was changed" in changed
    )


def test_dvcs_own_digest_of_a_folder_is_found(finished: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(finished["synthesize"], tmp_path / "data")
    lock = {"stages": {"synthesize": {"outs": [{"path": "data", "md5": "0123.dir"}, {"path": "gone", "md5": "1"}]}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    digest = read_manifest(finished["synthesize"]).digest
    assert dvc_digests({digest}, root=tmp_path) == {digest: {"dvc": "0123.dir", "dvc_path": "data"}}
    assert dvc_digests({"another"}, root=tmp_path) == {}


def test_a_version_goes_from_one_registry_to_another(home: Path, model: Path, empty_database: Path) -> None:
    version = register_model(
        model, name="tiny", scores={"exact_match": 0.5}, lineage={"data": "5eed"}, model_digest="d1"
    )
    folder = download_model("tiny/1", home / "models")
    production = home / "production.db"
    shutil.copy(empty_database, production)
    with use_tracking_uri(f"sqlite:///{production}"):
        copied = copy_version(version, folder)
        promote(copied.name, copied.version)
        there = find_version("tiny")
        assert (there.files, there.scores) == (version.files, version.scores)
        assert there.lineage == {"data": "5eed", "copied_from": "tiny version 1"}
    assert find_version("tiny", version=1).aliases == ()
