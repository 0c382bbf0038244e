"""Accelerator-seconds and money: of each attempt in its MLflow run, and of the pipeline in the run above them."""

import pytest
from mlflow.entities import Run

from star.cluster.exit_handler import close_pipeline
from star.tracking.accelerators import Accelerators
from star.tracking.runs import stage_run
from star.tracking.server import connect, experiment_id

PIPELINE = "0123456789"


def attempt(
    stage: str, part: str, monkeypatch: pytest.MonkeyPatch, *, count: int, hours: float, fails: bool = False
) -> None:
    """One attempt of a shard, in which the clock goes on by so many hours."""
    monkeypatch.setenv("STAR_ACCELERATORS", Accelerators(count, 2.5, "EUR").to_json())
    with monkeypatch.context() as clock:
        seconds = iter([0.0, hours * 3600.0])
        clock.setattr("star.tracking.runs.time.monotonic", lambda: next(seconds, hours * 3600.0))
        try:
            with stage_run(stage, tags={"star.part": part}):
                if fails:
                    raise ValueError("CUDA out of memory")
        except ValueError:
            pass


def runs() -> list[Run]:
    client = connect()
    return list(client.search_runs([experiment_id(client)]))


def test_every_attempt_of_every_shard_is_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", PIPELINE)
    attempt("rollout", "1/2", monkeypatch, count=2, hours=1, fails=True)
    attempt("rollout", "1/2", monkeypatch, count=2, hours=2)
    attempt("rollout", "2/2", monkeypatch, count=2, hours=1.5)
    attempt("distill", "", monkeypatch, count=16, hours=0.5)
    monkeypatch.delenv("STAR_ACCELERATORS")
    with stage_run("register"):
        pass
    of_stages = [run.data.metrics for run in runs() if run.data.tags.get("star.stage") == "rollout"]
    assert sorted(metrics["accelerator_seconds"] for metrics in of_stages) == [7200, 10800, 14400]
    summary = close_pipeline(PIPELINE, state="SUCCEEDED", error=None)
    assert summary["accelerators"] == {
        "seconds": {"rollout": 32400.0, "distill": 28800.0},
        "cost": 42.5,
        "currency": "EUR",
    }
    assert summary["text"].endswith("SUCCEEDED, 17 accelerator-hours (42.50 EUR)")
    [parent] = [run for run in runs() if "star.stage" not in run.data.tags]
    assert parent.data.metrics == {
        "accelerator_seconds": 61200,
        "accelerator_seconds/rollout": 32400,
        "accelerator_seconds/distill": 28800,
        "accelerator_cost": 42.5,
        "accelerator_cost/rollout": 22.5,
        "accelerator_cost/distill": 20,
    }
    # Another pipeline of the same tracking server, which held none.
    monkeypatch.setenv("KFP_RUN_ID", "another")
    with stage_run(
        "rollout", tags={"star.accelerators": '{"count": "many"}'}
    ):  # whoever may write to MLflow may write tags
        pass
    summary = close_pipeline("another", state="SUCCEEDED", error=None)
    assert "accelerators" not in summary and summary["text"].endswith("SUCCEEDED")


@pytest.mark.parametrize("text", ["[]", "{", '{"count": 1}', '{"count": "1", "price_per_hour": null, "currency": ""}',
                                  '{"count": 1, "price_per_hour": NaN, "currency": ""}'])  # fmt: skip
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Accelerators.from_json(text)
