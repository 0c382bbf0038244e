"""The files of a published model: weights in bf16, and one file on the disk under several names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from star.folders import link
from star.folders.manifest import Manifest, read_manifest
from star.folders.publish import publish
from star.registry.download import download_version_as
from star.registry.find_model import download_model
from star.registry.local_artifacts import folder_in_home
from star.registry.promotion.register_model import register_model
from star.registry.published_weights import place_model_files
from star.registry.smoke_test import run_smoke_test
from star.registry.versions import find_version


@pytest.fixture
def sharded(finished: dict[str, Path], tmp_path: Path) -> Path:
    """The refined model in shards, as the stage would publish it."""
    folder, manifest = tmp_path / "sharded", read_manifest(finished["refine"])
    shutil.copytree(finished["refine"], folder, ignore=shutil.ignore_patterns("model.safetensors", "manifest.json"))
    model = AutoModelForCausalLM.from_pretrained(finished["refine"], dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "README.md").write_text("of the stage")
    publish(folder, out=tmp_path / "refined", manifest=Manifest(**{**vars(manifest), "files": []}))
    return tmp_path / "refined"


def test_every_fp32_weight_becomes_the_nearest_one_of_bf16(sharded: Path, tmp_path: Path) -> None:
    assert place_model_files(sharded, tmp_path / "published", precision="bf16")
    published = tmp_path / "published"
    assert not {"manifest.json", "metrics.json", "completions.html"} & {file.name for file in published.iterdir()}
    trained, converted = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (sharded, published))
    assert (trained.dtype, converted.dtype) == (torch.float32, torch.bfloat16)
    for name, weight in trained.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight.to(torch.bfloat16))
    index = json.loads((published / "model.safetensors.index.json").read_text())
    shards = sorted(published.glob("*.safetensors"))
    assert all(shard.stat().st_mode == (sharded / shard.name).stat().st_mode for shard in shards)
    assert len(shards) > 1 and index["metadata"]["total_size"] == sum(map(tensor_bytes, shards))
    assert place_model_files(sharded, tmp_path / "again", precision="bf16")
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == {
        file.name: file.read_bytes() for file in published.iterdir()
    }


def tensor_bytes(shard: Path) -> int:
    with safe_open(shard, framework="pt") as weights:
        return sum(weights.get_tensor(name).nbytes for name in weights.keys())  # noqa: SIM118 - no mapping


def test_what_is_in_bf16_already_or_stays_in_fp32_is_linked(sharded: Path, tmp_path: Path) -> None:
    assert not place_model_files(sharded, tmp_path / "fp32", precision="fp32")
    for file in (tmp_path / "fp32").iterdir():
        assert file.samefile(sharded / file.name)
    # The published card is written anew, which through a link would change the stage's folder.
    assert (sharded / "README.md").exists() and not (tmp_path / "fp32" / "README.md").exists()


def test_the_smoke_test_finds_weights_that_are_not_the_trained_ones(finished: dict[str, Path], tmp_path: Path) -> None:
    published = tmp_path / "published"
    place_model_files(finished["refine"], published, precision="bf16")
    assert "nats per token from the trained weights" in run_smoke_test(published, trained=finished["refine"])
    model = AutoModelForCausalLM.from_pretrained(published, dtype="auto")
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(4)  # as a conversion would that takes another scale
    model.save_pretrained(published)
    with pytest.raises(RuntimeError, match="do not predict what the trained ones do"):
        run_smoke_test(published, trained=finished["refine"])


def test_large_files_of_a_home_are_one_file_with_several_names(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = "model.safetensors"
    monkeypatch.setattr(link, "LINKED_BYTES", (model / weights).stat().st_size)
    register_model(model, name="tiny", scores={}, lineage={}, model_digest="d1")
    [stored] = (home / "mlartifacts").rglob(weights)
    fetched = download_model("tiny/1", home / "models")
    assert stored.samefile(model / weights) and stored.samefile(fetched / weights)
    assert stored.stat().st_mode & 0o222 == 0
    assert not (fetched / "config.json").samefile(model / "config.json")
    given = download_version_as(find_version("tiny", version=1), tmp_path / "given")
    assert not (given / weights).samefile(stored) and (given / weights).stat().st_mode & 0o200
    # A changed file is found under each of its names.
    stored.chmod(0o644)
    stored.write_bytes(bytes(stored.stat().st_size))
    with pytest.raises(Exception, match=rf"not those registered \({weights}\)"):
        download_model("tiny/1", home / "models")


@pytest.mark.parametrize(
    "place", ["{home}/mlartifacts/1/a", "file://{home}/mlartifacts/1/a", "file://{home}/mlartifacts/x%20y"]
)
def test_only_the_artifacts_of_the_home_are_linked(home: Path, place: str) -> None:
    assert folder_in_home(place.format(home=home)) is not None
    for other in ("s3://bucket/a", "mlflow-artifacts:/a", "{home}/other", "file://host{home}/mlartifacts/a"):
        assert folder_in_home(other.format(home=home)) is None
    for outside in ("{home}/mlartifacts/../pipeline", "file://{home}/mlartifacts/%2e%2e/pipeline", "mlartifacts/a"):
        assert folder_in_home(outside.format(home=home)) is None
