"""The table of suites is whole: it has what a configuration may name, and labels and units for what the suites score."""

import json
from typing import get_args

import pytest

from star.config.evaluation import Suite
from star.errors import InputError
from star.evaluation.evaluate import score_and_write
from star.evaluation.gathered import Gathered, GatheredModel, Timing
from star.evaluation.labels import METRICS
from star.evaluation.shards import read_shard, write_shard
from star.evaluation.suites import SUITES


def test_a_configuration_may_name_every_suite_and_no_other() -> None:
    assert tuple(SUITES) == get_args(Suite)
    assert [suite.name for suite in SUITES.values()] == list(SUITES)


def test_every_measure_has_a_label() -> None:
    assert {metric for suite in SUITES.values() for metric in suite.measures} <= METRICS.keys()


def test_the_first_measure_is_whether_the_answer_was_right() -> None:
    """The registration's gate compares it by category."""
    assert {name: next(iter(suite.measures.values())) for name, suite in SUITES.items()} == {
        "heldout": "exact_match",
        "bfcl": "valid",
        "acebench": "valid",
    }


def test_a_shard_is_read_as_it_was_written(tmp_path) -> None:
    suites = {
        "acebench": {"verdicts": [{"id": "a", "kind": "atom_bool", "valid": True}], "unanswered": 0},
        "bfcl": None,
    }
    timings = (Timing(420, 1.93, 0.21), Timing(0, 0.0))
    gathered = Gathered(
        title="Two models",
        settings={"seed": 7, "evaluate": {"suites": ["acebench", "bfcl"], "samples": 4, "bfcl_categories": None}},
        models=[
            GatheredModel("a", 10, 40, timings[0], suites),
            GatheredModel("b", 10, 40, timings[1], suites, base="a"),
        ],
        curves={},
        lineage={"a": "0" * 64},
        stages=[],
    )
    assert write_shard(gathered, out=tmp_path) == {"asked": 2}
    assert read_shard(tmp_path) == gathered
    written = json.loads((tmp_path / "gathered.json").read_text())
    assert list(written) == ["title", "settings", "models", "curves", "lineage", "stages", "reading"]
    keys = ["name", "parameters", "memory", "suites"]
    assert [list(model) for model in written["models"]] == [keys, [*keys, "base"]]
    assert json.loads((tmp_path / "timing.json").read_text()) == {
        "a": {"tokens": 420, "seconds": 1.93, "latency": 0.21},
        "b": {"tokens": 0, "seconds": 0.0},
    }


def test_a_shard_of_an_older_star_is_refused(tmp_path) -> None:
    (tmp_path / "gathered.json").write_text(json.dumps({"title": "old", "models": []}))
    (tmp_path / "timing.json").write_text("{}")
    with pytest.raises(InputError, match="run all shards again"):
        read_shard(tmp_path)


def test_two_shards_are_scored_as_one(tmp_path) -> None:
    def shard(verdicts: list[dict], timing: Timing) -> Gathered:
        suites = {"acebench": {"verdicts": verdicts, "unanswered": 1}} if verdicts else {"acebench": None}
        models = [GatheredModel(name, 10, 40, timing, suites) for name in ("a", "b")]
        settings = {"seed": 7, "evaluate": {"suites": ["acebench"], "samples": 4, "bfcl_categories": None}}
        return Gathered("", settings, models, {}, {}, [])

    verdicts = [
        {"id": f"{kind}_{n}", "kind": kind, "valid": n > 0} for kind in ("atom_bool", "atom_enum") for n in (0, 1, 2)
    ]
    shards = [
        # The time of the training is that of the same folder in every shard.
        shard(verdicts[3:], Timing(10, 1.0, 0.5, 28_800.0)),
        shard(verdicts[:3], Timing(20, 2.0, 0.7, 28_800.0)),
        shard([], Timing(0, 0.0, None, 28_800.0)),
    ]
    metrics = score_and_write(shards, out=tmp_path)
    measured = {"seconds": 3.0, "tokens_per_second": 10.0, "latency": 0.6, "training_accelerator_seconds": 28_800.0}
    assert metrics == {f"{name}_{key}": value for name in "ab" for key, value in measured.items()}
    assert "| Accelerator time of its training | 8 h 0 min | 8 h 0 min |" in (tmp_path / "report.md").read_text()
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["suite"] == {"acebench": {"rows": 6}}
    assert evaluation["models"][0]["acebench"]["unanswered"] == 2
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [verdict["id"] for verdict in verdicts] * 2
    [found] = evaluation["comparisons"]
    assert (found["a"], found["b"], found["metric"], found["rows"]) == ("b", "a", "acebench", 6)
