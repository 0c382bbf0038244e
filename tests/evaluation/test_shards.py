"""An evaluation in shards: merged, they have the same bytes as the evaluation of one process. Shards of several runs are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from star.config.experiment import Config
from star.errors import InputError
from star.evaluation.bfcl.run import score_bfcl
from star.folders.manifest import open_input, read_manifest
from star.stages import evaluate, merge, register, stage_named


@pytest.fixture(scope="module")
def inputs(finished: dict[str, Path]) -> dict[str, Path]:
    return {key: finished[source] for key, source in stage_named("evaluate").inputs.items()}


@pytest.fixture(scope="module")
def several(micro: Config) -> Config:
    """The micro profile with four batches of held-out rows."""
    settings = micro.evaluate.model_copy(update={"batch_size": 3, "max_new_tokens": 8, "samples": 4})
    return micro.model_copy(update={"evaluate": settings})


@pytest.fixture(scope="module")
def shards(several: Config, inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards of one evaluation."""
    root = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAR_HOME", str(root / "home"))
        for number in (1, 2, 3):
            evaluate(several, **inputs, out=root / str(number), shard=f"{number}/3")
    return [root / str(number) for number in (1, 2, 3)]


def assert_same_evaluation(merged: Path, whole: Path) -> None:
    for name in ("evaluation.json", "outcomes.jsonl", "failures.parquet"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()
    assert open_input(merged, stage="evaluate").digest == read_manifest(whole).digest


def read_metrics(folder: Path, name: str = "timing.json") -> dict:
    return json.loads((folder / name).read_text())


def test_merged_shards_are_to_the_byte_what_one_process_makes(
    several: Config, inputs: dict[str, Path], shards: list[Path], tmp_path: Path
) -> None:
    evaluate(several, **inputs, out=tmp_path / "whole")
    metrics = merge([shards[2], shards[0], shards[1]], out=tmp_path / "merged")
    assert_same_evaluation(tmp_path / "merged", tmp_path / "whole")
    assert metrics.keys() == read_metrics(tmp_path / "whole", "metrics.json").keys()
    assert [read_metrics(shard, "metrics.json")["asked"] for shard in shards] == [18, 9, 9]
    manifest = read_manifest(tmp_path / "merged")
    assert manifest.part is None
    assert read_manifest(tmp_path / "whole").inputs.items() <= manifest.inputs.items()
    assert "<script" not in (tmp_path / "merged" / "report.html").read_text()


def test_shards_beyond_the_batches_are_empty_and_merge(
    micro: Config, inputs: dict[str, Path], finished: dict[str, Path], tmp_path: Path
) -> None:
    shards = [tmp_path / number for number in ("1", "2", "3")]
    for folder in shards:
        evaluate(micro, **inputs, out=folder, shard=f"{folder.name}/3")
    assert read_metrics(shards[2], "metrics.json")["asked"] == 0
    merge(shards, out=tmp_path / "merged")
    assert_same_evaluation(tmp_path / "merged", finished["evaluate"])


def test_the_time_of_all_shards_is_added_up(shards: list[Path], tmp_path: Path) -> None:
    merge(shards, out=tmp_path / "merged")
    for model, timing in read_metrics(tmp_path / "merged").items():
        timings = [read_metrics(shard)[model] for shard in shards]
        seconds, tokens = (sum(timing[key] for timing in timings) for key in ("seconds", "tokens"))
        assert timing["seconds"] == round(seconds, 1)
        assert timing["tokens_per_second"] == round(tokens / seconds, 1)
        assert timing["latency"] == round(median(timing["latency"] for timing in timings), 3)


def test_merged_again_nothing_is_written(shards: list[Path], tmp_path: Path) -> None:
    metrics = merge(shards, out=tmp_path / "merged")
    written = [(file.name, file.stat().st_ino, file.read_bytes()) for file in (tmp_path / "merged").iterdir()]
    assert merge(shards, out=tmp_path / "merged") == metrics
    assert [(file.name, file.stat().st_ino, file.read_bytes()) for file in (tmp_path / "merged").iterdir()] == written


def test_what_is_not_all_of_one_evaluation_is_refused(
    several: Config, inputs: dict[str, Path], finished: dict[str, Path], shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    with pytest.raises(InputError, match="missing among the shards: 2/3"):
        merge([shards[0], shards[2]], out=out)
    shutil.copytree(shards[0], tmp_path / "copy")
    with pytest.raises(InputError, match="the same shard is there twice"):
        merge([*shards, tmp_path / "copy"], out=out)
    with pytest.raises(InputError, match="is a whole result, not a shard"):
        merge([finished["evaluate"], *shards[1:]], out=out)
    settings = of_another_run(shards[0], tmp_path / "settings", config_digest="0" * 64)
    with pytest.raises(InputError, match="differ in their config_digest"):
        merge([*shards[1:], settings], out=out)
    teacher = of_another_run(shards[0], tmp_path / "teacher", inputs={"teacher": "0" * 64})
    with pytest.raises(InputError, match="differ in their inputs"):
        merge([*shards[1:], teacher], out=out)
    (tmp_path / "copy" / "gathered.json").write_text("{}")
    with pytest.raises(InputError, match=r"gathered\.json is missing or was changed"):
        merge([tmp_path / "copy", *shards[1:]], out=out)
    with pytest.raises(InputError, match=r"is shard 1/3 only: .*star merge"):
        register(several, refined=inputs["refined"], evaluation=shards[0], out=tmp_path / "registration")
    assert not out.exists()


def of_another_run(shard: Path, folder: Path, **made_with: object) -> Path:
    """A copy of the shard whose manifest says that it was made with other settings or inputs."""
    from star.folders.publish import publish

    copy = shutil.copytree(shard, folder.with_name(f"{folder.name}-files"))
    publish(copy, out=folder, manifest=replace(read_manifest(shard), **made_with))
    return folder


def test_the_models_are_tracked_once_by_the_merge(shards: list[Path], own_home: Path, tmp_path: Path) -> None:
    from star.tracking.server import connect, experiment_id

    metrics = merge(shards, out=tmp_path / "merged")
    client = connect()
    runs = {run.info.run_name: run for run in client.search_runs([experiment_id(client)])}
    assert set(runs) == {"evaluate", "teacher", "distilled", "refined"}
    stage = runs["evaluate"]
    assert stage.data.metrics == pytest.approx(metrics)
    assert stage.data.params["evaluate.batch_size"] == "3"
    assert {"report.html", "report.md"} <= {file.path for file in client.list_artifacts(stage.info.run_id)}
    assert read_manifest(tmp_path / "merged").origin["mlflow_run"] == stage.info.run_id
    for model in ("teacher", "distilled", "refined"):
        assert runs[model].data.tags["mlflow.parentRunId"] == stage.info.run_id
        assert runs[model].data.metrics["exact_match"] == metrics[f"{model}_exact_match"]


def test_a_shard_is_tracked_without_the_metrics_of_the_models(
    several: Config, inputs: dict[str, Path], tmp_path: Path
) -> None:
    from star.tracking.server import connect, experiment_id

    evaluate(several, **inputs, out=tmp_path / "part", shard="4/4")
    client = connect()
    [run] = client.search_runs([experiment_id(client)])
    assert run.data.tags["star.part"] == "4/4"
    assert {name for name in run.data.metrics if not name.startswith("system")} == {"asked", "seconds"}


def test_reports_of_the_harness_are_scored_as_one() -> None:
    def report(*categories: str) -> dict:
        return {
            "verdicts": [
                {"id": f"{category}_{n}", "category": category, "valid": n > 0, "error": None}
                for category in categories
                for n in range(3)
            ],
            "isolated": True,
            "package": "bfcl-eval",
            "data": "BFCL_v4",
            "digests": {category: category for category in categories},
            "sizes": dict.fromkeys(categories, 3),
            "unanswered": len(categories),
        }

    order = ("multiple", "irrelevance", "live_simple")
    assert score_bfcl([report("multiple", "live_simple"), report("irrelevance")], order=order) == score_bfcl(
        [report(*order)], order=order
    )
