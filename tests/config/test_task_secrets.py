"""A task gets the secrets that it uses, and no others."""

import pytest
from pydantic import ValidationError

from star.config.cluster import Cluster
from star.config.task_secrets import TASKS

SECRETS = {
    "star-s3": {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SESSION_TOKEN": "token"},
    "star-mlflow": {"MLFLOW_TRACKING_PASSWORD": "password"},
    "star-hub": {"HF_TOKEN": "token"},
    "star-webhook": {"STAR_WEBHOOK": "url"},
    "star-ledger": {"RELEASE_KEY": "pem"},
    "own": {"PROXY_PASSWORD": "password"},
}
TRAININGS = {"refine-teacher", "distill", "refine"}


def tasks_with(variable: str, **settings: object) -> set[str]:
    """The tasks beside the pre-flight that get a variable."""
    cluster = Cluster.model_validate({"secrets": SECRETS, **settings})
    given = {task: {name for variables in cluster.secrets_of(task).values() for name in variables} for task in TASKS}
    assert given["preflight"] == {name for variables in SECRETS.values() for name in variables}
    return {task for task in TASKS if variable in given[task]} - {"preflight"}


@pytest.mark.parametrize(
    ("variable", "settings", "tasks"),
    [
        ("STAR_WEBHOOK", {}, {"finish"}),
        ("AWS_ACCESS_KEY_ID", {}, {"register"}),
        ("AWS_SESSION_TOKEN", {"checkpoints": "s3://star/checkpoints"}, {"register"} | TRAININGS),
        ("AWS_ACCESS_KEY_ID", {"environment": {"STAR_REUSE": "/mnt s3://b/p"}}, set(TASKS) - {"preflight", "finish"}),
        ("HF_TOKEN", {}, {"refine-teacher", "distill", "evaluate"}),
        ("RELEASE_KEY", {"environment": {"STAR_LEDGER_KEY": "env:RELEASE_KEY"}}, {"register"}),
        ("MLFLOW_TRACKING_PASSWORD", {}, set(TASKS) - {"preflight", "merge-rollout", "merge-extract-topk"}),
        ("PROXY_PASSWORD", {}, set(TASKS) - {"preflight"}),
        ("PROXY_PASSWORD", {"secret_tasks": {"PROXY_PASSWORD": ["rollout"]}}, {"rollout"}),
        (
            "AWS_ACCESS_KEY_ID",
            {"secret_tasks": {"AWS_ACCESS_KEY_ID": ["register", "evaluate"]}},
            {"register", "evaluate"},
        ),
        ("STAR_WEBHOOK", {"secret_tasks": {"STAR_WEBHOOK": []}}, set()),
    ],
)
def test_a_secret_goes_to_the_tasks_that_use_it(variable: str, settings: dict, tasks: set[str]) -> None:
    assert tasks_with(variable, **settings) == tasks


def test_a_secret_without_a_variable_for_the_task_is_not_mounted() -> None:
    cluster = Cluster.model_validate({"secrets": SECRETS})
    assert cluster.secrets_of("merge-rollout") == {
        "star-ledger": {"RELEASE_KEY": "pem"},
        "own": {"PROXY_PASSWORD": "password"},
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"secret_tasks": {"TYPO": ["register"]}}, "`secret_tasks` names TYPO, which no Secret of `secrets` gives"),
        ({"secret_tasks": {"HF_TOKEN": ["regsiter"]}}, "secret_tasks.HF_TOKEN"),
    ],
)
def test_a_variable_or_task_that_does_not_exist_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Cluster.model_validate({"secrets": SECRETS, **settings})


def test_the_tasks_are_those_of_a_pipeline_with_all_shards() -> None:
    from star.stages import STAGES

    merges = {f"merge-{stage}" for stage in ("rollout", "extract-topk", "evaluate")}
    assert set(TASKS) == {stage.name for stage in STAGES} | merges | {"preflight", "finish"}
